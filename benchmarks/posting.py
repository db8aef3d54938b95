"""B2: `POST /posts` on 16 connections.

The limit is a Litestar handler that makes the same bare inserts in one transaction of asyncpg, and one round trip to
Valkey. It leaves no work behind. Ours is taken with the worker stopped, which makes it the same work, and once more
with a worker that seals what comes, on the same cores.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx

from benchmarks.bare import running_bare
from benchmarks.filling import make_group
from benchmarks.load import Load, load
from benchmarks.measuring import Cores, Result, in_turns, parts_of, result
from benchmarks.running import Running, running_server

SECONDS = 1
CONNECTIONS = 16
MEMBERS = 10


async def main() -> list[Result]:
    async with running_server() as running, httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        group = await make_group(running, client, MEMBERS)
        body = json.dumps({"group_id": str(group.id), "title": "A title", "content": "Some lines of text. " * 20})
        answer = await client.post("/posts", content=body, headers={"Content-Type": "application/json"})
        pages = {"page": b"", "one": answer.raise_for_status().content}
        headers = {"Authorization": client.headers["Authorization"], "Content-Type": "application/json"}
        ids = {"group": str(group.id), "user": str(group.owner_id)}
        async with running_bare(running, pages, **ids) as bare:
            post = partial(
                load, running.url + "/posts", CONNECTIONS, SECONDS, method="POST", headers=headers, body=body
            )
            limit = partial(load, f"{bare}/insert", CONNECTIONS, SECONDS, method="POST", headers=headers, body=body)

            async def alone() -> tuple[Load, dict[str, float]]:
                with stopped(running, "worker"):
                    cores = Cores(running)
                    return await post(), cores.used()

            await alone(), await limit()
            ours, limits = await in_turns(alone, limit)
            busy = [await post() for _ in range(2)]
        limits = [one.rate for one in limits]
        rates = [one.rate for one, _ in ours]
        return [
            result("B2", "posts accepted, 16 connections", "req/s", rates, limits, ">= 0.7", ours[-1][1]),
            result("B2", "the same while a worker seals them", "req/s", [one.rate for one in busy], limits),
        ]


@contextmanager
def stopped(running: Running, kind: str) -> Iterator[None]:
    """As by SIGSTOP."""
    processes = [process for name, process in parts_of(running) if name == kind]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()
