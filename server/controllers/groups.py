from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, delete, get, patch, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody

from server import groups
from server.bodies import Body, Request, path_id
from server.controllers.accounts import Email, Name
from server.controllers.keys import KeyList, show_key
from server.errors import GroupNotFound, Invalid, MemberNotFound
from server.events import timestamp
from server.groups import Role
from server.lists import cut, read_page


class GroupIn(msgspec.Struct, forbid_unknown_fields=True):
    """With an `id` (UUIDv7) of its own a client may repeat the request safely."""

    name: Name
    id: UUID | None = None


class GroupPatch(msgspec.Struct, forbid_unknown_fields=True):
    name: Name


class GroupOut(msgspec.Struct):
    id: UUID
    name: str
    role: Role
    """The caller's."""
    created_by: UUID | None
    created_at: str


class GroupPage(msgspec.Struct):
    items: list[GroupOut]
    next_cursor: str | None


class MemberIn(msgspec.Struct, forbid_unknown_fields=True):
    """Either `user_id` or `email`. Ids are safer: nobody verifies email addresses."""

    user_id: UUID | None = None
    email: Email | None = None
    role: Role = "member"


class MemberPatch(msgspec.Struct, forbid_unknown_fields=True):
    role: Role


class MemberOut(msgspec.Struct):
    user_id: UUID
    name: str
    role: Role
    created_at: str
    email: str | msgspec.UnsetType = msgspec.UNSET
    """For owners, and one's own."""


class MemberPage(msgspec.Struct):
    items: list[MemberOut]
    next_cursor: str | None


def show_group(row: Any) -> GroupOut:
    return GroupOut(row["id"], row["name"], row["role"], row["created_by"], timestamp(row["created_at"]))


def show_member(row: Any) -> MemberOut:
    return MemberOut(
        row["user_id"],
        *(row["name"], row["role"], timestamp(row["created_at"]), row["email"] or msgspec.UNSET),
    )


@post(
    "/groups",
    operation_id="createGroup",
    tags=["Groups"],
    summary="Found a group, as its owner",
    responses={200: ResponseSpec(GroupOut, description="The same request was made before: the same group")},
)
async def create_group(request: Request, data: JSONBody[Body[GroupIn]]) -> Response[GroupOut]:
    """With the same `id` and name the same group is answered again; with another name the id is taken."""
    group = await data.read(request)
    row, is_new, events = await groups.create(
        request.user.user_id, group.name, group.id, request.mac_key, request.settings
    )
    after = request.announcing(events)
    return Response(show_group(row), status_code=201 if is_new else 200, background=after)


@get("/groups", operation_id="listGroups", tags=["Groups"], summary="The caller's groups")
async def list_groups(
    request: Request, limit: FromQuery[str | None] = None, cursor: FromQuery[str | None] = None
) -> GroupPage:
    """Each with the caller's role in it."""
    page = read_page(limit, cursor)
    rows, next_cursor = cut(await groups.list_own(request.user.user_id, page), page)
    return GroupPage([show_group(row) for row in rows], next_cursor)


@get("/groups/{group_id:str}", operation_id="getGroup", tags=["Groups"], summary="One group")
async def get_group(request: Request, group_id: FromPath[str]) -> GroupOut:
    """Of which the caller is a member; any other is not found."""
    return show_group(await groups.read(request.user.user_id, path_id(group_id, GroupNotFound)))


@patch("/groups/{group_id:str}", operation_id="renameGroup", tags=["Groups"], summary="Rename a group, by owners")
async def rename_group(request: Request, group_id: FromPath[str], data: JSONBody[Body[GroupPatch]]) -> GroupOut:
    """Members see the new name when they next ask; nothing is announced."""
    caller_id, found = request.user.user_id, path_id(group_id, GroupNotFound)
    changes = await data.read(request, groups.check_owner(caller_id, found))
    return show_group(await groups.rename(caller_id, found, changes.name))


@delete(
    "/groups/{group_id:str}",
    operation_id="deleteGroup",
    tags=["Groups"],
    summary="Delete a group and all in it, by owners",
    status_code=204,
)
async def delete_group(request: Request, group_id: FromPath[str]) -> Response[None]:
    """Members, posts, keys to posts and requests go with it. Its id is never used again."""
    events = await groups.delete(request.user.user_id, path_id(group_id, GroupNotFound))
    return Response(None, status_code=204, background=request.announcing(events))


@get("/groups/{group_id:str}/members", operation_id="listMembers", tags=["Groups"], summary="Who is in a group")
async def list_members(
    request: Request, group_id: FromPath[str], limit: FromQuery[str | None] = None, cursor: FromQuery[str | None] = None
) -> MemberPage:
    """Email addresses are shown to owners; others see their own alone."""
    caller_id, found = request.user.user_id, path_id(group_id, GroupNotFound)
    await groups.read(caller_id, found)
    page = read_page(limit, cursor)
    rows, next_cursor = cut(await groups.list_members(caller_id, found, page), page)
    return MemberPage([show_member(row) for row in rows], next_cursor)


@get(
    "/groups/{group_id:str}/keys",
    operation_id="listGroupKeys",
    tags=["Groups"],
    summary="The active keys of all members, whole, in one snapshot",
)
async def list_group_keys(request: Request, group_id: FromPath[str]) -> KeyList:
    """What a client seals a post to. Compare fingerprints with those that were accepted before."""
    rows = await groups.list_keys(request.user.user_id, path_id(group_id, GroupNotFound))
    return KeyList([show_key(row) for row in rows])


@post("/groups/{group_id:str}/members", operation_id="addMember", tags=["Groups"], summary="Add a member, by owners")
async def add_member(request: Request, group_id: FromPath[str], data: JSONBody[Body[MemberIn]]) -> Response[MemberOut]:
    """Old posts stay closed to the newcomer, who may ask for each; new ones are sealed to its keys too."""
    caller_id, found = request.user.user_id, path_id(group_id, GroupNotFound)
    member = await data.read(request, groups.check_owner(caller_id, found))
    if (member.user_id is None) == (member.email is None):
        await groups.check_owner(caller_id, found)
        raise Invalid(("", "either user_id or email is needed"))
    row, events = await groups.add_member(caller_id, found, member.user_id, member.email, member.role, request.settings)
    return Response(show_member(row), status_code=201, background=request.announcing(events))


@patch(
    "/groups/{group_id:str}/members/{user_id:str}",
    operation_id="changeRole",
    tags=["Groups"],
    summary="Make a member an owner or the other way round, by owners",
)
async def change_role(
    request: Request, group_id: FromPath[str], user_id: FromPath[str], data: JSONBody[Body[MemberPatch]]
) -> MemberOut:
    """The last owner stays one: 409 `last_owner`."""
    caller_id, found = request.user.user_id, path_id(group_id, GroupNotFound)
    changes = await data.read(request, groups.check_owner(caller_id, found))
    return show_member(await groups.change_role(caller_id, found, member_id(user_id), changes.role))


@delete(
    "/groups/{group_id:str}/members/{user_id:str}",
    operation_id="removeMember",
    tags=["Groups"],
    summary="Leave a group, or remove a member as an owner",
    status_code=204,
)
async def remove_member(request: Request, group_id: FromPath[str], user_id: FromPath[str]) -> Response[None]:
    """From this commit on nothing of the group is sealed or served to that user."""
    found = path_id(group_id, GroupNotFound)
    events = await groups.remove_member(request.user.user_id, found, member_id(user_id))
    return Response(None, status_code=204, background=request.announcing(events))


def member_id(text: str) -> UUID:
    """What is no UUID is nobody's id: whether the group is there, and whose it is, is answered first."""
    try:
        return path_id(text, MemberNotFound)
    except MemberNotFound:
        return UUID(int=0)


AUTHENTICATED = [
    create_group,
    list_groups,
    get_group,
    rename_group,
    delete_group,
    list_members,
    list_group_keys,
    add_member,
    change_role,
    remove_member,
]
