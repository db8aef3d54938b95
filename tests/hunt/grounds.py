"""The installation that is hunted in: every process at its most talkative, and all that it says kept."""

import asyncio
import base64
import contextlib
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
from redis.asyncio import Redis

from server.embedded import Engines
from server.sealing import keys as sealing_keys
from server.settings import Settings
from tests.hunt.canaries import Canaries
from tests.jwts import ISSUER, SECRET
from tests.processes import Api, Process, as_text

SAMPLE_EVERY_S = 0.2
# Of files that grow while they are read, and of devices that never end.
MAX_SAMPLED_BYTES = 32 * 1024 * 1024

# Over what the command line of the embedded Postgres says, and for whoever connects from then on.
LOUD = {
    "log_statement": "'all'",
    "log_min_duration_statement": "0",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "log_error_verbosity": "'verbose'",
    "log_min_error_statement": "'debug5'",
    "log_min_messages": "'debug1'",
    "log_temp_files": "0",
}


class Grounds:
    """Engines, two APIs (one logs JSON, one for people), a worker, and what was seen of them."""

    def __init__(self, engines: Engines, settings: Settings, folder: Path, environ: dict[str, str]) -> None:
        self.engines = engines
        self.settings = settings
        self.folder = folder
        self.environ = environ
        self.begun = time.time()
        self.apis: list[Api] = []
        self.worker: Process | None = None
        self.monitored = bytearray()
        self.answers: list[bytes] = []
        self.errors: list[bytes] = []
        self.sampler = Sampler(folder / "tmp")

    @property
    def urls(self) -> list[str]:
        return [api.url for api in self.apis]

    @property
    def metrics_token(self) -> str:
        return str(self.settings.metrics_token)

    async def start_worker(self) -> None:
        self.stop_worker()
        self.worker = Process("worker", self.environ, self.folder / "logs" / "worker.log")

    def stop_worker(self) -> None:
        if self.worker is not None:
            self.worker.kill()

    async def postgres(self) -> asyncpg.Connection:
        return await asyncpg.connect(self.settings.database_url)

    def redis(self) -> Redis:
        client: Redis = Redis.from_url(str(self.settings.redis_url))
        return client


@asynccontextmanager
async def running_grounds(canaries: Canaries) -> AsyncIterator[Grounds]:
    """All of it, in a folder that goes with it."""
    with new_folder() as folder, Engines(folder / "data") as engines:
        settings, environ = settings_of(engines, folder, canaries)
        grounds = Grounds(engines, settings, folder, environ)
        await make_loud(grounds)
        migrate = [sys.executable, "-m", "server.cli", "migrate"]
        await asyncio.to_thread(subprocess.run, migrate, env=os.environ | environ, check=True, capture_output=True)
        with grounds.sampler:
            try:
                async with monitoring(grounds):
                    await start_all(grounds)
                    yield grounds
            finally:
                grounds.stop_worker()
                for api in grounds.apis:
                    api.kill()


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """Of a short path, for the sockets, and one that the user who runs Postgres may enter."""
    with tempfile.TemporaryDirectory(prefix="sbh", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        for part in ("tmp", "logs"):
            (folder / part).mkdir()
        yield folder


async def start_all(grounds: Grounds) -> None:
    for form in ("json", "console"):
        log = grounds.folder / "logs" / f"api {form}.log"
        grounds.apis.append(Api(grounds.environ | {"LOG_FORMAT": form}, log))
    for api in grounds.apis:
        await api.wait_until_it_answers()
    await grounds.start_worker()


def settings_of(engines: Engines, folder: Path, canaries: Canaries) -> tuple[Settings, dict[str, str]]:
    """Settings, and an environment that has secrets by their files alone. The files' folder is no place to search."""
    worker_keys = sealing_keys.new_encryption_pair()
    settings = Settings(
        database_url=engines.database_url,
        redis_url=engines.redis_url,
        data_dir=folder / "api",
        public_url="https://posts.example",
        worker_public_key=worker_keys.public,
        worker_private_keys=(worker_keys.private,),
        request_mac_key=secrets.token_bytes(32),
        jwt_secret_key=SECRET,
        jwt_issuer=ISSUER,
        metrics_token=secrets.token_urlsafe(32),
    )
    keys = {
        "WORKER_PRIVATE_KEYS": as_text(worker_keys.private),
        "REQUEST_MAC_KEY": as_text(settings.request_mac_key),
        "JWT_SECRET_KEY": SECRET.decode(),
        "METRICS_TOKEN": str(settings.metrics_token),
    }
    (folder / "api").mkdir()
    (folder / "secrets").mkdir(mode=0o700)
    environ: dict[str, str] = {}
    for name, text in keys.items():
        path = folder / "secrets" / name
        path.write_text(text)
        environ |= {name: "", f"{name}_FILE": str(path)}
        canaries.secret("key of the server", text)
    return settings, environ | {
        "DATABASE_URL": engines.database_url,
        "REDIS_URL": engines.redis_url,
        "DATA_DIR": str(settings.data_dir),
        "PUBLIC_URL": settings.public_url,
        "WORKER_PUBLIC_KEY": base64.b64encode(worker_keys.public).decode(),
        "JWT_ISSUER": ISSUER,
        "RATE_LIMITS": "on",
        "LOGIN_RATE_PER_MINUTE": "100000",
        "RATE_PER_MINUTE": "100000",
        "QUOTA_REQUESTS": "1000000",
        "QUOTA_POSTS": "100000",
        "QUOTA_UPLOAD_BYTES": "1000000000",
        "MAX_ATTACHMENT_BYTES": "1000000",
        "LOG_LEVEL": "debug",
        "TMPDIR": str(folder / "tmp"),
    }


async def make_loud(grounds: Grounds) -> None:
    connection = await grounds.postgres()
    try:
        for name, value in LOUD.items():
            await connection.execute(f"ALTER DATABASE secureblogs SET {name} = {value}")
    finally:
        await connection.close()


# ------------------------------------------------------------------------------------------------ MONITOR


@asynccontextmanager
async def monitoring(grounds: Grounds) -> AsyncIterator[None]:
    """All that Valkey is told, from now on and whenever it is back."""
    is_on = asyncio.Event()

    async def listen() -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_unix_connection(grounds.engines.valkey.socket_path)
                writer.write(b"MONITOR\r\n")
                while told := await reader.read(1 << 16):
                    grounds.monitored += told
                    is_on.set()
                writer.close()
            await asyncio.sleep(0.01)

    task = asyncio.create_task(listen())
    try:
        await asyncio.wait_for(is_on.wait(), 20)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# ----------------------------------------------------------------------------------------------- sampling


class Sampler:
    """Command lines and environments of all processes below this one, the files that they hold open, and temporary
    files: each several times a second, for they may be short-lived."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self.rounds = 0
        self.processes: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self.sample()

    def sample(self) -> None:
        for process in psutil.Process().children(recursive=True):
            proc = Path("/proc") / str(process.pid)
            for name in ("cmdline", "environ"):
                self._keep(self.processes, proc / name)
            with contextlib.suppress(OSError):
                for held in (proc / "fd").iterdir():
                    if self._is_temporary(held):
                        self._keep(self.files, held)
        for path in self.temporary.rglob("*"):
            if path.is_file():
                self._keep(self.files, path)
        self.rounds += 1

    def _is_temporary(self, held: Path) -> bool:
        """A file that has no name any more, or one in the folder for such."""
        with contextlib.suppress(OSError):
            target = str(held.readlink())
            return target.startswith("/") and ("(deleted)" in target or target.startswith(str(self.temporary)))
        return False

    def _keep(self, kept: dict[str, bytes], path: Path) -> None:
        with contextlib.suppress(OSError), path.open("rb") as file:
            content = file.read(MAX_SAMPLED_BYTES)
            kept.setdefault(hashlib.sha256(content).hexdigest(), content)


def run_to_be_seen(word: str) -> "contextlib.AbstractContextManager[subprocess.Popen[bytes]]":
    """A process that has the word in its arguments and its environment."""
    command = [shutil.which("sleep") or "sleep", "60"]
    return killed(
        subprocess.Popen(["/bin/sh", "-c", f'"$0" 60 & wait # {word}', command[0]], env=os.environ | {"PLANTED": word})
    )


@contextlib.contextmanager
def killed(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    try:
        yield process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()
