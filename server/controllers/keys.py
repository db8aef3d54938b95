from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from server import keys
from server.bodies import Base64, Body, Request, path_id
from server.errors import Invalid, KeyNotFound, UserNotFound
from server.events import timestamp
from server.keys import Endorsement
from server.lists import cut, read_page
from server.sealing import keys as sealing_keys

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=100, examples=["laptop"])]


class KeyIn(msgspec.Struct, forbid_unknown_fields=True):
    """`endorsed_by` and `endorsement` go together: how a second device is vouched for by the first."""

    public_key: Base64
    """X25519, 32 bytes."""
    verify_key: Base64
    """Ed25519, 32 bytes, of an independent pair."""
    proof: Base64
    """Signature by `verify_key` over `"secureblogs key v1" ‖ user id ‖ public_key ‖ verify_key`."""
    label: Label
    endorsed_by: UUID | None = None
    endorsement: Base64 | None = None


class KeyOut(msgspec.Struct):
    id: UUID
    user_id: UUID
    public_key: bytes
    verify_key: bytes
    proof: bytes
    fingerprint: str
    endorsed_by: UUID | None
    endorsement: bytes | None
    label: str
    created_at: str
    revoked_at: str | None


class KeyList(msgspec.Struct):
    items: list[KeyOut]


class KeyPage(KeyList):
    next_cursor: str | None


class UserKeysOut(msgspec.Struct):
    id: UUID
    name: str
    keys: list[KeyOut]


def show_key(row: Any) -> KeyOut:
    return KeyOut(
        id=row["id"],
        user_id=row["user_id"],
        public_key=row["public_key"],
        verify_key=row["verify_key"],
        proof=row["proof"],
        fingerprint=sealing_keys.fingerprint(row["user_id"], row["public_key"], row["verify_key"]),
        endorsed_by=row["endorsed_by"],
        endorsement=row["endorsement"],
        label=row["label"],
        created_at=timestamp(row["created_at"]),
        revoked_at=timestamp(row["revoked_at"]) if row["revoked_at"] else None,
    )


@post("/keys", operation_id="enrolKey", tags=["Keys"], summary="Enrol a public key")
async def enrol_key(request: Request, data: JSONBody[Body[KeyIn]]) -> KeyOut:
    """From now on the groups' posts are sealed to this key too. Private keys never leave their owner."""
    key = await data.read(request)
    row = await keys.enrol(
        request.user.user_id,
        *(key.public_key, key.verify_key, key.proof, key.label, read_endorsement(key), request.settings),
    )
    return show_key(row)


def read_endorsement(key: KeyIn) -> Endorsement | None:
    if key.endorsed_by is None and key.endorsement is None:
        return None
    if key.endorsed_by is None or key.endorsement is None:
        raise Invalid(("/endorsement", "goes with endorsed_by, and the other way round"))
    return Endorsement(key.endorsed_by, key.endorsement)


@get("/keys", operation_id="listKeys", tags=["Keys"], summary="Own keys, revoked ones too")
async def list_keys(
    request: Request, limit: FromQuery[str | None] = None, cursor: FromQuery[str | None] = None
) -> KeyPage:
    """A revoked key stays on the list, with the time of it."""
    page = read_page(limit, cursor)
    rows, next_cursor = cut(await keys.list_own(request.user.user_id, page), page)
    return KeyPage([show_key(row) for row in rows], next_cursor)


@delete(
    "/keys/{key_id:str}", operation_id="revokeKey", tags=["Keys"], summary="Revoke a key, for good", status_code=204
)
async def revoke_key(request: Request, key_id: FromPath[str]) -> Response[None]:
    """Nothing more is sealed to it or served for it. It can't be enrolled again. Repeating this is no error."""
    events = await keys.revoke(request.user.user_id, path_id(key_id, KeyNotFound))
    return Response(None, status_code=204, background=request.announcing(events))


@get("/users/{user_id:str}/keys", operation_id="listUserKeys", tags=["Keys"], summary="Somebody's keys")
async def list_user_keys(request: Request, user_id: FromPath[str]) -> UserKeysOut:
    """Of members of the caller's groups, authors of posts there, and those who ask the caller. Revoked ones too."""
    found = path_id(user_id, UserNotFound)
    name, rows = await keys.list_of_user(request.user.user_id, found)
    return UserKeysOut(found, name, [show_key(row) for row in rows])


AUTHENTICATED = [enrol_key, list_keys, revoke_key, list_user_keys]
