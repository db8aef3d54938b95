"""Read requests: who was not there when a post was sealed asks, and a decider answers.

    pending ─ approve ─> approved ─ give back ─> returned
            ─ deny ────> denied
            ─ withdraw, or its post, key or membership is gone ─> cancelled

Deciders are the author and the group's owners, as far as they are members and hold the post's key in
an active key of theirs; where none does, every member who holds it. Never the one who asks.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import asyncpg

from server import audit, database, events
from server.credentials import stands
from server.errors import (
    AlreadyDecided,
    AlreadyReadable,
    AlreadyRequested,
    Invalid,
    KeyNotFound,
    NoKey,
    NotDecider,
    NotSealed,
    OwnRequest,
    PostNotFound,
    ReadRequestNotFound,
    RecentlyDenied,
)
from server.events import Event
from server.lists import Page
from server.sealing import encoding
from server.sealing import keys as sealing_keys

Status = Literal["pending", "approved", "denied", "cancelled", "returned"]

SEALED_KEY_BYTES = 80
# A socket's clock, the database's and a transaction that commits late may differ by this much.
REPLAY_MARGIN = timedelta(seconds=60)


def holds(user: str, post: str) -> str:
    """SQL: an active key of `user`, who is not disabled, opens `post`."""
    # OFFSET 0 keeps the planner from making joins of it, for which it would read all keys of a post, or of all posts.
    return (
        'EXISTS (SELECT 1 FROM user_keys hk JOIN users hu ON hu.id = hk."user" AND hu.disabled_at IS NULL'
        f' WHERE hk."user" = {user} AND NOT hk.is_revoked AND EXISTS'
        f" (SELECT 1 FROM post_keys hp WHERE hp.post = {post} AND hp.public_key = hk.id OFFSET 0) OFFSET 0)"
    )


# SQL over request r, its post p and the caller $1, who is taken to be a member.
_OWNER = 'o."user"'
_MEMBER = 'm."user"'
_OWNER_DECIDES = (
    'SELECT 1 FROM user_group_association o WHERE o."group" = r."group" AND o.role = \'owner\' AND o."user" <> r."user"'
)
_AUTHOR_DECIDES = (
    'SELECT 1 FROM user_group_association a WHERE a."group" = r."group" AND a."user" = p.author'
    f' AND a."user" <> r."user" AND {holds("p.author", "p.id")}'
)
MAY_DECIDE = (
    f'(r."user" <> $1 AND {holds("$1", "p.id")} AND (p.author = $1 OR EXISTS ({_OWNER_DECIDES} AND o."user" = $1)'
    f" OR NOT (EXISTS ({_AUTHOR_DECIDES}) OR EXISTS ({_OWNER_DECIDES} AND {holds(_OWNER, 'p.id')}))))"
)

_COLUMNS = (
    'r.id, r.post AS post_id, r."group" AS group_id, r."user" AS requester_id, u.name AS requester_name,'
    " r.public_key AS public_key_id, k.public_key, k.verify_key, r.status, r.created_at, r.decided_at, r.decided_by"
)
_JOINS = 'JOIN users u ON u.id = r."user" JOIN user_keys k ON k.id = r.public_key'
_MEMBERSHIP = 'user_group_association mine ON mine."group" = r."group" AND mine."user" = $1'
# Asked of each row that an index brings. A join would have the planner go through all requests of the groups.
_IS_MEMBER = '(SELECT TRUE FROM user_group_association mine WHERE mine."group" = r."group" AND mine."user" = $1)'


async def ask(
    requester_id: UUID, post_id: UUID, key_id: UUID | None, unproven: UUID | None = None
) -> tuple[asyncpg.Record, bool, list[Event]]:
    """The request, whether it is new, and what to announce.

    For a credential that is `unproven` and does not stand no post is there. Raises PostNotFound, KeyNotFound,
    NotSealed, AlreadyReadable, AlreadyRequested, RecentlyDenied, NoKey.
    """
    found = await database.fetchrow(_STATE, requester_id, post_id, key_id, unproven)
    if found is not None and (asked := await _ask(requester_id, found, key_id, unproven)):
        return asked
    # Something changed in between, or it has to be told what is wrong: under locks nothing does.
    async with database.transaction():
        if not await database.fetchval(_LOCK_TO_ASK, requester_id, post_id, unproven):
            raise PostNotFound
        found = await database.fetchrow(_STATE, requester_id, post_id, key_id, unproven)
        if found is None:
            raise PostNotFound
        if asked := await _ask(requester_id, found, key_id, unproven):
            return asked
    # Another request of the same user came in between: now it is there to be found.
    return await ask(requester_id, post_id, key_id, unproven)


async def _ask(
    requester_id: UUID, state: asyncpg.Record, key_id: UUID | None, unproven: UUID | None
) -> tuple[asyncpg.Record, bool, list[Event]] | None:
    """None if what `state` says of post and group is so no more."""
    _check_asking(state, key_id)
    if state["pending_id"] is not None:
        return await _row(state["pending_id"]), False, []
    announced = _created(state, state["deciders"])
    is_new = await database.fetchval(
        _ASK,
        *(state["id"], state["post_id"], state["group_id"], requester_id, state["public_key_id"]),
        *(announced[0] if announced else (None, None, None)),
        *(state["version"], unproven, state["created_at"]),
    )
    return (state, True, announced) if is_new else None


# The requester's row, the post's group, the post: locked in the order in which they are named. Of a post that is being
# deleted nothing is left once that is through.
_TO_ASK = f"""
    FROM posts p JOIN user_group_association m ON m."group" = p."group" JOIN users u ON u.id = m."user"
    JOIN user_groups g ON g.id = p."group"
    WHERE u.id = {{0}} AND p.id = {{1}} AND {stands("{2}")} FOR KEY SHARE OF u FOR SHARE OF g FOR KEY SHARE OF p"""
_LOCK_TO_ASK = f"SELECT TRUE {_TO_ASK.format('$1', '$2', '$3')}"


async def lock_group_of_post(member_id: UUID, post_id: UUID) -> None:
    """The member's own row, then the post's group FOR SHARE. Raises PostNotFound.

    Rows that name the member as requester or decider lock its row in any case, but later: a change of its keys, which
    locks the user and then the groups, would meet that halfway.
    """
    group_id = await database.fetchval(
        'SELECT p."group" FROM posts p JOIN user_group_association m ON m."group" = p."group"'
        ' JOIN users u ON u.id = m."user" WHERE u.id = $1 AND p.id = $2 FOR KEY SHARE OF u',
        *(member_id, post_id),
    )
    if group_id is None:
        raise PostNotFound
    await database.execute("SELECT 1 FROM user_groups WHERE id = $1 FOR SHARE", group_id)


async def keep_post(post_id: UUID) -> None:
    """From being deleted before this transaction ends. A deletion that is under way is waited for.

    Deleting locks the post before its requests, so whoever locks a request does this first.
    """
    await database.execute("SELECT 1 FROM posts WHERE id = $1 FOR KEY SHARE", post_id)


# SQL over requests r, each with its post and that post's author, none of which needs to be stored yet.
_NAMED = f"""
    SELECT r.id, m."user" FROM r JOIN user_group_association m ON m."group" = r."group" AND m.role = 'owner'
    WHERE m."user" <> r."user" AND {holds(_MEMBER, "r.post")}
    UNION
    SELECT r.id, m."user" FROM r JOIN user_group_association m ON m."group" = r."group" AND m."user" = r.author
    WHERE m."user" <> r."user" AND {holds(_MEMBER, "r.post")}
"""
_DECIDERS = f"""
    SELECT id, "user" FROM named
    UNION ALL
    SELECT r.id, m."user" FROM r JOIN user_group_association m ON m."group" = r."group"
    WHERE NOT EXISTS (SELECT 1 FROM named WHERE named.id = r.id)
    AND m."user" <> r."user" AND {holds(_MEMBER, "r.post")}
"""

# All that decides about asking, and all that the answer and the frame say of a request that is yet to be stored.
_STATE = f"""
    WITH r AS MATERIALIZED (
        SELECT uuidv7() AS id, $1 AS "user", p.id AS post, p."group", p.author, p.status,
            g.recipients_version AS version
        FROM posts p JOIN user_group_association m ON m."group" = p."group" AND m."user" = $1
        JOIN user_groups g ON g.id = p."group" WHERE p.id = $2 AND {stands("$4")}
    ), named AS MATERIALIZED ({_NAMED})
    SELECT r.id, r.post AS post_id, r."group" AS group_id, r."user" AS requester_id, u.name AS requester_name,
        k.id AS public_key_id, k.public_key, k.verify_key, 'pending' AS status, now() AS created_at,
        NULL::timestamptz AS decided_at, NULL::uuid AS decided_by,
        r.status AS post_status, r.version, {holds("$1", "$2")} AS is_readable,
        EXISTS (SELECT 1 FROM user_keys own WHERE own."user" = $1 AND own.id = $3) AS knows_key,
        w.id AS pending_id, w.public_key AS pending_key_id,
        (SELECT max(d.decided_at) + interval '1 day' FROM read_post_request d WHERE d.post = $2
         AND d."user" = $1 AND d.status = 'denied' AND d.decided_at > now() - interval '1 day') AS retry_at,
        ARRAY(SELECT d."user" FROM ({_DECIDERS}) d) AS deciders
    FROM r JOIN users u ON u.id = r."user"
    LEFT JOIN read_post_request w ON w.post = $2 AND w."user" = $1 AND w.status = 'pending'
    LEFT JOIN LATERAL (
        SELECT * FROM user_keys own WHERE own."user" = $1 AND NOT own.is_revoked AND own.id = coalesce($3, own.id)
        ORDER BY own.created_at DESC, own.id DESC LIMIT 1
    ) k ON TRUE
"""
_ASK_IDS = "jsonb_build_object('request_id', $1, 'post_id', $2)"
_ASK = f"""
    WITH locked AS MATERIALIZED (
        SELECT p.id AS post, g.recipients_version AS version {_TO_ASK.format("$4", "$2", "$10")}
    ), new AS (
        INSERT INTO read_post_request (id, post, "group", "user", public_key, status, created_at)
        SELECT $1, post, $3, $4, $5, 'pending', $11 FROM locked WHERE version = $9 ON CONFLICT DO NOTHING RETURNING id
    ), recorded AS (
        {audit.insertion("read_request.created", actor="$4", group="$3", ids=_ASK_IDS, source="new")}
    ), told AS (
        INSERT INTO outbox (id, channels, frame) SELECT $6, $7, $8 FROM new WHERE $6::uuid IS NOT NULL
        ON CONFLICT DO NOTHING
    )
    SELECT TRUE FROM new
"""


def _check_asking(state: asyncpg.Record, named_key_id: UUID | None) -> None:
    if named_key_id is not None and not state["knows_key"]:
        raise KeyNotFound
    if state["post_status"] != "sealed":
        raise NotSealed
    if state["is_readable"]:
        raise AlreadyReadable
    if state["pending_id"] is not None and state["pending_key_id"] != state["public_key_id"]:
        raise AlreadyRequested(request_id=state["pending_id"])
    if state["pending_id"] is None and state["retry_at"] is not None:
        raise RecentlyDenied(retry_at=events.timestamp(state["retry_at"]))
    if state["public_key_id"] is None:
        raise NoKey


async def _row(request_id: UUID) -> asyncpg.Record:
    row = await database.fetchrow(f"SELECT {_COLUMNS} FROM read_post_request r {_JOINS} WHERE r.id = $1", request_id)
    if row is None:
        raise ReadRequestNotFound
    return row


async def _deciders(request_ids: Sequence[UUID]) -> dict[UUID, list[UUID]]:
    rows = await database.fetch(
        f"""
        WITH r AS MATERIALIZED (
            SELECT q.id, q."user", q.post, q."group", p.author
            FROM read_post_request q JOIN posts p ON p.id = q.post WHERE q.id = ANY($1)
        ), named AS MATERIALIZED ({_NAMED})
        {_DECIDERS}
        """,
        list(request_ids),
    )
    deciders: dict[UUID, list[UUID]] = {}
    for row in rows:
        deciders.setdefault(row["id"], []).append(row["user"])
    return deciders


def created_frame_fields(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "request_id": row["id"],
        "post_id": row["post_id"],
        "requested_user_id": row["requester_id"],
        "user_public_key": encoding.encode_base64(row["public_key"]),
        "public_key_id": row["public_key_id"],
        "verify_key": encoding.encode_base64(row["verify_key"]),
        "fingerprint": fingerprint(row),
        "requester_name": row["requester_name"],
        "group_id": row["group_id"],
        "created_at": row["created_at"],
    }


def fingerprint(row: asyncpg.Record) -> str:
    return sealing_keys.fingerprint(row["requester_id"], row["public_key"], row["verify_key"])


def decided_frame_fields(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "request_id": row["id"],
        "post_id": row["post_id"],
        "decided_by": row["decided_by"],
        "decided_at": row["decided_at"],
    }


def _created(row: asyncpg.Record, deciders: Sequence[UUID]) -> list[Event]:
    if not deciders:
        return []
    channels = [events.user_channel(user_id) for user_id in deciders]
    return [events.event("read_request.created", channels, row["id"], **created_frame_fields(row))]


def _decided(row: asyncpg.Record, deciders: Sequence[UUID]) -> Event:
    # A decider who no longer holds the key made this decision all the same, and wants to hear of it.
    heard_by = {row["requester_id"], row["decided_by"], *deciders} - {None}
    channels = [events.user_channel(user_id) for user_id in sorted(heard_by)]
    return events.event(f"read_request.{row['status']}", channels, row["id"], **decided_frame_fields(row))


async def approve(decider_id: UUID, request_id: UUID, sealed_key: bytes) -> tuple[asyncpg.Record, list[Event]]:
    """Raises ReadRequestNotFound, OwnRequest, NotDecider, Invalid, AlreadyDecided."""
    async with database.transaction():
        request = await _lock_for_decision(decider_id, request_id)
        if len(sealed_key) != SEALED_KEY_BYTES:
            raise Invalid(("/sealed_key", f"is not {SEALED_KEY_BYTES} bytes"))
        if request["status"] != "pending" or not request["is_still_wanted"]:
            raise AlreadyDecided
        await database.execute(
            "INSERT INTO post_keys (post, public_key, encrypted_key, granted_by) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT DO NOTHING",
            *(request["post"], request["public_key"], sealed_key, decider_id),
        )
        return await _decide(decider_id, request_id, "approved", decider_id)


async def deny(decider_id: UUID, request_id: UUID) -> tuple[asyncpg.Record, list[Event]]:
    """Raises ReadRequestNotFound, OwnRequest, NotDecider, AlreadyDecided."""
    async with database.transaction():
        request = await _lock_for_decision(decider_id, request_id)
        if request["status"] != "pending":
            raise AlreadyDecided
        return await _decide(decider_id, request_id, "denied", decider_id)


async def check_may_decide(caller_id: UUID, request_id: UUID) -> None:
    """Raises what `approve` and `deny` would raise because of who is asking."""
    async with database.transaction():
        await _lock_for_decision(caller_id, request_id)


async def _lock_for_decision(decider_id: UUID, request_id: UUID) -> asyncpg.Record:
    await _lock_group_of_request(decider_id, request_id)
    request = await database.fetchrow(
        f"""
        SELECT r.post, r."user", r.public_key, r.status, {MAY_DECIDE} AS may_decide,
            EXISTS (SELECT 1 FROM user_group_association w JOIN users wu ON wu.id = w."user" AND wu.disabled_at IS NULL
                WHERE w."group" = r."group" AND w."user" = r."user")
            AND EXISTS (SELECT 1 FROM user_keys k WHERE k.id = r.public_key AND NOT k.is_revoked) AS is_still_wanted
        FROM read_post_request r JOIN posts p ON p.id = r.post JOIN {_MEMBERSHIP} WHERE r.id = $2 FOR UPDATE OF r
        """,
        *(decider_id, request_id),
    )
    if request is None:
        raise ReadRequestNotFound
    if request["user"] == decider_id:
        raise OwnRequest
    if not request["may_decide"]:
        raise NotDecider
    return request


async def _lock_group_of_request(member_id: UUID, request_id: UUID) -> None:
    """As `lock_group_of_post`, and the post is kept. Raises ReadRequestNotFound."""
    post_id = await database.fetchval("SELECT post FROM read_post_request WHERE id = $1", request_id)
    try:
        await lock_group_of_post(member_id, post_id)
    except PostNotFound:
        raise ReadRequestNotFound from None
    await keep_post(post_id)


async def _decide(
    actor: UUID, request_id: UUID, status: Status, decided_by: UUID | None
) -> tuple[asyncpg.Record, list[Event]]:
    await database.execute(
        "UPDATE read_post_request SET status = $2, decided_by = $3, decided_at = now() WHERE id = $1",
        *(request_id, status, decided_by),
    )
    row = await _row(request_id)
    await audit.record(
        f"read_request.{status}",
        actor=actor,
        group=row["group_id"],
        user=row["requester_id"],
        request_id=request_id,
        post_id=row["post_id"],
    )
    deciders = (await _deciders([request_id])).get(request_id, [])
    return row, await events.record(_decided(row, deciders))


async def withdraw(requester_id: UUID, request_id: UUID) -> list[Event]:
    """A pending request is cancelled; an approved one is given back, and the key that it brought with it.

    Raises ReadRequestNotFound, AlreadyDecided.
    """
    async with database.transaction():
        await _lock_group_of_request(requester_id, request_id)
        request = await database.fetchrow(
            "SELECT post, public_key, status, decided_by FROM read_post_request"
            ' WHERE id = $1 AND "user" = $2 FOR UPDATE',
            *(request_id, requester_id),
        )
        if request is None:
            raise ReadRequestNotFound
        if request["status"] == "pending":
            return (await _decide(requester_id, request_id, "cancelled", None))[1]
        if request["status"] != "approved":
            raise AlreadyDecided
        await database.execute(
            "DELETE FROM post_keys WHERE post = $1 AND public_key = $2 AND granted_by IS NOT DISTINCT FROM $3",
            *(request["post"], request["public_key"], request["decided_by"]),
        )
        return (await _decide(requester_id, request_id, "returned", request["decided_by"]))[1]


async def cancel_of_key(key_id: UUID) -> list[Event]:
    """Within the caller's transaction, as the other `cancel_…`; the events are not yet recorded."""
    return await _cancel("public_key = $1", key_id)


async def cancel_of_member(group_id: UUID, user_id: UUID) -> list[Event]:
    return await _cancel('"group" = $1 AND "user" = $2', group_id, user_id)


async def cancel_of_requester(user_id: UUID) -> list[Event]:
    return await _cancel('"user" = $1', user_id)


async def cancel_of_author(user_id: UUID) -> list[Event]:
    return await _cancel("post IN (SELECT id FROM posts WHERE author = $1)", user_id)


async def cancel_of_post(post_id: UUID) -> list[Event]:
    return await _cancel("post = $1", post_id)


async def cancel_of_group(group_id: UUID) -> list[Event]:
    return await _cancel('"group" = $1', group_id)


async def _cancel(condition: str, *args: Any) -> list[Event]:
    rows = await database.fetch(
        "UPDATE read_post_request SET status = 'cancelled', decided_at = now()"
        f" WHERE status = 'pending' AND {condition}"
        ' RETURNING id, post AS post_id, "user" AS requester_id, status, decided_at, decided_by',
        *args,
    )
    deciders = await _deciders([row["id"] for row in rows]) if rows else {}
    return [_decided(row, deciders.get(row["id"], [])) for row in rows]


async def read(caller_id: UUID, request_id: UUID) -> asyncpg.Record:
    """One request of the caller's own, or one that it may decide or has decided. Raises ReadRequestNotFound."""
    row = await database.fetchrow(
        f"SELECT {_COLUMNS} FROM read_post_request r {_JOINS} JOIN posts p ON p.id = r.post JOIN {_MEMBERSHIP}"
        f' WHERE r.id = $2 AND (r."user" = $1 OR r.decided_by = $1 OR {MAY_DECIDE})',
        *(caller_id, request_id),
    )
    if row is None:
        raise ReadRequestNotFound
    return row


async def list_to_decide(caller_id: UUID, status: Status | None, page: Page) -> list[asyncpg.Record]:
    """One row more than the page, of the requests that the caller may decide or has decided."""
    # OFFSET 0, for the planner would rather read through all posts once than look up that of each request.
    return await database.fetch(
        f"""
        SELECT {_COLUMNS} FROM user_group_association mine CROSS JOIN LATERAL (
            SELECT r.* FROM read_post_request r
            CROSS JOIN LATERAL (SELECT id, author FROM posts WHERE id = r.post OFFSET 0) p
            WHERE r."group" = mine."group" AND (r.created_at, r.id) < ($2, $3) AND {_has_status(status)}
            AND (r.decided_by = $1 OR {MAY_DECIDE})
            ORDER BY r.created_at DESC, r.id DESC LIMIT $4
        ) r {_JOINS} WHERE mine."user" = $1 ORDER BY r.created_at DESC, r.id DESC LIMIT $4
        """,
        *(caller_id, page.created_before, page.id_before, page.limit + 1),
    )


async def list_own(caller_id: UUID, status: Status | None, page: Page) -> list[asyncpg.Record]:
    """One row more than the page, of the caller's own requests in the groups that it is still in."""
    return await database.fetch(
        f"""
        SELECT {_COLUMNS} FROM read_post_request r {_JOINS}
        WHERE r."user" = $1 AND (r.created_at, r.id) < ($2, $3) AND {_has_status(status)} AND {_IS_MEMBER}
        ORDER BY r.created_at DESC, r.id DESC LIMIT $4
        """,
        *(caller_id, page.created_before, page.id_before, page.limit + 1),
    )


def _has_status(status: Status | None) -> str:
    # Spelled out, not a parameter: only so can the index of the pending ones be used.
    return f"r.status = '{status}'" if status else "TRUE"


async def list_decided_since(requester_id: UUID, since: datetime, limit: int) -> list[asyncpg.Record]:
    """What became of the caller's own requests since about then, oldest first."""
    return await database.fetch(
        f"SELECT {_COLUMNS} FROM read_post_request r {_JOINS}"
        f" WHERE r.\"user\" = $1 AND r.status <> 'pending' AND r.decided_at >= $2 AND {_IS_MEMBER}"
        " ORDER BY r.decided_at, r.id LIMIT $3",
        *(requester_id, since - REPLAY_MARGIN, limit),
    )
