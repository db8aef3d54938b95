"""`secureblogs up` as people run it: a process in a session of its own, told by signals."""

import base64
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.embedded import Engines
from server.settings import FIELDS, Settings, SettingsError, load
from server.supervisor import STOP_WITHIN_S, pause
from server.up import Sources, at_running_address, check_port, directions, environ_for, with_secrets, write_all_secrets

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parent.parent
UP = [sys.executable, "-P", "-m", "server.cli", "up"]
READY_WITHIN_S = 60.0
STOPPED_WITHIN_S = 20.0


class Run:
    """One run of `secureblogs up`."""

    def __init__(
        self,
        place: Path,
        data_dir: Path,
        port: int | None = None,
        begin_with: Callable[[], None] | None = None,
        **environ: str,
    ) -> None:
        self.port = port or free_port()
        self.log = place / f"{self.port}.log"
        self.data_dir = data_dir
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                UP,
                cwd=ROOT,
                env=clean_environ() | {"PORT": str(self.port), "DATA_DIR": str(data_dir)} | environ,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                preexec_fn=begin_with,  # noqa: PLW1509 - it sets two signals, and the tests hold no locks
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_until_ready(self) -> None:
        wait_until(lambda: "ready at" in self.said or self.process.poll() is not None, READY_WITHIN_S, self)
        assert self.process.poll() is None, self.said

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def family(self) -> list[psutil.Process]:
        """All that this run has started and that runs."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def child(self, name: str) -> psutil.Process | None:
        """The child that runs this verb, or this engine."""
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if words and (words[-1] == name or Path(words[0]).name == name):
                    return process
        return None

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """As Ctrl-C does: to the whole group. The exit status; nothing that it started may be left."""
        family = self.family()
        os.killpg(self.process.pid, number)
        status = self.process.wait(STOPPED_WITHIN_S)
        assert [process for process in family if is_alive(process)] == []
        return status


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def clean_environ() -> dict[str, str]:
    """Ours, without settings: those of whoever runs the tests are no part of them."""
    known = {field.variable for field in FIELDS}
    return {name: text for name, text in os.environ.items() if name.removesuffix("_FILE") not in known}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], within_s: float, run: Run) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, run.said
        time.sleep(0.05)


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sb"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(data_dir: Path | None = None, **options: Any) -> Run:
        runs.append(Run(place, data_dir or place / "data", **options))
        return runs[-1]

    yield begin
    for run in runs:
        family = run.family()
        run.process.kill()
        run.process.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def secrets_of(data_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data_dir / "secrets").iterdir()}


def environ_of(process: psutil.Process | None) -> dict[str, str]:
    assert process
    return process.environ()


def test_ctrl_c_stops_everything_and_the_next_run_goes_on_with_the_same_secrets(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_until_ready()
    assert run.is_ready()
    check_children(run)
    # By which `dashboard-link` and its like find it.
    beside = at_running_address(load({"DATA_DIR": str(run.data_dir)}), {})
    assert beside.public_url == f"http://127.0.0.1:{run.port}"
    before = secrets_of(run.data_dir)
    assert set(before) == {"worker_private_keys", "request_mac_key"}
    assert stat.S_IMODE((run.data_dir / "secrets").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (run.data_dir / "secrets").iterdir()} == {0o600}
    assert run.stop(signal.SIGINT) == 0
    assert at_running_address(beside, {}) is beside

    # As under nohup, and from a script's background: there SIGHUP is no reason to stop, but SIGINT is.
    run = start(begin_with=ignore_signals)
    run.wait_until_ready()
    assert secrets_of(run.data_dir) == before
    run.process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(1)
    assert run.is_ready()
    assert run.stop(signal.SIGINT) == 0


def ignore_signals() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def check_children(run: Run) -> None:
    """No child gets a secret that it has no need of, nor a signal that is sent to the terminal's foreground."""
    assert run.process.pid not in {os.getpgid(process.pid) for process in run.family()}
    api, worker = environ_of(run.child("api")), environ_of(run.child("worker"))
    secret = {field.variable for field in FIELDS if field.secret}
    assert secret & set(api) == {"DATABASE_URL", "REDIS_URL", "WORKER_PUBLIC_KEY", "REQUEST_MAC_KEY"}
    assert secret & set(worker) == {"DATABASE_URL", "REDIS_URL", "WORKER_PRIVATE_KEYS"}


def test_what_dies_is_started_again_and_a_killed_run_leaves_nothing_in_the_way(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_until_ready()
    for name in ("api", "worker", "valkey-server", "postgres"):
        dying = run.child(name)
        assert dying
        dying.kill()
        wait_until(lambda: (child := run.child(name)) is not None and child != dying, 15, run)  # noqa: B023 - at once
    wait_until(run.is_ready, READY_WITHIN_S, run)

    family = run.family()
    assert len(family) > 4
    run.process.kill()
    run.process.wait()
    # At once, while the last of them are still on their way out.
    run = start(port=run.port)
    run.wait_until_ready()
    wait_until(lambda: not any(is_alive(process) for process in family), STOPPED_WITHIN_S, run)
    assert run.is_ready()

    # A second signal does not wait for a child that hangs.
    api, worker = run.child("api"), run.child("worker")
    assert api
    assert worker
    api.suspend()
    os.killpg(run.process.pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(worker), STOPPED_WITHIN_S, run)
    assert is_alive(api)
    began = time.monotonic()
    assert run.stop() == 0
    assert time.monotonic() - began < STOP_WITHIN_S / 2


def test_signal_during_the_start_leaves_nothing(start: Callable[..., Run], place: Path) -> None:
    for moment in ("lock", "postgres.new.*", "postgres", "secrets"):
        run = start(place / f"until.{moment[:9]}")
        wait_until(lambda: any(run.data_dir.glob(moment)), READY_WITHIN_S, run)  # noqa: B023 - at once
        assert run.stop() == 0


def refused(place: Path, **environ: str) -> str:
    """What `up` says when it refuses to start: one line, and at once."""
    done = subprocess.run(
        UP,
        cwd=ROOT,
        env=clean_environ() | {"PORT": str(free_port()), "DATA_DIR": str(place / "data")} | environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("secureblogs: ")
    return done.stderr.removeprefix("secureblogs: ").rstrip()


def test_port_in_use_is_told_before_anything_starts(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = f"can't listen on 127.0.0.1 port {port}: Address already in use; set PORT or HOST to another"
        assert refused(place, PORT=str(port)) == told
    assert not (place / "data").exists()


def test_port_that_becomes_free_in_a_moment_is_waited_for() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    leaving = threading.Timer(0.5, taken.close)
    leaving.start()
    check_port("127.0.0.1", port)
    assert taken.fileno() == -1
    leaving.join()


def test_address_that_is_not_ours_is_told(place: Path) -> None:
    assert refused(place, HOST="192.0.2.1").startswith("can't listen on 192.0.2.1 port ")


def test_unwritable_folder_is_told_before_anything_starts(place: Path) -> None:
    (place / "data").touch()
    assert refused(place) == f"{place}/data is not a folder; set DATA_DIR to another place"


def test_second_run_on_the_same_folder_is_told(place: Path) -> None:
    with Engines(place / "data"):
        told = f"{place}/data is in use by process {os.getpid()}; set DATA_DIR to another place"
        assert refused(place) == told


def test_bad_setting_is_told_before_anything_starts(place: Path) -> None:
    assert refused(place, LOG_LEVEL="loud").startswith("LOG_LEVEL: must be one of")
    assert refused(place, JWT_ISSUER="https://issuer.example").startswith("JWT_SECRET_KEY: not set")
    assert not (place / "data").exists()


def test_with_servers_of_ones_own_nothing_is_embedded_and_nothing_generated(
    start: Callable[..., Run], place: Path
) -> None:
    with Engines(place / "own") as own:
        addresses = {"DATABASE_URL": own.database_url, "REDIS_URL": own.redis_url}
        told = "WORKER_PUBLIC_KEY: not set; `secureblogs secrets FOLDER` makes one"
        assert refused(place, **addresses) == told
        write_all_secrets(place / "secrets")
        files = {f"{path.name.upper()}_FILE": str(path) for path in (place / "secrets").iterdir()}
        other = base64.b64encode(bytes(32)).decode()
        mixed = {name: path for name, path in files.items() if name != "WORKER_PUBLIC_KEY_FILE"}
        told = "WORKER_PUBLIC_KEY: is not the other half of the first of WORKER_PRIVATE_KEYS"
        assert refused(place, **addresses, **mixed, WORKER_PUBLIC_KEY=other) == told

        run = start(**addresses, **files)
        run.wait_until_ready()
        assert {process.cmdline()[-1] for process in run.family()} == {"api", "worker"}
        assert set(files) & set(environ_of(run.child("api"))) == {"WORKER_PUBLIC_KEY_FILE", "REQUEST_MAC_KEY_FILE"}
        assert set(files) & set(environ_of(run.child("worker"))) == {"WORKER_PRIVATE_KEYS_FILE"}
        # No engine and no secret; there is only room for files, as no other place was named.
        assert [path.name for path in run.data_dir.iterdir()] == ["objects"]
        assert run.stop() == 0
        assert own.postgres.running
        assert own.valkey.running


def test_postgres_that_does_not_answer_is_told(place: Path) -> None:
    write_all_secrets(place / "secrets")
    files = {f"{path.name.upper()}_FILE": str(path) for path in (place / "secrets").iterdir()}
    done = subprocess.run(
        UP,
        cwd=ROOT,
        env=clean_environ()
        | {"PORT": str(free_port()), "DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1"}
        | files,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("secureblogs: Postgres does not answer (")
    assert second == "secureblogs: the migrations failed; see above"


def test_made_secrets_stay_and_fit(place: Path) -> None:
    first = {path: path.read_bytes() for path in write_all_secrets(place / "secrets")}
    assert {path: path.read_bytes() for path in write_all_secrets(place / "secrets")} == first
    settings = load({f"{path.name.upper()}_FILE": str(path) for path in first})
    assert settings.worker_public_key
    assert settings.worker_private_keys
    assert settings.request_mac_key
    assert {stat.S_IMODE(path.stat().st_mode) for path in first} == {0o600}


def test_damaged_secret_is_told(place: Path) -> None:
    private, _, _ = write_all_secrets(place / "secrets")
    private.write_text("AAAA\n")
    with pytest.raises(SettingsError, match=r"^WORKER_PRIVATE_KEYS: must be 32 bytes in base64$"):
        write_all_secrets(place / "secrets")


def test_half_a_pair_is_told(place: Path) -> None:
    public = base64.b64encode(bytes(32)).decode()
    told = "WORKER_PRIVATE_KEYS: not set, but WORKER_PUBLIC_KEY is; set both or neither"
    assert refused(place, WORKER_PUBLIC_KEY=public) == told


def test_secret_of_an_issuer_is_for_the_api_alone(place: Path) -> None:
    secret = "an issuer's secret of forty-two characters"
    settings = with_secrets(Settings(data_dir=place, database_url="postgresql://db", redis_url="redis://cache"))
    for environ in ({"JWT_SECRET_KEY": secret}, {"JWT_SECRET_KEY_FILE": "secret"}):
        assert environ_for("api", settings, environ).items() >= environ.items()
        assert not environ_for("api", settings, {}).keys() & environ.keys()
        for other in ("worker", "migrate"):
            assert not environ_for(other, settings, environ).keys() & environ.keys()


def test_restarts_come_at_once_and_then_ever_more_slowly() -> None:
    pauses = [pause(failures) for failures in range(1, 12)]
    assert pauses[:3] == [0.0, 0.5, 1.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 5.0
    assert pause(10**6) == 5.0


def test_change_of_a_source_is_noticed_once(tmp_path: Path) -> None:
    source = tmp_path / "room" / "file.py"
    source.parent.mkdir()
    source.write_text("a = 1\n")
    sources = Sources(tmp_path)
    assert not sources.changed()
    os.utime(source, ns=(1, 1))
    assert sources.changed()
    assert not sources.changed()
    source.unlink()
    assert sources.changed()
    (tmp_path / "notes.txt").touch()
    assert not sources.changed()


def test_directions_name_the_port_where_it_is_not_the_usual_one() -> None:
    assert "SECUREBLOGS_SERVER=http://127.0.0.1:8001 " in directions(load({"PORT": "8001"}))
    assert "SECUREBLOGS_SERVER" not in directions(load({}))
    assert "https://posts.example/schema" in directions(load({"PUBLIC_URL": "https://posts.example"}))
