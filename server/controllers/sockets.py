"""`/ws/post_request`: what a user is told at once.

A socket subscribes first and replays from Postgres then, so that no event falls between the two; it
replays again whenever the connection to Redis was lost in between. What it may hear is decided by its
channels alone. A refusal is accepted first and then closed, so that browsers see the code.
"""

import asyncio
import contextlib
import functools
import logging
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import parse_qs, quote

import litestar
import uuid_utils.compat
from litestar import websocket
from litestar.datastructures import Headers, State
from litestar.exceptions import WebSocketDisconnect

from server import auth, credentials, database, requests
from server.channels import RECONNECTED, UNAVAILABLE, Overflowed
from server.connections import CONNECTION
from server.credentials import READ, Caller
from server.errors import ScopeRequired, Unauthenticated
from server.events import once_id, write_frame
from server.lists import EPOCH, Page, cut
from server.settings import Settings
from server.sockets import Connection, CredentialEnded, Socket, Sockets

logger = logging.getLogger(__name__)

WebSocket = litestar.WebSocket[Caller, None, State]

SEND_TIMEOUT_S = 10.0
MAX_REPLAYED = 1000
MAX_FRAME_BYTES = 65_536

NO_CREDENTIAL = 1008
BAD_CREDENTIAL = 4401
BAD_ORIGIN = 4403
BAD_SINCE = 4400
CREDENTIAL_ENDED = 4408
TOO_MANY_SOCKETS = 4429
BINARY = 1003
FRAME_TOO_LARGE = 1009
TRY_LATER = 1013

_SINCE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)")


class Gone(Exception):
    """The other side has left."""


class Refused(Exception):
    """The socket is closed with `code`; `reason` names no secret."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@websocket("/ws/post_request")
async def post_request(socket: WebSocket) -> None:
    await socket.accept()
    try:
        # Neither headers nor query by Litestar, which would keep them, and the credential, until the socket ends.
        query = first_values(socket.scope["query_string"])
        caller = await find_caller(socket, Headers(socket.scope["headers"]), query)
        await serve(socket, caller, read_since(query.get("since")))
    except Refused as refused:
        await close(socket, refused.code, refused.reason)
    except Gone:
        return
    except database.UNAVAILABLE as error:
        logger.warning("a socket has to try again", extra={"error": type(error).__name__})
        await close(socket, TRY_LATER, "try again")


async def close(socket: WebSocket, code: int, reason: str) -> None:
    # The other side, or the server that is stopping, may have closed it first; or the other side may not read it.
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await socket.close(code, reason)


def first_values(query: bytes) -> dict[str, str]:
    """By name."""
    return {name: values[0] for name, values in parse_qs(query.decode("latin-1"), keep_blank_values=True).items()}


async def find_caller(socket: WebSocket, headers: Headers, query: dict[str, str]) -> Caller:
    """Origin first, then the credential: header, ticket or (where allowed) token."""
    settings: Settings = socket.app.state.settings
    origin = headers.get("origin")
    if origin is not None and origin.rstrip("/").lower() not in allowed_origins(settings):
        raise Refused(BAD_ORIGIN, "this origin is not allowed")
    try:
        token = auth.bearer(headers.get("authorization"))
        if token is None and settings.allow_query_token and "ticket" not in query:
            token = query.get("token")
        if token is not None:
            caller = await auth.authenticate(socket.app, token)
            credentials.check_scope(caller, READ)
            return caller
        if "ticket" in query:
            mac_key = cast("bytes", settings.request_mac_key)
            return await auth.take_ticket(socket.app.state.redis, mac_key, query["ticket"])
    except Unauthenticated:
        raise Refused(BAD_CREDENTIAL, "the credential is not valid") from None
    except ScopeRequired:
        raise Refused(BAD_CREDENTIAL, "the API key has not the scope read") from None
    except UNAVAILABLE:
        raise Refused(TRY_LATER, "try again") from None
    raise Refused(NO_CREDENTIAL, "a credential is needed")


def allowed_origins(settings: Settings) -> set[str]:
    return {origin.rstrip("/").lower() for origin in (settings.public_url, *settings.allowed_origins)}


def read_since(text: str | None) -> datetime | None:
    if text is None:
        return None
    # `+` in a query that was not escaped has become a space.
    text = text.replace(" ", "+")
    try:
        if not _SINCE.fullmatch(text):
            raise ValueError
        since = datetime.fromisoformat(text)
        # Near the beginning of the calendar a time can be moved neither to another zone nor by the margin of a replay.
        return since.astimezone(UTC) if since > EPOCH else EPOCH
    except (ValueError, OverflowError):
        raise Refused(BAD_SINCE, "since is not a time") from None


async def serve(connection: WebSocket, caller: Caller, since: datetime | None) -> None:
    settings: Settings = connection.app.state.settings
    sockets: Sockets = connection.app.state.sockets
    if sockets.count(caller.user_id) >= settings.max_sockets_per_user:
        raise Refused(TOO_MANY_SOCKETS, "too many open sockets")
    below: Connection = cast("dict[str, Any]", connection.scope)["extensions"][CONNECTION]
    below.forget_handshake()
    socket = Socket(caller, since, below, functools.partial(tell, connection, sockets))
    sockets.add(socket)
    try:
        await send(connection, accepted(caller))
        await socket.listen(read_and_ignore(connection))
    except CredentialEnded:
        raise Refused(CREDENTIAL_ENDED, "the credential has ended") from None
    except Overflowed:
        raise Refused(TRY_LATER, "frames are not read fast enough") from None
    finally:
        sockets.remove(socket)


def accepted(caller: Caller) -> str:
    return write_frame(
        "connection.accepted", uuid_utils.compat.uuid7(), message="connection accepted", user_id=caller.user_id
    )


async def read_and_ignore(connection: WebSocket) -> None:
    """What a client sends means nothing, but it has to be read: only so is its leaving noticed."""
    while True:
        message = cast("dict[str, Any]", await connection.receive())
        if message["type"] == "websocket.disconnect":
            return
        if message.get("bytes") is not None:
            raise Refused(BINARY, "text only")
        if len((message.get("text") or "").encode()) > MAX_FRAME_BYTES:
            raise Refused(FRAME_TOO_LARGE, "the frame is too large")


async def send(connection: WebSocket, frame: str) -> None:
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await connection.send({"type": "websocket.send", "text": frame, "bytes": None})
    except TimeoutError:
        raise Refused(TRY_LATER, "frames are not read") from None
    except (WebSocketDisconnect, OSError):
        raise Gone from None


async def tell(connection: WebSocket, sockets: Sockets, socket: Socket) -> None:
    """What waits for the socket; at its beginning, and when something may have been missed, a replay."""
    while (item := socket.take()) is not None:
        if item is RECONNECTED:
            # The news of another membership may be among what was missed.
            await sockets.subscribe(socket)
            socket.since = await catch_up(connection, socket.caller, socket.since)
        else:
            await sockets.follow_membership(socket, item)
            await send(connection, item)


async def catch_up(connection: WebSocket, caller: Caller, since: datetime | None) -> datetime:
    """Send what Postgres holds for the caller, and `caught_up`; the time to catch up from the next time."""
    at: datetime = await database.fetchval("SELECT now()")
    async for frame in replay(caller, since):
        await send(connection, frame)
    await send(connection, write_frame("caught_up", uuid_utils.compat.uuid7(), at=at))
    return at


async def replay(caller: Caller, since: datetime | None) -> AsyncIterator[str]:
    """All pending requests that the caller may decide, then decisions on its own; 1,000 frames in all."""
    to_decide, next_cursor = await pending_to_decide(caller)
    for row in to_decide:
        yield replayed_frame("created", row, requests.created_frame_fields(row))
    if next_cursor:
        yield more(f"/read-requests?role=decider&status=pending&cursor={quote(next_cursor)}")
    if since is None:
        return
    room = MAX_REPLAYED - len(to_decide)
    decided = await requests.list_decided_since(caller.user_id, since, room + 1)
    for row in decided[:room]:
        yield replayed_frame(row["status"], row, requests.decided_frame_fields(row))
    if len(decided) > room:
        yield more("/read-requests?role=requester")


async def pending_to_decide(caller: Caller) -> tuple[list[Any], str | None]:
    page = Page(limit=MAX_REPLAYED)
    return cut(await requests.list_to_decide(caller.user_id, "pending", page), page)


def replayed_frame(kind: str, row: Any, fields: dict[str, Any]) -> str:
    kind = f"read_request.{kind}"
    return write_frame(kind, once_id(kind, row["id"]), **fields, replayed=True)


def more(path: str) -> str:
    return write_frame("more", uuid_utils.compat.uuid7(), next=path)


SOCKETS = [post_request]
