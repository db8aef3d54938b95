"""A file on its way in: sealed while it comes, or taken as its author sealed it, and brought to the object store.

While a block comes, the one before it is sealed in a thread, and the one before that hashed in another and stored in a
third. In memory is never more than these, and the few parts that a store in a network has in hand. The memory of blocks
is used again: to have the system find new memory, page by page, would take longer than the cipher.
"""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import NamedTuple, Protocol
from uuid import UUID

import asyncpg
import msgspec
from obstore.store import ObjectStore

from server import attachments, objects
from server.errors import FileTooLarge, Invalid
from server.sealing import digests, files
from server.sealing.drafts import seal_file_draft
from server.sealing.errors import CannotOpenFile
from server.sealing.sodium import Buffer
from server.sealing.texts import Attachment

BLOCK_BYTES = 32 * files.CHUNK_BYTES


class Hash(Protocol):
    def update(self, some: Buffer, /) -> None: ...


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
    body: AsyncIterator[Buffer],
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
    plain_hash = hashlib.sha256()

    object_key = await store_new(store, seal_blocks(body, sealer, plain_hash, max_bytes))
    file = Attachment(id=attachment_id, **named._asdict(), size=sealer.size, key=key, hash=sealer.hash)
    mac = request_mac(mac_key, owner_id, "server", *named, plain_hash.digest())
    return Sealed(sealer.size, object_key, seal_file_draft(file, owner_id, worker_public_key), mac)


async def seal_blocks(
    body: AsyncIterator[Buffer], sealer: files.FileSealer, plain_hash: Hash, max_bytes: int
) -> AsyncGenerator[Buffer, None]:
    """The stream of the file in `body`. Raises FileTooLarge."""

    def seal_block(block: Buffer, memory: memoryview) -> memoryview:
        plain_hash.update(block)
        return memory[: sealer.seal_into(block, memory)]

    async def work_on(block: Buffer, memory: memoryview, unhashed: Buffer) -> memoryview:
        # libsodium and hashlib let go of the GIL: others are answered meanwhile.
        sealed, _ = await asyncio.gather(
            asyncio.to_thread(seal_block, block, memory), asyncio.to_thread(sealer.hash_stream, unhashed)
        )
        return sealed

    # One is filled, one is hashed and brought to the store, and the store may still have the one before that.
    memories = itertools.cycle([memoryview(bytearray(files.stream_room(BLOCK_BYTES))) for _ in range(3)])
    taken, sealed, working = 0, memoryview(b""), None
    try:
        async for block in body:
            taken += len(block)
            if taken > max_bytes:
                raise FileTooLarge(max_bytes=max_bytes)
            if working:
                sealed = await working
            working = asyncio.create_task(work_on(block, next(memories), sealed))
            if sealed:
                yield sealed
        if working:
            sealed = await working
            await asyncio.to_thread(sealer.hash_stream, sealed)
            yield sealed
        yield sealer.finish()
    finally:
        if working:
            working.cancel()


async def take(
    store: ObjectStore, body: AsyncIterator[Buffer], owner_id: UUID, *, max_bytes: int, mac_key: bytes
) -> Sealed:
    """Take the stream in `body`, which comes in `blocks`, as its author's client has sealed it.

    Raises FileTooLarge, Invalid (no stream), StoreAway.
    """
    hashed = hashlib.sha256()
    taken = 0

    async def stream() -> AsyncGenerator[Buffer, None]:
        nonlocal taken
        hashing = None
        async for block in body:
            taken += len(block)
            if taken > files.sealed_size(max_bytes):
                raise FileTooLarge(max_bytes=max_bytes)
            if hashing:
                await hashing
            hashing = asyncio.create_task(asyncio.to_thread(hashed.update, block))
            yield block
        if hashing:
            await hashing
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
    """`content` is the SHA-256 of the body: of the good hashes the one that processors have built in."""
    request = ["attachment", owner_id, sealed_by, name, media_type, content]
    return digests.request_mac(mac_key, msgspec.json.encode(request))


async def store_new(store: ObjectStore, stream: AsyncGenerator[Buffer, None]) -> str:
    """Write an object; what fails in the middle is given up."""
    object_key = await attachments.begin_upload()
    try:
        async with aclosing(stream):
            await objects.write(store, object_key, stream)
    except BaseException:
        # Shielded: where the client has left, this task is being cancelled.
        await asyncio.shield(attachments.give_up(object_key))
        raise
    return object_key
