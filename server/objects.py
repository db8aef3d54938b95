"""Where sealed files lie: a local folder, S3, GCS, Azure or memory, by obstore.

An object is written once, under a name of its own, and never changed. Nothing in here knows what is in it.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from datetime import timedelta
from io import FileIO
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from server.errors import StoreAway
from server.sealing.sodium import Buffer
from server.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

# S3 takes at most 10,000 parts, of 5 MiB at least.
PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 2
# Read in pieces, each with a time limit of its own: a limit on the whole would be one on the size of files.
READ_BYTES = 1024 * 1024

CONNECT_TIMEOUT = timedelta(seconds=5)
ANSWER_TIMEOUT = timedelta(seconds=60)
RETRY_FOR = timedelta(seconds=60)


def open_store(settings: Settings) -> ObjectStore:
    """The store that the settings name, or the folder `objects` in DATA_DIR. Connects to nothing. Raises SettingsError.

    Credentials of S3, GCS and Azure come from the environment, under the names that their own tools use.
    """
    url = settings.object_store_url
    scheme = urlsplit(url or "").scheme
    try:
        if url is None:
            return LocalStore(settings.data_dir / "objects", mkdir=True)
        if scheme == "file":
            return LocalStore.from_url(url, mkdir=True)
        if scheme == "memory":
            return MemoryStore()
        return from_url(
            url,
            client_options={
                "connect_timeout": CONNECT_TIMEOUT,
                "timeout": ANSWER_TIMEOUT,
                # Only for whoever names such an address: an S3 of one's own, on a network of one's own.
                "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
            },
            retry_config={"max_retries": 5, "retry_timeout": RETRY_FOR},
        )
    except (BaseError, OSError) as error:
        raise SettingsError(f"OBJECT_STORE_URL: {str(error).splitlines()[0]}") from None


async def write(store: ObjectStore, name: str, blocks: AsyncIterator[Buffer]) -> None:
    """Store what the blocks are, joined; in memory are a few parts of 8 MiB. It is there whole, or not at all.

    A block is done with when the one after the next is asked for: its memory may be used again. Raises StoreAway, and
    whatever `blocks` raises.
    """
    try:
        if isinstance(store, LocalStore) and store.prefix is not None:
            await write_file(Path(store.prefix) / name, blocks)
        else:
            await obstore.put_async(
                store, name, copies(blocks), use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )
    except (BaseError, OSError) as error:
        raise away(error) from None


async def copies(blocks: AsyncIterator[Buffer]) -> AsyncIterator[bytes]:
    """obstore keeps what it is given until it has enough for a part."""
    async for block in blocks:
        yield bytes(block)


async def write_file(path: Path, blocks: AsyncIterator[Buffer]) -> None:
    """As obstore would do it, but without its memory for parts: to find that takes longer than to write the file."""
    part = path.with_name(f"{path.name}#1")
    file = await asyncio.to_thread(create, part)
    working: asyncio.Future[None] | None = None
    try:
        async for block in blocks:
            if working:
                await asyncio.shield(working)
            working = asyncio.ensure_future(asyncio.to_thread(write_all, file, block))
        if working:
            await asyncio.shield(working)
        working = asyncio.ensure_future(asyncio.to_thread(finish_file, file, part, path))
        await asyncio.shield(working)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        if working:
            # A thread can't be cancelled, and what it works on is closed next.
            await asyncio.gather(working, return_exceptions=True)
        file.close()


def create(path: Path) -> FileIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileIO(path, "x")


def write_all(file: FileIO, block: Buffer) -> None:
    with memoryview(block) as left:
        start = 0
        while start < len(left):
            start += file.write(left[start:])


def finish_file(file: FileIO, part: Path, path: Path) -> None:
    """Acknowledged is what survives the loss of power: the file, and the folders that lead to it."""
    os.fsync(file.fileno())
    part.rename(path)
    for folder in (path.parent, path.parent.parent):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


async def read(store: ObjectStore, name: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
    """The bytes from `start` up to, not including, `end`. Raises StoreAway, for an object that is not there too."""
    loop = asyncio.get_running_loop()

    def fetch(begin: int) -> asyncio.Future[obstore.Bytes]:
        piece = obstore.get_range_async(store, name, start=begin, end=min(begin + READ_BYTES, end))
        return asyncio.ensure_future(piece, loop=loop)

    ahead = fetch(start) if start < end else None
    try:
        while ahead is not None:
            block = await ahead
            start += len(block)
            # One piece is read ahead, while the last one is on its way to the reader.
            ahead = fetch(start) if start < end and len(block) else None
            yield bytes(block)
    except (BaseError, OSError) as error:
        raise away(error) from None
    finally:
        if ahead is not None:
            ahead.cancel()
            with suppress(asyncio.CancelledError, BaseError, OSError):
                await ahead
    if start < end:
        raise StoreAway


async def delete(store: ObjectStore, name: str) -> None:
    """Remove the object, if it is there, and what a crash in the middle of its writing left. Raises StoreAway."""
    try:
        with suppress(FileNotFoundError):
            await obstore.delete_async(store, name)
    except (BaseError, OSError) as error:
        raise away(error) from None
    if isinstance(store, LocalStore) and store.prefix is not None:
        await asyncio.to_thread(remove_parts, Path(store.prefix) / name)


def remove_parts(path: Path) -> None:
    """`name#1`, or with a higher number, is renamed when it is whole."""
    for part in path.parent.glob(f"{path.name}#*"):
        part.unlink(missing_ok=True)


def away(error: Exception) -> StoreAway:
    # By its type: what it says may quote addresses and requests.
    logger.warning("the object store failed", extra={"error": type(error).__name__})
    return StoreAway()
