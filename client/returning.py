"""Giving back a grant that does not open its post, and asking again.

Who granted it may have made a slip, or the server may have put another sealed key in its place: the commitment tells
that it is wrong, not whose fault it is. So it is given back and asked for again, twice for a post at most: the count is
kept on this machine, since a server that lies would be asked for ever.
"""

from pathlib import Path
from uuid import UUID

import msgspec
from msgspec import Struct

from client import files
from client.api import Client
from client.errors import CannotOpen, Conflict, GrantReturned, StorageError, WrongPostKey
from client.identity import Identity
from client.models import ReadRequest
from client.people import People
from client.reading import read_post

MOST_RETURNS = 2


class _Returns(Struct, kw_only=True):
    v: int = 1
    posts: dict[UUID, int] = {}


async def check_grant(
    client: Client, identity: Identity, people: People, path: Path, request_id: UUID, user_id: UUID
) -> None:
    """Open the post of an approved request of this user's own, and give back a grant that does not.

    Another's request, or one that is not approved any more, is let be. Raises GrantReturned, and all that `read_post`
    raises.
    """
    request = await client.read_request(request_id)
    if request.requester_id != user_id or request.status != "approved":
        return
    try:
        await read_post(client, identity, people, request.post_id)
    except WrongPostKey as wrong:
        raise await give_back(client, path, wrong) from None


async def give_back(client: Client, path: Path, wrong: WrongPostKey) -> CannotOpen:
    """Give back the grant that brought a wrong key, and ask again. What to tell the person about it, to be raised.

    `path` is the file of this profile that keeps count. Where the key came from no grant, nothing is done.
    """
    request = await _find_grant(client, wrong)
    if request is None:
        return wrong
    number = _count(path, wrong.post_id)
    said = "what was granted does not open this post"
    if number > MOST_RETURNS:
        return GrantReturned(
            wrong.post_id, None, f"{said}, and was given back {MOST_RETURNS} times already: ask another who may decide"
        )
    await client.withdraw(request.id)
    try:
        again = await client.request_read(wrong.post_id, public_key_id=request.public_key_id)
    except Conflict as error:
        return GrantReturned(wrong.post_id, None, f"{said}: it was given back, and can't be asked for again ({error})")
    return GrantReturned(
        wrong.post_id, again.id, f"{said}: it was given back, and asked for again ({number} of {MOST_RETURNS})"
    )


async def _find_grant(client: Client, wrong: WrongPostKey) -> ReadRequest | None:
    async for request in client.read_requests("requester", "approved"):
        if request.post_id == wrong.post_id and request.public_key_id in wrong.key_ids:
            return request
    return None


def _count(path: Path, post_id: UUID) -> int:
    """The how manieth return of a post this is; no more are counted than are made."""
    with files.locked(path):
        content = files.read(path)
        try:
            returns = _Returns() if content is None else msgspec.json.decode(content, type=_Returns)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise StorageError(f"{path} is damaged: remove it, and returned grants are counted anew") from None
        number = returns.posts.get(post_id, 0) + 1
        if number <= MOST_RETURNS:
            returns.posts[post_id] = number
            files.write(path, msgspec.json.encode(returns))
    return number
