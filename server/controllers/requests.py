from typing import Any, Literal, cast, get_args
from uuid import UUID

import msgspec
from litestar import Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody

from server import posts, requests
from server.auth import PROVES
from server.bodies import Base64, Body, Request, path_id
from server.errors import Invalid, PostNotFound, ReadRequestNotFound
from server.events import timestamp
from server.lists import cut, read_page
from server.requests import Status


class AskIn(msgspec.Struct, forbid_unknown_fields=True):
    """Without `public_key_id`: the newest active key of the caller."""

    public_key_id: UUID | None = None


class ApproveIn(msgspec.Struct, forbid_unknown_fields=True):
    sealed_key: Base64
    """The post key, sealed to the request's `public_key` by the decider's client; 80 bytes."""


class ReadRequestOut(msgspec.Struct):
    id: UUID
    post_id: UUID
    group_id: UUID
    requester_id: UUID
    requester_name: str
    public_key_id: UUID
    public_key: bytes
    verify_key: bytes
    fingerprint: str
    status: Status
    created_at: str
    decided_at: str | None
    decided_by: UUID | None


class ReadRequestPage(msgspec.Struct):
    items: list[ReadRequestOut]
    next_cursor: str | None


def show_request(row: Any) -> ReadRequestOut:
    return ReadRequestOut(
        id=row["id"],
        post_id=row["post_id"],
        group_id=row["group_id"],
        requester_id=row["requester_id"],
        requester_name=row["requester_name"],
        public_key_id=row["public_key_id"],
        public_key=row["public_key"],
        verify_key=row["verify_key"],
        fingerprint=requests.fingerprint(row),
        status=row["status"],
        created_at=timestamp(row["created_at"]),
        decided_at=timestamp(row["decided_at"]) if row["decided_at"] else None,
        decided_by=row["decided_by"],
    )


@post(
    "/posts/{post_id:str}/request_read",
    operation_id="requestRead",
    tags=["Read requests"],
    summary="Ask for a post that one can't read",
    responses={200: ResponseSpec(ReadRequestOut, description="It is pending already: the same request")},
    opt=PROVES,
)
async def request_read(
    request: Request, post_id: FromPath[str], data: JSONBody[Body[AskIn] | None] = None
) -> Response[ReadRequestOut]:
    """The deciders hear of it at once: the author and the group's owners who hold its key, else all who hold it."""
    caller_id, found = request.user.user_id, path_id(post_id, PostNotFound)
    asked = await data.read(request, posts.check_visible(caller_id, found)) if data else AskIn()
    await request.limiter.request_read(caller_id)
    row, is_new, events = await requests.ask(caller_id, found, asked.public_key_id, request.unproven)
    after = request.announcing(events)
    return Response(show_request(row), status_code=201 if is_new else 200, background=after)


@get(
    "/read-requests",
    operation_id="listReadRequests",
    tags=["Read requests"],
    summary="Requests that one may decide, or one's own",
)
async def list_read_requests(
    request: Request,
    role: FromQuery[str | None] = None,
    status: FromQuery[str | None] = None,
    limit: FromQuery[str | None] = None,
    cursor: FromQuery[str | None] = None,
) -> ReadRequestPage:
    page = read_page(limit, cursor)
    if role not in get_args(Role):
        raise Invalid(("?role", "must be decider or requester"))
    if status is not None and status not in get_args(Status):
        raise Invalid(("?status", f"must be one of {', '.join(get_args(Status))}"))
    find = requests.list_to_decide if role == "decider" else requests.list_own
    rows, next_cursor = cut(await find(request.user.user_id, cast("Status | None", status), page), page)
    return ReadRequestPage([show_request(row) for row in rows], next_cursor)


Role = Literal["decider", "requester"]


@get("/read-requests/{request_id:str}", operation_id="getReadRequest", tags=["Read requests"], summary="One request")
async def get_read_request(request: Request, request_id: FromPath[str]) -> ReadRequestOut:
    found = path_id(request_id, ReadRequestNotFound)
    return show_request(await requests.read(request.user.user_id, found))


@post(
    "/read-requests/{request_id:str}/approve",
    operation_id="approveReadRequest",
    tags=["Read requests"],
    summary="Grant a request, with the post key sealed to its key",
    status_code=200,
)
async def approve_read_request(
    request: Request, request_id: FromPath[str], data: JSONBody[Body[ApproveIn]]
) -> Response[ReadRequestOut]:
    """The decider's client opens the post, compares the fingerprint and seals; the server never sees the post key."""
    caller_id, found = request.user.user_id, path_id(request_id, ReadRequestNotFound)
    grant = await data.read(request, requests.check_may_decide(caller_id, found))
    row, events = await requests.approve(caller_id, found, grant.sealed_key)
    return Response(show_request(row), background=request.announcing(events))


@post(
    "/read-requests/{request_id:str}/deny",
    operation_id="denyReadRequest",
    tags=["Read requests"],
    summary="Deny a request",
    status_code=200,
)
async def deny_read_request(request: Request, request_id: FromPath[str]) -> Response[ReadRequestOut]:
    """The requester may ask again after a day."""
    row, events = await requests.deny(request.user.user_id, path_id(request_id, ReadRequestNotFound))
    return Response(show_request(row), background=request.announcing(events))


@delete(
    "/read-requests/{request_id:str}",
    operation_id="withdrawReadRequest",
    tags=["Read requests"],
    summary="Withdraw one's pending request, or give back a grant that does not open the post",
    status_code=204,
)
async def withdraw_read_request(request: Request, request_id: FromPath[str]) -> Response[None]:
    events = await requests.withdraw(request.user.user_id, path_id(request_id, ReadRequestNotFound))
    return Response(None, status_code=204, background=request.announcing(events))


AUTHENTICATED = [
    request_read,
    list_read_requests,
    get_read_request,
    approve_read_request,
    deny_read_request,
    withdraw_read_request,
]
