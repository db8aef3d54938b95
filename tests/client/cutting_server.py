"""A connection that breaks: it stands before the real server, and cuts or stalls after so many bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple
from urllib.parse import urlsplit


class Limits(NamedTuple):
    """How many bytes a connection carries towards the server and back."""

    up: float = float("inf")
    down: float = float("inf")
    stall: bool = False
    """Whether it then keeps silent instead of ending."""


class Cutter:
    """`next_connections` has the limits of those to come; later ones are as `otherwise`. `heads` are of requests."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.next_connections: list[Limits] = []
        self.otherwise = Limits()
        self.connections = 0
        self.up = self.down = 0
        self.heads: list[str] = []

    def limits(self) -> Limits:
        self.connections += 1
        return self.next_connections.pop(0) if self.next_connections else self.otherwise

    def heard(self, piece: bytes) -> None:
        self.up += len(piece)
        if piece.startswith((b"GET ", b"POST ")):
            self.heads.append(piece.split(b"\r\n\r\n")[0].decode("latin-1"))

    def ranges(self) -> list[str]:
        """What parts were asked for."""
        lines = [line for head in self.heads for line in head.split("\r\n")]
        return [line.partition(": ")[2] for line in lines if line.lower().startswith("range: ")]


@asynccontextmanager
async def cutting(server: str) -> AsyncIterator[Cutter]:
    to = urlsplit(server)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        limits = cutter.limits()
        server_reader, server_writer = await asyncio.open_connection(to.hostname, to.port)

        async def up() -> None:
            left = limits.up
            while left > 0 and (piece := await reader.read(int(min(left, 65_536)))):
                cutter.heard(piece)
                left -= len(piece)
                server_writer.write(piece)
                await server_writer.drain()
            if left <= 0 and limits.stall:
                await asyncio.Event().wait()

        async def down() -> None:
            left = limits.down
            # Not before there is more: an answer of which nothing comes is lost, and was given.
            while left >= 0 and (piece := await server_reader.read(65_536)):
                told = piece[: int(min(left, 65_536))]
                left -= len(piece)
                cutter.down += len(told)
                writer.write(told)
                await writer.drain()
            if left < 0 and limits.stall:
                await asyncio.Event().wait()

        directions = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            # Whichever ends first ends both.
            with suppress(asyncio.CancelledError):
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in directions:
                one.cancel()
            with suppress(ConnectionError):
                await asyncio.gather(*directions, return_exceptions=True)
            writer.close()
            server_writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    cutter = Cutter(f"http://{host}:{port}")
    try:
        yield cutter
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
