from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery

from server import administration, auth
from server.bodies import Request, path_id
from server.errors import UserNotFound
from server.events import timestamp
from server.lists import cut, read_page


class UserAccountOut(msgspec.Struct):
    id: UUID
    name: str
    email: str | None
    issuer: str | None
    """With `subject`: who signs this user's tokens. Such a user has no email here, and no password."""
    subject: str | None
    claimed_email: str | None
    """What the issuer says. Nobody is found by it."""
    is_admin: bool
    created_at: str
    disabled_at: str | None


class UserAccountPage(msgspec.Struct):
    items: list[UserAccountOut]
    next_cursor: str | None


def show_account(row: Any) -> UserAccountOut:
    return UserAccountOut(
        *(row["id"], row["name"], row["email"], row["issuer"], row["subject"], row["claimed_email"], row["is_admin"]),
        created_at=timestamp(row["created_at"]),
        disabled_at=timestamp(row["disabled_at"]) if row["disabled_at"] else None,
    )


@get(
    "/admin/users",
    operation_id="listUsers",
    security=auth.SESSION_OR_JWT,
    tags=["Administration"],
    summary="All users",
)
async def list_users(
    request: Request,
    email: FromQuery[str | None] = None,
    limit: FromQuery[str | None] = None,
    cursor: FromQuery[str | None] = None,
) -> UserAccountPage:
    """For administrators, newest first; with `email` the one of that address, if there is one."""
    administration.check_admin(request.user)
    page = read_page(limit, cursor)
    rows, next_cursor = cut(await administration.list_users(page, email), page)
    return UserAccountPage([show_account(row) for row in rows], next_cursor)


@post(
    "/admin/users/{user_id:str}/disable",
    operation_id="disableUser",
    security=auth.SESSION_OR_JWT,
    tags=["Administration"],
    summary="Shut an account",
    status_code=200,
    responses={200: ResponseSpec(UserAccountOut, description="The user, shut now or before")},
)
async def disable_user(request: Request, user_id: FromPath[str]) -> Response[UserAccountOut]:
    """For administrators. All its tokens are revoked, its WebSockets end within five seconds, its pending requests are
    cancelled, and nothing is sealed to it any more. What it wrote, and its roles, stay. 409 `own_account` for oneself.
    """
    administration.check_admin(request.user)
    row, events = await administration.disable(request.user.user_id, path_id(user_id, UserNotFound))
    return Response(show_account(row), status_code=200, background=request.announcing(events))


@post(
    "/admin/users/{user_id:str}/enable",
    operation_id="enableUser",
    security=auth.SESSION_OR_JWT,
    tags=["Administration"],
    summary="Open an account again",
    status_code=200,
)
async def enable_user(request: Request, user_id: FromPath[str]) -> UserAccountOut:
    """For administrators. No token comes back to life: the user logs in anew, and asks for the posts of meanwhile."""
    administration.check_admin(request.user)
    return show_account(await administration.enable(request.user.user_id, path_id(user_id, UserNotFound)))


AUTHENTICATED = [list_users, disable_user, enable_user]
