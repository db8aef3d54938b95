"""The engines as real processes: started, stopped, killed, orphaned, and run by others than us."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
import redis

from server import embedded
from server.embedded import EmbeddedError, Engines

ROOT = Path(__file__).parent.parent
LINUX = sys.platform == "linux"
AS_ROOT = os.geteuid() == 0
NOBODY = 65534
WITHIN_S = 20.0


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path that others may pass through. Whatever runs on it afterwards is stopped, and was no test's wish."""
    folder = Path(tempfile.mkdtemp(prefix="sb"))
    folder.chmod(0o711)
    yield folder
    left = processes_on(folder)
    for process in left:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
    assert left == []


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A data folder with a cluster in it, to copy from: that is quicker than making one."""
    with tempfile.TemporaryDirectory(prefix="sb") as folder:
        Path(folder).chmod(0o711)
        with Engines(Path(folder) / "data"):
            pass
        yield Path(folder) / "data"


@pytest.fixture
def prepared(place: Path, made: Path) -> Path:
    subprocess.run(["cp", "-a", made, place / "data"], check=True)
    return place / "data"


def processes_on(folder: Path) -> list[psutil.Process]:
    """Processes that name the folder, with their children: a Postgres backend doesn't name it itself."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or []):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [process, *process.children(recursive=True)]
    return found


def wait_until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def query(url: str, sql: str) -> Any:
    async def ask() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(ask())


def cache(engines: Engines) -> Any:
    return redis.Redis.from_url(engines.redis_url)


def start_script(code: str, data_dir: Path, **environ: str) -> "subprocess.Popen[str]":
    """A Python process that is ours to kill. It says what it has to say on its standard output."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(data_dir)],
        cwd=ROOT,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


HOLD = """
import sys, time
from pathlib import Path
from server.embedded import Engines
with Engines(Path(sys.argv[1])) as engines:
    print("started", flush=True)
    time.sleep(60)
"""


def test_data_survive_stop_and_start(place: Path) -> None:
    with Engines(place / "data") as engines:
        query(engines.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        cache(engines).set("kept", "42")
    assert processes_on(place) == []
    with Engines(place / "data") as engines:
        assert query(engines.database_url, "SELECT answer FROM kept") == 42
        assert cache(engines).get("kept") == b"42"


def test_engines_are_what_the_server_needs(engines: Engines) -> None:
    assert query(engines.database_url, "SHOW server_version_num") >= "180000"
    assert query(engines.database_url, "SELECT current_database()") == "secureblogs"
    assert query(engines.database_url, "SHOW server_encoding") == "UTF8"
    assert query(engines.database_url, "SHOW fsync") == "on"
    config = cache(engines).config_get("*")
    assert (config["appendonly"], config["maxmemory-policy"]) == ("yes", "noeviction")


def test_acknowledged_writes_survive_kill_of_each_engine(prepared: Path) -> None:
    with Engines(prepared) as engines:
        for number in range(3):
            query(engines.database_url, "CREATE TABLE IF NOT EXISTS t (n int)")
            query(engines.database_url, f"INSERT INTO t VALUES ({number})")
            cache(engines).rpush("t", number)
            engines.postgres.kill()
            engines.valkey.kill()
            assert not engines.postgres.running
            engines.postgres.start()
            engines.valkey.start()
        assert query(engines.database_url, "SELECT array_agg(n ORDER BY n) FROM t") == [0, 1, 2]
        assert cache(engines).lrange("t", 0, -1) == [b"0", b"1", b"2"]


def test_one_engine_stops_and_starts_without_the_other(prepared: Path) -> None:
    with Engines(prepared) as engines:
        engines.valkey.stop()
        assert not engines.valkey.running
        assert query(engines.database_url, "SELECT 1") == 1
        engines.valkey.start()
        assert cache(engines).ping()


WRITE = """
import asyncio, sys
from pathlib import Path
from server.embedded import Engines

pytestmark = pytest.mark.thorough

async def write(engines):
    import asyncpg, redis
    cache = redis.Redis.from_url(engines.redis_url)
    connection = await asyncpg.connect(engines.database_url)
    await connection.execute("CREATE TABLE IF NOT EXISTS t (n int PRIMARY KEY)")
    number = await connection.fetchval("SELECT coalesce(max(n), 0) FROM t")
    while True:
        number += 1
        await connection.execute("INSERT INTO t VALUES ($1)", number)
        cache.set("n", number)
        print(number, flush=True)

engines = Engines(Path(sys.argv[1]))
engines.start()
asyncio.run(write(engines))
"""


def test_acknowledged_writes_survive_kill_of_the_parent_at_any_moment(place: Path) -> None:
    acknowledged = 0
    # From the first instruction of the first start, through the making of the cluster, to the midst of writing.
    for moment_s in (0.1, 0.3, 0.5, 0.8, 1.2):
        script = start_script(WRITE, place / "data")
        with contextlib.suppress(subprocess.TimeoutExpired):
            script.wait(moment_s)
        script.kill()
        said, _ = script.communicate(timeout=WITHIN_S)
        # The last line may be cut.
        acknowledged = max([acknowledged, *map(int, said.split("\n")[:-1])])
    with Engines(place / "data") as engines:
        if acknowledged:
            assert query(engines.database_url, "SELECT count(*) = max(n) FROM t")
            assert query(engines.database_url, "SELECT max(n) FROM t") >= acknowledged
            assert int(cache(engines).get("n") or 0) >= acknowledged
    assert list(place.glob("data/postgres.new.*")) == []


@pytest.mark.skipif(not LINUX, reason="elsewhere orphans are stopped by the next run")
def test_engines_stop_when_their_parent_is_killed(prepared: Path) -> None:
    script = start_script(HOLD, prepared)
    assert script.stdout
    assert script.stdout.readline() == "started\n"
    assert len(processes_on(prepared)) > 3
    script.kill()
    script.communicate()
    wait_until(lambda: processes_on(prepared) == [])


def test_orphans_of_an_earlier_run_are_stopped(prepared: Path) -> None:
    script = start_script("from server import embedded\nembedded.PR_SET_PDEATHSIG = 0\n" + HOLD, prepared)
    assert script.stdout
    assert script.stdout.readline() == "started\n"
    engines = Engines(prepared)
    with pytest.raises(EmbeddedError, match=f"{prepared} is in use by process {script.pid};"):
        engines.start()
    script.kill()
    script.communicate()
    orphans = processes_on(prepared)
    assert {process.name() for process in orphans} == {"postgres", "valkey-server"}
    with engines:
        assert query(engines.database_url, "SELECT 1") == 1
        assert not any(process.is_running() for process in orphans)


def test_backends_that_outlive_their_postmaster_are_waited_for(prepared: Path) -> None:
    with Engines(prepared) as engines:
        assert engines.postgres.process
        backend = psutil.Process(engines.postgres.process.pid).children()[0]
        backend.suspend()
        engines.postgres.kill()
        engines.postgres.spawn()
        wait_until(lambda: not engines.postgres.running)
        backend.resume()
        engines.postgres.wait()
        assert query(engines.database_url, "SELECT 1") == 1


@pytest.mark.parametrize("name", ["postgres/postmaster.pid", "run/.s.PGSQL.5432.lock"])
def test_pid_file_that_names_a_stranger_is_not_believed(prepared: Path, name: str) -> None:
    folder = prepared / "postgres"
    owner = folder.stat()
    # What a machine leaves that lost its power: a pid that another process of the same user has by now.
    stranger = subprocess.Popen(["sleep", "60"], user=owner.st_uid if AS_ROOT else None, cwd="/")
    try:
        pid_file = prepared / name
        pid_file.write_text(f"{stranger.pid}\n{folder}\n1700000000\n5432\n/tmp\n\n 1234567  65536\nready   \n")
        pid_file.chmod(0o600)
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        with Engines(prepared) as engines:
            assert query(engines.database_url, "SELECT 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_half_made_cluster_is_made_anew(place: Path) -> None:
    half = place / "data" / "postgres.new.killed"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with Engines(place / "data") as engines:
        assert query(engines.database_url, "SELECT 1") == 1
    assert not half.exists()


def test_second_run_on_the_same_folder_is_refused_and_the_first_goes_on(engines: Engines) -> None:
    with pytest.raises(EmbeddedError) as caught:
        Engines(engines.data_dir).start()
    assert str(caught.value) == f"{engines.data_dir} is in use by process {os.getpid()}; set DATA_DIR to another place"
    assert query(engines.database_url, "SELECT 1") == 1


@pytest.mark.parametrize("name", ["n" * 120, "a folder, 100% odd & ?host=x"])
def test_sockets_lie_elsewhere_where_the_path_does_not_fit(prepared: Path, name: str) -> None:
    data_dir = prepared.rename(prepared.with_name(name))
    with Engines(data_dir) as engines:
        elsewhere = (data_dir / "run").readlink()
        assert elsewhere.parent == Path(tempfile.gettempdir())
        assert elsewhere.stat().st_mode & 0o007 == 0
        assert query(engines.database_url, "SELECT 1") == 1
        assert cache(engines).ping()
        assert embedded.addresses(data_dir) == (engines.database_url, engines.redis_url)
    assert not elsewhere.exists()
    assert not (data_dir / "run").is_symlink()


def test_socket_folder_of_a_killed_run_is_taken_away(prepared: Path) -> None:
    data_dir = prepared.rename(prepared.with_name("n" * 120))
    script = start_script(HOLD, data_dir)
    assert script.stdout
    assert script.stdout.readline() == "started\n"
    before = (data_dir / "run").readlink()
    script.kill()
    script.communicate()
    with Engines(data_dir):
        assert not before.exists()


@pytest.mark.skipif(not AS_ROOT, reason="only root can make folders of others")
def test_link_to_a_folder_of_others_is_not_followed(prepared: Path) -> None:
    data_dir = prepared.rename(prepared.with_name("n" * 120))
    foreign = prepared.with_name("foreign")
    foreign.mkdir()
    (foreign / "file").touch()
    os.chown(foreign, NOBODY, NOBODY)
    shutil.rmtree(data_dir / "run")
    (data_dir / "run").symlink_to(foreign)
    with Engines(data_dir) as engines:
        assert engines.postgres.run_folder != foreign
    assert (foreign / "file").exists()


def test_nobody_else_can_reach_the_engines(engines: Engines) -> None:
    for engine in engines.all:
        assert engine.process
        assert psutil.Process(engine.process.pid).net_connections("inet") == []
        assert engine.folder.stat().st_mode & 0o077 == 0
        assert engine.log_path.stat().st_mode & 0o077 == 0
    assert engines.data_dir.stat().st_mode & 0o067 == 0
    assert engines.postgres.run_folder.stat().st_mode & 0o007 == 0


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
def test_engines_get_nothing_of_our_environment(engines: Engines) -> None:
    assert "HOME" in os.environ
    for engine in engines.all:
        assert engine.process
        environ = Path(f"/proc/{engine.process.pid}/environ").read_bytes()
        names = {entry.split(b"=")[0] for entry in environ.split(b"\0") if b"=" in entry}
        assert names <= {b"PATH", b"LC_ALL", b"TZ"}


def test_environment_does_not_lead_a_client_astray(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGPORT", "PGHOST", "PGUSER", "PGDATABASE"):
        monkeypatch.setenv(name, "6543")
    assert query(engines.database_url, "SELECT current_database() || current_user") == "secureblogspostgres"


def test_errors_of_postgres_are_logged_without_the_rows(engines: Engines) -> None:
    query(engines.database_url, "CREATE TABLE twice AS SELECT unnest(ARRAY['Alice@Log', 'Alice@Log']) AS email")
    with pytest.raises(asyncpg.UniqueViolationError, match="could not create unique index"):
        query(engines.database_url, "CREATE UNIQUE INDEX ON twice (email)")
    query(engines.database_url, "DROP TABLE twice")
    logged = engines.postgres.log_path.read_text()
    assert "could not create unique index" in logged
    assert "Alice@Log" not in logged


def test_addresses_are_found_while_the_engines_run(place: Path, engines: Engines) -> None:
    assert embedded.addresses(place) is None
    assert embedded.addresses(engines.data_dir) == (engines.database_url, engines.redis_url)


def refusal(data_dir: Path) -> str:
    with pytest.raises(EmbeddedError) as caught:
        Engines(data_dir).start()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_file_in_the_way_is_told(place: Path) -> None:
    (place / "data").touch()
    assert refusal(place / "data") == f"{place}/data is not a folder; set DATA_DIR to another place"
    assert refusal(place / "data" / "below").startswith(f"{place}/data/below can't be made")


@pytest.mark.skipif(not LINUX, reason="/proc is where even root can't write")
def test_unwritable_folder_is_told() -> None:
    assert refusal(Path("/proc/data")).startswith("/proc/data can't be made")
    assert refusal(Path("/proc/self")).endswith("is not writable; set DATA_DIR to another place")


def test_data_of_another_postgres_are_told(prepared: Path) -> None:
    (prepared / "postgres" / "PG_VERSION").write_text("17\n")
    assert refusal(prepared) == f"{prepared}/postgres holds the data of Postgres 17, not the data of Postgres 18"
    (prepared / "postgres" / "PG_VERSION").unlink()
    assert refusal(prepared) == f"{prepared}/postgres holds something else, not the data of Postgres 18"


def test_engine_that_does_not_start_says_why(prepared: Path) -> None:
    (prepared / "postgres" / "postgresql.conf").write_text("nonsense = on\n")
    assert refusal(prepared).startswith("postgres does not start: ")
    # The other engine was stopped, and the folder given back.
    assert processes_on(prepared) == []
    assert refusal(prepared).startswith("postgres does not start: ")


def test_missing_wheel_is_told() -> None:
    with pytest.raises(EmbeddedError, match=r"^nosuchwheel is not installed; install secureblogs\[embedded\]"):
        embedded.wheel("nosuchwheel")


def test_big_log_is_put_aside(prepared: Path) -> None:
    log = prepared / "valkey.log"
    os.truncate(log, embedded.MAX_LOG_BYTES + 1)
    with Engines(prepared):
        assert log.stat().st_size < embedded.MAX_LOG_BYTES
    assert (prepared / "valkey.log.old").exists()


@pytest.mark.skipif(not AS_ROOT, reason="is about root")
def test_engines_of_root_run_as_another_user(engines: Engines) -> None:
    for engine in engines.all:
        assert engine.process
        assert psutil.Process(engine.process.pid).username() == "pgserver"
        assert psutil.Process(engine.process.pid).gids().effective == pwd.getpwnam("pgserver").pw_gid
    assert engines.data_dir.stat().st_uid == 0


@pytest.mark.skipif(not AS_ROOT or not LINUX, reason="is about root, and access control lists of Linux")
def test_folder_that_is_closed_to_others_opens_for_the_engines_alone(place: Path) -> None:
    home = place / "home"
    home.mkdir(mode=0o700)
    with Engines(home / "data") as engines:
        assert query(engines.database_url, "SELECT 1") == 1
    assert passes(home, "pgserver")
    assert not passes(home, "nobody")
    assert not lists(home, "pgserver")
    assert home.stat().st_mode & 0o007 == 0


@pytest.mark.skipif(not AS_ROOT or not LINUX, reason="is about root, and access control lists of Linux")
def test_passage_through_a_folder_changes_nothing_for_others(place: Path) -> None:
    uids = {name: pwd.getpwnam(name).pw_uid for name in ("daemon", "pgserver", "nobody")}
    home = place / "home"
    home.mkdir(mode=0o750)
    os.chown(home, 0, pwd.getpwnam("nobody").pw_gid)
    embedded.grant_passage(home, uids["daemon"])
    # A mask without x holds back what the entries say; a further passage must not let that through.
    os.chmod(home, 0o740)
    assert not passes(home, "daemon")
    assert not passes(home, "nobody")
    embedded.grant_passage(home, uids["pgserver"])
    assert [name for name in uids if passes(home, name)] == ["pgserver"]
    assert lists(home, "nobody")
    assert stat.S_IMODE(home.stat().st_mode) & 0o007 == 0


def passes(folder: Path, user: str) -> bool:
    return try_as(user, "-x", folder)


def lists(folder: Path, user: str) -> bool:
    return try_as(user, "-r", folder)


def try_as(user: str, test: str, folder: Path) -> bool:
    entry = pwd.getpwnam(user)
    return embedded.can(embedded.Account(user, entry.pw_uid, entry.pw_gid), test, folder)


@pytest.mark.skipif(not AS_ROOT, reason="is about root")
def test_closed_wheel_is_made_readable(place: Path) -> None:
    tree = place / "tree"
    (tree / "bin").mkdir(parents=True, mode=0o700)
    (tree / "bin" / "run").touch(0o700)
    (tree / "share").touch(0o600)
    tree.chmod(0o700)
    embedded.make_readable(tree)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tree, tree / "bin", tree / "bin" / "run", tree / "share")]
    assert modes == [0o755, 0o755, 0o755, 0o644]


@pytest.mark.skipif(not AS_ROOT, reason="only root can become another")
def test_ordinary_user_runs_them_as_itself_and_root_after_it_too(place: Path) -> None:
    place.chmod(0o777)

    def check() -> None:
        with Engines(place / "data") as engines:
            assert query(engines.database_url, "SELECT count(*) FROM pg_class") > 0
            assert cache(engines).set("kept", "1")
            assert all(psutil.Process(e.process.pid).uids().effective == NOBODY for e in engines.all if e.process)

    as_nobody(check)
    with Engines(place / "data") as engines:
        assert cache(engines).get("kept") == b"1"
        assert engines.postgres.account
        assert engines.postgres.account.uid == NOBODY


@pytest.mark.skipif(not AS_ROOT, reason="only root can become another")
def test_data_of_another_user_are_told(prepared: Path) -> None:
    (prepared).chmod(0o777)
    (prepared / "lock").chmod(0o666)

    def check() -> None:
        assert refusal(prepared) == (f"{prepared}/postgres belongs to user pgserver; run as the same user as before")

    as_nobody(check)


def as_nobody(check: Callable[[], None]) -> None:
    """Run a check in a child that is an ordinary user. It is forked, for that user may not be able to start Python."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            check()
            status = 0
        except BaseException as error:
            os.write(2, f"as nobody: {error!r}\n".encode())
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    assert status == 0
