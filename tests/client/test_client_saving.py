"""Under what names files of others are saved, and that none is ever lost or written over."""

import fcntl
import stat
import unicodedata
from itertools import islice
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import StorageError
from client.saving import MAX_NAME_BYTES, Part, numbered, safe_name
from client.terminal import line

ID = UUID("0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("plan.txt", "plan.txt"),
        ("naïve plan.tar.gz", "naïve plan.tar.gz"),
        ("..", "attachment"),
        ("", "attachment"),
        ("   ", "attachment"),
        ("\u200b", "attachment"),
        ("../../etc/passwd", "_._.._etc_passwd"),
        ("/etc/passwd", "_etc_passwd"),
        ("C:\\Windows\\x", "C__Windows_x"),
        ("a\0b", "a_b"),
        ("a\r\nb\x1b[2J\x9b", "a__b_[2J_"),
        ("\u202egpj.exe", "_gpj.exe"),
        ("x\ud800", "x_"),
        (".bashrc", "_bashrc"),
        ("-rf", "_rf"),
        ("~root", "_root"),
        ("plan.txt. . .", "plan.txt"),
        ("plan.txt:stream", "plan.txt_stream"),
        ("con", "_con"),
        ("NUL.tar.gz", "_NUL.tar.gz"),
        ("lpt¹ .x", "_lpt¹ .x"),
        ("console.log", "console.log"),
        ("e\u0301", "é"),
        ("x" * 300 + ".txt", "x" * 196 + ".txt"),
        ("é" * 300, "é" * 100),
    ],
)
def test_names_are_made_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


PIECES = st.sampled_from(["..", ".", "/", "\\", "\0", "con", "nul", " ", "\n", "\u202e", "~", "-", ":", "é", "a"])


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)))
def test_no_name_leaves_its_folder_or_is_not_what_it_looks_like(name: str) -> None:
    safe = safe_name(name)
    assert Path(safe).name == safe not in {".", ".."}
    assert "/" not in safe
    assert "\\" not in safe
    assert line(safe) == safe == safe.strip()
    assert 0 < len(safe.encode()) <= MAX_NAME_BYTES
    assert safe[0] not in ".-~"
    assert safe[-1] not in ". "
    assert safe_name(safe) == safe
    assert unicodedata.is_normalized("NFC", safe)


def test_taken_names_get_numbers() -> None:
    assert list(islice(numbered("plan.txt"), 3)) == ["plan.txt", "plan (2).txt", "plan (3).txt"]
    assert list(islice(numbered("plan"), 2)) == ["plan", "plan (2)"]


def test_whole_file_gets_its_name_and_is_its_owners_alone(tmp_path: Path) -> None:
    with Part(tmp_path, ID) as part:
        part.file.write(b"text")
        part.place(tmp_path / "plan.txt", overwrite=False)
    assert [one.name for one in tmp_path.iterdir()] == ["plan.txt"]
    assert (tmp_path / "plan.txt").read_bytes() == b"text"
    assert stat.S_IMODE((tmp_path / "plan.txt").stat().st_mode) == 0o600


@pytest.mark.parametrize("has_links", [True, False])
def test_no_file_is_written_over_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_links: bool) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError

    if not has_links:
        monkeypatch.setattr("os.link", no_links)
    (tmp_path / "plan.txt").write_bytes(b"mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with Part(tmp_path, ID) as part:
        part.file.write(b"text")
        for name in ("plan.txt", "dangling"):
            with pytest.raises(FileExistsError):
                part.place(tmp_path / name, overwrite=False)
        assert (tmp_path / "plan.txt").read_bytes() == b"mine"
        part.place(tmp_path / "other", overwrite=False)
    assert (tmp_path / "other").read_bytes() == b"text"
    assert not part.path.exists()


def test_file_is_replaced_where_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "plan.txt").write_bytes(b"mine")
    with Part(tmp_path, ID) as part:
        part.file.write(b"text")
        part.place(tmp_path / "plan.txt", overwrite=True)
    assert (tmp_path / "plan.txt").read_bytes() == b"text"


@pytest.mark.parametrize("keep", [True, False])
def test_part_is_kept_for_the_next_time_unless_there_is_none(tmp_path: Path, *, keep: bool) -> None:
    with Part(tmp_path, ID, keep=keep) as part:
        part.file.write(b"te")
    assert part.path.exists() is keep
    with Part(tmp_path, ID, keep=keep) as part:
        assert part.size == (2 if keep else 0)


def test_empty_part_is_not_kept(tmp_path: Path) -> None:
    with Part(tmp_path, ID):
        pass
    assert list(tmp_path.iterdir()) == []


def test_part_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    part = tmp_path / f".{ID}.part"
    part.symlink_to(mine)
    with pytest.raises(StorageError):
        Part(tmp_path, ID)
    part.unlink()
    part.hardlink_to(mine)
    with pytest.raises(StorageError, match="something else"):
        Part(tmp_path, ID)
    assert mine.read_bytes() == b"mine"
    part.unlink()
    with Part(tmp_path, ID), pytest.raises(StorageError, match="another download"):
        Part(tmp_path, ID)


def test_part_that_became_a_file_meanwhile_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Part(tmp_path, ID)
    first.file.write(b"whole")
    real = fcntl.flock

    def finish_first(descriptor: int, how: int) -> None:
        # Opened by the second, and not locked yet.
        monkeypatch.setattr(fcntl, "flock", real)
        first.place(tmp_path / "plan.txt", overwrite=False)
        first.file.close()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with Part(tmp_path, ID) as second:
        assert second.size == 0
        second.file.write(b"other")
    assert (tmp_path / "plan.txt").read_bytes() == b"whole"
