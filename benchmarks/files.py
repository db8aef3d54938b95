"""A large file, up and down again, sealed by the server and by its author: how fast, and in how much memory.

The limit is bare secretstream on one core: what any sealing of the file costs. Against a store of S3's kind where
OBJECT_STORE_URL and its credentials are set, else in a folder.
"""

import hashlib
import secrets
import statistics
import threading
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import psutil
import uuid_utils.compat

from benchmarks.running import Running, running_server, sign_up
from server.sealing import files

ROUNDS = 3
BLOCK_BYTES = 1 << 20
SAMPLE_EVERY_S = 0.02


async def main(mebibytes: int) -> None:
    block = secrets.token_bytes(BLOCK_BYTES)
    async with (
        running_server(MAX_ATTACHMENT_BYTES=str(64 << 30)) as running,
        httpx.AsyncClient(base_url=running.url, timeout=600) as client,
    ):
        await sign_up(client)
        (await client.get("/me")).raise_for_status()
        api = api_process(running)
        idle = mebibytes_of(api)
        rates: dict[str, list[float]] = {}
        with Peak(api) as peak:
            for _ in range(ROUNDS):
                note(rates, "bare secretstream", mebibytes, seal_bare(block, mebibytes))
                for name, up, down in (
                    await by_server(client, block, mebibytes),
                    await by_author(client, block, mebibytes),
                ):
                    note(rates, f"up, sealed by the {name}", mebibytes, up)
                    note(rates, f"down, sealed by the {name}", mebibytes, down)
    report(mebibytes, rates, idle, peak.mebibytes)


def note(rates: dict[str, list[float]], name: str, mebibytes: int, seconds: float) -> None:
    rates.setdefault(name, []).append(mebibytes / seconds)


def seal_bare(block: bytes, count: int) -> float:
    sealer = files.FileSealer(files.new_file_key(), uuid_utils.compat.uuid7())
    start = time.perf_counter()
    for _ in range(count):
        sealer.update(block)
    sealer.finish()
    return time.perf_counter() - start


async def by_server(client: httpx.AsyncClient, block: bytes, count: int) -> tuple[str, float, float]:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield block

    start = time.perf_counter()
    headers = {"X-Filename": "UTF-8''large"}
    uploaded = (await client.post("/attachments", content=body(), headers=headers)).raise_for_status().json()
    up = time.perf_counter() - start
    down, _ = await fetch(client, uploaded, None)
    return "server", up, down


async def by_author(client: httpx.AsyncClient, block: bytes, count: int) -> tuple[str, float, float]:
    """Sealed before, so that the rate is the server's; opened while it comes, and compared bit for bit."""
    attachment_id, key = uuid_utils.compat.uuid7(), files.new_file_key()
    sealer = files.FileSealer(key, attachment_id)
    pieces = [sealer.update(block) for _ in range(count)] + [sealer.finish()]

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    start = time.perf_counter()
    answer = await client.post(f"/attachments?sealed=true&id={attachment_id}", content=body())
    uploaded = answer.raise_for_status().json()
    up = time.perf_counter() - start
    opener = files.FileOpener(key, UUID(uploaded["id"]), sealer.hash, sealer.size)
    down, found = await fetch(client, uploaded, opener)
    expected = hashlib.blake2b()
    for _ in range(count):
        expected.update(block)
    if found != expected.digest():
        raise RuntimeError("the file that came back is another")
    return "author", up, down


async def fetch(
    client: httpx.AsyncClient, uploaded: dict[str, Any], opener: files.FileOpener | None
) -> tuple[float, bytes]:
    """Seconds for the download, and the hash of the file where it is opened."""
    plain_hash, count, start = hashlib.blake2b(), 0, time.perf_counter()
    async with client.stream("GET", f"/attachments/{uploaded['id']}") as answer:
        async for piece in answer.raise_for_status().aiter_raw():
            count += len(piece)
            if opener:
                plain_hash.update(opener.update(piece))
    seconds = time.perf_counter() - start
    if opener:
        plain_hash.update(opener.finish())
    if count != uploaded["sealed_size"]:
        raise RuntimeError("the stream was cut off")
    return seconds, plain_hash.digest()


def api_process(running: Running) -> psutil.Process:
    [api] = [one for one in psutil.Process(running.pid).children() if "api" in one.cmdline()]
    return api


def mebibytes_of(process: psutil.Process) -> int:
    return int(process.memory_info().rss) >> 20


class Peak:
    """The most resident memory of a process meanwhile."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.mebibytes = 0

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_EVERY_S):
            self.mebibytes = max(self.mebibytes, mebibytes_of(self._process))


def report(mebibytes: int, rates: dict[str, list[float]], idle: int, peak: int) -> None:
    print(f"a file of {mebibytes:,} MiB, medians of {ROUNDS}")
    bare = statistics.median(rates["bare secretstream"])
    for name, found in rates.items():
        rate = statistics.median(found)
        ratio = "" if rate == bare else f"   ratio {rate / bare:.2f}"
        print(f"  {name:30} {rate:8.0f} MiB/s{ratio}")
    print(f"  memory of the API process      {peak:8.0f} MiB at most, {idle} MiB idle")
