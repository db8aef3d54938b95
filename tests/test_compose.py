"""What compose.yaml promises, without a container engine.

Most is read from the file. The last test starts the services by the very commands, environments and health checks that
are declared, as processes; what a container would bring is translated: the names of services to addresses of this
machine, /run/secrets to a folder, ports to free ones.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.embedded import Engines, postgres_binary, valkey_binary
from server.serving import make_server
from server.settings import FIELDS, Settings
from server.up import NEEDS
from tasks import worker

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
LASTING = sorted(name for name, service in SERVICES.items() if service["restart"] != "no")
PROGRAMS = sorted(NEEDS)

every_service = pytest.mark.parametrize("name", sorted(SERVICES))
every_lasting_service = pytest.mark.parametrize("name", LASTING)
every_program = pytest.mark.parametrize("name", PROGRAMS)

VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+):(?P<kind>[-?])(?P<text>[^}]*)\})")


class NotStarted(Exception):
    """Compose would refuse to start."""


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """`${NAME:-default}`, `${NAME:?or refuse}` and `$$`, as Compose understands them."""

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if not environ.get(match["name"]) and match["kind"] == "?":
            raise NotStarted(match["name"])
        return environ.get(match["name"]) or match["text"]

    return VARIABLE.sub(value, text)


def seconds(duration: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([sm])", duration).groups()  # type: ignore[union-attr]  # no match fails the test
    return int(number) * {"s": 1, "m": 60}[unit]


# ----------------------------------------------------------------------------------------------------- containers


def test_there_is_all_that_an_installation_needs() -> None:
    assert set(SERVICES) == {"proxy", "api", "worker", "migrate", "postgres", "valkey", "secrets"}
    assert LASTING == ["api", "postgres", "proxy", "valkey", "worker"]
    assert OURS == ["api", "migrate", "secrets", "worker"]


@every_service
def test_container_has_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["user"].split(":")[0] not in {"", "0", "root"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # A file that is marked with a capability is not started where the container can't have it: see compose.yaml.
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "proxy" else [])
    assert not service.keys() & {"privileged", "devices", "pid", "ipc", "cgroup", "userns_mode", "group_add"}
    assert service.get("network_mode", "none") == "none"


@every_service
def test_only_volumes_are_written_to(name: str) -> None:
    mounts = SERVICES[name].get("volumes", [])
    sources = {mount.split(":")[0] for mount in mounts}
    assert sources <= (set(COMPOSE["volumes"]) if name != "secrets" else {"./deploy"})


@every_service
def test_image_is_pinned_to_a_major_version(name: str) -> None:
    service = SERVICES[name]
    if name in OURS:
        # Compose would look for this name in public first, and there it is anybody's.
        assert service["pull_policy"] == "build"
    else:
        assert re.search(r":\d+(\.\d+)*$", service["image"])


def test_engines_are_those_that_are_embedded() -> None:
    assert (SERVICES["postgres"]["image"], SERVICES["valkey"]["image"]) == ("postgres:18", "valkey/valkey:9")


@every_lasting_service
def test_service_comes_back_and_tells_how_it_is(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    health = service["healthcheck"]
    assert seconds(health["timeout"]) < seconds(health["interval"])
    assert health["test"][0] in {"CMD", "CMD-SHELL"}


def test_tables_are_there_before_they_are_used() -> None:
    for name in ("api", "worker"):
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}


def test_only_the_proxy_can_be_reached() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    networks = {name: set(service.get("networks", [])) for name, service in SERVICES.items()}
    assert networks.pop("secrets") == set()
    assert networks == {
        "proxy": {"edge", "web"},
        "api": {"web", "data"},
        "worker": {"data"},
        "migrate": {"data"},
        "postgres": {"data"},
        "valkey": {"data"},
    }
    assert COMPOSE["networks"]["web"] == COMPOSE["networks"]["data"] == {"internal": True}


def test_api_and_worker_scale() -> None:
    for name in ("api", "worker"):
        assert not SERVICES[name].keys() & {"container_name", "hostname", "ports"}
        # All of them see the same files.
        assert SERVICES[name]["volumes"] == ["files:/files"]


def test_proxy_asks_the_api_where_it_listens() -> None:
    caddyfile = (DEPLOY / "Caddyfile").read_text(encoding="utf-8")
    environment = SERVICES["api"]["environment"]
    assert re.findall(r"^\s+name (\S+)\n\s+port (\S+)$", caddyfile, re.MULTILINE) == [("api", environment["PORT"])]
    assert environment["HOST"] == "0.0.0.0"
    listens = dict(re.findall(r"^\t(https?)_port (\d+)$", caddyfile, re.MULTILINE))
    assert SERVICES["proxy"]["ports"] == [f"80:{listens['http']}", f"443:{listens['https']}"]
    # 0 would be: no limit.
    assert re.search(r"read_header [1-9]\d*s\n", caddyfile)
    assert re.search(r"read_body [1-9]\d*h\n", caddyfile)


def test_processes_may_end_before_they_are_killed() -> None:
    settings = Settings(
        database_url="postgresql://", redis_url="redis://", worker_public_key=bytes(32), request_mac_key=bytes(32)
    )
    api_s = make_server(settings).config.timeout_graceful_shutdown or 0
    worker_s = worker.COMPLETION_WAIT_S + worker.CANCEL_WAIT_S + worker.GOODBYE_S
    # And some seconds for closing connections.
    assert seconds(SERVICES["api"]["stop_grace_period"]) >= api_s + 5
    assert seconds(SERVICES["worker"]["stop_grace_period"]) >= worker_s + 5


# -------------------------------------------------------------------------------------------- settings and secrets


@every_service
def test_a_service_is_given_the_secrets_that_it_reads(name: str) -> None:
    service = SERVICES[name]
    read = set(re.findall(r"/run/secrets/([\w.]+)", str(service)))
    for config in service.get("configs", []):
        text = (ROOT / COMPOSE["configs"][config["source"]]["file"]).read_text(encoding="utf-8")
        read |= set(re.findall(r"/run/secrets/([\w.]+)", text))
    assert read == set(service.get("secrets", []))


@every_program
def test_a_program_gets_the_secrets_that_it_needs_and_no_other(name: str) -> None:
    needed = {variable.lower() for variable in NEEDS[name]}
    # Settings are read whole: an address of Postgres without one of Redis is refused.
    assert set(SERVICES[name]["secrets"]) == needed


def test_only_the_workers_can_open_drafts() -> None:
    holders = [name for name, service in SERVICES.items() if "worker_private_keys" in service.get("secrets", [])]
    assert holders == ["worker"]


@every_program
def test_every_variable_is_a_setting(name: str) -> None:
    known = {field.variable + ("_FILE" if field.secret else "") for field in FIELDS}
    assert SERVICES[name]["environment"].keys() <= known


def test_no_secret_stands_in_the_file() -> None:
    for secret in COMPOSE["secrets"].values():
        assert secret.keys() == {"file"}
        assert secret["file"].startswith("deploy/secrets/")
    for service in SERVICES.values():
        for variable in service.get("environment", {}):
            assert not re.search(r"(PASSWORD|SECRET|TOKEN|KEYS?|DATABASE_URL|REDIS_URL)$", variable)


def test_it_does_not_start_without_a_name() -> None:
    for name in ("api", "proxy"):
        with pytest.raises(NotStarted, match="DOMAIN"):
            declared_environment(name, {})


def test_secrets_stay_out_of_the_repository_and_of_the_image() -> None:
    assert "secrets/" in (DEPLOY / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert all(not entry.startswith("deploy") for entry in taken_into_image())


# ------------------------------------------------------------------------------------------------------ the image


def taken_into_image() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return {rule[1:] for rule in rules if rule.startswith("!")}


def copied_into_image() -> set[str]:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    return {source for line in lines for source in line.split()}


def test_image_holds_the_whole_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packaged = project["tool"]["setuptools"]
    parts = {package.split(".")[0] for package in packaged["packages"]} | {f"{m}.py" for m in packaged["py-modules"]}
    assert copied_into_image() == taken_into_image()
    assert copied_into_image() - parts == {
        *("pyproject.toml", "requirements.lock", "requirements-dev.lock", "package.json", "package-lock.json"),
        *(project["project"]["readme"], "LICENSE"),
    }
    assert parts <= copied_into_image()
    assert all((ROOT / source).exists() for source in copied_into_image())


def test_image_runs_as_the_user_that_is_declared() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    user = re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE)[-1]
    assert {SERVICES[name]["user"] for name in OURS} == {user}


def test_image_takes_all_that_it_installs_from_a_lock() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    installs = re.findall(r"(?:pip install|uv pip \w+)(?: -\S+| /\S+)* .*?(?=&&|\n)", dockerfile)
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-deps" in install
    # What builds without isolation fetches nothing for it.
    assert "--no-deps --no-build-isolation" in dockerfile


# ---------------------------------------------------------------------------------------------- as real processes


def declared_environment(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    declared = SERVICES[name].get("environment", {})
    return {variable: interpolate(text, environ) for variable, text in declared.items()}


class Machine:
    """Where the services run: a folder, an engine for each address, and what is translated into what."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets = folder / "secrets"
        # Programs are found where this Python has them, as they are in the image.
        self.path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.words = {"/run/secrets": str(self.secrets), "/deploy/secrets": str(self.secrets), "/deploy": str(DEPLOY)}
        self.words |= {"file:///files": f"file://{folder}/files"}

    def translate(self, text: str, **more: str) -> str:
        for declared, here in (self.words | more).items():
            text = text.replace(declared, here)
        return text

    def environment(self, name: str, port: int) -> dict[str, str]:
        declared = declared_environment(name, {"DOMAIN": "posts.example.org", "LOG_LEVEL": "warning"})
        env = {variable: self.translate(text) for variable, text in declared.items()}
        if "PORT" in env:
            env |= {"HOST": "127.0.0.1", "PORT": str(port)}
        coverage = {variable: text for variable, text in os.environ.items() if variable.startswith("COVERAGE_")}
        return env | coverage | {"PATH": self.path, "HOME": str(self.folder)}

    def run(self, command: list[str], env: Mapping[str, str]) -> str:
        """What a program that must succeed writes."""
        program = shutil.which(command[0], path=self.path) or command[0]
        done = subprocess.run([program, *command[1:]], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, name: str, env: Mapping[str, str], command: list[str]) -> Iterator[subprocess.Popen[str]]:
        """A service, stopped as Compose stops it, which must be in time and in order."""
        program = shutil.which(command[0], path=self.path) or command[0]
        grace_s = seconds(SERVICES[name]["stop_grace_period"])
        with open(self.folder / f"{name}.log", "a+", encoding="utf-8") as log:
            process = subprocess.Popen([program, *command[1:]], env=env, cwd=self.folder, stderr=log, text=True)
            try:
                yield process
                process.send_signal(signal.SIGTERM)
                # The API ends by the signal itself, once it is done.
                assert process.wait(grace_s) in {0, -signal.SIGTERM}, log_of(log.name)
            finally:
                process.kill()
                process.wait()


def log_of(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def machine() -> Iterator[Machine]:
    # A short path, for the sockets, and one that the user who runs Postgres may enter.
    folder = Path(tempfile.mkdtemp(prefix="sb"))
    folder.chmod(0o711)
    yield Machine(folder)
    shutil.rmtree(folder, ignore_errors=True)


def make_secrets(machine: Machine) -> set[str]:
    """By the command of the service that makes them; the names of the files."""
    command = [machine.translate(word) for word in SERVICES["secrets"]["command"]]
    return set(machine.run(command, {"PATH": machine.path}).split())


def test_secrets_are_made_once(machine: Machine) -> None:
    machine.secrets.mkdir(mode=0o755)
    assert make_secrets(machine) == set(COMPOSE["secrets"])
    before = {path.name: path.read_text() for path in machine.secrets.iterdir()}
    assert make_secrets(machine) == set(COMPOSE["secrets"])
    assert {path.name: path.read_text() for path in machine.secrets.iterdir()} == before
    assert len(set(before.values())) == len(before)
    # Containers run as users of their own and must be able to read the files; the folder keeps all others out.
    assert machine.secrets.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in machine.secrets.iterdir()} == {0o644}


def start_postgres(machine: Machine, stack: ExitStack) -> None:
    """An embedded Postgres, set up by the file that the container would run, in the place of the service `postgres`."""
    engines = stack.enter_context(Engines(machine.folder / "data"))
    folder = engines.postgres.run_folder
    script = machine.folder / "database.sql"
    script.write_text(machine.translate((DEPLOY / "database.sql").read_text(encoding="utf-8")), encoding="utf-8")
    psql = [str(postgres_binary("psql")), "-vON_ERROR_STOP=1", f"-h{folder}", "-Upostgres", "-dsecureblogs", "-At"]
    machine.run([*psql, f"-f{script}"], {"PATH": machine.path})
    roles = machine.run([*psql, "-cSELECT rolname FROM pg_roles WHERE rolsuper"], {"PATH": machine.path})
    assert roles.split() == ["postgres"]
    rewrite(machine.secrets / "database_url", "@postgres/secureblogs", f"@/secureblogs?host={folder}")


def start_valkey(machine: Machine, stack: ExitStack) -> None:
    """The declared command, on a port of 127.0.0.1."""
    port = free_port()
    command = [machine.translate(word) for word in SERVICES["valkey"]["command"]]
    assert command[0] == valkey_binary().name
    here = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(machine.folder), "--loglevel", "warning"]
    stack.enter_context(machine.running("valkey", {}, [str(valkey_binary()), *command[1:], *here]))
    rewrite(machine.secrets / "redis_url", "@valkey:6379/", f"@127.0.0.1:{port}/")


def rewrite(path: Path, declared: str, here: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert declared in text
    path.write_text(text.replace(declared, here), encoding="utf-8")


def check_health(machine: Machine, name: str, env: Mapping[str, str]) -> None:
    kind, *command = SERVICES[name]["healthcheck"]["test"]
    assert kind == "CMD"
    machine.run([interpolate(word, {}).replace("8000", env.get("PORT", "")) for word in command], env)


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            answer = httpx.get(f"{url}/health/ready", timeout=5)
            said = answer.text
            if answer.status_code == 200:
                return
        except httpx.TransportError as error:
            said = repr(error)
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


@pytest.mark.thorough
def test_two_apis_and_two_workers_play_the_story(machine: Machine) -> None:
    make_secrets(machine)
    with ExitStack() as stack:
        start_postgres(machine, stack)
        start_valkey(machine, stack)
        machine.run(SERVICES["migrate"]["command"], machine.environment("migrate", 0))

        apis = [machine.environment("api", free_port()) for _ in range(2)]
        workers = [machine.environment("worker", 0) for _ in range(2)]
        for name, envs in (("api", apis), ("worker", workers)):
            for env in envs:
                stack.enter_context(machine.running(name, env, SERVICES[name]["command"]))
        first, second = (f"http://127.0.0.1:{env['PORT']}" for env in apis)
        wait_until_ready(first)
        wait_until_ready(second)

        # Alice's socket is on the first API, Carol's calls go to the second.
        person = {"PATH": machine.path, "HOME": str(machine.folder)}
        story = machine.run(["secureblogs", "demo", "--server", first, "--second-server", second], person)
        assert "Carol reads" in story
        assert "2 at work" in machine.run(["secureblogs", "doctor"], apis[0])
        check_health(machine, "api", apis[0])
        check_health(machine, "worker", workers[0])
