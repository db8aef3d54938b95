"""The public keys that posts are sealed to.

A change of a user's keys locks the user and then all its groups, so that no sealing in one of them
reads the members' keys half before and half after the change.
"""

from typing import NamedTuple
from uuid import UUID

import asyncpg

from server import audit, database, events, recipients, requests
from server.errors import BadProof, Invalid, InvalidKey, KeyNotFound, KeyTaken, Unauthenticated, UserNotFound
from server.events import Event
from server.lists import Page
from server.sealing import errors as sealing_errors
from server.sealing import keys as sealing_keys
from server.settings import Settings

COLUMNS = (
    'k.id, k."user" AS user_id, k.public_key, k.verify_key, k.proof, k.endorsed_by, k.endorsement, k.label,'
    " k.created_at, k.revoked_at"
)


class Endorsement(NamedTuple):
    endorsed_by: UUID
    """Another active key of the same user."""
    signature: bytes


async def lock(user_id: UUID) -> bool:
    """For a change of the user's keys: its row FOR UPDATE, then all its groups. Whether there is still such a user."""
    if not await database.fetchval("SELECT TRUE FROM users WHERE id = $1 FOR UPDATE", user_id):
        return False
    await recipients.change_groups_of(user_id)
    return True


async def enrol(
    user_id: UUID,
    public_key: bytes,
    verify_key: bytes,
    proof: bytes,
    label: str,
    endorsement: Endorsement | None,
    settings: Settings,
) -> asyncpg.Record:
    """Raises InvalidKey, BadProof, Invalid (too many keys), KeyTaken."""
    try:
        sealing_keys.check_public_key(public_key)
    except sealing_errors.SealingError:
        raise InvalidKey(("/public_key", "is not 32 bytes of a canonical point of high order")) from None
    try:
        sealing_keys.check_proof(user_id, public_key, verify_key, proof)
    except sealing_errors.SealingError:
        raise BadProof(("/proof", "is not verify_key's signature over this user, public_key and verify_key")) from None
    async with database.transaction():
        if not await lock(user_id):
            raise Unauthenticated
        if endorsement:
            await _check_endorsement(user_id, public_key, verify_key, endorsement)
        taken, active = await _count(user_id, public_key)
        if not taken and active >= settings.max_keys_per_user:
            raise Invalid(("/public_key", f"is one too many: {settings.max_keys_per_user} keys may be active"))
        row = None if taken else await _insert(user_id, public_key, verify_key, proof, label, endorsement)
        if row is None:
            raise KeyTaken
        await audit.record("key.enrolled", actor=user_id, user=user_id, key_id=row["id"])
        return row


async def _check_endorsement(user_id: UUID, public_key: bytes, verify_key: bytes, endorsement: Endorsement) -> None:
    endorser = await database.fetchval(
        'SELECT verify_key FROM user_keys WHERE id = $1 AND "user" = $2 AND NOT is_revoked',
        *(endorsement.endorsed_by, user_id),
    )
    if endorser is None:
        raise BadProof(("/endorsed_by", "is no active key of yours"))
    try:
        sealing_keys.check_endorsement(user_id, public_key, verify_key, endorser, endorsement.signature)
    except sealing_errors.SealingError:
        raise BadProof(("/endorsement", "is not the endorsing key's signature over this key")) from None


async def _count(user_id: UUID, public_key: bytes) -> tuple[bool, int]:
    row = await database.fetchrow(
        "SELECT coalesce(bool_or(public_key = $2), FALSE), count(*) FILTER (WHERE NOT is_revoked)"
        ' FROM user_keys WHERE "user" = $1',
        *(user_id, public_key),
    )
    return (row[0], row[1]) if row else (False, 0)


async def _insert(
    user_id: UUID, public_key: bytes, verify_key: bytes, proof: bytes, label: str, endorsement: Endorsement | None
) -> asyncpg.Record | None:
    return await database.fetchrow(
        'INSERT INTO user_keys AS k ("user", public_key, verify_key, proof, label, endorsed_by, endorsement)'
        f" VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {COLUMNS}",
        *(user_id, public_key, verify_key, proof, label),
        *(endorsement or (None, None)),
    )


async def list_own(user_id: UUID, page: Page) -> list[asyncpg.Record]:
    """One row more than the page, revoked keys too."""
    return await database.fetch(
        f'SELECT {COLUMNS} FROM user_keys k WHERE k."user" = $1 AND (k.created_at, k.id) < ($2, $3)'
        " ORDER BY k.created_at DESC, k.id DESC LIMIT $4",
        *(user_id, page.created_before, page.id_before, page.limit + 1),
    )


async def revoke(user_id: UUID, key_id: UUID) -> list[Event]:
    """From this commit on nothing is sealed to the key and nothing that only it opens is served. Idempotent."""
    async with database.transaction():
        if not await lock(user_id):
            raise Unauthenticated
        revoked = await database.fetchval(
            # The time after the locks, not that of this transaction's begin: what the key signed or endorsed while this
            # was waiting for them came before.
            "UPDATE user_keys SET is_revoked = TRUE, revoked_at = clock_timestamp()"
            ' WHERE id = $1 AND "user" = $2 AND NOT is_revoked RETURNING id',
            *(key_id, user_id),
        )
        if revoked is None:
            if not await database.fetchval('SELECT TRUE FROM user_keys WHERE id = $1 AND "user" = $2', key_id, user_id):
                raise KeyNotFound
            return []
        await audit.record("key.revoked", actor=user_id, user=user_id, key_id=key_id)
        return await events.record(*await requests.cancel_of_key(key_id))


async def list_of_user(caller_id: UUID, user_id: UUID) -> tuple[str, list[asyncpg.Record]]:
    """Name and keys, revoked ones too, of somebody whom the caller has to do with. Raises UserNotFound."""
    name = await database.fetchval(
        "SELECT u.name FROM users u WHERE u.id = $2 AND (u.id = $1"
        # members of the caller's groups
        ' OR EXISTS (SELECT 1 FROM user_group_association mine JOIN user_group_association theirs USING ("group")'
        ' WHERE mine."user" = $1 AND theirs."user" = $2)'
        # authors of posts, and those who ask to read one, in the caller's groups
        ' OR EXISTS (SELECT 1 FROM posts p JOIN user_group_association mine USING ("group")'
        ' WHERE p.author = $2 AND mine."user" = $1)'
        ' OR EXISTS (SELECT 1 FROM read_post_request r JOIN user_group_association mine ON mine."group" = r."group"'
        ' JOIN posts p ON p.id = r.post WHERE r."user" = $2 AND mine."user" = $1'
        f" AND (r.decided_by = $1 OR {requests.MAY_DECIDE})))",
        *(caller_id, user_id),
    )
    if name is None:
        raise UserNotFound
    return name, await database.fetch(
        f'SELECT {COLUMNS} FROM user_keys k WHERE k."user" = $1 ORDER BY k.created_at DESC, k.id DESC', user_id
    )
