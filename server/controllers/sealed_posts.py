from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, post
from litestar.datastructures import ResponseHeader
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from server import posts, sealed_posts
from server.bodies import Base64, Body, Request
from server.controllers.keys import show_key
from server.controllers.posts import PostOut, SealedKey, check_named_group, show_post
from server.errors import RecipientsChanged
from server.events import Event
from server.posts import OwnKey
from server.sealed_posts import SealedPost


class SealedPostIn(msgspec.Struct, forbid_unknown_fields=True):
    """What the author's client made. `sealed_keys` and `withheld` name, together, exactly the group's active keys."""

    id: UUID
    group_id: UUID
    heading: Base64
    """24 + 16 + 256·n bytes."""
    content: Base64
    """24 + 16 + 256·n bytes."""
    commitment: Base64
    """32 bytes."""
    signature: Base64
    """64 bytes, by the key `signing_key_id`."""
    signing_key_id: UUID
    sealed_keys: list[SealedKey]
    withheld: list[UUID] = []
    """Keys that the author openly leaves out."""
    attachments: Annotated[list[UUID], msgspec.Meta(max_length=20)] = []


@post(
    "/posts/sealed",
    operation_id="createSealedPost",
    tags=["Posts"],
    summary="Publish a post that the author's client has sealed",
    response_headers=[ResponseHeader(name="Location", description="Where the post is", value="")],
    responses={200: ResponseSpec(PostOut, description="The same request was made before: the same post")},
)
async def create_sealed_post(request: Request, data: JSONBody[Body[SealedPostIn]]) -> Response[PostOut]:
    """The server never sees the text. It verifies sizes and the signature, and that nobody is left out unseen.

    409 `recipients_changed` brings `missing` (whole keys) and `unknown` (ids): seal to what is missing and try again.
    """
    new = await data.read(request, check_named_group(request, data))
    row, is_new, events = await publish(request, new)
    return show_post(
        row,
        status_code=201 if is_new else 200,
        headers={"Location": f"{request.settings.root_path}/posts/{row['id']}"},
        background=request.announcing(events),
    )


async def publish(request: Request, new: SealedPostIn) -> tuple[Any, bool, list[Event]]:
    sealed = SealedPost(
        id=new.id,
        group_id=new.group_id,
        heading=new.heading,
        content=new.content,
        commitment=new.commitment,
        signature=new.signature,
        signing_key_id=new.signing_key_id,
        sealed_keys=[OwnKey(key.public_key_id, key.sealed_key) for key in new.sealed_keys],
        withheld=new.withheld,
        attachment_ids=new.attachments,
    )
    caller_id = request.user.user_id
    try:
        async with request.quotas.reserve(caller_id, "posts", lambda: posts.is_known(new.id)) as reservation:
            row, reservation.is_used, events = await sealed_posts.publish(caller_id, sealed, request.mac_key)
            return row, reservation.is_used, events
    except RecipientsChanged as changed:
        changed.facts["missing"] = [show_key(row) for row in changed.facts["missing"]]
        raise


AUTHENTICATED = [create_sealed_post]
