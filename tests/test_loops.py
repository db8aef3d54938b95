"""Background loops: one that has ended is seen, counted and started again. In processes where they can be ended."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import loops
from server.loops import Loop
from server.settings import Settings
from tests.people import until
from tests.processes import environ_of, free_port
from tests.redis_server import running_redis

TOKEN = "m" * 32


class Mortal:
    """A server process whose loops end when they are told to."""

    def __init__(self, verb: str, environ: dict[str, str], log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "tests.faults.mortal", verb]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command, env=os.environ | environ, stdin=subprocess.PIPE, stdout=file, stderr=file
            )

    def end(self, loop: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{loop}\n".encode())
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin
        self.process.stdin.close()


class Pair(NamedTuple):
    api: Mortal
    worker: Mortal
    client: httpx.AsyncClient

    async def said(self) -> dict[str, str]:
        found: dict[str, str] = (await self.client.get("/health/ready")).json()
        return found

    async def deaths(self, metric: str, loop: str) -> float:
        answer = await self.client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == metric and sample.labels == {"loop": loop})


@pytest.fixture(scope="module")
def environ(settings: Settings, migrated: None) -> Iterator[dict[str, str]]:
    with running_redis() as redis:
        yield environ_of(settings, REDIS_URL=redis.url, METRICS_TOKEN=TOKEN)


@pytest.fixture(scope="module")
async def pair(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder, port = tmp_path_factory.mktemp("loops"), free_port()
    with ExitStack() as stack:
        api = Mortal("api", environ | {"PORT": str(port)}, folder / "api.log")
        stack.callback(api.kill)
        worker = Mortal("worker", environ, folder / "worker.log")
        stack.callback(worker.kill)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            both = Pair(api, worker, client)

            async def ready() -> bool:
                try:
                    return (await both.said())["status"] == "ready"
                except httpx.TransportError:
                    return False

            await until(ready)
            yield both


@pytest.mark.parametrize("loop", ["hub", "sockets", "pings", "quotas"])
async def test_ended_loop_of_an_api_is_seen_counted_and_started_again(pair: Pair, loop: str) -> None:
    await dies_twice(pair, pair.api, loop, "secureblogs_loop_deaths_total", "loops")


@pytest.mark.parametrize("loop", ["heartbeat", "hub", "recorder"])
async def test_ended_loop_of_a_worker_is_seen_counted_and_started_again(pair: Pair, loop: str) -> None:
    await dies_twice(pair, pair.worker, loop, "secureblogs_worker_loop_deaths", "worker")


async def dies_twice(pair: Pair, process: Mortal, loop: str, metric: str, check: str) -> None:
    """Twice, for only what was started again can end again."""
    for number in (1, 2):

        async def is_counted(number: int = number) -> bool:
            process.end(loop)
            return await pair.deaths(metric, loop) >= number

        await until(is_counted)
        said = await pair.said()
        assert said["status"] == "unready"
        assert loop in said[check]


async def test_loop_is_well_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "WELL_AFTER_S", 0.2)
    monkeypatch.setattr(loops, "FIRST_PAUSE_S", 0.01)
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise RuntimeError("nobody thought of this")
        await asyncio.Event().wait()

    async with Loop("of a test", run) as loop:
        await until(has_died(loop, 1))
        assert not loop.is_well
        assert loops.unwell(loop) == ["of a test"]
        await until(is_well(loop))
        assert (runs, loop.deaths) == (2, 1)
    assert not loop.is_well, "it does not run"


async def test_loop_that_returns_or_is_cancelled_has_ended_too() -> None:
    async def run() -> None:
        if loop.deaths == 1:
            raise asyncio.CancelledError

    async with Loop("of a test", run) as loop:
        await until(has_died(loop, 2))


async def test_leaving_the_block_ends_the_loop_and_is_no_death() -> None:
    ended = asyncio.Event()

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Loop("of a test", run) as loop:
        await until(is_well(loop))
        await asyncio.sleep(0)
    assert ended.is_set()
    assert loop.deaths == 0


def has_died(loop: Loop, times: int) -> Any:
    async def died() -> bool:
        return loop.deaths >= times

    return died


def is_well(loop: Loop) -> Any:
    async def well() -> bool:
        return loop.is_well

    return well


async def test_loop_that_loses_a_cancellation_ends_all_the_same() -> None:
    """A group of tasks that fails at that very moment does so: the error comes out of it, the cancellation is gone."""
    begun, lost = asyncio.Event(), 0

    async def run() -> None:
        nonlocal lost
        while True:
            try:
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
                if lost == 2:
                    raise

    async with asyncio.timeout(10), Loop("deaf", run):
        await begun.wait()
    assert lost == 2
