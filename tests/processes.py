"""The server's own processes, started as a supervisor starts them, for tests that need several, or that kill them."""

import asyncio
import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from server.settings import Settings
from tests.people import PATIENCE_S


class Process:
    """`secureblogs` with one of its verbs."""

    def __init__(self, verb: str, environ: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server.cli", verb], env=os.environ | environ, stdout=file, stderr=file
            )

    def send(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    async def wait(self, within_s: float) -> int:
        return await asyncio.to_thread(self.process.wait, within_s)

    def kill(self) -> None:
        """kill -9, if it still runs."""
        self.process.kill()
        self.process.wait()


def environ_of(settings: Settings, **more: str) -> dict[str, str]:
    """What tells a process of these settings, as far as tests set them."""
    return {
        "DATABASE_URL": str(settings.database_url),
        "REDIS_URL": str(settings.redis_url),
        "DATA_DIR": str(settings.data_dir),
        "PUBLIC_URL": settings.public_url,
        "WORKER_PUBLIC_KEY": as_text(settings.worker_public_key),
        "WORKER_PRIVATE_KEYS": ",".join(map(as_text, settings.worker_private_keys)),
        "REQUEST_MAC_KEY": as_text(settings.request_mac_key),
        "RATE_LIMITS": "off",
    } | more


def as_text(key: bytes | None) -> str:
    return base64.b64encode(key or b"").decode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Api(Process):
    """An API on a port of its own, which stays the same when it is started again by another of these."""

    def __init__(self, environ: dict[str, str], log: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__("api", environ | {"PORT": str(self.port)}, log)

    async def wait_until_it_answers(self) -> None:
        async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(base_url=self.url) as client:
            while True:
                assert self.process.poll() is None, self.log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/health/live")).status_code == 200:
                        return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running_api_process(environ: dict[str, str], log: Path) -> AsyncIterator[Api]:
    api = Api(environ, log)
    try:
        await api.wait_until_it_answers()
        yield api
    finally:
        api.kill()
