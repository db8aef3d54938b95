"""Everything in one: engines, migrations, API and worker.

With DATABASE_URL and REDIS_URL nothing is embedded and nothing generated. Without them Postgres and Valkey are run in
the data folder, and secrets that are not given are made there, once.
"""

import base64
import contextlib
import errno
import http.client
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from server.embedded import Engines, addresses
from server.issuer import open_issuer
from server.sealing.keys import encryption_pair
from server.settings import FIELDS, Settings, SettingsError, load, origin
from server.supervisor import Program, Restartable, Signals, Stop, finish, keep, lifeline

HERE = Path(__file__).parent
PORT_WITHIN_S = 3.0
SLOW_START_S = 20.0
# Later the API is started again for as long as it takes; before its first answer something is wrong with the set-up.
MAX_STARTS_UNANSWERED = 5
DEFAULT_PORT = 8000
# In the data folder.
ADDRESS_FILE = "address.json"

# Which secrets each child needs. None gets more: the API can't open drafts, the worker can't tell requests apart.
NEEDS = {
    "migrate": ("DATABASE_URL", "REDIS_URL"),
    "api": ("DATABASE_URL", "REDIS_URL", "WORKER_PUBLIC_KEY", "REQUEST_MAC_KEY"),
    "worker": ("DATABASE_URL", "REDIS_URL", "WORKER_PRIVATE_KEYS"),
}
# Which it gets as well, where they are given.
TAKES = {"migrate": (), "api": ("JWT_SECRET_KEY", "METRICS_TOKEN"), "worker": ()}


class UpError(Exception):
    """One line that says why nothing runs."""


def up(settings: Settings, environ: Mapping[str, str], reload: bool = False) -> None:
    """Run everything until a stop signal, and leave nothing running.

    Raises UpError, SettingsError or EmbeddedError when something stands in the way.
    """
    open_issuer(settings)
    check_port(settings.host, settings.port)
    with contextlib.suppress(Stop), Signals() as signals, engines_for(settings) as (complete, engines):
        check_secrets(complete)
        signals.hold()
        with lifeline() as reader:
            migrate, api, worker = (Program(name, environ_for(name, complete, environ), reader) for name in NEEDS)
            if finish(migrate, signals):
                raise UpError("the migrations failed; see above")
            greeting = Greeting(settings, api)
            sources = Sources(HERE, HERE.parent / "tasks") if reload else None

            def each_round() -> bool:
                greeting.tell()
                changed = sources is not None and sources.changed()
                if changed:
                    print("secureblogs: the source has changed, API and worker start anew", flush=True)
                return changed

            keep([api, worker], engines, signals, each_round)


@contextlib.contextmanager
def engines_for(settings: Settings) -> Iterator[tuple[Settings, list[Restartable]]]:
    """The settings with addresses and secrets, and the engines to be kept running, if they are ours."""
    if settings.database_url:
        yield settings, []
        return
    if settings.worker_public_key and not settings.worker_private_keys:
        raise SettingsError("WORKER_PRIVATE_KEYS: not set, but WORKER_PUBLIC_KEY is; set both or neither")
    with Engines(settings.data_dir) as engines:
        print(f"secureblogs: Postgres and Valkey run, with their data in {settings.data_dir}", flush=True)
        settings = with_secrets(settings)
        with told_address(settings):
            yield with_addresses(settings, engines.database_url, engines.redis_url), list(engines.all)


class Address(msgspec.Struct, frozen=True):
    """Where people reach what runs on a data folder."""

    public_url: str
    root_path: str


@contextlib.contextmanager
def told_address(settings: Settings) -> Iterator[None]:
    """Where `at_running_address` finds it, as long as this runs; whatever was killed before has left is replaced."""
    path = settings.data_dir / ADDRESS_FILE
    half = path.with_name(f"{path.name}.new")
    half.write_bytes(msgspec.json.encode(Address(settings.public_url, settings.root_path)))
    half.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def at_running_address(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """The settings, attached already, with the address of the `up` that runs beside them, unless it was given."""
    if any(environ.get(name) for name in ("DATABASE_URL", "DATABASE_URL_FILE", "PUBLIC_URL", "HOST", "PORT")):
        return settings
    try:
        found = msgspec.json.decode((settings.data_dir / ADDRESS_FILE).read_bytes(), type=Address)
    except (OSError, msgspec.DecodeError):
        return settings
    return msgspec.structs.replace(settings, public_url=found.public_url, root_path=found.root_path)


def attach(settings: Settings) -> Settings:
    """The settings of a process beside a running `up`: with its engines' addresses and its secrets, if none are given.

    Raises SettingsError if none are given and nothing runs on the data folder.
    """
    if settings.database_url:
        return settings
    found = addresses(settings.data_dir)
    if found is None:
        raise SettingsError(
            f"DATABASE_URL, REDIS_URL: not set, and nothing runs on {settings.data_dir}; start `secureblogs up` first,"
            " or set DATA_DIR to the folder of the one that runs"
        )
    return with_addresses(with_secrets(settings), *found)


def with_addresses(settings: Settings, database_url: str, redis_url: str) -> Settings:
    return msgspec.structs.replace(settings, database_url=database_url, redis_url=redis_url)


def check_port(host: str, port: int) -> None:
    """UpError if nobody can listen there, nor in a few seconds' time: an API that was killed may be just going."""
    deadline = time.monotonic() + PORT_WITHIN_S
    while True:
        try:
            probe_port(host, port)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                told = f"can't listen on {host} port {port}: {error.strerror}; set PORT or HOST to another"
                raise UpError(told) from error
        time.sleep(0.1)


def probe_port(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the API will: a connection that has just ended is no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen()


def check_secrets(settings: Settings) -> None:
    """SettingsError for a secret that is missing, and for worker keys that are not two halves of a pair."""
    for name in ("worker_public_key", "worker_private_keys", "request_mac_key"):
        if not getattr(settings, name):
            raise SettingsError(f"{name.upper()}: not set; `secureblogs secrets FOLDER` makes one")
    if encryption_pair(settings.worker_private_keys[0]).public != settings.worker_public_key:
        raise SettingsError("WORKER_PUBLIC_KEY: is not the other half of the first of WORKER_PRIVATE_KEYS")


def with_secrets(settings: Settings) -> Settings:
    """The settings with those secrets that were not given read from the data folder, and made there if need be."""
    folder = settings.data_dir / "secrets"
    public, private = settings.worker_public_key, settings.worker_private_keys
    if public is None:
        private = private or (kept_secret(folder / "worker_private_keys"),)
        public = encryption_pair(private[0]).public
    return msgspec.structs.replace(
        settings,
        worker_private_keys=private,
        worker_public_key=public,
        request_mac_key=settings.request_mac_key or kept_secret(folder / "request_mac_key"),
    )


def kept_secret(path: Path) -> bytes:
    """32 random bytes that are made at the first call and the same ever after. Any such bytes are an X25519 key."""
    if not path.exists():
        write_secret(path, secrets.token_bytes(32))
    # Read by the settings' own rules, so that a damaged file is refused as a bad setting would be.
    variable = path.name.upper()
    loaded = load({f"{variable}_FILE": str(path)})
    return loaded.request_mac_key or loaded.worker_private_keys[0]


def write_secret(path: Path, secret: bytes) -> None:
    """In one step, so that whoever is killed here leaves the whole secret or none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.new")
    half.unlink(missing_ok=True)
    with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(base64.b64encode(secret).decode() + "\n")
        file.flush()
        os.fsync(file.fileno())
    half.rename(path)


def write_all_secrets(folder: Path) -> list[Path]:
    """The three secrets of a set-up with servers of its own, as files for `*_FILE`. Those that are there stay."""
    private, public, mac = (folder / name for name in ("worker_private_keys", "worker_public_key", "request_mac_key"))
    write_secret(public, encryption_pair(kept_secret(private)).public)
    kept_secret(mac)
    return [private, public, mac]


def environ_for(name: str, settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of one child: ours, without the secrets that it has no need of."""
    known = {field.variable: field for field in FIELDS if field.secret}
    withheld = {variable + suffix for variable in known for suffix in ("", "_FILE")}
    env = {variable: text for variable, text in environ.items() if variable not in withheld}
    env["DATA_DIR"] = str(settings.data_dir)
    for variable in (*NEEDS[name], *TAKES[name]):
        given = [name for name in (f"{variable}_FILE", variable) if environ.get(name)]
        value = getattr(settings, known[variable].attribute)
        if given:
            env |= {name: environ[name] for name in given}
        elif value is not None:
            env[variable] = as_text(value)
    return env


def as_text(value: str | bytes | tuple[bytes, ...]) -> str:
    """A secret as its variable has it."""
    if isinstance(value, str):
        return value
    keys = (value,) if isinstance(value, bytes) else value
    return ",".join(base64.b64encode(key).decode() for key in keys)


class Greeting:
    """Says where to go next, once, when the API and all it needs are ready."""

    def __init__(self, settings: Settings, api: Program) -> None:
        self.settings = settings
        self.api = api
        self.began = time.monotonic()
        self.greeted = False
        self.excused = False

    def tell(self) -> None:
        if self.greeted:
            return
        if self.api.starts > MAX_STARTS_UNANSWERED:
            raise UpError("the API does not start; see above")
        missing = not_ready(self.settings)
        if missing is None:
            self.greeted = True
            print(directions(self.settings), flush=True)
        elif not self.excused and time.monotonic() - self.began > SLOW_START_S:
            self.excused = True
            print(f"secureblogs: still not ready: {missing}", flush=True)


def not_ready(settings: Settings) -> str | None:
    """None when /health/ready says yes, else what it, or the attempt to ask, says."""
    address = urlsplit(origin(settings))
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=2)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        said = answer.read(1000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"the API does not answer ({error})"
    finally:
        connection.close()
    return None if answer.status == 200 else said


def directions(settings: Settings) -> str:
    """Where to go next, as commands that can be pasted."""
    url = settings.public_url
    installed = Path(sys.executable).with_name("secureblogs")
    command = "secureblogs" if shutil.which("secureblogs") else os.path.relpath(installed)
    client = command if settings.port == DEFAULT_PORT else f"SECUREBLOGS_SERVER={url} {command}"
    lines = {"see the whole story": f"{client} demo", "begin your own": f"{client} sign-up", "the API": f"{url}/schema"}
    shown = [f"  {what:<20} {how}" for what, how in lines.items()]
    return "\n".join([f"secureblogs: ready at {url}, Ctrl-C stops it", *shown])


class Sources:
    """Watches the modules below some folders."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self.seen = self.look()

    def look(self) -> dict[Path, int]:
        found = {}
        for path in (path for folder in self.folders for path in folder.rglob("*.py")):
            with contextlib.suppress(FileNotFoundError):  # an editor may be just replacing it
                found[path] = path.stat().st_mtime_ns
        return found

    def changed(self) -> bool:
        before, self.seen = self.seen, self.look()
        return before != self.seen
