"""Rate limits: who is held back, what it is told, and that losing Redis lets nobody through and holds nobody up."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.jobs import ANSWER_TIMEOUT_S
from server.settings import Settings
from tests.people import PASSWORD, PATIENCE_S, Person, code, good, new_email
from tests.processes import environ_of, running_api_process
from tests.redis_server import RedisServer, running_redis

LOGINS, CALLS, ASKED = 3, 12, 2


@asynccontextmanager
async def limited_api(settings: Settings, redis_url: str, folder: Path) -> AsyncIterator[str]:
    """An API of its own, in a process of its own, on the database of the others."""
    environ = environ_of(
        settings,
        REDIS_URL=redis_url,
        RATE_LIMITS="on",
        LOGIN_RATE_PER_MINUTE=str(LOGINS),
        RATE_PER_MINUTE=str(CALLS),
        REQUEST_READ_RATE_PER_HOUR=str(ASKED),
        TRUSTED_PROXIES="127.0.0.1",
        MIN_PASSWORD_CHARACTERS="12",
        MAX_NAME_CHARACTERS="10",
        MAX_EMAIL_CHARACTERS="40",
        MAX_PASSWORD_CHARACTERS="64",
        MAX_BODY_BYTES="2048",
    )
    async with running_api_process(environ, folder / "log") as api:
        yield api.url
        api.send(signal.SIGTERM)
        await api.wait(PATIENCE_S)


@pytest.fixture(scope="module")
async def limited(settings: Settings, server: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with limited_api(settings, str(settings.redis_url), tmp_path_factory.mktemp("limited")) as url:
        yield url


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with running_redis() as redis:
        yield redis


@pytest.fixture(scope="module")
async def with_own_redis(
    settings: Settings, server: str, own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    async with limited_api(settings, own_redis.url, tmp_path_factory.mktemp("limited")) as url:
        yield url


ADDRESSES = (IPv4Address("198.18.0.0") + n for n in range(1, 2**16))


@asynccontextmanager
async def visitor(url: str, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody at an address that nobody else has."""
    headers = {"X-Forwarded-For": str(next(ADDRESSES))} | headers
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
        yield client


async def log_in(client: httpx.AsyncClient, email: str | None = None, password: str = PASSWORD) -> httpx.Response:
    return await client.post("/login", json={"email": email or new_email(), "password": password})


def held_back(answer: httpx.Response, name: str, limit: int, window_s: int) -> None:
    assert code(answer) == (429, "rate_limited")
    wait_s = int(answer.headers["Retry-After"])
    assert 1 <= wait_s <= window_s
    assert answer.headers["RateLimit-Policy"] == f'"{name}";q={limit};w={window_s}'
    assert answer.headers["RateLimit"] == f'"{name}";r=0;t={wait_s}'


def statuses(answers: list[httpx.Response]) -> list[int]:
    return sorted(answer.status_code for answer in answers)


async def test_logins_are_limited_by_address(limited: str) -> None:
    async with visitor(limited) as client:
        for _ in range(LOGINS):
            assert code(await log_in(client)) == (401, "unauthenticated")
        held_back(await log_in(client), "login", LOGINS, 60)
        held_back(
            await client.post("/sign-up", json={"name": "x", "email": new_email(), "password": PASSWORD}),
            *("login", LOGINS, 60),
        )
        assert code(await client.get("/me")) == (401, "unauthenticated"), "nothing else is held back"
    async with visitor(limited) as elsewhere:
        assert code(await log_in(elsewhere)) == (401, "unauthenticated")


async def test_guesses_at_the_password_that_deletes_an_account_count_as_logins(limited: str, alice: Person) -> None:
    for number in range(LOGINS + 1):
        # Each from an address of its own.
        async with visitor(limited, Authorization=f"Bearer {alice.token}") as client:
            answer = await client.post("/me/delete", json={"password": f"guess number {number}"})
            if number < LOGINS:
                assert code(answer) == (403, "wrong_password")
            else:
                held_back(answer, "login", LOGINS, 60)


async def test_logins_are_limited_by_email_however_it_is_written_and_whoever_tries(limited: str, alice: Person) -> None:
    email = alice.user["email"]
    for variant in (email, email.upper(), f" {email}")[:LOGINS]:
        async with visitor(limited) as client:
            assert code(await log_in(client, variant, "not the password")) == (401, "unauthenticated")
    async with visitor(limited) as client:
        held_back(await log_in(client, email.title()), "login", LOGINS, 60)
        held_back(await log_in(client, email), "login", LOGINS, 60)
    # What is already open is not closed by strangers who try to get in.
    async with visitor(limited, Authorization=f"Bearer {alice.token}") as client:
        good(await client.get("/me"))


async def test_current_password_is_not_guessed_faster_than_by_logging_in(limited: str, alice: Person) -> None:
    async with visitor(limited, Authorization=f"Bearer {alice.token}") as client:
        for _ in range(LOGINS):
            answer = await client.patch("/me", json={"password": "another password", "current_password": "a guess"})
            assert code(answer) == (403, "wrong_password")
        answer = await client.patch("/me", json={"password": "another password", "current_password": PASSWORD})
        held_back(answer, "login", LOGINS, 60)
        good(await client.patch("/me", json={"name": "Alicia"}))


async def test_what_does_not_fit_is_refused_without_counting(limited: str) -> None:
    async with visitor(limited) as client:
        for _ in range(LOGINS + 1):
            assert code(await client.post("/login", content=b"{")) == (400, "malformed_json")
            assert code(await client.post("/login", json={})) == (422, "invalid")
        assert code(await log_in(client)) == (401, "unauthenticated")


async def test_calls_are_limited_by_user_and_counted_before_the_body_is_read(
    limited: str, alice: Person, bob: Person
) -> None:
    async with visitor(limited, Authorization=f"Bearer {alice.token}") as client:
        answers = await asyncio.gather(*(client.get("/me") for _ in range(CALLS + 5)))
        assert statuses(answers) == [200] * CALLS + [429] * 5
        for answer in (await client.get("/me"), await client.post("/groups", content=b"{"), await client.get("/keys")):
            held_back(answer, "call", CALLS, 60)
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Request-Id"]
    async with visitor(limited, Authorization=f"Bearer {bob.token}") as client:
        good(await client.get("/me"))


async def test_asking_to_read_is_limited_by_user(limited: str, alice: Person, bob: Person) -> None:
    group_id = await alice.found_group()
    posts = [await alice.publish(group_id) for _ in range(ASKED + 1)]
    await alice.add(group_id, bob)
    async with visitor(limited, Authorization=f"Bearer {bob.token}") as client:
        for post in posts[:ASKED]:
            good(await client.post(f"/posts/{post['id']}/request_read"), 201)
        held_back(await client.post(f"/posts/{posts[ASKED]['id']}/request_read"), "request_read", ASKED, 3600)
        good(await client.get(f"/posts/{posts[ASKED]['id']}"))


async def test_redis_is_told_no_address_of_a_mailbox(with_own_redis: str, own_redis: RedisServer) -> None:
    email = new_email()
    async with visitor(with_own_redis) as client:
        await log_in(client, email)
    reader, writer = await asyncio.open_unix_connection(own_redis.url.removeprefix("unix://"))
    writer.write(b"KEYS *\r\n")
    await writer.drain()
    size = int((await reader.readline())[1:])
    names = b"".join([await reader.readline() for _ in range(2 * size)])
    writer.close()
    assert b"secureblogs:limits" in names
    assert b"login" in names
    assert email.encode() not in names
    assert email.partition("@")[0].encode() not in names


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_without_redis_all_is_answered_and_logins_are_limited_all_the_same(
    with_own_redis: str, own_redis: RedisServer, alice: Person, how: str
) -> None:
    async with visitor(with_own_redis) as client:
        await log_in(client)
    if how == "killed":
        own_redis.kill()
    else:
        own_redis.send(signal.SIGSTOP)
    try:
        async with visitor(with_own_redis, Authorization=f"Bearer {alice.token}") as client:
            start = time.monotonic()
            good(await client.get("/me"))
            # Less than a command to Redis may take.
            assert time.monotonic() - start < ANSWER_TIMEOUT_S
            for _ in range(5):
                good(await client.get("/groups"))
            assert time.monotonic() - start < 2 * ANSWER_TIMEOUT_S, "Redis is waited for once, not each time"
            good(await client.post("/groups", json={"name": "Friends"}), 201)
            unavailable = await client.post("/ws-tickets")
            assert code(unavailable) == (503, "unavailable")
            assert unavailable.headers["Retry-After"]
        answers = [
            await attempt(with_own_redis, address="198.19.0.1" if how == "killed" else "198.19.0.2")
            for _ in range(LOGINS + 2)
        ]
        let_in = [answer.status_code for answer in answers].index(429)
        # One more where a minute of the clock begins meanwhile: of the one before only a share counts then.
        assert let_in in {LOGINS, LOGINS + 1}
        held_back(answers[-1], "login", LOGINS, 60)
    finally:
        if how == "killed":
            own_redis.start()
        else:
            own_redis.send(signal.SIGCONT)


async def attempt(url: str, address: str) -> httpx.Response:
    async with visitor(url, **{"X-Forwarded-For": address}) as client:
        return await log_in(client)


async def test_settings_narrow_what_is_taken(limited: str) -> None:
    body = {"name": "x" * 10, "email": new_email(), "password": "x" * 12}
    async with visitor(limited) as client:
        for field, value in (
            *(("name", "x" * 11), ("password", "x" * 11), ("password", "x" * 65)),
            ("email", "x" * 29 + "@example.org"),
        ):
            answer = await client.post("/sign-up", json=body | {field: value})
            assert code(answer) == (422, "invalid"), field
            assert [error["pointer"] for error in answer.json()["errors"]] == [f"/{field}"]
        assert code(await client.post("/sign-up", content=b" " * 2049)) == (413, "too_large")
        user = good(await client.post("/sign-up", json=body), 201)
    async with visitor(limited, Authorization=f"Bearer {user['token']['token']}") as client:
        change = {"password": "x" * 11, "current_password": "x" * 12}
        assert code(await client.patch("/me", json=change)) == (422, "invalid")


async def test_limits_are_off_where_settings_say_so(server: str, alice: Person) -> None:
    answers: list[Any] = await asyncio.gather(*(alice.get("/me") for _ in range(CALLS * 3)))
    assert statuses(answers) == [200] * CALLS * 3
    assert not {name for answer in answers for name in answer.headers if name.startswith("ratelimit")}
