"""Where files from others are put: under a name that is safe, never over another file, and only once they are whole.

A file on its way lies beside its place as `.<attachment id>.part`. It stays when a download breaks off, so that the
next one goes on from there, and goes when it turns out to be wrong.
"""

import os
import re
import stat
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from uuid import UUID

from client.errors import StorageError
from client.terminal import line

if sys.platform != "win32":
    import fcntl

FALLBACK_NAME = "attachment"
# Folders allow 255 bytes; this leaves room for a number.
MAX_NAME_BYTES = 200
MAX_ENDING_BYTES = 20
# How often another process may get in between.
OPENING_TRIES = 8

# What no file may be called on some system: separators, wildcards, streams of NTFS.
_FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
# Windows takes these for devices, with any ending and in any folder.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])\s*(?:\.|$)", re.IGNORECASE)


def safe_name(name: str) -> str:
    """A stranger's name as one for a file in a folder of ours: no path, no device, nothing hidden or invisible."""
    text = unicodedata.normalize("NFC", name)
    # Every kind of space is a space, so that none is left at an end.
    text = "".join("_" if _is_unsafe(one) else " " if one.isspace() else one for one in text)
    text = _FORBIDDEN.sub("_", text).strip(" ").rstrip(". ")
    # Neither hidden, nor an option, nor a home, should somebody use it in a shell.
    if text[:1] in {".", "-", "~"}:
        text = f"_{text[1:]}"
    if not text.strip("_ "):
        return FALLBACK_NAME
    if _DEVICE.match(text):
        text = f"_{text}"
    return _cut(text)


def _is_unsafe(character: str) -> bool:
    # What a terminal would not show as it is: controls, marks that turn the writing, what is invisible, surrogates.
    return line(character) != character or unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _cut(name: str) -> str:
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending.encode()) > MAX_ENDING_BYTES:
        stem, dot, ending = name, "", ""
    room = MAX_NAME_BYTES - len((dot + ending).encode())
    return stem.encode()[:room].decode(errors="ignore").rstrip(". ") + dot + ending


def numbered(name: str) -> Iterator[str]:
    """The name, and what it is called where that is taken: `plan (2).txt`."""
    yield name
    stem, dot, ending = name.rpartition(".")
    if not stem:
        stem, dot, ending = name, "", ""
    for number in count(2):
        yield f"{stem} ({number}){dot}{ending}"


def make_target_folder(folder: Path) -> None:
    """Make a folder for files of others, if it isn't there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} can't be used: {error.strerror}") from None


def part_path(folder: Path, file_id: UUID) -> Path:
    """Where a file lies while it is on its way into a folder."""
    return folder / f".{file_id}.part"


def check_replaceable(target: Path) -> None:
    """Raises StorageError where a download would take the place of something else than a file: a link, a device."""
    with suppress(OSError):
        if not stat.S_ISREG(target.lstat().st_mode):
            raise StorageError(f"{target} is no file, and is left as it is")


class Part:
    """A file on its way into `folder`, of mode 0600. Only one process has it at a time.

    Without `keep` it begins anew, and leaves nothing when it fails.
    """

    def __init__(self, folder: Path, file_id: UUID, *, keep: bool = True) -> None:
        self.path = part_path(folder, file_id)
        self._keep = keep
        try:
            self.file: BinaryIO = os.fdopen(self._open(), "r+b", buffering=0)
            if not keep:
                self.file.truncate(0)
        except OSError as error:
            raise StorageError(f"{self.path} can't be written: {error.strerror or error}") from None
        self._is_there = True

    def _open(self) -> int:
        for _ in range(OPENING_TRIES):
            descriptor = self._open_once()
            # Whoever had it may have given it its name meanwhile: then it is a whole file, and not ours to write.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), self.path.stat(follow_symlinks=False)):
                    return descriptor
            os.close(descriptor)
        raise StorageError(f"{self.path} is something else than a part of a download: remove it")

    def _open_once(self) -> int:
        # The name can be guessed: in a folder of many, another may have put something there.
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise StorageError(f"{self.path} is something else than a part of a download: remove it")
            if sys.platform != "win32":
                if found.st_uid != os.geteuid():
                    raise StorageError(f"{self.path} belongs to somebody else: choose another folder")
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise StorageError(f"{self.path} is being written: another download is under way") from None
                os.fchmod(descriptor, 0o600)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_there and (not self._keep or self.size == 0):
            self.remove()
        self.file.close()

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def remove(self) -> None:
        """It is wrong, or of no use."""
        self._is_there = False
        self.path.unlink(missing_ok=True)

    def place(self, target: Path, *, overwrite: bool) -> None:
        """Give the whole file its name. Raises FileExistsError where that is taken, and not to be overwritten."""
        os.fsync(self.file.fileno())
        if overwrite:
            check_replaceable(target)
            self.path.replace(target)
        else:
            _move(self.path, target)
        self._is_there = False
        _sync(target.parent)


def _move(path: Path, target: Path) -> None:
    """Rename, and never over another file, whoever makes one of this name at the same moment."""
    try:
        os.link(path, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here: the name is taken first, and then used.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        path.replace(target)
    else:
        path.unlink()


def _sync(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
