"""Credentials: what a request is sent with, and for whom it stands.

Sessions and API keys are rows of `user_tokens`, by the hash of a token that is never stored. A JWT is its issuer's:
of it there is only the user that it names, made at first sight.
"""

import secrets
import uuid
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from server import audit, database
from server.errors import (
    ApiKeyNotFound,
    Invalid,
    ScopeRequired,
    SessionNotFound,
    SessionRequired,
    TokenExpired,
    Unauthenticated,
)
from server.lists import Page
from server.sealing import digests
from server.settings import Settings

SESSION_PREFIX = "sbs_"
API_KEY_PREFIX = "sbk_"

READ = "read"
"""To see things, and to hear of them over a WebSocket."""
WRITE = "write"
"""Everything else."""
SCOPES = (READ, WRITE)

# The namespace of the ids that identities of an issuer have in `deleted_ids`.
IDENTITIES = UUID("5f0e8f0c-5d0c-4c7e-9d53-0a1b6c2e7f49")
# An issuer's clock and ours differ by so much at most.
LEEWAY = timedelta(seconds=30)
# Tokens that don't say when they were issued are refused for so long after their user was deleted.
UNDATED_REFUSED_FOR = timedelta(days=1)
DEFAULT_NAME = "Someone"

KEY_COLUMNS = "id, label, scopes, created_at, expires, last_used_at, revoked_at"

_CALLER = (
    "u.id AS user_id, u.name, u.email, u.is_admin, u.created_at, t.id AS credential_id, t.kind, t.scopes, t.expires"
)
_LIVE = "t.revoked_at IS NULL AND u.disabled_at IS NULL AND (t.expires IS NULL OR t.expires > now())"
# Written at most once a minute: it tells a forgotten key from one in use, and no more than that.
_USE_IS_OLD = "(t.last_used_at IS NULL OR t.last_used_at < now() - interval '1 minute')"


def stands(credential_id: str) -> str:
    """SQL: the session or API key of this id, a parameter, still stands for its user; true where that is null."""
    return (
        f'({credential_id}::uuid IS NULL OR EXISTS (SELECT 1 FROM user_tokens t JOIN users u ON u.id = t."user"'
        f" WHERE t.id = {credential_id} AND {_LIVE}))"
    )


class Claims(NamedTuple):
    """What a genuine JWT says; of it all, only `issuer` and `subject` tell who it is."""

    issuer: str
    subject: str
    expires: datetime
    not_before: datetime | None
    issued_at: datetime | None
    name: Any
    """As it stands in the token, if it does: of any type."""
    email: Any


class Caller(NamedTuple):
    """Who is asking, and with which credential."""

    user_id: UUID
    name: str
    email: str | None
    is_admin: bool
    created_at: datetime
    credential_id: UUID | None
    """None for a JWT: the issuer keeps it, not we."""
    kind: str
    """`session`, `api_key` or `jwt`."""
    scopes: tuple[str, ...]
    expires: datetime | None
    use_is_old: bool = False
    """Whether `note_use` has something to note."""


class NewToken(NamedTuple):
    token: str
    """Shown once, never stored."""
    expires: datetime


def _caller(row: asyncpg.Record) -> Caller:
    caller = Caller(**row)
    return caller._replace(scopes=tuple(caller.scopes) if caller.kind == "api_key" else SCOPES)


# ------------------------------------------------------------------------------------------ who it is


async def authenticate(token: str) -> Caller:
    """Whose session or API key this is. Raises Unauthenticated, or TokenExpired."""
    row = await database.fetchrow(
        f"SELECT {_CALLER}, t.kind = 'api_key' AND {_USE_IS_OLD} AS use_is_old, t.expires <= now() AS has_expired"
        ' FROM user_tokens t JOIN users u ON u.id = t."user"'
        " WHERE t.token_hash = $1 AND t.revoked_at IS NULL AND u.disabled_at IS NULL",
        digests.token_hash(token),
    )
    if row is None:
        raise Unauthenticated
    if row["has_expired"]:
        raise TokenExpired
    return _caller({name: row[name] for name in Caller._fields})


async def prove(credential_id: UUID) -> None:
    """Raises Unauthenticated, or TokenExpired, unless this session or API key still stands for its user."""
    row = await database.fetchrow(
        'SELECT t.expires <= now() AS has_expired FROM user_tokens t JOIN users u ON u.id = t."user"'
        " WHERE t.id = $1 AND t.revoked_at IS NULL AND u.disabled_at IS NULL",
        credential_id,
    )
    if row is None:
        raise Unauthenticated
    if row["has_expired"]:
        raise TokenExpired


async def recognize(claims: Claims, settings: Settings) -> Caller:
    """The user whom a genuine token of the issuer names, made at first sight. Raises Unauthenticated, TokenExpired.

    Name and claimed email are taken at first sight alone, and nothing else is: no claim makes an administrator.
    """
    user = await _find_identity(claims)
    if user["id"] is None:
        user = await _make_user(claims, settings)
    if user["disabled_at"] is not None:
        raise Unauthenticated
    return Caller(
        *(user["id"], user["name"], user["email"], user["is_admin"], user["created_at"]),
        credential_id=None,
        kind="jwt",
        scopes=SCOPES,
        expires=claims.expires,
    )


async def _find_identity(claims: Claims) -> asyncpg.Record:
    """The user, null in all columns if there is none.

    Raises Unauthenticated for a token of the future, or older than the user's end; TokenExpired.
    """
    [row] = await database.fetch(
        "SELECT u.id, u.name, u.email, u.is_admin, u.created_at, u.disabled_at, now() AS at,"
        " (SELECT created_at FROM deleted_ids WHERE id = $3) AS deleted_at"
        " FROM (SELECT) AS one LEFT JOIN users u ON u.issuer = $1 AND u.subject = $2",
        *(claims.issuer, claims.subject, _identity_id(claims.issuer, claims.subject)),
    )
    at, deleted_at = row["at"], row["deleted_at"]
    if any(since is not None and since > at + LEEWAY for since in (claims.not_before, claims.issued_at)):
        raise Unauthenticated
    # Only who holds what was a good token hears that it has expired.
    if claims.expires <= at - LEEWAY:
        raise TokenExpired
    if deleted_at is not None and not _is_newer(claims, deleted_at, at):
        raise Unauthenticated
    return row


def _is_newer(claims: Claims, deleted_at: datetime, at: datetime) -> bool:
    if claims.issued_at is None:
        return at > deleted_at + UNDATED_REFUSED_FOR
    # What was issued before by a clock that is ahead of ours.
    return claims.issued_at > deleted_at + LEEWAY


async def _make_user(claims: Claims, settings: Settings) -> asyncpg.Record:
    async with database.transaction():
        made = await database.fetchval(
            "INSERT INTO users (name, issuer, subject, claimed_email) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (issuer, subject) DO NOTHING RETURNING id",
            *(_fitting_name(claims, settings), claims.issuer, claims.subject, _fitting_email(claims, settings)),
        )
        # Once more, with the eyes of a new statement: of several at once another may have made the user, and the user
        # may have been deleted while this waited for its turn. Then nothing of this stays.
        user = await _find_identity(claims)
        if user["id"] is None:
            raise Unauthenticated
        if made:
            await audit.record("account.created", actor=made, user=made)
        return user


def _fitting_name(claims: Claims, settings: Settings) -> str:
    fits = isinstance(claims.name, str) and 1 <= len(claims.name) <= settings.max_name_characters
    return str(claims.name) if fits else DEFAULT_NAME


def _fitting_email(claims: Claims, settings: Settings) -> str | None:
    email = claims.email
    fits = isinstance(email, str) and 3 <= len(email) <= settings.max_email_characters and email.isprintable()
    return str(email) if fits and "@" in email else None


async def forget_identity(issuer: str, subject: str) -> None:
    """In the transaction that deletes this user: what the issuer signed before must not make it anew."""
    await database.execute(
        "INSERT INTO deleted_ids (id, created_at) VALUES ($1, clock_timestamp())"
        " ON CONFLICT (id) DO UPDATE SET created_at = excluded.created_at",
        _identity_id(issuer, subject),
    )


def _identity_id(issuer: str, subject: str) -> UUID:
    """What stands in `deleted_ids` for an identity, without telling whose it was."""
    return uuid.uuid5(IDENTITIES, f"{issuer}\0{subject}")


async def read_credential(credential_id: UUID) -> Caller | None:
    """Who a session or API key that was checked before stands for, if it still does."""
    row = await database.fetchrow(
        f'SELECT {_CALLER} FROM user_tokens t JOIN users u ON u.id = t."user" WHERE t.id = $1 AND {_LIVE}',
        credential_id,
    )
    return _caller(row) if row else None


async def read_bearer(user_id: UUID, expires: datetime) -> Caller | None:
    """Who a JWT that was checked before, and ends at `expires`, stands for, if it still does."""
    row = await database.fetchrow(
        "SELECT id AS user_id, name, email, is_admin, created_at FROM users"
        " WHERE id = $1 AND issuer IS NOT NULL AND disabled_at IS NULL AND $2 > now()",
        *(user_id, expires),
    )
    return Caller(**row, credential_id=None, kind="jwt", scopes=SCOPES, expires=expires) if row else None


async def ended_credentials(callers: Collection[Caller]) -> set[Caller]:
    """Those of the given callers whose credential no longer stands for them."""
    bearers = [caller for caller in callers if not caller.credential_id]
    rows = await database.fetch(
        # That nearly all are live is not told for each of them.
        "SELECT id, NULL::timestamptz AS expires FROM unnest($1::uuid[]) AS kept (id)"
        ' EXCEPT SELECT t.id, NULL FROM user_tokens t JOIN users u ON u.id = t."user"'
        f" WHERE t.id = ANY($1) AND {_LIVE}"
        " UNION ALL SELECT id, expires FROM unnest($2::uuid[], $3::timestamptz[]) AS b (id, expires)"
        " WHERE (expires > now() AND id IN (SELECT id FROM users WHERE id = ANY($2) AND disabled_at IS NULL))"
        " IS NOT TRUE",
        [caller.credential_id for caller in callers if caller.credential_id],
        *([caller.user_id for caller in bearers], [caller.expires for caller in bearers]),
    )
    ended = {(row["id"], row["expires"]) for row in rows}
    return {caller for caller in callers if _told_apart_by(caller) in ended} if ended else set()


def _told_apart_by(caller: Caller) -> tuple[UUID, datetime | None]:
    return (caller.credential_id, None) if caller.credential_id else (caller.user_id, caller.expires)


async def note_use(credential_id: UUID) -> None:
    await database.execute(
        f"UPDATE user_tokens t SET last_used_at = now() WHERE t.id = $1 AND {_USE_IS_OLD}", credential_id
    )


# ----------------------------------------------------------------------------------- what it is good for


def check_session(caller: Caller) -> None:
    """Raises SessionRequired: an account is not changed with an API key or a JWT."""
    if caller.kind != "session":
        raise SessionRequired


def check_session_or_jwt(caller: Caller) -> None:
    """Raises SessionRequired: an API key is not to make another, nor to take or delete all there is."""
    if caller.kind == "api_key":
        raise SessionRequired


def check_scope(caller: Caller, scope: str) -> None:
    """Raises ScopeRequired."""
    if scope not in caller.scopes:
        raise ScopeRequired


# --------------------------------------------------------------------------------------------- sessions


async def open_session(user: asyncpg.Record, settings: Settings) -> tuple[Caller, NewToken]:
    """A session of a user, with id, name, email, is_admin and created_at.

    The user's row is locked by the caller's transaction, so that logins at once are counted one after the other.
    """
    # The oldest sessions make room: who logs in again and again must never lock itself out.
    await database.execute(
        "DELETE FROM user_tokens WHERE id IN (SELECT id FROM user_tokens WHERE \"user\" = $1 AND kind = 'session'"
        " AND revoked_at IS NULL ORDER BY created_at DESC, id DESC OFFSET greatest(0, $2 - ("
        "SELECT count(*) FROM user_tokens t WHERE t.\"user\" = $1 AND t.kind = 'api_key' AND t.revoked_at IS NULL"
        " AND (t.expires IS NULL OR t.expires > now()))))",
        *(user["id"], settings.max_tokens_per_user - 1),
    )
    token = SESSION_PREFIX + secrets.token_urlsafe(32)
    [(session_id, expires)] = await database.fetch(
        'INSERT INTO user_tokens ("user", token_hash, kind, scopes, expires)'
        " VALUES ($1, $2, 'session', '{}', now() + make_interval(days => $3)) RETURNING id, expires",
        *(user["id"], digests.token_hash(token), settings.session_days),
    )
    await audit.record("session.opened", actor=user["id"], user=user["id"], session_id=session_id)
    caller = Caller(
        *(user["id"], user["name"], user["email"], user["is_admin"], user["created_at"]),
        credential_id=session_id,
        kind="session",
        scopes=SCOPES,
        expires=expires,
    )
    return caller, NewToken(token, expires)


async def list_sessions(user_id: UUID, page: Page) -> list[asyncpg.Record]:
    """One row more than the page; those that have ended are not among them."""
    return await database.fetch(
        "SELECT id, created_at, expires FROM user_tokens"
        " WHERE \"user\" = $1 AND kind = 'session' AND revoked_at IS NULL AND expires > now()"
        " AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4",
        *(user_id, page.created_before, page.id_before, page.limit + 1),
    )


async def end_session(user_id: UUID, session_id: UUID) -> None:
    """Idempotent. Raises SessionNotFound."""
    if not await _revoke(user_id, session_id, "session"):
        raise SessionNotFound


async def log_out(caller: Caller) -> None:
    if caller.credential_id:
        await _revoke(caller.user_id, caller.credential_id, "session")


async def end_all_but(caller: Caller) -> None:
    """End all other sessions and API keys of the caller, in the transaction of what makes it necessary."""
    await database.execute(
        'UPDATE user_tokens SET revoked_at = now() WHERE "user" = $1 AND id <> $2 AND revoked_at IS NULL',
        *(caller.user_id, caller.credential_id),
    )


async def _revoke(user_id: UUID, token_id: UUID, kind: str) -> bool:
    """Whether there is such a token."""
    action, name = {
        "session": ("session.ended", "session_id"),
        "api_key": ("api_key.revoked", "api_key_id"),
    }[kind]
    async with database.transaction():
        was_live = await database.fetchval(
            "UPDATE user_tokens SET revoked_at = coalesce(revoked_at, now())"
            ' WHERE id = $1 AND "user" = $2 AND kind = $3 RETURNING old.revoked_at IS NULL',
            *(token_id, user_id, kind),
        )
        if was_live:
            await audit.record(action, actor=user_id, user=user_id, **{name: token_id})
        return was_live is not None


# --------------------------------------------------------------------------------------------- API keys


async def make_api_key(
    caller: Caller, label: str, scopes: Collection[str], expires: datetime | None, settings: Settings
) -> tuple[asyncpg.Record, str]:
    """The row of a new API key, and its token, which nobody can read again.

    Raises Invalid where there are too many live tokens, or it would expire at once; Unauthenticated.
    """
    token = API_KEY_PREFIX + secrets.token_urlsafe(32)
    async with database.transaction():
        # Of keys made at once, each counts those before it. What has ended the credential meanwhile has locked the
        # user as well, or has ended it before this statement, so that it makes no key that outlives it.
        await _lock_live_user(caller)
        live = await database.fetchval(
            'SELECT count(*) FROM user_tokens WHERE "user" = $1 AND revoked_at IS NULL'
            " AND (expires IS NULL OR expires > now())",
            caller.user_id,
        )
        if live >= settings.max_tokens_per_user:
            raise Invalid(("", f"is one too many: {settings.max_tokens_per_user} sessions and API keys may be live"))
        row = await database.fetchrow(
            'INSERT INTO user_tokens ("user", token_hash, kind, scopes, label, expires)'
            " SELECT $1, $2, 'api_key', $3, $4, $5 WHERE $5::timestamptz IS NULL OR $5 > now()"
            f" RETURNING {KEY_COLUMNS}",
            *(caller.user_id, digests.token_hash(token), list(scopes), label, expires),
        )
        if row is None:
            raise Invalid(("/expires", "is not in the future"))
        await audit.record("api_key.created", actor=caller.user_id, user=caller.user_id, api_key_id=row["id"])
        return row, token


async def _lock_live_user(caller: Caller) -> None:
    is_user = await database.fetchval(
        "SELECT TRUE FROM users WHERE id = $1 AND disabled_at IS NULL FOR NO KEY UPDATE", caller.user_id
    )
    if not is_user or (caller.credential_id and not await read_credential(caller.credential_id)):
        raise Unauthenticated


async def list_api_keys(user_id: UUID, page: Page) -> list[asyncpg.Record]:
    """One row more than the page; for a month those too that have ended."""
    return await database.fetch(
        f"SELECT {KEY_COLUMNS} FROM user_tokens WHERE \"user\" = $1 AND kind = 'api_key'"
        " AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4",
        *(user_id, page.created_before, page.id_before, page.limit + 1),
    )


async def revoke_api_key(user_id: UUID, key_id: UUID) -> None:
    """Idempotent. Raises ApiKeyNotFound."""
    if not await _revoke(user_id, key_id, "api_key"):
        raise ApiKeyNotFound


async def expire_tokens() -> int:
    """Drop tokens that ended over a month ago; until then they answer `token_expired`. How many went."""
    tag = await database.execute(
        "DELETE FROM user_tokens WHERE expires < now() - interval '30 days' OR revoked_at < now() - interval '30 days'"
    )
    return int(tag.split()[-1])
