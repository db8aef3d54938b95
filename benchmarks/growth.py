"""B8: reading, sealing and asking with 1,000 posts, and with 1,000,000 posts, 10,000,000 sealed keys and 100,000 users.

Two servers run side by side, and the same is asked of them in turns. To fill the big one takes a minute or two;
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
from benchmarks.filling import Group, fill_group, make_group
from benchmarks.load import load
from benchmarks.measuring import Result, in_turns, percentile, result
from benchmarks.running import Running, running_server

POSTS = int(os.environ.get("GROWTH_POSTS", "1_000_000"))
USERS = POSTS // 10
KEYS_OF_A_POST = 10
GROUPS = USERS // 10
AT_A_TIME = 30

# Without triggers, which check each row, and without the indexes, which are made afterwards, in one go.
FILL = f"""
    SET session_replication_role = replica;
    SET maintenance_work_mem = '512MB';
    SET synchronous_commit = off;
    CREATE TEMP TABLE made (again text);
    INSERT INTO made
        SELECT format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
        FROM pg_constraint WHERE conrelid IN ('posts'::regclass, 'post_keys'::regclass) AND contype = 'u'
        UNION ALL SELECT indexdef FROM pg_indexes i WHERE tablename IN ('posts', 'post_keys')
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conname = i.indexname);
    DO $$
    DECLARE one record;
    BEGIN
        FOR one IN SELECT conrelid::regclass AS of, conname FROM pg_constraint
            WHERE conrelid IN ('posts'::regclass, 'post_keys'::regclass) AND contype = 'u'
        LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.of, one.conname); END LOOP;
        FOR one IN SELECT indexname FROM pg_indexes i WHERE tablename IN ('posts', 'post_keys')
            AND NOT EXISTS (SELECT FROM pg_constraint WHERE conname = i.indexname)
        LOOP EXECUTE format('DROP INDEX %I', one.indexname); END LOOP;
    END $$;
    CREATE FUNCTION pg_temp.id_of(kind text, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
        $$ SELECT (kind || '0000-7000-' || lpad(to_hex(n), 16, '0'))::uuid $$;
    INSERT INTO users (id, name, issuer, subject)
        SELECT pg_temp.id_of('0000000a', n), 'User', 'growth', n::text FROM generate_series(0, {USERS - 1}) n;
    INSERT INTO user_keys (id, "user", public_key, verify_key, proof, label)
        SELECT pg_temp.id_of('0000000b', n), pg_temp.id_of('0000000a', n), sha256(n::text::bytea), sha256(''),
            sha512(''), 'key' FROM generate_series(0, {USERS - 1}) n;
    INSERT INTO user_groups (id, name, request_mac)
        SELECT pg_temp.id_of('0000000c', n), 'Group', '' FROM generate_series(0, {GROUPS - 1}) n;
    INSERT INTO user_group_association ("user", "group", role)
        SELECT pg_temp.id_of('0000000a', n), pg_temp.id_of('0000000c', n / {USERS // GROUPS}),
            CASE n % {USERS // GROUPS} WHEN 0 THEN 'owner' ELSE 'member' END FROM generate_series(0, {USERS - 1}) n;
    INSERT INTO posts (id, "group", author, status, sealed_by, heading, content, content_hash, commitment, request_mac,
            created_at, sealed_at)
        SELECT pg_temp.id_of('0000000d', n), pg_temp.id_of('0000000c', n % {GROUPS}),
            pg_temp.id_of('0000000a', n % {GROUPS} * {USERS // GROUPS}), 'sealed', 'server', h.heading, h.heading,
            h.hash, h.hash, '', now() - n * interval '1 second', now()
        FROM generate_series(0, {POSTS - 1}) n,
            (SELECT decode(repeat('5a', 296), 'hex') AS heading, sha256('c') AS hash) h;
    INSERT INTO post_keys (post, public_key, encrypted_key)
        SELECT pg_temp.id_of('0000000d', n), pg_temp.id_of('0000000b', n % {GROUPS} * {USERS // GROUPS} + m), h.sealed
        FROM generate_series(0, {POSTS - 1}) n, generate_series(0, {KEYS_OF_A_POST - 1}) m,
            (SELECT decode(repeat('cd', 80), 'hex') AS sealed) h;
    DO $$
    DECLARE one record;
    BEGIN
        FOR one IN SELECT again FROM made LOOP EXECUTE one.again; END LOOP;
    END $$;
"""  # noqa: S608 - put together from the constants above


async def main() -> list[Result]:
    async with AsyncExitStack() as stack:
        small = await stack.enter_async_context(running_server())
        big = await stack.enter_async_context(running_server())
        database = await asyncpg.connect(big.database_url, command_timeout=900)
        await database.execute(FILL)
        await database.execute("VACUUM ANALYZE")
        await database.close()
        of_small, of_big = await measured(stack, small), await measured(stack, big)
        results = []
        for name, unit in (("a page of 50 posts", "ms"), ("create to sealed", "ms"), ("request to frame", "ms")):
            before, after = of_small[name], of_big[name]
            await before(), await after()
            figures, limits = await in_turns(after, before)
            results.append(result("B8", f"{name}, p50, with {POSTS:,} posts to 1,000", unit, figures, limits, "<= 1.2"))
        return results


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

    async def page() -> float:
        found = await load(f"{running.url}/posts?group_id={group.id}", 1, 1, headers={"Authorization": author})
        return found.p50_ms

    async def requests() -> float:
        return percentile(await asking(), 50)

    return {
        "a page of 50 posts": page,
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
