"""A worker of somebody else's: its own functions, arq's own pickles. `python -m tests.dashboard.foreign_worker URL`."""

import asyncio
import sys
from typing import Any

import uvloop
from arq import cron, func
from arq.connections import ArqRedis
from arq.worker import Retry, Worker

from server.dashboard.recorder import Bounds, record
from server.dashboard.redaction import shown

Ctx = dict[Any, Any]


async def note(ctx: Ctx, what: str) -> None:
    """The truth, which the dashboard is compared with: written at once, by the function itself."""
    await ctx["redis"].hincrby("ledger", what, 1)


async def add(ctx: Ctx, *numbers: int) -> int:
    await note(ctx, "done")
    return sum(numbers)


async def fail(ctx: Ctx, secret: str) -> None:
    await note(ctx, "failed")
    raise ValueError(f"can't work with {secret}")


@shown
async def fail_openly(ctx: Ctx, word: str) -> None:
    try:
        raise KeyError(word)
    except KeyError as error:
        raise ValueError(f"can't work with {word}") from error


async def stumble(ctx: Ctx, times: int) -> str:
    if ctx["job_try"] <= times:
        await note(ctx, "retried")
        raise Retry(defer=0.05)
    await note(ctx, "done")
    return "at last"


async def sleep(ctx: Ctx, seconds: float) -> None:
    await note(ctx, "begun")
    await asyncio.sleep(seconds)
    await note(ctx, "done")


async def wait(ctx: Ctx) -> None:
    await note(ctx, "begun")
    await ctx["gate"].wait()


async def tick(ctx: Ctx) -> None:
    pass


def make_worker(redis: ArqRedis, **options: Any) -> Worker:
    functions: list[Any] = [
        *(add, fail, fail_openly, stumble, wait),
        func(sleep, name="sleep", timeout=60),
        func(sleep, name="sleep_briefly", timeout=0.2),
        func(stumble, name="stumble_twice", max_tries=2),
    ]
    return Worker(functions, redis_pool=redis, queue_name=redis.default_queue_name, poll_delay=0.02, **options)


async def main(url: str) -> None:
    redis = ArqRedis.from_url(url)
    redis.default_queue_name = "foreign"
    worker = make_worker(redis, cron_jobs=[cron(tick, second=None, run_at_startup=True)], job_completion_wait=2)
    record(worker, Bounds(max_jobs=1000), version="1.2.3")
    await worker.async_run()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
