"""Files through the SDK: sealed, sent, fetched and opened, through broken connections and past lying servers."""

import asyncio
import io
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from uuid_utils.compat import uuid7

from client import Client, Retries, downloads
from client.download_links import linked_stream, read_fragment, read_link, write_fragment, write_link
from client.downloads import FileKey, key_of
from client.errors import BadAnswer, BadFileLink, BadText, CannotOpen, Conflict, NetworkError, Refused, StorageError
from client.posting import NewPost, publish
from client.saving import safe_name
from client.transport import Transport
from client.uploads import (
    BLOCK_BYTES,
    Source,
    check_name,
    source_of_bytes,
    source_of_path,
    source_of_stream,
    upload,
    upload_in_clear,
)
from server.sealing.files import CHUNK_BYTES, HEADER_BYTES, SEALED_CHUNK_BYTES, FileSealer, chunk_offset, new_file_key
from server.sealing.texts import Attachment
from server.settings import Settings
from tests.client.cutting_server import Cutter, Limits, cutting
from tests.client.devices import Device
from tests.client.rewriting_server import Liar
from tests.client.scripted_server import Call, Reply
from tests.people import PASSWORD, PATIENCE_S, new_email
from tests.processes import environ_of, running_api_process

LIVES = timedelta(hours=1)
QUICK = Retries(tries=3, first_wait=0.01, longest_wait=0.02)
NAME = "naïve plan.txt"


@pytest.fixture
async def cutter(server: str) -> AsyncIterator[Cutter]:
    async with cutting(server) as one:
        yield one


@asynccontextmanager
async def through(address: str, someone: Device) -> AsyncIterator[Client]:
    """The same user, by another way."""
    async with Client(address, someone.client.token, retries=QUICK) as client:
        yield client


async def save(client: Client, file: Attachment, folder: Path) -> Path:
    return await downloads.save(client.file_stream(file.id), key_of(file), folder, safe_name(file.name))


def left(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


SIZES = [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, BLOCK_BYTES, 9_000_001]


@pytest.mark.parametrize("size", SIZES)
async def test_file_that_its_author_sealed_is_opened_by_every_member(
    anna: Device, ben: Device, tmp_path: Path, size: int
) -> None:
    content = secrets.token_bytes(size)
    told: list[int] = []
    file = await upload(anna.client, source_of_bytes(content, NAME), told.append)
    assert (file.name, file.media_type, file.size) == (NAME, "text/plain", size)
    assert told == sorted(told)
    assert told[-1] == size
    group_id = await anna.found_group(ben)
    new = NewPost(group_id, anna.user.id, "Files", "See there", attachments=(file,))
    posted = await publish(anna.client, anna.identity, anna.people(), new)
    opened = await ben.read(posted.post.id)
    assert opened.document is not None
    assert opened.document.attachments == (file,)
    path = await save(ben.client, opened.document.attachments[0], tmp_path)
    assert path == tmp_path / NAME
    assert path.read_bytes() == content
    assert left(tmp_path) == ["anna", "ben", NAME]


@pytest.mark.parametrize("size", [0, 1, 2_500_000])
async def test_file_that_the_server_seals_is_opened_by_every_member(
    anna: Device, ben: Device, tmp_path: Path, size: int
) -> None:
    content = secrets.token_bytes(size)
    stored = await upload_in_clear(anna.client, source_of_bytes(content, NAME))
    assert (stored.sealed_by, stored.size) == ("server", size)
    group_id = await anna.found_group(ben)
    made = await anna.client.create_post(group_id, "Files", "See there", attachment_ids=[stored.id])
    await anna.client.wait_until_sealed(made.id, PATIENCE_S)
    document = (await ben.read(made.id)).document
    assert document is not None
    [file] = document.attachments
    assert (file.id, file.name, file.media_type) == (stored.id, NAME, "text/plain")
    assert (await save(ben.client, file, tmp_path)).read_bytes() == content


async def test_pipe_is_sent_without_knowing_its_size(anna: Device, tmp_path: Path) -> None:
    content = secrets.token_bytes(3_000_000)
    file = await upload(anna.client, source_of_stream(io.BytesIO(content), "pipe"))
    assert (await save(anna.client, file, tmp_path)).read_bytes() == content


async def test_server_never_sees_what_an_author_seals(anna: Device, liar: Liar) -> None:
    async with through(liar.address, anna) as client:
        await upload(client, source_of_bytes(b"the quick brown fox" * 1000, "fox.txt"))
    [call] = liar.seen("POST", "/attachments")
    assert b"quick" not in call.body
    assert "fox" not in str(call.headers) + call.target


# ---------------------------------------------------------------------------------- what is sent again


Send = Callable[[Client, Source], Awaitable[object]]
every_way = pytest.mark.parametrize("send", [upload, upload_in_clear])


@every_way
async def test_upload_whose_answer_was_lost_is_sent_again_and_stored_once(
    anna: Device, cutter: Cutter, send: Send
) -> None:
    # The request goes up whole; of the answer comes nothing.
    cutter.next_connections = [Limits(down=0), Limits(down=0)]
    async with through(cutter.address, anna) as client:
        await send(client, source_of_bytes(secrets.token_bytes(3_000_000), "big"))
    assert cutter.connections == 3


@every_way
@pytest.mark.parametrize("size", [3_000_000, 100])
async def test_upload_that_broke_in_the_middle_is_sent_again(
    anna: Device, cutter: Cutter, tmp_path: Path, send: Send, size: int
) -> None:
    path = tmp_path / "big"
    path.write_bytes(secrets.token_bytes(size))
    cutter.next_connections = [Limits(up=size // 2)]
    async with through(cutter.address, anna) as client:
        await send(client, source_of_path(path))
    assert cutter.connections == 2


async def test_upload_is_given_up_after_a_few_times(anna: Device, cutter: Cutter) -> None:
    cutter.otherwise = Limits(up=1_000_000)
    async with through(cutter.address, anna) as client:
        with pytest.raises(NetworkError):
            await upload(client, source_of_bytes(bytes(3_000_000), "big"))
    assert cutter.connections == QUICK.tries


async def test_pipe_is_never_sent_from_its_middle(anna: Device, cutter: Cutter) -> None:
    cutter.next_connections = [Limits(up=1_000_000)]
    async with through(cutter.address, anna) as client:
        with pytest.raises(NetworkError):
            await upload(client, source_of_stream(io.BytesIO(bytes(3_000_000)), "pipe"))
    assert cutter.connections == 1


@pytest.mark.parametrize(
    "later",
    [
        b"B" + bytes(2_999_999),
        bytes(2_000_000) + b"B" + bytes(999_999),
        bytes(1_000_000),
        bytes(3_000_001),
        b"",
    ],
)
async def test_nothing_else_is_ever_sealed_with_the_same_key(anna: Device, cutter: Cutter, later: bytes) -> None:
    contents = [bytes(3_000_000), later]
    source = Source(
        name="log",
        media_type="text/plain",
        size=None,
        open=lambda: io.BytesIO(contents.pop(0)),
        can_be_reopened=True,
    )
    # The first is sent whole, and its answer is lost.
    cutter.next_connections = [Limits(down=0)]
    async with through(cutter.address, anna) as client:
        with pytest.raises(StorageError, match="has changed"):
            await upload(client, source)
    assert contents == []


async def test_file_that_grows_or_shrinks_while_it_is_sent_is_given_up(anna: Device) -> None:
    for announced in (0, 1, 3_000_001):
        source = msgspec.structs.replace(source_of_bytes(bytes(3_000_000), "log"), size=announced)
        with pytest.raises(StorageError, match="has changed"):
            await upload(anna.client, source)


@pytest.mark.parametrize(
    "change", [{"size": 3}, {"id": "0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3"}, {"sealed_by": "server"}], ids=str
)
async def test_answer_about_another_file_is_refused(anna: Device, liar: Liar, change: dict[str, object]) -> None:
    liar.rewrite("POST", "/attachments", lambda body: body | change)
    async with through(liar.address, anna) as client:
        with pytest.raises(BadAnswer):
            await upload(client, source_of_bytes(b"text", "plan"))


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "a\x85", "x" * 256, "\ud800"])
def test_name_that_the_server_would_refuse_is_not_sent(name: str) -> None:
    with pytest.raises(BadText):
        check_name(name)


def test_source_that_is_not_there_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(StorageError):
            source_of_path(path)


async def test_refusal_ends_an_upload(anna: Device) -> None:
    async with Client(anna.client.address, "sbs_wrong", retries=QUICK) as client:
        with pytest.raises(Refused) as caught:
            await upload(client, source_of_bytes(bytes(10_000_000), "big"))
    assert caught.value.status == 401


# ---------------------------------------------------------------------------------- broken downloads


SIZE = 3_000_000


@pytest.fixture
async def content() -> bytes:
    return secrets.token_bytes(SIZE)


@pytest.fixture
async def file(anna: Device, content: bytes) -> Attachment:
    return await upload(anna.client, source_of_bytes(content, "plan"))


async def test_download_goes_on_where_the_connection_broke(
    anna: Device, cutter: Cutter, file: Attachment, content: bytes, tmp_path: Path
) -> None:
    cutter.next_connections = [Limits(down=500_000), Limits(down=0), Limits(down=1_200_000), Limits(down=40)]
    async with through(cutter.address, anna) as client:
        path = await save(client, file, tmp_path)
    assert path.read_bytes() == content
    assert cutter.connections == 5
    assert len(cutter.ranges()) == 4
    assert cutter.down < 1.2 * SIZE
    assert left(tmp_path) == ["anna", "plan"]


async def test_connection_that_brought_a_file_is_read_as_before(anna: Device, file: Attachment) -> None:
    async with aclosing(Transport(anna.client.address, anna.client.token)) as transport:
        reads = []
        for _ in range(3):
            async with transport.open_stream(f"/attachments/{file.id}", {}) as response:
                await response.aread()
                reads.append(response.extensions["network_stream"].read)
    assert reads[0] is reads[1] is reads[2]


async def test_download_is_given_up_and_the_next_run_goes_on(
    anna: Device, cutter: Cutter, file: Attachment, content: bytes, tmp_path: Path
) -> None:
    cutter.next_connections = [Limits(down=2_500_000)]
    cutter.otherwise = Limits(down=0)
    async with through(cutter.address, anna) as client:
        with pytest.raises(NetworkError):
            await save(client, file, tmp_path)
        assert cutter.connections == QUICK.tries
        assert left(tmp_path) == [f".{file.id}.part", "anna"]
        assert content.startswith((tmp_path / f".{file.id}.part").read_bytes())
        cutter.otherwise, cutter.down = Limits(), 0
        cutter.heads.clear()
        path = await save(client, file, tmp_path)
    assert path.read_bytes() == content
    assert cutter.ranges()[0] == f"bytes=0-{HEADER_BYTES - 1}"
    assert int(cutter.ranges()[1].removeprefix("bytes=").removesuffix("-")) > 1_000_000
    assert cutter.down < SIZE // 2
    assert left(tmp_path) == ["anna", "plan"]


async def test_connections_that_bring_nothing_are_bounded(
    anna: Device, cutter: Cutter, file: Attachment, tmp_path: Path
) -> None:
    cutter.otherwise = Limits(down=1_000)
    async with through(cutter.address, anna) as client:
        with pytest.raises(NetworkError):
            await save(client, file, tmp_path)
    assert cutter.connections < 10
    assert left(tmp_path) == ["anna"]


@pytest.mark.parametrize("part", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES - 1, SIZE])
async def test_any_part_is_taken_up(anna: Device, file: Attachment, content: bytes, tmp_path: Path, part: int) -> None:
    (tmp_path / f".{file.id}.part").write_bytes(content[:part])
    assert (await save(anna.client, file, tmp_path)).read_bytes() == content
    assert left(tmp_path) == ["anna", "plan"]


@pytest.mark.parametrize(
    "part", [bytes(200_000), bytes(SIZE), bytes(SIZE + 200_000)], ids=["short", "as long", "longer"]
)
async def test_part_that_is_wrong_is_fetched_anew(
    anna: Device, file: Attachment, content: bytes, tmp_path: Path, part: bytes
) -> None:
    (tmp_path / f".{file.id}.part").write_bytes(part)
    assert (await save(anna.client, file, tmp_path)).read_bytes() == content
    assert left(tmp_path) == ["anna", "plan"]


async def test_what_is_too_much_in_a_part_is_cut_off(
    anna: Device, file: Attachment, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / f".{file.id}.part").write_bytes(content + b"!")
    assert (await save(anna.client, file, tmp_path)).read_bytes() == content


async def test_nothing_is_fetched_for_a_name_that_is_taken(liar: Liar, tmp_path: Path) -> None:
    (tmp_path / TRUE_FILE.name).write_bytes(b"mine")
    async with Client(liar.address) as client:
        with pytest.raises(StorageError, match="is there already"):
            await save(client, TRUE_FILE, tmp_path)
    assert liar.calls == []
    assert (tmp_path / TRUE_FILE.name).read_bytes() == b"mine"


@pytest.mark.parametrize("send", [upload, upload_in_clear])
async def test_file_that_is_too_large_is_hardly_sent(
    settings: Settings, server: str, tmp_path: Path, send: Callable[[Client, Source], Awaitable[object]]
) -> None:
    environ = environ_of(settings, MAX_ATTACHMENT_BYTES="100000")
    path = tmp_path / "film.mp4"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    async with (
        running_api_process(environ, tmp_path / "log") as api,
        cutting(api.url) as cutter,
        Client(cutter.address) as client,
    ):
        await client.sign_up("Anna", new_email(), PASSWORD)
        with pytest.raises(Refused, match="100,000 bytes at most"):
            await send(client, source_of_path(path))
        assert cutter.up < 50_000_000


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nothing"), Path.mkdir])
async def test_only_a_file_is_written_over(liar: Liar, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / TRUE_FILE.name)
    before = (tmp_path / TRUE_FILE.name).lstat()
    async with Client(liar.address) as client:
        with pytest.raises(StorageError, match="is no file"):
            await downloads.save(
                client.file_stream(TRUE_FILE.id), downloads.key_of(TRUE_FILE), tmp_path, TRUE_FILE.name, overwrite=True
            )
    assert liar.calls == []
    assert (tmp_path / TRUE_FILE.name).lstat() == before


async def test_part_is_not_taken_up_where_the_server_gives_no_parts(
    anna: Device, liar: Liar, file: Attachment, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / f".{file.id}.part").write_bytes(content[:200_000])
    async with through(liar.address, anna) as client:
        # It passes no Range on.
        assert (await save(client, file, tmp_path)).read_bytes() == content


@pytest.mark.parametrize(
    ("said", "length"),
    [
        ("bytes 1-24/3000000", 24),
        ("bytes 0-23/*", 24),
        ("", 24),
        ("bytes 0-23/3000000", 23),
        ("bytes 0-23/3000000", 25),
    ],
)
async def test_answer_with_another_part_is_refused(liar: Liar, tmp_path: Path, said: str, length: int) -> None:
    (tmp_path / f".{ID}.part").write_bytes(bytes(200_000))
    liar.answer("GET", "/attachments/.*", lambda _: Reply(206, bytes(length), {"Content-Range": said}))
    async with Client(liar.address) as client:
        with pytest.raises(BadAnswer):
            await save(client, TRUE_FILE, tmp_path)


async def test_cancelled_download_leaves_its_part_alone(
    anna: Device, cutter: Cutter, file: Attachment, content: bytes, tmp_path: Path
) -> None:
    cutter.next_connections = [Limits(down=2_000_000, stall=True)]
    begun = asyncio.Event()

    def tell(done: int) -> None:
        if done > 0:
            begun.set()

    async with through(cutter.address, anna) as client:
        stream = client.file_stream(file.id)
        saving = asyncio.create_task(downloads.save(stream, key_of(file), tmp_path, "plan", tell=tell))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
    assert left(tmp_path) == [f".{file.id}.part", "anna"]
    assert content.startswith((tmp_path / f".{file.id}.part").read_bytes())


# ---------------------------------------------------------------------------------- lying servers


KEY, ID, TEXT = new_file_key(), uuid7(), secrets.token_bytes(3 * CHUNK_BYTES + 5)


def sealed(text: bytes = TEXT, key: bytes = KEY, file_id: UUID = ID, header: bytes = bytes(24)) -> bytes:
    sealer = FileSealer(key, file_id, header)
    return sealer.update(text) + sealer.finish()


def hash_of(text: bytes = TEXT) -> bytes:
    sealer = FileSealer(KEY, ID, bytes(24))
    sealer.update(text)
    sealer.finish()
    return sealer.hash


def changed(stream: bytes, position: int) -> bytes:
    return stream[:position] + bytes([stream[position] ^ 1]) + stream[position + 1 :]


def chunks(*indexes: int) -> bytes:
    """The stream with its chunks in this order."""
    stream = sealed()
    return stream[:HEADER_BYTES] + b"".join(stream[chunk_offset(one) : chunk_offset(one + 1)] for one in indexes)


TRUE_FILE = Attachment(id=ID, name="plan", media_type="text/plain", size=len(TEXT), key=KEY, hash=hash_of())
FAULTS = {
    "nothing": b"",
    "header alone": sealed()[:HEADER_BYTES],
    "without its last chunk": chunks(0, 1, 2),
    "cut in a chunk": sealed()[:-1],
    "cut at a chunk": sealed()[: chunk_offset(1)],
    "bytes after it": sealed() + b"\0",
    "a chunk after it": sealed() + bytes(SEALED_CHUNK_BYTES),
    "twice": sealed() * 2,
    "swapped chunks": chunks(1, 0, 2, 3),
    "a chunk left out": chunks(0, 2, 3),
    "a chunk twice": chunks(0, 0, 1, 2, 3),
    "another id": sealed(file_id=uuid7()),
    "another key": sealed(key=new_file_key()),
    "another header": sealed(header=b"\1" * 24),
    "another text": sealed(changed(TEXT, 0)),
    "a longer text": sealed(TEXT + b"!"),
    "a shorter text": sealed(TEXT[:-1]),
    "a byte of the header": changed(sealed(), 0),
    "the first byte": changed(sealed(), HEADER_BYTES),
    "a byte in the middle": changed(sealed(), chunk_offset(2) + 100),
    "the last byte": changed(sealed(), len(sealed()) - 1),
    "in clear": TEXT,
}


async def fail_to_open(liar: Liar, file: Attachment, stream: bytes, folder: Path) -> None:
    target = folder / "target"
    target.mkdir()
    liar.answer("GET", "/attachments/.*", lambda _: Reply(200, stream))
    async with Client(liar.address) as client:
        with pytest.raises(CannotOpen, match="cannot open this file"):
            await save(client, file, target)
    assert left(target) == []


@pytest.mark.parametrize("fault", FAULTS)
async def test_wrong_stream_is_refused_and_leaves_nothing(liar: Liar, tmp_path: Path, fault: str) -> None:
    await fail_to_open(liar, TRUE_FILE, FAULTS[fault], tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"hash": bytes(32)}, {"size": len(TEXT) + 1}, {"size": len(TEXT) - 1}, {"size": 0}, {"key": bytes(32)}],
    ids=str,
)
async def test_stream_that_is_not_what_the_document_says_is_refused(
    liar: Liar, tmp_path: Path, wrong: dict[str, object]
) -> None:
    await fail_to_open(liar, msgspec.structs.replace(TRUE_FILE, **wrong), sealed(), tmp_path)


async def test_true_stream_is_opened_whatever_it_comes_from(liar: Liar, tmp_path: Path) -> None:
    """So that the tests above refuse what is wrong, and not everything."""
    liar.answer("GET", "/attachments/.*", lambda _: Reply(200, sealed()))
    async with Client(liar.address) as client:
        assert (await save(client, TRUE_FILE, tmp_path)).read_bytes() == TEXT


async def test_rest_is_found_in_an_answer_that_is_whole(liar: Liar, tmp_path: Path) -> None:
    """The server, or what is before it, takes no notice of the part that was asked for."""
    liar.answer("GET", "/attachments/.*", lambda _: Reply(200, sealed(), {"Accept-Ranges": "bytes"}))
    async with cutting(liar.address) as cutter, Client(cutter.address, retries=QUICK) as client:
        cutter.next_connections = [Limits(down=100_000), Limits(down=150_000)]
        assert (await save(client, TRUE_FILE, tmp_path)).read_bytes() == TEXT
        assert cutter.connections == 3


async def test_wrong_rest_of_a_broken_download_is_refused(liar: Liar, tmp_path: Path) -> None:
    """The header of one stream and the chunks of another, told as parts: it is fetched anew, and refused again."""
    target = tmp_path / "target"
    target.mkdir()
    (target / f".{ID}.part").write_bytes(TEXT[: 2 * CHUNK_BYTES])
    other = sealed(header=b"\1" * 24)

    def answer(call: Call) -> Reply:
        asked = call.headers.get("range")
        if asked is None:
            return Reply(200, other)
        first = int(asked.removeprefix("bytes=").split("-")[0])
        body = sealed()[:HEADER_BYTES] if first == 0 else other[first:]
        return Reply(206, body, {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(other)}"})

    liar.answer("GET", "/attachments/.*", answer)
    async with Client(liar.address) as client:
        with pytest.raises(CannotOpen):
            await save(client, TRUE_FILE, target)
    assert left(target) == []


# ---------------------------------------------------------------------------------- links


def test_fragment_is_what_the_format_says() -> None:
    key = FileKey(UUID(bytes=bytes(range(16))), bytes(range(16, 48)), bytes(range(48, 80)))
    fragment = write_fragment(key)
    assert fragment == (
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0-P0BBQkNERUZHSElKS0xNTk8"
    )
    assert read_fragment(fragment) == key


GOOD = "https://posts.example/download/" + "t" * 43


@pytest.mark.parametrize(
    "link",
    [
        GOOD,
        f"{GOOD}#",
        f"{GOOD}#{'A' * 106}",
        f"{GOOD}#{'A' * 108}",
        f"{GOOD}#{'A' * 106}B",
        f"{GOOD}#{'A' * 107}=",
        f"{GOOD}#{'A' * 106}+",
        f"{GOOD}#{'A' * 106}é",
        f"{GOOD}?x=1#{'A' * 107}",
        f"https://posts.example/attachments/x#{'A' * 107}",
        f"https://posts.example/download/#{'A' * 107}",
        f"https://posts.example/download/../me#{'A' * 107}",
        f"https://u:p@posts.example/download/t#{'A' * 107}",
        f"ftp://posts.example/download/t#{'A' * 107}",
        f"https:///download/t#{'A' * 107}",
        f"https://[x/download/t#{'A' * 107}",
        "",
    ],
)
def test_what_is_no_link_is_refused_without_telling_it(link: str) -> None:
    with pytest.raises(BadFileLink) as caught:
        read_link(link)
    assert "AAAA" not in str(caught.value)


def test_link_is_taken_apart() -> None:
    link = read_link(f"  https://posts.example/under/a/path/download/t_-1#{'A' * 107}\n")
    assert link == ("https://posts.example/under/a/path", "/download/t_-1", FileKey(UUID(int=0), bytes(32), bytes(32)))
    assert "AAAA" not in repr(link)
    assert "t_-1" not in repr(link)


def test_address_that_is_none_is_not_made_a_link() -> None:
    for url in ("", "javascript:alert(1)", f"{GOOD}#x", "https://posts.example/elsewhere"):
        with pytest.raises(BadAnswer):
            write_link(url, key_of(TRUE_FILE))


async def make_link(someone: Device, file: Attachment, address: str, downloads: int | None = None) -> str:
    """A link that leads to another address: of the server that runs, or before it."""
    made = await someone.client.create_download_link(file.id, LIVES, downloads)
    assert "download" not in repr(made)
    return write_link(made.url, key_of(file)).replace("https://posts.example", address)


async def open_link(text: str, folder: Path) -> Path:
    link = read_link(text)
    async with linked_stream(link, QUICK) as stream:
        return await downloads.save(stream, link.key, folder, "linked", resume=False)


async def test_stranger_opens_a_link_and_its_end_is_sent_to_nobody(
    anna: Device, liar: Liar, file: Attachment, content: bytes, tmp_path: Path
) -> None:
    text = await make_link(anna, file, liar.address)
    assert (await open_link(text, tmp_path)).read_bytes() == content
    [call] = liar.calls
    sent = f"{call.method} {call.target} {call.headers} {call.body!r}"
    assert "authorization" not in call.headers
    assert "#" not in sent
    assert text.partition("#")[2][:20] not in sent


async def test_download_by_a_link_goes_on_where_it_broke(
    anna: Device, cutter: Cutter, file: Attachment, content: bytes, tmp_path: Path
) -> None:
    text = await make_link(anna, file, cutter.address)
    cutter.next_connections = [Limits(down=1_500_000)]
    assert (await open_link(text, tmp_path)).read_bytes() == content
    assert len(cutter.ranges()) == 1
    assert cutter.down < 1.2 * SIZE


async def test_download_that_is_counted_is_taken_once(
    anna: Device, cutter: Cutter, file: Attachment, content: bytes, tmp_path: Path
) -> None:
    text = await make_link(anna, file, cutter.address, downloads=2)
    cutter.next_connections = [Limits(down=1_500_000)]
    with pytest.raises(NetworkError):
        await open_link(text, tmp_path)
    assert left(tmp_path) == ["anna"]
    assert cutter.connections == 1
    assert (await open_link(text, tmp_path)).read_bytes() == content
    (tmp_path / "linked").unlink()
    with pytest.raises(Refused) as caught:
        await open_link(text, tmp_path)
    assert caught.value.code == "link_gone"
    [link] = [one async for one in anna.client.download_links(file.id)]
    assert link.downloads_left == 0


async def test_link_with_the_end_of_another_opens_nothing(
    anna: Device, server: str, file: Attachment, tmp_path: Path
) -> None:
    other = await upload(anna.client, source_of_bytes(b"text", "other"))
    text = await make_link(anna, file, server)
    for wrong in (
        key_of(other),
        FileKey(file.id, file.key, bytes(32)),
        FileKey(file.id, bytes(32), file.hash),
        FileKey(other.id, file.key, file.hash),
    ):
        with pytest.raises(CannotOpen):
            await open_link(f"{text.partition('#')[0]}#{write_fragment(wrong)}", tmp_path)
    assert left(tmp_path) == ["anna"]


async def test_ended_link_is_listed_as_such(anna: Device, server: str, file: Attachment, tmp_path: Path) -> None:
    text = await make_link(anna, file, server)
    [link] = [one async for one in anna.client.download_links(file.id)]
    await anna.client.revoke_download_link(link.id)
    [link] = [one async for one in anna.client.download_links(file.id)]
    assert link.revoked_at is not None
    with pytest.raises(Refused) as caught:
        await open_link(text, tmp_path)
    assert caught.value.status == 410


async def test_file_belongs_to_one_post(anna: Device) -> None:
    file = await upload(anna.client, source_of_bytes(b"text", "plan"))
    new = NewPost(await anna.found_group(), anna.user.id, "Files", "", attachments=(file,))
    await publish(anna.client, anna.identity, anna.people(), new)
    with pytest.raises(Conflict) as caught:
        await publish(anna.client, anna.identity, anna.people(), msgspec.structs.replace(new, id=uuid7()))
    assert caught.value.code == "attachment_in_use"
