"""Granting a read request: the post key, sealed again to one more key.

A lying server could name another post, or another person's key. So the named post is opened completely first, and what
is sealed is the key that opened it; the recipient's key is taken from the user's own keys, its proof is checked, it
is compared with the request, and the fingerprint shown is that of the very bytes sealed to.
"""

from uuid import UUID

from msgspec import Struct

from client.api import Client
from client.errors import AlreadyDecided, CannotGrant
from client.events import ReadRequestCreated, RequestEvent, event_of
from client.identity import Identity
from client.models import ReadRequest
from client.people import AcceptedKey, People
from client.reading import OpenedPost, read_post
from server.sealing import posts as sealing_posts
from server.sealing.errors import SealingError


class Grant(Struct, frozen=True, kw_only=True):
    """An approval that only waits for its person: `client.approve(grant.request.id, grant.sealed_key)`."""

    request: ReadRequest
    opened: OpenedPost
    recipient: AcceptedKey
    sealed_key: bytes


async def prepare_grant(
    client: Client, identity: Identity, people: People, request_id: UUID, *, told: RequestEvent | None = None
) -> Grant:
    """Check a pending request and seal its post's key to the requester. Nothing is sent.

    `told` is what a list or the socket said of it, where a decision rests on that: it must be the same still.
    Raises AlreadyDecided, CannotGrant, UntrustedKey, and all that `read_post` raises.
    """
    request = await fetch_pending(client, request_id)
    if told is not None and _facts(told) != _facts(event_of(request)):
        raise CannotGrant("the server shows this request otherwise than it announced it")
    opened = await read_post(client, identity, people, request.post_id)
    if opened.post.group_id != request.group_id:
        raise CannotGrant("the request names another group than the post has")
    recipient = await people.accepted_key(request.requester_id, request.public_key_id)
    if recipient.revoked_at is not None:
        raise CannotGrant("the key that this was asked for is revoked")
    if (recipient.key.public_key, recipient.key.verify_key) != (request.public_key, request.verify_key):
        raise CannotGrant("the request shows another key than the requester has under that id")
    if not await is_member(client, request.group_id, request.requester_id):
        raise CannotGrant("the one who asks is no member of the group")
    try:
        sealed_key = sealing_posts.seal_key(opened.post_key, recipient.key.public_key)
    except SealingError as error:
        raise CannotGrant(str(error)) from None
    return Grant(request=request, opened=opened, recipient=recipient, sealed_key=sealed_key)


def _facts(event: RequestEvent | None) -> tuple[object, ...]:
    """What a request asks for: which post, for whom, and to which very key."""
    if not isinstance(event, ReadRequestCreated):
        return ()
    who = (event.requested_user_id, event.public_key_id, event.user_public_key, event.verify_key)
    return (event.request_id, event.post_id, event.group_id, *who)


async def fetch_pending(client: Client, request_id: UUID) -> ReadRequest:
    """A request that still waits; else AlreadyDecided. It needs no private key."""
    request = await client.read_request(request_id)
    if request.status != "pending":
        raise AlreadyDecided(f"this request is already {request.status}")
    return request


async def is_member(client: Client, group_id: UUID, user_id: UUID) -> bool:
    """Who asks has most likely joined late, and those who joined last come first."""
    async for member in client.members(group_id):
        if member.user_id == user_id:
            return True
    return False
