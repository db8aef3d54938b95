"""People, groups and posts by the thousand, or the million, written to Postgres directly.

Nobody has the private halves of their keys.
"""

import secrets
import struct
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
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


# ------------------------------------------------------------------------------------ a database that has grown

MEMBERS_OF_A_GROUP = 10
ROWS_AT_A_TIME = 1000
# Kinds of ids, which sort as their rows were made, and before any id that a server makes.
USER, KEY, GROUP, POST, SEALED_KEY = (bytes([0, 0, 0, kind]) + b"\x00\x00\x70\x00" for kind in range(10, 15))
PEOPLE = """
    CREATE FUNCTION pg_temp.id_of(kind bytea, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
        $$ SELECT encode(kind || int8send(n), 'hex')::uuid $$;
    INSERT INTO users (id, name, issuer, subject)
        SELECT pg_temp.id_of('{user}', n), 'User', 'growth', n::text FROM generate_series(0, {last}) n;
    INSERT INTO user_keys (id, "user", public_key, verify_key, proof, label)
        SELECT pg_temp.id_of('{key}', n), pg_temp.id_of('{user}', n), sha256(n::text::bytea), sha256(''),
            sha512(''), 'key' FROM generate_series(0, {last}) n;
    INSERT INTO user_groups (id, name, request_mac)
        SELECT pg_temp.id_of('{group}', n), 'Group', '' FROM generate_series(0, {last} / {members}) n;
    INSERT INTO user_group_association ("user", "group", role)
        SELECT pg_temp.id_of('{user}', n), pg_temp.id_of('{group}', n / {members}),
            CASE n % {members} WHEN 0 THEN 'owner' ELSE 'member' END FROM generate_series(0, {last}) n;
"""
# But for those that a foreign key of another table leans on.
INDEXES = """
    SELECT CASE WHEN k.oid IS NULL THEN format('DROP INDEX %s', i.indexrelid::regclass)
            ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', i.indrelid::regclass, k.conname) END AS drop,
        CASE WHEN k.oid IS NULL THEN pg_get_indexdef(i.indexrelid)
            ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', i.indrelid::regclass, k.conname,
                pg_get_constraintdef(k.oid)) END AS make
    FROM pg_index i LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
    WHERE i.indrelid IN ('posts'::regclass, 'post_keys'::regclass)
    AND NOT EXISTS (SELECT FROM pg_constraint f WHERE f.conindid = i.indexrelid AND f.conrelid <> i.indrelid)
"""


async def fill_database(running: Running, users: int, posts: int) -> None:
    """So many users in groups of ten, and posts with a key for each member of theirs: into a database without posts.

    A million posts are 3.7 GB, and take a minute. What would take several is left out: triggers, which look at each
    row, and random ids made by Postgres, at 4 us each. Indexes are made afterwards, and rows are written as VACUUM
    leaves them. In the end all is as it was, and settled.
    """
    database = await asyncpg.connect(running.database_url, command_timeout=900)
    try:
        await database.execute("SET session_replication_role = replica; SET maintenance_work_mem = '1GB'")
        async with few_checkpoints(database):
            kinds = {"user": USER, "key": KEY, "group": GROUP}
            named = {name: rf"\x{kind.hex()}" for name, kind in kinds.items()}
            await database.execute(PEOPLE.format(last=users - 1, members=MEMBERS_OF_A_GROUP, **named))
            indexes = await database.fetch(INDEXES)
            async with database.transaction():
                for index in indexes:
                    await database.execute(index["drop"])
                # FREEZE is for tables that nobody else has seen a row of.
                await database.execute("TRUNCATE posts, post_keys CASCADE")
                await copy(database, "posts", POST_COLUMNS, post_rows(users, posts))
                await copy(database, "post_keys", "id post public_key encrypted_key", key_rows(users, posts))
            for index in indexes:
                await database.execute(index["make"])
            await database.execute("VACUUM ANALYZE")
    finally:
        await database.close()


@asynccontextmanager
async def few_checkpoints(database: asyncpg.Connection) -> AsyncIterator[None]:
    await database.execute("ALTER SYSTEM SET max_wal_size = '16GB'")
    await database.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        await database.execute("ALTER SYSTEM RESET max_wal_size")
        await database.execute("SELECT pg_reload_conf()")
        await database.execute("CHECKPOINT")


async def copy(database: asyncpg.Connection, table: str, columns: str, rows: Iterable[bytes]) -> None:
    """`rows` are in the binary format of COPY."""

    async def source() -> AsyncIterator[bytes]:
        # No flags, no extension.
        yield b"PGCOPY\n\xff\r\n\x00" + bytes(8)
        for some in rows:
            yield some
        yield b"\xff\xff"

    await database.copy_to_table(table, source=source(), columns=columns.split(), format="binary", freeze=True)


POST_COLUMNS = (
    "id group author created_at sealed_at status sealed_by heading content content_hash commitment request_mac"
)


def post_rows(users: int, posts: int) -> Iterator[bytes]:
    """A post a second until now, by the owners of the groups in turns."""
    begin = (datetime.now(UTC) - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) - posts * 1_000_000
    groups = users // MEMBERS_OF_A_GROUP
    same = fields(b"sealed", b"server", b"Z" * 296, b"Z" * 296, bytes(32), bytes(32), b"")
    rows = []
    for n in range(posts):
        group = n % groups
        at = (begin + n * 1_000_000).to_bytes(8)
        ids = POST + n.to_bytes(8), GROUP + group.to_bytes(8), USER + (group * MEMBERS_OF_A_GROUP).to_bytes(8)
        rows.append(b"\x00\x0c" + fields(*ids, at, at) + same)
        if len(rows) == ROWS_AT_A_TIME or n == posts - 1:
            yield b"".join(rows)
            rows.clear()


def key_rows(users: int, posts: int) -> Iterator[bytes]:
    """Ten of each post."""
    groups = users // MEMBERS_OF_A_GROUP
    ends = [fields(KEY + n.to_bytes(8), b"\xcd" * 80) for n in range(users)]
    begin = b"\x00\x04" + struct.pack(">i", 16) + SEALED_KEY
    rows = []
    for n in range(posts):
        first = n % groups * MEMBERS_OF_A_GROUP
        post = fields(POST + n.to_bytes(8))
        for number, end in enumerate(ends[first : first + MEMBERS_OF_A_GROUP], n * MEMBERS_OF_A_GROUP):
            rows.append(begin + number.to_bytes(8) + post + end)
        if len(rows) >= ROWS_AT_A_TIME or n == posts - 1:
            yield b"".join(rows)
            rows.clear()


def fields(*values: bytes) -> bytes:
    return b"".join([struct.pack(">i", len(value)) + value for value in values])
