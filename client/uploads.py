"""Files on their way to the server, sealed here (which is the rule) or there, without ever being whole in memory.

A file that is sealed here is sealed with a key and an id of its own, once: what is sent again, for a lost answer or a
broken connection, is the same stream, and the server stores it once. Only the very same bytes are ever sealed again
under the same key and header; a file that has changed meanwhile is given up.
"""

import asyncio
import io
import mimetypes
import os
import select
import stat
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from msgspec import Struct
from uuid_utils.compat import uuid7

from client.api import Client
from client.errors import BadText, StorageError, Substituted
from client.models import StoredFile
from server.sealing import files as sealing_files
from server.sealing.digests import sha256
from server.sealing.sodium import Buffer
from server.sealing.texts import Attachment

BLOCK_BYTES = 1024 * 1024
MAX_NAME_CHARACTERS = 255
MAX_ATTACHMENTS = 20
DEFAULT_MEDIA_TYPE = "application/octet-stream"

# How long, in seconds, a pipe in which nothing comes is waited for before it is seen whether anybody still wants it.
_PATIENCE = 0.2

Tell = Callable[[int], None]
"""Called with how many bytes of the file are on their way."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Source(Struct, frozen=True):
    """A file to be sent. `size` is in bytes, None where it is not known before its end.

    `open` gives it from its beginning; a pipe can be opened only once.
    """

    name: str
    media_type: str
    size: int | None
    open: Callable[[], Any]
    can_be_reopened: bool


def source_of_path(path: Path, name: str | None = None, media_type: str | None = None) -> Source:
    """A file on the disk, or a pipe that has a path. Raises StorageError, BadText."""
    name = check_name(path.name if name is None else name)
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise StorageError(f"{path} is a folder")
        is_regular = stat.S_ISREG(found.st_mode)
        # Now, not when half of the others have been sent.
        if is_regular:
            path.open("rb").close()
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}") from None
    return Source(
        name=name,
        media_type=media_type or guess_media_type(name),
        size=found.st_size if is_regular else None,
        open=lambda: path.open("rb", buffering=0),
        can_be_reopened=is_regular,
    )


def source_of_stream(stream: Readable, name: str, media_type: str | None = None) -> Source:
    """What comes from a pipe, such as standard input."""
    return Source(
        name=check_name(name),
        media_type=media_type or guess_media_type(name),
        size=None,
        open=lambda: _Kept(stream),
        can_be_reopened=False,
    )


def source_of_bytes(content: bytes, name: str, media_type: str | None = None) -> Source:
    return Source(
        name=check_name(name),
        media_type=media_type or guess_media_type(name),
        size=len(content),
        open=lambda: io.BytesIO(content),
        can_be_reopened=True,
    )


def check_name(name: str) -> str:
    """The name that readers will see, if it may be one; else BadText."""
    if not name or "/" in name or any(ord(one) < 32 or 127 <= ord(one) < 160 for one in name):
        raise BadText(f"{name!r} is no name for a file: it is empty, or has a slash or a control character in it")
    if len(name) > MAX_NAME_CHARACTERS:
        raise BadText(f"the name of a file has at most {MAX_NAME_CHARACTERS} characters")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadText(f"{name!r} is no name for a file: it is not valid Unicode") from None
    return name


def guess_media_type(name: str) -> str:
    """By the ending of its name alone."""
    return mimetypes.guess_type(name)[0] or DEFAULT_MEDIA_TYPE


async def upload(client: Client, source: Source, tell: Tell | None = None) -> Attachment:
    """Seal a file here and send its stream. What is returned opens it, and belongs into the document of a post.

    Raises Refused, NetworkError, and StorageError where the file can't be read or changes meanwhile.
    """
    file_id, key, header = uuid7(), sealing_files.new_file_key(), os.urandom(sealing_files.HEADER_BYTES)
    content = _Outgoing(source, lambda: sealing_files.FileSealer(key, file_id, header), tell)
    stored = await client.upload_sealed_file(file_id, content)
    size, hash = content.finished
    _check_stored(stored, file_id, size, "author")
    return Attachment(id=file_id, name=source.name, media_type=source.media_type, size=size, key=key, hash=hash)


async def upload_in_clear(client: Client, source: Source, tell: Tell | None = None) -> StoredFile:
    """Have the server seal a file, for a post that it seals as well: it sees the file, its name and its type."""
    file_id = uuid7()
    content = _Outgoing(source, None, tell)
    stored = await client.upload_file(file_id, source.name, source.media_type, content)
    size, _ = content.finished
    _check_stored(stored, file_id, size, "server")
    return stored


def _check_stored(stored: StoredFile, file_id: UUID, size: int, sealed_by: str) -> None:
    if (stored.id, stored.size, stored.sealed_by) != (file_id, size, sealed_by):
        raise Substituted("the server stored something else than the file that was sent")


class _Outgoing:
    """A source as the body of a request, sealed if there is a sealer."""

    def __init__(
        self, source: Source, make_sealer: Callable[[], sealing_files.FileSealer] | None, tell: Tell | None
    ) -> None:
        self._source = source
        self._make_sealer = make_sealer
        self._tell = tell
        self._was_opened = False
        self._digests: list[bytes] = []
        self._given_up = threading.Event()
        self.finished = (0, b"")
        """Size of the file and hash of its stream, once it was sent."""

    @property
    def size(self) -> int | None:
        plain = self._source.size
        return plain if plain is None or self._make_sealer is None else sealing_files.sealed_size(plain)

    @property
    def can_be_opened(self) -> bool:
        return self._source.can_be_reopened or not self._was_opened

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[Buffer]]:
        async with aclosing(_ahead(self._blocks(), self._given_up)) as blocks:
            yield blocks

    def _blocks(self) -> Generator[Buffer, None, None]:
        """Each is good until the one after the next is asked for."""
        self._was_opened = True
        sealer = self._make_sealer() if self._make_sealer else None
        size = 0
        with closing(self._opened()) as file, ThreadPoolExecutor(1) as hasher:
            sealing = _seal(sealer, hasher) if sealer else None
            for index, block in enumerate(_read_blocks(file, self._given_up)):
                size += len(block)
                self._check_same(index, size, block)
                is_last = len(block) < BLOCK_BYTES
                ready = sealing(block, is_last=is_last) if sealing else [block]
                if is_last:
                    self.finished = (size, sealer.hash if sealer else b"")
                yield from filter(None, ready)
                if self._tell:
                    self._tell(size)

    def _opened(self) -> Any:
        try:
            return self._source.open()
        except OSError as error:
            raise StorageError(f"{self._source.name} can't be read: {error.strerror}") from None

    def _check_same(self, index: int, size: int, block: bytes) -> None:
        """Nothing else is ever sealed with the same key and header, and no other length sent than was announced."""
        is_last, announced = len(block) < BLOCK_BYTES, self._source.size
        same = announced is None or (size == announced if is_last else size <= announced)
        if same and self._source.can_be_reopened:
            digest = sha256(block)
            if index == len(self._digests):
                self._digests.append(digest)
            same = self._digests[index] == digest
        if not same:
            raise StorageError(f"{self._source.name} has changed while it was being sent: send it again")


def _seal(sealer: sealing_files.FileSealer, hasher: Executor) -> Callable[..., list[Buffer]]:
    """What seals the blocks of a file; each is hashed in a thread of its own while the next one is made."""
    memory, next_memory = (memoryview(bytearray(sealing_files.stream_room(BLOCK_BYTES))) for _ in range(2))
    hashing: Future[None] | None = None

    def seal(block: bytes, *, is_last: bool) -> list[Buffer]:
        nonlocal memory, next_memory, hashing
        sealed = memory[: sealer.seal_into(block, memory)]
        memory, next_memory = next_memory, memory
        if hashing:
            hashing.result()
        if is_last:
            sealer.hash_stream(sealed)
            return [sealed, sealer.finish()]
        hashing = hasher.submit(sealer.hash_stream, sealed)
        return [sealed]

    return seal


def _read_blocks(file: Any, given_up: threading.Event) -> Iterator[bytes]:
    """Whole blocks, and at the end one that is not, which may be empty."""
    descriptor = _waitable(file)
    block = bytearray()
    while True:
        if descriptor is not None and not _await_bytes(descriptor, given_up):
            return
        try:
            piece = file.read(BLOCK_BYTES - len(block))
        except OSError as error:
            raise StorageError(f"the file can't be read: {error.strerror or error}") from None
        if len(piece) == BLOCK_BYTES:
            yield piece
            continue
        block += piece
        if not piece or len(block) == BLOCK_BYTES:
            yield bytes(block)
            if not piece:
                return
            block.clear()


def _waitable(file: Any) -> int | None:
    """Of a pipe, which may keep one waiting for ever; a thread that reads can't be interrupted."""
    if sys.platform == "win32":
        return None
    try:
        descriptor: int = file.fileno()
        return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else descriptor
    except (AttributeError, OSError, ValueError):
        return None


def _await_bytes(descriptor: int, given_up: threading.Event) -> bool:
    """Whether there is something to read, be it the end, before nobody wants it any more."""
    while not given_up.is_set():
        if select.select([descriptor], [], [], _PATIENCE)[0]:
            return True
    return False


async def _ahead(blocks: Generator[Buffer, None, None], given_up: threading.Event) -> AsyncGenerator[Buffer, None]:
    """The blocks, each made in a thread while the one before it is being sent."""
    coming = asyncio.create_task(asyncio.to_thread(next, blocks, None))
    try:
        while (block := await asyncio.shield(coming)) is not None:
            coming = asyncio.create_task(asyncio.to_thread(next, blocks, None))
            yield block
    finally:
        given_up.set()
        # The thread is waited for: what it works on is closed next.
        await asyncio.wait([coming])
        if not coming.cancelled():
            coming.exception()
        given_up.clear()
        blocks.close()


class _Kept:
    """A stream that is not ours to close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # What is there, and no waiting for more. It leaves nothing in a buffer, where `select` would not see it.
        self._read: Callable[[int], bytes | None] = getattr(stream, "read1", stream.read)

    def fileno(self) -> int:
        descriptor: int = self._stream.fileno()
        return descriptor

    def read(self, size: int) -> bytes:
        return self._read(size) or b""

    def close(self) -> None:
        pass
