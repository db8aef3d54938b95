"""Many open WebSockets in a process of their own, which only count what comes.

`python -m benchmarks.listeners URL COUNT` reads a JSON list of the `Authorization` headers that take turns in opening
them, and prints `open` once all have heard `caught_up`, or are just open where there is no header. For each further
line of its standard input, a number, it waits until all sockets together have had so many frames more, and prints how
many seconds that took from the first of them.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.running import PROJECT

OPENED_AT_ONCE = 25
TEXT, PING = 0x81, 0x89


class Tally:
    """Of all sockets of the process."""

    def __init__(self) -> None:
        self.frames = 0
        self.first_at = self.last_at = 0.0
        self.changed = asyncio.Event()

    def add(self, frames: int) -> None:
        self.last_at = time.perf_counter()
        self.first_at = self.first_at or self.last_at
        self.frames += frames
        self.changed.set()

    def begin(self) -> None:
        self.frames, self.first_at = 0, 0.0


class Listener(asyncio.Protocol):
    """The client's side of a WebSocket, as far as counting and staying connected need it."""

    transport: asyncio.Transport

    def __init__(self, tally: Tally, is_caught_up: bool) -> None:
        self.tally = tally
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_caught_up = is_caught_up
        self._buffer = b""
        self._has_begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._has_begun:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 101 " not in head:
                raise RuntimeError(head.decode())
            self._has_begun, self._buffer = True, rest
            if self._is_caught_up:
                self.ready.set_result(None)
        frames = 0
        while (end := self._end_of_frame()) is not None:
            frame, self._buffer = self._buffer[:end], self._buffer[end:]
            if frame[0] == PING:
                # Masked, as all that clients send, with nothing.
                self.transport.write(bytes([0x8A, 0x80 | frame[1], 0, 0, 0, 0]) + frame[2:])
            elif self.ready.done():
                # Pings are part of being connected.
                frames += frame[0] == TEXT and b'"type":"ping"' not in frame
            elif b"caught_up" in frame:
                self.ready.set_result(None)
        if frames:
            self.tally.add(frames)

    def _end_of_frame(self) -> int | None:
        if len(self._buffer) < 2:
            return None
        length, start = self._buffer[1] & 0x7F, 2
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(self._buffer) < start:
                return None
            length = int.from_bytes(self._buffer[2:start])
        return start + length if len(self._buffer) >= start + length else None


def handshake(url: str, authorization: str | None) -> bytes:
    address = urlsplit(url)
    lines = [
        f"GET {address.path or '/'} HTTP/1.1",
        f"Host: {address.netloc}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *([f"Authorization: {authorization}"] if authorization else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def main(url: str, count: int, authorizations: Sequence[str]) -> None:
    address, tally = urlsplit(url), Tally()
    loop, room = asyncio.get_running_loop(), asyncio.Semaphore(OPENED_AT_ONCE)

    async def open_one(authorization: str | None) -> None:
        async with room:
            _, listener = await loop.create_connection(
                lambda: Listener(tally, authorization is None), address.hostname, address.port
            )
            listener.transport.write(handshake(url, authorization))
            await listener.ready

    by = itertools.cycle(authorizations or [None])
    await asyncio.gather(*(open_one(authorization) for authorization in itertools.islice(by, count)))
    print("open", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        wanted = int(line)
        while tally.frames < wanted:
            tally.changed.clear()
            await tally.changed.wait()
        print(tally.last_at - tally.first_at, flush=True)
        tally.begin()


class Listeners:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def seconds(self, frames: int) -> float:
        """From the first of so many frames to the last. To be called before they are sent; it waits for them."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("it was started without pipes")
        self._process.stdin.write(f"{frames}\n".encode())
        return float(await self._process.stdout.readline())


@asynccontextmanager
async def listeners(
    url: str, authorizations: Sequence[str], count: int, path: str = "/ws/post_request"
) -> AsyncIterator[Listeners]:
    """So many open sockets on a server, in another process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.listeners", url + path, str(count)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=PROJECT,
    )
    if process.stdin is not None:
        process.stdin.write(json.dumps(authorizations).encode() + b"\n")
    try:
        if process.stdout is None or await process.stdout.readline() != b"open\n":
            raise RuntimeError("the sockets could not be opened")
        yield Listeners(process)
    finally:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), json.loads(sys.stdin.readline())))
