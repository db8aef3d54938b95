from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import get
from litestar.params import FromPath, FromQuery

from server import administration, audit, auth, groups
from server.bodies import Request, path_id
from server.controllers.posts import query_id
from server.errors import GroupNotFound, Invalid
from server.events import timestamp
from server.lists import cut, read_page

Action = Annotated[str, msgspec.Meta(examples=["member.added"])]


class AuditEntryOut(msgspec.Struct):
    id: UUID
    at: str
    actor_id: UUID | None
    """Who did it; null for somebody at the machine itself."""
    action: Action
    group_id: UUID | None
    user_id: UUID | None
    """Whom it was done to."""
    ids: dict[str, str | list[str]]
    """Further ids and fixed words, such as `post_id`, `key_id`, `role`."""


class AuditPage(msgspec.Struct):
    items: list[AuditEntryOut]
    next_cursor: str | None


def show_entry(row: Any) -> AuditEntryOut:
    return AuditEntryOut(
        *(row["id"], timestamp(row["at"]), row["actor"], row["action"], row["group"], row["user"]),
        ids=audit.read_ids(row["ids"]),
    )


async def find(limit: str | None, cursor: str | None, **wanted: Any) -> AuditPage:
    page = read_page(limit, cursor)
    rows, next_cursor = cut(await audit.find(page, **wanted), page)
    return AuditPage([show_entry(row) for row in rows], next_cursor)


@get("/groups/{group_id:str}/audit", operation_id="listGroupAudit", tags=["Audit"], summary="Who did what in a group")
async def list_group_audit(
    request: Request, group_id: FromPath[str], limit: FromQuery[str | None] = None, cursor: FromQuery[str | None] = None
) -> AuditPage:
    """For its owners. Ids and fixed words; what was written is in no entry."""
    found = path_id(group_id, GroupNotFound)
    await groups.check_owner(request.user.user_id, found)
    return await find(limit, cursor, group_id=found)


@get("/me/audit", operation_id="listMyAudit", tags=["Audit"], summary="What one did, and what was done to one")
async def list_my_audit(
    request: Request, limit: FromQuery[str | None] = None, cursor: FromQuery[str | None] = None
) -> AuditPage:
    """Logins, keys, memberships, posts and requests; also of groups that one is no longer in."""
    return await find(limit, cursor, user_id=request.user.user_id)


@get(
    "/admin/audit",
    operation_id="listAudit",
    security=auth.SESSION_OR_JWT,
    tags=["Administration"],
    summary="Who did what, all of it",
)
async def list_audit(
    request: Request,
    user_id: FromQuery[str | None] = None,
    group_id: FromQuery[str | None] = None,
    action: FromQuery[str | None] = None,
    limit: FromQuery[str | None] = None,
    cursor: FromQuery[str | None] = None,
) -> AuditPage:
    """For administrators. `user_id`: by that user or done to it; `action` is one of the fixed words."""
    administration.check_admin(request.user)
    if action is not None and action not in audit.ACTIONS:
        raise Invalid(("?action", f"is none of {', '.join(audit.ACTIONS)}"))
    ids = {
        name: query_id(name, text) for name, text in (("user_id", user_id), ("group_id", group_id)) if text is not None
    }
    return await find(limit, cursor, action=action, **ids)


AUTHENTICATED = [list_group_audit, list_my_audit, list_audit]
