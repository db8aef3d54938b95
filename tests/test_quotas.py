"""Quotas of a day: who is refused, what is counted, and what is left of it when Redis, a worker or a user goes."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
import uuid_utils.compat
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from server import database, jobs, quotas, usage
from server.breaker import ANSWER_TIMEOUT_S, Breaker
from server.errors import QuotaExceeded
from server.quotas import Quotas
from server.settings import Settings
from server.usage import Counts, Kind, UserDay
from tasks.sweep import write_usage
from tests.faults.interleavings import insert_user
from tests.people import PATIENCE_S, Person, code, good, until
from tests.processes import Api, environ_of, running_api_process
from tests.redis_server import RedisServer, running_redis

pytestmark = pytest.mark.usefixtures("database_pool")

DAY_S = 86400
REQUESTS, POSTS, BYTES = 40, 3, 1000
LIMITS = {"quota_requests": REQUESTS, "quota_posts": POSTS, "quota_upload_bytes": BYTES}


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[ArqRedis]:
    pool = await jobs.create_pool(redis_server.url)
    yield pool
    await pool.aclose(close_connection_pool=True)


@pytest.fixture
async def user_id(database_pool: None) -> UUID:
    return await insert_user()


@asynccontextmanager
async def process(
    settings: Settings,
    redis_server: RedisServer,
    clock: Callable[[], float] = time.time,
    patience_s: float = ANSWER_TIMEOUT_S,
    **limits: int,
) -> AsyncIterator[Quotas]:
    """What one API process has, with connections of its own."""
    redis = await jobs.create_pool(redis_server.url, answer_timeout_s=max(patience_s, jobs.ANSWER_TIMEOUT_S))
    try:
        async with Quotas(redis, Breaker(patience_s), msgspec.structs.replace(settings, **limits), clock) as counting:
            yield counting
    finally:
        await redis.aclose(close_connection_pool=True)


@pytest.fixture
async def limited(settings: Settings, redis_server: RedisServer, database_pool: None) -> AsyncIterator[Quotas]:
    async with process(settings, redis_server, time.time, PATIENCE_S, **LIMITS) as counting:
        yield counting


@pytest.fixture
async def other(settings: Settings, redis_server: RedisServer, database_pool: None) -> AsyncIterator[Quotas]:
    async with process(settings, redis_server, time.time, PATIENCE_S, **LIMITS) as counting:
        yield counting


@pytest.fixture
async def unlimited(settings: Settings, redis_server: RedisServer, database_pool: None) -> AsyncIterator[Quotas]:
    async with process(settings, redis_server) as counting:
        yield counting


def today() -> date:
    return datetime.now(UTC).date()


async def written(user_id: UUID, day: date | None = None) -> Counts | None:
    whose = UserDay(user_id, day or today())
    return (await usage.read([whose])).get(whose)


async def counted(counting: Quotas, user_id: UUID, at: float | None = None) -> Counts:
    return (await counting.today(user_id, at=at)).counts


async def take(counting: Quotas, user_id: UUID, kind: Kind = "posts", amount: int = 1, at: float | None = None) -> bool:
    try:
        await counting.take(user_id, kind, amount, at=at)
    except QuotaExceeded:
        return False
    return True


async def write(redis: ArqRedis) -> None:
    await write_usage(redis, older_than_s=0)


async def never() -> bool:
    return False


# ------------------------------------------------------------------------------------------------------ over HTTP


@pytest.fixture(scope="module")
def apis_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
async def apis(
    settings: Settings, server: str, apis_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[list[Api]]:
    """Two processes with quotas, on one Redis; people sign up elsewhere, so what they do before is not counted here."""
    folder = tmp_path_factory.mktemp("apis")
    limits = {name.upper(): str(limit) for name, limit in LIMITS.items()}
    environ = environ_of(settings, REDIS_URL=apis_redis.url, RATE_LIMITS="on", **limits)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running_api_process(environ, folder / name)) for name in ("one", "other")
        ]


@pytest.fixture
async def both(apis: list[Api], alice: Person) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Alice's connections to the two."""
    headers = {"Authorization": f"Bearer {alice.token}"}
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(httpx.AsyncClient(base_url=api.url, headers=headers, timeout=30))
            for api in apis
        ]


def statuses(answers: list[httpx.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


async def test_last_request_goes_to_exactly_one_of_a_hundred_over_two_processes(both: list[httpx.AsyncClient]) -> None:
    for number in range(REQUESTS - 1):
        good(await both[number % 2].get("/me"))
    answers = await asyncio.gather(*(both[number % 2].get("/me") for number in range(100)))
    assert statuses(answers) == {200: 1, 429: 99}
    found = good(await both[0].get("/me/usage"))
    # Those that were refused are not counted; to look is, though it is not refused.
    assert found["today"]["requests"] == REQUESTS + 1


async def test_last_posts_go_to_as_many_of_those_who_try_at_once(both: list[httpx.AsyncClient], alice: Person) -> None:
    group_id = await alice.found_group()
    bodies = [{"group_id": group_id, "title": "t", "content": "c", "id": new_id()} for _ in range(20)]
    answers = await asyncio.gather(*(both[n % 2].post("/posts", json=body) for n, body in enumerate(bodies)))
    assert statuses(answers) == {201: POSTS, 429: 20 - POSTS}
    assert len(good(await alice.get(f"/posts?group_id={group_id}"))["items"]) == POSTS
    # An answer may have been lost: the same request again is answered as it was, though nothing is left.
    published = next(body for body, answer in zip(bodies, answers, strict=True) if answer.status_code == 201)
    again = await both[1].post("/posts", json=published)
    assert again.status_code == 200
    assert code(await both[1].post("/posts", json=published | {"title": "other"})) == (409, "id_taken")
    assert good(await both[0].get("/me/usage"))["today"]["posts"] == POSTS


def new_id() -> str:
    return str(uuid_utils.compat.uuid7())


async def test_refusal_tells_of_what_and_for_how_long(both: list[httpx.AsyncClient]) -> None:
    before = seconds_to_midnight()
    for _ in range(REQUESTS):
        good(await both[0].get("/me"))
    answer = await both[1].post("/groups", content=b"{")
    assert code(answer) == (429, "quota_exceeded")
    assert answer.json()["detail"] == (
        f"The day's quota of {REQUESTS} requests is used up; a new day begins at midnight UTC."
    )
    wait_s = int(answer.headers["Retry-After"])
    assert before - 60 < wait_s <= before + 1 or wait_s > DAY_S - 60
    assert answer.headers["RateLimit-Policy"] == f'"requests-per-day";q={REQUESTS};w={DAY_S}'
    assert answer.headers["RateLimit"] == f'"requests-per-day";r=0;t={wait_s}'
    assert answer.headers["Cache-Control"] == "no-store"
    # To see why, and to leave, stays possible.
    assert good(await both[1].get("/me/usage"))["limits"]["requests"] == REQUESTS
    assert (await both[0].get("/me/export")).status_code == 200
    body = {"password": "this is not it"}
    assert code(await both[0].post("/me/delete", json=body)) == (403, "wrong_password")
    assert (await both[1].post("/logout")).status_code == 204


def seconds_to_midnight() -> float:
    return DAY_S - time.time() % DAY_S


async def test_posts_that_come_to_nothing_are_given_back(both: list[httpx.AsyncClient], alice: Person) -> None:
    group_id = await alice.found_group()
    body = {"group_id": group_id, "title": "t", "content": "c", "id": new_id()}
    good(await both[0].post("/posts", json=body), 201)
    for _ in range(2 * POSTS):
        assert code(await both[1].post("/posts", json=body | {"id": new_id(), "title": ""})) == (422, "invalid")
        assert code(await both[0].post("/posts", json=body | {"group_id": new_id()})) == (404, "group_not_found")
        assert code(await both[1].post("/posts", json=body | {"title": "another"})) == (409, "id_taken")
        assert (await both[0].post("/posts", json=body)).status_code == 200
    assert good(await both[1].get("/me/usage"))["today"]["posts"] == 1
    for _ in range(POSTS - 1):
        good(await both[1].post("/posts", json=body | {"id": new_id()}), 201)
    refused = await both[0].post("/posts", json=body | {"id": new_id()})
    assert code(refused) == (429, "quota_exceeded")
    assert refused.headers["RateLimit-Policy"] == f'"posts-per-day";q={POSTS};w={DAY_S}'


async def test_sealed_posts_count_like_the_others(both: list[httpx.AsyncClient], alice: Person) -> None:
    group_id = await alice.found_group()
    [device] = alice.devices
    body = {
        **{"id": new_id(), "group_id": group_id, "heading": "", "content": "", "commitment": "", "signature": ""},
        **{"signing_key_id": device.id, "sealed_keys": [], "withheld": [device.id]},
    }
    for _ in range(2 * POSTS):
        assert code(await both[0].post("/posts/sealed", json=body)) == (422, "invalid")
    post = {"group_id": group_id, "title": "t", "content": "c"}
    for _ in range(POSTS):
        good(await both[0].post("/posts", json=post), 201)
    assert code(await both[1].post("/posts/sealed", json=body)) == (429, "quota_exceeded")


async def test_who_is_nobody_is_not_counted(apis: list[Api], apis_redis: RedisServer) -> None:
    redis = await jobs.create_pool(apis_redis.url)
    before = set(await redis.keys("secureblogs:usage:*:*"))
    async with httpx.AsyncClient(base_url=apis[0].url) as nobody:
        assert code(await nobody.get("/me")) == (401, "unauthenticated")
        headers = {"Authorization": f"Bearer sbs_{'x' * 43}"}
        assert code(await nobody.get("/me", headers=headers)) == (401, "unauthenticated")
        assert code(await nobody.get("/me/usage", headers=headers)) == (401, "unauthenticated")
    assert {key for key in await redis.keys("secureblogs:usage:*:*") if b"flushed" not in key} <= before
    await redis.aclose(close_connection_pool=True)


@pytest.mark.parametrize("quota", [REQUESTS * 5, 0])
async def test_call_costs_one_round_trip_where_there_is_a_quota_and_else_none(
    settings: Settings, alice: Person, redis_server: RedisServer, redis: ArqRedis, tmp_path: Path, quota: int
) -> None:
    calls = 100
    environ = environ_of(settings, REDIS_URL=redis_server.url, QUOTA_REQUESTS=str(quota))
    async with (
        running_api_process(environ, tmp_path / "log") as api,
        httpx.AsyncClient(base_url=api.url, headers={"Authorization": f"Bearer {alice.token}"}) as client,
    ):
        good(await client.get("/me"))

        async def is_known() -> bool:
            return bool(await redis.exists(f"secureblogs:usage:{usage.number_of(today())}:{alice.id}"))

        await until(is_known)
        before, started = await scripts_run(redis), time.monotonic()
        for _ in range(calls):
            good(await client.get("/me"))
        # The flushes are one a second, however many calls there are.
        flushes = time.monotonic() - started + 1
        asked = await scripts_run(redis) - before
        assert (calls if quota else 0) <= asked <= (calls if quota else 0) + flushes
        assert good(await client.get("/me/usage"))["today"]["requests"] == calls + 2


async def scripts_run(redis: ArqRedis) -> int:
    stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_without_redis_nobody_is_refused_and_what_was_done_is_counted_later(
    settings: Settings, alice: Person, redis_server: RedisServer, tmp_path: Path, how: str
) -> None:
    calls = 10
    environ = environ_of(
        settings, REDIS_URL=redis_server.url, RATE_LIMITS="on", RATE_PER_MINUTE="1000", QUOTA_REQUESTS="3"
    )
    async with (
        running_api_process(environ, tmp_path / "log") as api,
        httpx.AsyncClient(base_url=api.url, headers={"Authorization": f"Bearer {alice.token}"}, timeout=30) as client,
    ):
        for _ in range(3):
            good(await client.get("/me"))
        assert code(await client.get("/me")) == (429, "quota_exceeded")
        if how == "killed":
            redis_server.kill()
        else:
            redis_server.send(signal.SIGSTOP)
        try:
            start = time.monotonic()
            good(await client.get("/me"))
            assert time.monotonic() - start < 2 * ANSWER_TIMEOUT_S, "rate limit and quota wait for Redis once"
            for _ in range(calls - 1):
                good(await client.get("/me"))
            assert good(await client.get("/me/usage"))["today"]["requests"] >= calls
        finally:
            if how == "killed":
                redis_server.start()
            else:
                redis_server.send(signal.SIGCONT)

        async def is_counted() -> bool:
            found = good(await client.get("/me/usage"))["today"]["requests"]
            return int(found) >= calls

        await until(is_counted)

        async def is_refused() -> bool:
            return (await client.get("/me")).status_code == 429

        await until(is_refused)


async def test_usage_is_of_thirty_days_and_those_that_have_anything(alice: Person) -> None:
    days = [today() - timedelta(days=ago) for ago in (1, 2, 29, 30, 400)]
    await usage.write({UserDay(alice.id, day): Counts(number + 5, number, 2**40) for number, day in enumerate(days)})
    await usage.write({UserDay(alice.id, today() - timedelta(days=3)): Counts()})
    good(await alice.get("/me"))
    found = good(await alice.get("/me/usage"))
    assert found.keys() == {"today", "limits", "days"}
    assert found["limits"] == {"requests": 0, "posts": 0, "upload_bytes": 0}
    assert found["today"]["requests"] >= 2, "this call too"
    assert found["today"]["posts"] == found["today"]["upload_bytes"] == 0
    assert found["days"] == [
        {"date": str(today()), **found["today"]},
        *({"date": str(day), "requests": n + 5, "posts": n, "upload_bytes": 2**40} for n, day in enumerate(days[:3])),
    ]


async def test_usage_of_today_is_what_redis_or_postgres_has_whichever_is_more(alice: Person) -> None:
    # From here on Redis knows of alice, and asks Postgres no more.
    assert good(await alice.get("/me/usage"))["today"]["posts"] == 0
    await usage.write({UserDay(alice.id, today()): Counts(0, 7)})
    found = good(await alice.get("/me/usage"))
    assert found["today"]["posts"] == found["days"][0]["posts"] == 7
    assert found["today"]["requests"] >= 2


async def test_a_running_worker_writes_what_was_done(alice: Person, settings: Settings) -> None:
    good(await alice.post("/groups", {"name": "Friends"}), 201)
    redis = await jobs.create_pool(str(settings.redis_url))
    number = usage.number_of(today())

    async def is_due() -> bool:
        return bool(await redis.zadd("secureblogs:usage:changed", {f"{number}:{alice.id}": 1}, xx=True, ch=True))

    await until(is_due)

    async def is_written() -> bool:
        return await written(alice.id) is not None

    await until(is_written)
    assert (await written(alice.id) or Counts()).requests >= 2  # the key, the group
    await redis.aclose(close_connection_pool=True)


# --------------------------------------------------------------------------------------------- taking, giving back


async def test_last_unit_goes_to_one_of_a_hundred_and_bytes_are_never_more_than_allowed(
    limited: Quotas, other: Quotas, user_id: UUID
) -> None:
    outcomes = await asyncio.gather(*(take((limited, other)[n % 2], user_id) for n in range(100)))
    assert sum(outcomes) == POSTS
    amounts = [1 + n * 37 % 90 for n in range(100)]
    outcomes = await asyncio.gather(
        *(take((limited, other)[n % 2], user_id, "upload_bytes", amount) for n, amount in enumerate(amounts))
    )
    taken = sum(amount for amount, outcome in zip(amounts, outcomes, strict=True) if outcome)
    assert BYTES - max(amounts) < taken <= BYTES
    assert await counted(other, user_id) == Counts(0, POSTS, taken)


async def test_refusal_says_how_many_bytes_are_left(limited: Quotas, user_id: UUID) -> None:
    await limited.take(user_id, "upload_bytes", BYTES - 10)
    with pytest.raises(QuotaExceeded) as refused:
        await limited.take(user_id, "upload_bytes", 11, at=None)
    assert refused.value.facts["left"] == 10
    await limited.take(user_id, "upload_bytes", 10)


async def test_day_begins_at_midnight_of_utc(limited: Quotas, user_id: UUID, redis: ArqRedis) -> None:
    midnight = datetime(2100, 3, 1, tzinfo=UTC).timestamp()
    for at in (midnight - 1, midnight):
        assert [await take(limited, user_id, at=at) for _ in range(POSTS + 1)] == [True] * POSTS + [False]
        with pytest.raises(QuotaExceeded) as refused:
            await limited.take(user_id, "posts", at=at)
        assert refused.value.facts["retry_after_s"] == (1 if at < midnight else DAY_S)
        assert await counted(limited, user_id, at) == Counts(posts=POSTS)
    await write_usage(redis, older_than_s=-200 * 365 * DAY_S)
    assert await written(user_id, date(2100, 2, 28)) == await written(user_id, date(2100, 3, 1)) == Counts(posts=POSTS)


async def test_days_are_those_of_redis_clock_whatever_this_machine_believes(
    settings: Settings, redis_server: RedisServer, user_id: UUID, redis: ArqRedis
) -> None:
    async with process(settings, redis_server, lambda: time.time() + 3 * DAY_S, quota_posts=1) as ahead:
        for kind in ("requests", "posts"):
            await ahead.take(user_id, kind)
        await ahead.flush()
        assert await counted(ahead, user_id) == Counts(1, 1)
        redis_server.kill()
        ahead.count(user_id, "upload_bytes", 7)
        redis_server.start()
        await until_flushed(ahead)
        assert await counted(ahead, user_id) == Counts(0, 0, 7), "the others went with that Redis"
    await write(redis)
    assert await written(user_id) == Counts(0, 0, 7)


async def until_flushed(counting: Quotas) -> None:
    async def is_flushed() -> bool:
        await counting.flush()
        return not (counting._batch or counting._counts)

    await until(is_flushed)


async def test_what_was_not_used_is_given_back_at_once_and_to_its_day(
    limited: Quotas, other: Quotas, user_id: UUID
) -> None:
    midnight = datetime(2100, 3, 1, tzinfo=UTC).timestamp()
    for _ in range(2 * POSTS):
        with pytest.raises(LookupError):
            async with limited.reserve(user_id, "posts", never, at=midnight - 1):
                raise LookupError
        async with other.reserve(user_id, "posts", never, at=midnight - 1):
            pass
    assert await counted(other, user_id, midnight - 1) == Counts()
    for _ in range(POSTS):
        async with limited.reserve(user_id, "posts", never, at=midnight - 1) as reservation:
            reservation.is_used = True
    with pytest.raises(QuotaExceeded):
        async with limited.reserve(user_id, "posts", never, at=midnight - 1):
            pytest.fail("was let in")
    assert await counted(other, user_id, midnight) == Counts()


async def test_cancelled_call_gives_back(limited: Quotas, user_id: UUID) -> None:
    begun = asyncio.Event()

    async def hang() -> None:
        async with limited.reserve(user_id, "posts", never):
            begun.set()
            await asyncio.sleep(PATIENCE_S)

    task = asyncio.create_task(hang())
    await begun.wait()
    assert await counted(limited, user_id) == Counts(posts=1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await counted(limited, user_id) == Counts()


async def test_batch_whose_answer_is_lost_is_not_counted_twice(
    unlimited: Quotas, user_id: UUID, redis_server: RedisServer
) -> None:
    unlimited.count(user_id, "requests")
    # From now on Redis asks for nothing of this user from Postgres, and adds up what comes.
    await unlimited.flush()
    unlimited.count(user_id, "requests", 5)
    redis_server.send(signal.SIGSTOP)
    # Redis finds it when it wakes up; nobody waits for the answer any more.
    await unlimited.flush()
    unlimited.count(user_id, "requests", 2)
    redis_server.send(signal.SIGCONT)
    await until_flushed(unlimited)
    assert await counted(unlimited, user_id) == Counts(requests=8)


async def test_stopping_brings_to_redis_what_is_left(
    settings: Settings, redis_server: RedisServer, unlimited: Quotas, user_id: UUID
) -> None:
    async with process(settings, redis_server) as stopping:
        for _ in range(3):
            stopping.count(user_id, "requests")
    assert await counted(unlimited, user_id) == Counts(requests=3)


async def test_batches_hold_many_users(unlimited: Quotas, redis: ArqRedis) -> None:
    ids = [await insert_user() for _ in range(20)]
    strangers = [uuid_utils.compat.uuid7() for _ in range(2 * quotas.FLUSH_AT_ONCE)]
    for number, one in enumerate([*strangers, *ids]):
        unlimited.count(one, "requests", number + 1)
    await write_later(unlimited, redis)
    for number, one in enumerate(ids, len(strangers)):
        assert await written(one) == Counts(requests=number + 1)
    assert not await redis.zcard("secureblogs:usage:changed")


async def write_later(counting: Quotas, redis: ArqRedis) -> None:
    await counting.flush()
    await write(redis)


# ---------------------------------------------------------------------------------------------- written by workers


async def test_what_is_written_is_the_total_however_often_it_is_written(
    unlimited: Quotas, user_id: UUID, redis: ArqRedis
) -> None:
    unlimited.count(user_id, "requests", 5)
    unlimited.count(user_id, "posts")
    await unlimited.flush()
    due = await quotas.changed(redis, 0, 10)
    # Killed between writing and saying so: it is still due, and written again.
    await usage.write(dict(due))
    await usage.write(dict(due))
    for _ in range(2):
        await write(redis)
        assert await written(user_id) == Counts(5, 1)
    assert await quotas.changed(redis, 0, 10) == []
    unlimited.count(user_id, "requests")
    await write_later(unlimited, redis)
    assert await written(user_id) == Counts(6, 1)


async def test_workers_at_once_write_all_and_wait_for_nobody_in_a_circle(
    unlimited: Quotas, redis: ArqRedis, redis_server: RedisServer
) -> None:
    ids = [await insert_user() for _ in range(30)]
    others = [await jobs.create_pool(redis_server.url) for _ in range(3)]
    for turn in range(1, 6):
        for one in ids:
            unlimited.count(one, "requests")
        await unlimited.flush()
        await asyncio.gather(*(write(one) for one in [redis, *others]))
        assert [await written(one) for one in ids] == [Counts(requests=turn)] * len(ids)
    for pool in others:
        await pool.aclose(close_connection_pool=True)


async def test_rows_are_written_in_one_order_whoever_names_them_in_which(database_pool: None) -> None:
    ids = [await insert_user() for _ in range(10)]
    rows = [UserDay(one, today() - timedelta(days=ago)) for one in ids for ago in range(100)]
    await usage.write(dict.fromkeys(rows, Counts(1)))
    for turn in range(5):
        orders = (rows, list(reversed(rows))) * 2
        found = await asyncio.gather(*(usage.write(dict.fromkeys(order, Counts(turn))) for order in orders))
        assert [len(one) for one in found] == [len(rows)] * len(orders)


async def test_older_numbers_never_lower_what_is_written(user_id: UUID) -> None:
    await usage.write({UserDay(user_id, today()): Counts(5, 1, 10)})
    found = await usage.write({UserDay(user_id, today()): Counts(4, 2, 0)})
    assert found == {UserDay(user_id, today()): Counts(5, 2, 10)}
    assert await written(user_id) == Counts(5, 2, 10)


async def test_what_changes_while_it_is_written_stays_due(unlimited: Quotas, user_id: UUID, redis: ArqRedis) -> None:
    unlimited.count(user_id, "requests", 5)
    await unlimited.flush()
    due = await quotas.changed(redis, 0, 10)
    unlimited.count(user_id, "requests")
    await unlimited.flush()
    await quotas.settle(redis, due, await usage.write(dict(due)))
    assert [one.counts for one in await quotas.changed(redis, 0, 10)] == [Counts(requests=6)]


async def test_nothing_is_written_before_its_time_nor_expires_before_it_is_written(
    unlimited: Quotas, user_id: UUID, redis: ArqRedis
) -> None:
    unlimited.count(user_id, "requests")
    await unlimited.flush()
    await write_usage(redis)
    assert await written(user_id) is None
    key = f"secureblogs:usage:{usage.number_of(today())}:{user_id}"
    assert await redis.ttl(key) == -1
    await write(redis)
    assert 0 < await redis.ttl(key) <= 2 * DAY_S
    unlimited.count(user_id, "requests")
    await unlimited.flush()
    assert await redis.ttl(key) == -1


async def test_counts_of_deleted_users_are_dropped(unlimited: Quotas, user_id: UUID, redis: ArqRedis) -> None:
    gone = await insert_user()
    for one in (gone, user_id):
        unlimited.count(one, "requests", 3)
        unlimited.count(one, "requests", 2, day=usage.number_of(today()) - 1)
    await write_later(unlimited, redis)
    for one in (gone, user_id):
        unlimited.count(one, "requests")
    await unlimited.flush()
    await database.execute("DELETE FROM users WHERE id = $1", gone)
    await write(redis)
    assert await written(user_id) == Counts(requests=4)
    assert await written(gone) is None
    assert await redis.zcard("secureblogs:usage:changed") == 0
    left = await redis.keys("*")
    assert not [key for key in left if str(gone).encode() in key]
    assert [key for key in left if str(user_id).encode() in key]


async def test_deleting_users_and_writing_what_they_did_never_wait_in_a_circle(
    unlimited: Quotas, redis: ArqRedis
) -> None:
    for _ in range(15):
        ids = [await insert_user() for _ in range(8)]
        for one in ids:
            unlimited.count(one, "requests", day=usage.number_of(today()) - 1)
        await write_later(unlimited, redis)
        for one in ids:
            unlimited.count(one, "requests")
            unlimited.count(one, "requests", day=usage.number_of(today()) - 1)
        await unlimited.flush()
        await asyncio.gather(
            write(redis), *(database.execute("DELETE FROM users WHERE id = $1", one) for one in reversed(ids))
        )
    assert await redis.zcard("secureblogs:usage:changed") == 0


# ------------------------------------------------------------------------------------------------------ lost counts


async def test_emptied_redis_loses_no_more_than_what_was_not_written(
    limited: Quotas, other: Quotas, unlimited: Quotas, user_id: UUID, redis: ArqRedis
) -> None:
    await limited.take(user_id, "posts", 2)
    unlimited.count(user_id, "requests", 9)
    await write_later(unlimited, redis)
    await limited.take(user_id, "posts", 1)
    await redis.flushall()
    # One unit more than there should be, for the last one had not been written.
    assert [await take(one, user_id) for one in (limited, other)] == [True, False]
    unlimited.count(user_id, "requests")
    assert await counted(unlimited, user_id) == Counts(10, 3)
    await write_later(unlimited, redis)
    assert await written(user_id) == Counts(10, 3)


async def test_what_is_given_back_to_an_emptied_redis_makes_nothing_less_than_nothing(
    limited: Quotas, user_id: UUID, redis: ArqRedis
) -> None:
    async with limited.reserve(user_id, "posts", never):
        await redis.flushall()
    await write(redis)
    assert await written(user_id) == Counts()


async def test_two_processes_that_find_redis_empty_at_once_hand_out_no_unit_twice(
    limited: Quotas, other: Quotas, user_id: UUID, redis: ArqRedis
) -> None:
    await limited.take(user_id, "posts", POSTS - 1)
    await write(redis)
    await redis.flushall()
    outcomes = await asyncio.gather(*(take((limited, other)[n % 2], user_id) for n in range(20)))
    assert sum(outcomes) == 1


async def test_redis_that_goes_back_to_an_old_copy_is_set_right(
    limited: Quotas, user_id: UUID, redis: ArqRedis, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does that is started with a snapshot of hours ago."""
    await limited.take(user_id, "posts")
    await write(redis)
    keys = [key async for key in redis.scan_iter("secureblogs:usage:*")]
    yesterday = usage.number_of(today()) - 1
    copy = {key: await redis.dump(key) for key in keys}
    await limited.take(user_id, "posts", POSTS - 1)
    await write(redis)
    redis_server.kill()
    redis_server.start()
    for key, value in copy.items():
        await redis.restore(key, 0, value)
    await redis.set("secureblogs:usage:whole_after", yesterday)
    await until_answered(limited, user_id)
    caplog.clear()
    await write(redis)
    await write(redis)
    assert [record.message for record in caplog.records if "an old copy" in record.message]
    assert not await take(limited, user_id)
    assert await written(user_id) == Counts(posts=POSTS)


async def until_answered(counting: Quotas, user_id: UUID) -> None:
    """The process noticed that Redis is there again, and used a unit there."""

    async def is_in_redis() -> bool:
        return (await counted(counting, user_id)).posts > 0

    await until(is_in_redis)
    assert await take(counting, user_id)


async def test_lost_redis_is_told_once_for_all_workers(
    unlimited: Quotas, user_id: UUID, redis: ArqRedis, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> int:
        return sum("may not be counted" in record.message for record in caplog.records)

    unlimited.count(user_id, "requests")
    await write_later(unlimited, redis)
    caplog.clear()
    await asyncio.gather(*(write(redis) for _ in range(5)))
    assert told() == 0
    await redis.flushall()
    await asyncio.gather(*(write(redis) for _ in range(5)))
    assert told() == 1
    redis_server.kill()
    redis_server.start()
    await until_there(redis)
    await asyncio.gather(*(write(redis) for _ in range(5)))
    assert told() == 2


async def test_redis_that_is_started_anew_with_all_its_counts_is_no_loss(
    unlimited: Quotas, user_id: UUID, redis: ArqRedis, caplog: pytest.LogCaptureFixture
) -> None:
    unlimited.count(user_id, "requests", 3)
    await write_later(unlimited, redis)
    caplog.clear()
    # What a restart changes where the data are kept.
    await redis.set("secureblogs:usage:run_id", "0" * 40)
    unlimited.count(user_id, "requests")
    await write_later(unlimited, redis)
    assert await written(user_id) == Counts(requests=4)
    assert not [record for record in caplog.records if "may not be counted" in record.message]


async def until_there(redis: ArqRedis) -> None:
    async def answers() -> Any:
        try:
            return await redis.ping()
        except (RedisError, OSError):
            return False

    await until(answers)


async def test_what_is_only_read_again_from_postgres_expires(limited: Quotas, user_id: UUID, redis: ArqRedis) -> None:
    await usage.write({UserDay(user_id, today()): Counts(posts=POSTS)})
    assert not await take(limited, user_id)
    assert 0 < await redis.ttl(f"secureblogs:usage:{usage.number_of(today())}:{user_id}") <= 2 * DAY_S


async def test_new_redis_asks_postgres_once_for_a_user_and_on_other_days_never(
    limited: Quotas, user_id: UUID, redis: ArqRedis
) -> None:
    await usage.write({UserDay(user_id, today()): Counts(posts=1)})
    # The first call also brings the script there.
    await limited.take(await insert_user(), "posts")
    tomorrow = time.time() + DAY_S
    await usage.write({UserDay(user_id, today() + timedelta(days=1)): Counts(posts=1)})
    before = await scripts_run(redis)
    await limited.take(user_id, "posts")
    assert await scripts_run(redis) - before == 2
    await limited.take(user_id, "posts")
    assert await scripts_run(redis) - before == 3
    assert not await take(limited, user_id)
    # What was counted on days that this Redis has seen from their beginning is all in it.
    before = await scripts_run(redis)
    await limited.take(user_id, "posts", at=tomorrow)
    assert await scripts_run(redis) - before == 1
    assert await counted(limited, user_id, tomorrow) == Counts(posts=1)
