"""Everything that is stored about a user, line by line, for that user.

What is left out: hashes of the password, of tokens, links and requests, which are of use to nobody but a thief.

It is read in pages, each with a statement of its own, so that an export of any length holds no connection and no
transaction, and takes the memory of a page. It is therefore no snapshot: what changes meanwhile is in it or not.
"""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from server import credentials, database
from server.credentials import Caller
from server.events import timestamp

NO_ID = UUID(int=0)
NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


class Section(NamedTuple):
    """Rows of one kind: of user $1, after the key in $2 and so on, in its order."""

    sql: str
    key: dict[str, Any]
    """The columns that the rows are in the order of, each with what comes before all its values."""
    page: int = 500


_AUDIT = 'id, at, actor AS actor_id, action, "group" AS group_id, "user" AS user_id, ids::text AS ids'
# To whom a post is closed, by leaving its group or revoking the key, the sealed key is not handed out here either.
_IS_OPEN = (
    "NOT k.is_revoked AND (p.author = $1 OR EXISTS (SELECT 1 FROM user_group_association m"
    ' WHERE m."group" = p."group" AND m."user" = $1))'
)

SECTIONS = {
    "user": Section(
        "SELECT id, name, email, issuer, subject, claimed_email, is_admin, created_at, disabled_at FROM users"
        " WHERE id = $1 AND id > $2",
        {"id": NO_ID},
    ),
    "credential": Section(
        "SELECT kind AS type, id, label, scopes, created_at, expires, last_used_at, revoked_at FROM user_tokens"
        ' WHERE "user" = $1 AND (created_at, id) > ($2, $3) ORDER BY created_at, id',
        {"created_at": NO_TIME, "id": NO_ID},
    ),
    "key": Section(
        "SELECT id, public_key, verify_key, proof, endorsed_by, endorsement, label, created_at, revoked_at,"
        ' unusable_at FROM user_keys WHERE "user" = $1 AND id > $2 ORDER BY id',
        {"id": NO_ID},
    ),
    "membership": Section(
        'SELECT m."group" AS group_id, g.name AS group_name, m.role, m.created_at FROM user_group_association m'
        ' JOIN user_groups g ON g.id = m."group" WHERE m."user" = $1 AND m."group" > $2 ORDER BY m."group"',
        {"group_id": NO_ID},
    ),
    # The name is told to members.
    "created_group": Section(
        "SELECT id AS group_id, created_at FROM user_groups WHERE created_by = $1 AND id > $2 ORDER BY id",
        {"group_id": NO_ID},
    ),
    "post": Section(
        'SELECT id, "group" AS group_id, status, sealed_by, draft, heading, content, content_hash, commitment,'
        " signature, signing_key AS signing_key_id, created_at, sealed_at, failure FROM posts"
        " WHERE author = $1 AND id > $2 ORDER BY id",
        {"id": NO_ID},
        # Each may be close to a megabyte.
        page=16,
    ),
    # The files themselves are had one by one, as long as their posts are open to the user.
    "attachment": Section(
        "SELECT id, post AS post_id, sealed_by, size, draft_key, created_at FROM attachments"
        " WHERE owner = $1 AND id > $2 ORDER BY id",
        {"id": NO_ID},
    ),
    "download_link": Section(
        "SELECT id, attachment AS attachment_id, created_at, expires, downloads_left, revoked_at FROM download_links"
        " WHERE created_by = $1 AND id > $2 ORDER BY id",
        {"id": NO_ID},
    ),
    "post_key": Section(
        f"SELECT s.post AS post_id, s.public_key AS public_key_id, CASE WHEN {_IS_OPEN} THEN s.encrypted_key END"
        " AS sealed_key, s.granted_by, s.created_at FROM post_keys s JOIN user_keys k ON k.id = s.public_key"
        " JOIN posts p ON p.id = s.post"
        ' WHERE s.public_key = ANY(ARRAY(SELECT id FROM user_keys WHERE "user" = $1))'
        " AND (s.public_key, s.post) > ($2, $3) ORDER BY s.public_key, s.post",
        {"public_key_id": NO_ID, "post_id": NO_ID},
    ),
    "read_request": Section(
        'SELECT id, post AS post_id, "group" AS group_id, public_key AS public_key_id, status, created_at, decided_at,'
        ' decided_by FROM read_post_request WHERE "user" = $1 AND (created_at, id) > ($2, $3) ORDER BY created_at, id',
        {"created_at": NO_TIME, "id": NO_ID},
    ),
    "decision": Section(
        'SELECT id, post AS post_id, "group" AS group_id, "user" AS requester_id, status, decided_at'
        " FROM read_post_request WHERE decided_by = $1 AND id > $2 ORDER BY id",
        {"id": NO_ID},
    ),
    "granted_key": Section(
        "SELECT id, post AS post_id, public_key AS public_key_id, created_at FROM post_keys"
        " WHERE granted_by = $1 AND id > $2 ORDER BY id",
        {"id": NO_ID},
    ),
    "usage": Section(
        'SELECT date, requests, posts, upload_bytes FROM user_daily_usage WHERE "user" = $1 AND date > $2'
        " ORDER BY date",
        {"date": date(1970, 1, 1)},
    ),
    "audit": Section(f"SELECT {_AUDIT} FROM audit_log WHERE actor = $1 AND id > $2 ORDER BY id", {"id": NO_ID}),
    "audit_of_others": Section(
        f"SELECT 'audit' AS type, {_AUDIT} FROM audit_log WHERE \"user\" = $1 AND actor IS DISTINCT FROM $1 AND id > $2"
        " ORDER BY id",
        {"id": NO_ID},
    ),
}


async def lines(caller: Caller) -> AsyncIterator[bytes]:
    """NDJSON, some lines at a time: `{"type": …, …}`, and last of all `{"type": "end", "lines": …}`.

    It ends without that line if the credential ends meanwhile.
    """
    count = 0
    for kind, section in SECTIONS.items():
        after = list(section.key.values())
        while True:
            if await credentials.ended_credentials([caller]):
                return
            rows = await database.fetch(f"{section.sql} LIMIT {section.page}", caller.user_id, *after)
            if rows:
                count += len(rows)
                yield b"".join(_line(kind, row) for row in rows)
            if len(rows) < section.page:
                break
            after = [rows[-1][column] for column in section.key]
    yield msgspec.json.encode({"type": "end", "lines": count}) + b"\n"


def _line(kind: str, row: asyncpg.Record) -> bytes:
    return msgspec.json.encode({"type": kind, **{name: _value(name, value) for name, value in row.items()}}) + b"\n"


def _value(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return timestamp(value)
    return msgspec.Raw(value.encode()) if name == "ids" else value
