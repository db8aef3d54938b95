"""Users and the credentials that stand for them."""

import asyncio
import os
import secrets
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from server import database
from server.errors import (
    EmailTaken,
    Invalid,
    InvalidField,
    SessionRequired,
    TokenExpired,
    Unauthenticated,
    WrongPassword,
)
from server.sealing import digests, passwords
from server.settings import Settings

SESSION_PREFIX = "sbs_"

# Argon2id takes 64 MiB a run: as many at once as there are cores, the others wait their turn.
_HASHING = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="argon2")

# For the login of an unknown email, so that it does the same work as any other.
_NOBODYS_PASSWORD = passwords.hash_of_nothing()


class Caller(NamedTuple):
    """Who is asking, and with which credential."""

    user_id: UUID
    name: str
    email: str | None
    is_admin: bool
    created_at: datetime
    credential_id: UUID
    kind: str
    """`session` or `api_key`."""


class NewToken(NamedTuple):
    token: str
    """Shown once, never stored."""
    expires: datetime


def email_key(email: str) -> str:
    """What makes an email address unique: NFC(casefold(NFC(trimmed)))."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", email.strip()).casefold())


def check_email(email: str, settings: Settings) -> str:
    """The address without white space around it. Whether mail arrives there is never tried."""
    email = email.strip()
    local, at, domain = email.rpartition("@")
    printable = email.isprintable() and not any(character.isspace() for character in email)
    if not (local and at and domain and printable):
        raise Invalid(("/email", "is not an email address"))
    if max(len(email), len(email_key(email))) > settings.max_email_characters:
        raise Invalid(("/email", f"is longer than {settings.max_email_characters} characters"))
    return email


def check_password(password: str, settings: Settings) -> None:
    """Of an old password nothing is asked but that it is right; this is for new ones."""
    if len(password) < settings.min_password_characters:
        raise Invalid(("/password", f"is under {settings.min_password_characters} characters"))


async def _hash(password: str) -> str:
    return await asyncio.get_running_loop().run_in_executor(_HASHING, passwords.hash_password, password)


async def _matches(hashed: str, password: str) -> bool:
    return await asyncio.get_running_loop().run_in_executor(_HASHING, passwords.check_password, hashed, password)


async def sign_up(name: str, email: str, password: str, settings: Settings) -> tuple[Caller, NewToken]:
    email = check_email(email, settings)
    check_password(password, settings)
    key = email_key(email)
    if await database.fetchval("SELECT TRUE FROM users WHERE email_key = $1", key):
        raise EmailTaken
    hashed = await _hash(password)
    async with database.transaction():
        row = await database.fetchrow(
            "INSERT INTO users (name, email, email_key, password) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (email_key) DO NOTHING RETURNING id, name, email, is_admin, created_at",
            *(name, email, key, hashed),
        )
        if row is None:
            raise EmailTaken
        return await _open_session(row, settings)


async def log_in(email: str, password: str, settings: Settings) -> tuple[Caller, NewToken]:
    """Raises Unauthenticated, after one run of Argon2id in any case."""
    row = await database.fetchrow(
        "SELECT id, name, email, is_admin, created_at, password FROM users"
        " WHERE email_key = $1 AND disabled_at IS NULL",
        email_key(email),
    )
    matches = await _matches(row["password"] if row else _NOBODYS_PASSWORD, password)
    if row is None or not matches:
        raise Unauthenticated
    async with database.transaction():
        # Another password since, a disabled or deleted account: this login is of the past.
        still = await database.fetchval(
            "SELECT TRUE FROM users WHERE id = $1 AND password = $2 AND disabled_at IS NULL FOR NO KEY UPDATE",
            *(row["id"], row["password"]),
        )
        if not still:
            raise Unauthenticated
        return await _open_session(row, settings)


async def _open_session(user: asyncpg.Record, settings: Settings) -> tuple[Caller, NewToken]:
    """The user's row is locked by the caller, so that logins at once are counted one after the other."""
    # The oldest sessions make room: who logs in again and again must never lock itself out.
    await database.execute(
        "DELETE FROM user_tokens WHERE id IN (SELECT id FROM user_tokens WHERE \"user\" = $1 AND kind = 'session'"
        " AND revoked_at IS NULL ORDER BY created_at DESC, id DESC OFFSET $2)",
        *(user["id"], settings.max_tokens_per_user - 1),
    )
    token = SESSION_PREFIX + secrets.token_urlsafe(32)
    [(session_id, expires)] = await database.fetch(
        'INSERT INTO user_tokens ("user", token_hash, kind, scopes, expires)'
        " VALUES ($1, $2, 'session', '{}', now() + make_interval(days => $3)) RETURNING id, expires",
        *(user["id"], digests.token_hash(token), settings.session_days),
    )
    return _caller(user, session_id, "session"), NewToken(token, expires)


def _caller(user: asyncpg.Record, credential_id: UUID, kind: str) -> Caller:
    return Caller(user["id"], user["name"], user["email"], user["is_admin"], user["created_at"], credential_id, kind)


async def authenticate(token: str) -> Caller:
    """Whose token this is. Raises Unauthenticated, or TokenExpired."""
    row = await database.fetchrow(
        "SELECT u.id AS user_id, u.name, u.email, u.is_admin, u.created_at, t.id AS credential_id, t.kind,"
        ' t.expires <= now() AS has_expired FROM user_tokens t JOIN users u ON u.id = t."user"'
        " WHERE t.token_hash = $1 AND t.revoked_at IS NULL AND u.disabled_at IS NULL",
        digests.token_hash(token),
    )
    if row is None:
        raise Unauthenticated
    *caller, has_expired = row
    if has_expired:
        raise TokenExpired
    return Caller(*caller)


async def read_credential(credential_id: UUID) -> Caller | None:
    """Who a credential that was checked before stands for, if it still does."""
    row = await database.fetchrow(
        "SELECT u.id AS user_id, u.name, u.email, u.is_admin, u.created_at, t.id AS credential_id, t.kind"
        ' FROM user_tokens t JOIN users u ON u.id = t."user" WHERE t.id = $1 AND t.revoked_at IS NULL'
        " AND u.disabled_at IS NULL AND (t.expires IS NULL OR t.expires > now())",
        credential_id,
    )
    return Caller(*row) if row else None


async def live_credentials(credential_ids: list[UUID]) -> set[UUID]:
    """Those of the given credentials that still stand for somebody."""
    rows = await database.fetch(
        'SELECT t.id FROM user_tokens t JOIN users u ON u.id = t."user" WHERE t.id = ANY($1)'
        " AND t.revoked_at IS NULL AND u.disabled_at IS NULL AND (t.expires IS NULL OR t.expires > now())",
        credential_ids,
    )
    return {row["id"] for row in rows}


def check_session(caller: Caller) -> None:
    """Raises SessionRequired: an account is not changed with an API key."""
    if caller.kind != "session":
        raise SessionRequired


async def log_out(credential_id: UUID) -> None:
    await database.execute("UPDATE user_tokens SET revoked_at = now() WHERE id = $1", credential_id)


async def update(
    caller: Caller,
    settings: Settings,
    name: str | None = None,
    email: str | None = None,
    password: str | None = None,
    current_password: str | None = None,
) -> Caller:
    """Change one's own account. A new password ends all other sessions and API keys."""
    check_session(caller)
    if email is not None:
        email = check_email(email, settings)
    if password is not None:
        check_password(password, settings)
    old_hash = new_hash = None
    if email is not None or password is not None:
        old_hash = await _check_current_password(caller.user_id, current_password)
    if password is not None:
        new_hash = await _hash(password)
    async with database.transaction():
        try:
            row = await database.fetchrow(
                "UPDATE users SET name = coalesce($2, name), email = coalesce($3, email),"
                " email_key = coalesce($4, email_key), password = coalesce($5, password)"
                " WHERE id = $1 AND disabled_at IS NULL AND ($6::text IS NULL OR password = $6)"
                " RETURNING id, name, email, is_admin, created_at",
                *(caller.user_id, name, email, email_key(email) if email else None, new_hash, old_hash),
            )
        except asyncpg.UniqueViolationError:
            raise EmailTaken from None
        if row is None:
            # The password that was checked is none any more; the account may be gone with it.
            raise WrongPassword if old_hash else Unauthenticated
        if new_hash:
            await database.execute(
                'UPDATE user_tokens SET revoked_at = now() WHERE "user" = $1 AND id <> $2 AND revoked_at IS NULL',
                *(caller.user_id, caller.credential_id),
            )
    return _caller(row, caller.credential_id, caller.kind)


async def _check_current_password(user_id: UUID, password: str | None) -> str:
    """The hash that it matches."""
    if password is None:
        raise Invalid(InvalidField("/current_password", "is needed to change email or password"))
    hashed: str | None = await database.fetchval("SELECT password FROM users WHERE id = $1", user_id)
    if not hashed or not await _matches(hashed, password):
        raise WrongPassword
    return hashed


async def expire_tokens() -> int:
    """Drop tokens that ended over a month ago; until then they answer `token_expired`. How many went."""
    tag = await database.execute(
        "DELETE FROM user_tokens WHERE expires < now() - interval '30 days' OR revoked_at < now() - interval '30 days'"
    )
    return int(tag.split()[-1])


async def grant_admin(email: str) -> UUID | None:
    """The user with this email becomes an administrator; None if there is none."""
    found: UUID | None = await database.fetchval(
        "UPDATE users SET is_admin = TRUE WHERE email_key = $1 RETURNING id", email_key(email)
    )
    return found
