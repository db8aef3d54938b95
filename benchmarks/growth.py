"""B8: reading, sealing and asking with 1,000 posts, and with 1,000,000 posts, 10,000,000 sealed keys and 100,000 users.

Two servers run side by side, and the same is asked of them in turns. To fill the big one takes a minute and 4 GB;
GROWTH_POSTS makes it smaller.
"""

import os
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import asyncpg
import httpx

from benchmarks.asking import join, open_asking
from benchmarks.calling import Caller, hear, listening
from benchmarks.filling import Group, fill_database, fill_group, make_group
from benchmarks.load import load
from benchmarks.measuring import Result, in_turns, percentile, result
from benchmarks.running import Running, running_server

POSTS = int(os.environ.get("GROWTH_POSTS", "1_000_000"))
USERS = POSTS // 10
AT_A_TIME = 30
# Of the tables that grow along.
READ_THROUGH = """
    SELECT sum(seq_scan)::int FROM pg_stat_user_tables
    WHERE relname IN ('users', 'user_keys', 'user_groups', 'user_group_association', 'posts', 'post_keys')
"""


async def main() -> list[Result]:
    async with AsyncExitStack() as stack:
        small = await stack.enter_async_context(running_server())
        big = await stack.enter_async_context(running_server())
        await fill_database(big, USERS, POSTS)
        of_small, of_big = await measured(stack, small), await measured(stack, big)
        database = await asyncpg.connect(big.database_url)
        stack.push_async_callback(database.close)
        scans = await database.fetchval(READ_THROUGH)
        results = []
        for name in of_small:
            before, after = of_small[name], of_big[name]
            await before(), await after()
            figures, limits = await in_turns(after, before)
            results.append(result("B8", f"{name}, p50, with {POSTS:,} posts to 1,000", "ms", figures, limits, "<= 1.2"))
        scans = await database.fetchval(READ_THROUGH) - scans
        return [*results, result("B8", "sequential scans of big tables meanwhile", "", [scans], target="<= 0")]


async def measured(stack: AsyncExitStack, running: Running) -> dict[str, Any]:
    """The same for both: a group of ten with 1,000 posts of its own."""
    client = await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=60))
    group = await make_group(running, client, 10)
    post_ids = await fill_group(running, group, 1000, 10)
    author, asker = client.headers["Authorization"], await join(running, group)
    asking = await open_asking(stack, running, author, asker, post_ids)
    socket = await stack.enter_async_context(listening(running.url, author))
    caller = Caller(running.url, author)
    stack.callback(caller.close)

    async def read(path: str) -> float:
        found = await load(running.url + path, 1, 1, headers={"Authorization": author})
        return found.p50_ms

    async def requests() -> float:
        return percentile(await asking(), 50)

    return {
        "a page of 50 posts": partial(read, f"/posts?group_id={group.id}"),
        "one post": partial(read, f"/posts/{post_ids[-1]}"),
        "create to sealed": partial(create_to_sealed, caller, socket, group),
        "request to frame": requests,
    }


async def create_to_sealed(caller: Caller, socket: Any, group: Group) -> float:
    taken = []
    for _ in range(AT_A_TIME):
        began = time.perf_counter()
        post = await caller.call("POST", "/posts", {"group_id": str(group.id), "title": "A", "content": "Text"})
        await hear(socket, "post.sealed", post_id=post["id"])
        taken.append((time.perf_counter() - began) * 1000)
    return percentile(taken, 50)
