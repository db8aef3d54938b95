"""A file on its way in: sealed while it comes, or taken as its author sealed it, and brought to the object store.

In memory is never more than a block and the few parts that the store has in hand.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from obstore.store import ObjectStore

from server import attachments, objects
from server.errors import FileTooLarge, Invalid
from server.sealing import digests, files
from server.sealing.drafts import seal_file_draft
from server.sealing.errors import CannotOpenFile
from server.sealing.texts import Attachment

BLOCK_BYTES = 1024 * 1024


class Named(NamedTuple):
    """What the one who uploads says of the file."""

    name: str
    media_type: str


class Sealed(NamedTuple):
    """What came, once it is in the store under `object_key`."""

    size: int
    object_key: str
    draft_key: bytes | None
    mac: bytes


async def seal(
    store: ObjectStore,
    body: AsyncIterator[bytes],
    attachment_id: UUID,
    owner_id: UUID,
    named: Named,
    *,
    max_bytes: int,
    worker_public_key: bytes,
    mac_key: bytes,
) -> Sealed:
    """Seal the file in `body`, which comes in `blocks`, with a key that only the workers can read.

    Raises FileTooLarge, StoreAway.
    """
    key = files.new_file_key()
    sealer = files.FileSealer(key, attachment_id)
    plain_hash = hashlib.blake2b(digest_size=digests.HASH_BYTES)

    def seal_block(block: bytes) -> bytes:
        plain_hash.update(block)
        return sealer.update(block)

    async def stream() -> AsyncIterator[bytes]:
        async for block in body:
            if sealer.size + len(block) > max_bytes:
                raise FileTooLarge(max_bytes=max_bytes)
            # libsodium and hashlib let go of the GIL: others are answered meanwhile.
            yield await asyncio.to_thread(seal_block, block)
        yield await asyncio.to_thread(sealer.finish)

    object_key = await store_new(store, stream())
    file = Attachment(id=attachment_id, **named._asdict(), size=sealer.size, key=key, hash=sealer.hash)
    mac = request_mac(mac_key, owner_id, "server", *named, plain_hash.digest())
    return Sealed(sealer.size, object_key, seal_file_draft(file, owner_id, worker_public_key), mac)


async def take(
    store: ObjectStore, body: AsyncIterator[bytes], owner_id: UUID, *, max_bytes: int, mac_key: bytes
) -> Sealed:
    """Take the stream in `body`, which comes in `blocks`, as its author's client has sealed it.

    Raises FileTooLarge, Invalid (no stream), StoreAway.
    """
    hashed = hashlib.blake2b(digest_size=digests.HASH_BYTES)
    taken = 0

    async def stream() -> AsyncIterator[bytes]:
        nonlocal taken
        async for block in body:
            taken += len(block)
            if taken > files.sealed_size(max_bytes):
                raise FileTooLarge(max_bytes=max_bytes)
            await asyncio.to_thread(hashed.update, block)
            yield block
        check_shape(taken)

    object_key = await store_new(store, stream())
    return Sealed(
        check_shape(taken), object_key, None, request_mac(mac_key, owner_id, "author", "", "", hashed.digest())
    )


async def finish(
    attachment_id: UUID, owner_id: UUID, sealed: Sealed, *, by_author: bool
) -> tuple[asyncpg.Record, bool]:
    """The attachment, and whether it is new. Raises IdTaken."""
    is_new = False
    try:
        row, is_new = await attachments.finish_upload(
            attachment_id,
            owner_id,
            "author" if by_author else "server",
            *(sealed.size, sealed.object_key, sealed.draft_key, sealed.mac),
        )
    finally:
        if not is_new:
            await asyncio.shield(attachments.give_up(sealed.object_key))
    return row, is_new


def check_shape(stream_bytes: int) -> int:
    """The size of the file in a stream of so many bytes. Raises Invalid where no file has such a stream."""
    try:
        return files.plain_size(stream_bytes)
    except CannotOpenFile:
        raise Invalid(("", f"{stream_bytes} bytes are no stream of a sealed file")) from None


def request_mac(mac_key: bytes, owner_id: UUID, sealed_by: str, name: str, media_type: str, content: bytes) -> bytes:
    request = ["attachment", owner_id, sealed_by, name, media_type, content]
    return digests.request_mac(mac_key, msgspec.json.encode(request))


async def store_new(store: ObjectStore, stream: AsyncIterator[bytes]) -> str:
    """Write an object; what fails in the middle is given up."""
    object_key = await attachments.begin_upload()
    try:
        await objects.write(store, object_key, stream)
    except BaseException:
        # Shielded: where the client has left, this task is being cancelled.
        await asyncio.shield(attachments.give_up(object_key))
        raise
    return object_key


async def blocks(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, in blocks of some size: a thread is not worth its while for less."""
    waiting = bytearray()
    async for piece in body:
        waiting += piece
        if len(waiting) >= BLOCK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)
