"""Posts that their author's client has encrypted, signed and sealed: the server stores, routes and tells.

Nobody may be slipped in or left out unseen: the keys that a post is sealed to, and those that its author
openly withholds it from, are together exactly the group's active keys at the moment of storing.
"""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
import msgspec

from server import attachments, audit, database, events, groups, posts, requests
from server.errors import (
    BadSignature,
    IdTaken,
    Invalid,
    NoRecipients,
    RecipientsChanged,
)
from server.events import Event
from server.requests import SEALED_KEY_BYTES
from server.sealing import digests
from server.sealing import errors as sealing_errors
from server.sealing import posts as sealing_posts

# 200 characters fit, whatever escapes a client's JSON has for them. Contents are bounded by the body.
_MAX_HEADING_BYTES = 24 + 16 + 16 * 256


class SealedPost(msgspec.Struct, frozen=True, kw_only=True):
    """All that an author's client makes of a post; sizes as the wire format says."""

    id: UUID
    group_id: UUID
    heading: bytes
    content: bytes
    commitment: bytes
    signature: bytes
    signing_key_id: UUID
    sealed_keys: Sequence[posts.OwnKey]
    withheld: Sequence[UUID]
    attachment_ids: Sequence[UUID]


async def publish(author_id: UUID, post: SealedPost, mac_key: bytes) -> tuple[asyncpg.Record, bool, list[Event]]:
    """Store a sealed post; the post, whether it is new, and what to announce.

    Raises GroupNotFound, Invalid, BadSignature, AttachmentNotFound, IdTaken, NoRecipients, RecipientsChanged.
    """
    parts = [bytes(part) for part in (post.heading, post.content, post.commitment, post.signature)]
    mac = digests.request_mac(mac_key, msgspec.json.encode(["sealed post", author_id, post.group_id, *parts]))
    ids = sealing_posts.PostIds(post.id, post.group_id, author_id)
    async with database.transaction():
        await posts.lock_group(author_id, post.group_id)
        await posts.check_member(author_id, post.group_id)
        await requests.keep_post(post.id)
        if await posts.is_repeated(ids, mac):
            return await posts.read(author_id, post.id), False, []
        check_sizes(post)
        await check_signature(ids, post)
        if len(set(post.attachment_ids)) < len(post.attachment_ids):
            await attachments.check_own(author_id, post.attachment_ids)
            raise Invalid(("/attachments", "name one twice"))
        if not await insert(ids, post, mac):
            if not await posts.is_repeated(ids, mac):
                raise IdTaken
            # The same request, at the same time, was a little quicker.
            return await posts.read(author_id, post.id), False, []
        await attachments.attach(author_id, post.id, post.attachment_ids, "author")
        await check_recipients(post)
        await posts.insert_keys(post.id, {key.public_key_id.bytes: key.sealed_key for key in post.sealed_keys})
        await audit.record("post.created", actor=author_id, group=ids.group, post_id=ids.post, sealed_by="author")
        announced = await events.record(posts.sealed_event(ids))
        return await posts.read(author_id, post.id), True, announced


def check_sizes(post: SealedPost) -> None:
    try:
        sealing_posts.check_sizes(post.heading, post.content, post.commitment, post.signature)
    except sealing_errors.WrongSize as wrong:
        raise Invalid((f"/{wrong.field}", wrong.rule)) from None
    if len(post.heading) > _MAX_HEADING_BYTES:
        raise Invalid(("/heading", "is too long for a title"))
    errors = []
    seen: set[UUID] = set()
    for position, key in enumerate(post.sealed_keys):
        if len(key.sealed_key) != SEALED_KEY_BYTES:
            errors.append((f"/sealed_keys/{position}/sealed_key", f"has {SEALED_KEY_BYTES} bytes"))
        if key.public_key_id in seen:
            errors.append((f"/sealed_keys/{position}/public_key_id", "is repeated"))
        seen.add(key.public_key_id)
    for position, key_id in enumerate(post.withheld):
        if key_id in seen:
            errors.append((f"/withheld/{position}", "is repeated"))
        seen.add(key_id)
    if errors:
        raise Invalid(*errors)


async def check_signature(ids: sealing_posts.PostIds, post: SealedPost) -> None:
    verify_key = await database.fetchval(
        'SELECT verify_key FROM user_keys WHERE id = $1 AND "user" = $2 AND NOT is_revoked',
        *(post.signing_key_id, ids.author),
    )
    if verify_key is None:
        raise Invalid(("/signing_key_id", "is no active key of yours"))
    try:
        sealing_posts.verify_signature(
            ids,
            heading=post.heading,
            content_hash=digests.blake2b_256(post.content),
            commitment=post.commitment,
            signature=post.signature,
            verify_key=verify_key,
        )
    except sealing_errors.SealingError:
        raise BadSignature(("/signature", "is not the signing key's signature over this post")) from None


async def insert(ids: sealing_posts.PostIds, post: SealedPost, mac: bytes) -> bool:
    """Whether the id was free."""
    new = await database.fetchval(
        'INSERT INTO posts (id, "group", author, status, sealed_by, heading, content, content_hash, commitment,'
        " signature, signing_key, request_mac, sealed_at)"
        " SELECT $1, $2, $3, 'sealed', 'author', $4, $5, $6, $7, $8, $9, $10, now()"
        " WHERE NOT EXISTS (SELECT 1 FROM deleted_ids WHERE id = $1) ON CONFLICT (id) DO NOTHING RETURNING id",
        *(ids.post, ids.group, ids.author, post.heading, post.content),
        *(digests.blake2b_256(post.content), post.commitment, post.signature, post.signing_key_id, mac),
    )
    return new is not None


async def check_recipients(post: SealedPost) -> None:
    """Under the group's lock, which keeps members and keys as they are until the commit."""
    active = {row["id"]: row for row in await groups.active_keys(post.group_id)}
    named = {key.public_key_id for key in post.sealed_keys} | set(post.withheld)
    if active.keys() != named:
        raise RecipientsChanged(
            missing=[row for key_id, row in active.items() if key_id not in named],
            unknown=sorted(named - active.keys()),
        )
    if not post.sealed_keys:
        raise NoRecipients
