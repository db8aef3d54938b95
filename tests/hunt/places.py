"""The places where bytes may stay: a leak on purpose into each, and all that is there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
from arq.connections import ArqRedis

from server import jobs
from server.dashboard.models import State
from server.jobs import LiveWorker
from tests.hunt.canaries import Canaries
from tests.hunt.driving import DASHBOARD, Driver
from tests.hunt.forms import deflated, forms_of
from tests.hunt.grounds import Grounds, run_to_be_seen
from tests.people import good, until


class Place(NamedTuple):
    """What was found there, and whether Postgres or Redis compress in it."""

    name: str
    haystacks: list[bytes]
    is_compressed: bool = False
    has_all_forms: bool = False
    """Any bytes can be leaked to it; to others only text, and so the control is found there in some form."""

    @property
    def size(self) -> int:
        return sum(map(len, self.haystacks))


@asynccontextmanager
async def leaking(driver: Driver, canaries: Canaries) -> AsyncIterator[None]:
    """A leak into each place, of the words of `canaries`, for as long as this lasts."""
    grounds = driver.grounds
    texts = [
        b"a text that says little, " * 200 + written + b"a text that says little, " * 200
        for word in (canaries.plain, canaries.odd)
        for written in forms_of(word).values()
    ] + [b"x" + deflated(canaries.plain.encode())]
    leak_to_files(grounds, texts)
    queue = await jobs.create_pool(str(grounds.settings.redis_url))
    for number, text in enumerate(texts):
        await queue.set(f"planted:{number}", text)
    # Jobs of a name that nobody knows: the dashboard shows them, and the worker says that it knows none.
    for number, later_s in enumerate((0, 3600)):
        await queue.enqueue_job(canaries.plain, _job_id=f"planted {number}", _defer_by=later_s)
    worker_log = grounds.folder / "logs" / "worker.log"
    await until(lambda: has_said(worker_log, canaries.plain.encode()))
    for api in range(len(grounds.urls)):
        async with driver.client(api=api) as nobody:
            await nobody.get(f"/nope/{canaries.plain}")
            await nobody.post("/login", json={"email": "x", "password": "y", canaries.plain: 1})
            await nobody.get("/schema", params={canaries.plain: "1"})
    with run_to_be_seen(canaries.plain):
        async with leaking_to_postgres(grounds, canaries, texts), leaking_to_metrics(queue, canaries):
            yield
    await queue.aclose(close_connection_pool=True)


@asynccontextmanager
async def leaking_to_metrics(queue: ArqRedis, canaries: Canaries) -> AsyncIterator[None]:
    """A worker of which a loop has such a name, which becomes a label."""

    async def live() -> None:
        while True:
            worker = LiveWorker("planted", jobs.QUEUE_NAME, "h", 1, "0", datetime.now(UTC), (), (), {canaries.plain: 1})
            await jobs.say_alive(queue, worker)
            await asyncio.sleep(1)

    task = asyncio.create_task(live())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def has_said(log: Path, word: bytes) -> bool:
    return word in await asyncio.to_thread(log.read_bytes)


def leak_to_files(grounds: Grounds, texts: list[bytes]) -> None:
    objects = grounds.settings.data_dir / "objects"
    objects.mkdir(exist_ok=True)
    (objects / "planted").write_bytes(b"\n".join(texts))
    (grounds.folder / "tmp" / "planted").write_bytes(b"\n".join(texts))
    # It can't be made to say what it is told.
    with (grounds.engines.valkey.log_path).open("ab") as log:
        log.write(b"\n".join(texts))


@asynccontextmanager
async def leaking_to_postgres(grounds: Grounds, canaries: Canaries, texts: list[bytes]) -> AsyncIterator[None]:
    """Rows, in place and out of line; statements, parameters and errors in the log; a temporary file of a sort."""
    connection = await grounds.postgres()
    try:
        await connection.execute("CREATE TABLE planted (written bytea, said text)")
        # Twice, one lot after the other: in the WAL a row that crosses a page's end has the next page's head in it.
        for text in (*texts, *texts):
            await connection.execute("INSERT INTO planted VALUES ($1, $2)", text, canaries.plain)
        with contextlib.suppress(Exception):
            await connection.execute(f"SELECT '{canaries.plain}'::int")
        await connection.execute("CHECKPOINT")
        async with connection.transaction():
            await connection.execute("SET LOCAL work_mem = '64kB'")
            numbered = "SELECT number, $1::text FROM generate_series(1, 40000) number ORDER BY (number * 7919) % 40009"
            cursor = await connection.cursor(numbered, canaries.plain)
            await cursor.fetch(1)
            yield
    finally:
        await connection.close()


async def visit(driver: Driver) -> list[Place]:
    """All places, with all that is in them now."""
    grounds = driver.grounds
    data = grounds.engines.data_dir
    connection = await grounds.postgres()
    await connection.execute("CHECKPOINT")
    await connection.close()
    told = await ask_all(driver)
    grounds.sampler.sample()
    redis = await read_redis(grounds)
    return [
        Place("object store", read_files(grounds.settings.data_dir / "objects"), has_all_forms=True),
        Place("Valkey: MONITOR, all the time", monitored(grounds)),
        Place("Valkey: all keys and values", redis["values"], has_all_forms=True),
        Place("Valkey: DUMP of each key", redis["dumps"], is_compressed=True, has_all_forms=True),
        Place("Valkey: RDB", redis["rdb"], is_compressed=True, has_all_forms=True),
        Place("Valkey: AOF", read_files(data / "valkey" / "appendonlydir"), has_all_forms=True),
        Place(
            "Postgres: tables and indexes",
            read_files(
                data / "postgres",
                without=("pg_wal", "pgsql_tmp"),
                since=grounds.begun if driver.is_short else 0,
            ),
            is_compressed=True,
            has_all_forms=True,
        ),
        Place("Postgres: WAL", read_files(data / "postgres" / "pg_wal"), is_compressed=True, has_all_forms=True),
        Place("Postgres: temporary files", read_files(data / "postgres" / "base" / "pgsql_tmp")),
        Place("Postgres: log of all statements", read_files(data, "postgres.log*")),
        Place("Valkey: log", read_files(data, "valkey.log*"), has_all_forms=True),
        Place("API: logs", read_files(grounds.folder / "logs", "api*.log")),
        Place("worker: log", read_files(grounds.folder / "logs", "worker.log")),
        Place("metrics", told["metrics"]),
        Place("dashboard: pages and JSON", told["dashboard"]),
        Place("answers: errors", list(grounds.errors)),
        Place("answers: all that hand out no secret", list(grounds.answers)),
        Place("processes: arguments and environments", list(grounds.sampler.processes.values())),
        Place("temporary files, while they are there", list(grounds.sampler.files.values()), has_all_forms=True),
    ]


def read_files(folder: Path, pattern: str = "*", without: tuple[str, ...] = (), since: float = 0) -> list[bytes]:
    """Those of this name, of all folders below where it is any, but for some folders and what is older."""
    found = []
    for path in folder.rglob(pattern) if pattern == "*" else folder.glob(pattern):
        if any(part in without for part in path.relative_to(folder).parts):
            continue
        with contextlib.suppress(FileNotFoundError):  # engines are at work
            if path.is_file() and path.stat().st_mtime >= since - 1:
                # Postgres makes its log files full of zeros.
                found.append(path.read_bytes().rstrip(b"\0"))
    return [content for content in found if content]


def monitored(grounds: Grounds) -> list[bytes]:
    """As it was told, and with what it escapes as it was."""
    told = bytes(grounds.monitored)
    return [told, told.decode("unicode_escape", errors="replace").encode("latin-1", errors="replace")]


async def read_redis(grounds: Grounds) -> dict[str, list[bytes]]:
    async with grounds.redis() as redis:
        # DUMP compresses long strings as a snapshot does.
        keys = await redis.keys("*")
        dumps = [part for key in keys for part in (key, await redis.dump(key)) if part is not None]
        await redis.config_set("rdbcompression", "no")
        values = [part for key in keys for part in (key, await redis.dump(key)) if part is not None]
        await redis.config_set("rdbcompression", "yes")
        await redis.save()
    return {"values": values, "dumps": dumps, "rdb": read_files(grounds.engines.data_dir / "valkey", "*.rdb")}


async def ask_all(driver: Driver) -> dict[str, list[bytes]]:
    """The metrics of each API, and the dashboard as an administrator sees it."""
    grounds = driver.grounds
    metrics, shown = [], []
    for api in range(len(grounds.urls)):
        async with driver.client(grounds.metrics_token, api) as monitor:
            answer = await monitor.get("/metrics")
            assert answer.status_code == 200
            metrics.append(answer.content)
    connection = await grounds.postgres()
    async with driver.newcomer("Ida", keys=0) as (ida, _):
        await connection.execute("UPDATE users SET is_admin = TRUE WHERE id = $1", ida.id)
        for path in DASHBOARD:
            shown.append((await ida.get(path)).content)
        for job in await jobs_of(ida.client):
            shown += [(await ida.get(f"{base}/{quote(job, safe='')}")).content for base in JOB_PAGES]
    await connection.close()
    return {"metrics": metrics, "dashboard": shown}


JOB_PAGES = ("/dashboard/jobs", "/dashboard/api/jobs")


async def jobs_of(client: httpx.AsyncClient) -> list[str]:
    refs = []
    for state in State:
        answer = await client.get("/dashboard/api/jobs", params={"state": state, "queue": jobs.QUEUE_NAME})
        if answer.is_success:
            refs += [job["ref"] for job in good(answer)["items"][:20] if "ref" in job]
    return refs
