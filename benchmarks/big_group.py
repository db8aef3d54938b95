"""One post for a big group: from `POST /posts` to sealed, and what other callers notice of it.

The limit is what no server can do without: as many `crypto_box_seal` calls on all cores, and one COPY
of as many rows into a table with the same indexes.
"""

import asyncio
import os
import secrets
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import httpx

from benchmarks.running import Running, running_server, sign_up
from server.sealing.posts import new_post_key, seal_key

ROUNDS = 5
POLL_S = 0.01

MEMBERS = """
    WITH new AS (
        INSERT INTO users (name, issuer, subject) SELECT 'Member', 'bench', n::text FROM generate_series(1, $1) n
        RETURNING id
    ), joined AS (
        INSERT INTO user_group_association ("user", "group", role) SELECT id, $2, 'member' FROM new
    )
    SELECT id FROM new
"""
KEYS = """
    INSERT INTO user_keys ("user", public_key, verify_key, proof, label)
    SELECT id, key, $3, $4, 'bench' FROM unnest($1::uuid[], $2::bytea[]) AS k (id, key)
"""
COPIED = "CREATE TEMP TABLE copied (LIKE post_keys INCLUDING ALL)"


async def main(members: int) -> None:
    async with running_server() as running, httpx.AsyncClient(base_url=running.url, timeout=120) as client:
        await sign_up(client)
        group_id = (await client.post("/groups", json={"name": "Big"})).json()["id"]
        database = await asyncpg.connect(running.database_url)
        try:
            public_keys = await fill(database, group_id, members)
            ours, limits, quiet, busy = [], [], [], []
            for _ in range(ROUNDS):
                limits.append(await seals_and_copy(database, public_keys))
                quiet += await latencies(client, asyncio.create_task(asyncio.sleep(1)))
                sealing = asyncio.create_task(post_to_sealed(running, client.headers, group_id))
                busy += await latencies(client, sealing)
                ours.append(await sealing)
        finally:
            await database.close()
    report(members, ours, limits, quiet, busy)


async def fill(database: asyncpg.Connection, group_id: str, members: int) -> list[bytes]:
    """So many members with a key each; nobody has the private halves."""
    rows = await database.fetch(MEMBERS, members, group_id)
    # Any 32 bytes below 2^255 are a public key to seal to; the odds of one of low order are nil.
    public_keys = [(raw := secrets.token_bytes(32))[:31] + bytes([raw[31] & 0x3F]) for _ in rows]
    await database.execute(KEYS, [row["id"] for row in rows], public_keys, bytes(32), bytes(64))
    await database.execute("ANALYZE")
    return public_keys


async def seals_and_copy(database: asyncpg.Connection, public_keys: list[bytes]) -> float:
    """Seconds for the bare sum of what has to be done."""
    post_key, cores = new_post_key(), os.cpu_count() or 1
    start = time.perf_counter()
    with ThreadPoolExecutor(cores) as threads:
        portions = [public_keys[core::cores] for core in range(cores)]
        sealed = threads.map(lambda portion: [seal_key(post_key, public_key) for public_key in portion], portions)
        rows = [(secrets.token_bytes(16), key) for portion in sealed for key in portion]
    sealing_s = time.perf_counter() - start
    return sealing_s + await copy(database, [key for _, key in rows])


async def copy(database: asyncpg.Connection, sealed_keys: list[bytes]) -> float:
    ids = [
        row["id"] for row in await database.fetch("SELECT uuidv7() AS id FROM generate_series(1, $1)", len(sealed_keys))
    ]
    rows = [(key_id, ids[0], key_id, sealed_key) for key_id, sealed_key in zip(ids, sealed_keys, strict=True)]
    await database.execute(COPIED)
    try:
        start = time.perf_counter()
        await database.copy_records_to_table(
            "copied", columns=["id", "post", "public_key", "encrypted_key"], records=rows
        )
        return time.perf_counter() - start
    finally:
        await database.execute("DROP TABLE copied")


async def post_to_sealed(running: Running, headers: httpx.Headers, group_id: str) -> float:
    async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=120) as client:
        start = time.perf_counter()
        body = {"group_id": group_id, "title": "Big", "content": "For everyone."}
        post: dict[str, Any] = (await client.post("/posts", json=body)).raise_for_status().json()
        while post["status"] == "pending":
            await asyncio.sleep(POLL_S)
            post = (await client.get(f"/posts/{post['id']}")).json()
        if post["status"] != "sealed":
            raise RuntimeError(f"the post {post['failure']}")
        return time.perf_counter() - start


async def latencies(client: httpx.AsyncClient, meanwhile: asyncio.Task[Any]) -> list[float]:
    """Seconds of each `GET /me`, one after the other, for as long as `meanwhile` takes."""
    taken = []
    while not meanwhile.done():
        start = time.perf_counter()
        (await client.get("/me")).raise_for_status()
        taken.append(time.perf_counter() - start)
        await asyncio.sleep(0.002)
    return taken


def report(members: int, ours: list[float], limits: list[float], quiet: list[float], busy: list[float]) -> None:
    our_s, limit_s = statistics.median(ours), statistics.median(limits)
    print(f"one post for {members:,} members, medians of {ROUNDS}, on {os.cpu_count()} cores")
    print(f"  POST to sealed                 {our_s * 1000:8.0f} ms   (from {min(ours):.3f} to {max(ours):.3f} s)")
    print(f"  bare seals and one COPY        {limit_s * 1000:8.0f} ms   ratio {our_s / limit_s:.2f}")
    quiet_p99, busy_p99 = statistics.quantiles(quiet, n=100)[98], statistics.quantiles(busy, n=100)[98]
    print(f"  p99 of GET /me, quiet          {quiet_p99 * 1000:8.1f} ms")
    print(f"  p99 of GET /me, meanwhile      {busy_p99 * 1000:8.1f} ms   ratio {busy_p99 / quiet_p99:.2f}")
