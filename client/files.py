"""Files that only their owner may read, written so that a crash leaves the old one or the new one, whole."""

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.errors import StorageError

if sys.platform != "win32":
    import fcntl


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter (0700), or take it away from the others."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"{folder} can't be used: {_reason(error)}") from None


def write(path: Path, content: bytes) -> None:
    """Put a file of mode 0600 in the place of what was there, on the disk before it returns."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        # O_EXCL makes it ours, and the mode is right before a byte is in it.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {_reason(error)}") from None


def append(path: Path, line: bytes) -> None:
    """Add to the end of a file of mode 0600, whole even if several processes do."""
    make_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {_reason(error)}") from None


def read(path: Path) -> bytes | None:
    """The bytes of a file, None if there is none, StorageError if others may read or write it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise StorageError(f"{path} is open to others (mode {mode:04o}): chmod 600 {path}")
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} can't be read: {_reason(error)}") from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes of this program out while a file is read, changed and written again."""
    make_folder(path.parent)
    try:
        lock = open(path.with_name(f".{path.name}.lock"), "ab", opener=_open_private)  # noqa: SIM115 - closed below
    except OSError as error:
        raise StorageError(f"{path} can't be locked: {_reason(error)}") from None
    # It ends with the file's closing, and so with the process, however that ends.
    with lock:
        if sys.platform != "win32":
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                raise StorageError(f"{path} can't be locked: {_reason(error)}") from None
        yield


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    # The new name is on the disk only once the folder is. Windows has no such call, and orders it by itself.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
