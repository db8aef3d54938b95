"""Files that were uploaded and have no post yet: what opens them is nowhere but here.

The server keeps such a file for a day, and so is this kept, in a file of its owner's alone.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec
from msgspec import Struct

from client import files
from client.errors import StorageError
from server.sealing.texts import Attachment

KEPT_FOR = timedelta(days=1)


class _KeptFile(Struct, frozen=True, kw_only=True):
    server: str
    uploaded_at: datetime
    file: Attachment


class _KeptFiles(Struct, frozen=True):
    v: Literal[1] = 1
    files: tuple[_KeptFile, ...] = ()


def keep_file(path: Path, server: str, file: Attachment, now: datetime) -> None:
    """Remember a file for a later post."""
    with files.locked(path):
        kept = _KeptFile(server=server, uploaded_at=now, file=file)
        _write(path, (*_read(path, now), kept))


def kept_files(path: Path, server: str, now: datetime) -> dict[UUID, Attachment]:
    """Those that were uploaded to this server within a day."""
    return {one.file.id: one.file for one in _read(path, now) if one.server == server}


def forget_files(path: Path, file_ids: Sequence[UUID], now: datetime) -> None:
    """They have a post, whose document says what opens them."""
    if file_ids:
        with files.locked(path):
            _write(path, tuple(one for one in _read(path, now) if one.file.id not in file_ids))


def _read(path: Path, now: datetime) -> tuple[_KeptFile, ...]:
    content = files.read(path)
    if content is None:
        return ()
    try:
        kept = msgspec.json.decode(content, type=_KeptFiles).files
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StorageError(f"{path} is damaged: remove it, and upload its files again") from None
    return tuple(one for one in kept if now - one.uploaded_at < KEPT_FOR)


def _write(path: Path, kept: tuple[_KeptFile, ...]) -> None:
    files.write(path, msgspec.json.format(msgspec.json.encode(_KeptFiles(files=kept)), indent=2))
