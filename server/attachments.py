"""Attachments: sealed files, from their upload to their post.

    an upload begins ─> its object's deletion is written down, for a day from now
    it is whole ──────> the attachment is there, the deletion is not: in one transaction
    a post takes it, or it goes after a day
    the attachment goes, with its post or its owner ─> a trigger writes the deletion of its object down
    the sweep deletes the objects whose time has come, until the store says that they are gone

So a crash at any line leaves an object that is going to be deleted, and never an attachment without its object.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg

from server import database
from server.errors import AttachmentInUse, AttachmentNotFound, IdTaken, Invalid, Unauthenticated

UNATTACHED_KEPT = timedelta(days=1)
# What is longer under way than this is no upload any more.
UPLOAD_LASTS = timedelta(days=1)
DELETE_AGAIN_AFTER = timedelta(minutes=1)

COLUMNS = "id, owner, post, sealed_by, size, object_key, created_at"


async def begin_upload() -> str:
    """The name of the object that the upload may now write."""
    name = uuid4().hex
    object_key = f"{name[:2]}/{name}"
    await database.execute(
        "INSERT INTO object_deletions (object_key, due_at) VALUES ($1, now() + $2)", object_key, UPLOAD_LASTS
    )
    return object_key


async def give_up(object_key: str) -> None:
    """The upload failed; its object, if there is one, goes with the next sweep."""
    await database.execute("UPDATE object_deletions SET due_at = now() WHERE object_key = $1", object_key)


async def finish_upload(
    attachment_id: UUID, owner_id: UUID, sealed_by: str, size: int, object_key: str, draft_key: bytes | None, mac: bytes
) -> tuple[asyncpg.Record, bool]:
    """The attachment, and whether it is new; the object of what is not has to be given up.

    Raises IdTaken, Unauthenticated (the owner has gone meanwhile).
    """
    async with database.transaction():
        if not await database.fetchval("SELECT TRUE FROM users WHERE id = $1 FOR KEY SHARE", owner_id):
            raise Unauthenticated
        row = await database.fetchrow(
            "INSERT INTO attachments (id, owner, sealed_by, size, object_key, draft_key, request_mac)"
            " SELECT $1, $2, $3, $4, $5, $6, $7 WHERE NOT EXISTS (SELECT 1 FROM deleted_ids WHERE id = $1)"
            f" ON CONFLICT (id) DO NOTHING RETURNING {COLUMNS}",
            *(attachment_id, owner_id, sealed_by, size, object_key, draft_key, mac),
        )
        if row is not None:
            # The sweep may have come in between, a day later: then the object is not there.
            gone = await database.execute("DELETE FROM object_deletions WHERE object_key = $1", object_key)
            if gone != "DELETE 1":
                raise IdTaken
            return row, True
        same = await database.fetchrow(
            f"SELECT {COLUMNS} FROM attachments WHERE id = $1 AND owner = $2 AND request_mac = $3",
            *(attachment_id, owner_id, mac),
        )
    if same is None:
        raise IdTaken
    return same, False


async def attach(owner_id: UUID, post_id: UUID, attachment_ids: Sequence[UUID], sealed_by: str) -> None:
    """Give files of the author's to its post, within the transaction that stores the post.

    Raises AttachmentNotFound, AttachmentInUse, Invalid (sealed in the other way).
    """
    if not attachment_ids:
        return
    rows = await database.fetch(
        "SELECT id, post, sealed_by FROM attachments WHERE id = ANY($1) AND owner = $2 ORDER BY id FOR UPDATE",
        *(list(attachment_ids), owner_id),
    )
    if len(rows) < len(attachment_ids):
        raise AttachmentNotFound
    if any(row["sealed_by"] != sealed_by for row in rows):
        raise Invalid(("/attachments", f"a post that is sealed by the {sealed_by} takes files that are, too"))
    if any(row["post"] not in {None, post_id} for row in rows):
        raise AttachmentInUse
    await database.execute("UPDATE attachments SET post = $1 WHERE id = ANY($2)", post_id, list(attachment_ids))


async def check_own(owner_id: UUID, attachment_ids: Sequence[UUID]) -> None:
    """Raises AttachmentNotFound unless all of them are the owner's."""
    owned = await database.fetchval(
        "SELECT count(*) FROM attachments WHERE id = ANY($1) AND owner = $2", list(attachment_ids), owner_id
    )
    if owned < len(set(attachment_ids)):
        raise AttachmentNotFound


async def drafts_of(post_id: UUID, attachment_ids: Sequence[UUID]) -> dict[UUID, bytes]:
    """What the workers need of a post's files, as far as it is there."""
    rows = await database.fetch(
        "SELECT id, draft_key FROM attachments WHERE post = $1 AND id = ANY($2) AND draft_key IS NOT NULL",
        *(post_id, list(attachment_ids)),
    )
    return {row["id"]: row["draft_key"] for row in rows}


async def erase_drafts(post_id: UUID) -> None:
    """Within the transaction that seals the post."""
    await database.execute("UPDATE attachments SET draft_key = NULL WHERE post = $1", post_id)


VISIBLE = (
    "SELECT a.id FROM attachments a LEFT JOIN posts p ON p.id = a.post LEFT JOIN user_group_association m"
    ' ON m."group" = p."group" AND m."user" = {user} WHERE a.id = {attachment}'
    " AND (m.id IS NOT NULL OR (a.post IS NULL AND a.owner = {user}))"
)


async def read(caller_id: UUID, attachment_id: UUID) -> asyncpg.Record:
    """For every current member of its post's group; before it has a post, for its owner. Raises AttachmentNotFound."""
    row = await database.fetchrow(
        f"SELECT {COLUMNS} FROM attachments WHERE id = ({VISIBLE.format(user='$1', attachment='$2')})",
        *(caller_id, attachment_id),
    )
    if row is None:
        raise AttachmentNotFound
    return row


async def expire() -> int:
    """Delete what no post has taken for a day. How many went."""
    tag = await database.execute(
        "DELETE FROM attachments WHERE post IS NULL AND created_at < now() - $1::interval", UNATTACHED_KEPT
    )
    return int(tag.split()[-1])


async def objects_to_delete(limit: int) -> list[str]:
    """Take up those whose time has come; they come up again in a minute unless they are `deleted` by then."""
    rows = await database.fetch(
        "UPDATE object_deletions SET due_at = now() + $2 WHERE id IN (SELECT id FROM object_deletions"
        " WHERE due_at <= now() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING object_key",
        *(limit, DELETE_AGAIN_AFTER),
    )
    return [row["object_key"] for row in rows]


async def objects_deleted(object_keys: Sequence[str]) -> None:
    await database.execute("DELETE FROM object_deletions WHERE object_key = ANY($1)", list(object_keys))
