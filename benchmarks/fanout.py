"""B7: `post.sealed` to 1,000 sockets of a group, and what an idle socket costs.

The limit of the first is `broadcast` of the websockets library, that of the second a socket of bare uvicorn.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import uuid_utils.compat
from redis.asyncio import Redis

from benchmarks.bare_sockets import GO, READY_PATH
from benchmarks.filling import make_group
from benchmarks.listeners import Listeners, listeners
from benchmarks.measuring import Cores, Result, in_turns, parts_of, result
from benchmarks.running import PROJECT, free_port, process_of, running_server
from server import channels, posts
from server.sealing.posts import PostIds

SOCKETS = 1000
EVENTS = 30
IDLE_S = 4.0


async def main() -> list[Result]:
    async with running_server(MAX_SOCKETS_PER_USER=str(SOCKETS + 10)) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            group = await make_group(running, client, 1)
            authorization = client.headers["Authorization"]
        [api] = [process for kind, process in parts_of(running) if kind == "API"]
        before = private_kib(api)
        async with (
            Redis.from_url(running.redis_url) as redis,
            listeners(running.url, authorization, SOCKETS) as ours,
            bare_sockets("broadcast") as (_, bare_url),
            listeners(bare_url, "", SOCKETS, "/") as theirs,
        ):
            memory, cpu = (private_kib(api) - before) / SOCKETS, await idle_cores(api)
            used: dict[str, float] = {}

            async def fan_out() -> float:
                nonlocal used
                events = [
                    posts.sealed_event(PostIds(uuid_utils.compat.uuid7(), group.id, group.owner_id))
                    for _ in range(EVENTS)
                ]
                cores = Cores(running)
                rate = await messages_a_second(ours, lambda: channels.publish_many(redis, events))
                used = cores.used()
                return rate

            async def broadcast() -> float:
                async with httpx.AsyncClient() as client:
                    return await messages_a_second(theirs, lambda: client.get(f"{bare_url}{GO}?{EVENTS}"))

            await fan_out(), await broadcast()
            figures, limits = await in_turns(fan_out, broadcast)
    async with bare_sockets("uvicorn") as (process, url):
        before = private_kib(process)
        async with listeners(url, "", SOCKETS, "/"):
            bare_memory, bare_cpu = (private_kib(process) - before) / SOCKETS, await idle_cores(process)
    return [
        result("B7", "post.sealed to 1,000 sockets", "frames/s", figures, limits, ">= 0.5", used),
        result("B7", "memory of an idle socket", "KiB", [memory], bare_memory, "<= 1.5"),
        # A socket of ours is pinged, and its credential and its groups are looked up, every few seconds.
        result("B7", "1,000 idle sockets", "cores", [cpu], max(bare_cpu, 0.001)),
    ]


async def messages_a_second(told: Listeners, send: Callable[[], Awaitable[Any]]) -> float:
    # From when it is sent, not from the first that arrives.
    began = time.perf_counter()
    waiting = asyncio.create_task(told.seconds(SOCKETS * EVENTS))
    await asyncio.sleep(0)
    await send()
    await waiting
    return SOCKETS * EVENTS / (time.perf_counter() - began)


@asynccontextmanager
async def bare_sockets(kind: str) -> AsyncIterator[tuple[psutil.Process, str]]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "benchmarks.bare_sockets", kind, str(port)]
    async with process_of(command, dict(os.environ), PROJECT, url + READY_PATH) as pid:
        yield psutil.Process(pid), url


def private_kib(process: psutil.Process) -> float:
    """Memory that is this process' alone."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


async def idle_cores(process: psutil.Process) -> float:
    before = process.cpu_times()
    await asyncio.sleep(IDLE_S)
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system) / IDLE_S
