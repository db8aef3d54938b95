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
PROJECT = Path(__file__).parent.parent


class Running(NamedTuple):
    url: str
    database_url: str
    redis_url: str
    pid: int
    """Of `secureblogs up`, whose children are the API and the worker."""
    data_dir: Path
    more_pids: tuple[int, ...] = ()
    """Of further processes of this server."""

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.pid, *self.more_pids)


@contextlib.asynccontextmanager
async def running_server(source: Path = PROJECT, **settings: str) -> AsyncIterator[Running]:
    """A fresh server with its own engines, one API and one worker, as in production but for the rate limits.

    Of the project in the folder `source`, so that two versions of it can be measured in turns.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sb") as folder:
        Path(folder).chmod(0o711)  # noqa: ASYNC240 - nothing else runs yet
        data_dir = Path(folder) / "data"
        environ = os.environ | {
            "DATA_DIR": str(data_dir),
            "PORT": str(port),
            "RATE_LIMITS": "off",
            "LOG_FORMAT": "json",
            "PYTHONPATH": str(source),
            **settings,
        }
        command = [sys.executable, "-m", "server.cli", "up"]
        async with process_of(command, environ, source, f"http://127.0.0.1:{port}/health/ready") as pid:
            found = addresses(data_dir)
            if found is None:
                raise RuntimeError("the engines are not there")
            yield Running(f"http://127.0.0.1:{port}", *found, pid, data_dir)


@contextlib.asynccontextmanager
async def another(running: Running, verb: str, **settings: str) -> AsyncIterator[tuple[Running, str]]:
    """A further `api` or `worker` of a running server; the server with it, and the URL of an API."""
    port = free_port()
    environ = os.environ | {
        "DATA_DIR": str(running.data_dir),
        "PORT": str(port),
        "RATE_LIMITS": "off",
        "LOG_FORMAT": "json",
        **settings,
    }
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "server.cli", verb]
    ready = f"{url}/health/ready" if verb == "api" else None
    async with process_of(command, environ, PROJECT, ready) as pid:
        yield running._replace(more_pids=(*running.more_pids, pid)), url


@contextlib.asynccontextmanager
async def process_of(
    command: list[str], environ: dict[str, str], folder: Path, ready: str | None
) -> AsyncIterator[int]:
    """The id of a process, once the address `ready` answers 200; stopped at the end."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environ, cwd=folder, stdout=log, stderr=log)  # noqa: ASYNC220, S603 - our own commands
        try:
            if ready:
                await wait_until_ready(ready, process)
            yield process.pid
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(READY_WITHIN_S):
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(url)).status_code == 200:
                    return
            await asyncio.sleep(0.02)
    raise RuntimeError("the server did not start")


async def sign_up(client: httpx.AsyncClient) -> dict[str, Any]:
    """A new user, whom `client` stands for from now on."""
    body = {"name": "Bench", "email": f"{secrets.token_hex(8)}@example.org", "password": secrets.token_urlsafe()}
    answer = await client.post("/sign-up", json=body)
    answer.raise_for_status()
    user: dict[str, Any] = answer.json()
    client.headers["Authorization"] = f"Bearer {user['token']['token']}"
    return user
