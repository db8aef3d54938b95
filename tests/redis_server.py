"""A Valkey of a test's own, which it may kill, freeze and start again."""

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from server.embedded import valkey_binary


class RedisServer:
    """Keeps nothing on disk, so a restart also is a loss of all data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{folder / 's'}"

    def start(self) -> None:
        options = {"port": "0", "unixsocket": "s", "save": "", "dir": str(self._folder), "logfile": "log"}
        command = [str(valkey_binary()), *(word for name, value in options.items() for word in (f"--{name}", value))]
        self._process = subprocess.Popen(command, cwd=self._folder)
        deadline = time.monotonic() + 10
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
                else:
                    return

    def send(self, signum: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(signum)

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()
        (self._folder / "s").unlink(missing_ok=True)


@contextlib.contextmanager
def running_redis() -> Iterator[RedisServer]:
    # A folder with a short path: that of a Unix socket must stay below some hundred bytes.
    folder = Path(tempfile.mkdtemp(prefix="sb"))
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
