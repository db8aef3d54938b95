import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from client import files
from client.errors import StorageError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and locks are those of POSIX")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_and_its_folder_are_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile" / "secret"
    files.write(path, b"one")
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    assert files.read(path) == b"one"


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.write(tmp_path / "new" / "secret", b"one")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o700
    assert mode(tmp_path / "new" / "secret") == 0o600


def test_a_folder_that_others_may_enter_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    files.write(folder / "secret", b"one")
    assert mode(folder) == 0o700


@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o660, 0o606])
def test_a_file_that_others_may_read_or_write_is_refused(tmp_path: Path, open_mode: int) -> None:
    path = tmp_path / "secret"
    files.write(path, b"one")
    path.chmod(open_mode)
    with pytest.raises(StorageError, match="chmod 600"):
        files.read(path)


def test_no_file_is_none(tmp_path: Path) -> None:
    assert files.read(tmp_path / "nothing") is None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    files.write(path, b"old")
    path.with_name("folder").mkdir()
    with pytest.raises(StorageError):
        # A folder can't be replaced by a file: the write fails at its very last step.
        files.write(tmp_path / "folder", b"new")
    assert files.read(path) == b"old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "secret"]


def test_a_replaced_file_was_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    files.write(path, b"old")
    with path.open("rb") as old:
        files.write(path, b"new")
        assert old.read() == b"old"
    assert files.read(path) == b"new"


def count_up(path: Path, times: int) -> None:
    for _ in range(times):
        with files.locked(path):
            counted = int(files.read(path) or b"0")
            time.sleep(0.001)
            files.write(path, str(counted + 1).encode())


def test_processes_that_change_a_file_at_once_lose_no_change(tmp_path: Path) -> None:
    path = tmp_path / "count"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=count_up, args=(path, 20)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert files.read(path) == b"40"
