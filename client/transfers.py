"""Sending and receiving files for the command line: with a bar on the terminal, into a folder or to standard output."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from rich.filesize import decimal

from client import downloads, uploads
from client.api import Client
from client.downloads import FileKey, key_of
from client.errors import NetworkError
from client.models import StoredFile
from client.progress import transfer_bar
from client.saving import make_target_folder, safe_name
from client.streams import SealedStream
from client.uploads import Source
from server.sealing.texts import Attachment


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
    with transfer_bar(source.name, source.size) as tell:
        return await uploads.upload(client, source, tell)


async def send_in_clear(client: Client, source: Source) -> StoredFile:
    """Upload a file for the server to seal."""
    with transfer_bar(source.name, source.size) as tell:
        return await uploads.upload_in_clear(client, source, tell)


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
            raise NetworkError(f"{error}. What came is kept, and the same command goes on from there") from None


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
    with tempfile.TemporaryFile(buffering=0) as file:
        with transfer_bar(name, key.size) as tell:
            await downloads.fetch(stream, key, cast(BinaryIO, file), tell)
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
