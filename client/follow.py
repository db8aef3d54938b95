"""Following the WebSocket for as long as it takes.

    connect ── connection.accepted ── replayed frames ── caught_up ── live frames, a ping every 25 s
       ▲                                                                   │
       └──────── wait (twice as long each time, spread by chance) ◄── lost ┘

* Lost is: no frame for 60 s, a broken connection (1006), a server that restarts (1001, 1012) or finds us slow (1013),
  and an answer 5xx or 429 to the handshake. Each is told as `Disconnected`, then tried again with `since` set
  to the last `caught_up`, so that decisions made meanwhile are told.
* 4408 (the credential has ended) is tried again after a new login, if the caller gave a way to make one.
* Every other close code is final and raised. So is a first connection that can't be made: most likely the address is
  wrong, and waiting mends nothing.
* The wait starts anew only after `caught_up`: a server that accepts and closes at once is not hammered.
* Delivery is at least once: what was told is not told again, known by its event id or, where a request is concerned, by
  the request and its new state, which it takes once. Requests that wait for a decision are
  replayed on every connection, and so their whole set is told with `CaughtUp.pending`.
"""

import asyncio
import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from types import TracebackType
from typing import Literal, NoReturn, Self
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from client.errors import BadAnswer, ClientError, CredentialEnded, NetworkError, SocketClosed, Unavailable
from client.events import (
    CaughtUp,
    ConnectionAccepted,
    Disconnected,
    Event,
    More,
    Ping,
    ReadRequestCreated,
    RequestEvent,
    decode_event,
)
from client.transport import USER_AGENT, is_loopback

# Two pings may be lost before a silent connection is given up.
SILENCE = 60.0
REMEMBERED_EVENTS = 10_000

_LOST = frozenset({1001, 1006, 1012, 1013})
_MEANINGS = {
    1001: "it goes away",
    1003: "it takes no binary frames",
    1007: "it was sent bad UTF-8",
    1008: "it wants a credential",
    1009: "it was sent too large a frame",
    1012: "it restarts",
    1013: "it found us slow, or is busy",
    4400: "it does not take this `since`",
    4401: "it does not know this credential",
    4403: "it does not serve this origin",
    4408: "the credential has ended",
    4429: "too many connections of this user",
}
_CREDENTIAL_CODES = frozenset({1008, 4401, 4408})

Renew = Callable[[], Awaitable[object]]
Rest = Callable[[str | None], AsyncIterator[Event]]


class _Lost(Exception):
    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(reason)


def backoff(tried: int, chance: float) -> float:
    """Seconds between connection attempt `tried` (from 1) and the next: half a second, doubling, to 10.

    No longer than that: who waits for an answer is to have it soon after everything is up again.
    """
    return float(min(10.0, 0.5 * 2.0 ** min(tried - 1, 10)) * (0.5 + chance / 2))


def identify(event: Event) -> Hashable:
    """What makes an event the same as one told before; None for those that are never the same."""
    if isinstance(event, CaughtUp | ConnectionAccepted | More):
        return None
    return (event.type, event.request_id) if isinstance(event, RequestEvent) else event.event_id


class Follower:
    """An endless async iterator of typed events. A cancelled `anext` loses nothing: go on with the next.

    `token` gives the current credential, `renew` logs in again after it ended, and `rest` reads from the lists what one
    replay since then did not hold. After `silence` seconds without a frame a connection counts as lost.
    """

    def __init__(
        self,
        address: str,
        token: Callable[[], str | None],
        *,
        since: str | None = None,
        renew: Renew | None = None,
        rest: Rest | None = None,
        silence: float = SILENCE,
    ) -> None:
        self.since = since
        self._address = "ws" + address.removeprefix("http") + "/ws/post_request"
        self._proxy: Literal[True] | None = None if is_loopback(address) else True
        self._token = token
        self._renew = renew
        self._rest = rest
        self._silence = silence
        self._connection: ClientConnection | None = None
        self._was_connected = False
        self._tried = 0
        self._not_before = 0.0
        self._must_renew = False
        self._rest_is_owed = False
        self._told: dict[Hashable, None] = {}
        self._pending: set[UUID] = set()
        self._waiting: deque[Event] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. Iterating again opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def __anext__(self) -> Event:
        while True:
            if self._waiting:
                return self._waiting.popleft()
            try:
                if self._connection is None:
                    await self._open()
                elif self._rest_is_owed:
                    await self._take_rest()
                else:
                    await self._receive(self._connection)
            except _Lost as lost:
                await self._lose(lost)

    async def _open(self) -> None:
        await asyncio.sleep(max(0.0, self._not_before - asyncio.get_running_loop().time()))
        await self._log_in_again()
        self._pending = set()
        self._rest_is_owed = False
        self._tried += 1
        query = "" if self.since is None else "?" + urlencode({"since": self.since})
        token = self._token()
        try:
            self._connection = await connect(
                self._address + query,
                additional_headers={} if token is None else {"Authorization": f"Bearer {token}"},
                user_agent_header=USER_AGENT,
                proxy=self._proxy,
                # Ciphertext does not compress, and a window of memory on both sides buys nothing.
                compression=None,
                close_timeout=2,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status != 429 and status < 500:
                raise BadAnswer(f"{self._address} answered {status} instead of opening a WebSocket") from None
            self._raise_lost(f"the server answered {status}")
        except ssl.SSLCertVerificationError as error:
            # A certificate that is not believed will not be believed in a second either.
            raise NetworkError(f"{self._address} can't be reached: {error}") from None
        except (OSError, EOFError, InvalidHandshake) as error:
            self._raise_lost(str(error) or type(error).__name__)

    def _raise_lost(self, reason: str) -> NoReturn:
        if not self._was_connected:
            raise NetworkError(f"{self._address} can't be reached: {reason}") from None
        raise _Lost(1006, reason) from None

    async def _log_in_again(self) -> None:
        if self._must_renew and self._renew is not None:
            try:
                await self._renew()
            except (NetworkError, Unavailable) as error:
                self._raise_lost(str(error))
            self._must_renew = False

    async def _receive(self, connection: ClientConnection) -> None:
        """Wait for one frame, and queue it if it is to be told."""
        try:
            async with asyncio.timeout(self._silence):
                frame = await connection.recv()
        except TimeoutError:
            raise _Lost(1006, f"nothing was heard for {self._silence:.0f} s") from None
        except ConnectionClosed as closed:
            # A code of our own (a keepalive that failed, say) means that the server's was never heard.
            code = closed.rcvd.code if closed.rcvd else 1006
            told = closed.rcvd.reason if closed.rcvd else ""
            raise _Lost(code, told or _MEANINGS.get(code, "the connection broke")) from None
        self._was_connected = True
        event = decode_event(frame)
        if event is not None and not isinstance(event, Ping):
            self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, More):
            self._rest_is_owed = True
        if isinstance(event, ReadRequestCreated) and event.replayed:
            self._pending.add(event.request_id)
        if isinstance(event, CaughtUp):
            self.since = event.at
            self._tried = 0
            event = msgspec.structs.replace(event, pending=frozenset(self._pending))
            # The server may replay again on the same connection, and then tells the whole set anew.
            self._pending = set()
        name = identify(event)
        if name is None or name not in self._told:
            self._waiting.append(event)
        if name is not None:
            self._told[name] = None
            if len(self._told) > REMEMBERED_EVENTS:
                del self._told[next(iter(self._told))]

    async def _take_rest(self) -> None:
        """Whole or not at all: a cancelled or broken reading is owed still."""
        try:
            rest = [] if self._rest is None else [event async for event in self._rest(self.since)]
        except (NetworkError, Unavailable) as error:
            self._raise_lost(str(error))
        else:
            self._rest_is_owed = False
            for event in rest:
                self._take(event)

    async def _lose(self, lost: _Lost) -> None:
        await self.aclose()
        may_renew = lost.code == 4408 and self._renew is not None
        if lost.code not in _LOST and not may_renew:
            raise self._final(lost)
        self._must_renew = may_renew
        # Not a secret: it only spreads clients apart.
        wait = backoff(max(1, self._tried), random.random())  # noqa: S311
        self._not_before = asyncio.get_running_loop().time() + wait
        self._waiting.append(Disconnected(code=lost.code, reason=lost.reason, retry_in=round(wait, 3)))

    def _final(self, lost: _Lost) -> ClientError:
        kind = CredentialEnded if lost.code in _CREDENTIAL_CODES else SocketClosed
        return kind(lost.code, _MEANINGS.get(lost.code, lost.reason))
