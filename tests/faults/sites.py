"""An installation of an experiment's own: engines, APIs and workers that are stopped, killed and started."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
from arq.connections import ArqRedis

from server import jobs
from server.embedded import Engine, Engines
from server.sealing import keys as sealing_keys
from server.settings import Settings
from tests.jwts import ISSUER, SECRET
from tests.people import until
from tests.processes import Api, Process, environ_of

# Within which all that was acknowledged is sealed once everything is up again.
SEALED_WITHIN_S = 60


class NotHere(Exception):
    """The experiment can't be made on this machine."""


class Site:
    """Engines, an API and a worker that nobody else uses, and more of these where they are wanted."""

    def __init__(self, engines: Engines, settings: Settings, logs: Path) -> None:
        self.engines = engines
        self.settings = settings
        self.logs = logs
        self.api: Api | None = None
        self.worker: Process | None = None
        self.others: list[Process] = []
        self.more_environ: dict[str, str] = {}

    def environ(self, **more: str) -> dict[str, str]:
        ours = {"JWT_SECRET_KEY": SECRET.decode(), "JWT_ISSUER": ISSUER, "MAX_SOCKETS_PER_USER": "1000"}
        return environ_of(self.settings, **ours | self.more_environ | more)

    async def with_api(self) -> Api:
        if self.api is None or self.api.process.poll() is not None:
            self.api = Api(self.environ(), self.logs / "api.log", self.api.port if self.api else None)
            await self.api.wait_until_it_answers()
        return self.api

    async def with_worker(self) -> Process:
        if self.worker is None or self.worker.process.poll() is not None:
            self.worker = Process("worker", self.environ(), self.logs / "worker.log")
        return self.worker

    async def another_api(self, *, port: int | None = None, environ: dict[str, str] | None = None) -> Api:
        api = Api(self.environ(**environ or {}), self.logs / "another api.log", port)
        self.others.append(api)
        await api.wait_until_it_answers()
        return api

    async def another_worker(self, environ: dict[str, str] | None = None) -> Process:
        """One that has said that it is there."""
        worker = Process("worker", self.environ(**environ or {}), self.logs / "another worker.log")
        self.others.append(worker)
        async with self.redis() as redis:

            async def is_up() -> bool:
                assert worker.process.poll() is None, worker.log.read_text()
                return worker.process.pid in {alive.pid for alive in await jobs.live_workers(redis)}

            await until(is_up)
        return worker

    def without_worker(self) -> None:
        if self.worker is not None:
            self.worker.kill()

    def without_others(self) -> None:
        for process in self.others:
            process.kill()
        self.others.clear()

    async def whole(self) -> Api:
        """With API and worker running, and all that they need."""
        api = await self.with_api()
        await self.with_worker()
        await until(lambda: is_ready(api.url))
        return api

    async def postgres(self) -> asyncpg.Connection:
        return await asyncpg.connect(self.settings.database_url)

    def redis(self) -> ArqRedis:
        client: ArqRedis = ArqRedis.from_url(str(self.settings.redis_url))
        return client

    def stop(self) -> None:
        self.without_others()
        for process in (self.api, self.worker):
            if process is not None:
                process.kill()


async def is_ready(url: str) -> bool:
    return (await readiness(url))["status"] == "ready"


async def readiness(url: str) -> dict[str, str]:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        answer = await client.get("/health/ready")
        said: dict[str, str] = answer.json()
        assert answer.status_code == (200 if said["status"] == "ready" else 503), said
        assert (await client.get("/health/live")).status_code == 200
        return said


async def started(engine: Engine) -> None:
    engine.spawn()
    await asyncio.to_thread(engine.wait)


async def crash_postgres(engines: Engines) -> None:
    """ "Immediate" mode: as a crash, but that no process is left behind."""
    postmaster = engines.postgres.process
    assert postmaster
    postmaster.send_signal(signal.SIGQUIT)
    await asyncio.to_thread(postmaster.wait)


@contextmanager
def running_site(data_dir: Path | None = None) -> Iterator[Site]:
    """A site without processes yet, its tables made. In `data_dir`, or in a folder that goes with it."""
    # A short path, for the sockets, and one that the user who runs Postgres may enter.
    with tempfile.TemporaryDirectory(prefix="sb", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        with Engines(data_dir or Path(folder) / "data") as engines:
            site = Site(engines, settings_of(engines, Path(folder)), Path(folder))
            environ = os.environ | site.environ()
            subprocess.run(
                [sys.executable, "-m", "server.cli", "migrate"],
                env=environ,
                check=True,
                timeout=60,
                capture_output=True,
            )
            try:
                yield site
            finally:
                site.stop()


def settings_of(engines: Engines, data_dir: Path) -> Settings:
    worker_keys = sealing_keys.new_encryption_pair()
    return Settings(
        database_url=engines.database_url,
        redis_url=engines.redis_url,
        data_dir=data_dir,
        public_url="https://posts.example",
        worker_public_key=worker_keys.public,
        worker_private_keys=(worker_keys.private,),
        request_mac_key=bytes(32),
        rate_limits=False,
        log_level="warning",
    )
