"""One way to log, for every process: lines of key=value on standard error.

    log.info("post sealed", extra={"post_id": post_id, "ms": 12.5})
    time=2026-01-31T12:00:00.123Z level=info logger=tasks.seal message="post sealed" post_id=… ms=12.5

No secret gets in. A request is logged by its path alone, for query strings carry tickets and tokens, and the path of
a download is its token. Libraries that quote requests or frames are held at warnings whatever the level. Of an
exception's message only the first line counts: below it Postgres quotes the row.
"""

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

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

STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
BARE = re.compile(r"[A-Za-z0-9_.:/@+…-]+")
DOWNLOAD = re.compile(r"^/+download/.*", re.DOTALL)
MAX_PATH_CHARACTERS = 200


def configure(level: str) -> None:
    """Send all logging of this process to standard error, from `level` (debug, info, warning, error) up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValues())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in HELD_AT_WARNING:
        logger = logging.getLogger(name)
        logger.setLevel(max(logging.WARNING, logging.getLogger().level))
        logger.handlers.clear()
        logger.propagate = True


class KeyValues(logging.Formatter):
    """A record as one line, and below it, indented, the frames of its exception."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        pairs: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        pairs |= {name: value for name, value in record.__dict__.items() if name not in STANDARD}
        frames = ""
        if record.exc_info and record.exc_info[1] is not None:
            pairs["error"] = describe(record.exc_info[1])
            frames = "\n" + trace(record.exc_info[2])
        return " ".join(f"{name}={quote(value)}" for name, value in pairs.items()) + frames.rstrip("\n")


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def trace(frames: TracebackType | None) -> str:
    return "".join(traceback.format_tb(frames))


def quote(value: object) -> str:
    """The value as one word; anything odd as a JSON string, so that no line can be forged."""
    text = str(value)
    return text if BARE.fullmatch(text) else json.dumps(text, ensure_ascii=not text.isprintable())


class AccessLog:
    """ASGI middleware: one line for each request, and one for each WebSocket when it ends. Health checks at debug."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        facts: dict[str, Any] = {"status": None}

        async def watched_send(message: Message) -> None:
            note(facts, message)
            await send(message)

        async def watched_receive() -> Message:
            message = await receive()
            note(facts, message)
            return message

        try:
            await self.app(scope, watched_receive, watched_send)
        finally:
            facts["ms"] = round((time.perf_counter() - started) * 1000, 1)
            log_access(scope, facts)


def note(facts: dict[str, Any], message: Message) -> None:
    """Remember what the line will say: the status of an answer, or the code that a WebSocket was closed with."""
    match message["type"]:
        case "http.response.start":
            facts["status"] = message["status"]
            for name, value in message.get("headers", ()):
                if name.lower() == b"x-request-id":
                    facts["request_id"] = value.decode("latin-1")
        case "websocket.close" | "websocket.disconnect":
            facts["status"] = facts["status"] or message.get("code", 1005)


def log_access(scope: Message, facts: dict[str, Any]) -> None:
    path = DOWNLOAD.sub("/download/…", scope["path"])[:MAX_PATH_CHARACTERS]
    client = scope.get("client") or ("-",)
    level = logging.DEBUG if path.startswith("/health/") else logging.INFO
    method = scope.get("method", "WEBSOCKET")
    access.log(level, "request", extra={"method": method, "path": path, "client": client[0], **facts})
