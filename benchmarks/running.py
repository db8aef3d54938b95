"""The server under measurement: `secureblogs up` in a folder of its own, and people who use it."""

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from server.embedded import addresses

READY_WITHIN_S = 60


class Running(NamedTuple):
    url: str
    database_url: str
    pid: int
    """Of `secureblogs up`, whose children are the API and the worker."""


@contextlib.asynccontextmanager
async def running_server(**settings: str) -> AsyncIterator[Running]:
    """A fresh server with its own engines, one API and one worker, as in production but for the rate limits."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="sb") as folder:
        Path(folder).chmod(0o711)  # noqa: ASYNC240 - nothing else runs yet
        data_dir = Path(folder) / "data"
        environ = os.environ | {
            "DATA_DIR": str(data_dir),
            "PORT": str(port),
            "RATE_LIMITS": "off",
            "LOG_LEVEL": "warning",
            **settings,
        }
        command = [sys.executable, "-m", "server.cli", "up"]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)  # noqa: ASYNC220, S603 - our own command, at the start
        try:
            url = f"http://127.0.0.1:{port}"
            await wait_until_ready(url, process)
            found = addresses(data_dir)
            if found is None:
                raise RuntimeError("the engines are not there")
            yield Running(url, found[0], process.pid)
        finally:
            process.terminate()
            process.wait(30)


async def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    async with httpx.AsyncClient(base_url=url) as client, asyncio.timeout(READY_WITHIN_S):
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/health/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
    raise RuntimeError("the server did not start")


async def sign_up(client: httpx.AsyncClient) -> dict[str, Any]:
    """A new user, whom `client` stands for from now on."""
    body = {"name": "Bench", "email": f"{secrets.token_hex(8)}@example.org", "password": secrets.token_urlsafe()}
    answer = await client.post("/sign-up", json=body)
    answer.raise_for_status()
    user: dict[str, Any] = answer.json()
    client.headers["Authorization"] = f"Bearer {user['token']['token']}"
    return user
