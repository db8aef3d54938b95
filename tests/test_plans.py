"""The statements that run often, on tables that are big and skewed: each touches a few rows and reads no table through.

Postgres plans a statement anew a few times and then may keep one plan for all parameters. Both ways are looked at.
"""

import contextlib
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest

from server import (
    audit,
    credentials,
    database,
    erasure,
    events,
    export,
    groups,
    keys,
    pending_posts,
    posts,
    recipients,
    requests,
)
from server.credentials import Caller, Claims
from server.embedded import postgres_binary
from server.errors import Unauthenticated
from server.lists import Page
from server.pending_posts import Made
from server.sealing.posts import PostIds, SealedPost
from server.settings import Settings

# One group with most of the posts and hundreds of members, many small ones, and one user who is in a hundred of them.
FILL = """
    INSERT INTO users (id, name, email, email_key, password)
        SELECT id_of('user', n), 'User', n, n, '' FROM generate_series(0, 1999) n;
    INSERT INTO user_tokens (id, "user", token_hash, kind, scopes, expires)
        SELECT id_of('token', n), id_of('user', n % 2000), sha256(n::text::bytea), 'session', '{}',
            now() + interval '7 d'
        FROM generate_series(0, 9999) n;
    INSERT INTO user_keys (id, "user", public_key, verify_key, proof, label, is_revoked, revoked_at)
        SELECT id_of('key', n), id_of('user', n % 2000), sha256(n::text::bytea), sha256(''), sha512(''), 'key',
            n >= 2000, CASE WHEN n >= 2000 THEN now() END FROM generate_series(0, 2999) n;
    INSERT INTO user_groups (id, name, request_mac)
        SELECT id_of('group', n), 'Group', '' FROM generate_series(0, 499) n;
    INSERT INTO user_group_association ("user", "group", role)
        SELECT id_of('user', n), id_of('group', 0), CASE WHEN n < 2 THEN 'owner' ELSE 'member' END
        FROM generate_series(0, 399) n
        UNION ALL SELECT id_of('user', 0), id_of('group', n), 'member' FROM generate_series(1, 100) n
        UNION ALL SELECT id_of('user', n), id_of('group', n), 'owner' FROM generate_series(1, 499) n
        UNION ALL SELECT id_of('user', 1000 + n % 1000), id_of('group', 1 + n % 499), 'member'
        FROM generate_series(0, 1999) n;
    INSERT INTO posts (id, "group", author, status, sealed_by, heading, content, content_hash, commitment,
            request_mac, created_at, sealed_at)
        SELECT id_of('post', n), id_of('group', CASE WHEN n < 14000 THEN 0 ELSE n % 500 END),
            id_of('user', CASE WHEN n < 14000 THEN n % 400 ELSE n % 500 END), 'sealed', 'server', sha512(''),
            decode(repeat('ab', 400), 'hex'), sha256(''), sha256(''), '',
            now() - n * interval '1 minute', now() FROM generate_series(0, 19999) n;
    INSERT INTO posts (id, "group", author, status, sealed_by, draft, request_mac)
        SELECT id_of('post', n), id_of('group', 7), id_of('user', 7), 'pending', 'server', 'draft', ''
        FROM generate_series(20000, 20009) n;
    INSERT INTO post_keys (post, public_key, encrypted_key)
        SELECT id_of('post', n), id_of('key', (n + 7 * m) % 400), decode(repeat('cd', 80), 'hex')
        FROM generate_series(0, 13999) n, generate_series(0, 4) m
        UNION ALL SELECT id_of('post', n), id_of('key', n % 500), decode(repeat('cd', 80), 'hex')
        FROM generate_series(14000, 19999) n;
    INSERT INTO read_post_request (id, post, "group", "user", public_key, status, created_at, decided_at)
        SELECT id_of('request', n), p.id, p."group", id_of('user', n % 399 + 1), id_of('key', n % 399 + 1),
            CASE WHEN n % 50 = 0 THEN 'pending' ELSE 'approved' END, now() - n * interval '1 minute',
            CASE WHEN n % 50 = 0 THEN NULL ELSE now() - n * interval '1 minute' END
        FROM generate_series(0, 19999) n JOIN posts p ON p.id = id_of('post', n);
    DELETE FROM post_keys WHERE post = id_of('post', 3) AND public_key = id_of('key', 3);
    INSERT INTO audit_log (actor, action, "group", "user")
        SELECT id_of('user', n % 2000), CASE n % 10000 WHEN 0 THEN 'admin.granted' ELSE 'post.created' END,
            id_of('group', n % 500), CASE n % 4 WHEN 0 THEN id_of('user', n * 7 % 2000) END
        FROM generate_series(0, 39999) n;
    INSERT INTO outbox (channels, frame) SELECT '{}', '' FROM generate_series(1, 10);
    ANALYZE;
"""

BIG_TABLES = {
    *("posts", "post_keys", "read_post_request", "user_tokens", "user_keys", "user_group_association", "users"),
    "audit_log",
}
# Where all of a big group's members are wanted, the others are rightly read through; these never are.
NEVER_READ_THROUGH = {"posts", "post_keys", "read_post_request", "user_tokens", "audit_log"}


def id_of(kind: str, number: int) -> UUID:
    return UUID(bytes=uuid.uuid5(uuid.NAMESPACE_OID, kind).bytes[:8] + number.to_bytes(8))


OWNER, MEMBER, IN_MANY_GROUPS, IN_SMALL_GROUPS = (id_of("user", number) for number in (1, 77, 0, 1000))
TOKEN = id_of("token", 77)
BIG, SMALL = id_of("group", 0), id_of("group", 7)
FIVE_DAYS_AGO = datetime.now(UTC) - timedelta(days=5)
TO_SEAL = [id_of("post", number) for number in range(20_000, 20_010)]
REQUEST = (
    *(id_of("request", 20_000), id_of("post", 14_001), id_of("group", 1), IN_SMALL_GROUPS, id_of("key", 1000)),
    *(None, None, None, 0),
)


@pytest.fixture(scope="module")
async def crowded(settings: Settings, migrated: None) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database of the same schema, full."""
    admin = await asyncpg.connect(settings.database_url)
    await admin.execute("DROP DATABASE IF EXISTS plans")
    await admin.execute("CREATE DATABASE plans")
    await admin.close()
    url = urlsplit(str(settings.database_url))._replace(path="/plans").geturl()
    schema = run("pg_dump", "--schema-only", str(settings.database_url))
    run("psql", "--quiet", "--set", "ON_ERROR_STOP=1", url, stdin=schema)
    connection = await asyncpg.connect(url, server_settings={"jit": "off"})
    await connection.execute(
        f"""
        SET session_replication_role = replica;
        CREATE FUNCTION id_of(kind text, number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
            SELECT (CASE kind {" ".join(f"WHEN '{kind}' THEN '{id_of(kind, 0).hex[:16]}'" for kind in KINDS)} END
                || lpad(to_hex(number), 16, '0'))::uuid $$;
        {FILL}
        """
    )
    # As autovacuum leaves it before long: an index alone says what is in it, which changes the plans.
    await connection.execute("VACUUM")
    yield connection
    await connection.close()


KINDS = ("user", "token", "key", "group", "post", "request")


def run(name: str, *args: str, stdin: bytes = b"") -> bytes:
    command = [str(postgres_binary(name)), *args]
    return subprocess.run(command, check=True, input=stdin, stdout=subprocess.PIPE).stdout


class Explaining:
    """Stands in for the connection that the domain runs its statements on, and keeps their plans."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.plans: list[dict[str, Any]] = []

    async def explain(self, sql: str, args: tuple[Any, ...]) -> None:
        await self.connection.execute(f"PREPARE explained AS {sql}")
        parameters = f"({', '.join(map(literal, args))})" if args else ""
        explained = await self.connection.fetchval(
            f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE explained{parameters}"
        )
        self.plans.append(json.loads(explained)[0]["Plan"])
        await self.connection.execute("DEALLOCATE explained")

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        await self.explain(sql, args)
        return list(await self.connection.fetch(sql, *args))

    async def fetchrow(self, sql: str, *args: Any) -> asyncpg.Record | None:
        await self.explain(sql, args)
        return await self.connection.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        await self.explain(sql, args)
        return await self.connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        await self.explain(sql, args)
        return str(await self.connection.execute(sql, *args))


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    if isinstance(value, list | set):
        return f"'{{{','.join(map(element, value))}}}'"
    return f"'{value}'"


def element(value: Any) -> str:
    text = f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def touched(plan: dict[str, Any]) -> int:
    """Rows that were read from big tables, whether they were of use or not."""
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    return sum(
        round((node["Actual Rows"] + sum(node.get(name, 0) for name in removed)) * node["Actual Loops"])
        for node in nodes(plan)
        if node.get("Relation Name") in BIG_TABLES
    )


def outline(plan: dict[str, Any], depth: int = 0) -> str:
    facts = ("Relation Name", "Index Name", "Filter", "Actual Rows", "Rows Removed by Filter", "Actual Loops")
    own = ", ".join(f"{plan[fact]}" if " Name" in fact else f"{fact}: {plan[fact]}" for fact in facts if fact in plan)
    parts = [outline(part, depth + 1) for part in plan.get("Plans", [])]
    return "\n".join([f"{'  ' * depth}{plan['Node Type']}: {own}", *parts])


NOW = datetime.now(UTC)
CLAIMS = Claims("https://issuer.example", "nobody", NOW + timedelta(hours=1), None, NOW, None, None)


def fifty_callers() -> list[Caller]:
    """Half of them with tokens, half with JWTs."""
    tokens = [*(UUID(int=n) for n in range(25)), *[None] * 25]
    return [
        Caller(id_of("user", n), "", None, False, NOW, token, "session", (), NOW + timedelta(days=1))
        for n, token in enumerate(tokens)
    ]


def made(post_id: UUID) -> Made:
    post = SealedPost(b"heading", b"content", bytes(32), bytes(32), None)
    return Made(post, PostIds(post_id, SMALL, id_of("user", 7)), 0, {id_of("key", 7): bytes(80)})


async def pages_of_an_export(user_id: UUID) -> None:
    for section in export.SECTIONS.values():
        await database.fetch(f"{section.sql} LIMIT {section.page}", user_id, *section.key.values())


CASES: dict[str, tuple[int, Callable[[], Awaitable[Any]]]] = {
    # At most so many rows are touched. A page is of 51, each needs a few; an owner holds the keys of one post in 80.
    "page of a big group": (400, lambda: posts.list_of_group(MEMBER, BIG, Page())),
    "page in the middle of a big group": (
        400,
        lambda: posts.list_of_group(MEMBER, BIG, Page(created_before=FIVE_DAYS_AGO)),
    ),
    "page of a small group": (400, lambda: posts.list_of_group(IN_MANY_GROUPS, SMALL, Page())),
    "page of posts of all groups": (400, lambda: posts.list_all(MEMBER, Page())),
    "page of posts of a hundred groups": (4000, lambda: posts.list_all(IN_MANY_GROUPS, Page())),
    "page of posts of somebody in small groups": (400, lambda: posts.list_all(IN_SMALL_GROUPS, Page())),
    "one post": (20, lambda: posts.read(MEMBER, id_of("post", 5000))),
    "page of a known caller": (400, lambda: posts.list_of_group(MEMBER, BIG, Page(), TOKEN)),
    "one post for a known caller": (20, lambda: posts.read(MEMBER, id_of("post", 5000), TOKEN)),
    "proving a known caller": (2, lambda: credentials.prove(TOKEN)),
    "locking to post": (10, lambda: posts.lock_group(MEMBER, BIG)),
    "posting": (
        40,
        lambda: database.fetchrow(posts._PUBLISH, id_of("post", 30_000), BIG, MEMBER, b"draft", b"mac", TOKEN),
    ),
    "what a worker takes together": (2000, lambda: database.fetch(pending_posts._TAKE_FEW, TO_SEAL, 1000)),
    "what a worker stores together": (500, lambda: pending_posts._store_few([made(post_id) for post_id in TO_SEAL])),
    "what a worker takes": (10, lambda: database.fetchrow(pending_posts._TAKE, TO_SEAL[0])),
    "locking to seal": (10, lambda: pending_posts._lock_recipients(BIG)),
    "taking sealed keys back": (500, lambda: pending_posts._forget_keys(id_of("post", 100), [id_of("key", 0).bytes])),
    "locking to ask": (10, lambda: database.fetchval(requests._LOCK_TO_ASK, MEMBER, id_of("post", 100), None)),
    "one request": (200, lambda: requests.read(OWNER, id_of("request", 0))),
    "pending requests for an owner": (9000, lambda: requests.list_to_decide(OWNER, "pending", Page(limit=1000))),
    "pending requests for a member": (4000, lambda: requests.list_to_decide(MEMBER, "pending", Page(limit=1000))),
    "all requests for an owner": (20_000, lambda: requests.list_to_decide(OWNER, None, Page())),
    "one's own requests": (300, lambda: requests.list_own(MEMBER, None, Page())),
    "one's own pending requests": (300, lambda: requests.list_own(MEMBER, "pending", Page())),
    "what was decided since": (
        200,
        lambda: requests.list_decided_since(MEMBER, FIVE_DAYS_AGO, 1000),
    ),
    "asking": (
        50,
        lambda: database.fetchrow(requests._STATE, IN_SMALL_GROUPS, id_of("post", 14_001), None, TOKEN),
    ),
    "storing a request": (50, lambda: database.fetchval(requests._ASK, *REQUEST, TOKEN, NOW)),
    "deciders of a post of a big group": (200, lambda: requests._deciders([id_of("request", 0)])),
    "deciders where neither author nor owners hold the key": (2500, lambda: requests._deciders([id_of("request", 3)])),
    "deciders of many posts": (5000, lambda: requests._deciders([id_of("request", 50 * n) for n in range(50)])),
    "deciding": (100, lambda: requests._lock_for_decision(IN_MANY_GROUPS, id_of("request", 0))),
    "cancelling for a key": (200, lambda: requests.cancel_of_key(id_of("key", 50))),
    "cancelling for a member": (400, lambda: requests.cancel_of_member(BIG, id_of("user", 50))),
    "cancelling for a post": (200, lambda: requests.cancel_of_post(id_of("post", 100))),
    "authentication": (2, lambda: credentials.authenticate("nobody")),
    "user of a JWT": (10, lambda: credentials._find_identity(CLAIMS)),
    "one's own sessions": (200, lambda: credentials.list_sessions(MEMBER, Page())),
    "one's own API keys": (200, lambda: credentials.list_api_keys(MEMBER, Page())),
    "open sockets' credentials": (200, lambda: credentials.ended_credentials(fifty_callers())),
    "open sockets' groups": (500, lambda: groups.memberships([id_of("user", n) for n in range(50)])),
    "whether open sockets' groups have changed": (
        500,
        lambda: groups.who_has_moved({id_of("user", n): [BIG, SMALL] for n in range(50)}),
    ),
    "recipients of a post": (10_000, lambda: pending_posts._recipients(BIG)),
    "changing a group": (10, lambda: recipients.change_group(BIG)),
    "changing the groups of somebody": (400, lambda: recipients.change_groups_of(IN_MANY_GROUPS)),
    "somebody's keys": (50, lambda: keys.list_of_user(MEMBER, id_of("user", 78))),
    "a group's audit log": (60, lambda: audit.find(Page(), group_id=SMALL)),
    "one's own audit log": (250, lambda: audit.find(Page(), user_id=MEMBER)),
    "the whole audit log": (60, lambda: audit.find(Page())),
    "a rare action in the audit log": (60, lambda: audit.find(Page(), action="admin.granted")),
    "a page of each kind for an export": (2000, lambda: pages_of_an_export(MEMBER)),
    "all groups that know of a user": (2000, lambda: database.fetch(erasure._GROUPS, MEMBER)),
    "cancelling for a requester": (400, lambda: requests.cancel_of_requester(MEMBER)),
    "cancelling for an author": (400, lambda: requests.cancel_of_author(MEMBER)),
    "what the sweep finds to seal": (10, lambda: pending_posts.waiting(5, 10_000)),
    "what the sweep finds to announce": (10, lambda: events.unpublished(5, 500)),
}


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", CASES)
async def test_statement_touches_few_rows(crowded: asyncpg.Connection, name: str, mode: str) -> None:
    limit, call = CASES[name]
    explaining = Explaining(crowded)
    # Of this task alone: others of this process, a worker's sweeps among them, keep theirs.
    current = database.ENGINE.current_transaction.set(SimpleNamespace(connection=explaining))  # type: ignore[arg-type]
    transaction = crowded.transaction()
    await transaction.start()
    try:
        await crowded.execute(f"SET LOCAL plan_cache_mode = {mode}")
        with contextlib.suppress(Unauthenticated):
            await call()
    finally:
        database.ENGINE.current_transaction.reset(current)
        await transaction.rollback()
    assert explaining.plans
    for plan in explaining.plans:
        through = [
            node["Relation Name"]
            for node in nodes(plan)
            if node["Node Type"] == "Seq Scan" and node["Relation Name"] in NEVER_READ_THROUGH
        ]
        assert not through, outline(plan)
        assert touched(plan) <= limit, outline(plan)
