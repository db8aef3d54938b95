"""A TCP balancer on the loopback: each connection goes to the next server in turn that takes it."""

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.processes import free_port

BLOCK_BYTES = 1 << 16


class Balancer:
    """Over ports of this machine. `cut` ends all connections and lets none through until `mend`."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._ports = list(ports)
        self._is_cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None] | None] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=2048)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            self._server.close()
        self.cut()
        # They end by themselves once their connections have.
        await asyncio.gather(*(task for task in self._serving if task), return_exceptions=True)

    def cut(self) -> None:
        self._is_cut = True
        for writer in self._open:
            writer.transport.abort()

    def mend(self) -> None:
        self._is_cut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self._serving.add(asyncio.current_task())
        try:
            if not self._is_cut and (there := await self._connect()):
                await self._carry(reader, writer, *there)
        finally:
            self._open.discard(writer)
            self._serving.discard(asyncio.current_task())
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        self._ports.append(self._ports.pop(0))
        for port in list(self._ports):
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        back: asyncio.StreamWriter,
    ) -> None:
        self._open.add(back)
        try:
            ways = [asyncio.create_task(pump(reader, back)), asyncio.create_task(pump(there, writer))]
            # What the server closes is over; what the client closes, the server may still answer.
            await asyncio.wait([ways[1]])
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._open.discard(back)
            back.transport.abort()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one of both ends."""
    with contextlib.suppress(OSError):
        while block := await reader.read(BLOCK_BYTES):
            writer.write(block)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()
        await writer.drain()
