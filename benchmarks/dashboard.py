"""What it costs to record jobs, to look at a great many of them, and to keep them.

Recording: no-op jobs through the server's own kind of worker, with and without; the history is at its bound, so each
new job pushes out an old one. Pages: of two servers in turns, of which one has done nothing yet. A page is made once a
second at most, for all who look at it, which is what callers see; how long the making takes is told beside it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import UUID

import httpx
from arq import func
from arq.connections import ArqRedis

from benchmarks.measuring import Result, in_turns, percentile, result
from benchmarks.running import Running, running_server, sign_up
from server import administration, database, jobs
from server.channels import Hub
from server.dashboard.actions import Actions
from server.dashboard.reader import Reader
from server.dashboard.recorder import BEAT_EVERY_S, Bounds, record
from tasks.worker import Worker
from tests.dashboard.filling import fill

NAME = "dashboard"

NOOPS = 2000
KEPT = 1000
SLOTS = 10
ROUNDS = 9

FINISHED, QUEUED, WORKERS = 100_000, 10_000, 50
QUEUE = jobs.QUEUE_NAME
CALLS = 150
MADE = 15
PAGES = [
    "/",
    "/?span=7d",
    *(f"/jobs?queue={QUEUE}&state={state}" for state in ("failed", "done", "queued", "running")),
    f"/jobs?queue={QUEUE}&state=done&function=function+3",
    f"/jobs?queue={QUEUE}&state=done&text=nowhere",
    "/functions",
    "/functions?function=function+3&span=24h",
    "/workers",
    "/cron",
]
BYTES_A_JOB = 1024 + 0.1 * 2048
"""As the recorder's bounds state it, where one in ten failed."""


async def main() -> list[Result]:
    logging.getLogger("arq").setLevel(logging.WARNING)
    async with running_server() as empty, running_server(DASHBOARD_JOBS="1000000") as full:
        recording = await compare_recording(empty.redis_url)
        memory = await fill_up(full.redis_url)
        async with looking(empty) as few, looking(full) as many:
            return [*recording, memory, *[one for path in PAGES for one in await compare_page(few, many, path)]]


async def compare_recording(redis_url: str) -> list[Result]:
    async def without() -> tuple[float, float]:
        return await work(redis_url, is_recorded=False)

    async def with_it() -> tuple[float, float]:
        return await work(redis_url, is_recorded=True)

    await with_it()
    bare, recorded = await in_turns(without, with_it, rounds=ROUNDS)
    rates, bare_rates = [rate for rate, _ in recorded], [rate for rate, _ in bare]
    efforts, bare_efforts = [effort for _, effort in recorded], [effort for _, effort in bare]
    return [
        result(NAME, "no-op jobs, recorded, and not", "jobs/s", rates, bare_rates, ">= 0.85"),
        result(NAME, "the same, in CPU time of this worker and Valkey", "µs a job", efforts, bare_efforts),
    ]


async def work(redis_url: str, *, is_recorded: bool) -> tuple[float, float]:
    """Jobs a second, and microseconds of CPU time a job, which others on this machine leave alone."""

    async def noop(_: dict[Any, Any]) -> None:
        pass

    pool = await jobs.create_pool(redis_url, queue_name="bench", max_connections=40)
    for start in range(0, NOOPS, 500):
        await jobs.enqueue(pool, "noop", {f"noop:{number}": [] for number in range(start, start + 500)})
    worker = Worker(
        pool,
        functions=[func(cast("Any", noop), name="noop")],
        max_jobs=SLOTS,
        keep_result=0,
        poll_delay=0.5,
        handle_signals=False,
        job_serializer=jobs.serialize,
        job_deserializer=jobs.deserialize,
    )
    if is_recorded:
        record(worker, Bounds(max_jobs=KEPT))
    async with Hub(pool) as hub:
        await hub.join(worker, [jobs.wake_channel("bench")])
        start_s, start_cpu_s = time.perf_counter(), await cpu_seconds(pool)
        task = asyncio.create_task(worker.main())
        while await pool.zcard("bench"):  # noqa: ASYNC110 - of the end of the last one nobody tells
            await asyncio.sleep(0.02)
        seconds, cpu_s = time.perf_counter() - start_s, await cpu_seconds(pool) - start_cpu_s
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await worker.release()
    await pool.aclose(close_connection_pool=True)
    return NOOPS / seconds, cpu_s / NOOPS * 1e6


async def cpu_seconds(redis: ArqRedis) -> float:
    used = await redis.info("cpu")
    return time.process_time() + float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


async def fill_up(redis_url: str) -> Result:
    redis: ArqRedis = ArqRedis.from_url(redis_url)

    async def used() -> int:
        return int((await redis.info("memory"))["used_memory"])

    before = await used()
    await fill(redis, FINISHED, 0, 0)
    taken = await used() - before
    # The server's own worker leaves what is queued alone.
    await Actions(Reader(redis, queues=[QUEUE])).pause("benchmark", QUEUE)
    await asyncio.sleep(2 * BEAT_EVERY_S)
    await fill(redis, 0, QUEUED, WORKERS)
    await redis.aclose(close_connection_pool=True)
    allowed = FINISHED * BYTES_A_JOB
    return result(NAME, "memory of 100,000 jobs", "MiB", [taken / 2**20], allowed / 2**20, "<= 1")


@contextlib.asynccontextmanager
async def looking(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        user = await sign_up(client)
        async with database.open_pool(running.database_url, 1):
            await administration.grant(None, UUID(user["id"]))
        yield client


async def compare_page(few: httpx.AsyncClient, many: httpx.AsyncClient, path: str) -> list[Result]:
    seen: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(CALLS):
        for is_full, client in ((False, few), (True, many)):
            seen[is_full].append(await take(client, path))
    made: dict[bool, list[float]] = {False: [], True: []}
    for number in range(MADE):
        for is_full, client in ((False, few), (True, many)):
            # Whoever has heard of something new gets a page that was made after it.
            made[is_full].append(await take(client, path, {"Last-Event-ID": f"{number}-0-0"}))
    p95 = {is_full: [percentile(times, 95) * 1000] for is_full, times in seen.items()}
    anew = {is_full: [1000 * one for one in times] for is_full, times in made.items()}
    return [
        result(NAME, f"p95 of {path}", "ms", p95[True], p95[False], "<= 2"),
        result(NAME, f"making {path}", "ms", anew[True], anew[False]),
    ]


async def take(client: httpx.AsyncClient, path: str, headers: dict[str, str] | None = None) -> float:
    """Seconds."""
    begun = time.perf_counter()
    (await client.get(f"/dashboard{path}", headers=headers)).raise_for_status()
    return time.perf_counter() - begun
