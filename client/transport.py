"""Requests over HTTP: what is tried again, when, and what an answer means.

A call is tried again when doing it twice is the same as doing it once: it reads, it deletes or sets, or its id was made
here, so that the server knows the second for the first. Any call is tried again that was surely not carried out:
the connection was never made, or the answer is 429.
"""

import asyncio
import email.utils
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import h11
import httpcore
import httpx
import msgspec

from client.errors import BadAddress, BadAnswer, BadText, NetworkError, Problem, Refused, refusal
from server.sealing.sodium import Buffer

Answer = TypeVar("Answer")

USER_AGENT = "secureblogs-client/0.1.0"

_REPEATABLE_METHODS = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
# 500 is not among them: a server that failed on this request will most likely fail on it again.
_PASSING = frozenset({502, 503, 504})

# In seconds. Once an answer has begun, it is there.
EARLY_ANSWER_S = 2.0
# As much as asyncio takes from a connection at once.
READ_BYTES = 256 * 1024
# In seconds. A server hands a file on as it comes: while its store is slow, it neither takes anything nor answers.
FILE_TIMEOUT = httpx.Timeout(120.0, connect=10.0)


class Content(Protocol):
    """A long body: `size` in bytes if it is known, and `open`, which gives it from its beginning."""

    @property
    def size(self) -> int | None: ...

    @property
    def can_be_opened(self) -> bool:
        """Whether it can be opened, again if it was before."""

    def open(self) -> AbstractAsyncContextManager[AsyncIterator[Buffer]]: ...


class Retries(msgspec.Struct, frozen=True):
    """How often a call is tried, and how long (in seconds) is waited before the next try.

    A `Retry-After` longer than `longest_wait` is not waited for: the refusal is raised, and carries it. Where there is
    a shorter one, `told_tries` counts in the place of `tries`, if it is given.
    """

    tries: int = 4
    first_wait: float = 0.2
    longest_wait: float = 30.0
    told_tries: int | None = None

    def wait(self, tried: int, retry_after: float | None, chance: float) -> float | None:
        """Seconds to wait after so many tries, or None to give up; `chance` in [0, 1) spreads clients apart."""
        tries = self.tries if retry_after is None or self.told_tries is None else self.told_tries
        if tried >= tries:
            return None
        if retry_after is not None:
            # Spread upwards only: to come before the server's own time is to be refused again.
            return retry_after + chance * self.first_wait if retry_after <= self.longest_wait else None
        full = min(self.longest_wait, self.first_wait * 2.0 ** (tried - 1))
        return float(full * (0.5 + chance / 2))


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """The header's seconds from `now`: it holds either seconds or a date. None where it says nothing usable."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())


def parse_address(address: str) -> str:
    """A server's address without a trailing slash, or BadAddress. A path prefix is kept."""
    try:
        parts = urlsplit(address.strip())
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError as error:
        raise BadAddress(f"{address!r} is no address of a server: {error}") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not port_is_sound
        or parts.query
        or parts.fragment
    ):
        raise BadAddress(f"{address!r} is no address of a server: give it like https://posts.example.org")
    if parts.username or parts.password:
        raise BadAddress("the server's address must hold no user name or password")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def is_loopback(address: str) -> bool:
    """Whether an address names this very machine."""
    host = urlsplit(address).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Transport:
    """One server, one credential, one pool of connections. `token` may be set anew at any time."""

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        retries: Retries | None = None,
        timeout: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.address = parse_address(address)
        self.token = token
        self.retries = retries or Retries()
        self._sleep = sleep
        self._timeout = httpx.Timeout(timeout, connect=10.0)
        self._http = self._new_http()

    def _new_http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            timeout=self._timeout,
            headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
            # A proxy of the environment can't reach this machine's own loopback address, so it is not asked to.
            trust_env=not is_loopback(self.address),
            # Loading certificates takes 30 ms. Without TLS, and since nobody is followed elsewhere, none are needed.
            verify=self.address.startswith("https:"),
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def fetch(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
        repeatable: bool = False,
    ) -> Answer:
        """Make a call and decode its answer. Raises Refused, NetworkError or BadAnswer."""
        raw = await self.send(method, path, query=query, body=body, repeatable=repeatable)
        return decode_answer(raw, answer, f"{method} {path}")

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
        repeatable: bool = False,
    ) -> bytes:
        """Make a call, trying again where that is safe, and give the body of its answer."""
        repeatable = repeatable or method in _REPEATABLE_METHODS
        try:
            request_body = None if body is None else msgspec.json.encode(present(body))
        except UnicodeEncodeError:
            raise BadText("this text is not valid Unicode") from None
        tried = 0
        while True:
            tried += 1
            failure: NetworkError | Refused
            try:
                response = await self._http.request(
                    method,
                    self.address + path,
                    params={name: str(value) for name, value in present(query or {}).items()},
                    content=request_body,
                    headers=self._headers(request_body),
                )
            except httpx.TransportError as error:
                failure = NetworkError(f"{self.address} can't be reached: {_reason(error)}")
                may_try = repeatable or isinstance(error, _NEVER_SENT)
            except httpx.HTTPError as error:
                raise BadAnswer(f"{method} {path} answered something unexpected: {error}") from None
            else:
                if response.is_success:
                    return response.content
                if response.is_redirect:
                    raise BadAnswer(f"{self.address} sends us on to {response.headers.get('location', 'nowhere')}")
                failure = read_refusal(response, datetime.now(UTC))
                may_try = failure.status == 429 or (repeatable and failure.status in _PASSING)
            await self.wait_or_raise(tried, failure, may_try=may_try)

    async def stream_lines(self, path: str) -> AsyncIterator[bytes]:
        """The lines of a long answer as they come, without their ends. It is not asked for again if it breaks off."""
        rest = b""
        try:
            async with self._http.stream("GET", self.address + path, headers=self._headers(None)) as response:
                if not response.is_success:
                    await response.aread()
                    raise read_refusal(response, datetime.now(UTC))
                async for chunk in response.aiter_bytes():
                    # Not httpx's own lines, which end at marks that may stand within a text.
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield line
        except httpx.TransportError as error:
            raise NetworkError(f"{self.address} can't be reached: {_reason(error)}") from None
        except httpx.HTTPError as error:
            raise BadAnswer(f"GET {path} answered something unexpected: {error}") from None
        if rest:
            yield rest

    async def upload(
        self,
        path: str,
        answer: type[Answer],
        content: Content,
        *,
        query: Mapping[str, object],
        headers: Mapping[str, str],
    ) -> Answer:
        """Send a long body under an id of its own, again from its beginning if that breaks off and it can be."""
        tried = 0
        while True:
            tried += 1
            failure: NetworkError | Refused
            try:
                raw = await self._upload(path, content, query, headers)
            except NetworkError as error:
                failure, may_try = error, content.can_be_opened
            except Refused as error:
                failure, may_try = error, content.can_be_opened and is_passing(error)
            else:
                return decode_answer(raw, answer, f"POST {path}")
            await self.wait_or_raise(tried, failure, may_try=may_try)

    async def _upload(
        self, path: str, content: Content, query: Mapping[str, object], headers: Mapping[str, str]
    ) -> bytes:
        sized = {} if content.size is None else {"Content-Length": str(content.size)}
        early = EarlyAnswer(self._check_answer)
        # On a connection of its own: of one that is taken out of the pool nobody is told.
        async with content.open() as body, self._reached(f"POST {path}"), self._new_http() as http:
            response = await http.post(
                self.address + path,
                params={name: str(value) for name, value in query.items()},
                content=early.watch(body),
                headers={**self._headers(None), **sized, **headers},
                timeout=FILE_TIMEOUT,
                extensions={"trace": early.trace},
            )
            self._check_answer(response)
            return response.content

    @asynccontextmanager
    async def open_stream(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """A long answer, as it comes. It is not asked for again if it breaks off: that is a NetworkError."""
        # What the path holds may be a secret of its own: it is in no error.
        async with self._reached("the download"):
            asked = self._http.stream(
                "GET", self.address + path, headers={**self._headers(None), **headers}, timeout=FILE_TIMEOUT
            )
            async with asked as response:
                if not response.is_success:
                    await response.aread()
                self._check_answer(response)
                read_widely(response)
                yield response

    def _check_answer(self, response: httpx.Response) -> None:
        if response.is_redirect:
            raise BadAnswer(f"{self.address} sends us on to {response.headers.get('location', 'nowhere')}")
        if not response.is_success:
            raise read_refusal(response, datetime.now(UTC))

    @asynccontextmanager
    async def _reached(self, call: str) -> AsyncIterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise NetworkError(f"{self.address} can't be reached: {_reason(error)}") from None
        except httpx.HTTPError as error:
            raise BadAnswer(f"{call} answered something unexpected: {error}") from None

    async def wait_or_raise(self, tried: int, failure: NetworkError | Refused, *, may_try: bool) -> None:
        """After so many tries: wait for the next one, or raise what the last one met."""
        retry_after = failure.retry_after if isinstance(failure, Refused) else None
        # Not a secret: it only spreads clients apart.
        wait = self.retries.wait(tried, retry_after, random.random()) if may_try else None  # noqa: S311
        if wait is None:
            raise failure
        await self._sleep(wait)

    def _headers(self, body: bytes | None) -> dict[str, str]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers


def read_widely(response: httpx.Response) -> None:
    """Have the rest of a long answer read in the pieces in which it comes.

    httpcore asks its connection for 64 KiB at a time, and so h11 and all above it take their turn four times as often.
    """
    stream: Any = response.extensions["network_stream"]
    if "read" in vars(stream):
        # Of a connection that has brought a file before.
        return
    read = stream.read

    async def read_more(max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - as httpcore has it
        return cast(bytes, await read(max(max_bytes, READ_BYTES), timeout))

    stream.read = read_more


class EarlyAnswer:
    """Hears a server that answers before the whole of a long body is sent, which it does to refuse it.

    httpx sends all of it before it reads anything; and when the server closes the connection meanwhile, the answer is
    lost. `check` raises what an answer stands for.
    """

    def __init__(self, check: Callable[[httpx.Response], None]) -> None:
        self._check = check
        self._stream: Any = None

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """For httpx, which tells here of the connection that it makes."""
        if event in {"connection.connect_tcp.complete", "proxy.start_tls.complete", "connection.start_tls.complete"}:
            self._stream = info["return_value"]

    async def watch(self, body: AsyncIterator[Buffer]) -> AsyncIterator[bytes]:
        """The same blocks, until the server says no."""
        async for block in body:
            if self._stream is not None and self._stream.get_extra_info("is_readable"):
                # What is no answer may be TLS that has something to say, or the end of the connection: then httpx is
                # the one to notice.
                with suppress(httpcore.TimeoutException, httpcore.NetworkError, h11.RemoteProtocolError):
                    await self._read()
            yield bytes(block)

    async def _read(self) -> None:
        stream, self._stream = self._stream, None
        told = h11.Connection(h11.CLIENT)
        told.send(h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Transfer-Encoding", "chunked")]))
        head: h11.Response | None = None
        content = b""
        while not isinstance(event := told.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                told.receive_data(await stream.read(65_536, timeout=EARLY_ANSWER_S))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                content += event.data
        if head is not None:
            self._check(httpx.Response(head.status_code, headers=list(head.headers), content=content))


def decode_answer(raw: bytes, answer: type[Answer], call: str) -> Answer:
    """What a server said, or BadAnswer."""
    try:
        return msgspec.json.decode(raw, type=answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"{call} answered something unexpected: {error}") from None


def is_passing(refused: Refused) -> bool:
    """Whether the same request may be answered otherwise in a moment."""
    return refused.status == 429 or refused.status in _PASSING


def read_refusal(response: httpx.Response, now: datetime) -> Refused:
    """The error that an unsuccessful answer stands for, whether or not it is a problem as the contract says."""
    retry_after = parse_retry_after(response.headers.get("retry-after"), now)
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        problem = Problem(status=response.status_code, title=f"the server answered {response.status_code}")
    # What HTTP says counts, not what a body claims: a proxy may have put one over the other.
    return refusal(msgspec.structs.replace(problem, status=response.status_code), retry_after)


def present(values: Mapping[str, object]) -> dict[str, object]:
    """Without the values that are None: an absent field and null are not the same to the server."""
    return {name: value for name, value in values.items() if value is not None}


def _reason(error: httpx.TransportError) -> str:
    """httpx leaves the text of a timeout or a broken connection empty: its name is then all there is."""
    return str(error) or type(error).__name__
