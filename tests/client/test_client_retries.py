import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from client import Client, Retries
from client.errors import (
    BadAddress,
    BadAnswer,
    BadText,
    Conflict,
    Forbidden,
    Invalid,
    NetworkError,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from client.transport import is_loopback, parse_address, parse_retry_after, read_refusal
from tests.client.scripted_server import HANG_UP, Hang, Reply, Script, Server, one_after_the_other, problem, serving

USER = {"id": "01a20321-a5ff-7417-ba1c-afe16fbe8207", "name": "Alice", "created_at": "2026-01-02T03:04:05.000006Z"}
GROUP = {**USER, "role": "owner"}
POST = {
    "id": "01a20321-d56b-7462-959d-663919b96239",
    "group_id": "01a20321-c824-72d5-9037-fab242ef5d48",
    "author_id": "01a20321-a5ff-7417-ba1c-afe16fbe8207",
    "status": "pending",
    "access": "sealing",
    "created_at": "2026-01-02T03:04:05.000006Z",
}
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Sleeps(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@asynccontextmanager
async def talking(script: Script, sleeps: Sleeps, token: str | None = None) -> AsyncIterator[tuple[Server, Client]]:
    retries = Retries(tries=3, first_wait=0.2, longest_wait=30.0)
    async with serving(script) as server, Client(server.address, token, retries=retries, sleep=sleeps) as client:
        yield server, client


async def test_reading_is_repeated_after_a_broken_connection() -> None:
    sleeps = Sleeps()
    async with talking(one_after_the_other(HANG_UP, HANG_UP, Reply(200, USER)), sleeps) as (server, client):
        assert (await client.me()).name == "Alice"
    assert len(server.calls) == 3
    assert 0.1 <= sleeps[0] < 0.2 <= sleeps[1] < 0.4


def test_where_the_server_says_when_to_come_back_it_may_be_tried_more_often() -> None:
    retries = Retries(tries=2, longest_wait=30.0, told_tries=9)
    assert retries.wait(2, None, 0.0) is None
    assert retries.wait(8, 1.0, 0.0) == 1.0
    assert retries.wait(9, 1.0, 0.0) is None
    assert retries.wait(1, 31.0, 0.0) is None


async def test_a_post_is_repeated_with_the_same_id_and_body() -> None:
    async with talking(one_after_the_other(HANG_UP, Reply(200, POST)), Sleeps()) as (server, client):
        await client.create_post(UUID(POST["group_id"]), "title", "content")
    first, second = server.calls
    assert first.body == second.body
    assert UUID(first.json["id"]).version == 7


async def test_a_group_is_repeated_with_the_same_id() -> None:
    async with talking(one_after_the_other(HANG_UP, Reply(200, GROUP)), Sleeps()) as (server, client):
        await client.create_group("Book club")
    assert server.calls[0].json["id"] == server.calls[1].json["id"]


@pytest.mark.parametrize("answer", [HANG_UP, problem(503, "unavailable")], ids=["broken", "503"])
async def test_what_may_have_been_done_and_has_no_id_is_not_repeated(answer: Reply | Hang) -> None:
    sleeps = Sleeps()
    async with talking(one_after_the_other(answer), sleeps) as (server, client):
        with pytest.raises((NetworkError, Unavailable)):
            await client.sign_up("Alice", "alice@example.org", "password")
    assert len(server.calls) == 1
    assert sleeps == []


async def test_what_was_never_sent_is_repeated_whatever_it_is() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        nobody_listens = f"http://127.0.0.1:{listening.getsockname()[1]}"
    sleeps = Sleeps()
    async with Client(nobody_listens, retries=Retries(tries=3), sleep=sleeps) as client:
        with pytest.raises(NetworkError, match="can't be reached"):
            await client.login("alice@example.org", "password")
    assert len(sleeps) == 2


async def test_a_refusal_for_too_many_requests_waits_as_long_as_it_says() -> None:
    sleeps = Sleeps()
    answers = [problem(429, "rate_limited", {"Retry-After": "7"}), Reply(201, {**USER, "token": TOKEN})]
    async with talking(one_after_the_other(*answers), sleeps) as (server, client):
        await client.sign_up("Alice", "alice@example.org", "password")
    assert len(server.calls) == 2
    assert 7.0 <= sleeps[0] < 7.2


TOKEN = {"token": "sbs_new", "expires": "2026-01-16T03:04:05.000006Z"}


async def test_a_wait_that_is_too_long_is_left_to_the_caller() -> None:
    sleeps = Sleeps()
    async with talking(one_after_the_other(problem(429, "quota_exceeded", {"Retry-After": "3600"})), sleeps) as (
        _server,
        client,
    ):
        with pytest.raises(RateLimited) as caught:
            await client.me()
    assert caught.value.retry_after == 3600
    assert sleeps == []


async def test_a_server_that_stays_away_is_given_up() -> None:
    sleeps = Sleeps()
    answers = [problem(503, "unavailable", {"Retry-After": "1"})] * 3
    async with talking(one_after_the_other(*answers), sleeps) as (server, client):
        with pytest.raises(Unavailable):
            await client.me()
    assert len(server.calls) == 3


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthenticated", Unauthenticated),
        (409, "id_taken", Conflict),
        (422, "invalid", Invalid),
        (500, "", Unavailable),
    ],
)
async def test_what_would_be_refused_again_is_not_repeated(status: int, code: str, kind: type[Exception]) -> None:
    sleeps = Sleeps()
    async with talking(one_after_the_other(problem(status, code)), sleeps) as (_server, client):
        with pytest.raises(kind):
            await client.me()
    assert sleeps == []


async def test_the_token_of_a_login_is_used_from_then_on() -> None:
    answers = [Reply(200, {"token": TOKEN, "user": USER}), Reply(200, USER)]
    async with talking(one_after_the_other(*answers), Sleeps()) as (server, client):
        await client.login("alice@example.org", "password")
        await client.me()
    assert "authorization" not in server.calls[0].headers
    assert server.calls[1].headers["authorization"] == "Bearer sbs_new"


async def test_a_redirect_is_not_followed_with_the_token() -> None:
    async with talking(one_after_the_other(Reply(307, None, {"Location": "http://127.0.0.1:9/"})), Sleeps()) as (
        server,
        client,
    ):
        with pytest.raises(BadAnswer, match="sends us on to http://127"):
            await client.me()
    assert len(server.calls) == 1


@pytest.mark.parametrize("body", [b"<html>", b"\xff", b'{"id": 1}', b"[" * 100_000, b""])
async def test_an_answer_that_breaks_the_contract_is_one_error(body: bytes) -> None:
    async with talking(one_after_the_other(Reply(200, body)), Sleeps()) as (_server, client):
        with pytest.raises(BadAnswer):
            await client.me()


async def test_a_refusal_without_a_problem_keeps_its_status() -> None:
    async with talking(one_after_the_other(Reply(403, b"<h1>no</h1>")), Sleeps()) as (_server, client):
        with pytest.raises(Forbidden, match="the server answered 403"):
            await client.me()


async def test_a_refusal_carries_what_the_problem_says() -> None:
    members: dict[str, Any] = {
        "errors": [{"pointer": "/title", "detail": "is too long"}],
        "retry_at": "2026-01-03T00:00:00.000000Z",
    }
    refused = read_refusal(httpx.Response(409, json=problem(409, "recently_denied", **members).body), NOW)
    assert isinstance(refused, Conflict)
    assert str(refused) == "It is recently_denied. (title: is too long)"
    assert refused.problem.retry_at == datetime(2026, 1, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("pointer", "detail", "said"),
    [
        ("/password", "Expected `str` of length >= 8", "password: is shorter than 8 characters"),
        ("/name", "Expected `str` of length >= 1", "name: is empty"),
        ("/name", "Expected `str` of length <= 100", "name: is longer than 100 characters"),
        ("/attachments", "Expected `array` of length <= 20", "attachments: is longer than 20 items"),
        ("/sealed_keys/0/sealed_key", "is not base64", "sealed_keys/0/sealed_key: is not base64"),
        ("", "Expected `object`, got `array`", "the request: Expected `object`, got `array`"),
    ],
)
def test_what_is_invalid_is_said_for_people(pointer: str, detail: str, said: str) -> None:
    body = problem(422, "invalid", errors=[{"pointer": pointer, "detail": detail}]).body
    assert str(read_refusal(httpx.Response(422, json=body), NOW)) == said


async def test_the_status_line_counts_and_not_what_the_body_claims() -> None:
    refused = read_refusal(httpx.Response(401, json={"status": 500, "code": "token_expired"}), NOW)
    assert isinstance(refused, Unauthenticated)


async def test_text_that_is_no_unicode_is_not_sent() -> None:
    async with talking(one_after_the_other(), Sleeps()) as (server, client):
        with pytest.raises(BadText):
            await client.create_group("\udc80")
    assert server.calls == []


async def test_another_users_keys_are_not_taken_for_those_asked_for() -> None:
    other = {"id": USER["id"], "name": "Mallory", "keys": []}
    async with talking(one_after_the_other(Reply(200, other)), Sleeps()) as (_server, client):
        with pytest.raises(BadAnswer):
            await client.user_keys(UUID(POST["id"]))


async def test_another_post_is_not_taken_for_the_one_asked_for() -> None:
    async with talking(one_after_the_other(Reply(200, POST)), Sleeps()) as (_server, client):
        with pytest.raises(BadAnswer):
            await client.post(UUID(POST["group_id"]))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("Fri, 02 Jan 2026 03:04:35 GMT", 30.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("²", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_waits_double_and_stay_within_their_bound() -> None:
    retries = Retries(tries=20, first_wait=0.2, longest_wait=5.0)
    assert [retries.wait(tried, None, 0.999999) for tried in (1, 2, 3, 10)] == pytest.approx(
        [0.2, 0.4, 0.8, 5.0], rel=1e-3
    )
    assert [retries.wait(tried, None, 0.0) for tried in (1, 2, 3, 10)] == pytest.approx([0.1, 0.2, 0.4, 2.5])
    assert retries.wait(20, None, 0.5) is None
    assert retries.wait(1, 5.0, 0.0) == 5.0
    assert retries.wait(1, 5.1, 0.0) is None


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        (" https://posts.example.org/ ", "https://posts.example.org"),
        ("https://example.org/secure/blogs/", "https://example.org/secure/blogs"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_an_address_is_a_url_with_or_without_a_path(address: str, parsed: str) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    "address",
    [
        "",
        "example.org",
        "ftp://example.org",
        "http://",
        "http://u:p@example.org",
        "http://a:99999",
        "http://a?b",
        "http://a#b",
        "http://[",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadAddress):
        parse_address(address)


def test_loopback_is_told_from_other_hosts() -> None:
    assert all(
        is_loopback(f"http://{host}")
        for host in ("127.0.0.1", "127.9.9.9:80", "localhost:8000", "[::1]", "a.localhost")
    )
    assert not any(
        is_loopback(f"http://{host}") for host in ("192.168.0.1", "localhost.example.org", "127.0.0.1.example.org")
    )
