from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody

from server import auth, credentials
from server.bodies import Body, Request, path_id
from server.channels import UNAVAILABLE
from server.errors import ApiKeyNotFound, Invalid, SessionNotFound, Unavailable
from server.events import timestamp
from server.lists import cut, read_page

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=100, examples=["backup script"])]
Scope = Literal["read", "write"]


def both_scopes() -> list[Scope]:
    return ["read", "write"]


class SessionOut(msgspec.Struct):
    id: UUID
    created_at: str
    expires: str
    is_current: bool
    """The one that this was asked with."""


class SessionPage(msgspec.Struct):
    items: list[SessionOut]
    next_cursor: str | None


class ApiKeyIn(msgspec.Struct, forbid_unknown_fields=True):
    label: Label
    """For its owner, to tell it from others."""
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=2)] = msgspec.field(
        default_factory=both_scopes
    )
    """`read` to see things and to hear of them, `write` for everything else."""
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    """It never does if this is left out."""


class ApiKeyOut(msgspec.Struct):
    id: UUID
    label: str
    scopes: list[Scope]
    created_at: str
    expires: str | None
    last_used_at: str | None
    """Exact to a minute."""
    revoked_at: str | None


class NewApiKeyOut(ApiKeyOut):
    token: str
    """Shown once; the server keeps only its hash."""


class ApiKeyPage(msgspec.Struct):
    items: list[ApiKeyOut]
    next_cursor: str | None


class TicketOut(msgspec.Struct):
    ticket: str
    expires_in: int


def show_api_key(row: Any) -> ApiKeyOut:
    return ApiKeyOut(
        id=row["id"],
        label=row["label"],
        scopes=row["scopes"],
        created_at=timestamp(row["created_at"]),
        expires=timestamp(row["expires"]) if row["expires"] else None,
        last_used_at=timestamp(row["last_used_at"]) if row["last_used_at"] else None,
        revoked_at=timestamp(row["revoked_at"]) if row["revoked_at"] else None,
    )


@get(
    "/sessions",
    operation_id="listSessions",
    security=auth.SESSION,
    tags=["Credentials"],
    summary="Where one is logged in",
)
async def list_sessions(
    request: Request, limit: FromQuery[str | None] = None, cursor: FromQuery[str | None] = None
) -> SessionPage:
    """Sessions that have ended are not listed. Needs a session."""
    credentials.check_session(request.user)
    page = read_page(limit, cursor)
    rows, next_cursor = cut(await credentials.list_sessions(request.user.user_id, page), page)
    sessions = [
        SessionOut(
            row["id"], timestamp(row["created_at"]), timestamp(row["expires"]), row["id"] == request.user.credential_id
        )
        for row in rows
    ]
    return SessionPage(sessions, next_cursor)


@delete(
    "/sessions/{session_id:str}",
    operation_id="endSession",
    security=auth.SESSION,
    tags=["Credentials"],
    summary="End a session",
    status_code=204,
)
async def end_session(request: Request, session_id: FromPath[str]) -> None:
    """Its WebSockets end within five seconds. Repeating this is no error. Needs a session, which may be that one."""
    credentials.check_session(request.user)
    await credentials.end_session(request.user.user_id, path_id(session_id, SessionNotFound))


@post(
    "/api-keys",
    operation_id="createApiKey",
    security=auth.SESSION_OR_JWT,
    tags=["Credentials"],
    summary="Make an API key",
)
async def create_api_key(request: Request, data: JSONBody[Body[ApiKeyIn]]) -> NewApiKeyOut:
    """A token for programs, which may do less than a session. Needs a session or a JWT."""
    credentials.check_session_or_jwt(request.user)
    key = await data.read(request)
    if len(set(key.scopes)) < len(key.scopes):
        raise Invalid(("/scopes", "names a scope twice"))
    row, token = await credentials.make_api_key(
        request.user, key.label, key.scopes, read_expires(key), request.settings
    )
    return NewApiKeyOut(**msgspec.structs.asdict(show_api_key(row)), token=token)


def read_expires(key: ApiKeyIn) -> datetime | None:
    try:
        return key.expires.astimezone(UTC) if key.expires else None
    except OverflowError:
        # At the ends of the calendar a time can't be moved to another zone.
        raise Invalid(("/expires", "is out of range")) from None


@get(
    "/api-keys", operation_id="listApiKeys", security=auth.SESSION_OR_JWT, tags=["Credentials"], summary="Own API keys"
)
async def list_api_keys(
    request: Request, limit: FromQuery[str | None] = None, cursor: FromQuery[str | None] = None
) -> ApiKeyPage:
    """Never their tokens. Revoked and expired ones are listed for a month. Needs a session or a JWT."""
    credentials.check_session_or_jwt(request.user)
    page = read_page(limit, cursor)
    rows, next_cursor = cut(await credentials.list_api_keys(request.user.user_id, page), page)
    return ApiKeyPage([show_api_key(row) for row in rows], next_cursor)


@delete(
    "/api-keys/{api_key_id:str}",
    operation_id="revokeApiKey",
    security=auth.SESSION_OR_JWT,
    tags=["Credentials"],
    summary="Revoke an API key, for good",
    status_code=204,
)
async def revoke_api_key(request: Request, api_key_id: FromPath[str]) -> None:
    """Its WebSockets end within five seconds. Repeating this is no error. Needs a session or a JWT."""
    credentials.check_session_or_jwt(request.user)
    await credentials.revoke_api_key(request.user.user_id, path_id(api_key_id, ApiKeyNotFound))


@post(
    "/ws-tickets",
    operation_id="createTicket",
    tags=["WebSocket"],
    summary="Buy a ticket that opens one WebSocket",
    responses={201: ResponseSpec(TicketOut, description="Good once, for 30 seconds")},
    opt=auth.NEEDS_READ,
)
async def create_ticket(request: Request) -> Response[TicketOut]:
    """For browsers, which can't send the `Authorization` header. Its socket ends with the credential that bought it."""
    try:
        ticket = await auth.sell_ticket(request.redis, request.mac_key, request.user)
    except UNAVAILABLE:
        raise Unavailable from None
    return Response(TicketOut(ticket, auth.TICKET_SECONDS), status_code=201)


AUTHENTICATED = [list_sessions, end_session, create_api_key, list_api_keys, revoke_api_key, create_ticket]
