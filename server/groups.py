"""Groups and their members. A group always has an owner.

Who is no member is told that there is no such group.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal
from uuid import UUID

import asyncpg
import msgspec
import uuid_utils.compat

from server import accounts, audit, database, events, keys, recipients, requests
from server.errors import (
    AlreadyMember,
    GroupNotFound,
    IdTaken,
    Invalid,
    LastOwner,
    MemberNotFound,
    NotOwner,
    Unauthenticated,
    UserNotFound,
)
from server.events import Event
from server.lists import Page
from server.sealing import digests
from server.settings import Settings

Role = Literal["owner", "member"]

_COLUMNS = "g.id, g.name, m.role, g.created_by, g.created_at"
_MEMBER_COLUMNS = 'm.id, m."user" AS user_id, u.name, m.role, m.created_at, u.email'


async def create(
    creator_id: UUID, name: str, group_id: UUID | None, mac_key: bytes, settings: Settings
) -> tuple[asyncpg.Record, bool, list[Event]]:
    """The group, whether it is new, and what to announce. Raises IdTaken, Invalid (too many groups)."""
    mac = digests.request_mac(mac_key, msgspec.json.encode(["group", creator_id, name]))
    group_id = group_id or uuid_utils.compat.uuid7()
    async with database.transaction():
        if not await database.fetchval("SELECT TRUE FROM users WHERE id = $1 FOR SHARE", creator_id):
            raise Unauthenticated
        new = await database.fetchval(
            "INSERT INTO user_groups (id, name, created_by, request_mac) SELECT $1, $2, $3, $4"
            " WHERE NOT EXISTS (SELECT 1 FROM deleted_ids WHERE id = $1) ON CONFLICT (id) DO NOTHING RETURNING id",
            *(group_id, name, creator_id, mac),
        )
        if new is None:
            return await _created_before(creator_id, group_id, mac), False, []
        await _check_room_for_user(creator_id, settings)
        await database.execute(
            'INSERT INTO user_group_association ("user", "group", role) VALUES ($1, $2, \'owner\')',
            *(creator_id, group_id),
        )
        await audit.record("group.created", actor=creator_id, group=group_id)
        added = events.event(
            "group.member_added", [events.user_channel(creator_id)], group_id=group_id, user_id=creator_id
        )
        return await read(creator_id, group_id), True, await events.record(added)


async def _created_before(creator_id: UUID, group_id: UUID, mac: bytes) -> asyncpg.Record:
    same = await database.fetchval(
        "SELECT request_mac = $2 FROM user_groups WHERE id = $1 AND created_by = $3", group_id, mac, creator_id
    )
    if not same:
        raise IdTaken
    try:
        return await read(creator_id, group_id)
    except GroupNotFound:
        raise IdTaken from None


async def _check_room_for_user(user_id: UUID, settings: Settings) -> None:
    groups = await database.fetchval('SELECT count(*) FROM user_group_association WHERE "user" = $1', user_id)
    if groups >= settings.max_groups_per_user:
        raise Invalid(("", f"nobody may be in more than {settings.max_groups_per_user} groups"))


async def read(caller_id: UUID, group_id: UUID) -> asyncpg.Record:
    row = await database.fetchrow(
        f'SELECT {_COLUMNS} FROM user_groups g JOIN user_group_association m ON m."group" = g.id AND m."user" = $1'
        " WHERE g.id = $2",
        *(caller_id, group_id),
    )
    if row is None:
        raise GroupNotFound
    return row


async def list_own(caller_id: UUID, page: Page) -> list[asyncpg.Record]:
    """One row more than the page."""
    return await database.fetch(
        f'SELECT {_COLUMNS} FROM user_groups g JOIN user_group_association m ON m."group" = g.id'
        ' WHERE m."user" = $1 AND (g.created_at, g.id) < ($2, $3) ORDER BY g.created_at DESC, g.id DESC LIMIT $4',
        *(caller_id, page.created_before, page.id_before, page.limit + 1),
    )


async def ids_of_member(user_id: UUID) -> list[UUID]:
    rows = await database.fetch('SELECT "group" FROM user_group_association WHERE "user" = $1', user_id)
    return [row["group"] for row in rows]


async def memberships(user_ids: Sequence[UUID]) -> dict[UUID, set[UUID]]:
    """The groups of each of the given users."""
    rows = await database.fetch(
        'SELECT "user", "group" FROM user_group_association WHERE "user" = ANY($1)', list(user_ids)
    )
    groups: dict[UUID, set[UUID]] = {user_id: set() for user_id in user_ids}
    for row in rows:
        groups[row["user"]].add(row["group"])
    return groups


async def who_has_moved(known: Mapping[UUID, Collection[UUID]]) -> set[UUID]:
    """Those of the given users who are in other groups than the given ones."""
    pairs = [(user_id, group_id) for user_id, group_ids in known.items() for group_id in group_ids]
    rows = await database.fetch(
        'SELECT COALESCE(known."user", now."user") AS id FROM unnest($2::uuid[], $3::uuid[]) AS known ("user", "group")'
        ' FULL JOIN (SELECT "user", "group" FROM user_group_association WHERE "user" = ANY($1)) AS now'
        ' ON now."user" = known."user" AND now."group" = known."group"'
        ' WHERE known."user" IS NULL OR now."user" IS NULL',
        *(list(known), [user_id for user_id, _ in pairs], [group_id for _, group_id in pairs]),
    )
    return {row["id"] for row in rows}


async def check_owner(caller_id: UUID, group_id: UUID) -> None:
    """Raises GroupNotFound, NotOwner."""
    if (await read(caller_id, group_id))["role"] != "owner":
        raise NotOwner


async def _lock(caller_id: UUID, group_id: UUID) -> None:
    """For a change of its members; a stranger, who is told that the group is absent, locks nothing."""
    await read(caller_id, group_id)
    await recipients.change_group(group_id)


async def rename(caller_id: UUID, group_id: UUID, name: str) -> asyncpg.Record:
    async with database.transaction():
        await _lock(caller_id, group_id)
        await check_owner(caller_id, group_id)
        await database.execute("UPDATE user_groups SET name = $2 WHERE id = $1", group_id, name)
        await audit.record("group.renamed", actor=caller_id, group=group_id)
        return await read(caller_id, group_id)


async def delete(caller_id: UUID, group_id: UUID) -> list[Event]:
    """The group and all that is in it."""
    async with database.transaction():
        await read(caller_id, group_id)
        # What a change of members does not wait for, a deletion does: a sealing of a post for many.
        await database.execute("SELECT 1 FROM user_groups WHERE id = $1 FOR UPDATE", group_id)
        await check_owner(caller_id, group_id)
        cancelled = await requests.cancel_of_group(group_id)
        await database.execute("DELETE FROM user_groups WHERE id = $1", group_id)
        await audit.record("group.deleted", actor=caller_id, group=group_id)
        return await events.record(*cancelled)


async def list_members(caller_id: UUID, group_id: UUID, page: Page) -> list[asyncpg.Record]:
    """One row more than the page; `email` only where the caller is an owner, and its own."""
    own = await read(caller_id, group_id)
    return await database.fetch(
        'SELECT m.id, m."user" AS user_id, u.name, m.role, m.created_at,'
        ' CASE WHEN $5 OR m."user" = $6 THEN u.email END AS email'
        ' FROM user_group_association m JOIN users u ON u.id = m."user" WHERE m."group" = $1'
        " AND (m.created_at, m.id) < ($2, $3) ORDER BY m.created_at DESC, m.id DESC LIMIT $4",
        *(group_id, page.created_before, page.id_before, page.limit + 1, own["role"] == "owner", caller_id),
    )


async def list_keys(caller_id: UUID, group_id: UUID) -> list[asyncpg.Record]:
    """The active keys of all members, in one snapshot."""
    await read(caller_id, group_id)
    return await active_keys(group_id)


async def active_keys(group_id: UUID) -> list[asyncpg.Record]:
    return await database.fetch(
        f'SELECT {keys.COLUMNS} FROM user_group_association m JOIN users u ON u.id = m."user" AND u.disabled_at IS NULL'
        ' JOIN user_keys k ON k."user" = m."user" AND NOT k.is_revoked WHERE m."group" = $1 ORDER BY k.id',
        group_id,
    )


async def add_member(
    caller_id: UUID, group_id: UUID, user_id: UUID | None, email: str | None, role: Role, settings: Settings
) -> tuple[asyncpg.Record, list[Event]]:
    """By id or by email. Raises GroupNotFound, NotOwner, UserNotFound, Invalid (no room), AlreadyMember."""
    async with database.transaction():
        await check_owner(caller_id, group_id)
        found = await _lock_user(user_id, email)
        await _lock(caller_id, group_id)
        await check_owner(caller_id, group_id)
        row = await database.fetchrow(
            'INSERT INTO user_group_association AS m ("user", "group", role) VALUES ($1, $2, $3)'
            ' ON CONFLICT ("user", "group") DO NOTHING RETURNING id',
            *(found, group_id, role),
        )
        if row is None:
            raise AlreadyMember
        await _check_room(found, group_id, settings)
        await audit.record("member.added", actor=caller_id, group=group_id, user=found, role=role)
        added = events.event(
            "group.member_added",
            [events.group_channel(group_id), events.user_channel(found)],
            group_id=group_id,
            user_id=found,
        )
        return await _member(group_id, found), await events.record(added)


async def _lock_user(user_id: UUID | None, email: str | None) -> UUID:
    found: UUID | None = await database.fetchval(
        "SELECT id FROM users WHERE disabled_at IS NULL AND (id = $1 OR email_key = $2) FOR SHARE",
        *(user_id, accounts.email_key(email) if email is not None else None),
    )
    if found is None:
        raise UserNotFound
    return found


async def _check_room(user_id: UUID, group_id: UUID, settings: Settings) -> None:
    row = await database.fetchrow(
        'SELECT (SELECT count(*) FROM user_group_association WHERE "group" = $2) > $3 AS group_is_full,'
        ' (SELECT count(*) FROM user_group_association WHERE "user" = $1) > $4 AS user_is_full',
        *(user_id, group_id, settings.max_members_per_group, settings.max_groups_per_user),
    )
    if row and row["group_is_full"]:
        raise Invalid(("", f"a group has at most {settings.max_members_per_group} members"))
    if row and row["user_is_full"]:
        raise Invalid(("", f"nobody may be in more than {settings.max_groups_per_user} groups"))


async def _member(group_id: UUID, user_id: UUID) -> asyncpg.Record:
    row = await database.fetchrow(
        f'SELECT {_MEMBER_COLUMNS} FROM user_group_association m JOIN users u ON u.id = m."user"'
        ' WHERE m."group" = $1 AND m."user" = $2',
        *(group_id, user_id),
    )
    if row is None:
        raise MemberNotFound
    return row


async def change_role(caller_id: UUID, group_id: UUID, user_id: UUID, role: Role) -> asyncpg.Record:
    """Raises GroupNotFound, NotOwner, MemberNotFound, LastOwner."""
    async with database.transaction():
        await database.execute("SELECT 1 FROM users WHERE id = $1 FOR SHARE", user_id)
        await _lock(caller_id, group_id)
        await check_owner(caller_id, group_id)
        member = await _member(group_id, user_id)
        if member["role"] == "owner" and role != "owner":
            await _check_not_last_owner(group_id)
        await database.execute(
            'UPDATE user_group_association SET role = $3 WHERE "group" = $1 AND "user" = $2', group_id, user_id, role
        )
        if member["role"] != role:
            await audit.record("member.role_changed", actor=caller_id, group=group_id, user=user_id, role=role)
        return await _member(group_id, user_id)


async def remove_member(caller_id: UUID, group_id: UUID, user_id: UUID) -> list[Event]:
    """An owner removes anyone, anyone leaves. Raises GroupNotFound, NotOwner, MemberNotFound, LastOwner."""
    async with database.transaction():
        await database.execute("SELECT 1 FROM users WHERE id = $1 FOR SHARE", user_id)
        await _lock(caller_id, group_id)
        if caller_id != user_id:
            await check_owner(caller_id, group_id)
        member = await _member(group_id, user_id)
        if member["role"] == "owner":
            await _check_not_last_owner(group_id)
        await database.execute(
            'DELETE FROM user_group_association WHERE "group" = $1 AND "user" = $2', group_id, user_id
        )
        await audit.record("member.removed", actor=caller_id, group=group_id, user=user_id)
        cancelled = await requests.cancel_of_member(group_id, user_id)
        return await events.record(events.member_removed(group_id, user_id), *cancelled)


async def _check_not_last_owner(group_id: UUID) -> None:
    owners = await database.fetchval(
        "SELECT count(*) FROM user_group_association WHERE \"group\" = $1 AND role = 'owner'", group_id
    )
    if owners <= 1:
        raise LastOwner
