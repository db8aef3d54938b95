"""B7: `post.sealed` to 1,000 sockets of a group, and what an idle socket costs.

The limit of the first is `broadcast` of the websockets library, that of the others a socket of bare uvicorn. The
sockets are those of 1,000 members, one each. An idle one is pinged every 25 seconds, as the bare one is; ours gets a
frame as well then, and its credential and its groups are looked up every few seconds.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import uuid_utils.compat
from redis.asyncio import Redis

from benchmarks.bare_sockets import GO, PING_EVERY_S, READY_PATH
from benchmarks.filling import Group, make_group
from benchmarks.listeners import Listeners, listeners
from benchmarks.measuring import Cores, Result, in_turns, parts_of, result
from benchmarks.running import PROJECT, Running, free_port, process_of, running_server
from server import channels, posts
from server.credentials import SESSION_PREFIX
from server.sealing import digests
from server.sealing.posts import PostIds

SOCKETS = 1000
EVENTS = 30
QUIET_S = 10.0
SESSIONS = """
    INSERT INTO user_tokens ("user", token_hash, kind, expires)
    SELECT "user", token_hash, 'session', now() + interval '1 day'
    FROM (SELECT "user", row_number() OVER () n FROM user_group_association WHERE "group" = $1)
    JOIN unnest($2::bytea[]) WITH ORDINALITY t (token_hash, n) USING (n)
"""


async def main() -> list[Result]:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_server())
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            group = await make_group(running, client, SOCKETS)
        authorizations = await log_all_in(running, group)
        [api] = [process for kind, process in parts_of(running) if kind == "API"]
        redis = await stack.enter_async_context(Redis.from_url(running.redis_url))
        bare, url = await stack.enter_async_context(bare_sockets("uvicorn"))
        _, broadcast_url = await stack.enter_async_context(bare_sockets("broadcast"))
        caller = await stack.enter_async_context(httpx.AsyncClient())

        # What a process does without any socket is none of these.
        quiet = await busy_cores(QUIET_S, api, bare)
        empty = [private_kib(process) for process in (api, bare)]
        ours = await stack.enter_async_context(listeners(running.url, authorizations, SOCKETS))
        async with listeners(url, [], SOCKETS, "/"):
            full = [private_kib(process) for process in (api, bare)]
            idle = await busy_cores(PING_EVERY_S, api, bare)
        memory, bare_memory = ((after - before) / SOCKETS for before, after in zip(empty, full, strict=True))
        cpu, bare_cpu = (with_sockets - without for without, with_sockets in zip(quiet, idle, strict=True))

        theirs = await stack.enter_async_context(listeners(broadcast_url, [], SOCKETS, "/"))
        used: dict[str, float] = {}

        async def fan_out() -> float:
            nonlocal used
            events = [
                posts.sealed_event(PostIds(uuid_utils.compat.uuid7(), group.id, group.owner_id)) for _ in range(EVENTS)
            ]
            cores = Cores(running)
            rate = await messages_a_second(ours, lambda: channels.publish_many(redis, events))
            used = cores.used()
            return rate

        async def broadcast() -> float:
            return await messages_a_second(theirs, lambda: caller.get(f"{broadcast_url}{GO}?{EVENTS}"))

        await fan_out(), await broadcast()
        figures, limits = await in_turns(fan_out, broadcast)
    return [
        result("B7", "post.sealed to 1,000 sockets", "frames/s", figures, limits, ">= 0.5", used),
        result("B7", "memory of an idle socket", "KiB", [memory], bare_memory, "<= 1.5"),
        result("B7", "CPU of 1,000 idle sockets", "cores", [cpu], bare_cpu, "<= 1.5"),
    ]


async def log_all_in(running: Running, group: Group) -> list[str]:
    """The header of each member, in a session of its own."""
    tokens = [SESSION_PREFIX + secrets.token_urlsafe(32) for _ in group.key_ids]
    database = await asyncpg.connect(running.database_url)
    await database.execute(SESSIONS, group.id, [digests.token_hash(token) for token in tokens])
    await database.close()
    return [f"Bearer {token}" for token in tokens]


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


async def busy_cores(seconds: float, *processes: psutil.Process) -> list[float]:
    """How many cores each of them keeps busy for so long."""
    before = [cpu_seconds(process) for process in processes]
    await asyncio.sleep(seconds)
    return [(cpu_seconds(process) - then) / seconds for process, then in zip(processes, before, strict=True)]


def cpu_seconds(process: psutil.Process) -> float:
    """To the nanosecond, where clock ticks would hide what little it is."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9
