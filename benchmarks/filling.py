"""People, groups and posts by the thousand, written to Postgres directly: nobody has the private halves."""

import secrets
from typing import NamedTuple
from uuid import UUID

import asyncpg
import httpx

from benchmarks.running import Running, sign_up

MEMBERS = """
    WITH new AS (
        INSERT INTO users (name, issuer, subject)
        SELECT 'Member', 'bench', gen_random_uuid()::text FROM generate_series(1, $1) RETURNING id
    ), joined AS (
        INSERT INTO user_group_association ("user", "group", role) SELECT id, $2, 'member' FROM new
    )
    SELECT id FROM new
"""
KEYS = """
    INSERT INTO user_keys ("user", public_key, verify_key, proof, label)
    SELECT id, key, $3, $4, 'bench' FROM unnest($1::uuid[], $2::bytea[]) AS k (id, key)
    RETURNING id, public_key
"""
# As big as posts with a short title and a few lines of text are.
POSTS = """
    WITH new AS (
        INSERT INTO posts ("group", author, status, sealed_by, heading, content, content_hash, commitment, request_mac,
            created_at, sealed_at)
        SELECT $1, $2, 'sealed', 'server', decode(repeat('5a', 296), 'hex'), decode(repeat('a5', 1064), 'hex'),
            sha256(n::text::bytea), sha256('c'), sha256('m'), now() - n * interval '1 minute', now()
        FROM generate_series(1, $3) n RETURNING id, created_at
    ), keys AS (
        INSERT INTO post_keys (post, public_key, encrypted_key)
        SELECT new.id, key, decode(repeat('cd', 80), 'hex') FROM new, unnest($4::uuid[]) key
    )
    SELECT id FROM new ORDER BY created_at DESC
"""


class Group(NamedTuple):
    """A group whose owner the client is, with a key."""

    id: UUID
    owner_id: UUID
    owner_key_id: UUID
    key_ids: list[UUID]
    """Of all members, the owner's first."""
    public_keys: list[bytes]


async def make_group(running: Running, client: httpx.AsyncClient, members: int) -> Group:
    """`client` signs up and founds a group of so many members, with a key each."""
    user = await sign_up(client)
    group = (await client.post("/groups", json={"name": "Bench"})).raise_for_status().json()
    database = await asyncpg.connect(running.database_url)
    try:
        more = await database.fetch(MEMBERS, members - 1, group["id"])
        user_ids = [UUID(user["id"]), *(row["id"] for row in more)]
        public_keys = [new_public_key() for _ in user_ids]
        rows = await database.fetch(KEYS, user_ids, public_keys, bytes(32), bytes(64))
        ids = {row["public_key"]: row["id"] for row in rows}
        await database.execute("ANALYZE")
    finally:
        await database.close()
    key_ids = [ids[key] for key in public_keys]
    return Group(UUID(group["id"]), user_ids[0], key_ids[0], key_ids, public_keys)


def new_public_key() -> bytes:
    """Any 32 bytes below 2^255 can be sealed to; the odds that they are of low order are nil."""
    raw = secrets.token_bytes(32)
    return raw[:31] + bytes([raw[31] & 0x3F])


async def fill_group(running: Running, group: Group, posts: int, keys_each: int) -> list[UUID]:
    """So many sealed posts, the newest first."""
    database = await asyncpg.connect(running.database_url)
    try:
        rows = await database.fetch(POSTS, group.id, group.owner_id, posts, group.key_ids[:keys_each])
        # By hand, as autovacuum does it where tables live longer than a benchmark.
        await database.execute("VACUUM ANALYZE")
    finally:
        await database.close()
    return [row["id"] for row in rows]
