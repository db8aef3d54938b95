"""Sending and receiving files for the command line: with a bar on the terminal, into a folder or to standard output."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from rich.filesize import decimal

from client import downloads, uploads
from client.api import Client
from client.downloads import FileKey, key_of
from client.errors import ClientError, NetworkError, Refused, StorageError
from client.models import StoredFile
from client.progress import transfer_bar
from client.prompts import interruptible
from client.saving import make_target_folder, part_path, safe_name
from client.streams import SealedStream
from client.terminal import note
from client.uploads import Source
from server.sealing.texts import Attachment

_KEPT = "What came is kept, and the same command goes on from there"


class Target(NamedTuple):
    """Where a file goes. `renumber` is for names that others chose: where one is taken, it gets a number."""

    folder: Path
    name: str
    renumber: bool = False
    overwrite: bool = False


def size_text(size: int) -> str:
    """As people write it: 1.5 MB."""
    return decimal(size)


async def send(client: Client, source: Source) -> Attachment:
    """Seal a file here and upload it."""
    with _named(source), transfer_bar(source.name, source.size) as tell:
        return await uploads.upload(client, source, tell)


async def send_in_clear(client: Client, source: Source) -> StoredFile:
    """Upload a file for the server to seal."""
    with _named(source), transfer_bar(source.name, source.size) as tell:
        return await uploads.upload_in_clear(client, source, tell)


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Of several files, the one that is too large is told by its name."""
    try:
        yield
    except Refused as error:
        most = error.problem.max_bytes
        if error.code != "too_large" or most is None:
            raise
        size = "" if source.size is None else f" ({source.size:,} bytes)"
        raise ClientError(f"{source.name}{size} is larger than this server takes: {most:,} bytes at most") from None


async def receive(stream: SealedStream, key: FileKey, target: Target, *, resume: bool = True) -> Path:
    """Download and open a file. With `resume` what came is kept when the connection is lost."""
    with transfer_bar(target.name, key.size) as tell:
        try:
            return await downloads.save(
                stream,
                key,
                target.folder,
                target.name,
                renumber=target.renumber,
                overwrite=target.overwrite,
                resume=resume,
                tell=tell,
            )
        except NetworkError as error:
            if not resume:
                raise
            raise NetworkError(f"{error}. {_KEPT}") from None
        except asyncio.CancelledError:
            if resume and part_path(target.folder, key.id).exists():
                note(f"{_KEPT}.")
            raise


async def receive_all(client: Client, attachments: Sequence[Attachment], folder: Path) -> list[Path]:
    """All files of a post into one folder, which is made if it isn't there; their paths, in the same order."""
    if attachments:
        make_target_folder(folder)
    return [
        await receive(client.file_stream(one.id), key_of(one), Target(folder, safe_name(one.name), renumber=True))
        for one in attachments
    ]


async def write_out(stream: SealedStream, key: FileKey, name: str) -> None:
    """To standard output, but not before the whole is proved right: what reads there may act on every byte."""
    async with _proved(stream, key, name) as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


async def write_into(path: Path, stream: SealedStream, key: FileKey, name: str) -> int:
    """The like, to a named pipe or a device, which stays what it is; how many bytes that were."""
    async with _proved(stream, key, name) as file:
        try:
            # A pipe keeps one waiting until somebody reads it.
            with interruptible(), path.open("wb", buffering=0) as into:
                if into.isatty():
                    raise StorageError("this is for a file or a pipe: what others wrote could steer your terminal")
                shutil.copyfileobj(file, into)
        except OSError as error:
            raise StorageError(f"{path} can't be written: {error.strerror or error}") from None
        return file.tell()


@asynccontextmanager
async def _proved(stream: SealedStream, key: FileKey, name: str) -> AsyncIterator[BinaryIO]:
    """The whole file, of no name, at its beginning."""
    with tempfile.TemporaryFile(buffering=0) as temporary:
        file = cast(BinaryIO, temporary)
        with transfer_bar(name, key.size) as tell:
            await downloads.fetch(stream, key, file, tell)
        file.seek(0)
        yield file
