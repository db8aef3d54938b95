"""B5: from a read request to the frame on its author's WebSocket, with no other sockets and with 1,000.

The limit is one insert, one publish through Valkey to another process, and what that sends on a WebSocket.
"""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import asyncpg
import httpx
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.bare import AUDIT, CHANNEL, running_bare
from benchmarks.calling import Caller, hear, listening
from benchmarks.filling import Group, fill_group, make_group, new_public_key
from benchmarks.listeners import listeners
from benchmarks.measuring import Cores, Result, in_turns, percentile, result
from benchmarks.running import Running, running_server, sign_up

AT_A_TIME = 30
OTHERS = 1000
MEMBERS = 10
POSTS = 1000
JOIN = 'INSERT INTO user_group_association ("user", "group", role) VALUES ($1, $2, \'member\')'
KEY = "INSERT INTO user_keys (\"user\", public_key, verify_key, proof, label) VALUES ($1, $2, $3, $4, 'bench')"


async def main() -> list[Result]:
    async with running_server(MAX_SOCKETS_PER_USER=str(OTHERS + 10)) as running, AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=60))
        group = await make_group(running, client, MEMBERS)
        post_ids = await fill_group(running, group, POSTS, 1)
        author, asker = client.headers["Authorization"], await join(running, group)
        asking = await open_asking(stack, running, author, asker, post_ids)
        bare = await open_bare(stack, running, group)
        await asking(), await bare()
        quiet, limits = await in_turns(asking, bare)
        async with listeners(running.url, [asker], OTHERS):
            cores = Cores(running)
            crowded, crowded_limits = await in_turns(asking, bare)
            used = cores.used()
    results = []
    for percent, target in ((50, "<= 2.0"), (99, "")):
        for others, figures, bounds in ((0, quiet, limits), (OTHERS, crowded, crowded_limits)):
            name = f"read request to the author's frame, {others:,} other sockets, p{percent}"
            values, limit = ([percentile(taken, percent) for taken in rounds] for rounds in (figures, bounds))
            results.append(result("B5", name, "ms", values, limit, target, used if others else None))
    # Each against what the machine gave at that time.
    calm, crowd = results[0], results[1]
    results.append(
        result("B5", "p50 with 1,000 other sockets to that with none", "", [crowd.ratio or 0], calm.ratio, "<= 1.2")
    )
    return results


async def join(running: Running, group: Group) -> str:
    """Somebody else comes into the group, with a key; the header that stands for them."""
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        user = await sign_up(client)
        database = await asyncpg.connect(running.database_url)
        await database.execute(JOIN, user["id"], group.id)
        await database.execute(KEY, user["id"], new_public_key(), bytes(32), bytes(64))
        await database.close()
        return str(client.headers["Authorization"])


async def open_asking(stack: AsyncExitStack, running: Running, author: str, asker: str, post_ids: list[UUID]) -> Any:
    socket = await stack.enter_async_context(listening(running.url, author))
    caller = Caller(running.url, asker)
    stack.callback(caller.close)
    left = iter(post_ids)

    async def ask() -> list[float]:
        taken = []
        for _ in range(AT_A_TIME):
            post_id = str(next(left))
            began = time.perf_counter()
            # The frame is there before the answer.
            asked = asyncio.create_task(caller.call("POST", f"/posts/{post_id}/request_read"))
            await hear(socket, "read_request.created", post_id=post_id)
            taken.append((time.perf_counter() - began) * 1000)
            await asked
        return taken

    return ask


async def open_bare(stack: AsyncExitStack, running: Running, group: Group) -> Any:
    url = await stack.enter_async_context(running_bare(running, {"page": b"", "one": b""}))
    redis: Any = await stack.enter_async_context(Redis.from_url(running.redis_url))
    database = await asyncpg.connect(running.database_url)
    stack.push_async_callback(database.close)
    socket: ClientConnection = await stack.enter_async_context(
        connect(url.replace("http", "ws", 1) + "/ws", compression=None, proxy=None, ping_interval=None)
    )
    frame = json.dumps({"type": "read_request.created", "text": "x" * 600})

    async def bare() -> list[float]:
        taken = []
        for _ in range(AT_A_TIME):
            began = time.perf_counter()
            await database.execute(AUDIT, group.owner_id, group.id, "{}")
            await redis.publish(CHANNEL, frame)
            await socket.recv()
            taken.append((time.perf_counter() - began) * 1000)
        return taken

    return bare
