"""B12: two API and two worker processes against one of each: reading a page, and posts sealed without a pause."""

import asyncio
import json
import os
import time
from contextlib import AsyncExitStack

import asyncpg
import httpx

from benchmarks.filling import fill_group, make_group
from benchmarks.load import load
from benchmarks.measuring import Result, in_turns, result
from benchmarks.posting import stopped
from benchmarks.running import another, running_server

CONNECTIONS = 32
PAGES_S = 1
POSTS_S = 2
# On two cores one of each has all there is to have; beyond that they should gain.
TARGET = ">= 0.95" if (os.cpu_count() or 1) <= 2 else ">= 1.5"


async def main() -> list[Result]:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running_server())
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=one.url, timeout=60))
        group = await make_group(one, client, 10)
        await fill_group(one, group, 1000, 10)
        with_api, second = await stack.enter_async_context(another(one, "api"))
        both, _ = await stack.enter_async_context(another(with_api, "worker"))
        more = both._replace(pid=both.more_pids[0], more_pids=both.more_pids[1:])
        database = await asyncpg.connect(one.database_url)
        stack.push_async_callback(database.close)
        headers = {"Authorization": client.headers["Authorization"], "Content-Type": "application/json"}
        body = json.dumps({"group_id": str(group.id), "title": "A title", "content": "Some lines of text. " * 20})

        async def pages(*urls: str) -> float:
            path, share = f"/posts?group_id={group.id}", CONNECTIONS // len(urls)
            loads = await asyncio.gather(*(load(url + path, share, PAGES_S, headers=headers) for url in urls))
            return sum(found.rate for found in loads)

        async def posts(*urls: str) -> float:
            began, share = time.perf_counter(), 16 // len(urls)
            loads = await asyncio.gather(
                *(load(f"{url}/posts", share, POSTS_S, method="POST", headers=headers, body=body) for url in urls)
            )
            while await database.fetchval("SELECT EXISTS (SELECT FROM posts WHERE status = 'pending')"):  # noqa: ASYNC110 - another process' work
                await asyncio.sleep(0.02)
            return sum(found.answers for found in loads) / (time.perf_counter() - began)

        async def posts_by_one() -> float:
            with stopped(more, "worker"):
                return await posts(one.url)

        # A stopped process keeps what it has claimed, so it has to have nothing in hand.
        await pages(one.url, second)
        one_page, two_pages = await in_turns(lambda: pages(one.url), lambda: pages(one.url, second))
        two_posts, one_post = await in_turns(lambda: posts(one.url, second), posts_by_one, rounds=3)
    return [
        result("B12", "a page of 50 posts, two APIs to one", "req/s", two_pages, one_page, TARGET),
        result("B12", "posts sealed, two of each to one", "posts/s", two_posts, one_post, TARGET),
    ]
