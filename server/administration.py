"""What administrators do with accounts. They read no posts by it, and reset no passwords.

The first one is made on the machine itself, and there can always be another: so the last one may go too. Who made
something is told as `actor`, None for somebody at the machine.
"""

from uuid import UUID

import asyncpg

from server import accounts, audit, credentials, database, events, keys, requests
from server.credentials import Caller
from server.errors import NotAdmin, OwnAccount, UserNotFound
from server.events import Event
from server.lists import Page

COLUMNS = "id, name, email, issuer, subject, claimed_email, is_admin, created_at, disabled_at"


def check_admin(caller: Caller) -> None:
    """Raises SessionRequired, NotAdmin. An API key, which lies about in files, is not to shut accounts."""
    credentials.check_session_or_jwt(caller)
    if not caller.is_admin:
        raise NotAdmin


async def list_users(page: Page, email: str | None = None) -> list[asyncpg.Record]:
    """One row more than the page, of all users, newest first; with `email` the one of this address, if there is one."""
    if email is not None:
        return await database.fetch(
            f"SELECT {COLUMNS} FROM users WHERE email_key = $1 AND id < $2", accounts.email_key(email), page.id_before
        )
    # Ids are the server's own and rise with time.
    return await database.fetch(
        f"SELECT {COLUMNS} FROM users WHERE id < $1 ORDER BY id DESC LIMIT $2", page.id_before, page.limit + 1
    )


async def list_admins() -> list[asyncpg.Record]:
    return await database.fetch(f"SELECT {COLUMNS} FROM users WHERE is_admin ORDER BY id")


async def is_admin(user_id: UUID) -> bool:
    """Whether an open account of this id is an administrator's."""
    found: bool | None = await database.fetchval(
        "SELECT is_admin FROM users WHERE id = $1 AND disabled_at IS NULL", user_id
    )
    return bool(found)


async def find(email_or_id: str) -> UUID:
    """Raises UserNotFound."""
    try:
        user_id = UUID(email_or_id)
    except ValueError:
        user_id = None
    found: UUID | None = await database.fetchval(
        "SELECT id FROM users WHERE id = $1 OR email_key = $2", user_id, accounts.email_key(email_or_id)
    )
    if found is None:
        raise UserNotFound
    return found


async def grant(actor: UUID | None, user_id: UUID) -> asyncpg.Record:
    return await _set_admin(actor, user_id, True)


async def revoke(actor: UUID | None, user_id: UUID) -> asyncpg.Record:
    return await _set_admin(actor, user_id, False)


async def _set_admin(actor: UUID | None, user_id: UUID, is_admin: bool) -> asyncpg.Record:
    async with database.transaction():
        changed = await database.fetchval(
            "UPDATE users SET is_admin = $2 WHERE id = $1 AND is_admin <> $2 RETURNING id", user_id, is_admin
        )
        if changed:
            await audit.record("admin.granted" if is_admin else "admin.revoked", actor=actor, user=user_id)
        return await _read(user_id)


async def _read(user_id: UUID) -> asyncpg.Record:
    row = await database.fetchrow(f"SELECT {COLUMNS} FROM users WHERE id = $1", user_id)
    if row is None:
        raise UserNotFound
    return row


async def disable(actor: UUID | None, user_id: UUID) -> tuple[asyncpg.Record, list[Event]]:
    """Shut the account: from this commit on nothing is sealed or served to it. What it wrote and its roles stay.

    All its tokens are revoked for good and its pending requests cancelled. Raises OwnAccount, UserNotFound.
    """
    if actor == user_id:
        raise OwnAccount
    async with database.transaction():
        # As for a change of its keys: no sealing in one of its groups sees half of it.
        if not await keys.lock(user_id):
            raise UserNotFound
        changed = await database.fetchval(
            "UPDATE users SET disabled_at = clock_timestamp() WHERE id = $1 AND disabled_at IS NULL RETURNING id",
            user_id,
        )
        if not changed:
            return await _read(user_id), []
        await database.execute(
            'UPDATE user_tokens SET revoked_at = now() WHERE "user" = $1 AND revoked_at IS NULL', user_id
        )
        cancelled = await requests.cancel_of_requester(user_id)
        await audit.record("account.disabled", actor=actor, user=user_id)
        return await _read(user_id), await events.record(*cancelled)


async def enable(actor: UUID | None, user_id: UUID) -> asyncpg.Record:
    """The account may log in again; no token and no request is revived. Raises UserNotFound."""
    async with database.transaction():
        if not await keys.lock(user_id):
            raise UserNotFound
        changed = await database.fetchval(
            "UPDATE users SET disabled_at = NULL WHERE id = $1 AND disabled_at IS NOT NULL RETURNING id", user_id
        )
        if changed:
            await audit.record("account.enabled", actor=actor, user=user_id)
        return await _read(user_id)
