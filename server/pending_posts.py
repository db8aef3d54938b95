"""Posts that wait for the workers: sealed to every member's keys, or marked as failed; and who seals which.

What waits at the same time for a few readers each is sealed together, in two statements and without a transaction in
between: see `recipients`. A post for many, or one that is odd in any way, is sealed by itself.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

import asyncpg
import uuid_utils.compat

from server import attachments, database, events, posts, recipients
from server.events import Event
from server.posts import ID_BYTES
from server.sealing import drafts
from server.sealing import errors as sealing_errors
from server.sealing import posts as sealing_posts
from server.sealing.keys import PUBLIC_KEY_BYTES
from server.sealing.posts import PostIds, SealedPost
from server.sealing.texts import Attachment

Failure = Literal["draft_unreadable", "draft_mismatch", "no_recipients"]

ToSeal = tuple[bytes, bytes]
"""A post key, and the public key that it is to be sealed to."""

SealMany = Callable[[Sequence[ToSeal]], Coroutine[Any, Any, list[bytes | None]]]
"""One sealed key, or None (a key that can't be sealed to), for each of them."""

FEW = 1000
"""Posts for more keys than these are for many; so many take a twentieth of a second of a core."""

KEYS_AT_ONCE = 1000


class SealingElsewhere(Exception):
    """Another worker is at this very post."""


# ---------------------------------------------------------------------------------------------- many posts for a few


class Pending(NamedTuple):
    ids: PostIds
    draft: bytes
    version: int
    """Of the recipients of its group."""
    recipients: Mapping[UUID, bytes]
    """Public keys by their ids."""


class Made(NamedTuple):
    """All of one sealing."""

    post: SealedPost
    ids: PostIds
    version: int
    sealed_keys: dict[UUID, bytes]


# Of the posts of one group only the first brings the recipients along.
_TAKE_FEW = f"""
    WITH taken AS MATERIALIZED (
        SELECT p.id, p."group", p.author, p.draft FROM posts p WHERE p.id = ANY($1) AND p.status = 'pending'
    ), found AS MATERIALIZED (
        SELECT g.id, g.recipients_version AS version, array_agg(k.id) AS key_ids, array_agg(k.public_key) AS public_keys
        FROM user_groups g CROSS JOIN LATERAL (SELECT k.id, k.public_key {recipients.of("g.id")} LIMIT $2 + 1) k
        WHERE g.id IN (SELECT "group" FROM taken) GROUP BY g.id
    )
    SELECT t.*, f.version, f.key_ids IS NULL OR cardinality(f.key_ids) > $2 AS has_none_or_many,
        CASE WHEN lag(t."group") OVER own IS NULL THEN f.key_ids END AS key_ids,
        CASE WHEN lag(t."group") OVER own IS NULL THEN f.public_keys END AS public_keys
    FROM taken t LEFT JOIN found f ON f.id = t."group" WINDOW own AS (PARTITION BY t."group" ORDER BY t.id)
    ORDER BY t."group", t.id
"""


async def seal_few(
    post_ids: Sequence[UUID], worker_private_keys: Sequence[bytes], seal_many: SealMany
) -> dict[UUID, Event | None]:
    """Seal what can be sealed in passing; what to announce of each, None where it was pending no more.

    Whatever is not among them is left to `seal`.
    """
    rows = await database.fetch(_TAKE_FEW, list(post_ids), FEW)
    done: dict[UUID, Event | None] = dict.fromkeys(set(post_ids) - {row["id"] for row in rows})
    for portion in _portions(_read_taken(rows)):
        made = await _make(portion, worker_private_keys, seal_many)
        stored = await _store_few(made) if made else {}
        done |= stored
    return done


def _read_taken(rows: Sequence[asyncpg.Record]) -> Iterator[Pending]:
    groups: dict[UUID, dict[UUID, bytes]] = {}
    for row in rows:
        if row["has_none_or_many"]:
            continue
        if row["key_ids"]:
            groups[row["group"]] = dict(zip(row["key_ids"], row["public_keys"], strict=True))
        ids = PostIds(row["id"], row["group"], row["author"])
        yield Pending(ids, row["draft"], row["version"], groups[row["group"]])


def _portions(pending: Iterable[Pending]) -> Iterator[list[Pending]]:
    """As many as have KEYS_AT_ONCE together, or one."""
    portion: list[Pending] = []
    room = KEYS_AT_ONCE
    for one in pending:
        if portion and len(one.recipients) > room:
            yield portion
            portion, room = [], KEYS_AT_ONCE
        portion.append(one)
        room -= len(one.recipients)
    if portion:
        yield portion


async def _make(pending: Sequence[Pending], worker_private_keys: Sequence[bytes], seal_many: SealMany) -> list[Made]:
    """But for those that are not quite in order."""
    opened = []
    for one in pending:
        try:
            draft = drafts.open_draft(one.ids, one.draft, worker_private_keys)
            files = await _open_files(one.ids, draft.attachments, worker_private_keys)
            post_key = sealing_posts.new_post_key()
            post = sealing_posts.seal_post(one.ids, draft.title, draft.content, files, post_key)
        except sealing_errors.SealingError:
            continue
        opened.append((one, post_key, post))
    to_seal = [(post_key, public_key) for one, post_key, _ in opened for public_key in one.recipients.values()]
    sealed = iter(await seal_many(to_seal))
    made = []
    for one, _, post in opened:
        sealed_keys = {key_id: next(sealed) for key_id in one.recipients}
        usable = {key_id: sealed_key for key_id, sealed_key in sealed_keys.items() if sealed_key is not None}
        if len(usable) == len(sealed_keys):
            made.append(Made(post, one.ids, one.version, usable))
    return made


_STORE_FEW = """
    WITH made AS MATERIALIZED (
        SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bytea[],
            $8::uuid[], $9::text[], $10::text[])
            AS m (id, "group", version, heading, content, content_hash, commitment, event, channel, frame)
    ), groups AS MATERIALIZED (
        SELECT g.id, g.recipients_version AS version FROM user_groups g
        WHERE g.id = ANY($2) ORDER BY g.id FOR SHARE
    ), locked AS MATERIALIZED (
        SELECT p.id FROM posts p JOIN made m ON m.id = p.id JOIN groups g ON g.id = m."group" AND g.version = m.version
        WHERE p.id = ANY($1) AND p.status = 'pending' ORDER BY p.id FOR UPDATE OF p
    ), sealed AS (
        UPDATE posts p SET status = 'sealed', draft = NULL, heading = m.heading, content = m.content,
            content_hash = m.content_hash, commitment = m.commitment, sealed_at = now()
        FROM made m JOIN locked l ON l.id = m.id WHERE p.id = m.id
    ), keys AS (
        INSERT INTO post_keys (id, post, public_key, encrypted_key)
        SELECT k.* FROM unnest($11::uuid[], $12::uuid[], $13::uuid[], $14::bytea[])
            AS k (id, post, public_key, sealed_key)
        WHERE k.post IN (SELECT id FROM locked)
    ), files AS (
        UPDATE attachments SET draft_key = NULL WHERE post IN (SELECT id FROM locked) AND draft_key IS NOT NULL
    ), told AS (
        INSERT INTO outbox (id, channels, frame) SELECT m.event, ARRAY[m.channel], m.frame
        FROM made m JOIN locked l ON l.id = m.id ON CONFLICT DO NOTHING
    )
    SELECT id FROM locked
"""


async def _store_few(made: Sequence[Made]) -> dict[UUID, Event | None]:
    """What to announce of those that were stored: posts that were still pending, for what are still the recipients."""
    announced = {one.ids.post: posts.sealed_event(one.ids) for one in made}
    keys = [(uuid_utils.compat.uuid7(), one.ids.post, *key) for one in made for key in one.sealed_keys.items()]
    rows = await database.fetch(
        _STORE_FEW,
        [one.ids.post for one in made],
        [one.ids.group for one in made],
        [one.version for one in made],
        [one.post.heading for one in made],
        [one.post.content for one in made],
        [one.post.content_hash for one in made],
        [one.post.commitment for one in made],
        [event.id for event in announced.values()],
        [event.channels[0] for event in announced.values()],
        [event.frame for event in announced.values()],
        *([key[place] for key in keys] for place in range(4)),
    )
    return {row["id"]: announced[row["id"]] for row in rows}


# ---------------------------------------------------------------------------------------------- one, whatever it is

Recipients = dict[bytes, bytes]
"""Public keys by their ids, 16 bytes each."""

# Members may come and go while a post for many is sealed; the group stays, and so do the rows of the keys.
_TAKE = """
    SELECT p.id, p."group", p.author, p.draft, g.recipients_version AS version
    FROM user_groups g JOIN posts p ON p."group" = g.id WHERE p.id = $1 AND p.status = 'pending'
    FOR KEY SHARE OF g FOR NO KEY UPDATE OF p SKIP LOCKED
"""


async def seal(post_id: UUID, worker_private_keys: Sequence[bytes], seal_many: SealMany) -> list[Event]:
    """Seal a pending post to every usable key of every member, and erase its draft; what to announce.

    Keys are sealed and stored, portion by portion, before the group is locked for good, so that it stays open to others
    meanwhile. Under that lock follows what has changed since. Does nothing where there is nothing (more) to do. Raises
    SealingElsewhere.
    """
    async with database.transaction():
        # The lock goes with this transaction, so a worker that dies holds nobody up.
        row = await database.fetchrow(_TAKE, post_id)
        if row is None:
            if await _is_pending(post_id):
                raise SealingElsewhere
            return []
        ids = PostIds(row["id"], row["group"], row["author"])
        try:
            draft = drafts.open_draft(ids, row["draft"], worker_private_keys)
            files = await _open_files(ids, draft.attachments, worker_private_keys)
        except sealing_errors.DraftMismatch:
            return await _fail(ids, "draft_mismatch")
        except sealing_errors.DraftUnreadable:
            return await _fail(ids, "draft_unreadable")
        post_key = sealing_posts.new_post_key()
        sealed = await _seal_keys(ids.post, post_key, await _recipients(ids.group), seal_many)
        if await _lock_recipients(ids.group) != row["version"]:
            now = await _recipients(ids.group)
            await _forget_keys(ids.post, sealed.keys() - now.keys())
            new = {key_id: public_key for key_id, public_key in now.items() if key_id not in sealed}
            sealed = {key_id: sealed[key_id] for key_id in now.keys() & sealed.keys()}
            sealed |= await _seal_keys(ids.post, post_key, new, seal_many)
        await _skip(key_id for key_id, is_usable in sealed.items() if not is_usable)
        if not any(sealed.values()):
            return await _fail(ids, "no_recipients")
        await attachments.erase_drafts(ids.post)
        return await _store(sealing_posts.seal_post(ids, draft.title, draft.content, files, post_key), ids)


async def _is_pending(post_id: UUID) -> bool:
    return bool(await database.fetchval("SELECT TRUE FROM posts WHERE id = $1 AND status = 'pending'", post_id))


async def _seal_keys(post_id: UUID, post_key: bytes, public_keys: Recipients, seal_many: SealMany) -> dict[bytes, bool]:
    """Seal to all of them, and store each portion while the next one is sealed; of each whether it can be sealed to."""
    outcomes: dict[bytes, bool] = {}
    portions = _in_portions(list(public_keys))
    # One of them is stored, one is sealed, and one is at hand for whoever is done with the latter.
    sealing: deque[tuple[Sequence[bytes], asyncio.Task[list[bytes | None]]]] = deque()

    def begin(count: int) -> None:
        for key_ids in itertools.islice(portions, count):
            to_seal = [(post_key, public_keys[key_id]) for key_id in key_ids]
            sealing.append((key_ids, asyncio.create_task(seal_many(to_seal))))

    begin(2)
    try:
        while sealing:
            key_ids, task = sealing[0]
            sealed = dict(zip(key_ids, await task, strict=True))
            sealing.popleft()
            begin(1)
            usable = {key_id: sealed_key for key_id, sealed_key in sealed.items() if sealed_key is not None}
            await posts.insert_keys(post_id, usable)
            outcomes |= {key_id: key_id in usable for key_id in sealed}
    finally:
        for _, task in sealing:
            task.cancel()
    return outcomes


def _in_portions(key_ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(key_ids), KEYS_AT_ONCE):
        yield key_ids[start : start + KEYS_AT_ONCE]


async def _open_files(
    ids: PostIds, attachment_ids: Sequence[UUID], worker_private_keys: Sequence[bytes]
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


_RECIPIENTS = f"""
    SELECT string_agg(uuid_send(k.id), '') AS ids, string_agg(k.public_key, '') AS public_keys {recipients.RECIPIENTS}
"""


async def _recipients(group_id: UUID) -> Recipients:
    # In two pieces, whose parts have one length by the tables' own checks: thousands of rows, and ids that are objects,
    # would take Python ten times as long, and the threads that seal stand still meanwhile.
    row = await database.fetchrow(_RECIPIENTS, group_id)
    ids, public_keys = (row["ids"] or b"", row["public_keys"] or b"") if row else (b"", b"")
    return dict(zip(_in_pieces(ids, ID_BYTES), _in_pieces(public_keys, PUBLIC_KEY_BYTES), strict=True))


def _in_pieces(joined: bytes, length: int) -> Iterator[bytes]:
    return (joined[start : start + length] for start in range(0, len(joined), length))


async def _lock_recipients(group_id: UUID) -> int | None:
    """The version of the group's recipients, which stays until this transaction ends."""
    version: int | None = await database.fetchval(
        "SELECT recipients_version FROM user_groups WHERE id = $1 FOR SHARE", group_id
    )
    return version


async def _forget_keys(post_id: UUID, key_ids: Iterable[bytes]) -> None:
    forgotten = [UUID(bytes=key_id) for key_id in key_ids]
    await database.execute("DELETE FROM post_keys WHERE post = $1 AND public_key = ANY($2)", post_id, forgotten)


async def _skip(key_ids: Iterable[bytes]) -> None:
    """One member's odd key never stops a group: it is skipped, here and from now on, and that is on record."""
    # In the same order everywhere, so that groups which share such members don't wait for one another in a circle.
    for key_id in sorted(key_ids):
        await database.execute("UPDATE user_keys SET unusable_at = now() WHERE id = $1", UUID(bytes=key_id))


_STORE = f"""
    WITH sealed AS (
        UPDATE posts SET status = 'sealed', draft = NULL, heading = $2, content = $3, content_hash = $4,
            commitment = $5, sealed_at = now() WHERE id = $1
    )
    {events.INSERT.format("$6", "$7", "$8")}
"""


async def _store(post: SealedPost, ids: PostIds) -> list[Event]:
    event = posts.sealed_event(ids)
    parts = (post.heading, post.content, post.content_hash, post.commitment)
    await database.execute(_STORE, ids.post, *parts, *event)
    return [event]


async def _fail(ids: PostIds, failure: Failure) -> list[Event]:
    await database.execute("UPDATE posts SET status = 'failed', failure = $2 WHERE id = $1", ids.post, failure)
    return await events.record(posts.failed_event(ids, failure))


# ---------------------------------------------------------------------------------------------- what waits


async def waiting(older_than_s: float, limit: int) -> list[UUID]:
    """Posts that have been waiting to be sealed for at least so long, oldest first."""
    rows = await database.fetch(
        "SELECT id FROM posts WHERE status = 'pending' AND created_at < now() - make_interval(secs => $1)"
        " ORDER BY created_at LIMIT $2",
        *(older_than_s, limit),
    )
    return [row["id"] for row in rows]


async def unlocked(post_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the given posts that are pending, and that no worker is at for longer than a moment."""
    rows = await database.fetch(
        "SELECT id FROM posts WHERE id = ANY($1) AND status = 'pending' FOR NO KEY UPDATE SKIP LOCKED", list(post_ids)
    )
    return {row["id"] for row in rows}
