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
from client.errors import ClientError, StorageError
from server.sealing.texts import Attachment

KEPT_FOR = timedelta(days=1)


class _KeptFile(Struct, frozen=True, kw_only=True):
    server: str
    uploaded_at: datetime
    file: Attachment


class _Past(Struct, frozen=True, kw_only=True):
    """An upload of which nothing is kept that opens it: the server has sealed it, or it has a post already."""

    server: str
    uploaded_at: datetime
    id: UUID
    post_id: UUID | None = None


class _KeptFiles(Struct, frozen=True):
    v: Literal[1] = 1
    files: tuple[_KeptFile, ...] = ()
    past: tuple[_Past, ...] = ()


def keep_file(path: Path, server: str, file: Attachment, now: datetime) -> None:
    """Remember a file for a later post."""
    with files.locked(path):
        kept = _read(path, now)
        one = _KeptFile(server=server, uploaded_at=now, file=file)
        _write(path, _KeptFiles(files=(*kept.files, one), past=kept.past))


def note_upload(path: Path, server: str, file_id: UUID, now: datetime) -> None:
    """Remember that the server has sealed a file, so that it can be told what kind of post takes it."""
    with files.locked(path):
        kept = _read(path, now)
        one = _Past(server=server, uploaded_at=now, id=file_id)
        _write(path, _KeptFiles(files=kept.files, past=(*kept.past, one)))


def kept_files(path: Path, server: str, now: datetime) -> dict[UUID, Attachment]:
    """Those that were uploaded to this server within a day."""
    return {one.file.id: one.file for one in _read(path, now).files if one.server == server}


def forget_files(path: Path, server: str, file_ids: Sequence[UUID], post_id: UUID, now: datetime) -> None:
    """They have a post, whose document says what opens them. That they have is remembered for a day."""
    if file_ids:
        with files.locked(path):
            kept = _read(path, now)
            past = [_Past(server=server, uploaded_at=now, id=one, post_id=post_id) for one in dict.fromkeys(file_ids)]
            _write(
                path,
                _KeptFiles(
                    files=tuple(one for one in kept.files if one.file.id not in file_ids),
                    past=(*(one for one in kept.past if one.id not in file_ids), *past),
                ),
            )


def check_unused(path: Path, server: str, file_ids: Sequence[UUID], now: datetime, *, by_server: bool) -> None:
    """ClientError for a file that a post sealed in this way can't take, as far as that is known here."""
    kept = _read(path, now)
    here = {one.file.id for one in kept.files if one.server == server}
    past = {one.id: one.post_id for one in kept.past if one.server == server}
    for file_id in file_ids:
        if post_id := past.get(file_id):
            raise ClientError(f"{file_id} is in a post already, {post_id}: `secureblogs file put` uploads it once more")
        if by_server and file_id in here:
            raise ClientError(f"{file_id} was sealed here, and this post is not: leave out --by-server")
        if not by_server and file_id in past:
            raise ClientError(f"{file_id} was uploaded --by-server, and this post was not: add --by-server to it")
        if not by_server and file_id not in here:
            raise ClientError(
                f"{file_id} was not uploaded from here within a day: `secureblogs file put` uploads a file"
            )


def _read(path: Path, now: datetime) -> _KeptFiles:
    content = files.read(path)
    if content is None:
        return _KeptFiles()
    try:
        kept = msgspec.json.decode(content, type=_KeptFiles)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StorageError(f"{path} is damaged: remove it, and upload its files again") from None
    return _KeptFiles(
        files=tuple(one for one in kept.files if now - one.uploaded_at < KEPT_FOR),
        past=tuple(one for one in kept.past if now - one.uploaded_at < KEPT_FOR),
    )


def _write(path: Path, kept: _KeptFiles) -> None:
    files.write(path, msgspec.json.format(msgspec.json.encode(kept), indent=2))
