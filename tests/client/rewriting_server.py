"""A server that lies: it stands before the real one, passes everything on, and rewrites what it is told to."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import msgspec

from tests.client.scripted_server import HANG_UP, Call, Hang, Reply, read_call, write_reply

Change = Callable[[Any], Any]
"""Of a decoded answer: changed in its place, or what stands in its place (unless None)."""
Answer = Callable[[Call], Reply]


class Lie(NamedTuple):
    method: str
    path: re.Pattern[str]
    change: Change | None
    """What is done to the real answer, or:"""
    answer: Answer | Hang | None
    """what is told in its place."""
    times: list[int]
    """How often it is told still."""


class Liar:
    """`calls` are those that came, in order; `address` is where they come to."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.calls: list[Call] = []
        self._lies: list[Lie] = []

    def rewrite(self, method: str, path: str, change: Change, times: int = 1_000_000) -> None:
        """Change the good answers of calls whose whole path matches."""
        self._lies.append(Lie(method, re.compile(path), change, None, [times]))

    def answer(self, method: str, path: str, answer: Answer | Hang, times: int = 1_000_000) -> None:
        """Answer in the server's place; for Hang the call reaches the server, and its answer is lost."""
        self._lies.append(Lie(method, re.compile(path), None, answer, [times]))

    def tell_the_truth(self) -> None:
        self._lies.clear()

    def seen(self, method: str, path: str) -> list[Call]:
        return [call for call in self.calls if call.method == method and re.fullmatch(path, path_of(call))]

    def lies_about(self, call: Call) -> list[Lie]:
        found = [
            lie
            for lie in self._lies
            if lie.method == call.method and lie.path.fullmatch(path_of(call)) and lie.times[0] > 0
        ]
        for lie in found:
            lie.times[0] -= 1
        return found


def path_of(call: Call) -> str:
    return call.target.split("?")[0]


@asynccontextmanager
async def lying(server: str) -> AsyncIterator[Liar]:
    tasks: set[asyncio.Task[None]] = set()
    async with httpx.AsyncClient(base_url=server, timeout=30, verify=False) as http:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            try:
                while True:
                    call = await read_call(reader)
                    liar.calls.append(call)
                    if "upgrade" in call.headers:
                        await tunnel(server, call, reader, writer)
                        return
                    reply = await answer(http, liar, call)
                    if isinstance(reply, Hang):
                        return
                    writer.write(write_reply(reply))
                    await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = listening.sockets[0].getsockname()
        liar = Liar(f"http://{host}:{port}")
        try:
            yield liar
        finally:
            listening.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def answer(http: httpx.AsyncClient, liar: Liar, call: Call) -> Reply | Hang:
    lies = liar.lies_about(call)
    for lie in lies:
        if callable(lie.answer):
            return lie.answer(call)
    passed = {name: text for name, text in call.headers.items() if name in ("authorization", "content-type")}
    said = await http.request(call.method, call.target, content=call.body, headers=passed)
    if any(isinstance(lie.answer, Hang) for lie in lies):
        return HANG_UP
    if not said.is_success or not said.content or not lies:
        return Reply(said.status_code, said.content, {"Content-Type": said.headers.get("content-type", "")})
    body = said.json()
    for lie in lies:
        told = lie.change(body) if lie.change else None
        body = body if told is None else told
    return Reply(said.status_code, msgspec.json.encode(body), {"Content-Type": "application/json"})


async def tunnel(server: str, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A WebSocket goes through untouched."""
    to = urlsplit(server)
    server_reader, server_writer = await asyncio.open_connection(to.hostname, to.port)
    head = [f"{call.method} {call.target} HTTP/1.1", *(f"{name}: {text}" for name, text in call.headers.items())]
    server_writer.write(("\r\n".join(head) + "\r\n\r\n").encode())
    try:
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))
    finally:
        server_writer.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while some := await reader.read(65_536):
            writer.write(some)
            await writer.drain()
        writer.write_eof()
