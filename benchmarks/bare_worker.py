"""The other side of Valkey, for limits: `python -m benchmarks.bare_worker echo REDIS_URL`, or `… jobs REDIS_URL COUNT`.

`echo` hands back what it is handed. `jobs` runs so many jobs of stock arq that do nothing, and prints how many it did a
second.
"""

import asyncio
import sys
import time
from typing import Any

import uvloop
from arq import Worker, func
from redis.asyncio import Redis

from server.jobs import create_pool, deserialize, serialize

THERE, BACK = "bare:there", "bare:back"
QUEUE = "bare:jobs"
READY = "ready"


async def echo(redis_url: str) -> None:
    redis: Any = Redis.from_url(redis_url)
    await redis.lpush(BACK, READY)
    while True:
        _, message = await redis.blpop(THERE)
        await redis.lpush(BACK, message)


async def nothing(_: dict[Any, Any]) -> None:
    """A job."""


async def jobs(redis_url: str, count: int) -> None:
    redis = await create_pool(redis_url, queue_name=QUEUE)
    await asyncio.gather(*(redis.enqueue_job("nothing", _job_id=f"bare-{n}") for n in range(count)))
    worker = Worker(
        [func(nothing, name="nothing")],
        redis_pool=redis,
        queue_name=QUEUE,
        burst=True,
        keep_result=0,
        handle_signals=False,
        poll_delay=0.01,
        job_serializer=serialize,
        job_deserializer=deserialize,
    )
    began = time.perf_counter()
    await worker.async_run()
    print(count / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    what, url, *counts = sys.argv[1:]
    uvloop.run(echo(url) if what == "echo" else jobs(url, int(counts[0])))
