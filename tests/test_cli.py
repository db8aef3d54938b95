"""The command as people call it: a process, its words, its exit status."""

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

from server import cli, database
from server.embedded import Engines
from server.sealing.keys import encryption_pair
from server.settings import FIELDS, Settings

ROOT = Path(__file__).parent.parent


class Done(NamedTuple):
    status: int
    out: str
    err: str


async def secureblogs(*words: str, **environ: str) -> Done:
    known = {field.variable for field in FIELDS}
    clean = {name: text for name, text in os.environ.items() if name.removesuffix("_FILE") not in known}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "server.cli", *words),
        cwd=ROOT,
        env=clean | {"COLUMNS": "120", "NO_COLOR": "1"} | environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Done(process.returncode or 0, out.decode(), err.decode())


def encode(key: bytes | None) -> str:
    return base64.b64encode(key or b"").decode()


@pytest.fixture
def environ(settings: Settings) -> dict[str, str]:
    """What a process beside the tests' own API and worker is told."""
    return {
        "DATABASE_URL": str(settings.database_url),
        "REDIS_URL": str(settings.redis_url),
        "WORKER_PUBLIC_KEY": encode(settings.worker_public_key),
    }


async def test_help_lists_every_verb_once_and_by_its_room() -> None:
    done = await secureblogs("--help")
    assert done.status == 0
    panels = re.findall(r"─ (\w+) ─", done.out)
    assert panels == ["Options", "Server", "Worker", "Client"]
    verbs = re.findall(r"^│ ([a-z][a-z-]*)  ", done.out, re.MULTILINE)
    assert sorted(verbs) == sorted(cli.cli.commands)
    assert sorted(verbs) == sorted(name for names in cli.PANELS.values() for name in names)
    assert "lifeline" not in done.out


def test_help_waits_for_no_other_room() -> None:
    code = (
        "import json, sys\nfrom server.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\nprint(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "rich_click" in loaded
    assert not loaded & {"litestar", "piccolo", "asyncpg", "arq", "redis", "uvicorn", "nacl", "tasks", "client"}


@pytest.mark.parametrize("name", sorted(cli.ELSEWHERE))
def test_verb_of_another_room_is_there_and_says_what_the_list_says(name: str) -> None:
    command = cli.Elsewhere(name=name).load()
    assert command.name == name
    summary = cli.ELSEWHERE[name][1].rstrip(".")
    assert (command.help or "").replace("\n", " ").startswith(summary)


@pytest.mark.thorough
async def test_settings_that_are_wrong_are_told_in_one_line() -> None:
    for verb in ("up", "worker", "doctor"):
        done = await secureblogs(verb, PORT="none")
        assert done == (1, "", "secureblogs: PORT: must be a whole number from 1 to 65535, got 'none'\n")


async def test_without_addresses_and_engines_the_way_out_is_told(tmp_path: Path) -> None:
    done = await secureblogs("doctor", DATA_DIR=str(tmp_path))
    told = (
        f"DATABASE_URL, REDIS_URL: not set, and nothing runs on {tmp_path}; start `secureblogs up` first,"
        " or set DATA_DIR to the folder of the one that runs"
    )
    assert done == (1, "", f"secureblogs: {told}\n")


async def test_verbs_find_the_engines_that_run_on_the_data_folder(engines: Engines, migrated: None) -> None:
    done = await secureblogs("requeue", "--failed", DATA_DIR=str(engines.data_dir))
    assert done.status == 0


async def test_migrate_may_be_repeated_and_run_twice_at_once(environ: dict[str, str], migrated: None) -> None:
    both = await asyncio.gather(secureblogs("migrate", **environ), secureblogs("migrate", **environ))
    for done in both:
        assert done == (0, "secureblogs: the database is up to date\n", "")


async def test_admin_grant(environ: dict[str, str], database_pool: None) -> None:
    email = f"{uuid.uuid4()}@Example.org"
    done = await secureblogs("admin", "grant", email, **environ)
    assert done == (1, "", f"secureblogs: no account has the address or id {email}\n")
    await database.execute(
        "INSERT INTO users (name, email, email_key, password) VALUES ('Root', $1, lower($1), 'x')", email
    )
    done = await secureblogs("admin", "grant", email.upper(), **environ)
    assert done.status == 0
    assert await database.fetchval("SELECT is_admin FROM users WHERE email = $1", email)


async def test_requeue_wants_posts_or_all(environ: dict[str, str]) -> None:
    assert (await secureblogs("requeue", **environ)).status == 2
    assert (await secureblogs("requeue", "--failed", str(uuid.uuid4()), **environ)).status == 2
    assert (await secureblogs("requeue", "not-an-id", **environ)).status == 2


async def test_requeue_tells_of_posts_that_are_not_failed(environ: dict[str, str], migrated: None) -> None:
    done = await secureblogs("requeue", str(uuid.uuid4()), **environ)
    assert done.status == 1
    assert done.err.splitlines()[-1] == "secureblogs: 1 of them are unknown or have not failed"


@pytest.mark.thorough
async def test_verb_that_needs_postgres_tells_when_it_is_away() -> None:
    away = {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1"}
    for words in (["migrate"], ["admin", "grant", "a@b"], ["requeue", "--failed"]):
        done = await secureblogs(*words, **away)
        assert done.status == 1
        assert done.err.startswith("secureblogs: Postgres does not answer (")
        assert done.err.count("\n") == 1


async def test_doctor_finds_all_well(environ: dict[str, str], server: str, database_pool: None) -> None:
    # What other tests left behind, on purpose.
    await database.execute("DELETE FROM posts WHERE status <> 'sealed'")
    done = await secureblogs("doctor", **environ)
    assert re.findall(r"^(ok|!!)  (\w+)", done.out, re.MULTILINE) == [
        ("ok", subject) for subject in ("settings", "Postgres", "migrations", "posts", "Redis", "workers")
    ]
    assert done.status == 0


async def test_doctor_finds_a_key_that_no_worker_has(environ: dict[str, str], server: str) -> None:
    done = await secureblogs("doctor", **environ | {"WORKER_PUBLIC_KEY": encode(encryption_pair(bytes(32)).public)})
    assert done.status == 1
    assert "has not the key that drafts are sealed to" in done.out
    assert "→ put the private half of WORKER_PUBLIC_KEY into its WORKER_PRIVATE_KEYS" in done.out


async def test_doctor_finds_halves_of_two_pairs(environ: dict[str, str], server: str) -> None:
    done = await secureblogs("doctor", **environ, WORKER_PRIVATE_KEYS=encode(bytes(range(32))))
    assert done.status == 1
    assert "!!  settings" in done.out


@pytest.mark.thorough
async def test_doctor_finds_what_is_away() -> None:
    away = {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1"}
    done = await secureblogs("doctor", **away)
    assert done.status == 1
    assert "!!  settings     WORKER_PUBLIC_KEY is not set" in done.out
    assert "!!  Postgres     does not answer" in done.out
    assert "!!  Redis        does not answer" in done.out


@pytest.fixture
async def empty_database(environ: dict[str, str], database_pool: None) -> AsyncIterator[dict[str, str]]:
    """A database of its own, and a part of Valkey where no worker is."""
    name = f"empty_{uuid.uuid4().hex}"
    await database.execute(f"CREATE DATABASE {name}")
    url = environ["DATABASE_URL"].replace("/secureblogs?", f"/{name}?")
    yield environ | {"DATABASE_URL": url, "REDIS_URL": f"{environ['REDIS_URL']}?db=7"}
    await database.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.thorough
async def test_doctor_leads_from_an_empty_database_to_one_where_all_is_well(empty_database: dict[str, str]) -> None:
    done = await secureblogs("doctor", **empty_database)
    assert done.status == 1
    assert re.search(r"^!!  migrations   \d not applied\n +→ run `secureblogs migrate`$", done.out, re.MULTILINE)
    assert "!!  workers      none has a heartbeat" in done.out
    assert (await secureblogs("migrate", **empty_database)).status == 0

    connection = await asyncpg.connect(empty_database["DATABASE_URL"])
    user = await connection.fetchval(
        "INSERT INTO users (name, email, email_key, password) VALUES ('A', 'a@b', 'a@b', 'x') RETURNING id"
    )
    group = await connection.fetchval("INSERT INTO user_groups (name, created_by) VALUES ('G', $1) RETURNING id", user)
    post = await connection.fetchval(
        'INSERT INTO posts ("group", author, status, sealed_by, draft, failure, request_mac)'
        " VALUES ($1, $2, 'failed', 'server', '\\x00', 'draft_unreadable', $3) RETURNING id",
        *(group, user, bytes(32)),
    )
    done = await secureblogs("doctor", **empty_database)
    assert "ok  migrations   all applied" in done.out
    assert "!!  posts        1 could not be sealed" in done.out
    done = await secureblogs("requeue", "--failed", **empty_database)
    assert done == (0, f"{post}\n", "1 posts are pending again and will be sealed within seconds.\n")
    await connection.execute("UPDATE posts SET created_at = now() - interval '2 minutes'")
    done = await secureblogs("doctor", **empty_database)
    assert "!!  posts        1 wait for longer than a minute" in done.out
    await connection.close()


async def test_secrets_are_made_for_a_set_up_of_ones_own(tmp_path: Path) -> None:
    done = await secureblogs("secrets", str(tmp_path / "secrets"))
    made = sorted((tmp_path / "secrets").iterdir())
    assert sorted(done.out.splitlines()) == [str(path) for path in made]
    assert [path.name for path in made] == ["request_mac_key", "worker_private_keys", "worker_public_key"]
    before = [path.read_text() for path in made]
    assert all(len(base64.b64decode(text)) == 32 for text in before)
    assert await secureblogs("secrets", str(tmp_path / "secrets")) == done
    assert [path.read_text() for path in made] == before


@pytest.mark.thorough
async def test_port_in_use_is_told_by_the_api(environ: dict[str, str], server: str) -> None:
    port = server.rpartition(":")[2]
    done = await secureblogs("api", "--port", port, **environ, REQUEST_MAC_KEY=encode(bytes(32)))
    told = f"can't listen on 127.0.0.1 port {port}: Address already in use; set PORT or HOST to another"
    assert done == (1, "", f"secureblogs: {told}\n")


@pytest.mark.thorough
async def test_api_tells_which_setting_it_needs(environ: dict[str, str]) -> None:
    done = await secureblogs("api", **environ)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("secureblogs: REQUEST_MAC_KEY: ")
