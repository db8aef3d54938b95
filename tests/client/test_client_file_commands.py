"""Files at the keyboard: sent with posts or before them, fetched into folders and pipes, linked to for strangers."""

import asyncio
import json
import os
import re
import secrets
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from client.posting import NewPost, publish
from client.uploads import source_of_bytes, upload
from server.sealing.files import CHUNK_BYTES
from server.settings import Settings
from tests.client.cutting_server import Limits, cutting
from tests.client.devices import Device
from tests.client.rewriting_server import Liar
from tests.client.scripted_server import Reply
from tests.client.test_client_cli import User
from tests.people import PATIENCE_S
from tests.processes import environ_of, running_api_process

HOSTILE = ["../../../out", "..", "/etc/passwd", "C:\\x", "con", "a\x1b[31mb\u202etxt", ".bashrc", *["same"] * 3]


@pytest.fixture
async def stranger(server: str, tmp_path: Path) -> User:
    """Somebody without an account."""
    return User("Nobody", server, tmp_path / "stranger")


def new_file(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


def saved(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


async def post_with(someone: Device, *names: str, content: bytes = b"text") -> str:
    """A post with files of these names, whatever they are."""
    files = [
        msgspec.structs.replace(await upload(someone.client, source_of_bytes(content, "x")), name=name)
        for name in names
    ]
    new = NewPost(await someone.found_group(), someone.user.id, "Files", "See there", attachments=tuple(files))
    return str((await publish(someone.client, someone.identity, someone.people(), new)).post.id)


@pytest.mark.parametrize("by", [(), ("--by-server",)])
async def test_files_go_along_with_a_post_and_are_saved_by_its_readers(
    anna: Device, ben: Device, tmp_path: Path, by: tuple[str, ...]
) -> None:
    group_id = await anna.found_group(ben)
    contents = {"big.bin": secrets.token_bytes(2_000_000), "naïve plan.txt": b"plan", "empty": b""}
    paths = [new_file(tmp_path / "out", name, content) for name, content in contents.items()]
    options = [part for path in paths for part in ("--attach", path)]
    sent = await anna.run("post", "new", group_id, "Files", "See there", *options, *by, "--json")
    assert sent.exit_code == 0, sent.output
    # No bar where nobody looks.
    assert sent.stderr == ""
    post_id = json.loads(sent.stdout)["id"]
    shown = await ben.do("post", "read", post_id)
    assert "big.bin (2.0 MB, application/octet-stream) " in shown
    assert "naïve plan.txt (4 bytes, text/plain) " in shown
    target = tmp_path / "a" / "target"
    read = await ben.ask_for("post", "read", post_id, "--save-to", target)
    assert saved(target) == contents
    assert [one["path"] for one in read["attachments"]] == [str(target / name) for name in contents]
    again = await ben.do("post", "read", post_id, "--save-to", target)
    assert str(target / "big (2).bin") in again
    assert (target / "big (2).bin").read_bytes() == (target / "big.bin").read_bytes() == contents["big.bin"]


async def test_twenty_files_go_along_and_no_more(anna: Device, tmp_path: Path) -> None:
    group_id = await anna.found_group()
    paths = [new_file(tmp_path / "out", f"{number}.txt", f"{number}".encode()) for number in range(21)]
    options = [part for path in paths for part in ("--attach", path)]
    refused = await anna.run("post", "new", group_id, "Files", "See there", *options)
    assert refused.exit_code == 2
    assert "20 files" in refused.stderr
    made = await anna.ask_for("post", "new", group_id, "Files", "See there", *options[:-2])
    await anna.do("post", "read", made["id"], "--save-to", tmp_path / "target")
    assert saved(tmp_path / "target") == {f"{number}.txt": f"{number}".encode() for number in range(20)}


async def test_file_that_can_not_be_read_stops_the_post_before_anything_is_sent(anna: Device, tmp_path: Path) -> None:
    group_id = await anna.found_group()
    said = await anna.fail(1, "post", "new", group_id, "Files", "", "--attach", tmp_path / "nothing")
    assert "nothing can't be read" in said
    assert await anna.ask_for("post", "list") == []


async def test_file_that_is_too_large_is_named(settings: Settings, server: str, tmp_path: Path) -> None:
    small, large = new_file(tmp_path, "small.txt", b"text"), new_file(tmp_path, "large.bin", bytes(100_001))
    environ = environ_of(settings, MAX_ATTACHMENT_BYTES="100000")
    async with running_api_process(environ, tmp_path / "log") as api:
        anna = await User("Anna", api.url, tmp_path / "anna").sign_up()
        assert await anna.fail(1, "file", "put", large) == (
            "large.bin (100,001 bytes) is larger than this server takes: 100,000 bytes at most"
        )
        await anna.do("file", "put", small)


async def test_no_name_escapes_the_folder_or_writes_over_another(anna: Device, tmp_path: Path) -> None:
    post_id = await post_with(anna, *HOSTILE)
    target = tmp_path / "deep" / "target"
    before = everything(tmp_path)
    said = await anna.do("post", "read", post_id, "--save-to", target)
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert set(saved(target)) == {
        "_._.._.._out",
        "attachment",
        "_etc_passwd",
        "C__x",
        "_con",
        "a_[31mb_txt",
        "_bashrc",
        "same",
        "same (2)",
        "same (3)",
    }
    new = everything(tmp_path) - before - everything(target) - everything(anna.home)
    assert new == {target, target.parent}


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("by", [(), ("--by-server",)])
async def test_file_is_uploaded_first_and_attached_later(anna: Device, tmp_path: Path, by: tuple[str, ...]) -> None:
    group_id = await anna.found_group()
    content = secrets.token_bytes(1_500_000)
    put = await anna.run("file", "put", "-", "--name", "photos.tar", *by, typed=content)
    assert put.exit_code == 0, put.output
    file_id = put.stdout.strip()
    UUID(file_id)
    kept = anna.profile.uploads_path
    if not by:
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        key = msgspec.json.decode(kept.read_bytes())["files"][0]["file"]["key"]
        assert key not in put.output
    made = await anna.ask_for("post", "new", group_id, "Photos", "", "--uploaded", file_id, *by)
    if not by:
        assert msgspec.json.decode(kept.read_bytes())["files"] == []
    got = await anna.run("file", "get", made["id"], "photos.tar", "--output", "-")
    assert got.stdout_bytes == content
    assert got.stderr == ""
    shown = (await anna.ask_for("post", "read", made["id"]))["attachments"]
    assert [(one["id"], one["media_type"], one["size"]) for one in shown] == [(file_id, "application/x-tar", 1_500_000)]


async def test_what_was_uploaded_elsewhere_is_not_attached(anna: Device, ben: Device) -> None:
    group_id = await anna.found_group(ben)
    file_id = (await anna.do("file", "put", "-", typed=b"text")).strip()
    said = await ben.fail(1, "post", "new", group_id, "Files", "", "--uploaded", file_id)
    assert "file put" in said


async def test_why_an_upload_is_not_attached_is_told(anna: Device) -> None:
    group_id = await anna.found_group()
    sealed_here = (await anna.do("file", "put", "-", typed=b"text")).strip()
    by_server = (await anna.do("file", "put", "-", "--by-server", typed=b"text")).strip()
    new = ("post", "new", group_id, "Files", "", "--uploaded")
    assert "add --by-server" in await anna.fail(1, *new, by_server)
    assert "leave out --by-server" in await anna.fail(1, *new, sealed_here, "--by-server")
    for file_id, by in ((sealed_here, ()), (by_server, ("--by-server",))):
        made = await anna.ask_for(*new, file_id, *by)
        for again in ((), ("--by-server",)):
            assert f"is in a post already, {made['id']}" in await anna.fail(1, *new, file_id, *again)


async def test_put_names_the_file(anna: Device, tmp_path: Path) -> None:
    path = new_file(tmp_path, "plan.txt", b"text")
    put = await anna.ask_for("file", "put", path)
    assert (put["name"], put["media_type"], put["size"]) == ("plan.txt", "text/plain", 4)
    put = await anna.ask_for("file", "put", path, "--name", "other", "--type", "image/png")
    assert (put["name"], put["media_type"]) == ("other", "image/png")
    assert json.loads(await anna.do("file", "put", "-", "--json", typed=b"text"))["name"] == "stdin"
    assert "no name for a file" in await anna.fail(2, "file", "put", path, "--name", "a/b")


async def test_file_is_fetched_under_the_name_that_was_asked_for(anna: Device, tmp_path: Path) -> None:
    post_id = await post_with(anna, "plan.txt", "other.txt")
    target = tmp_path / "mine.txt"
    got = await anna.ask_for("file", "get", post_id, "plan.txt", "--output", target)
    assert (got["path"], got["size"], target.read_bytes()) == (str(target), 4, b"text")
    target.write_bytes(b"mine")
    assert "is there already: write over it with --force" in await anna.fail(
        1, "file", "get", post_id, "plan.txt", "-o", target
    )
    assert target.read_bytes() == b"mine"
    await anna.do("file", "get", post_id, "plan.txt", "-o", target, "--force")
    assert target.read_bytes() == b"text"
    folder = tmp_path / "folder"
    folder.mkdir()
    for _ in range(2):
        await anna.do("file", "get", post_id, got["id"], "-o", folder)
    assert saved(folder) == {"plan.txt": b"text", "plan (2).txt": b"text"}
    assert "other.txt" in await anna.fail(1, "file", "get", post_id, "-o", folder)
    assert "post read" in await anna.fail(1, "file", "get", post_id, "nothing", "-o", folder)


async def test_folder_that_ends_with_a_slash_is_made(anna: Device, tmp_path: Path) -> None:
    post_id = await post_with(anna, "plan.txt")
    await anna.do("file", "get", post_id, "-o", f"{tmp_path}/new/folder/")
    assert saved(tmp_path / "new/folder") == {"plan.txt": b"text"}
    new_file(tmp_path, "file", b"mine")
    assert "can't be used" in await anna.fail(1, "file", "get", post_id, "-o", f"{tmp_path}/file/", "--force")


async def test_pipe_is_written_to_and_stays_one(anna: Device, tmp_path: Path) -> None:
    content = secrets.token_bytes(30_000)
    post_id = await post_with(anna, "plan.txt", content=content)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for force in ((), ("--force",)):
        got = await anna.ask_for("file", "get", post_id, "-o", pipe, *force)
        assert pipe.is_fifo()
        assert (got["size"], os.read(reader, 65_536)) == (len(content), content)
    os.close(reader)
    assert everything(tmp_path) - everything(anna.home) == {anna.home, pipe}


async def test_what_is_neither_file_nor_pipe_is_left_as_it_is(anna: Device, tmp_path: Path) -> None:
    post_id = await post_with(anna, "plan.txt")
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        said = await anna.fail(1, "file", "get", post_id, "-o", path, "--force")
    assert "neither a file nor a pipe" in said
    assert path.is_socket()


async def test_link_is_followed_and_stays_one(anna: Device, tmp_path: Path) -> None:
    post_id = await post_with(anna, "plan.txt")
    target, link = new_file(tmp_path, "target", b"mine"), tmp_path / "link"
    link.symlink_to("target")
    assert "--force" in await anna.fail(1, "file", "get", post_id, "-o", link)
    assert target.read_bytes() == b"mine"
    await anna.do("file", "get", post_id, "-o", link, "--force")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"text")


async def test_of_two_files_of_one_name_the_id_is_asked_for(anna: Device, tmp_path: Path) -> None:
    post_id = await post_with(anna, "same", "same")
    said = await anna.fail(1, "file", "get", post_id, "same", "-o", tmp_path / "x")
    [first, _] = (await anna.ask_for("post", "read", post_id))["attachments"]
    assert first["id"] in said
    await anna.do("file", "get", post_id, first["id"], "-o", tmp_path / "x")


async def test_post_without_files_is_told(anna: Device) -> None:
    post_id = await post_with(anna)
    assert "no files" in await anna.fail(1, "file", "get", post_id)


async def test_changed_stream_ends_with_5_and_leaves_nothing(anna: Device, liar: Liar, tmp_path: Path) -> None:
    content = secrets.token_bytes(3 * CHUNK_BYTES)
    post_id = await post_with(anna, "plan.txt", content=content)
    [file] = (await anna.ask_for("post", "read", post_id))["attachments"]
    stream = (await fetch_all(anna, file["id"])).copy()
    stream[100_000] ^= 1
    liar.answer("GET", "/attachments/.*", lambda _: Reply(200, bytes(stream)))
    anna.go_through(liar.address)
    target = tmp_path / "target"
    target.mkdir()
    assert "cannot open this file" in await anna.fail(5, "file", "get", post_id, "-o", target)
    assert "cannot open this file" in await anna.fail(5, "post", "read", post_id, "--save-to", target)
    got = await anna.run("file", "get", post_id, "-o", "-")
    assert (got.exit_code, got.stdout_bytes) == (5, b"")
    assert saved(target) == {}


async def fetch_all(someone: Device, file_id: str) -> bytearray:
    stream = bytearray()
    async for piece in someone.client.file_stream(UUID(file_id)).read():
        stream += piece
    return stream


# ---------------------------------------------------------------------------------- links


def here(link: str, server: str) -> str:
    assert link.startswith("https://posts.example/download/")
    return link.replace("https://posts.example", server)


async def test_stranger_opens_a_link(anna: Device, stranger: User, server: str, tmp_path: Path) -> None:
    content = secrets.token_bytes(200_000)
    post_id = await post_with(anna, "plan.txt", content=content)
    made = await anna.run("file", "link", post_id, "plan.txt", "--expires", "2h")
    assert "secureblogs file unlink " in made.stderr
    assert "secureblogs file get LINK --output plan.txt" in made.stderr
    link = here(made.stdout.strip(), server)
    target = tmp_path / "target"
    await stranger.do("file", "get", link, "-o", target)
    assert target.read_bytes() == content
    target.write_bytes(b"mine")
    assert "is there already" in await stranger.fail(1, "file", "get", link, "-o", target)
    assert target.read_bytes() == b"mine"
    got = await stranger.run("file", "get", "-", "-o", "-", typed=f"{link}\n")
    assert got.stdout_bytes == content
    # The link is all that it needs, and all that it leaves.
    assert not stranger.home.exists()


async def test_server_that_a_stranger_asks_never_sees_the_end_of_the_link(
    anna: Device, stranger: User, liar: Liar, tmp_path: Path
) -> None:
    post_id = await post_with(anna, "plan.txt")
    link = here(await anna.do("file", "link", post_id), liar.address).strip()
    await stranger.do("file", "get", link, "-o", tmp_path / "x")
    [call] = liar.calls
    end = link.partition("#")[2]
    assert len(end) == 107
    assert end not in f"{call.target} {call.headers} {call.body!r}"
    assert "#" not in call.target


async def test_wrong_end_of_a_link_opens_nothing(anna: Device, stranger: User, server: str, tmp_path: Path) -> None:
    post_id = await post_with(anna, "plan.txt")
    link = here((await anna.do("file", "link", post_id)).strip(), server)
    address, _, end = link.partition("#")
    target = tmp_path / "target"
    target.mkdir()
    for wrong in (address, f"{address}#", f"{link}A", link[:-1]):
        said = await stranger.fail(2, "file", "get", wrong, "-o", target)
        assert end[:20] not in said
    wrong = f"{address}#{end[:50]}{'B' if end[50] != 'B' else 'C'}{end[51:]}"
    assert "cannot open this file" in await stranger.fail(5, "file", "get", wrong, "-o", target)
    assert saved(target) == {}


async def test_links_are_listed_used_up_and_ended(anna: Device, stranger: User, server: str, tmp_path: Path) -> None:
    post_id = await post_with(anna, "plan.txt")
    once = await anna.ask_for("file", "link", post_id, "--downloads", 1)
    assert once["downloads"] == 1
    link = here(once["url"], server)
    await stranger.do("file", "get", link, "-o", tmp_path / "x")
    await stranger.fail(1, "file", "get", link, "-o", tmp_path / "y")
    often = await anna.ask_for("file", "link", post_id, "plan.txt", "--expires", "30d")
    listed = await anna.ask_for("file", "links", post_id, "plan.txt")
    assert [(one["id"], one["downloads_left"]) for one in listed] == [(often["id"], None), (once["id"], 0)]
    for _ in range(2):
        await anna.do("file", "unlink", often["id"])
    shown = (await anna.do("file", "links", post_id)).splitlines()
    assert [one.split("\t")[0] for one in shown] == ["ended", "used up"]
    said = await stranger.fail(1, "file", "get", here(often["url"], server), "-o", tmp_path / "y")
    assert "#" not in said
    assert not (tmp_path / "y").exists()


async def test_terminal_is_shown_the_command_that_opens_a_link(
    anna: Device, stranger: User, server: str, tmp_path: Path
) -> None:
    post_id = await post_with(anna, "the plan's.txt")
    terminal, stdout = os.openpty()
    async with running(anna, "file", "link", post_id, stdout=stdout) as process:
        _, told = await process.communicate()
    link = here(os.read(terminal, 65_536).decode().strip(), server)
    os.close(terminal)
    os.close(stdout)
    [command] = [line for line in told.decode().splitlines() if "It opens with: " in line]
    words = shlex.split(command.partition(": ")[2])
    assert [*words[:3], here(words[3], server), *words[4:]] == [
        *("secureblogs", "file", "get", link, "--output", "the plan's.txt")
    ]
    await stranger.do(*words[1:3], link, words[4], tmp_path / words[5])
    assert (tmp_path / "the plan's.txt").read_bytes() == b"text"


@pytest.mark.parametrize("expires", ["", "1", "59s", "31d", "1w", "-1d", "1.5h"])
async def test_time_that_is_none_is_refused(stranger: User, expires: str) -> None:
    result = await stranger.run("file", "link", "0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3", "--expires", expires)
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [("nothing",), ("https://posts.example/download/t#x", "name"), ("x", "--force"), ("x", "-o", "-", "--json")],
)
async def test_what_makes_no_sense_is_told(stranger: User, arguments: tuple[str, ...]) -> None:
    assert (await stranger.run("file", "get", *arguments)).exit_code == 2


# ---------------------------------------------------------------------------------- processes of their own


@asynccontextmanager
async def running(
    someone: User,
    *arguments: object,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
) -> AsyncIterator[Any]:
    """The command as a process, which is gone afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", *(str(one) for one in arguments)),
        env={**os.environ, **someone.environment, "SECUREBLOGS_KEYRING": "off"},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_killed_download_leaves_no_half_file_and_the_next_one_goes_on(
    anna: Device, server: str, tmp_path: Path
) -> None:
    content = secrets.token_bytes(6_000_000)
    post_id = await post_with(anna, "plan.bin", content=content)
    target = tmp_path / "target"
    target.mkdir()
    async with cutting(server) as cutter:
        cutter.otherwise = Limits(down=4_000_000, stall=True)
        anna.go_through(cutter.address)
        async with running(anna, "file", "get", post_id, "-o", target) as process, asyncio.timeout(PATIENCE_S):
            while sum(one.stat().st_size for one in target.iterdir()) < 2_000_000:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)
            process.kill()
            await process.wait()
        [part] = target.iterdir()
        assert part.name.endswith(".part")
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        cutter.otherwise, cutter.down = Limits(), 0
        await anna.do("file", "get", post_id, "-o", target)
        assert cutter.down < len(content)
    assert saved(target) == {"plan.bin": content}


async def test_interrupted_download_says_that_what_came_is_kept(anna: Device, server: str, tmp_path: Path) -> None:
    post_id = await post_with(anna, "plan.bin", content=bytes(6_000_000))
    target = tmp_path / "target"
    target.mkdir()
    async with cutting(server) as cutter:
        cutter.otherwise = Limits(down=4_000_000, stall=True)
        anna.go_through(cutter.address)
        async with running(anna, "file", "get", post_id, "-o", target) as process, asyncio.timeout(PATIENCE_S):
            while not sum(one.stat().st_size for one in target.iterdir()):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            assert await process.stderr.read() == b"What came is kept, and the same command goes on from there.\n"
    assert [one.suffix for one in target.iterdir()] == [".part"]


async def test_interrupted_write_to_a_pipe_that_nobody_reads_ends(anna: Device, server: str, tmp_path: Path) -> None:
    post_id = await post_with(anna, "plan.bin", content=bytes(200_000))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with cutting(server) as cutter:
        anna.go_through(cutter.address)
        async with running(anna, "file", "get", post_id, "-o", pipe) as process, asyncio.timeout(PATIENCE_S):
            while cutter.down < 200_000:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)
            # It is at the pipe, or just before: one signal is enough for both.
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    assert pipe.is_fifo()


async def test_upload_that_waits_for_a_pipe_is_interrupted(anna: Device, server: str) -> None:
    async with cutting(server) as cutter:
        anna.go_through(cutter.address)
        async with running(anna, "file", "put", "-", stdin=subprocess.PIPE) as process, asyncio.timeout(PATIENCE_S):
            process.stdin.write(bytes(1_500_000))
            await process.stdin.drain()
            while cutter.up < 900_000:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            assert await process.stdout.read() == b""


async def test_terminal_shows_how_fast_it_goes_and_how_long_it_takes(anna: Device, server: str, tmp_path: Path) -> None:
    post_id = await post_with(anna, "pl\x1ban.bin", content=bytes(6_000_000))
    terminal, stderr = os.openpty()
    os.set_blocking(terminal, False)
    shown = b""
    async with cutting(server) as cutter:
        cutter.otherwise = Limits(down=4_000_000, stall=True)
        anna.go_through(cutter.address)
        anna.environment |= {"COLUMNS": "100", "TERM": "xterm"}
        async with running(anna, "file", "get", post_id, "-o", tmp_path, stderr=stderr), asyncio.timeout(PATIENCE_S):
            while not re.search(rb"pl_an\.bin.+[1-9]\.\d/6\.0 MB.+\d MB/s.+0:0", shown):
                with suppress(BlockingIOError):
                    shown += os.read(terminal, 65_536)
                await asyncio.sleep(0.02)
    os.close(terminal)
    os.close(stderr)
