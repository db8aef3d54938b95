"""A large file, up and down again, sealed by the server and by its author: how fast, and in how much memory.

Against a store of S3's kind where OBJECT_STORE_URL and its credentials are set, else in a folder.
"""

import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import uuid_utils.compat

from server.sealing import files


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
