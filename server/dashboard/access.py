"""A door for browsers, for applications that have none: a link that opens a session once, kept in Redis.

Whoever is let in is a name that the application chose. What Redis has are digests: who reads it can't enter.
"""

import hashlib
import secrets
from typing import Any, Final

from litestar.datastructures import Cookie
from redis.exceptions import RedisError

from server.dashboard.errors import Unavailable
from server.dashboard.keys import PREFIX

LINK_S = 60
SESSION_S = 8 * 3600
COOKIE: Final = "__Host-dashboard"
"""By its prefix browsers take it from a page of TLS, or of this machine, alone, and send it to no other host."""

MAX_TOKEN_CHARACTERS = 100


async def make_link(redis: Any, who: str) -> str:
    """A token that opens one session, within LINK_S seconds. Raises Unavailable, as all do here."""
    token = secrets.token_urlsafe(32)
    await _ask(redis.set(_key("link", token), who, ex=LINK_S))
    return token


async def open_session(redis: Any, link_token: str) -> tuple[str, str] | None:
    """Whose link it was, and the session's token; None for one that was used, is too old or never was."""
    if len(link_token) > MAX_TOKEN_CHARACTERS:
        return None
    who = await _ask(redis.getdel(_key("link", link_token)))
    if who is None:
        return None
    token = secrets.token_urlsafe(32)
    await _ask(redis.set(_key("session", token), who, ex=SESSION_S))
    return who.decode(), token


async def read_session(redis: Any, token: str | None) -> str | None:
    """Whose session it is; None if it has ended."""
    if not token or len(token) > MAX_TOKEN_CHARACTERS:
        return None
    who = await _ask(redis.get(_key("session", token)))
    return who.decode() if who is not None else None


async def end_session(redis: Any, token: str) -> None:
    await _ask(redis.delete(_key("session", token)))


def cookie(token: str) -> Cookie:
    return Cookie(key=COOKIE, value=token, path="/", max_age=SESSION_S, secure=True, httponly=True, samesite="strict")


def _key(kind: str, token: str) -> str:
    return f"{PREFIX}{kind}:{hashlib.sha256(token.encode()).hexdigest()}"


async def _ask(call: Any) -> Any:
    try:
        return await call
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable from error
