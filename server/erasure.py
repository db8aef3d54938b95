"""Deleting one's own account: after this no row names the user, but for the bare id in the audit log.

Posts, keys, tokens and requests go with their user, and the groups of which it is the only member; of a group of others
it must not be the last owner. Backups keep what they have.
"""

from uuid import UUID

import asyncpg

from server import accounts, audit, credentials, database, events, posts, recipients, requests
from server.credentials import Caller
from server.errors import LastOwner, Unauthenticated, WrongPassword
from server.events import Event

# Every group in which a row that goes or changes with the user lives. Who writes such rows holds the group's lock, so
# nobody meets this halfway.
_GROUPS = """
    SELECT "group" FROM user_group_association WHERE "user" = $1
    UNION SELECT id FROM user_groups WHERE created_by = $1
    UNION SELECT "group" FROM posts WHERE author = $1
    UNION SELECT "group" FROM read_post_request WHERE "user" = $1 OR decided_by = $1
    UNION SELECT (SELECT "group" FROM posts WHERE id = k.post) FROM post_keys k
        WHERE k.granted_by = $1 OR k.public_key = ANY(ARRAY(SELECT id FROM user_keys WHERE "user" = $1))
"""


async def erase(caller: Caller, password: str | None) -> list[Event]:
    """Delete the caller's account; what to announce. A user of an issuer has no password: None.

    Raises WrongPassword, Unauthenticated (it is gone already), LastOwner with `group_ids`.
    """
    hashed = await accounts.matching_hash(caller.user_id, password) if password is not None else None
    async with database.transaction():
        user = await database.fetchrow(
            "SELECT password, issuer, subject FROM users WHERE id = $1 AND disabled_at IS NULL FOR UPDATE",
            caller.user_id,
        )
        if user is None:
            raise Unauthenticated
        if user["password"] != hashed:
            raise WrongPassword
        await database.execute(
            f"SELECT 1 FROM user_groups WHERE id IN ({_GROUPS}) ORDER BY id FOR UPDATE", caller.user_id
        )
        await recipients.change_groups_of(caller.user_id)
        left, emptied = await _groups(caller.user_id)
        if user["issuer"] is not None:
            await credentials.forget_identity(user["issuer"], user["subject"])
        announced = await _events(caller.user_id, left, emptied)
        # The posts first: what goes by cascades goes in an order of Postgres' own.
        await database.execute("DELETE FROM posts WHERE author = $1", caller.user_id)
        await database.execute("DELETE FROM user_groups WHERE id = ANY($1)", emptied)
        await database.execute("DELETE FROM users WHERE id = $1", caller.user_id)
        return await events.record(*announced)


async def _groups(user_id: UUID) -> tuple[list[UUID], list[UUID]]:
    """The user's groups that stay and those that nobody else is in. Raises LastOwner."""
    rows = await database.fetch(
        """
        SELECT m."group" AS id, m.role,
            EXISTS (SELECT 1 FROM user_group_association o
                WHERE o."group" = m."group" AND o."user" <> $1) AS has_others,
            EXISTS (SELECT 1 FROM user_group_association o
                WHERE o."group" = m."group" AND o."user" <> $1 AND o.role = 'owner') AS has_owners
        FROM user_group_association m WHERE m."user" = $1 ORDER BY m."group"
        """,
        user_id,
    )
    ownerless = [row["id"] for row in rows if row["role"] == "owner" and row["has_others"] and not row["has_owners"]]
    if ownerless:
        raise LastOwner(group_ids=ownerless)
    return [row["id"] for row in rows if row["has_others"]], [row["id"] for row in rows if not row["has_others"]]


async def _events(user_id: UUID, left: list[UUID], emptied: list[UUID]) -> list[Event]:
    """What is said of the deletion, on sockets and in the audit log, while everything is still there to be told of."""
    # Who may decide is asked of members, so this comes before anything goes.
    cancelled = [*await requests.cancel_of_requester(user_id), *await requests.cancel_of_author(user_id)]
    own_posts: list[asyncpg.Record] = await database.fetch(
        'SELECT id, "group" FROM posts WHERE author = $1 AND "group" <> ALL($2) ORDER BY id FOR UPDATE',
        *(user_id, emptied),
    )
    await audit.record("account.deleted", actor=user_id, user=user_id)
    for group_id in emptied:
        await audit.record("group.deleted", actor=user_id, group=group_id)
    for group_id in left:
        await audit.record("member.removed", actor=user_id, group=group_id, user=user_id)
    await audit.record_posts_deleted(user_id, [(post["id"], post["group"]) for post in own_posts])
    return [
        *cancelled,
        *(posts.deleted_event(post["id"], post["group"], user_id) for post in own_posts),
        *(events.member_removed(group_id, user_id) for group_id in left),
    ]
