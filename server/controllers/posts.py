from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import msgspec
from litestar import MediaType, Response, delete, get, post
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import ResponseHeader
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.types import Receive, Scope, Send

from server import posts
from server.after_commit import enqueue_seal
from server.auth import PROVES, prove
from server.bodies import Base64, Body, Request, path_id
from server.errors import Invalid, PostNotFound
from server.lists import read_page
from server.posts import OwnKey

T = TypeVar("T")

Access = Literal["failed", "sealing", "readable", "requested", "denied", "no_key", "key_revoked", "not_granted"]


class PostIn(msgspec.Struct, forbid_unknown_fields=True):
    """With an `id` (UUIDv7) of its own a client may repeat the request safely."""

    group_id: UUID
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200, examples=["The key is under the mat"])]
    content: Annotated[str, msgspec.Meta(description="At most 256 KiB of UTF-8", examples=["The green one."])]
    attachments: Annotated[list[UUID], msgspec.Meta(max_length=20)] = []
    id: UUID | None = None


class SealedKey(msgspec.Struct, forbid_unknown_fields=True):
    public_key_id: UUID
    sealed_key: Base64
    """`crypto_box_seal(post key, public key)`, 80 bytes."""


class SealedKeyOut(msgspec.Struct):
    public_key_id: UUID
    sealed_key: bytes


class KeysIn(msgspec.Struct, forbid_unknown_fields=True):
    sealed_keys: Annotated[list[SealedKey], msgspec.Meta(min_length=1, max_length=100)]


class PostHeadOut(msgspec.Struct, kw_only=True):
    """A post as lists show it, without `content`. What is not there yet is null."""

    id: UUID
    group_id: UUID
    author_id: UUID
    status: Literal["pending", "sealed", "failed"]
    sealed_by: Literal["server", "author"]
    heading: bytes | None
    content_hash: bytes | None
    commitment: bytes | None
    signature: bytes | None
    signing_key_id: UUID | None
    failure: str | None
    sealed_keys: list[SealedKeyOut]
    """The post key, sealed to the caller's active keys."""
    access: Access
    created_at: str
    sealed_at: str | None


class PostOut(PostHeadOut, kw_only=True):
    content: bytes | None


class PostPage(msgspec.Struct):
    items: list[PostHeadOut]
    next_cursor: str | None


def show_post(row: Any, **options: Any) -> Response[PostOut]:
    """The JSON that Postgres made of it, in the form of PostOut."""
    return Response(row["json"], media_type=MediaType.JSON, **options)


class Ready(Response[T]):
    """200, with JSON that is made already. Litestar's way there, which is for objects, is a third of a call's CPU."""

    def __init__(self, text: str) -> None:
        self.body = text.encode()

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        return self._send

    async def _send(self, _: Scope, __: Receive, send: Send) -> None:
        length = (b"content-length", str(len(self.body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [JSON, length]})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


JSON = (b"content-type", b"application/json")


def show_page(found: posts.JsonPage) -> Response[PostPage]:
    cursor = "null" if found.next_cursor is None else f'"{found.next_cursor}"'
    return Ready(f'{{"items":[{",".join(found.items)}],"next_cursor":{cursor}}}')


@post(
    "/posts",
    operation_id="createPost",
    tags=["Posts"],
    summary="Publish a post that the server seals",
    response_headers=[ResponseHeader(name="Location", description="Where the post is", value="")],
    responses={200: ResponseSpec(PostOut, description="The same request was made before: the same post")},
    opt=PROVES,
)
async def create_post(request: Request, data: JSONBody[Body[PostIn]]) -> Response[PostOut]:
    """The text is sealed to the workers' key at once; a worker seals the post to every member and erases that draft.

    Text exists in the memory of these two processes only. `status` is `pending` until then; `post.sealed` is announced.
    """
    new = await data.read(request, check_named_group(request, data))
    caller_id = request.user.user_id
    async with request.quotas.reserve(caller_id, "posts", lambda: posts.is_known(new.id)) as reservation:
        row, is_new = await posts.publish(
            caller_id,
            *(new.group_id, new.title, new.content, new.attachments, new.id),
            *(request.worker_public_key, request.mac_key, request.unproven),
        )
        reservation.is_used = is_new
    return show_post(
        row,
        status_code=201 if is_new else 200,
        headers={"Location": f"{request.settings.root_path}/posts/{row['id']}"},
        background=BackgroundTask(enqueue_seal, request.redis, row["id"]) if is_new else None,
    )


async def check_named_group(request: Request, data: Body[Any]) -> None:
    """Whether the caller is in the group that an otherwise unfit body names."""
    group_id = data.peek_id("group_id")
    if group_id is not None:
        await posts.check_member(request.user.user_id, group_id)


@get(
    "/posts",
    operation_id="listPosts",
    tags=["Posts"],
    summary="Posts of a group, or of all the caller's groups",
    opt=PROVES,
)
async def list_posts(
    request: Request,
    group_id: FromQuery[str | None] = None,
    limit: FromQuery[str | None] = None,
    cursor: FromQuery[str | None] = None,
) -> Response[PostPage]:
    """Newest first, without `content`."""
    caller_id, page = request.user.user_id, read_page(limit, cursor)
    if group_id is None:
        await prove(request)
        found = await posts.list_all(caller_id, page)
    else:
        found = await posts.list_of_group(caller_id, query_id("group_id", group_id), page, request.unproven)
    return show_page(found)


def query_id(name: str, text: str) -> UUID:
    try:
        return msgspec.convert(text, UUID)
    except msgspec.ValidationError:
        raise Invalid((f"?{name}", "is not a UUID")) from None


@get("/posts/{post_id:str}", operation_id="getPost", tags=["Posts"], summary="One post, whole", opt=PROVES)
async def get_post(request: Request, post_id: FromPath[str]) -> Response[PostOut]:
    """`access` says why it can't be read, where that is so."""
    row = await posts.read(request.user.user_id, path_id(post_id, PostNotFound), request.unproven)
    return Ready(row["json"])


@post(
    "/posts/{post_id:str}/requeue",
    operation_id="requeuePost",
    tags=["Posts"],
    summary="Try a failed post again, by its author",
    status_code=200,
)
async def requeue_post(request: Request, post_id: FromPath[str]) -> Response[PostOut]:
    """A post that is not failed is answered as it is."""
    row, was_failed = await posts.requeue(request.user.user_id, path_id(post_id, PostNotFound))
    after = BackgroundTask(enqueue_seal, request.redis, row["id"]) if was_failed else None
    return show_post(row, background=after)


@delete(
    "/posts/{post_id:str}",
    operation_id="deletePost",
    tags=["Posts"],
    summary="Delete a post, by its author or an owner of the group",
    status_code=204,
)
async def delete_post(request: Request, post_id: FromPath[str]) -> Response[None]:
    events = await posts.delete(request.user.user_id, path_id(post_id, PostNotFound))
    return Response(None, status_code=204, background=request.announcing(events))


@post(
    "/posts/{post_id:str}/keys",
    operation_id="addPostKeys",
    tags=["Posts"],
    summary="Add a post's key for further active keys of one's own",
)
async def add_post_keys(request: Request, post_id: FromPath[str], data: JSONBody[Body[KeysIn]]) -> Response[PostOut]:
    """For a second device: by whoever holds the key, all or nothing."""
    caller_id, found = request.user.user_id, path_id(post_id, PostNotFound)
    new = await data.read(request, posts.check_may_add_keys(caller_id, found))
    sealed_keys = [OwnKey(key.public_key_id, key.sealed_key) for key in new.sealed_keys]
    return show_post(await posts.add_own_keys(caller_id, found, sealed_keys))


AUTHENTICATED = [create_post, list_posts, get_post, requeue_post, delete_post, add_post_keys]
