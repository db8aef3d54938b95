"""uvicorn's connections, with what they lack against clients that are slow, silent or have too much to say.

Each is looked at every CHECK_EVERY_S. What has not come on through a whole interval is ended, and so nobody holds
a connection for twice that:

* the head of a request has to be whole (and never over MAX_HEAD_BYTES);
* a body has to bring MIN_BODY_BYTES in each interval, however long it takes in all;
* between requests a connection may be quiet for uvicorn's keep-alive, and no longer by sending empty lines.

An answer that is not read is given up once nothing of it was taken for STALLED_ANSWER_S. A WebSocket whose side of
the conversation is over is cut off after LINGER_S even if its peer takes nothing of what is left: a transport that is
told to close waits for that for ever. And a client that sends more than MAX_FRAMES frames in FRAMES_WITHIN_S, of
whatever kind, is one that wants to keep us busy: what it has to say is none but answers to pings.

The application finds a WebSocket's connection in its scope, among the extensions, as `CONNECTION`: what is for many of
them is encoded once, by `text_frame`, and written to each with `SocketConnection.write`.
"""

import asyncio
import fcntl
import struct
import termios
from asyncio import BaseTransport, TimerHandle, Transport
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State

CHECK_EVERY_S = 6.0
MIN_BODY_BYTES = 512
MAX_HEAD_BYTES = 64 * 1024
STALLED_ANSWER_S = 54.0
# Longer than uvicorn waits for the answer to a close frame.
LINGER_S = 12.0

MAX_FRAMES = 1000
FRAMES_WITHIN_S = 10.0
TOO_MANY_FRAMES = 1008
# What is parsed before frames are counted: as many tiny ones as fit in all that a read may bring would take a second.
PIECE_BYTES = 2048

CONNECTION = "secureblogs.connection"
PING = b"?"
PONG_WITHIN_S = 20.0


class Awaited(Enum):
    """What a connection waits for."""

    HEAD = auto()
    BODY = auto()
    """The rest of it, whether or not the request is answered already."""
    ANSWER = auto()
    """Ours; or, after that, the next request."""


class HttpConnection(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, within the bounds above."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._awaited = Awaited.HEAD
        # Goes up whenever something that was awaited has come.
        self._stage = 0
        self._received_bytes = 0
        self._head_bytes = 0
        self._is_refused = False
        self._timer: TimerHandle | None = None
        self._checked: tuple[int, int] = (-1, 0)
        self._untaken_bytes = 0
        self._stalled_s = 0.0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast("Transport", transport))
        self._timer = self.loop.call_later(CHECK_EVERY_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_checking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._received_bytes += len(data)
        if self._awaited is Awaited.HEAD:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._awaited is Awaited.HEAD and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", "The head is too large.")

    def on_message_begin(self) -> None:
        self._await(Awaited.HEAD)
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._await(Awaited.BODY)
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = cast("Transport", WayOut(self))

    def on_body(self, body: bytes) -> None:
        # uvicorn copies what comes to the end of a bytearray, and bytes out of that. What finds nothing before it, as
        # most of a large body does, is as well left as it is.
        cycle: Any = self.cycle
        if not cycle.body:
            cycle.body = b""
        elif isinstance(cycle.body, bytes):
            cycle.body = bytearray(cycle.body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._await(Awaited.ANSWER)
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._stop_checking()
        super().handle_websocket_upgrade()

    def close_answered(self) -> None:
        """After an answer that ends the connection. One that came before the whole request is left some time to be
        read, as in `_refuse`: uvicorn's keep-alive."""
        if self._awaited is Awaited.BODY and not self.transport.is_closing():
            self._is_refused = True
            self._stage += 1
        else:
            self.transport.close()

    def _await(self, what: Awaited) -> None:
        self._awaited = what
        self._stage += 1

    def _stop_checking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = self.loop.call_later(CHECK_EVERY_S, self._check)
        stage, received_bytes = self._checked
        self._checked = self._stage, self._received_bytes
        if self._answer_is_stuck():
            self.transport.abort()
        elif self.transport.is_closing() or stage != self._stage:
            return
        elif self._is_refused or self.cycle is None or self._awaited is Awaited.HEAD or self._is_quiet():
            self.transport.close()
        elif self._wants_body() and self._received_bytes - received_bytes < MIN_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "The body stopped coming.")
            self.transport.close()

    def _wants_body(self) -> bool:
        """Whether it is the client that keeps us waiting, and not we who read no more for now."""
        return self._awaited is Awaited.BODY and not self.flow.read_paused and not self.cycle.waiting_for_100_continue

    def _is_quiet(self) -> bool:
        """Between requests, and uvicorn's own timer for that was stopped by bytes that began none."""
        return self._awaited is Awaited.ANSWER and self.cycle.response_complete and self.timeout_keep_alive_task is None

    def _refuse(self, status: HTTPStatus, code: str, detail: str) -> None:
        """Answer in the application's place, if nothing was answered yet.

        What still comes is dropped until the next check: a client that is sending reads only later, and to close at
        once would take the answer away from it.
        """
        self._is_refused = True
        self._stage += 1
        cycle = self.cycle
        is_answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if is_answering or self.transport.is_closing():
            self.transport.close()
        elif self._awaited is Awaited.HEAD or not cycle.response_started:
            self.transport.write(problem(status, code, detail))

    def _answer_is_stuck(self) -> bool:
        """Whether our side has bytes left of which none was taken for too long."""
        if not self.flow.write_paused and not self.transport.is_closing():
            self._stalled_s = 0.0
            return False
        untaken_bytes = self.transport.get_write_buffer_size() + unacknowledged_bytes(self.transport)
        self._stalled_s = self._stalled_s + CHECK_EVERY_S if untaken_bytes == self._untaken_bytes else 0.0
        self._untaken_bytes = untaken_bytes
        return self._stalled_s >= STALLED_ANSWER_S


class WayOut:
    """The transport of one request, for its answer.

    uvicorn writes the head by itself. It waits here for what else is written before the loop goes on, which of a short
    answer is the whole: one system call, and one packet, in place of two.
    """

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._transport = connection.transport
        self.is_closing = connection.transport.is_closing
        self._head: bytes | None = None
        self._has_begun = False

    def write(self, piece: bytes) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.writelines((head, piece))
        elif self._has_begun:
            self._transport.write(piece)
        else:
            self._has_begun = True
            self._head = piece
            self._connection.loop.call_soon(self._let_go)

    def close(self) -> None:
        self._let_go()
        self._connection.close_answered()

    def _let_go(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            if not self.is_closing():
                self._transport.write(head)


class Messages:
    """asyncio's Queue as far as uvicorn needs it, for one reader. An empty one of these takes 100 bytes, not 3,000."""

    __slots__ = ("_arrived", "_messages")

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._arrived: asyncio.Future[None] | None = None

    def empty(self) -> bool:
        return not self._messages

    def put_nowait(self, message: Any) -> None:
        self._messages.append(message)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def get(self) -> Any:
        while not self._messages:
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        return self._messages.pop(0)


# Of all connections whose peers take what they are sent: one that is behind gets an event of its own.
TAKES_ALL = asyncio.Event()
TAKES_ALL.set()


class SocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket as uvicorn speaks it. It answers each handshake, and waits for nobody who takes nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.queue = cast("asyncio.Queue[Any]", Messages())
        self.writable = TAKES_ALL
        self._timer: TimerHandle | None = None
        self._frames = 0
        self._frames_until = 0.0

    def write(self, frames: bytes) -> bool:
        """Write whole frames at once; False, and nothing is written, while the peer is behind in taking what was.

        `send` would make each frame anew for each connection. What it keeps account of is nothing of a frame with data,
        as long as these are whole and there is no compression. To a connection that is ending nothing is written any
        more: the application is being told.
        """
        if self.writable is not TAKES_ALL:
            return False
        if self.conn.state is State.OPEN and not self.transport.is_closing():
            self.transport.write(frames)
        return True

    def pause_writing(self) -> None:
        self.writable = asyncio.Event()

    def resume_writing(self) -> None:
        self.writable.set()
        self.writable = TAKES_ALL

    def forget_handshake(self) -> None:
        """What the peer said of itself, which takes a third of an idle connection, and holds its credential."""
        self.scope["headers"] = []
        self.scope["query_string"] = b""
        # The parser holds it as well.
        self.request.path = ""
        self.request.headers.clear()
        del self.request, self.response

    def ping(self, frames: bytes) -> bool:
        """Write a ping, and these frames with it, as `write` does; to be called every so often.

        A peer that has not answered the last one for long is given up.
        """
        if self.pending_ping_payload is None:
            is_written = self.write(PING_FRAME + frames)
            if is_written:
                self.pending_ping_payload, self.ping_sent_at = PING, self.loop.time()
            return is_written
        if self.loop.time() - self.ping_sent_at <= PONG_WITHIN_S:
            return self.write(frames)
        self.keepalive_timeout()
        return True

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + PIECE_BYTES])
        # `websockets` bounds each line of a handshake, and uvicorn says nothing to one that it did not accept.
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            detail = "The handshake is too long or malformed."
            self.transport.write(problem(HTTPStatus.BAD_REQUEST, "bad_handshake", detail))
            self.transport.close()

    def handle_text(self, event: Frame) -> None:
        if self._is_welcome():
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        if self._is_welcome():
            super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        if self._is_welcome():
            super().handle_cont(event)

    def handle_ping(self) -> None:
        if self._is_welcome():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        if self._is_welcome():
            super().handle_pong(event)

    def _is_welcome(self) -> bool:
        """Counts a frame; the one too many ends the connection."""
        now = self.loop.time()
        if now > self._frames_until:
            self._frames, self._frames_until = 0, now + FRAMES_WITHIN_S
        self._frames += 1
        if self._frames <= MAX_FRAMES:
            return True
        if self.close_sent:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.conn.send_close(TOO_MANY_FRAMES, "too many frames")
            self.handle_parser_exception()
            self._cut_off_later()
        return False

    async def run_asgi(self) -> None:
        cast("dict[str, Any]", self.scope["extensions"])[CONNECTION] = self
        try:
            await super().run_asgi()
        finally:
            # Else it would hold itself.
            del cast("dict[str, Any]", self.scope["extensions"])[CONNECTION]
            self._cut_off_later()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._cut_off_later()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _cut_off_later(self) -> None:
        if self._timer is None and not self.disconnected:
            self._timer = self.loop.call_later(LINGER_S, self.transport.abort)


def text_frame(text: str) -> bytes:
    """As it goes out on every WebSocket, since none of them is compressed."""
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=False)


PING_FRAME = Frame(Opcode.PING, PING).serialize(mask=False)


def problem(status: HTTPStatus, code: str, detail: str) -> bytes:
    """A whole answer, after which the connection ends."""
    told = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail, "code": code}
    body = msgspec.json.encode(told)
    head = (
        f"HTTP/1.1 {int(status)} {status.phrase}\r\n"
        "content-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\n"
        "cache-control: no-store\r\n"
        "x-content-type-options: nosniff\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body


def unacknowledged_bytes(transport: Transport) -> int:
    """What the kernel holds of what we wrote because the other side has not taken it; 0 where it can't be told."""
    sock = transport.get_extra_info("socket")
    try:
        found: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    except (OSError, AttributeError):
        return 0
    return found
