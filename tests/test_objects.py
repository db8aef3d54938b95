"""The object store: a local folder, and a real S3 server over its own protocol, with their failures."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from obstore.store import ObjectStore

from server import objects
from server.errors import StoreAway
from server.settings import Settings, SettingsError
from tests.people import Person, code, good, person, until
from tests.processes import environ_of, free_port, running_api_process

MIB = 1 << 20


async def blocks(size: int) -> AsyncIterator[bytes]:
    """Bytes that tell of their place."""
    for start in range(0, size, MIB):
        yield part(start, min(start + MIB, size))


def part(start: int, end: int) -> bytes:
    first, last = start // 8, -(-end // 8)
    counted = b"".join(number.to_bytes(8, "big") for number in range(first, last))
    return counted[start - first * 8 : end - first * 8]


async def read(store: ObjectStore, name: str, start: int, end: int) -> bytes:
    return b"".join([block async for block in objects.read(store, name, start, end)])


class S3:
    """moto's server: S3 in a process of its own."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)], stdout=file, stderr=file
            )

    async def ready(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:

            async def answers() -> bool:
                try:
                    return (await client.get("/moto-api/")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(answers)
            (await client.put("/bucket")).raise_for_status()

    async def unfinished(self) -> bool:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            return "<UploadId>" in (await client.get("/bucket?uploads")).text


@contextmanager
def s3_environment(url: str) -> Iterator[None]:
    ours = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-central-1",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture(scope="module")
async def s3(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[S3]:
    server = S3(tmp_path_factory.mktemp("s3") / "log")
    try:
        await server.ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.thorough)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "folder":
        yield objects.open_store(Settings(data_dir=tmp_path))
        return
    with s3_environment(request.getfixturevalue("s3").url):
        yield objects.open_store(Settings(object_store_url="s3://bucket/files"))


@pytest.mark.parametrize("size", [1, 41, MIB, 3 * MIB + 5, 20 * MIB + 1])
async def test_what_was_written_is_read(store: ObjectStore, size: int) -> None:
    name = f"ab/object-{size}"
    await objects.write(store, name, blocks(size))
    assert await read(store, name, 0, size) == part(0, size)
    for start, end in ((0, 1), (size - 1, size), (size // 3, size // 2 + 1), (0, 0)):
        assert await read(store, name, start, end) == part(start, end)
    await objects.delete(store, name)
    with pytest.raises(StoreAway):
        await read(store, name, 0, size)


async def test_what_is_not_there_is_deleted_without_an_error(store: ObjectStore) -> None:
    await objects.delete(store, "ab/nothing")
    await objects.delete(store, "ab/nothing")


async def test_what_breaks_off_is_not_there(store: ObjectStore) -> None:
    class Broken(Exception):
        pass

    async def breaking() -> AsyncIterator[bytes]:
        async for block in blocks(20 * MIB):
            yield block
        raise Broken

    with pytest.raises(Broken):
        await objects.write(store, "ab/broken", breaking())
    with pytest.raises(StoreAway):
        await read(store, "ab/broken", 0, 1)


async def test_what_breaks_off_leaves_nothing_in_a_folder(tmp_path: Path) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        raise EOFError

    with pytest.raises(EOFError):
        await objects.write(objects.open_store(Settings(data_dir=tmp_path)), "ab/broken", breaking())
    assert list((tmp_path / "objects" / "ab").iterdir()) == []


async def test_memory_of_a_block_may_be_used_again(store: ObjectStore) -> None:
    async def reused() -> AsyncIterator[memoryview]:
        memories = [bytearray(MIB), bytearray(MIB)]
        for number in range(20):
            memory = memories[number % 2]
            memory[:] = part(number * MIB, (number + 1) * MIB)
            yield memoryview(memory)

    await objects.write(store, "ab/reused", reused())
    assert await read(store, "ab/reused", 0, 20 * MIB) == part(0, 20 * MIB)


async def test_object_that_is_shorter_than_it_should_be_is_noticed(store: ObjectStore) -> None:
    await objects.write(store, "ab/short", blocks(100))
    with pytest.raises(StoreAway):
        await read(store, "ab/short", 0, 101)


async def test_reader_that_stops_in_the_middle_leaves_nothing_behind(store: ObjectStore) -> None:
    await objects.write(store, "ab/long", blocks(5 * MIB))
    reading = objects.read(store, "ab/long", 0, 5 * MIB)
    assert len(await anext(reading)) == objects.READ_BYTES
    await reading.aclose()
    assert not [task for task in asyncio.all_tasks() if "fetch" in str(task)]


async def test_memory_is_bounded(tmp_path: Path) -> None:
    """Four times the size, hardly any more memory; the first one warms up what stays."""
    store = objects.open_store(Settings(data_dir=tmp_path))
    block = bytes(MIB)

    async def many(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield block

    taken = []
    for count in (50, 50, 200):
        await objects.write(store, "ab/big", many(count))
        read_bytes = 0
        async for piece in objects.read(store, "ab/big", 0, count * MIB):
            read_bytes += len(piece)
        assert read_bytes == count * MIB
        taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    assert taken[2] - taken[1] < 60


@pytest.mark.thorough
async def test_s3_that_stands_still_or_is_gone_is_told(s3: S3, tmp_path: Path) -> None:
    own = S3(tmp_path / "log")
    try:
        await own.ready()
        with s3_environment(own.url):
            store = objects.open_store(Settings(object_store_url="s3://bucket/files"))
        await objects.write(store, "ab/there", blocks(100))
        own.process.kill()
        own.process.wait()
        with pytest.raises(StoreAway):
            await asyncio.wait_for(objects.delete(store, "ab/there"), 30)
        with pytest.raises(StoreAway):
            await asyncio.wait_for(read(store, "ab/there", 0, 10), 30)
        with pytest.raises(StoreAway):
            await asyncio.wait_for(objects.write(store, "ab/new", blocks(100)), 30)
    finally:
        own.process.kill()
        own.process.wait()


HALF_WRITTEN = """
import asyncio, sys
from pathlib import Path
from server import objects
from server.settings import Settings

async def blocks():
    for _ in range(100):
        yield bytes(1 << 20)
    print("reached", flush=True)
    await asyncio.Event().wait()

store = objects.open_store(Settings(data_dir=Path(sys.argv[1])))
asyncio.run(objects.write(store, "ab/crashed", blocks()))
"""


async def test_crash_in_the_middle_of_writing_is_cleaned_up(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HALF_WRITTEN, str(tmp_path)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"reached\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()
    folder = tmp_path / "objects" / "ab"
    assert [file.name for file in folder.iterdir()] == ["crashed#1"]
    await objects.delete(objects.open_store(Settings(data_dir=tmp_path)), "ab/crashed")
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
async def test_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path)], check=True)  # noqa: ASYNC221 - quick
    try:
        store = objects.open_store(Settings(data_dir=tmp_path))
        with pytest.raises(StoreAway):
            await objects.write(store, "ab/large", blocks(40 * MIB))
        await objects.delete(store, "ab/large")
        await objects.write(store, "ab/small", blocks(8 * MIB))
        assert await read(store, "ab/small", 0, 10) == part(0, 10)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)  # noqa: ASYNC221 - quick


@pytest.mark.parametrize("url", ["s3:///nothing", "gs://"])
def test_store_that_can_not_be_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match="OBJECT_STORE_URL"):
        objects.open_store(msgspec.structs.replace(Settings(), object_store_url=url))


def test_folder_that_can_not_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="OBJECT_STORE_URL"):
        objects.open_store(Settings(data_dir=tmp_path / "file"))


@pytest.mark.thorough
async def test_files_of_posts_lie_in_s3(s3: S3, settings: Settings, server: str, tmp_path: Path) -> None:
    own = S3(tmp_path / "s3-log")
    try:
        await own.ready()
        with s3_environment(own.url):
            environ = environ_of(settings, OBJECT_STORE_URL="s3://bucket/files")
            async with running_api_process(environ, tmp_path / "log") as api, person(api.url) as alice:
                await check_s3(alice, own)
    finally:
        own.process.kill()
        own.process.wait()


async def check_s3(alice: Person, own: S3) -> None:
    content = part(0, 20 * MIB + 5)
    headers = {"X-Filename": "UTF-8''plan"}
    uploaded = good(await alice.client.post("/attachments", content=content, headers=headers), 201)
    path = f"/attachments/{uploaded['id']}"
    stream = (await alice.get(path)).content
    assert len(stream) == uploaded["sealed_size"]
    assert (await alice.get(path, headers={"Range": "bytes=9000000-9000099"})).content == stream[9_000_000:9_000_100]
    own.process.kill()
    own.process.wait()
    for answer in (await alice.get(path), await alice.client.post("/attachments", content=content, headers=headers)):
        assert code(answer) == (503, "unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    # Others are not concerned.
    good(await alice.get("/me"))
