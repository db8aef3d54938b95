"""A Redis of its own for each module, and the dashboard on it in an application that has nothing else."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from arq.connections import ArqRedis
from arq.worker import Worker
from litestar import Litestar

from server.dashboard import backlog
from server.dashboard.actions import Actions
from server.dashboard.models import Job, JobDetail, Queue, Selection, State
from server.dashboard.reader import Reader
from server.dashboard.router import dashboard_router
from tests.redis_server import RedisServer, running_redis

PROJECT = Path(__file__).parent.parent.parent
QUEUE = "foreign"
PATIENCE_S = 30


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests is no Redis that does not answer."""
    monkeypatch.setattr(backlog, "ANSWER_TIMEOUT_S", PATIENCE_S)


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def foreign(own_redis: RedisServer) -> AsyncIterator[ArqRedis]:
    """arq's client as it comes: it writes pickles."""
    redis = connect(own_redis.url)
    await redis.flushall()
    yield redis
    await redis.aclose(close_connection_pool=True)


def connect(url: str) -> ArqRedis:
    redis: ArqRedis = ArqRedis.from_url(url)
    redis.default_queue_name = QUEUE
    return redis


@pytest.fixture
def reader(foreign: ArqRedis) -> Reader:
    return Reader(foreign, queues=[QUEUE])


@pytest.fixture
def actions(reader: Reader) -> Actions:
    return Actions(reader)


@pytest.fixture
async def app(foreign: ArqRedis) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody else's application, with no guard and no settings."""
    async with serving(Litestar([dashboard_router(redis=foreign, guards=[])])) as client:
        yield client


@asynccontextmanager
async def serving(litestar: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(cast("Any", litestar))
    async with httpx.AsyncClient(transport=transport, base_url="http://foreign.example") as client:
        yield client


@contextmanager
def foreign_worker(own_redis: RedisServer) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own, which a test may kill."""
    command = [sys.executable, "-m", "tests.dashboard.foreign_worker", own_redis.url]
    process = subprocess.Popen(command, cwd=PROJECT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[None]:
    """In this process; what it has in hand at the end it puts back."""
    task = asyncio.create_task(worker.main())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for one in worker.tasks.values():
            one.cancel()
        await asyncio.gather(*worker.tasks.values(), return_exceptions=True)


async def until(condition: Callable[[], Awaitable[Any]], within_s: float = PATIENCE_S) -> Any:
    """What it gives, once that is true."""
    async with asyncio.timeout(within_s):
        while not (found := await condition()):  # noqa: ASYNC110 - of what happens elsewhere no event tells
            await asyncio.sleep(0.02)
    return found


async def queue_of(reader: Reader) -> Queue:
    [queue] = [queue for queue in (await reader.overview()).queues if queue.name == QUEUE]
    return queue


async def list_all(reader: Reader, state: State, **filters: Any) -> list[Job]:
    jobs: list[Job] = []
    cursor = None
    while True:
        page = await reader.jobs(Selection(state=state, queue=QUEUE, **filters), cursor, 100)
        jobs += page.items
        cursor = page.next_cursor
        if cursor is None:
            return jobs


async def job_of(reader: Reader, job_id: str) -> JobDetail:
    return (await reader.find(job_id)).detail
