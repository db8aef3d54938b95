"""One way to log, for every process: structlog renders what `logging` is told, on standard error.

    logger.info("worker started", extra={"queue": queue_name, "jobs": 10})

`json` is one object a line, for machines; `console` is for people. While a request is answered, and while a job of its
making runs, every line carries its `request_id`, which the answer has in `X-Request-Id`.

No secret gets in. A request is logged by its path alone, for query strings carry tickets and tokens, and the path of
a download is its token. Libraries that quote requests or frames are held at warnings whatever the level. Of an
exception's message only the first line counts: below it Postgres quotes the row.
"""

import functools
import logging
import random
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TextIO

import msgspec
import structlog
from structlog.types import EventDict, Processor

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

Format = Literal["auto", "console", "json"]

access = logging.getLogger("server.access")

# uvicorn logs the address of a WebSocket with its query; websockets, httpcore and asyncio log frames and headers.
HELD_AT_WARNING = (
    "uvicorn",
    "websockets",
    "httpx",
    "httpcore",
    "asyncio",
    "piccolo",
)

DOWNLOAD = re.compile(r"^/+download/.*", re.DOTALL)
MAX_PATH_CHARACTERS = 200


def configure(level: str, form: Format = "auto") -> None:
    """Send all logging of this process to standard error, from `level` (debug, info, warning, error) up.

    `auto` is `console` on a terminal and `json` elsewhere.
    """
    is_terminal = sys.stderr.isatty()
    if form == "auto":
        form = "console" if is_terminal else "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form, colors=is_terminal))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    _json_lines[:] = [sys.stderr] if form == "json" else []
    logging.captureWarnings(True)
    for name in HELD_AT_WARNING:
        logger = logging.getLogger(name)
        logger.setLevel(max(logging.WARNING, logging.getLogger().level))
        logger.handlers.clear()
        logger.propagate = True


def formatter(form: Literal["console", "json"], *, colors: bool = False) -> logging.Formatter:
    """Records as lines; `colors` are for the console alone."""
    last: list[Processor]
    if form == "json":
        last = [structlog.processors.EventRenamer("message"), structlog.processors.JSONRenderer(write_json)]
    else:
        last = [quote_unprintable, structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="time", sort_keys=False)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            add_time,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            add_request_id,
            tell_error,
            structlog.stdlib.ExtraAdder(),
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )


@functools.lru_cache(maxsize=2)
def second(moment: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


def write_time(created: float, milliseconds: float) -> str:
    return f"{second(int(created))}.{int(milliseconds):03d}Z"


def add_time(_logger: object, _method: str, event: EventDict) -> EventDict:
    """When it was logged, not when it is written."""
    record: logging.LogRecord = event["_record"]
    return {"time": write_time(record.created, record.msecs), **event}


def add_request_id(_logger: object, _method: str, event: EventDict) -> EventDict:
    known = request_id()
    return event if known is None else {**event, "request_id": known}


def tell_error(_logger: object, _method: str, event: EventDict) -> EventDict:
    """An exception by its type, the first line of its message, and where it came through."""
    record: logging.LogRecord = event["_record"]
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        event["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        event["frames"] = frames(error)
    # What else would be appended, message and all.
    for name in ("exc_info", "exc_text", "stack_info"):
        setattr(record, name, None)
        event.pop(name, None)
    return event


def frames(error: BaseException) -> str:
    """The last eight places that it came through, the innermost first."""
    places = traceback.extract_tb(error.__traceback__)[-8:]
    return " < ".join(f"{place.filename}:{place.lineno}" for place in reversed(places))


def write_json(event: EventDict, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def quote_unprintable(_logger: object, _method: str, event: EventDict) -> EventDict:
    """For the console: no value forges a line, or drives a terminal. JSON quotes by itself."""
    for name, value in event.items():
        if name.startswith("_"):
            continue
        text = value if isinstance(value, str) else str(value)
        event[name] = text if text.isprintable() else repr(text)
    return event


@contextmanager
def of_request(request_id: str | None) -> Iterator[None]:
    """What is logged within belongs to this request."""
    if request_id is None:
        yield
        return
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def request_id() -> str | None:
    """Of the request that is being answered, or whose job is being done."""
    return _request_id.get()


Observe = Callable[[Any, int | None, float], None]


class AccessLog:
    """ASGI middleware: gives each request its id, and `X-Request-Id` to the answer.

    It logs one line for each request, and one for each WebSocket when it ends; health checks and metrics at debug.
    `observe` is told of it as well: its scope, the status, and how many seconds it took.
    """

    def __init__(self, app: App, observe: Observe | None = None) -> None:
        self.app = app
        self.observe = observe

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status: int | None = None
        # A name, and no secret.
        own_id = f"{random.getrandbits(64):016x}"

        async def watched_send(message: Message) -> None:
            nonlocal status
            kind = message["type"]
            if kind == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", own_id.encode())]
            elif kind == "websocket.accept":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", own_id.encode())]
            elif kind == "websocket.close":
                status = status or message.get("code", 1005)
            await send(message)

        async def watched_receive() -> Message:
            nonlocal status
            message = await receive()
            if message["type"] == "websocket.disconnect":
                status = status or message.get("code", 1005)
            return message

        token = _request_id.set(own_id)
        try:
            # What is read of a request says nothing of how it went.
            await self.app(scope, receive if scope["type"] == "http" else watched_receive, watched_send)
        finally:
            seconds = time.perf_counter() - started
            log_access(scope, status, round(seconds * 1000, 1))
            if self.observe:
                self.observe(scope, status, seconds)
            _request_id.reset(token)


class AccessLine(msgspec.Struct):
    time: str
    level: str
    logger: str
    request_id: str | None
    method: str
    path: str
    client: str
    status: int | None
    ms: float
    message: str = "request"


def log_access(scope: Message, status: int | None, ms: float) -> None:
    path: str = scope["path"]
    level = logging.DEBUG if path.startswith(("/health/", "/metrics")) else logging.INFO
    if not access.isEnabledFor(level):
        return
    if "/download/" in path:
        path = DOWNLOAD.sub("/download/…", path)
    method = scope.get("method", "WEBSOCKET")
    client = (scope.get("client") or ("-",))[0]
    path = path[:MAX_PATH_CHARACTERS]
    if not _json_lines:
        told = {"method": method, "path": path, "client": client, "status": status, "ms": ms}
        access.log(level, "request", extra=told)
        return
    # The same line as the formatter's, without the way there: that took as long as the rest of a short request.
    now = time.time()
    line = AccessLine(
        write_time(now, now % 1 * 1000),
        "info" if level == logging.INFO else "debug",
        *(access.name, request_id(), method, path, client, status, ms),
    )
    text = msgspec.json.encode(line).decode() + "\n"
    for stream in _json_lines:
        stream.write(text)
        stream.flush()


# Where the lines of requests go at once: standard error, where `configure` was told `json`.
_json_lines: list[TextIO] = []
