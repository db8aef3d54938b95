"""Files: sealed as they come in, and streamed to those who may read their post."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes
from uuid import UUID

import msgspec
import uuid_utils.compat
from litestar import Response, delete, get, post
from litestar.exceptions import HTTPException
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.response import Stream

from server import attachments, links, objects, uploads
from server.bodies import Body, Request, path_id
from server.errors import AttachmentNotFound, FileTooLarge, Invalid, LinkNotFound, RangeNotSatisfiable
from server.events import timestamp
from server.head import is_head
from server.lists import cut, read_page
from server.sealing import files
from server.uploads import Named

# Far below the day after which the object of an unfinished upload is taken away.
UPLOAD_TIMEOUT_S = 12 * 3600
# A client that sends nothing for so long has left without a word.
PIECE_TIMEOUT_S = 60

MAX_NAME_CHARACTERS = 255
MAX_MEDIA_TYPE_CHARACTERS = 127

_EXT_VALUE = re.compile(r"utf-8'[A-Za-z0-9-]*'((?:[A-Za-z0-9!#$&+.^_`|~-]|%[0-9A-Fa-f]{2})+)", re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class AttachmentOut(msgspec.Struct):
    id: UUID
    sealed_by: str
    """`server` or `author`."""
    size: int
    """Of the file, in bytes."""
    sealed_size: int
    """Of the stream, in bytes."""


class LinkIn(msgspec.Struct, forbid_unknown_fields=True):
    expires_in: Annotated[int, msgspec.Meta(ge=60, le=2_592_000, examples=[86_400])]
    """In seconds."""
    max_downloads: Annotated[int, msgspec.Meta(ge=1, le=1000, examples=[1])] | None = None


class LinkOut(msgspec.Struct):
    id: UUID
    created_at: str
    expires: str
    downloads_left: int | None
    revoked_at: str | None


class NewLinkOut(msgspec.Struct):
    id: UUID
    url: str
    """Shown once. A client appends `#` and what opens the file, which no server sees."""
    expires: str


class LinkPage(msgspec.Struct):
    items: list[LinkOut]
    next_cursor: str | None


def read_file_name(header: str | None) -> str:
    """RFC 8187: `UTF-8''na%C3%AFve.txt`. Raises Invalid."""
    match = _EXT_VALUE.fullmatch(header or "")
    if match is None:
        raise Invalid(("X-Filename", "must look like UTF-8''na%C3%AFve.txt, as RFC 8187 has it"))
    try:
        name = unquote_to_bytes(match[1]).decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid(("X-Filename", "is not UTF-8")) from None
    if len(name) > MAX_NAME_CHARACTERS:
        raise Invalid(("X-Filename", f"is over {MAX_NAME_CHARACTERS} characters"))
    if "/" in name or any(ord(character) < 32 or 127 <= ord(character) < 160 for character in name):
        raise Invalid(("X-Filename", "has a slash or a control character in it"))
    return name


def read_media_type(header: str | None) -> str:
    """Without its parameters. Raises Invalid."""
    media_type = (header or "application/octet-stream").partition(";")[0].strip().lower()
    if not _MEDIA_TYPE.fullmatch(media_type) or len(media_type) > MAX_MEDIA_TYPE_CHARACTERS:
        raise Invalid(("Content-Type", "is no media type"))
    return media_type


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes; 408 if it stops coming."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(PIECE_TIMEOUT_S):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HTTPException("The file stopped coming.", status_code=408) from None
        yield piece


@post(
    "/attachments",
    operation_id="uploadAttachment",
    tags=["Attachments"],
    summary="Upload a file",
    responses={200: ResponseSpec(AttachmentOut, description="The same file came before: the same attachment")},
)
async def upload(
    request: Request, id: FromQuery[str | None] = None, sealed: FromQuery[str | None] = None
) -> Response[AttachmentOut]:
    """The body is the file. It is sealed as it comes and never lies anywhere in clear.

    `X-Filename` is needed and as RFC 8187 has it, `Content-Type` becomes the file's media type. With `sealed=true` the
    body is the client's own stream, and `id`, which is in that stream, is needed. What no post takes goes after a day.
    """
    refuse_what_is_too_large(request, by_author=sealed == "true")
    by_author = read_flag("sealed", sealed)
    attachment_id = read_id(id, needed=by_author)
    named = Named("", "")
    if not by_author:
        headers = request.headers
        named = Named(read_file_name(headers.get("x-filename")), read_media_type(headers.get("content-type")))
    row, is_new = await store_upload(request, attachment_id, named, by_author=by_author)
    return Response(show_attachment(row), status_code=201 if is_new else 200)


def refuse_what_is_too_large(request: Request, *, by_author: bool) -> None:
    """By the length that its head tells, before a byte of it was asked for. Raises FileTooLarge."""
    max_bytes = request.settings.max_attachment_bytes
    announced = request.content_length
    if announced is not None and announced > (files.sealed_size(max_bytes) if by_author else max_bytes):
        raise FileTooLarge(max_bytes=max_bytes)


def read_flag(name: str, text: str | None) -> bool:
    if text not in {None, "true", "false"}:
        raise Invalid((f"?{name}", "must be true or false"))
    return text == "true"


def read_id(text: str | None, *, needed: bool) -> UUID:
    if text is None and not needed:
        return uuid_utils.compat.uuid7()
    try:
        found = UUID(text or "")
    except ValueError:
        raise Invalid(("?id", "must be a UUID of version 7")) from None
    if found.version != 7:
        raise Invalid(("?id", "must be a UUID of version 7"))
    return found


async def store_upload(request: Request, attachment_id: UUID, named: Named, *, by_author: bool) -> tuple[Any, bool]:
    """The attachment, and whether it is new. What was not stored is not counted."""
    settings, user_id = request.settings, request.user.user_id
    max_bytes, mac_key = settings.max_attachment_bytes, request.mac_key
    charged: Counter[int] = Counter()
    is_new = False
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            body = charge(request, charged)
            if by_author:
                sealed = await uploads.take(request.store, body, user_id, max_bytes=max_bytes, mac_key=mac_key)
            else:
                sealed = await uploads.seal(
                    *(request.store, body, attachment_id, user_id, named),
                    max_bytes=max_bytes,
                    worker_public_key=request.worker_public_key,
                    mac_key=mac_key,
                )
        row, is_new = await uploads.finish(attachment_id, user_id, sealed, by_author=by_author)
    except TimeoutError:
        raise HTTPException("The upload took too long.", status_code=408) from None
    finally:
        if not is_new:
            for day, count in charged.items():
                await request.quotas.give_back(user_id, "upload_bytes", count, day)
    return row, is_new


async def charge(request: Request, charged: Counter[int]) -> AsyncIterator[memoryview]:
    """The body in blocks, each counted in `charged` by its day. Raises QuotaExceeded."""
    async for block in files.in_blocks(pieces(request), uploads.BLOCK_BYTES):
        charged[await request.quotas.take(request.user.user_id, "upload_bytes", len(block))] += len(block)
        yield block


def show_attachment(row: Any) -> AttachmentOut:
    return AttachmentOut(row["id"], row["sealed_by"], row["size"], files.sealed_size(row["size"]))


@get(
    "/attachments/{attachment_id:str}",
    operation_id="downloadAttachment",
    tags=["Attachments"],
    summary="The stream of a sealed file",
    media_type="application/octet-stream",
    responses={
        206: ResponseSpec(bytes, description="The range that was asked for", media_type="application/octet-stream"),
        304: ResponseSpec(None, description="It never changes"),
    },
)
async def download(request: Request, attachment_id: FromPath[str]) -> Response[Any]:
    """For every current member of its post's group, and before it has a post for its owner. `Range` and `ETag` work."""
    row = await attachments.read(request.user.user_id, path_id(attachment_id, AttachmentNotFound))
    tag = entity_tag(row["id"])
    if names(request.headers.get("if-none-match"), tag):
        return Response(b"", status_code=304, headers={"ETag": tag})
    size = files.sealed_size(row["size"])
    wanted = read_range(request, tag, size)
    start, end = wanted or (0, size)
    body = nothing() if is_head(request) else objects.read(request.store, row["object_key"], start, end)
    return await stream(body, start, end, size, {"ETag": tag, "Accept-Ranges": "bytes"}, is_part=wanted is not None)


async def nothing() -> AsyncGenerator[bytes, None]:
    """In the place of an object that nobody will see."""
    none: tuple[bytes, ...] = ()
    for block in none:
        yield block


def entity_tag(attachment_id: UUID) -> str:
    return f'"{attachment_id}"'


def names(header: str | None, tag: str) -> bool:
    """Whether the list of entity tags in `If-None-Match` has this one."""
    return header is not None and (
        header.strip() == "*" or tag in {one.strip().removeprefix("W/") for one in header.split(",")}
    )


def read_range(request: Request, tag: str, size: int) -> tuple[int, int] | None:
    """Begin and end of one range of bytes; None where the whole is wanted. Raises RangeNotSatisfiable."""
    header = request.headers.get("range")
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[0] == "bytes=-" or request.headers.get("if-range", tag) != tag:
        # A range of another kind, or several, may be ignored, and is.
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    else:
        start, end = max(0, size - int(last)), size
    if start >= end:
        raise RangeNotSatisfiable(size=size)
    return start, end


async def stream(
    body: AsyncGenerator[bytes, None], start: int, end: int, size: int, headers: dict[str, str], *, is_part: bool
) -> Response[Any]:
    """Answer once the first bytes are there: a store that is away is a 503, not a broken stream."""
    first = await anext(body, b"")
    headers |= {
        "Content-Length": str(end - start),
        "Content-Type": "application/octet-stream",
        "Content-Disposition": "attachment",
    }
    if is_part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Stream(rest(first, body), status_code=206 if is_part else 200, headers=headers)


async def rest(first: bytes, body: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(body):
        yield first
        async for block in body:
            yield block


@post(
    "/attachments/{attachment_id:str}/links",
    operation_id="createLink",
    tags=["Attachments"],
    summary="Make a link that needs no credential",
)
async def create_link(request: Request, attachment_id: FromPath[str], data: JSONBody[Body[LinkIn]]) -> NewLinkOut:
    """It gives the sealed stream to whoever has it, until it ends.

    It ends as well with its file, with its post, and with your right to see them.
    """
    found = path_id(attachment_id, AttachmentNotFound)
    wanted = await data.read(request, attachments.read(request.user.user_id, found))
    row, token = await links.create(request.user.user_id, found, wanted.expires_in, wanted.max_downloads)
    url = f"{request.settings.public_url}{request.settings.root_path}/download/{token}"
    return NewLinkOut(row["id"], url, timestamp(row["expires"]))


@get(
    "/attachments/{attachment_id:str}/links",
    operation_id="listLinks",
    tags=["Attachments"],
    summary="Your links to a file",
)
async def list_links(
    request: Request,
    attachment_id: FromPath[str],
    limit: FromQuery[str | None] = None,
    cursor: FromQuery[str | None] = None,
) -> LinkPage:
    """Those that have ended too. A link's address is not told again."""
    page = read_page(limit, cursor)
    found = path_id(attachment_id, AttachmentNotFound)
    rows, next_cursor = cut(await links.list_own(request.user.user_id, found, page), page)
    return LinkPage([show_link(row) for row in rows], next_cursor)


def show_link(row: Any) -> LinkOut:
    revoked_at = timestamp(row["revoked_at"]) if row["revoked_at"] else None
    return LinkOut(
        row["id"], timestamp(row["created_at"]), timestamp(row["expires"]), row["downloads_left"], revoked_at
    )


@delete("/links/{link_id:str}", operation_id="revokeLink", tags=["Attachments"], summary="End a link", status_code=204)
async def revoke_link(request: Request, link_id: FromPath[str]) -> None:
    """From now on it answers 410. Repeating this is no error."""
    await links.revoke(request.user.user_id, path_id(link_id, LinkNotFound))


@get(
    "/download/{token:str}",
    operation_id="downloadByLink",
    tags=["Attachments"],
    summary="The stream that a link leads to",
    security=[{}],
    media_type="application/octet-stream",
    responses={
        206: ResponseSpec(bytes, description="The range that was asked for", media_type="application/octet-stream"),
    },
)
async def download_by_link(request: Request, token: FromPath[str]) -> Response[Any]:
    """410 `link_gone` once it has ended. Where downloads are counted, this is one, and `Range` is not heeded."""
    link = await links.find(token)
    size = files.sealed_size(link["size"])
    wanted = None if link["is_limited"] else read_range(request, entity_tag(link["attachment_id"]), size)
    start, end = wanted or (0, size)
    headers = {} if link["is_limited"] else {"Accept-Ranges": "bytes", "ETag": entity_tag(link["attachment_id"])}
    body = nothing() if is_head(request) else objects.read(request.store, link["object_key"], start, end)
    answer = await stream(body, start, end, size, headers, is_part=wanted is not None)
    if link["is_limited"] and not is_head(request):
        await take_or_close(link["link_id"], body)
    return answer


async def take_or_close(link_id: UUID, body: AsyncGenerator[bytes, None]) -> None:
    """The first bytes are there: now it is a download. Raises LinkGone."""
    try:
        await links.take_download(link_id)
    except BaseException:
        await body.aclose()
        raise


PUBLIC = [download_by_link]
AUTHENTICATED = [download, create_link, list_links, revoke_link]
UPLOADS = [upload]
