"""B3: from `POST /posts` to sealed, one at a time, for 10 members. B6: posts sealed a second, without a pause.

B3 ends when the author's WebSocket tells that the post is sealed. Its limit is the bare sum: one insert, one hand-over
through Valkey to another process and back, ten seals, one transaction with an update. B6 has two limits, of which the
lower one counts: seals on all cores, and stock arq's jobs that do nothing.
"""

import asyncio
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import httpx
import uuid_utils.compat
from redis.asyncio import Redis

from benchmarks.bare import DRAFT, MAC, POST
from benchmarks.bare_worker import BACK, THERE
from benchmarks.calling import Caller, hear, listening
from benchmarks.filling import Group, make_group
from benchmarks.load import load
from benchmarks.measuring import Cores, Result, in_turns, percentile, result
from benchmarks.running import PROJECT, Running, process_of, running_server
from server.sealing.posts import new_post_key, seal_key

MEMBERS = 10
AT_A_TIME = 40
LOAD_S = 3
JOBS = 2000
SEAL = (
    "UPDATE posts SET status = 'sealed', draft = NULL, heading = $2, content = $2, content_hash = $3, commitment = $3,"
    " sealed_at = now() WHERE id = $1"
)


async def main() -> list[Result]:
    async with running_server() as running, httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        group = await make_group(running, client, MEMBERS)
        authorization = client.headers["Authorization"]
        return [
            *await one_at_a_time(running, group, authorization),
            *await without_a_pause(running, group, authorization),
        ]


async def one_at_a_time(running: Running, group: Group, authorization: str) -> list[Result]:
    echo = [sys.executable, "-m", "benchmarks.bare_worker", "echo", running.redis_url]
    caller = Caller(running.url, authorization)
    async with (
        process_of(echo, dict(os.environ), PROJECT, None),
        listening(running.url, authorization) as socket,
        asyncpg.create_pool(running.database_url, min_size=1, max_size=1) as database,
        Redis.from_url(running.redis_url) as redis,
    ):
        bare = Bare(database, redis, group)
        await bare.wait_until_ready()
        body = {"group_id": str(group.id), "title": "A title", "content": "Some lines of text. " * 20}

        async def ours() -> tuple[list[float], dict[str, float]]:
            cores, taken = Cores(running), []
            for _ in range(AT_A_TIME):
                began = time.perf_counter()
                post = await caller.call("POST", "/posts", body)
                await hear(socket, "post.sealed", post_id=post["id"])
                taken.append((time.perf_counter() - began) * 1000)
            return taken, cores.used()

        async def limit() -> list[float]:
            return [await bare.post() for _ in range(AT_A_TIME)]

        await ours(), await limit()
        figures, limits = await in_turns(ours, limit)
    caller.close()
    cores = figures[-1][1]
    return [
        result(
            "B3",
            f"create to sealed, p{percent}",
            "ms",
            [percentile(taken, percent) for taken, _ in figures],
            [percentile(taken, percent) for taken in limits],
            target,
            cores,
        )
        for percent, target in ((50, "<= 2.0"), (99, "<= 5.0"))
    ]


class Bare:
    """What no server can do without, one after the other."""

    def __init__(self, database: Any, redis: Any, group: Group) -> None:
        self.database = database
        self.redis = redis
        self.group = group

    async def wait_until_ready(self) -> None:
        async with asyncio.timeout(10):
            await self.redis.blpop(BACK)

    async def post(self) -> float:
        """Milliseconds."""
        began = time.perf_counter()
        post_id = uuid_utils.compat.uuid7()
        await self.database.execute(POST, post_id, self.group.id, self.group.owner_id, DRAFT, MAC)
        await self.redis.lpush(THERE, str(post_id))
        await self.redis.blpop(BACK)
        post_key = new_post_key()
        for public_key in self.group.public_keys[:MEMBERS]:
            seal_key(post_key, public_key)
        async with self.database.acquire() as connection, connection.transaction():
            await connection.execute(SEAL, post_id, DRAFT, MAC)
        return (time.perf_counter() - began) * 1000


async def without_a_pause(running: Running, group: Group, authorization: str) -> list[Result]:
    body = json.dumps({"group_id": str(group.id), "title": "A title", "content": "Some lines of text. " * 20})
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    database = await asyncpg.connect(running.database_url)

    async def ours() -> tuple[float, dict[str, float]]:
        cores, began = Cores(running), time.perf_counter()
        loaded = await load(f"{running.url}/posts", 16, LOAD_S, method="POST", headers=headers, body=body)
        while await database.fetchval("SELECT EXISTS (SELECT FROM posts WHERE status = 'pending')"):  # noqa: ASYNC110 - another process' work
            await asyncio.sleep(0.02)
        return loaded.answers / (time.perf_counter() - began), cores.used()

    async def limit() -> float:
        return min(seals_a_second(group) / MEMBERS, await jobs_a_second(running))

    figures, limits = await in_turns(ours, limit, rounds=3)
    await database.close()
    rates = [rate for rate, _ in figures]
    return [
        result("B6", "posts sealed without a pause, 10 members", "posts/s", rates, limits, ">= 0.4", figures[-1][1])
    ]


def seals_a_second(group: Group, count: int = 4000) -> float:
    """On all cores."""
    post_key, cores = new_post_key(), os.cpu_count() or 1
    keys = [group.public_keys[n % len(group.public_keys)] for n in range(count)]
    began = time.perf_counter()
    with ThreadPoolExecutor(cores) as threads:
        list(
            threads.map(lambda part: [seal_key(post_key, key) for key in part], [keys[n::cores] for n in range(cores)])
        )
    return count / (time.perf_counter() - began)


async def jobs_a_second(running: Running) -> float:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.bare_worker", "jobs", running.redis_url, str(JOBS)),
        stdout=asyncio.subprocess.PIPE,
        cwd=PROJECT,
    )
    told, _ = await process.communicate()
    return float(told)
