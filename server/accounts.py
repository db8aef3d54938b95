"""Users: signing up, logging in, and changing one's own account."""

import asyncio
import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from server import audit, database
from server.credentials import Caller, NewToken, check_session, end_all_but, open_session
from server.errors import EmailTaken, Invalid, InvalidField, RateLimited, Unauthenticated, WrongPassword
from server.sealing import passwords
from server.settings import Settings

Result = TypeVar("Result")

# Argon2id takes 64 MiB a run: as many at once as there are cores, the others wait their turn.
_HASHING = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="argon2")

# As many as may be hashed or wait for it: more would wait longer than people do, and with each comes a body of its own.
MAX_HASHING = 500
HASHING_RETRY_S = 5
_hashing: set[asyncio.Future[Any]] = set()

# For the login of an unknown email, so that it does the same work as any other.
_NOBODYS_PASSWORD = passwords.hash_of_nothing()


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
    return await _in_turn(passwords.hash_password, password)


async def _matches(hashed: str, password: str) -> bool:
    return await _in_turn(passwords.check_password, hashed, password)


async def _in_turn(work: Callable[..., Result], *arguments: str) -> Result:
    """Raises RateLimited where too many wait already."""
    if len(_hashing) >= MAX_HASHING:
        raise RateLimited(name="hashing", limit=MAX_HASHING, window_s=1, retry_after_s=HASHING_RETRY_S)
    future = asyncio.get_running_loop().run_in_executor(_HASHING, work, *arguments)
    _hashing.add(future)
    future.add_done_callback(_hashing.discard)
    return await future


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
        await audit.record("account.created", actor=row["id"], user=row["id"])
        return await open_session(row, settings)


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
        return await open_session(row, settings)


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
        fields = [field for field, value in (("name", name), ("email", email)) if value is not None]
        if fields:
            await audit.record("account.changed", actor=caller.user_id, user=caller.user_id, fields=fields)
        if new_hash:
            await end_all_but(caller)
            await audit.record("password.changed", actor=caller.user_id, user=caller.user_id)
    changed = {name: row[name] for name in ("name", "email")}
    return caller._replace(**changed)


async def _check_current_password(user_id: UUID, password: str | None) -> str:
    if password is None:
        raise Invalid(InvalidField("/current_password", "is needed to change email or password"))
    return await matching_hash(user_id, password)


async def matching_hash(user_id: UUID, password: str) -> str:
    """The hash of the user's password, if it is this one. Raises WrongPassword, Unauthenticated (the user has gone)."""
    row = await database.fetchrow("SELECT password FROM users WHERE id = $1", user_id)
    if row is None:
        raise Unauthenticated
    hashed: str | None = row["password"]
    if not hashed or not await _matches(hashed, password):
        raise WrongPassword
    return hashed
