"""A history as it is after much work, written as recorders write it; and workers that only seem to be there."""

import time
from typing import Any

import msgspec
from arq.connections import ArqRedis

from server.dashboard import keys, tries
from server.dashboard.keys import Beat, RunningRecord, TryRecord
from server.dashboard.models import Argument, Frame, Outcome, Raised
from server.dashboard.tries import Bounds, as_try

FUNCTIONS = 20


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


def make_try(queue: str, number: int) -> list[Any]:
    outcome = Outcome.FAILED if number % 10 == 0 else Outcome.DONE
    return as_try(queue, f"job:{number:032x}", f"function {number % FUNCTIONS}", make_record(number, outcome))


async def fill(redis: ArqRedis, finished: int, queued: int, workers: int) -> None:
    """In the queue of `redis`."""
    queue = redis.default_queue_name
    for start in range(0, finished, 500):
        written = [make_try(queue, number) for number in range(start, min(start + 500, finished))]
        await tries.write(redis, Bounds(max_jobs=finished), written)
    now_ms = int(time.time() * 1000)
    job = msgspec.msgpack.encode({"t": None, "f": "function 1", "a": ["x" * 36], "k": {}, "et": now_ms})
    async with redis.pipeline(transaction=False) as pipeline:
        for number in range(queued):
            pipeline.set(f"arq:job:waits:{number}", job)
            pipeline.zadd(queue, {f"waits:{number}": now_ms - number})
        for number in range(workers):
            running = [
                RunningRecord(f"runs:{number}:{slot}", "function 1", 1, now_ms, now_ms, 1.0, None) for slot in range(10)
            ]
            beat = Beat(
                id=f"worker{number}",
                queue=queue,
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
                pipeline.zadd(queue, {one.job: now_ms - queued})
        pipeline.zadd(keys.QUEUES, {queue: now_ms})
        await pipeline.execute()
