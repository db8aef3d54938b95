"""What the WebSocket says, as structs: one class for each frame, told apart by `type`.

`event_id` is the same whenever the same thing is told again; `replayed` marks what happened before the connection.
Two are made here and not by the server: `Disconnected`, and what `CaughtUp.pending` holds.
"""

from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import Struct

from client.errors import BadAnswer
from client.models import ReadRequest


class Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    """The common part of all of them."""

    event_id: UUID | None = None
    replayed: bool = False

    @property
    def type(self) -> str:
        return str(self.__struct_config__.tag)


class ConnectionAccepted(Event, frozen=True, kw_only=True, tag="connection.accepted"):
    user_id: UUID
    message: str = ""


class ReadRequestCreated(Event, frozen=True, kw_only=True, tag="read_request.created"):
    """Somebody asks to read a post, and the one who hears this may decide."""

    request_id: UUID
    post_id: UUID
    group_id: UUID
    requested_user_id: UUID
    requester_name: str
    user_public_key: bytes
    public_key_id: UUID
    verify_key: bytes
    fingerprint: str
    created_at: datetime


class _Decision(Event, frozen=True, kw_only=True):
    request_id: UUID
    post_id: UUID
    decided_by: UUID | None = None
    decided_at: datetime | None = None


class ReadRequestApproved(_Decision, frozen=True, kw_only=True, tag="read_request.approved"):
    pass


class ReadRequestDenied(_Decision, frozen=True, kw_only=True, tag="read_request.denied"):
    pass


class ReadRequestCancelled(_Decision, frozen=True, kw_only=True, tag="read_request.cancelled"):
    """The one who asked took it back, or left, or the post or the key is gone."""


class ReadRequestReturned(_Decision, frozen=True, kw_only=True, tag="read_request.returned"):
    """What was granted did not open the post, and was given back."""


class _PostEvent(Event, frozen=True, kw_only=True):
    post_id: UUID
    group_id: UUID
    author_id: UUID


class PostSealed(_PostEvent, frozen=True, kw_only=True, tag="post.sealed"):
    pass


class PostDeleted(_PostEvent, frozen=True, kw_only=True, tag="post.deleted"):
    pass


class PostFailed(_PostEvent, frozen=True, kw_only=True, tag="post.failed"):
    failure: str


class _Membership(Event, frozen=True, kw_only=True):
    group_id: UUID
    user_id: UUID


class MemberAdded(_Membership, frozen=True, kw_only=True, tag="group.member_added"):
    pass


class MemberRemoved(_Membership, frozen=True, kw_only=True, tag="group.member_removed"):
    pass


class CaughtUp(Event, frozen=True, kw_only=True, tag="caught_up"):
    """All that was missed has been told; what follows is live.

    `at` is the `since` of a later connection. `pending` holds the ids of every request that waits for this user's
    decision: a request held beyond them is settled.
    """

    at: str
    pending: frozenset[UUID] = frozenset()


class More(Event, frozen=True, kw_only=True, tag="more"):
    """There was more to tell than one replay holds; the lists have it."""

    next: str | None = None


class Ping(Event, frozen=True, kw_only=True, tag="ping"):
    pass


class Disconnected(Event, frozen=True, kw_only=True, tag="disconnected"):
    """The connection was lost, or could not be made; it is tried again in `retry_in` seconds."""

    code: int
    reason: str
    retry_in: float


RequestEvent = ReadRequestCreated | ReadRequestApproved | ReadRequestDenied | ReadRequestCancelled | ReadRequestReturned

_DECISIONS: dict[
    str,
    type[ReadRequestApproved | ReadRequestDenied | ReadRequestCancelled | ReadRequestReturned],
] = {
    "approved": ReadRequestApproved,
    "denied": ReadRequestDenied,
    "cancelled": ReadRequestCancelled,
    "returned": ReadRequestReturned,
}

_FRAMES: list[type[Event]] = [
    ConnectionAccepted,
    ReadRequestCreated,
    ReadRequestApproved,
    ReadRequestDenied,
    ReadRequestCancelled,
    ReadRequestReturned,
    PostSealed,
    PostDeleted,
    PostFailed,
    MemberAdded,
    MemberRemoved,
    CaughtUp,
    More,
    Ping,
]
_KINDS = {str(kind.__struct_config__.tag): kind for kind in _FRAMES}


class _Kind(Struct):
    type: str


def decode_event(frame: str | bytes) -> Event | None:
    """The event of one frame; None for a kind that this version does not know. Raises BadAnswer."""
    try:
        kind = _KINDS.get(msgspec.json.decode(frame, type=_Kind).type)
        return None if kind is None else msgspec.json.decode(frame, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"the server sent a frame that is none: {error}") from None


def event_of(request: ReadRequest) -> RequestEvent | None:
    """What a replay would tell of a request as it stands in a list; None for an unknown state."""
    if request.status == "pending":
        return ReadRequestCreated(
            replayed=True,
            request_id=request.id,
            post_id=request.post_id,
            group_id=request.group_id,
            requested_user_id=request.requester_id,
            requester_name=request.requester_name,
            user_public_key=request.public_key,
            public_key_id=request.public_key_id,
            verify_key=request.verify_key,
            fingerprint=request.fingerprint,
            created_at=request.created_at,
        )
    kind = _DECISIONS.get(request.status)
    if kind is None:
        return None
    return kind(
        replayed=True,
        request_id=request.id,
        post_id=request.post_id,
        decided_by=request.decided_by,
        decided_at=request.decided_at,
    )
