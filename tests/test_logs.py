import asyncio
import base64
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from server import logs
from server.settings import Settings

ROOT = Path(__file__).parent.parent


def line(message: str = "hello", error: BaseException | None = None, **extra: Any) -> str:
    record = logging.makeLogRecord({"name": "server.room", "levelname": "INFO", "msg": message, "created": 0.0} | extra)
    record.msecs = 7
    record.exc_info = (type(error), error, error.__traceback__) if error else None
    return logs.KeyValues().format(record)


def test_line_is_made_of_keys_and_values() -> None:
    head = "time=1970-01-01T00:00:00.007Z level=info logger=server.room message=hello"
    assert line() == head
    assert line(post_id="0192", ms=1.5, worker=None) == f"{head} post_id=0192 ms=1.5 worker=None"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b', r'"a\"b"'),
        ("a=b", '"a=b"'),
        ("one\ntime=now level=info", r'"one\ntime=now level=info"'),
        ("\x1b[31m\r", r'"\u001b[31m\r"'),
        ("a\u2028b", r'"a\u2028b"'),
        ("Zoë", '"Zoë"'),
    ],
)
def test_no_value_forges_a_line(value: str, shown: str) -> None:
    assert line(path=value).endswith(f" path={shown}")


def test_error_is_told_by_its_first_line_and_its_frames() -> None:
    said = "\n".join(["duplicate key", f"DETAIL: Key (email)=({'alice'}@example.org) already exists."])
    try:
        raise ValueError(said)
    except ValueError as error:
        told = line(error=error)
    first, *frames = told.splitlines()
    assert first.endswith(' error="ValueError: duplicate key"')
    assert "test_logs.py" in frames[0]
    assert "alice" not in told


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
        await visit(port)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(process.communicate(), 20)
    logged = err.decode()
    assert "hunter2" not in logged
    assert "method=GET path=/download/… client=127.0.0.1 status=404" in logged
    assert "method=WEBSOCKET path=/ws/post_request client=127.0.0.1 status=4401" in logged
    assert "method=GET path=/me client=127.0.0.1 status=401 request_id=" in logged
    assert "method=GET path=/health/live" in logged


async def visit(port: int) -> None:
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
        await client.get("/me?token=hunter2", headers={"Authorization": "Bearer hunter2"})
    for query in ("token=hunter2", "ticket=hunter2"):
        with pytest.raises((ConnectionClosed, InvalidStatus)):
            async with websockets.connect(f"ws://127.0.0.1:{port}/ws/post_request?{query}", proxy=None) as ws:
                await ws.recv()
