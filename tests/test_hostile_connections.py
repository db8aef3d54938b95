"""Clients that are slow, silent or take nothing: they lose their connection, and nobody else notices."""

import asyncio
import contextlib
import json
import re
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from arq.connections import ArqRedis
from websockets.exceptions import ConnectionClosed

from server import accounts, connections, jobs
from server import sockets as open_sockets
from server.controllers import sockets
from server.settings import Settings
from tests.conftest import lasting
from tests.people import PASSWORD, PATIENCE_S, Listener, Person, good, open_socket, person, until
from tests.processes import environ_of, running_api_process
from tests.test_sockets import flood

alice = lasting("Alice")

GIVEN_UP_WITHIN_S = 15


class Raw:
    """A connection on which bytes are sent as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes, every_s: float = 0.0) -> None:
        """Until all is sent, or the other side has closed."""
        with contextlib.suppress(OSError):
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()
                await asyncio.sleep(every_s)

    async def all(self, within_s: float = PATIENCE_S) -> bytes:
        """All that comes until the other side closes."""
        async with asyncio.timeout(within_s):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def answer(self) -> bytes:
        """One answer that tells its length."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            return head + await self.reader.readexactly(int(length[1]) if length else 0)


@asynccontextmanager
async def raw(server: str) -> AsyncIterator[Raw]:
    host, _, port = server.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


def status_and_code(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    problem = json.loads(body)
    assert int(head.split()[1]) == problem["status"]
    return problem["status"], problem["code"]


async def test_body_in_tiny_pieces_is_whole(server: str, alice: Person) -> None:
    body = json.dumps({"name": "x" * 100}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    head = f"POST /groups HTTP/1.1\r\nHost: x\r\nAuthorization: {alice.client.headers['Authorization']}\r\n"
    async with raw(server) as one:
        await one.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        answer = await one.answer()
    assert answer.startswith(b"HTTP/1.1 201")
    assert b"x" * 100 in answer


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that begin now are looked at five times a second."""
    monkeypatch.setattr(connections, "CHECK_EVERY_S", 0.2)


# ----------------------------------------------------------------------------------------------------- heads


HEAD = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("pieces", "every_s"),
    [
        ([], 0.0),
        ([b"GET"], 0.0),
        ([HEAD], 0.0),
        ([HEAD, *[b"X"] * 200], 0.05),
        ([b"\r\n"] * 200, 0.05),
    ],
    ids=["silence", "half a line", "half a head", "a letter at a time", "empty lines"],
)
async def test_head_that_is_not_whole_in_time_is_given_up(
    server: str, hasty: None, pieces: list[bytes], every_s: float
) -> None:
    async with raw(server) as connection:
        begun = time.monotonic()
        sending = asyncio.create_task(connection.send(*pieces, every_s=every_s))
        assert await connection.all() == b""
        assert time.monotonic() - begun < 5, "long before all the pieces were sent"
        sending.cancel()


async def test_empty_lines_after_an_answer_hold_no_connection(server: str, hasty: None) -> None:
    async with raw(server) as connection:
        await connection.send(HEAD + b"\r\n")
        assert (await connection.answer()).startswith(b"HTTP/1.1 200 ")
        sending = asyncio.create_task(connection.send(*[b"\r\n"] * 200, every_s=0.05))
        begun = time.monotonic()
        await connection.all()
        assert time.monotonic() - begun < 3, "sooner than the keep-alive would have ended"
        sending.cancel()


async def test_quiet_connection_is_kept_between_requests(server: str, hasty: None) -> None:
    async with raw(server) as connection:
        for _ in range(3):
            await connection.send(HEAD + b"\r\n")
            assert (await connection.answer()).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.7)


async def test_head_over_the_limit_is_431(server: str) -> None:
    for head in (
        HEAD + b"X-Long: " + b"x" * 1_000_000,
        HEAD + b"X: y\r\n" * 50_000,
        b"GET /" + b"x" * 1_000_000,
        HEAD + b"Authorization: Bearer " + b"x" * 1_000_000 + b"\r\n\r\n",
    ):
        async with raw(server) as connection:
            sending = asyncio.create_task(
                connection.send(*(head[at : at + 10_000] for at in range(0, len(head), 10_000)))
            )
            assert status_and_code(await connection.answer()) == (431, "head_too_large")
            await sending


async def test_large_head_within_the_limit_is_answered(server: str) -> None:
    async with raw(server) as connection:
        await connection.send(HEAD + b"X-Long: " + b"x" * 60_000 + b"\r\n\r\n")
        assert (await connection.answer()).startswith(b"HTTP/1.1 200 ")


# ---------------------------------------------------------------------------------------------------- bodies


def post(path: str, length: int, token: str | None = None, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *more]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize("every_s", [0.0, 0.05], ids=["stops", "a letter at a time"])
async def test_body_without_progress_is_408(server: str, alice: Person, hasty: None, every_s: float) -> None:
    for head in (
        post("/login", 100_000),
        post("/groups", 100_000, alice.token),
        post("/attachments", 100_000, alice.token, "X-Filename: UTF-8''x"),
        post("/attachments", 100_000, alice.token, "X-Filename: UTF-8''x", "Expect: 100-continue"),
    ):
        async with raw(server) as connection:
            begun = time.monotonic()
            sending = asyncio.create_task(connection.send(head, *[b" "] * (200 if every_s else 1), every_s=every_s))
            answer = (await connection.all()).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert status_and_code(answer) == (408, "request_timeout")
            assert time.monotonic() - begun < 5
            sending.cancel()


async def test_body_of_an_answered_request_holds_no_connection(server: str, hasty: None) -> None:
    async with raw(server) as connection:
        sending = asyncio.create_task(connection.send(post("/groups", 100_000), *[b" "] * 200, every_s=0.05))
        begun = time.monotonic()
        answer = await connection.all()
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert time.monotonic() - begun < 3
        sending.cancel()


async def test_upload_over_a_slow_line_arrives(server: str, alice: Person, hasty: None) -> None:
    """Through many of the intervals in each of which something has to come."""
    pieces = [b"x" * 600] * 15
    async with raw(server) as connection:
        head = post("/attachments", 600 * 15, alice.token, "X-Filename: UTF-8''slow")
        await connection.send(head, *pieces, every_s=0.15)
        assert (await connection.answer()).startswith(b"HTTP/1.1 201 ")


async def test_client_that_has_sent_all_is_not_given_up(
    server: str, alice: Person, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes its time then is ours."""
    log_in = accounts.log_in

    async def dawdle(*arguments: Any) -> Any:
        await asyncio.sleep(1)
        return await log_in(*arguments)

    monkeypatch.setattr(accounts, "log_in", dawdle)
    body = {"email": alice.user["email"], "password": PASSWORD}
    good(await alice.post("/login", body))


# --------------------------------------------------------------------------------------------------- answers


def has_connection(server: str, peer: tuple[str, int]) -> bool:
    """Whether this process, where the API runs, still holds its end of a connection."""
    port = int(server.rpartition(":")[2])
    return any(
        one.laddr[1] == port and one.raddr and one.raddr[1] == peer[1]
        for one in psutil.Process().net_connections("tcp")
    )


def connect_with_little_room(server: str) -> socket.socket:
    """A client that never reads: its side of the connection is soon full."""
    host, _, port = server.removeprefix("http://").partition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.setblocking(False)
    return client


async def test_answer_that_nobody_takes_is_given_up(
    server: str, alice: Person, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STALLED_ANSWER_S", 1.0)
    file = await alice.client.post(
        "/attachments", content=bytes(20_000_000), headers={"X-Filename": "UTF-8''x", "Content-Type": "a/b"}
    )
    path = f"/attachments/{good(file, 201)['id']}"
    with connect_with_little_room(server) as client:
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.token}\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(client, request.encode())
        peer = client.getsockname()
        await until(lambda: as_awaitable(has_connection(server, peer)))
        await until(lambda: as_awaitable(not has_connection(server, peer)))
    # Others get theirs, also those who take it slowly.
    async with raw(server) as connection:
        await connection.send(request.encode())
        got = 0
        while got < 3_000_000:
            got += len(await asyncio.wait_for(connection.reader.read(100_000), PATIENCE_S))
            await asyncio.sleep(0.05)


async def as_awaitable(value: bool) -> bool:
    await asyncio.sleep(0.05)
    return value


# ------------------------------------------------------------------------------------------------ WebSockets


HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/ws/post_request?ticket=" + "x" * 9000, ""),
        ("/ws/post_request", f"Authorization: Bearer {'x' * 9000}\r\n"),
        ("/ws/post_request", "".join(f"X-{number}: y\r\n" for number in range(200))),
    ],
    ids=["line", "header", "headers"],
)
async def test_handshake_that_is_too_long_is_answered(server: str, path: str, more: str) -> None:
    async with raw(server) as connection:
        await connection.send(HANDSHAKE.format(path=path, more=more).encode())
        assert status_and_code(await connection.all(within_s=5)) == (400, "bad_handshake")


@pytest.mark.parametrize(
    "head",
    [
        HANDSHAKE.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
        HANDSHAKE.replace("Version: 13", "Version: 99"),
        HANDSHAKE.replace("dGhlIHNhbXBsZSBub25jZQ==", "not base64"),
        HANDSHAKE.replace("GET", "POST"),
        HANDSHAKE.replace("Host: x", "Host: x\r\nContent-Length: 3"),
    ],
    ids=["no key", "version", "key", "method", "body"],
)
async def test_handshake_that_is_wrong_is_answered(server: str, head: str) -> None:
    async with raw(server) as connection:
        await connection.send(head.format(path="/ws/post_request", more="").encode() + b"abc")
        answer = await connection.all(within_s=15)
        assert 400 <= int(answer.split()[1]) < 500 or answer.startswith(b"HTTP/1.1 101 ")
        assert b"traceback" not in answer.lower()


@pytest.fixture
async def redis(settings: Settings, server: str) -> AsyncIterator[ArqRedis]:
    pool = await jobs.create_pool(str(settings.redis_url))
    yield pool
    await pool.aclose(close_connection_pool=True)


async def test_socket_that_reads_nothing_is_cut_off(
    server: str, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though what was written to it is never taken, and so its end is never."""
    monkeypatch.setattr(sockets, "SEND_TIMEOUT_S", 0.5)
    monkeypatch.setattr(connections, "LINGER_S", 0.5)
    async with person(server, keys=0) as lazy:
        with connect_with_little_room(server) as client:
            request = HANDSHAKE.format(path="/ws/post_request", more=f"Authorization: Bearer {lazy.token}\r\n")
            await asyncio.get_running_loop().sock_sendall(client, request.encode())
            peer = client.getsockname()
            async with lazy.listen():
                await flood(redis, lazy)
                await until(lambda: as_awaitable(not has_connection(server, peer)))


async def test_who_answers_no_ping_is_given_up_and_who_does_stays(
    server: str, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_sockets, "PING_EVERY_S", 0.1)
    monkeypatch.setattr(connections, "PONG_WITHIN_S", 0.5)
    async with alice.listen() as listener, raw(server) as silent:
        request = HANDSHAKE.format(path="/ws/post_request", more=f"Authorization: Bearer {alice.token}\r\n")
        await silent.send(request.encode())
        assert (await silent.all()).endswith(b"\x03\xf3keepalive ping timeout")
        # So long again, and more.
        now = asyncio.get_running_loop().time
        until_s = now() + 1
        while now() < until_s:
            assert await listener.next() == {"type": "ping"}


FRAMES = {
    "text": b"\x81\x81\0\0\0\0x",
    "empty text": b"\x81\x80\0\0\0\0",
    "pings": b"\x89\x80\0\0\0\0",
    "pongs": b"\x8a\x80\0\0\0\0",
    "fragments": b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 10,
}


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("is_known", [True, False], ids=["user", "nobody"])
async def test_flood_of_tiny_frames_ends_the_socket_and_disturbs_nobody(
    server: str, alice: Person, kind: str, is_known: bool
) -> None:
    frames = FRAMES[kind] * 20_000
    credential = f"Authorization: Bearer {alice.token}\r\n" if is_known else ""
    async with raw(server) as connection:
        await connection.send(HANDSHAKE.format(path="/ws/post_request", more=credential).encode())
        sending = asyncio.create_task(connection.send(*[frames] * 20))
        begun = time.thread_time()
        # Of this process' time, in which the API runs too, hardly any goes into that.
        await asyncio.wait_for(sending, PATIENCE_S)
        told = await connection.all()
        assert time.thread_time() - begun < 1
    if told and is_known and kind != "fragments":
        assert told.endswith(b"\x03\xf0too many frames")


async def test_few_frames_are_let_be(server: str, alice: Person) -> None:
    async with alice.listen() as listener:
        for _ in range(500):
            await listener.connection.send("x")
        await asyncio.wait_for(await listener.connection.ping(), PATIENCE_S)


# ------------------------------------------------------------------------------------------------- all at once


@contextlib.asynccontextmanager
async def opened(server: str, count: int, what: bytes) -> AsyncIterator[list[Raw]]:
    """So many connections that have sent this and send no more."""
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(raw(server)) for _ in range(count)]
        for connection in held:
            await connection.send(what)
        yield held


async def time_calls(http: httpx.AsyncClient, until_s: float) -> list[float]:
    """Seconds of each of some hundred calls a second, one after the other, until a time of the loop."""
    took = []
    while asyncio.get_running_loop().time() < until_s:
        begun = time.perf_counter()
        good(await http.get("/groups"))
        took.append(time.perf_counter() - begun)
        await asyncio.sleep(0.005)
    return took


def p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


@pytest.mark.thorough
async def test_a_thousand_slow_clients_are_gone_in_time_and_cost_others_nothing(
    settings: Settings, alice: Person, tmp_path: Path
) -> None:
    """500 half-sent heads and 500 half-sent bodies, at an API of its own without a proxy."""
    now = asyncio.get_running_loop().time
    async with (
        running_api_process(environ_of(settings), tmp_path / "log") as api,
        httpx.AsyncClient(base_url=api.url, headers=alice.client.headers, timeout=30, verify=False) as http,
    ):
        await time_calls(http, now() + 0.5)
        ratios: list[float] = []
        # The machine has other things to do, which may fall on either half of a round, but hardly on each round's.
        while not ratios or (min(ratios) >= 2 and len(ratios) < 3):
            quiet = await time_calls(http, now() + 3)
            async with opened(api.url, 500, HEAD) as heads, opened(api.url, 500, post("/login", 1000) + b"{") as bodies:
                begun = now()
                # That a thousand come at once is no matter of their being slow.
                await time_calls(http, now() + 0.5)
                loaded = await time_calls(http, now() + 3)
                answers = await asyncio.gather(*(one.all(GIVEN_UP_WITHIN_S + 10) for one in (*heads, *bodies)))
                took_s = now() - begun
            ratios.append(p99(loaded) / p99(quiet))
            assert took_s < GIVEN_UP_WITHIN_S
            assert answers[:500] == [b""] * 500
            assert {status_and_code(answer) for answer in answers[500:]} == {(408, "request_timeout")}
        assert min(ratios) < 2, ratios
        assert len([one for one in psutil.Process(api.process.pid).net_connections("tcp") if one.raddr]) < 20


@pytest.mark.thorough
async def test_a_thousand_sockets_of_one_user_leave_twenty(settings: Settings, alice: Person, tmp_path: Path) -> None:
    async with (
        running_api_process(environ_of(settings), tmp_path / "log") as api,
        person(api.url, keys=0) as greedy,
        contextlib.AsyncExitStack() as stack,
    ):
        before = psutil.Process(api.process.pid).num_fds()
        headers = {"Authorization": f"Bearer {greedy.token}"}

        async def open_one() -> Listener:
            return await stack.enter_async_context(open_socket(api.url, headers=headers))

        held = [one for _ in range(10) for one in await asyncio.gather(*(open_one() for _ in range(100)))]
        firsts = await asyncio.gather(*(first_of(one) for one in held))
        assert sorted(firsts) == ["4429"] * 980 + ["connection.accepted"] * 20
        good(await greedy.get("/me"))
        # Those that are refused are gone, and with the others' credential the rest.
        await until(lambda: as_awaitable(psutil.Process(api.process.pid).num_fds() < before + 30))
        begun = time.monotonic()
        assert (await greedy.post("/logout")).status_code == 204
        open_still = [one for one, first in zip(held, firsts, strict=True) if first != "4429"]
        assert await asyncio.gather(*(one.closed() for one in open_still)) == [4408] * 20
        assert time.monotonic() - begun < 5
        await until(lambda: as_awaitable(psutil.Process(api.process.pid).num_fds() < before + 10))


async def first_of(listener: Listener) -> str:
    """The type of its first frame, or the code that it was closed with."""
    try:
        return str((await listener.next())["type"])
    except ConnectionClosed as closed:
        return str(closed.rcvd.code if closed.rcvd else 1006)
