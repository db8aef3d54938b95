"""Links to attachments: a token of 256 bits opens the stream for whoever has it, until it ends.

A link ends at its time, after its last download, when it is revoked, when its file or post is gone, and when its maker
may no longer see the file. The time is the database's, and downloads are counted there.
"""

import secrets
from uuid import UUID

import asyncpg

from server import attachments, audit, database
from server.errors import LinkGone, LinkNotFound
from server.lists import Page
from server.sealing import digests

_COLUMNS = "l.id, l.attachment, l.created_at, l.expires, l.downloads_left, l.revoked_at"
_LIVES = (
    "l.revoked_at IS NULL AND l.expires > now() AND (l.downloads_left IS NULL OR l.downloads_left > 0)"
    " AND u.disabled_at IS NULL"
    f" AND EXISTS ({attachments.VISIBLE.format(user='l.created_by', attachment='l.attachment')})"
)


async def create(
    maker_id: UUID, attachment_id: UUID, expires_in: int, max_downloads: int | None
) -> tuple[asyncpg.Record, str]:
    """The link, and its token, which is shown once. `expires_in` is in seconds. Raises AttachmentNotFound."""
    token = secrets.token_urlsafe(32)
    async with database.transaction():
        await database.execute("SELECT 1 FROM users WHERE id = $1 FOR KEY SHARE", maker_id)
        file = await attachments.read(maker_id, attachment_id)
        [row] = await database.fetch(
            "INSERT INTO download_links AS l (attachment, token_hash, created_by, expires, downloads_left)"
            f" VALUES ($1, $2, $3, now() + make_interval(secs => $4), $5) RETURNING {_COLUMNS}",
            *(attachment_id, digests.token_hash(token), maker_id, expires_in, max_downloads),
        )
        group_id = await database.fetchval('SELECT "group" FROM posts WHERE id = $1', file["post"])
        await audit.record(
            "link.created", actor=maker_id, group=group_id, link_id=row["id"], attachment_id=attachment_id
        )
    return row, token


async def list_own(maker_id: UUID, attachment_id: UUID, page: Page) -> list[asyncpg.Record]:
    """The caller's links to this file, ended ones too; one row more than the page. Raises AttachmentNotFound."""
    await attachments.read(maker_id, attachment_id)
    return await database.fetch(
        f"SELECT {_COLUMNS} FROM download_links l WHERE l.attachment = $1 AND l.created_by = $2"
        " AND (l.created_at, l.id) < ($3, $4) ORDER BY l.created_at DESC, l.id DESC LIMIT $5",
        *(attachment_id, maker_id, page.created_before, page.id_before, page.limit + 1),
    )


async def revoke(maker_id: UUID, link_id: UUID) -> None:
    """Twice is no error. Raises LinkNotFound."""
    async with database.transaction():
        link = await database.fetchrow(
            'SELECT l.revoked_at, p."group" FROM download_links l LEFT JOIN attachments a ON a.id = l.attachment'
            " LEFT JOIN posts p ON p.id = a.post WHERE l.id = $1 AND l.created_by = $2 FOR UPDATE OF l",
            *(link_id, maker_id),
        )
        if link is None:
            raise LinkNotFound
        if link["revoked_at"] is None:
            await database.execute("UPDATE download_links SET revoked_at = now() WHERE id = $1", link_id)
            await audit.record("link.revoked", actor=maker_id, group=link["group"], link_id=link_id)


async def find(token: str) -> asyncpg.Record:
    """The link (`link_id`, `is_limited`) and its file (`attachment_id`, `object_key`, `size`).

    Raises LinkNotFound for a token that never was, LinkGone for one that has ended.
    """
    row = await database.fetchrow(
        "SELECT l.id AS link_id, l.downloads_left IS NOT NULL AS is_limited, a.id AS attachment_id, a.object_key,"
        f" a.size, ({_LIVES}) AS lives FROM download_links l JOIN users u ON u.id = l.created_by"
        " LEFT JOIN attachments a ON a.id = l.attachment WHERE l.token_hash = $1",
        digests.token_hash(token),
    )
    if row is None:
        raise LinkNotFound
    if not row["lives"]:
        raise LinkGone
    return row


async def take_download(link_id: UUID) -> None:
    """Count one download. Raises LinkGone if the last one was taken meanwhile, or the link has ended."""
    taken = await database.fetchval(
        "UPDATE download_links l SET downloads_left = l.downloads_left - 1 FROM users u"
        f" WHERE l.id = $1 AND u.id = l.created_by AND {_LIVES} RETURNING TRUE",
        link_id,
    )
    if not taken:
        raise LinkGone


async def expire() -> int:
    """Drop links that ended a month ago. How many went."""
    tag = await database.execute("DELETE FROM download_links WHERE expires < now() - interval '30 days'")
    return int(tag.split()[-1])
