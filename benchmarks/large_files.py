"""B10: a file of 1 GiB up and down, sealed by the server and by its author, with the project's own client.

From a file on the disk to the server's disk, and from there to a file that is opened, found to be the whole, and on the
disk as well. The limit of each way has as many passes over the bytes: it seals, or opens, and copies the file.
BENCH_FILE_MEBIBYTES, where it is set, is the size; the store is what OBJECT_STORE_URL names, else a folder.
"""

import asyncio
import filecmp
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar
from uuid import UUID

from benchmarks import files
from benchmarks.measuring import Cores, Peak, Result, parts_of, result
from benchmarks.running import Running, running_server
from client import Client, downloads, uploads
from client.downloads import key_of
from client.enrolling import new_key
from client.identity import Identity
from client.people import People
from client.pins import Pins
from client.reading import read_post
from server.sealing.texts import Attachment

MEBIBYTES = int(os.environ.get("BENCH_FILE_MEBIBYTES", "1024"))
ROUNDS = 3
SEALED_WITHIN_S = 30.0

T = TypeVar("T")


class Timed:
    """How long each way took, and who was busy meanwhile."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.cores: dict[str, dict[str, float]] = {}

    async def time(self, way: str, done: Awaitable[T]) -> T:
        busy, own, began = Cores(self._running), time.process_time(), time.perf_counter()
        found = await done
        seconds = time.perf_counter() - began
        self.seconds[way].append(seconds)
        self.cores[way] = busy.used() | {"client": round((time.process_time() - own) / seconds, 2)}
        return found

    def result(self, way: str, limit: str) -> Result:
        rates, limits = ([MEBIBYTES / seconds for seconds in self.seconds[name]] for name in (way, limit))
        return result("B10", f"1 GiB {way}", "MiB/s", rates, limits, ">= 0.6", self.cores[way])


async def main() -> list[Result]:
    # On asyncio's own loop, as whoever uses the client is.
    return await asyncio.to_thread(asyncio.run, measure())


async def measure() -> list[Result]:
    async with running_server() as running, Client(running.url) as client:
        user = await arrive(client)
        [api] = [process for kind, process in parts_of(running) if kind == "API"]
        idle = api.memory_info().rss / 2**20
        folder, timed = running.data_dir.parent, Timed(running)
        plain = write_plain(folder / "plain")
        with Peak(api) as peak:
            for _ in range(ROUNDS):
                time_limits(timed, plain, folder)
                source = uploads.source_of_path(plain)
                by_author = await timed.time("up, sealed by the author", uploads.upload(client, source))
                await time_download(timed, "author", client, by_author, plain)
                stored = await timed.time("up, sealed by the server", uploads.upload_in_clear(client, source))
                await time_download(timed, "server", client, await user.attach(stored.id), plain)
    return [
        *(
            timed.result(f"{way}, sealed by the {who}", limit)
            for who in ("server", "author")
            for way, limit in (("up", "seal"), ("down", "open"))
        ),
        result("B10", "memory over idle", "MiB", [peak.mebibytes - idle], target="<= 64"),
    ]


class User(NamedTuple):
    """One with a key, alone in a group."""

    client: Client
    identity: Identity
    people: People

    async def attach(self, file_id: UUID) -> Attachment:
        """Have the server seal a post with a file that it has sealed, and read from it what opens the file."""
        group = await self.client.create_group("Files")
        post = await self.client.create_post(group.id, "A file", "", attachment_ids=[file_id])
        await self.client.wait_until_sealed(post.id, SEALED_WITHIN_S)
        opened = await read_post(self.client, self.identity, self.people, post.id)
        if opened.document is None:
            raise RuntimeError("the post has no content")
        return opened.document.attachments[0]


async def arrive(client: Client) -> User:
    signed_up = await client.sign_up("Bench", f"{secrets.token_hex(8)}@example.org", secrets.token_urlsafe())
    enrolled = await new_key(client, signed_up.id, "benchmark", Identity(), save=lambda _: None, now=datetime.now(UTC))
    return User(client, enrolled.identity, People(client, enrolled.identity, Pins(), lambda _changed: None))


def write_plain(path: Path) -> Path:
    block = secrets.token_bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(MEBIBYTES):
            file.write(block)
        os.fsync(file.fileno())
    return path


async def time_download(timed: Timed, who: str, client: Client, file: Attachment, plain: Path) -> None:
    saved = downloads.save(client.file_stream(file.id), key_of(file), plain.parent, "opened")
    there = await timed.time(f"down, sealed by the {who}", saved)
    check_same(plain, there)


def time_limits(timed: Timed, plain: Path, folder: Path) -> None:
    for limit, copy, source, target in (
        ("seal", files.seal_bare, plain, folder / "bare-sealed"),
        ("open", files.open_bare, folder / "bare-sealed", folder / "bare-opened"),
    ):
        began = time.perf_counter()
        copy(source, target)
        timed.seconds[limit].append(time.perf_counter() - began)
    (folder / "bare-sealed").unlink()
    check_same(plain, folder / "bare-opened")


def check_same(plain: Path, other: Path) -> None:
    if not filecmp.cmp(plain, other, shallow=False):
        raise RuntimeError("the file that came back is another")
    other.unlink()
