"""A caller that is quick itself: one connection, one request at a time, and a WebSocket."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect

# The server closes what is idle for five seconds.
KEPT_S = 2.0


class Caller:
    """One kept connection to a server. httpx would take longer than some of the answers."""

    def __init__(self, url: str, authorization: str) -> None:
        self.url = url
        self.authorization = authorization
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._used = 0.0

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """What was answered, as JSON. Raises RuntimeError for anything but success."""
        address = urlsplit(self.url)
        if self._reader is None or self._writer is None or time.monotonic() - self._used > KEPT_S:
            self.close()
            self._reader, self._writer = await asyncio.open_connection(address.hostname, address.port)
        content = json.dumps(body).encode() if body is not None else b""
        head = [f"{method} {path} HTTP/1.1", f"Host: {address.netloc}", f"Authorization: {self.authorization}"]
        if body is not None:
            head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        self._writer.write("\r\n".join([*head, "", ""]).encode() + content)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        text = await self._reader.readexactly(length)
        self._used = time.monotonic()
        if not answer.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"{method} {path}: {text.decode()}")
        return json.loads(text)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


@asynccontextmanager
async def listening(url: str, authorization: str) -> AsyncIterator[ClientConnection]:
    """An open WebSocket that is caught up."""
    address = url.replace("http", "ws", 1) + "/ws/post_request"
    async with connect(
        address, additional_headers={"Authorization": authorization}, compression=None, proxy=None, ping_interval=None
    ) as socket:
        while json.loads(await socket.recv())["type"] != "caught_up":
            pass
        yield socket


async def hear(socket: ClientConnection, kind: str, **fields: Any) -> dict[str, Any]:
    """The next frame of this type with these fields."""
    while True:
        frame: dict[str, Any] = json.loads(await socket.recv())
        if frame["type"] == kind and frame.items() >= fields.items():
            return frame
