"""Posts: accepted as a draft that only the workers can open, sealed to every member's keys, read by those.

    pending ─ seal ─> sealed
            ─ can never be sealed ─> failed ─ requeue ─> pending

What is acknowledged is in Postgres, as a draft or sealed, and nothing in between is ever visible.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import uuid_utils
import uuid_utils.compat

from server import attachments, audit, credentials, database, events, recipients, requests
from server.credentials import stands
from server.errors import (
    GroupNotFound,
    IdTaken,
    Invalid,
    NoRecipients,
    NotAuthor,
    NotDecider,
    NotSealed,
    PostNotFound,
)
from server.events import Event
from server.lists import Page, write_cursor
from server.requests import SEALED_KEY_BYTES, holds
from server.sealing import digests, drafts
from server.sealing import posts as sealing_posts

# SQL for one caller, $1. The keys are looked up once a statement, not once a row, and each row then
# costs one probe of the index on (public_key, post).
_MY_KEYS = 'ARRAY(SELECT id FROM user_keys WHERE "user" = $1 AND NOT is_revoked)'
_MY_REVOKED_KEYS = 'ARRAY(SELECT id FROM user_keys WHERE "user" = $1 AND is_revoked)'
_KNOWN_AT_ONCE = """
        WHEN p.status = 'failed' THEN 'failed'
        WHEN p.status = 'pending' THEN 'sealing'
        WHEN s.sealed_keys IS NOT NULL THEN 'readable'
"""
_ACCESS = f"""
    CASE {_KNOWN_AT_ONCE}
        WHEN EXISTS (SELECT 1 FROM read_post_request r
            WHERE r.post = p.id AND r."user" = $1 AND r.status = 'pending') THEN 'requested'
        WHEN EXISTS (SELECT 1 FROM read_post_request r WHERE r.post = p.id AND r."user" = $1
            AND r.status = 'denied' AND r.decided_at > now() - interval '1 day') THEN 'denied'
        WHEN {_MY_KEYS} = '{{}}' THEN 'no_key'
        WHEN EXISTS (SELECT 1 FROM post_keys k
            WHERE k.post = p.id AND k.public_key = ANY({_MY_REVOKED_KEYS})) THEN 'key_revoked'
        ELSE 'not_granted'
    END"""


def _or_null(value: str) -> str:
    return f"coalesce('\"' || {value} || '\"', 'null')"


def _base64(value: str) -> str:
    # Postgres breaks lines after 76 characters. `translate` would take ten times as long as `replace`.
    return f"replace(encode({value}, 'base64'), E'\\n', '')"


def _base64_of_32(value: str) -> str:
    return f"encode({value}, 'base64')"


def _time(value: str) -> str:
    return f"to_char({value} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


def _json(sealed_keys: str, access: str, *more: str) -> str:
    """SQL: post p as JSON text, as the API shows it.

    Made by Postgres, because a page of posts as rows, then as objects, then as JSON is what most of its time went to.
    Ids, base64, times and fixed words are all there is in a post, so nothing in it needs escaping.
    One call of `format` takes two thirds of the time of as many parts that are put together one by one.
    """
    # In the order of the API's struct, whose first fields are these.
    fields = {
        "id": ('"%s"', "p.id"),
        "group_id": ('"%s"', 'p."group"'),
        "author_id": ('"%s"', "p.author"),
        "status": ('"%s"', "p.status"),
        "sealed_by": ('"%s"', "p.sealed_by"),
        "heading": ("%s", _or_null(_base64("p.heading"))),
        "content_hash": ("%s", _or_null(_base64_of_32("p.content_hash"))),
        "commitment": ("%s", _or_null(_base64_of_32("p.commitment"))),
        "signature": ("%s", _or_null(_base64("p.signature"))),
        "signing_key_id": ("%s", _or_null("p.signing_key")),
        "failure": ("%s", _or_null("p.failure")),
        "sealed_keys": ("[%s]", sealed_keys),
        "access": ('"%s"', access),
        "created_at": ('"%s"', _time("p.created_at")),
        "sealed_at": ("%s", _or_null(_time("p.sealed_at"))),
    } | {name: ("%s", _or_null(_base64(f"p.{name}"))) for name in more}
    form = ",".join(f'"{name}":{place}' for name, (place, _) in fields.items())
    return f"format('{{{form}}}', {', '.join(value for _, value in fields.values())})"


_SEALED_KEYS = f"""
    LEFT JOIN LATERAL (
        SELECT string_agg(
            format('{{"public_key_id":"%s","sealed_key":"%s"}}', k.public_key, {_base64("k.encrypted_key")}), ','
        ) AS sealed_keys
        FROM post_keys k WHERE k.post = p.id AND k.public_key = ANY({_MY_KEYS})
    ) s ON TRUE"""
_HEAD = f"p.id, p.created_at, {_json('s.sealed_keys', _ACCESS)} AS json"
_NEW = f"p.id, p.created_at, {_json('NULL', chr(39) + 'sealing' + chr(39), 'content')} AS json"
_MEMBERSHIP = 'user_group_association mine ON mine."group" = p."group" AND mine."user" = $1'


async def check_member(caller_id: UUID, group_id: UUID) -> None:
    """Raises GroupNotFound."""
    member = await database.fetchval(
        'SELECT TRUE FROM user_group_association WHERE "user" = $1 AND "group" = $2', caller_id, group_id
    )
    if not member:
        raise GroupNotFound


# A group {1} of which {0} is a member, locked. Rows are locked in the order in which they are named.
_GROUP_OF_MEMBER = f"""
    FROM users u JOIN user_group_association m ON m."user" = u.id JOIN user_groups g ON g.id = m."group"
    WHERE u.id = {{0}} AND m."group" = {{1}} AND {stands("{2}")} FOR KEY SHARE OF u FOR SHARE OF g"""
_LOCK_GROUP = f"SELECT TRUE {_GROUP_OF_MEMBER.format('$1', '$2', '$3')}"


async def lock_group(caller_id: UUID, group_id: UUID, unproven: UUID | None = None) -> None:
    """The caller's row, then the group FOR SHARE. Raises GroupNotFound.

    The membership may have ended while the group was waited for: whoever goes on asks for it in a new statement.
    """
    locked = await database.fetchval(_LOCK_GROUP, caller_id, group_id, unproven)
    if not locked:
        raise GroupNotFound


async def publish(
    author_id: UUID,
    group_id: UUID,
    title: str,
    content: str,
    attachment_ids: Sequence[UUID],
    post_id: UUID | None,
    worker_public_key: bytes,
    mac_key: bytes,
    unproven: UUID | None = None,
) -> tuple[asyncpg.Record, bool]:
    """Accept a post for the workers to seal; the post, and whether it is new.

    Only the draft, sealed to the workers, is stored; most often in one statement, as `recipients` explains. Raises
    GroupNotFound, AttachmentNotFound, Invalid, IdTaken, AttachmentInUse, NoRecipients.
    """
    if len(set(attachment_ids)) < len(attachment_ids):
        await check_member(author_id, group_id)
        await attachments.check_own(author_id, attachment_ids)
        raise Invalid(("/attachments", "name one twice"))
    mac = digests.request_mac(
        mac_key, msgspec.json.encode(["post", author_id, group_id, title, content, list(attachment_ids)])
    )
    ids = sealing_posts.PostIds(post_id or uuid_utils.compat.uuid7(), group_id, author_id)
    draft = drafts.seal_draft(ids, title, content, list(attachment_ids), worker_public_key)
    wanted = (ids.post, group_id, author_id, draft, mac, unproven)
    new = None if attachment_ids else await database.fetchrow(_PUBLISH, *wanted)
    if new is not None:
        return new, True
    async with database.transaction():
        await lock_group(author_id, group_id, unproven)
        if post_id is not None:
            await requests.keep_post(post_id)
        new = await database.fetchrow(_PUBLISH, *wanted)
        if new is None:
            await check_member(author_id, group_id)
            if await is_repeated(ids, mac):
                return await read(author_id, ids.post), False
            raise IdTaken if await is_known(ids.post) else NoRecipients
        await attachments.attach(author_id, ids.post, attachment_ids, "server")
        return new, True


_NEW_IDS = "jsonb_build_object('post_id', id, 'sealed_by', 'server')"
# A draft, and that it was made; nothing where there is something to look into first, under the lock.
_PUBLISH = f"""
    WITH locked AS MATERIALIZED (
        SELECT m."user" AS author, g.id AS "group", g.recipients_version AS version
        {_GROUP_OF_MEMBER.format("$3", "$2", "$6")}
    ), new AS (
        INSERT INTO posts AS p (id, "group", author, status, sealed_by, draft, request_mac)
        SELECT $1, "group", author, 'pending', 'server', $4, $5 FROM locked
        WHERE version = (SELECT recipients_version FROM user_groups WHERE id = $2)
        AND EXISTS (SELECT 1 {recipients.of("$2")})
        AND NOT EXISTS (SELECT 1 FROM deleted_ids WHERE id = $1) AND NOT EXISTS (SELECT 1 FROM posts WHERE id = $1)
        ON CONFLICT (id) DO NOTHING RETURNING {_NEW}
    ), recorded AS (
        {audit.insertion("post.created", actor="$3", group="$2", ids=_NEW_IDS, source="new")}
    )
    SELECT * FROM new
"""


async def is_repeated(ids: sealing_posts.PostIds, mac: bytes) -> bool:
    """Whether the author's post of this id came of the very same request."""
    same = await database.fetchval(
        "SELECT request_mac = $2 FROM posts WHERE id = $1 AND author = $3", ids.post, mac, ids.author
    )
    return bool(same)


async def is_known(post_id: UUID | None) -> bool:
    """Whether there is or was a post of this id, so that no new one can be made with it."""
    known = await database.fetchval(
        "SELECT EXISTS (SELECT 1 FROM posts WHERE id = $1) OR EXISTS (SELECT 1 FROM deleted_ids WHERE id = $1)", post_id
    )
    return bool(known)


# Put together once: as long as they are, they would take as long as the rest of a call.
def _one(access: str, is_whole: str) -> str:
    return f"""
        SELECT p.id, p.created_at, {_json("s.sealed_keys", access, "content")} AS json, {is_whole} AS is_whole
        FROM posts p JOIN {_MEMBERSHIP} {_SEALED_KEYS} WHERE p.id = $2 AND {stands("$3")}
    """


# Most who read a post may. For a reason why somebody can't, Postgres would prepare at each call, which takes it a
# quarter of its time, so that is another statement.
_READ = _one(f"CASE {_KNOWN_AT_ONCE} END", "p.status <> 'sealed' OR s.sealed_keys IS NOT NULL")
_READ_WITH_REASON = _one(_ACCESS, "TRUE")


def _page(rows: str, limit: str) -> str:
    """SQL: `limit` posts and one more, as one row, which is one message; null where there is none.

    `created_at` and `id` are of the last but one, after which the next page begins.
    """
    order = "ORDER BY created_at DESC, id DESC"
    return f"""
        SELECT array_agg(json {order}) AS items, (array_agg(created_at {order}))[{limit}] AS created_at,
            (array_agg(id {order}))[{limit}] AS id
        FROM ({rows} ORDER BY p.created_at DESC, p.id DESC LIMIT {limit} + 1) page
    """


_PAGE_OF_GROUP = _page(
    f"""
        SELECT {_HEAD} FROM posts p JOIN {_MEMBERSHIP} {_SEALED_KEYS}
        WHERE p."group" = $2 AND (p.created_at, p.id) < ($3, $4) AND {stands("$6")}
    """,
    "$5::bigint",
)
_PAGE_OF_ALL = _page(
    f"""
        SELECT {_HEAD} FROM (
            SELECT newest.* FROM user_group_association m CROSS JOIN LATERAL (
                SELECT * FROM posts q WHERE q."group" = m."group" AND (q.created_at, q.id) < ($2, $3)
                ORDER BY q.created_at DESC, q.id DESC LIMIT $4::bigint + 1
            ) newest WHERE m."user" = $1 ORDER BY newest.created_at DESC, newest.id DESC LIMIT $4::bigint + 1
        ) p {_SEALED_KEYS}
    """,
    "$4::bigint",
)


async def read(caller_id: UUID, post_id: UUID, unproven: UUID | None = None) -> asyncpg.Record:
    """A post of one of the caller's groups, whole: its `id`, `created_at` and `json`. Raises PostNotFound.

    To whom a credential that is `unproven` does not stand for, nothing is there, here and in the lists.
    """
    row = await database.fetchrow(_READ, *(caller_id, post_id, unproven))
    if row is not None and not row["is_whole"]:
        row = await database.fetchrow(_READ_WITH_REASON, *(caller_id, post_id, unproven))
    if row is None:
        raise PostNotFound
    return row


class JsonPage(NamedTuple):
    """Posts as JSON, without contents, the newest first."""

    items: list[str]
    next_cursor: str | None


async def list_of_group(caller_id: UUID, group_id: UUID, page: Page, unproven: UUID | None = None) -> JsonPage:
    """Raises GroupNotFound."""
    row = await database.fetchrow(
        _PAGE_OF_GROUP,
        *(caller_id, group_id, page.created_before, page.id_before, page.limit, unproven),
    )
    found = _cut(row, page)
    if not found.items:
        if unproven:
            await credentials.prove(unproven)
        await check_member(caller_id, group_id)
    return found


async def list_all(caller_id: UUID, page: Page) -> JsonPage:
    """Of all the caller's groups."""
    row = await database.fetchrow(_PAGE_OF_ALL, *(caller_id, page.created_before, page.id_before, page.limit))
    return _cut(row, page)


def _cut(row: asyncpg.Record | None, page: Page) -> JsonPage:
    items: list[str] = (row and row["items"]) or []
    if row is None or len(items) <= page.limit:
        return JsonPage(items, None)
    return JsonPage(items[:-1], write_cursor(row["created_at"], row["id"]))


async def requeue(caller_id: UUID, post_id: UUID) -> tuple[asyncpg.Record, bool]:
    """A failed post is pending again; the post, and whether it was failed. Raises PostNotFound, NotAuthor."""
    async with database.transaction():
        post = await _lock_post(caller_id, post_id)
        if post["author"] != caller_id:
            raise NotAuthor
        if post["status"] != "failed":
            return await read(caller_id, post_id), False
        await database.execute("UPDATE posts SET status = 'pending', failure = NULL WHERE id = $1", post_id)
        await audit.record("post.requeued", actor=caller_id, group=post["group"], post_id=post_id)
        return await read(caller_id, post_id), True


async def requeue_failed(post_ids: Sequence[UUID] | None, actor: UUID | None = None) -> list[UUID]:
    """All failed posts, or those of the given ones that are, are pending again. No `actor`: somebody at the machine."""
    async with database.transaction():
        rows = await database.fetch(
            "UPDATE posts SET status = 'pending', failure = NULL"
            " WHERE status = 'failed' AND ($1::uuid[] IS NULL OR id = ANY($1)) RETURNING id, \"group\"",
            list(post_ids) if post_ids is not None else None,
        )
        for row in rows:
            await audit.record("post.requeued", actor=actor, group=row["group"], post_id=row["id"])
    return [row["id"] for row in rows]


async def delete(caller_id: UUID, post_id: UUID) -> list[Event]:
    """By its author or an owner of the group. Raises PostNotFound, NotAuthor."""
    async with database.transaction():
        post = await _lock_post(caller_id, post_id)
        if post["author"] != caller_id and post["role"] != "owner":
            raise NotAuthor
        cancelled = await requests.cancel_of_post(post_id)
        await database.execute("DELETE FROM posts WHERE id = $1", post_id)
        await audit.record("post.deleted", actor=caller_id, group=post["group"], user=post["author"], post_id=post_id)
        return await events.record(*cancelled, deleted_event(post_id, post["group"], post["author"]))


def deleted_event(post_id: UUID, group_id: UUID, author_id: UUID) -> Event:
    fields = _frame_fields(post_id, group_id, author_id)
    return events.event("post.deleted", [events.group_channel(group_id)], post_id, **fields)


def _frame_fields(post_id: UUID, group_id: UUID, author_id: UUID) -> dict[str, UUID]:
    return {"post_id": post_id, "group_id": group_id, "author_id": author_id}


async def _lock_post(caller_id: UUID, post_id: UUID) -> asyncpg.Record:
    """The post's group FOR SHARE, then the post FOR UPDATE, with the caller's role. Raises PostNotFound."""
    await requests.lock_group_of_post(caller_id, post_id)
    post = await database.fetchrow(
        f'SELECT p."group", p.author, p.status, mine.role FROM posts p JOIN {_MEMBERSHIP}'
        " WHERE p.id = $2 FOR UPDATE OF p",
        *(caller_id, post_id),
    )
    if post is None:
        raise PostNotFound
    return post


class OwnKey(msgspec.Struct, frozen=True):
    """A post key, sealed to another active key of the caller's."""

    public_key_id: UUID
    sealed_key: bytes


async def check_visible(caller_id: UUID, post_id: UUID) -> None:
    """Raises PostNotFound."""
    if not await database.fetchval(f"SELECT TRUE FROM posts p JOIN {_MEMBERSHIP} WHERE p.id = $2", caller_id, post_id):
        raise PostNotFound


async def check_may_add_keys(caller_id: UUID, post_id: UUID) -> None:
    """Raises what `add_own_keys` would raise because of who is asking: PostNotFound, NotDecider (holds no key of it).

    Nobody holds the key of a post that is yet to be sealed: there it is too early to tell.
    """
    may_add = await database.fetchval(
        f"SELECT p.status <> 'sealed' OR {holds('$1', 'p.id')} FROM posts p JOIN {_MEMBERSHIP} WHERE p.id = $2",
        *(caller_id, post_id),
    )
    if may_add is None:
        raise PostNotFound
    if not may_add:
        raise NotDecider


async def add_own_keys(caller_id: UUID, post_id: UUID, sealed_keys: Sequence[OwnKey]) -> asyncpg.Record:
    """Who holds a post's key adds it for further active keys of its own; all or nothing.

    Raises PostNotFound, NotDecider, Invalid, NotSealed.
    """
    async with database.transaction():
        post = await _lock_post(caller_id, post_id)
        await check_may_add_keys(caller_id, post_id)
        await _check_own_keys(caller_id, sealed_keys)
        if post["status"] != "sealed":
            raise NotSealed
        added = await database.fetch(
            "INSERT INTO post_keys (post, public_key, encrypted_key, granted_by)"
            " SELECT $1, k.id, k.sealed, $2 FROM unnest($3::uuid[], $4::bytea[]) AS k (id, sealed)"
            " ON CONFLICT DO NOTHING RETURNING public_key",
            *(post_id, caller_id, [key.public_key_id for key in sealed_keys], [key.sealed_key for key in sealed_keys]),
        )
        if added:
            key_ids = [row["public_key"] for row in added]
            await audit.record(
                "post.keys_added", actor=caller_id, group=post["group"], post_id=post_id, key_ids=key_ids
            )
        return await read(caller_id, post_id)


async def _check_own_keys(caller_id: UUID, sealed_keys: Sequence[OwnKey]) -> None:
    rows = await database.fetch('SELECT id FROM user_keys WHERE "user" = $1 AND NOT is_revoked', caller_id)
    unused = {row["id"] for row in rows}
    errors = []
    for position, key in enumerate(sealed_keys):
        if len(key.sealed_key) != SEALED_KEY_BYTES:
            errors.append((f"/sealed_keys/{position}/sealed_key", f"is not {SEALED_KEY_BYTES} bytes"))
        if key.public_key_id not in unused:
            errors.append((f"/sealed_keys/{position}/public_key_id", "is no active key of yours, or repeated"))
        unused.discard(key.public_key_id)
    if errors:
        raise Invalid(*errors)


ID_BYTES = 16


def _uuid_in(joined: str) -> str:
    return f"encode(substr({joined}::bytea, {ID_BYTES} * place + 1, {ID_BYTES}), 'hex')::uuid"


# All of a kind in one piece: Python takes ten times as long for arrays of them, and the threads that seal the next ones
# stand still meanwhile. With ids from here, for Postgres asks the kernel for the random part of each, which takes as
# long as storing the row.
_INSERT_KEYS = f"""
    INSERT INTO post_keys (id, post, public_key, encrypted_key)
    SELECT {_uuid_in("$3")}, $1, {_uuid_in("$4")}, substr($5::bytea, {SEALED_KEY_BYTES} * place + 1, {SEALED_KEY_BYTES})
    FROM generate_series(0, $2::int - 1) AS place
"""


async def insert_keys(post_id: UUID, sealed_keys: Mapping[bytes, bytes]) -> None:
    """The keys that a sealing makes, 80 bytes each, by the ids, 16 bytes each, of the keys that they are sealed to."""
    count = len(sealed_keys)
    ids = b"".join(uuid_utils.uuid7().bytes for _ in range(count))
    key_ids, sealed = b"".join(sealed_keys), b"".join(sealed_keys.values())
    if (len(key_ids), len(sealed)) != (count * ID_BYTES, count * SEALED_KEY_BYTES):
        raise ValueError("ids have 16 bytes, and sealed keys 80")
    await database.execute(_INSERT_KEYS, post_id, count, ids, key_ids, sealed)


def sealed_event(ids: sealing_posts.PostIds) -> Event:
    return events.event("post.sealed", [events.group_channel(ids.group)], ids.post, **_frame_fields(*ids))


def failed_event(ids: sealing_posts.PostIds, failure: str) -> Event:
    return events.event("post.failed", [events.user_channel(ids.author)], **_frame_fields(*ids), failure=failure)


class Statistics(NamedTuple):
    pending: int
    failed: int
    sealed: int
    """An estimate where there are more than 100,000 posts."""
    oldest_pending_s: float


async def statistics() -> Statistics:
    """Of all posts, for those who run the server; quick whatever their number."""
    row = await database.fetchrow(
        "SELECT (SELECT count(*) FROM posts WHERE status = 'pending') AS pending,"
        " (SELECT count(*) FROM posts WHERE status = 'failed') AS failed,"
        " (SELECT reltuples::bigint FROM pg_class WHERE oid = 'posts'::regclass) AS estimate,"
        " (SELECT count(*) FROM (SELECT FROM posts WHERE status = 'sealed' LIMIT 100001) few) AS sealed,"
        " (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM posts WHERE status = 'pending') AS oldest_s"
    )
    if row is None:
        raise OSError("Postgres answered with nothing")
    counted = row["sealed"] <= 100_000
    sealed = row["sealed"] if counted else max(row["estimate"] - row["pending"] - row["failed"], row["sealed"])
    return Statistics(row["pending"], row["failed"], sealed, row["oldest_s"] or 0.0)


class Work(NamedTuple):
    """What the queue is for, in figures for those who run the server."""

    keys_sealed: int
    """Of those due."""
    keys_due: int
    """To the members of today, each with the keys of then, for the newest posts of the last hour; at most
    MAX_KEYS_COUNTED."""
    requests_waiting: int


POSTS_COUNTED = 20
MAX_KEYS_COUNTED = 100_000


async def work() -> Work:
    # Ids rise with time, so the newest are found without an index of their own.
    an_hour_ago = UUID(int=int((time.time() - 3600) * 1000) << 80)
    row = await database.fetchrow(
        "WITH recent AS (SELECT id, \"group\", created_at FROM posts WHERE id > $1 AND status IN ('pending', 'sealed')"
        " AND sealed_by = 'server' ORDER BY id DESC LIMIT $2),"
        " due AS (SELECT r.id AS post, k.id AS key FROM recent r"
        ' JOIN user_group_association m ON m."group" = r."group" AND m.created_at <= r.created_at'
        ' JOIN user_keys k ON k."user" = m."user" AND k.created_at <= r.created_at'
        " WHERE NOT k.is_revoked AND k.unusable_at IS NULL LIMIT $3)"
        " SELECT (SELECT count(*) FROM due) AS due,"
        " (SELECT count(*) FROM due d JOIN post_keys p ON p.public_key = d.key AND p.post = d.post) AS sealed,"
        " (SELECT count(*) FROM read_post_request WHERE status = 'pending') AS waiting",
        *(an_hour_ago, POSTS_COUNTED, MAX_KEYS_COUNTED),
    )
    if row is None:
        raise OSError("Postgres answered with nothing")
    return Work(row["sealed"], row["due"], row["waiting"])
