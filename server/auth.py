"""From a connection to who is asking."""

import secrets
from uuid import UUID

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from redis.asyncio import Redis

from server import accounts
from server.accounts import Caller
from server.errors import Unauthenticated
from server.limits import Limiter
from server.sealing import digests

# Longer than any token of ours and than any JWT that a proxy would let through.
MAX_TOKEN_CHARACTERS = 8192

TICKET_SECONDS = 30
_TICKET_KEY = "secureblogs:ticket:"


def bearer(authorization: str | None) -> str | None:
    """The token of an `Authorization: Bearer …` header; None if there is no such header."""
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or not token.isascii() or len(token) > MAX_TOKEN_CHARACTERS:
        raise Unauthenticated
    return token


async def require_caller(connection: ASGIConnection, _: BaseRouteHandler) -> None:  # type: ignore[type-arg]  # Litestar's own guards leave its four parameters open too
    """A guard: it runs before the body is read, so who is nobody hears nothing but 401."""
    token = bearer(connection.headers.get("authorization"))
    if token is None:
        raise Unauthenticated
    caller = await accounts.authenticate(token)
    limiter: Limiter = connection.app.state.limiter
    await limiter.call(caller.user_id)
    connection.scope["user"] = caller


async def sell_ticket(redis: Redis, caller: Caller) -> str:
    """A word that opens one WebSocket within 30 seconds, for browsers, which can't send the header."""
    ticket = secrets.token_urlsafe(32)
    await redis.set(_ticket_key(ticket), str(caller.credential_id), ex=TICKET_SECONDS)
    return ticket


async def take_ticket(redis: Redis, ticket: str) -> Caller:
    """Whoever takes it first is who bought it, as long as that credential lives. Raises Unauthenticated."""
    if len(ticket) > MAX_TOKEN_CHARACTERS:
        raise Unauthenticated
    credential_id = await redis.getdel(_ticket_key(ticket))
    caller = await accounts.read_credential(UUID(credential_id.decode())) if credential_id else None
    if caller is None:
        raise Unauthenticated
    return caller


def _ticket_key(ticket: str) -> str:
    # Hashed, as tokens are: who reads Redis can open no socket.
    return _TICKET_KEY + digests.token_hash(ticket).hex()
