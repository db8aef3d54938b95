import asyncio
import base64
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from server import logs
from server.settings import Settings

ROOT = Path(__file__).parent.parent


def record(message: str = "hello", error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "server.room", "levelname": "INFO", "msg": message, "created": 0.0} | extra)
    made.msecs = 7
    made.exc_info = (type(error), error, error.__traceback__) if error else None
    return made


def in_json(message: str = "hello", error: BaseException | None = None, **extra: Any) -> dict[str, Any]:
    line = logs.formatter("json").format(record(message, error, **extra))
    assert "\n" not in line
    return dict(json.loads(line))


def on_console(message: str = "hello", error: BaseException | None = None, **extra: Any) -> str:
    return logs.formatter("console").format(record(message, error, **extra))


HEAD = {"time": "1970-01-01T00:00:00.007Z", "level": "info", "logger": "server.room", "message": "hello"}


def test_line_is_an_object() -> None:
    post_id = uuid.uuid4()
    assert in_json() == HEAD
    assert in_json(post_id=post_id, ms=1.5, worker=None) == HEAD | {"post_id": str(post_id), "ms": 1.5, "worker": None}


def test_line_of_the_console_is_for_people() -> None:
    told = on_console(ms=1.5, path="/me")
    assert re.fullmatch(r"1970-01-01T00:00:00\.007Z \[info +\] hello +\[server\.room\] ms=1\.5 path=/me", told), told


FORGERIES = ["a b", 'a"b', "a=b", "one\n1970 [info] two", "\x1b[31m\r", "a\u2028b", "\x00", "Zo\u00eb"]


@pytest.mark.parametrize("value", FORGERIES)
def test_no_value_and_no_message_forges_a_line(value: str) -> None:
    assert in_json(path=value)["path"] == value
    assert in_json(value)["message"] == value
    for told in (on_console(path=value), on_console(value)):
        assert told.isprintable()
        assert len(told.splitlines()) == 1


@pytest.mark.parametrize("form", ["json", "console"])
def test_error_is_told_by_its_first_line_and_its_frames(form: Literal["json", "console"]) -> None:
    said = "\n".join(["duplicate key", f"DETAIL: Key (email)=({'alice'}@example.org) already exists."])
    try:
        raise ValueError(said)
    except ValueError as error:
        told = logs.formatter(form).format(record(error=error, stack_info="alice"))
    assert "ValueError: duplicate key" in told
    assert "test_logs.py:" in told
    assert "alice" not in told
    assert len(told.splitlines()) == 1


def test_what_is_logged_within_a_request_has_its_id() -> None:
    with logs.of_request("f00d"):
        assert logs.request_id() == "f00d"
        assert in_json()["request_id"] == "f00d"
        with logs.of_request(None):
            assert in_json()["request_id"] == "f00d"
    assert logs.request_id() is None
    assert "request_id" not in in_json()


@pytest.mark.parametrize(("form", "is_json"), [("auto", True), ("json", True), ("console", False)])
def test_form_is_what_the_settings_say(form: logs.Format, is_json: bool) -> None:
    script = f"import logging; from server import logs; logs.configure('info', {form!r}); logging.warning('hello')"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stderr.startswith("{") == is_json
    assert "hello" in run.stderr


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_libraries_that_quote_requests_are_held_at_warnings(level: str) -> None:
    root, before = logging.getLogger(), logging.getLogger().level
    handlers = list(root.handlers)
    held = {name: logging.getLogger(name).level for name in logs.HELD_AT_WARNING}
    try:
        logs.configure(level)
        assert root.level == getattr(logging, level.upper())
        for name in ("uvicorn.error", "websockets.server", "httpcore.http11", "uvicorn.protocols"):
            assert logging.getLogger(name).getEffectiveLevel() >= logging.WARNING
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(before)
        for name, number in held.items():
            logging.getLogger(name).setLevel(number)


async def test_no_token_of_a_path_or_query_is_logged(settings: Settings, migrated: None) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "server.cli", "api", "--port", str(port)),
        cwd=ROOT,
        env=os.environ
        | {
            "DATABASE_URL": str(settings.database_url),
            "REDIS_URL": str(settings.redis_url),
            "WORKER_PUBLIC_KEY": base64.b64encode(settings.worker_public_key or b"").decode(),
            "REQUEST_MAC_KEY": base64.b64encode(bytes(32)).decode(),
            "LOG_LEVEL": "debug",
            "ALLOW_QUERY_TOKEN": "on",
        },
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        answer_id = await visit(port)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(process.communicate(), 20)
    logged = err.decode()
    assert "hunter2" not in logged
    lines = [json.loads(line) for line in logged.splitlines()]
    requests = {(line["method"], line["path"], line["status"]): line for line in lines if line["message"] == "request"}
    assert ("GET", "/download/…", 404) in requests
    assert ("WEBSOCKET", "/ws/post_request", 4401) in requests
    assert ("GET", "/health/live", 200) in requests
    line = requests["GET", "/me", 401]
    assert line["client"] == "127.0.0.1"
    assert line["request_id"] == answer_id


async def visit(port: int) -> str:
    """The id of the request for `/me`."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        async with asyncio.timeout(30):
            while True:
                try:
                    assert (await client.get("/health/live")).status_code == 200
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        await client.get("/download/hunter2")
        await client.get(f"http://127.0.0.1:{port}//download/hunter2?token=hunter2")
        answer = await client.get("/me?token=hunter2", headers={"Authorization": "Bearer hunter2"})
    for query in ("token=hunter2", "ticket=hunter2"):
        with pytest.raises((ConnectionClosed, InvalidStatus)):
            async with websockets.connect(f"ws://127.0.0.1:{port}/ws/post_request?{query}", proxy=None) as ws:
                await ws.recv()
    return answer.headers["X-Request-Id"]
