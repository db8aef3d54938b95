"""What it costs: the same for a hundred jobs and for a hundred thousand, and a bounded number of bytes."""

import time
from typing import Any

import httpx
import msgspec
from arq.connections import ArqRedis

from server.dashboard import keys
from server.dashboard.keys import Beat, RunningRecord, TryRecord
from server.dashboard.models import Argument, Frame, Outcome, Raised, State
from server.dashboard.recorder import Bounds, as_try, write_tries
from tests.dashboard.conftest import QUEUE

FUNCTIONS = 20

PATHS = [
    "overview",
    "workers",
    "cron",
    "history",
    "history?span=7d",
    "history?span=24h&function=function%203",
    *(f"jobs?queue={QUEUE}&state={state.value}" for state in State),
    f"jobs?queue={QUEUE}&state=done&function=function%203",
]


def make_record(number: int, outcome: Outcome) -> TryRecord:
    raised = Raised(type="ValueError", message=None, frames=[Frame(file="a/b/c.py", line=1, function="f")] * 8)
    return TryRecord(
        number=1,
        outcome=outcome,
        worker="0123456789abcdef",
        enqueued_ms=1_800_000_000_000,
        started_ms=1_800_000_000_000 + number,
        ended_ms=1_800_000_000_000 + number,
        wait_ms=number % 1000,
        run_ms=number % 777,
        raised=[raised] if outcome is Outcome.FAILED else [],
        result=None,
        arguments=[Argument(name="0", type="str", size=36, value=None)],
    )


def make_try(number: int) -> list[Any]:
    outcome = Outcome.FAILED if number % 10 == 0 else Outcome.DONE
    return as_try(QUEUE, f"job:{number:032x}", f"function {number % FUNCTIONS}", make_record(number, outcome))


async def fill(redis: ArqRedis, finished: int, queued: int, workers: int) -> None:
    sha = None
    for start in range(0, finished, 500):
        tries = [make_try(number) for number in range(start, min(start + 500, finished))]
        sha = await write_tries(redis, Bounds(max_jobs=finished), tries, sha)
    now_ms = int(time.time() * 1000)
    job = msgspec.msgpack.encode({"t": None, "f": "function 1", "a": ["x" * 36], "k": {}, "et": now_ms})
    async with redis.pipeline(transaction=False) as pipeline:
        for number in range(queued):
            pipeline.set(f"arq:job:waits:{number}", job)
            pipeline.zadd(QUEUE, {f"waits:{number}": now_ms - number})
        for number in range(workers):
            running = [
                RunningRecord(f"runs:{number}:{slot}", "function 1", 1, now_ms, now_ms, 1.0, None) for slot in range(10)
            ]
            beat = Beat(
                id=f"worker{number}",
                queue=QUEUE,
                host="host",
                pid=number,
                version="1",
                started_ms=now_ms,
                at_ms=now_ms,
                max_jobs=10,
                claim_ms=310_000,
                functions=[f"function {one}" for one in range(FUNCTIONS)],
                shown=[],
                cron=[],
                running=running,
                rss=2**26,
                done=1,
                failed=1,
                retried=1,
                unrecorded=0,
                is_recording=True,
            )
            pipeline.set(keys.WORKER + beat.id, msgspec.msgpack.encode(beat))
            pipeline.set(keys.ALIVE + beat.id, b"")
            pipeline.zadd(keys.WORKERS, {beat.id: now_ms})
            for one in running:
                pipeline.set(keys.ARQ_CLAIM + one.job, b"1", px=300_000)
                pipeline.zadd(QUEUE, {one.job: now_ms - queued})
        pipeline.zadd(keys.QUEUES, {QUEUE: now_ms})
        await pipeline.execute()


async def test_commands_do_not_grow_with_the_jobs(foreign: ArqRedis, app: httpx.AsyncClient) -> None:
    """Counted, not timed: the same calls ask Redis as many things of ten times as many jobs."""

    async def count(path: str) -> int:
        await foreign.config_resetstat()
        assert (await app.get(f"/dashboard/api/{path}")).is_success
        stats = await foreign.info("commandstats")
        assert not {"cmdstat_keys", "cmdstat_scan"} & stats.keys()
        return sum(one["calls"] for one in stats.values())

    await fill(foreign, 1000, 1000, 5)
    few = {path: await count(path) for path in PATHS}
    await foreign.flushall()
    await fill(foreign, 10_000, 10_000, 5)
    many = {path: await count(path) for path in PATHS}
    assert {path: calls for path, calls in many.items() if calls > few[path] + 5} == {}


async def test_history_takes_the_bytes_that_it_says(foreign: ArqRedis) -> None:
    async def used() -> int:
        return int((await foreign.info("memory"))["used_memory"])

    before = await used()
    await fill(foreign, 10_000, 0, 0)
    assert (await used() - before) / 10_000 < 1024 + 0.1 * 2048
