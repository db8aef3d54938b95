"""One Postgres, one Valkey, one API and one worker for each test process, all of them real.

Tests make users and groups of their own, so they share these without noticing one another. What kills,
restarts or empties an engine starts its own.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from server import database, jobs
from server.embedded import Engines
from server.sealing import keys as sealing_keys
from server.sealing.argon2id import CHEAPEST
from server.sealing.identity import wrap_identity
from server.sealing.passwords import hash_password
from server.serving import make_server
from server.settings import Settings
from tasks.worker import open_worker
from tests.jwts import ISSUER, SECRET
from tests.people import Person, person


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def pytest_xdist_auto_num_workers() -> int:
    """Two for each core, for tests often wait: for a process to start or stop, for what was killed to be noticed."""
    return 2 * (os.cpu_count() or 1)


_COSTLY = (hash_password.__defaults__, wrap_identity.__defaults__)


@pytest.fixture(scope="session", autouse=True)
def cheap_argon2() -> None:
    """Passwords and passphrases of this process cost little: a thousand people of some 100 to 400 ms each sign up."""
    hash_password.__defaults__ = wrap_identity.__defaults__ = (CHEAPEST,)


@pytest.fixture
def costly_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the cost itself: as in earnest."""
    monkeypatch.setattr(hash_password, "__defaults__", _COSTLY[0])
    monkeypatch.setattr(wrap_identity, "__defaults__", _COSTLY[1])


@pytest.fixture(scope="session")
def data_dir() -> Iterator[Path]:
    # A short path, for the sockets, and one that the user who runs Postgres may enter.
    with tempfile.TemporaryDirectory(prefix="sb") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture(scope="session")
def engines(data_dir: Path) -> Iterator[Engines]:
    with Engines(data_dir / "data") as running:
        yield running


@pytest.fixture(scope="session")
def settings(data_dir: Path, engines: Engines) -> Settings:
    worker_keys = sealing_keys.new_encryption_pair()
    return Settings(
        database_url=engines.database_url,
        redis_url=engines.redis_url,
        data_dir=data_dir,
        public_url="https://posts.example",
        worker_public_key=worker_keys.public,
        worker_private_keys=(worker_keys.private,),
        request_mac_key=bytes(32),
        jwt_secret_key=SECRET,
        jwt_issuer=ISSUER,
        rate_limits=False,
        log_level="warning",
    )


@pytest.fixture(scope="session")
async def migrated(settings: Settings) -> None:
    await database.migrate(str(settings.database_url))


@pytest.fixture(scope="session")
async def server(settings: Settings, migrated: None) -> AsyncIterator[str]:
    """The address of a running API whose posts are sealed by a running worker."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(running_api(settings))
        await stack.enter_async_context(running_worker(settings))
        yield url


@asynccontextmanager
async def running_api(settings: Settings) -> AsyncIterator[str]:
    """An API on a free port, in this event loop, and so with this process' pool of database connections."""
    api = make_server(settings, host="127.0.0.1", port=0, loop="none")
    api.capture_signals = nullcontext  # type: ignore[assignment]  # pytest's own signal handling stays
    task = asyncio.create_task(api.serve())
    try:
        async with asyncio.timeout(20):
            while not api.started:
                if task.done():
                    task.result()
                await asyncio.sleep(0.01)
        host, port = api.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        api.should_exit = True
        await asyncio.wait_for(task, 20)


@asynccontextmanager
async def running_worker(settings: Settings) -> AsyncIterator[None]:
    """A worker in this event loop; it uses the pool that the API has opened."""
    redis = await jobs.create_pool(str(settings.redis_url))
    try:
        async with open_worker(settings, redis, handle_signals=False) as worker:
            task = asyncio.create_task(worker.main())
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await worker.release()
    finally:
        await redis.aclose(close_connection_pool=True)


@pytest.fixture
async def database_pool(settings: Settings, server: str) -> None:
    """For tests that call the domain: the API's own pool is open in this process."""


@pytest.fixture
async def alice(server: str) -> AsyncIterator[Person]:
    async with person(server, "Alice") as someone:
        yield someone


@pytest.fixture
async def bob(server: str) -> AsyncIterator[Person]:
    async with person(server, "Bob") as someone:
        yield someone


@pytest.fixture
async def carol(server: str) -> AsyncIterator[Person]:
    async with person(server, "Carol") as someone:
        yield someone


def lasting(name: str) -> Any:
    """A fixture for a module: somebody who is there for all of its tests, which saves signing up for each."""

    @pytest.fixture(scope="module")
    async def someone(server: str) -> AsyncIterator[Person]:
        async with person(server, name) as one:
            yield one

    return someone
