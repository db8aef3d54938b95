"""A real HTTP server on a real socket that says what a test wants it to say, however wrong."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec


class Call(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Reply(NamedTuple):
    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = MappingProxyType({})


class Hang:
    """The connection is closed after the request was read and before anything is answered."""


HANG_UP = Hang()
Script = Callable[[Call], Reply | Hang]


class Server(NamedTuple):
    address: str
    calls: list[Call]


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    calls: list[Call] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                call = await read_call(reader)
                calls.append(call)
                reply = script(call)
                if isinstance(reply, Hang):
                    break
                writer.write(write_reply(reply))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield Server(f"http://{host}:{port}", calls)
    finally:
        server.close()


async def read_call(reader: asyncio.StreamReader) -> Call:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Call(method, target, headers, body)


def write_reply(reply: Reply) -> bytes:
    body = (
        reply.body if isinstance(reply.body, bytes) else b"" if reply.body is None else msgspec.json.encode(reply.body)
    )
    lines = [f"HTTP/1.1 {reply.status} Said", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def problem(status: int, code: str, headers: dict[str, str] | None = None, **members: Any) -> Reply:
    body = {"type": "about:blank", "status": status, "code": code, "title": code, "detail": f"It is {code}.", **members}
    return Reply(status, body, {"Content-Type": "application/problem+json", **(headers or {})})


def one_after_the_other(*replies: Reply | Hang) -> Script:
    left = list(replies)
    return lambda _call: left.pop(0)
