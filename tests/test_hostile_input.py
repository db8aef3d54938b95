"""What no route takes, on every route of the OpenAPI document; a flood of logins; memory that nobody may look at."""

import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest

from server import accounts
from server.settings import Settings
from tests.conftest import lasting
from tests.people import PASSWORD, Person, code, good, new_email
from tests.processes import Process, environ_of, running_api_process
from tests.test_bodies import MALFORMED, Call, calls, is_fine, raw, with_json

__all__ = ["calls"]

alice = lasting("Alice")
bob = lasting("Bob")


# Of each kind of malformed JSON the worst, and what a parser may make too much of.
EVERYWHERE = [
    *("UTF-16", "Latin-1", "overlong UTF-8", "surrogate in UTF-8", "NaN", "out of range", "name twice"),
    *("NUL in a string", "high surrogate", "nesting of 100,000", "nesting of 100,000 in objects", "something after it"),
]


async def test_malformed_json_is_400_on_every_route_that_takes_any(alice: Person, calls: list[Call]) -> None:
    tried = 0
    for call in calls:
        if call.takes_body:
            for what in EVERYWHERE:
                answer = await alice.client.request(call.method, call.path, **with_json(MALFORMED[what]))
                assert code(answer) == (400, "malformed_json"), (call, what)
                assert is_fine(answer)
                tried += 1
    assert tried > 150


async def test_body_that_is_not_asked_for_changes_nothing(alice: Person, calls: list[Call]) -> None:
    for call in calls:
        if not call.takes_body and call.path not in {"/logout", "/attachments", "/me/export", "/ws-tickets"}:
            plain = await alice.client.request(call.method, call.path)
            for what in ("nesting of 100,000", "UTF-16", "NUL in a string"):
                answer = await alice.client.request(call.method, call.path, **with_json(MALFORMED[what]))
                assert answer.status_code == plain.status_code, (call, what)
                assert is_fine(answer) or call.path == "/health/ready"


async def test_token_of_a_megabyte_is_refused_on_every_route(server: str, calls: list[Call]) -> None:
    for call in calls:
        head = f"{call.method} {call.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sbs_{'x' * 1_000_000}\r\n\r\n"
        assert (await raw(server, head.encode())).startswith(b"HTTP/1.1 431 "), call
    # What is as long as a head may be is a token like any other.
    for call in calls:
        head = f"{call.method} {call.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sbs_{'x' * 50_000}\r\n\r\n"
        expected = b"HTTP/1.1 401 " if not call.is_open else b"HTTP/1.1 "
        answer = await raw(server, head.encode())
        assert answer.startswith(expected), call
        assert not answer.startswith(b"HTTP/1.1 5"), call


# -------------------------------------------------------------------------------------------- floods of logins


async def log_in(http: httpx.AsyncClient, email: str) -> httpx.Response:
    return await http.post("/login", json={"email": email, "password": PASSWORD})


async def test_those_who_would_wait_too_long_are_told_so(
    server: str, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "MAX_HASHING", 3)
    async with httpx.AsyncClient(base_url=server, timeout=30, verify=False) as http:
        answers = await asyncio.gather(*(log_in(http, alice.user["email"]) for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in answers:
            if answer.is_error:
                assert code(answer) == (429, "rate_limited")
                assert int(answer.headers["Retry-After"]) >= 1
        good(await log_in(http, alice.user["email"]))


@pytest.mark.thorough
async def test_flood_of_logins_takes_bounded_memory_and_stops_nobody(
    settings: Settings, alice: Person, tmp_path: Path
) -> None:
    """Of Argon2id as it is in earnest, by 40 at once."""
    limits = httpx.Limits(max_connections=200)
    async with (
        running_api_process(environ_of(settings), tmp_path / "log") as api,
        httpx.AsyncClient(base_url=api.url, timeout=60, limits=limits, verify=False) as flood,
        httpx.AsyncClient(base_url=api.url, headers=alice.client.headers, timeout=60, verify=False) as http,
    ):
        good(await http.get("/me"))
        process = psutil.Process(api.process.pid)
        before, most, slowest = process.memory_info().rss, 0, 0.0
        logins = asyncio.gather(*(log_in(flood, new_email()) for _ in range(40)))
        while not logins.done():
            begun = time.perf_counter()
            good(await http.get("/me"))
            slowest = max(slowest, time.perf_counter() - begun)
            most = max(most, process.memory_info().rss)
        assert {answer.status_code for answer in await logins} == {401}
        # As many runs at once as there are cores, of 64 MiB each.
        assert most - before < ((os.cpu_count() or 1) + 1) * 64 * 1024 * 1024
        assert slowest < 2, slowest


# ---------------------------------------------------------------------------------- memory that nobody may look at


@pytest.fixture
async def processes(settings: Settings, migrated: None, tmp_path: Path) -> AsyncIterator[dict[str, int]]:
    """The ids of an API and a worker."""
    async with running_api_process(environ_of(settings), tmp_path / "api") as api:
        worker = Process("worker", environ_of(settings), tmp_path / "worker")
        try:
            await asyncio.to_thread(wait_for_core_limit, worker.process.pid)
            yield {"api": api.process.pid, "worker": worker.process.pid}
        finally:
            worker.kill()


def wait_for_core_limit(pid: int) -> None:
    deadline = time.monotonic() + 20
    while core_limit(pid) != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)


def core_limit(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_CORE)


async def test_processes_leave_no_image_of_their_memory(processes: dict[str, int]) -> None:
    assert {name: core_limit(pid) for name, pid in processes.items()} == {"api": (0, 0), "worker": (0, 0)}


@pytest.mark.parametrize("verb", ["up", "api", "worker"])
def test_process_can_not_be_dumped_before_it_reads_a_secret(verb: str) -> None:
    """`forbid` comes before the settings, which hold keys; the kernel says what it then allows."""
    program = f"""
import ctypes, resource, sys
import server.cli, server.settings, tasks.worker
def load(environ):
    print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
    sys.exit(7)
server.settings.load = tasks.worker.load = load
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
server.cli.cli(["{verb}"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, "1\n(0, 0) 0\n"), done.stderr
