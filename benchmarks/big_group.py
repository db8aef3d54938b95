"""B4: one post for a big group: from `POST /posts` to sealed, what other callers notice of it, and the worker's memory.

The limit is what no server can do without: as many `crypto_box_seal` calls on all cores, and one COPY of as many rows
into a table with the same indexes.
"""

import asyncio
import functools
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import httpx
from websockets.asyncio.client import ClientConnection

from benchmarks.calling import Caller, hear, listening
from benchmarks.filling import Group, make_group
from benchmarks.measuring import ROUNDS, Cores, Peak, Result, parts_of, percentile, result
from benchmarks.running import Running, running_server
from server.sealing.posts import new_post_key, seal_key

SIZES = {10_000: ROUNDS, 100_000: 1}
QUIET_S = 1.0
COPIED = "CREATE TEMP TABLE copied (LIKE post_keys INCLUDING ALL)"


async def main() -> list[Result]:
    results, peaks = [], []
    async with running_server() as running:
        for members, rounds in SIZES.items():
            async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
                group = await make_group(running, client, members)
                authorization = client.headers["Authorization"]
            found, peak = await measure(running, group, authorization, rounds)
            results += found
            peaks.append(peak)
    growth = peaks[-1] - peaks[0]
    results.append(
        result("B4", "worker's memory, from 10,000 to 100,000 members", "MiB more", [growth], target="<= 100")
    )
    return results


async def measure(running: Running, group: Group, authorization: str, rounds: int) -> tuple[list[Result], float]:
    caller, reader = Caller(running.url, authorization), Caller(running.url, authorization)
    database = await asyncpg.connect(running.database_url)
    [worker] = [process for kind, process in parts_of(running) if kind == "worker"]
    ours, limits, quiet, busy, used = [], [], [], [], {}
    async with listening(running.url, authorization) as socket:
        post = functools.partial(post_to_sealed, caller, socket, str(group.id))
        with Peak(worker) as peak:
            for _ in range(rounds):
                # The limit has the machine to itself, and so has the figure; others are asked with a post more.
                limits.append(await seals_and_copy(database, group.public_keys))
                cores = Cores(running)
                ours.append(await post())
                used = cores.used()
                quiet += await latencies(reader, asyncio.create_task(asyncio.sleep(QUIET_S)))
                busy += await latencies(reader, asyncio.create_task(post()))
    await database.close()
    caller.close()
    reader.close()
    members = f"{len(group.key_ids):,} members"
    p99 = [percentile(quiet, 99), percentile(busy, 99)]
    return [
        result("B4", f"one post for {members}", "ms", ours, limits, "<= 1.3", used),
        result("B4", f"p99 of GET /me meanwhile, {members}", "ms", [p99[1]], p99[0], "<= 3"),
    ], peak.mebibytes


async def seals_and_copy(database: asyncpg.Connection, public_keys: list[bytes]) -> float:
    """Milliseconds for the bare sum of what has to be done."""
    post_key, cores = new_post_key(), os.cpu_count() or 1
    start = time.perf_counter()
    with ThreadPoolExecutor(cores) as threads:
        portions = [public_keys[core::cores] for core in range(cores)]
        sealed = threads.map(lambda portion: [seal_key(post_key, public_key) for public_key in portion], portions)
        keys = [key for portion in sealed for key in portion]
    sealing_s = time.perf_counter() - start
    return (sealing_s + await copy(database, keys)) * 1000


async def copy(database: asyncpg.Connection, sealed_keys: list[bytes]) -> float:
    rows = await database.fetch("SELECT uuidv7() AS id FROM generate_series(1, $1)", len(sealed_keys))
    ids = [row["id"] for row in rows]
    records = [(key_id, ids[0], key_id, sealed_key) for key_id, sealed_key in zip(ids, sealed_keys, strict=True)]
    await database.execute(COPIED)
    try:
        start = time.perf_counter()
        await database.copy_records_to_table(
            "copied", columns=["id", "post", "public_key", "encrypted_key"], records=records
        )
        return time.perf_counter() - start
    finally:
        await database.execute("DROP TABLE copied")


async def post_to_sealed(caller: Caller, socket: ClientConnection, group_id: str) -> float:
    start = time.perf_counter()
    post = await caller.call("POST", "/posts", {"group_id": group_id, "title": "Big", "content": secrets.token_hex()})
    await hear(socket, "post.sealed", post_id=post["id"])
    return (time.perf_counter() - start) * 1000


async def latencies(caller: Caller, meanwhile: asyncio.Task[Any]) -> list[float]:
    """Milliseconds of each `GET /me`, one after the other, for as long as `meanwhile` takes."""
    taken = []
    while not meanwhile.done():
        start = time.perf_counter()
        await caller.call("GET", "/me")
        taken.append((time.perf_counter() - start) * 1000)
        await asyncio.sleep(0.002)
    return taken
