"""The dashboard in a terminal: what its verbs print."""

import asyncio
import json
import os
import sys

import msgspec
import pytest
from arq.connections import ArqRedis

from server import administration, jobs
from server.dashboard import access
from server.dashboard.models import State
from server.dashboard.reader import Reader
from server.dashboard.recorder import record
from server.embedded import Engines
from server.settings import Settings
from server.up import told_address
from tests.dashboard.conftest import PROJECT, QUEUE, list_all, until, working
from tests.dashboard.foreign_worker import make_worker
from tests.people import Person
from tests.redis_server import RedisServer
from tests.test_cli import environ, secureblogs

__all__ = ["environ"]


async def test_queues_jobs_and_workers_are_told(
    foreign: ArqRedis, reader: Reader, own_redis: RedisServer, environ: dict[str, str]
) -> None:
    worker = make_worker(foreign, handle_signals=False)
    recorder = record(worker, version="1.2.3")
    surroundings = environ | {"REDIS_URL": own_redis.url}
    await foreign.enqueue_job("fail", "a secret", _job_id="bad\x1b[2J")
    await foreign.enqueue_job("add", 1, _job_id="later", _defer_by=3600)
    async with working(worker):

        async def has_failed() -> bool:
            return bool(await list_all(reader, State.FAILED))

        await until(has_failed)
        listed = await secureblogs("jobs", "--queue", QUEUE, **surroundings)
        assert listed.status == 0, listed.err
        [queue] = [line.split() for line in listed.out.splitlines() if line.startswith(QUEUE)]
        # Waiting since, queued, deferred, running, retrying, orphaned, failed, done, workers.
        assert queue == [QUEUE, "–", "0", "1", "0", "0", "0", "1", "0", "1"]
        [job] = [line.split() for line in listed.out.splitlines() if "ValueError" in line]
        assert job[1:4] == ["fail", "failed", "1"]
        assert "\x1b" not in listed.out
        assert "secret" not in listed.out

        found = json.loads((await secureblogs("jobs", "--queue", QUEUE, "--json", **surroundings)).out)
        assert [one["function"] for one in found["jobs"]["items"]] == ["fail"]
        assert [one["deferred"] for one in found["overview"]["queues"] if one["name"] == QUEUE] == [1]

        workers = await secureblogs("workers", **surroundings)
        assert recorder.id in workers.out
        assert "1.2.3" in workers.out

    async def nobody_is_alive() -> bool:
        return (await secureblogs("workers", **surroundings)).out.strip() == "No worker is alive."

    # On a busy machine its goodbye may come too late, and then it is its heartbeat that ends.
    await until(nobody_is_alive, 20)
    alarmed = await secureblogs("jobs", "--queue", QUEUE, **surroundings)
    assert f"! {QUEUE}: No worker is alive: what is enqueued will wait." in alarmed.out


async def test_redis_that_is_away_is_told_in_one_line(environ: dict[str, str]) -> None:
    told = await secureblogs("workers", **environ | {"REDIS_URL": "unix:///nowhere"})
    assert told.status == 1
    assert told.err.strip() == "secureblogs: Redis does not answer; `secureblogs doctor` looks into it"


@pytest.mark.usefixtures("database_pool")
async def test_link_is_for_administrators(environ: dict[str, str], alice: Person) -> None:
    refused = await secureblogs("dashboard-link", str(alice.id), **environ)
    assert refused.status != 0
    assert "no administrator" in refused.err
    await administration.grant(None, alice.id)
    printed = await secureblogs("dashboard-link", str(alice.id), **environ)
    _, _, token = printed.out.strip().partition("/dashboard/open?token=")
    pool = await jobs.create_pool(environ["REDIS_URL"])
    opened = await access.open_session(pool, token)
    await pool.aclose(close_connection_pool=True)
    assert opened is not None
    assert opened[0] == str(alice.id)


@pytest.mark.usefixtures("database_pool")
async def test_link_leads_to_what_runs_on_the_data_folder(engines: Engines, settings: Settings, alice: Person) -> None:
    await administration.grant(None, alice.id)
    beside = {"DATA_DIR": str(engines.data_dir)}
    running = msgspec.structs.replace(settings, data_dir=engines.data_dir, public_url="http://127.0.0.1:8831")
    with told_address(running):
        printed = await secureblogs("dashboard-link", str(alice.id), **beside)
        assert printed.out.startswith("http://127.0.0.1:8831/dashboard/open?token="), printed
        printed = await secureblogs("dashboard-link", str(alice.id), **beside, PUBLIC_URL="https://here.example")
        assert printed.out.startswith("https://here.example/"), printed
    printed = await secureblogs("dashboard-link", str(alice.id), **beside)
    assert printed.out.startswith("http://127.0.0.1:8000/"), printed


async def test_watching_goes_on_until_it_is_stopped(environ: dict[str, str], own_redis: RedisServer) -> None:
    watching = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.cli", "workers", "--watch", "--json"),
        env=os.environ | environ | {"REDIS_URL": own_redis.url},
        cwd=PROJECT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert watching.stdout is not None
        lines = [await asyncio.wait_for(watching.stdout.readline(), 30) for _ in range(2)]
    finally:
        watching.kill()
        await watching.wait()
    assert [json.loads(line) for line in lines] == [{"items": []}] * 2
