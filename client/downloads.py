"""Files from the server: opened chunk by chunk as they come, and given a name only when the whole is proved right.

Every byte is authentic before it is written, and the hash, which the author signed or committed to, tells at the end
that it is the whole file, and this one. A download that breaks off goes on where it stopped, in the same run or, with
`save`, in the next one.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from msgspec import Struct

from client.errors import CannotOpen, StorageError
from client.saving import Part, check_replaceable, numbered
from client.streams import SealedStream
from server.sealing import files as sealing_files
from server.sealing.errors import CannotOpenFile
from server.sealing.files import FileOpener, FileSealer, in_blocks
from server.sealing.sodium import Buffer
from server.sealing.texts import Attachment

BLOCK_BYTES = 1024 * 1024

Tell = Callable[[int], None]
"""Called with how many bytes of the file are there."""

_WRONG = "cannot open this file: what the server sent is not, or not all of, the file that was attached"


class FileKey(Struct, frozen=True):
    """What opens a sealed file, and tells that it is the right one. `size` is None where it isn't known."""

    id: UUID
    key: bytes
    hash: bytes
    size: int | None = None

    def __repr__(self) -> str:
        # It opens the file: not into a traceback.
        return f"FileKey(id={self.id!s})"


def key_of(attachment: Attachment) -> FileKey:
    return FileKey(attachment.id, attachment.key, attachment.hash, attachment.size)


async def save(
    stream: SealedStream,
    key: FileKey,
    folder: Path,
    name: str,
    *,
    renumber: bool = False,
    overwrite: bool = False,
    resume: bool = True,
    tell: Tell | None = None,
) -> Path:
    """Download a file into a folder and open it; the path that it got. `name` must be safe already.

    Where the name is taken: StorageError, or the next free one with `renumber`, or in its place with `overwrite`, if
    that is a file and no link, device or folder.
    Raises CannotOpen, and then nothing is left; NetworkError, and then what came stays for the next time, with
    `resume`; Refused, BadAnswer, StorageError.
    """
    # Before a gigabyte has come, not after it.
    if overwrite:
        check_replaceable(folder / name)
    elif not renumber:
        _check_free(folder / name)
    with Part(folder, key.id, keep=resume) as part:
        try:
            await _download(stream, key, part.file, tell)
            return await asyncio.to_thread(_place, part, folder, name, renumber=renumber, overwrite=overwrite)
        except CannotOpen:
            part.remove()
            raise
        except OSError as error:
            raise StorageError(f"{folder / name} can't be written: {error.strerror or error}") from None


async def fetch(stream: SealedStream, key: FileKey, file: BinaryIO, tell: Tell | None = None) -> None:
    """Download into a temporary file of one's own, which is empty. What it holds is good only if this returns."""
    try:
        await _download(stream, key, file, tell)
    except OSError as error:
        raise StorageError(f"the file can't be written: {error.strerror or error}") from None


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise _taken(target)


def _taken(target: Path) -> StorageError:
    return StorageError(f"{target} is there already, and is left as it is")


def _place(part: Part, folder: Path, name: str, *, renumber: bool, overwrite: bool) -> Path:
    for one in numbered(name) if renumber else [name]:
        try:
            part.place(folder / one, overwrite=overwrite)
        except FileExistsError:
            continue
        return folder / one
    raise _taken(folder / name)


async def _download(stream: SealedStream, key: FileKey, file: BinaryIO, tell: Tell | None) -> None:
    """Read the stream and write the file, from where it ends already."""
    opener = FileOpener(key.key, key.id, key.hash, key.size)
    has_part = file.seek(0, os.SEEK_END) > 0
    try:
        start = await _take_up(stream, key, file, opener)
        if tell:
            tell(opener.size)
        async with (
            aclosing(stream.read(start)) as pieces,
            aclosing(in_blocks(pieces, BLOCK_BYTES)) as blocks,
        ):
            await _open_all(blocks, file, opener, tell)
        _write(file, opener.finish())
    except CannotOpenFile:
        if not has_part:
            raise CannotOpen(_WRONG) from None
    else:
        if tell:
            tell(opener.size)
        return
    # It may be what lay here that was wrong, and not what came.
    file.seek(0)
    file.truncate()
    await _download(stream, key, file, tell)


async def _open_all(blocks: AsyncIterator[memoryview], file: BinaryIO, opener: FileOpener, tell: Tell | None) -> None:
    """Each block is opened and written in one thread and hashed in another, while the next one comes.

    libsodium, and writing, let go of the GIL.
    """
    memory = memoryview(bytearray(sealing_files.plain_room(BLOCK_BYTES)))

    async def open_one(block: memoryview) -> None:
        halves = [
            asyncio.create_task(asyncio.to_thread(_open_block, file, opener, block, memory)),
            asyncio.create_task(asyncio.to_thread(opener.hash_stream, block)),
        ]
        await asyncio.wait(halves)
        await asyncio.gather(*halves)
        if tell:
            tell(opener.size)

    opening: asyncio.Task[None] | None = None
    try:
        async for block in blocks:
            if opening:
                await asyncio.shield(opening)
            opening = asyncio.create_task(open_one(block))
        if opening:
            await asyncio.shield(opening)
    finally:
        if opening:
            # What it writes to is closed next.
            await asyncio.wait([opening])
            if not opening.cancelled():
                opening.exception()


def _open_block(file: BinaryIO, opener: FileOpener, block: memoryview, memory: memoryview) -> None:
    _write(file, memory[: opener.open_into(block, memory)])


def _write(file: BinaryIO, opened: Buffer) -> None:
    left = memoryview(opened)
    while left:
        left = left[file.write(left) :]


async def _take_up(stream: SealedStream, key: FileKey, file: BinaryIO, opener: FileOpener) -> int:
    """Bring the opener to where the file ends, at a chunk's end; where in the stream it goes on.

    The chunks before have to go through it again: the next one opens only after them, and the hash is of the whole.
    They are made again out of the file, with the stream's own header.
    """
    # The last chunk may be the one that ends the file, and is sealed in another way.
    chunks = (file.seek(0, os.SEEK_END) - 1) // sealing_files.CHUNK_BYTES
    header = await stream.beginning(sealing_files.HEADER_BYTES) if chunks > 0 else None
    if header is None:
        file.seek(0)
        file.truncate()
        return 0
    await asyncio.to_thread(_open_again, file, chunks, FileSealer(key.key, key.id, header), opener)
    return sealing_files.chunk_offset(chunks)


def _open_again(file: BinaryIO, chunks: int, sealer: FileSealer, opener: FileOpener) -> None:
    file.seek(0)
    left = chunks * sealing_files.CHUNK_BYTES
    while left:
        block = file.read(min(left, BLOCK_BYTES))
        if not block:
            raise CannotOpenFile
        left -= len(block)
        opener.update(sealer.update(block))
    # A full chunk is sealed when a byte follows it.
    opener.update(sealer.update(b"\0"))
    # What was read ends here, and so does the file: the rest comes again.
    file.truncate()
