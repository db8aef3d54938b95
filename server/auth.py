"""From a connection to who is asking."""

import asyncio
import logging
import secrets
import time
from datetime import datetime
from typing import Any
from uuid import UUID

import litestar
import msgspec
from litestar.app import Litestar
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from redis.asyncio import Redis

from server import bodies, credentials, database
from server.credentials import API_KEY_PREFIX, READ, SESSION_PREFIX, Caller
from server.errors import Unauthenticated
from server.limits import Limiter
from server.quotas import Quotas
from server.sealing import digests

logger = logging.getLogger(__name__)

# Longer than any token of ours and than any JWT that a proxy would let through.
MAX_TOKEN_CHARACTERS = 8192

TICKET_SECONDS = 30
_TICKET_KEY = "secureblogs:ticket:"

# For `opt` of a handler that changes nothing, though its method is that of a change.
NEEDS_READ = {"scope": READ}

# For `security` of a handler that is not for every credential, in the words of the OpenAPI document; what a handler
# refuses it refuses itself, by `credentials.check_session` and its like.
SESSION: list[dict[str, list[str]]] = [{"session": []}]
SESSION_OR_JWT: list[dict[str, list[str]]] = [{"session": []}, {"jwt": []}]

# For `opt` of a handler whose own statements ask whether the caller's credential still stands for it: see `Known`.
PROVES = {"proves_caller": True}

# Half of the time after which the use of an API key is noted again, which happens where it is looked up.
KNOWN_FOR_S = 30.0
MAX_KNOWN = 20_000

# By API key, so that no key is noted twice at once; and a task needs somebody who holds it.
_noting: dict[UUID, asyncio.Task[None]] = {}


def bearer(authorization: str | None) -> str | None:
    """The token of an `Authorization: Bearer …` header; None if there is no such header."""
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or not token.isascii() or len(token) > MAX_TOKEN_CHARACTERS:
        raise Unauthenticated
    return token


def authorization(connection: ASGIConnection) -> str | None:  # type: ignore[type-arg]  # likewise
    """The first header of that name. To make Litestar's mapping of all of them takes ten times as long."""
    for name, value in connection.scope["headers"]:
        if name == b"authorization":
            return value.decode("latin-1")
    return None


async def authenticate(app: Litestar, token: str) -> Caller:
    """Whose token this is: a JWT of the issuer, if there is one, or a session or API key of ours.

    Raises Unauthenticated, or TokenExpired.
    """
    is_ours = token.startswith((SESSION_PREFIX, API_KEY_PREFIX))
    if app.state.issuer is not None and not is_ours and token.count(".") == 2:
        if not token.isascii() or len(token) > MAX_TOKEN_CHARACTERS:
            raise Unauthenticated
        return await credentials.recognize(app.state.issuer.verify(token), app.state.settings)
    caller = await credentials.authenticate(token)
    if caller.use_is_old and caller.credential_id and caller.credential_id not in _noting:
        noting = asyncio.create_task(_note_use(caller.credential_id), name="last_used_at")
        _noting[caller.credential_id] = noting
    return caller


async def _note_use(credential_id: UUID) -> None:
    """Beside the answer, which waits for nothing of this and fails for nothing of this."""
    try:
        await credentials.note_use(credential_id)
    except database.UNAVAILABLE as error:
        logger.warning("the use of an API key is not noted", extra={"error": type(error).__name__})
    finally:
        del _noting[credential_id]


class Known:
    """Whom tokens that were looked up a short while ago stand for, by their hashes.

    A token stands for one user for ever, with the same scopes, so this is never wrong. What may change at any commit is
    whether it still does, and that is never taken from here: a caller out of it is *unproven*, and only handlers with
    PROVES get one. Their own first statement asks for it, which saves a round trip to Postgres; for a credential that
    has ended it shows nothing and does nothing. Whatever goes wrong for an unproven caller, `prove` is asked before it
    is told (`server.problems`), so that such a credential hears 401 as everywhere.
    """

    def __init__(self) -> None:
        self._found: dict[bytes, tuple[Caller, float]] = {}

    def find(self, token: str) -> Caller | None:
        caller, until = self._found.get(digests.token_hash(token), (None, 0.0))
        return caller if until > time.monotonic() else None

    def note(self, token: str, caller: Caller) -> None:
        if caller.credential_id is None:
            return  # A JWT's user may be deleted, and be made anew under another id.
        if len(self._found) >= MAX_KNOWN:
            self._found.clear()
        self._found[digests.token_hash(token)] = (caller, time.monotonic() + KNOWN_FOR_S)


async def enter(request: litestar.Request[Any, Any, Any]) -> None:
    """Before anything of a request but its head is read, so that who is nobody hears nothing but 401."""
    await require_caller(request, request.route_handler)
    await bodies.check_query(request)


async def require_caller(connection: ASGIConnection, handler: BaseRouteHandler) -> None:  # type: ignore[type-arg]  # Litestar's own guards leave its four parameters open too
    token = bearer(authorization(connection))
    if token is None:
        raise Unauthenticated
    known: Known = connection.app.state.known
    caller = known.find(token) if "proves_caller" in handler.opt else None
    if caller is not None:
        connection.scope["state"]["unproven"] = caller.credential_id
    else:
        caller = await authenticate(connection.app, token)
        known.note(token, caller)
    limiter: Limiter = connection.app.state.limiter
    if limiter.on:
        await limiter.call(caller.user_id)
    quotas: Quotas = connection.app.state.quotas
    await quotas.take_request(caller.user_id, handler.opt)
    connection.scope["user"] = caller
    if not bodies.takes_body(handler):
        bodies.check_scope(connection, handler)


async def prove(connection: ASGIConnection) -> None:  # type: ignore[type-arg]  # likewise
    """Raises Unauthenticated, or TokenExpired, if the caller is unproven and its credential has ended."""
    credential_id: UUID | None = connection.scope["state"].pop("unproven", None)
    if credential_id is not None:
        await credentials.prove(credential_id)


class Ticket(msgspec.Struct, array_like=True):
    """What the buyer of a ticket came with: a session or an API key, or a JWT that ends at a time."""

    credential_id: UUID | None
    user_id: UUID
    expires: datetime | None


async def sell_ticket(redis: Redis, mac_key: bytes, caller: Caller) -> str:
    """A word that opens one WebSocket within 30 seconds, for browsers, which can't send the header."""
    ticket = secrets.token_urlsafe(32)
    bought = msgspec.json.encode(Ticket(caller.credential_id, caller.user_id, caller.expires))
    await redis.set(_ticket_key(ticket), _mac(mac_key, ticket, bought) + bought, ex=TICKET_SECONDS)
    return ticket


async def take_ticket(redis: Redis, mac_key: bytes, ticket: str) -> Caller:
    """Whoever takes it first is who bought it, as long as that credential lives. Raises Unauthenticated."""
    if len(ticket) > MAX_TOKEN_CHARACTERS:
        raise Unauthenticated
    stored: bytes = await redis.getdel(_ticket_key(ticket)) or b""
    mac, bought = stored[: digests.HASH_BYTES], stored[digests.HASH_BYTES :]
    if not digests.same(mac, _mac(mac_key, ticket, bought)):
        raise Unauthenticated
    caller = await _buyer(msgspec.json.decode(bought, type=Ticket))
    if caller is None:
        raise Unauthenticated
    return caller


def _mac(mac_key: bytes, ticket: str, bought: bytes) -> bytes:
    # Who writes to Redis can write no ticket, nor have one stand for somebody else.
    return digests.request_mac(mac_key, b"secureblogs ticket 1\n" + digests.token_hash(ticket) + bought)


async def _buyer(bought: Ticket) -> Caller | None:
    if bought.credential_id is not None:
        return await credentials.read_credential(bought.credential_id)
    return await credentials.read_bearer(bought.user_id, bought.expires) if bought.expires else None


def _ticket_key(ticket: str) -> str:
    # Hashed, as tokens are: who reads Redis can open no socket.
    return _TICKET_KEY + digests.token_hash(ticket).hex()
