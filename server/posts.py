"""Posts: accepted as a draft that only the workers can open, sealed to every member's keys, read by those.

    pending ─ seal ─> sealed
            ─ can never be sealed ─> failed ─ requeue ─> pending

What is acknowledged is in Postgres, as a draft or sealed, and nothing in between is ever visible.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import uuid_utils.compat

from server import attachments, audit, credentials, database, events, requests
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
from server.lists import Page
from server.requests import SEALED_KEY_BYTES, holds
from server.sealing import digests, drafts
from server.sealing import errors as sealing_errors
from server.sealing import posts as sealing_posts
from server.sealing.texts import Attachment

Failure = Literal["draft_unreadable", "draft_mismatch", "no_recipients"]

SealMany = Callable[[bytes, list[bytes]], Awaitable[list[bytes | None]]]
"""Post key and public keys in, one sealed key or None (a key that can't be sealed to) for each out."""


class SealingElsewhere(Exception):
    """Another worker is at this very post."""


# SQL for one caller, $1. The keys are looked up once a statement, not once a row, and each row then
# costs one probe of the index on (public_key, post).
_MY_KEYS = 'ARRAY(SELECT id FROM user_keys WHERE "user" = $1 AND NOT is_revoked)'
_MY_REVOKED_KEYS = 'ARRAY(SELECT id FROM user_keys WHERE "user" = $1 AND is_revoked)'
_ACCESS = f"""
    CASE
        WHEN p.status = 'failed' THEN 'failed'
        WHEN p.status = 'pending' THEN 'sealing'
        WHEN s.sealed_keys IS NOT NULL THEN 'readable'
        WHEN EXISTS (SELECT 1 FROM read_post_request r
            WHERE r.post = p.id AND r."user" = $1 AND r.status = 'pending') THEN 'requested'
        WHEN EXISTS (SELECT 1 FROM read_post_request r WHERE r.post = p.id AND r."user" = $1
            AND r.status = 'denied' AND r.decided_at > now() - interval '1 day') THEN 'denied'
        WHEN {_MY_KEYS} = '{{}}' THEN 'no_key'
        WHEN EXISTS (SELECT 1 FROM post_keys k
            WHERE k.post = p.id AND k.public_key = ANY({_MY_REVOKED_KEYS})) THEN 'key_revoked'
        ELSE 'not_granted'
    END"""


def _quoted(value: str) -> str:
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
    """
    fields = {
        "id": _quoted("p.id"),
        "group_id": _quoted('p."group"'),
        "author_id": _quoted("p.author"),
        "status": _quoted("p.status"),
        "sealed_by": _quoted("p.sealed_by"),
        "heading": _quoted(_base64("p.heading")),
        "content_hash": _quoted(_base64_of_32("p.content_hash")),
        "commitment": _quoted(_base64_of_32("p.commitment")),
        "signature": _quoted(_base64("p.signature")),
        "signing_key_id": _quoted("p.signing_key"),
        "failure": _quoted("p.failure"),
        "sealed_keys": f"'[', {sealed_keys}, ']'",
        "access": _quoted(access),
        "created_at": _quoted(_time("p.created_at")),
        "sealed_at": _quoted(_time("p.sealed_at")),
    } | {name: _quoted(_base64(f"p.{name}")) for name in more}
    # In the order of the API's struct, whose first fields are these.
    return "concat('{', " + ", ',', ".join(f"'\"{name}\":', {value}" for name, value in fields.items()) + ", '}')"


_SEALED_KEYS = f"""
    LEFT JOIN LATERAL (
        SELECT string_agg(
            concat('{{"public_key_id":"', k.public_key, '","sealed_key":"', {_base64("k.encrypted_key")}, '"}}'), ','
        ) AS sealed_keys
        FROM post_keys k WHERE k.post = p.id AND k.public_key = ANY({_MY_KEYS})
    ) s ON TRUE"""
_HEAD = f"p.id, p.created_at, {_json('s.sealed_keys', _ACCESS)} AS json"
_WHOLE = f"p.id, p.created_at, {_json('s.sealed_keys', _ACCESS, 'content')} AS json"
_NEW = f"p.id, p.created_at, {_json('NULL', chr(39) + 'sealing' + chr(39), 'content')} AS json"
_MEMBERSHIP = 'user_group_association mine ON mine."group" = p."group" AND mine."user" = $1'
# The keys that a post of group $1 is sealed to.
_RECIPIENTS = (
    'FROM user_group_association m JOIN users u ON u.id = m."user" AND u.disabled_at IS NULL'
    ' JOIN user_keys k ON k."user" = m."user" WHERE m."group" = $1 AND NOT k.is_revoked AND k.unusable_at IS NULL'
)


async def check_member(caller_id: UUID, group_id: UUID) -> None:
    """Raises GroupNotFound."""
    member = await database.fetchval(
        'SELECT TRUE FROM user_group_association WHERE "user" = $1 AND "group" = $2', caller_id, group_id
    )
    if not member:
        raise GroupNotFound


_LOCK_GROUP = (
    'SELECT TRUE FROM users u JOIN user_group_association m ON m."user" = u.id'
    ' JOIN user_groups g ON g.id = m."group"'
    f' WHERE u.id = $1 AND m."group" = $2 AND {stands("$3")} FOR KEY SHARE OF u FOR SHARE OF g'
)


async def lock_group(caller_id: UUID, group_id: UUID, unproven: UUID | None = None) -> None:
    """The caller's row, then the group FOR SHARE. Raises GroupNotFound.

    Rows are locked in the order in which they are named. The membership may have ended while the group was waited for:
    whoever goes on asks for it in a new statement.
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

    Only the draft, sealed to the workers, is stored. Raises GroupNotFound, AttachmentNotFound, Invalid, IdTaken,
    AttachmentInUse, NoRecipients.
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
    async with database.transaction():
        await lock_group(author_id, group_id, unproven)
        if post_id is not None:
            await requests.keep_post(post_id)
        new = await database.fetchrow(_PUBLISH, ids.post, group_id, author_id, draft, mac)
        if new is None:
            await check_member(author_id, group_id)
            if not await is_repeated(ids, mac):
                raise IdTaken
            return await read(author_id, ids.post), False
        await attachments.attach(author_id, ids.post, attachment_ids, "server")
        if not new["has_recipients"]:
            raise NoRecipients
        return new, True


_NEW_IDS = "jsonb_build_object('post_id', id, 'sealed_by', 'server')"
# A draft, and that it was made. `lock_group` has run, and this sees what was committed until then.
_PUBLISH = f"""
    WITH new AS (
        INSERT INTO posts AS p (id, "group", author, status, sealed_by, draft, request_mac)
        SELECT $1, $2, $3, 'pending', 'server', $4, $5
        WHERE EXISTS (SELECT 1 FROM user_group_association m WHERE m."user" = $3 AND m."group" = $2)
        AND NOT EXISTS (SELECT 1 FROM deleted_ids WHERE id = $1)
        ON CONFLICT (id) DO NOTHING RETURNING {_NEW}
    ), recorded AS (
        {audit.insertion("post.created", actor="$3", group="$2", ids=_NEW_IDS, source="new")}
    )
    SELECT new.*, EXISTS (SELECT 1 {_RECIPIENTS.replace("$1", "$2")}) AS has_recipients FROM new
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


async def _has_recipients(group_id: UUID) -> bool:
    found = await database.fetchval(f"SELECT EXISTS (SELECT 1 {_RECIPIENTS})", group_id)
    return bool(found)


# Put together once: as long as they are, they would take as long as the rest of a call.
_READ = f"SELECT {_WHOLE} FROM posts p JOIN {_MEMBERSHIP} {_SEALED_KEYS} WHERE p.id = $2 AND {stands('$3')}"
_PAGE_OF_GROUP = f"""
    SELECT {_HEAD} FROM posts p JOIN {_MEMBERSHIP} {_SEALED_KEYS}
    WHERE p."group" = $2 AND (p.created_at, p.id) < ($3, $4) AND {stands("$6")}
    ORDER BY p.created_at DESC, p.id DESC LIMIT $5
"""
_PAGE_OF_ALL = f"""
    SELECT {_HEAD} FROM (
        SELECT newest.* FROM user_group_association m CROSS JOIN LATERAL (
            SELECT * FROM posts q WHERE q."group" = m."group" AND (q.created_at, q.id) < ($2, $3)
            ORDER BY q.created_at DESC, q.id DESC LIMIT $4
        ) newest WHERE m."user" = $1 ORDER BY newest.created_at DESC, newest.id DESC LIMIT $4
    ) p {_SEALED_KEYS} ORDER BY p.created_at DESC, p.id DESC
"""


async def read(caller_id: UUID, post_id: UUID, unproven: UUID | None = None) -> asyncpg.Record:
    """A post of one of the caller's groups, whole: its `id`, `created_at` and `json`. Raises PostNotFound.

    To whom a credential that is `unproven` does not stand for, nothing is there, here and in the lists.
    """
    row = await database.fetchrow(_READ, *(caller_id, post_id, unproven))
    if row is None:
        raise PostNotFound
    return row


async def list_of_group(
    caller_id: UUID, group_id: UUID, page: Page, unproven: UUID | None = None
) -> list[asyncpg.Record]:
    """One row more than the page, without contents. Raises GroupNotFound."""
    rows = await database.fetch(
        _PAGE_OF_GROUP,
        *(caller_id, group_id, page.created_before, page.id_before, page.limit + 1, unproven),
    )
    if not rows:
        if unproven:
            await credentials.prove(unproven)
        await check_member(caller_id, group_id)
    return rows


async def list_all(caller_id: UUID, page: Page) -> list[asyncpg.Record]:
    """One row more than the page, without contents, of all the caller's groups."""
    return await database.fetch(
        _PAGE_OF_ALL,
        *(caller_id, page.created_before, page.id_before, page.limit + 1),
    )


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


# ------------------------------------------------------------------------------------------------ sealing


# To so many keys a post is sealed in well under a tenth of a second, for which a group may be locked.
SEALED_UNDER_LOCK = 1000
KEYS_AT_ONCE = 2000

_TAKE = f"""
    SELECT pg_try_advisory_xact_lock($2) AS is_ours, p.id, p."group", p.author, p.draft,
        (SELECT count(*) FROM (SELECT 1 {_RECIPIENTS.replace("$1", 'p."group"')} LIMIT $3 + 1) few) > $3 AS is_for_many
    FROM (SELECT) AS one LEFT JOIN posts p ON p.id = $1 AND p.status = 'pending'
"""


async def seal(
    post_id: UUID,
    worker_private_keys: Sequence[bytes],
    seal_many: SealMany,
    *,
    sealed_under_lock: int = SEALED_UNDER_LOCK,
) -> list[Event]:
    """Seal a pending post to every usable key of every member, and erase its draft; what to announce.

    For a big group half of the public-key operations run before the group is locked, so that it stays open to others
    meanwhile. Under the lock the other half is sealed while the first is stored, which takes as long, and whatever key
    has come since. Does nothing where there is nothing (more) to do. Raises SealingElsewhere.
    """
    async with database.transaction():
        # The lock goes with this transaction, so a worker that dies holds nobody up.
        post = await database.fetchrow(_TAKE, post_id, _lock_number(post_id), sealed_under_lock)
        if post is None or not post["is_ours"]:
            raise SealingElsewhere
        if post["id"] is None:
            return []
        ids = sealing_posts.PostIds(post["id"], post["group"], post["author"])
        try:
            draft = drafts.open_draft(ids, post["draft"], worker_private_keys)
            files = await _open_files(ids, draft.attachments, worker_private_keys)
        except sealing_errors.DraftMismatch:
            return await _fail(ids, "draft_mismatch")
        except sealing_errors.DraftUnreadable:
            return await _fail(ids, "draft_unreadable")
        post_key = sealing_posts.new_post_key()
        early: dict[UUID, bytes | None] = {}
        if post["is_for_many"]:
            everyone = await _recipients(ids.group)
            half = list(everyone)[: len(everyone) // 2]
            sealed_half = await seal_many(post_key, [everyone[key_id] for key_id in half])
            early = dict(zip(half, sealed_half, strict=True))

        if not await _lock_pending(ids):
            return []
        rest = await _store_keys(ids, await _recipients(ids.group), early, post_key, seal_many)
        if rest is None:
            return await _fail(ids, "no_recipients")
        if files:
            await attachments.erase_drafts(ids.post)
        post_now = sealing_posts.seal_post(ids, draft.title, draft.content, files, post_key)
        return await _store(post_now, ids, rest)


async def _store_keys(
    ids: sealing_posts.PostIds,
    recipients: dict[UUID, bytes],
    early: dict[UUID, bytes | None],
    post_key: bytes,
    seal_many: SealMany,
) -> dict[UUID, bytes] | None:
    """Seal to those of `recipients` that are not among `early`, and store all but the last portion, which is returned.

    None if there is not one key that can be sealed to.
    """
    known = {key_id: early[key_id] for key_id in recipients if key_id in early}
    missing = [key_id for key_id in recipients if key_id not in early]
    portions: asyncio.Queue[dict[UUID, bytes | None] | None] = asyncio.Queue()
    for portion in _in_portions(list(known)):
        portions.put_nowait({key_id: known[key_id] for key_id in portion})

    async def seal_missing() -> None:
        try:
            for portion in _in_portions(missing):
                sealed = await seal_many(post_key, [recipients[key_id] for key_id in portion])
                portions.put_nowait(dict(zip(portion, sealed, strict=True)))
        finally:
            portions.put_nowait(None)

    unusable: list[UUID] = []
    last: dict[UUID, bytes] | None = None
    sealing = asyncio.create_task(seal_missing())
    try:
        while (sealed := await portions.get()) is not None:
            unusable += [key_id for key_id, sealed_key in sealed.items() if sealed_key is None]
            usable = {key_id: sealed_key for key_id, sealed_key in sealed.items() if sealed_key is not None}
            if usable and last:
                await insert_keys(ids.post, last)
            last = usable or last
        await sealing
    finally:
        sealing.cancel()
    await _skip(unusable)
    return last


def _in_portions(key_ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    for start in range(0, len(key_ids), KEYS_AT_ONCE):
        yield key_ids[start : start + KEYS_AT_ONCE]


async def _open_files(
    ids: sealing_posts.PostIds, attachment_ids: Sequence[UUID], worker_private_keys: Sequence[bytes]
) -> list[Attachment]:
    """What the post's document says of its files. Raises DraftMismatch, DraftUnreadable."""
    if not attachment_ids:
        return []
    found = await attachments.drafts_of(ids.post, attachment_ids)
    if len(found) < len(attachment_ids):
        raise sealing_errors.DraftUnreadable
    return [
        drafts.open_file_draft(attachment_id, ids.author, found[attachment_id], worker_private_keys)
        for attachment_id in attachment_ids
    ]


def _lock_number(post_id: UUID) -> int:
    # The last 64 bits of a UUIDv7 are random; an advisory lock is named by a signed number of that size.
    return int.from_bytes(post_id.bytes[8:], signed=True)


async def _recipients(group_id: UUID) -> dict[UUID, bytes]:
    rows = await database.fetch(f"SELECT k.id, k.public_key {_RECIPIENTS}", group_id)
    return {row["id"]: row["public_key"] for row in rows}


# The group, then the post: rows are locked in the order in which they are named.
_LOCK_PENDING = (
    'SELECT TRUE FROM user_groups g JOIN posts p ON p."group" = g.id'
    " WHERE p.id = $1 AND g.id = $2 AND p.status = 'pending' FOR SHARE OF g FOR UPDATE OF p"
)


async def _lock_pending(ids: sealing_posts.PostIds) -> bool:
    return bool(await database.fetchval(_LOCK_PENDING, ids.post, ids.group))


async def _skip(key_ids: Iterable[UUID]) -> None:
    """One member's odd key never stops a group: it is skipped, here and from now on, and that is on record."""
    # In the same order everywhere, so that groups which share such members don't wait for one another in a circle.
    for key_id in sorted(key_ids):
        await database.execute("UPDATE user_keys SET unusable_at = now() WHERE id = $1", key_id)


_INSERT_KEYS = """
    INSERT INTO post_keys (post, public_key, encrypted_key)
    SELECT $1, k.id, k.sealed FROM unnest($2::uuid[], $3::bytea[]) AS k (id, sealed)
"""
_STORE = f"""
    WITH sealed AS (
        UPDATE posts SET status = 'sealed', draft = NULL, heading = $4, content = $5, content_hash = $6,
            commitment = $7, sealed_at = now() WHERE id = $1
    ), keys AS ({_INSERT_KEYS})
    {events.INSERT.format("$8", "$9", "$10")}
"""


async def _store(post: sealing_posts.SealedPost, ids: sealing_posts.PostIds, sealed: dict[UUID, bytes]) -> list[Event]:
    event = sealed_event(ids)
    await database.execute(
        _STORE,
        *(ids.post, list(sealed), list(sealed.values())),
        *(post.heading, post.content, post.content_hash, post.commitment),
        *event,
    )
    return [event]


async def insert_keys(post_id: UUID, sealed_keys: dict[UUID, bytes]) -> None:
    """The keys that a sealing makes, by the ids of the public keys that they are sealed to."""
    await database.execute(_INSERT_KEYS, post_id, list(sealed_keys), list(sealed_keys.values()))


def sealed_event(ids: sealing_posts.PostIds) -> Event:
    return events.event("post.sealed", [events.group_channel(ids.group)], ids.post, **_frame_fields(*ids))


async def _fail(ids: sealing_posts.PostIds, failure: Failure) -> list[Event]:
    if not await _lock_pending(ids):
        return []
    await database.execute("UPDATE posts SET status = 'failed', failure = $2 WHERE id = $1", ids.post, failure)
    failed = events.event("post.failed", [events.user_channel(ids.author)], **_frame_fields(*ids), failure=failure)
    return await events.record(failed)


async def pending(older_than_s: float, limit: int) -> list[UUID]:
    """Posts that have been waiting to be sealed for at least so long, oldest first."""
    rows = await database.fetch(
        "SELECT id FROM posts WHERE status = 'pending' AND created_at < now() - make_interval(secs => $1)"
        " ORDER BY created_at LIMIT $2",
        *(older_than_s, limit),
    )
    return [row["id"] for row in rows]


async def unlocked(post_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the given posts that no worker is at."""
    numbers = {_lock_number(post_id): post_id for post_id in post_ids}
    rows = await database.fetch(
        "SELECT n FROM unnest($1::bigint[]) n WHERE NOT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = n)",
        list(numbers),
    )
    return {numbers[row["n"]] for row in rows}


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
