"""The worker as a process of its own, on a database and a Redis that nobody else uses and that a test may break."""

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest
from arq import cron, func
from arq.connections import ArqRedis
from arq.worker import Retry

from server import channels, events, jobs
from server.channels import Hub, Subscriber
from server.embedded import Engines
from server.sealing import drafts, keys
from server.sealing.posts import PostIds, open_key
from server.settings import Settings
from tasks.seal import KEYS_AT_ONCE, place, seal_many
from tasks.sweep import isolate
from tasks.worker import Worker, open_worker
from tests.redis_server import RedisServer, running_redis

SECRET = "nobody but the members may read this"
WORKER_PAIR = keys.new_encryption_pair()
# Far more than a worker needs for anything here, on a busy machine too; what fails waits for so long.
PATIENCE_S = 30

# ------------------------------------------------------------------------------------- starting and picking jobs


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[ArqRedis]:
    pool = await jobs.create_pool(redis_server.url)
    yield pool
    await pool.aclose(close_connection_pool=True)


async def until(condition: Callable[[], Awaitable[Any]], within_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - of what happens elsewhere no event tells
            await asyncio.sleep(0.01)


async def until_empty(redis: ArqRedis, within_s: float = PATIENCE_S) -> None:
    async def is_empty() -> bool:
        return bool(await redis.zcard(redis.default_queue_name) == 0)

    await until(is_empty, within_s)


@asynccontextmanager
async def working(redis: ArqRedis, function: Any, **options: Any) -> AsyncIterator[Worker]:
    """A worker for one function, named `work`, whose poll would come too late for any test."""
    pool = await jobs.create_pool(url_of(redis))
    functions = [func(function, name="work")]
    options = {"poll_delay": PATIENCE_S, "job_deserializer": jobs.deserialize, "keep_result": 0} | options
    worker = Worker(pool, functions=functions, handle_signals=False, job_serializer=jobs.serialize, **options)
    async with Hub(pool) as hub:
        await hub.join(worker, [jobs.wake_channel(pool.default_queue_name)])
        running = asyncio.create_task(worker.main())
        try:
            yield worker
        finally:
            running.cancel()
            [outcome] = await asyncio.gather(running, return_exceptions=True)
            await worker.release()
            await pool.aclose(close_connection_pool=True)
    assert isinstance(outcome, asyncio.CancelledError), outcome


def url_of(redis: ArqRedis) -> str:
    return f"unix://{redis.connection_pool.connection_kwargs['path']}"


async def test_job_starts_without_waiting_for_the_poll(redis: ArqRedis) -> None:
    started = asyncio.Event()

    async def work(_ctx: dict[Any, Any]) -> None:
        started.set()

    async with working(redis, work) as worker:
        for number in range(3):
            started.clear()
            await jobs.enqueue(redis, "work", {f"job {number}": []})
            await asyncio.wait_for(started.wait(), 5)
            await until_true(lambda: not worker.tasks)


async def test_free_slot_is_filled_without_waiting_for_the_poll(redis: ArqRedis) -> None:
    running, most, done = 0, 0, []

    async def work(_ctx: dict[Any, Any], name: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        done.append(name)

    async with working(redis, work, max_jobs=3):
        await jobs.enqueue(redis, "work", {f"job {number}": [str(number)] for number in range(300)})
        await until_empty(redis)
    assert sorted(done, key=int) == [str(number) for number in range(300)]
    assert most == 3


async def test_what_waits_does_not_wait_for_the_poll_because_something_new_comes(redis: ArqRedis) -> None:
    done: list[str] = []

    async def work(_ctx: dict[Any, Any], name: str) -> None:
        await asyncio.sleep(0.001)
        done.append(name)

    async with working(redis, work, max_jobs=3):
        await jobs.enqueue(redis, "work", {f"old {number}": [f"old {number}"] for number in range(200)})
        for number in range(100):
            await jobs.enqueue(redis, "work", {f"new {number}": [f"new {number}"]})
        await until_empty(redis, PATIENCE_S / 2)
    # And they take their turns: nobody is served before who came long before.
    assert done.index("new 50") > 150


async def test_job_behind_hundreds_that_others_run_is_found(redis: ArqRedis) -> None:
    started = asyncio.Event()

    async def work(_ctx: dict[Any, Any]) -> None:
        started.set()

    elsewhere = [f"elsewhere {number}" for number in range(250)]
    await redis.mset({f"arq:in-progress:{job_id}": b"1" for job_id in elsewhere})
    await redis.zadd(redis.default_queue_name, dict.fromkeys(elsewhere, 1000))
    async with working(redis, work) as worker:
        for number in range(2):
            started.clear()
            await jobs.enqueue(redis, "work", {f"job {number}": []})
            await asyncio.wait_for(started.wait(), 5)
            await until_true(lambda: not worker.tasks)


async def test_two_workers_share_the_jobs_and_run_each_once(redis: ArqRedis) -> None:
    done: dict[str, list[str]] = {"first": [], "second": []}

    async def work(ctx: dict[Any, Any], name: str) -> None:
        await asyncio.sleep(0.001)
        done[ctx["worker"]].append(name)

    async with (
        working(redis, work, ctx={"worker": "first"}, max_jobs=2),
        working(redis, work, ctx={"worker": "second"}, max_jobs=2),
    ):
        await jobs.enqueue(redis, "work", {f"job {number}": [str(number)] for number in range(200)})
        await until_empty(redis)
    assert sorted(done["first"] + done["second"], key=int) == [str(number) for number in range(200)]
    assert done["first"]
    assert done["second"]


async def test_job_put_off_runs_no_sooner_and_its_tries_are_counted(redis: ArqRedis) -> None:
    begun = time.monotonic()
    tries: list[tuple[int, float]] = []

    async def work(ctx: dict[Any, Any]) -> None:
        tries.append((ctx["job_try"], time.monotonic() - begun))
        if len(tries) < 3:
            raise Retry(defer=0.2)

    async with working(redis, work, poll_delay=0.02):
        await jobs.enqueue(redis, "work", {"job": []})
        await until_empty(redis)
    assert [number for number, _ in tries] == [1, 2, 3]
    assert tries[1][1] >= 0.2
    assert tries[2][1] >= 0.4


async def test_job_that_was_put_off_since_the_queue_was_read_is_not_started(redis: ArqRedis) -> None:
    async def work(_ctx: dict[Any, Any]) -> None:
        raise AssertionError

    async with working(redis, work) as worker:
        await redis.zadd(redis.default_queue_name, {"put off": (time.time() + 60) * 1000})
        await worker.start_jobs([b"put off", b"done"])
        assert not worker.tasks
        assert not await redis.exists("arq:in-progress:put off", "arq:in-progress:done")


async def test_job_whose_claim_redis_forgot_is_not_started_again_by_its_own_worker(redis: ArqRedis) -> None:
    starts, finish = 0, asyncio.Event()

    async def work(_ctx: dict[Any, Any]) -> None:
        nonlocal starts
        starts += 1
        await finish.wait()

    async with working(redis, work) as worker:
        await jobs.enqueue(redis, "work", {"job": []})
        await until_true(lambda: starts == 1)
        await redis.delete("arq:in-progress:job")
        await worker.start_jobs([b"job"])
        assert worker.job_counter == 1
        finish.set()
        await until_empty(redis)
    assert starts == 1


async def test_worker_that_is_told_to_stop_before_it_began_does_not_begin(redis: ArqRedis) -> None:
    settings = Settings(worker_private_keys=(WORKER_PAIR.private,))
    async with open_worker(settings, redis, handle_signals=False) as worker:
        worker.handle_sig_wait_for_completion(signal.SIGTERM)
        await asyncio.wait_for(worker.main(), 10)
        assert await redis.zcard(redis.default_queue_name) == 0


async def test_released_worker_puts_back_what_it_was_at(redis: ArqRedis) -> None:
    started = asyncio.Event()

    async def work(_ctx: dict[Any, Any]) -> None:
        started.set()
        await asyncio.sleep(PATIENCE_S)

    async with working(redis, work):
        await jobs.enqueue(redis, "work", {"job": []})
        await asyncio.wait_for(started.wait(), 5)
    assert await redis.zscore(redis.default_queue_name, "job")
    assert not await redis.exists("arq:in-progress:job")


async def test_worker_outlives_redis_and_keeps_all_its_slots(redis_server: RedisServer, redis: ArqRedis) -> None:
    done: set[str] = set()

    async def work(_ctx: dict[Any, Any], name: str) -> None:
        await asyncio.sleep(0.01)
        done.add(name)

    async with working(redis, work, max_jobs=2) as worker:
        for attempt in range(2):
            await jobs.enqueue(redis, "work", {f"lost {attempt}.{n}": [f"lost {attempt}.{n}"] for n in range(20)})
            await until_true(lambda: worker.job_counter > 0)
            redis_server.kill()
            await until_true(lambda: worker.job_counter == 0)
            redis_server.start()
        await jobs.enqueue(redis, "work", {f"kept {n}": [f"kept {n}"] for n in range(20)})
        await until_true(lambda: {f"kept {n}" for n in range(20)} <= done)
        assert worker.job_counter <= 2


async def until_true(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    async def ask() -> bool:
        return condition()

    await until(ask, within_s)


async def test_jobs_enqueued_while_the_wake_up_was_deaf_run_once_it_hears_again(
    redis_server: RedisServer, redis: ArqRedis
) -> None:
    done = asyncio.Event()

    async def work(_ctx: dict[Any, Any]) -> None:
        done.set()

    async with working(redis, work):
        redis_server.kill()
        redis_server.start()
        await jobs.enqueue(redis, "work", {"job": []})
        await asyncio.wait_for(done.wait(), 10)


async def test_due_tick_goes_before_the_backlog_and_missed_ones_are_not_made_up_for(redis: ArqRedis) -> None:
    order: list[str] = []

    async def work(_ctx: dict[Any, Any], name: str) -> None:
        await asyncio.sleep(0.002)
        order.append(name)

    async def tick(ctx: dict[Any, Any]) -> None:
        order.append("tick")

    every_second = cron(tick, name="tick", second=set(range(60)), run_at_startup=True)
    await jobs.enqueue(redis, "work", {f"job {n}": [str(n)] for n in range(500)})
    async with working(redis, work, max_jobs=1, cron_jobs=[every_second], poll_delay=0.05) as worker:
        await until_empty(redis)
        ticks = order.count("tick")
        # As if it had been away from Redis for a minute.
        every_second.next_run = every_second.next_run and every_second.next_run.replace(year=2020)
        await until_true(lambda: order.count("tick") > ticks)
        assert every_second.next_run
        assert every_second.next_run.timestamp() > time.time() - 5
        assert worker.jobs_failed == 0
    assert "tick" in order[:3]


async def test_every_job_that_the_server_names_is_known_to_the_worker(redis: ArqRedis) -> None:
    settings = Settings(worker_private_keys=(WORKER_PAIR.private,))
    async with open_worker(settings, redis, handle_signals=False) as worker:
        assert set(worker.functions) == {jobs.SEAL_POST, jobs.SWEEP}
        assert {job.name for job in worker.cron_jobs} == {jobs.SWEEP}


async def test_heartbeat_tells_of_a_worker_until_it_stops(redis: ArqRedis) -> None:
    old = keys.new_encryption_pair()
    settings = Settings(worker_private_keys=(WORKER_PAIR.private, old.private))
    async with open_worker(settings, redis, handle_signals=False):
        await until(lambda: jobs.live_workers(redis))
        [alive] = await jobs.live_workers(redis)
        assert alive.pid == os.getpid()
        assert alive.worker_key_ids == tuple(drafts.worker_key_id(pair.public).hex() for pair in (WORKER_PAIR, old))
    assert await jobs.live_workers(redis) == []


# ---------------------------------------------------------------------------------------------------- sealing


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def test_each_key_gets_its_own_seal_and_a_bad_one_none(threads: ThreadPoolExecutor) -> None:
    post_key = os.urandom(32)
    pairs = [keys.new_encryption_pair() for _ in range(2 * KEYS_AT_ONCE + 50)]
    low_order, short = bytes(32), b"short"
    given = [low_order, *(pair.public for pair in pairs[:300]), short, *(pair.public for pair in pairs[300:])]

    sealed = await seal_many(threads, 2, [(post_key, public_key) for public_key in given])

    assert [position for position, key in enumerate(sealed) if key is None] == [0, 301]
    opened = [open_key(key, pair.private) for key, pair in zip(filter(None, sealed), pairs, strict=True)]
    assert set(opened) == {post_key}
    assert await seal_many(threads, 2, []) == []


async def test_sealing_many_keys_leaves_the_loop_free_and_lets_a_small_post_pass(threads: ThreadPoolExecutor) -> None:
    public_key = keys.new_encryption_pair().public
    begun = time.monotonic()
    big = asyncio.create_task(seal_many(threads, 2, [(bytes(32), public_key)] * 20_000))
    ticking = asyncio.create_task(longest_pause(big))
    await asyncio.sleep(0)
    await seal_many(threads, 2, [(bytes(32), public_key)])
    small_s = time.monotonic() - begun
    await big
    big_s = time.monotonic() - begun
    assert small_s < big_s / 4
    assert await ticking < big_s / 4


async def longest_pause(until_done: asyncio.Task[Any]) -> float:
    longest, last = 0.0, time.monotonic()
    while not until_done.done():
        await asyncio.sleep(0.001)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


def test_place_of_an_error_is_told_without_its_message() -> None:
    try:
        isolate_nothing()
    except ValueError as error:
        told = place(error)
    assert told.startswith("builtins.ValueError at tests/test_worker.py:")
    assert SECRET not in told


def isolate_nothing() -> None:
    raise ValueError(SECRET)


async def test_step_of_the_sweep_that_fails_keeps_no_other_from_its_work(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ValueError(SECRET)

    await isolate(broken)
    assert "broken failed: builtins.ValueError" in caplog.text
    assert SECRET not in caplog.text


# ---------------------------------------------------------------------------------------------------- the process


class Group(NamedTuple):
    id: uuid.UUID
    author_id: uuid.UUID
    key_count: int


@pytest.fixture(scope="module")
async def database_url(engines: Engines) -> str:
    name = f"worker_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(engines.database_url)
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    url = urlsplit(engines.database_url)._replace(path=f"/{name}").geturl()
    environ = os.environ | {"DATABASE_URL": url, "REDIS_URL": "redis://nobody.invalid"}
    await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "server.cli", "migrate"], env=environ, check=True, timeout=60
    )
    return url


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    # What another test has left would be swept up here.
    await connection.execute("TRUNCATE posts, outbox CASCADE")
    yield connection
    await connection.close()


@pytest.fixture
async def group(postgres: asyncpg.Connection) -> Group:
    return await make_group(postgres, 3)


async def make_group(postgres: asyncpg.Connection, key_count: int) -> Group:
    author_id, group_id, pair = uuid.uuid4(), uuid.uuid4(), keys.new_encryption_pair()
    await postgres.execute(
        "INSERT INTO users (id, name, email, email_key, password) VALUES ($1, 'Alice', $2, $2, '')",
        author_id,
        f"{author_id}@example.org",
    )
    await postgres.execute(
        "INSERT INTO user_groups (id, name, created_by, request_mac) VALUES ($1, 'Friends', $2, '')",
        group_id,
        author_id,
    )
    await postgres.execute(
        'INSERT INTO user_group_association ("user", "group", role) VALUES ($1, $2, \'owner\')', author_id, group_id
    )
    public_keys = [pair.public, *(keys.new_encryption_pair().public for _ in range(key_count - 1))]
    await postgres.execute(
        'INSERT INTO user_keys ("user", public_key, verify_key, proof, label)'
        " SELECT $1, k, $3, $4, 'key' FROM unnest($2::bytea[]) k",
        *(author_id, public_keys, bytes(32), bytes(64)),
    )
    return Group(group_id, author_id, key_count)


async def write_post(postgres: asyncpg.Connection, group: Group, age_s: float = 0) -> uuid.UUID:
    """A pending post that nobody has enqueued."""
    ids = PostIds(uuid.uuid4(), group.id, group.author_id)
    draft = drafts.seal_draft(ids, "A title", SECRET, [], WORKER_PAIR.public)
    await insert_draft(postgres, ids, draft, age_s)
    return ids.post


async def insert_draft(postgres: asyncpg.Connection, ids: PostIds, draft: bytes, age_s: float = 0) -> None:
    await postgres.execute(
        'INSERT INTO posts (id, "group", author, status, sealed_by, draft, request_mac, created_at)'
        " VALUES ($1, $2, $3, 'pending', 'server', $4, '', now() - make_interval(secs => $5))",
        *(*ids, draft, age_s),
    )


async def status(postgres: asyncpg.Connection, post_id: uuid.UUID) -> str:
    return str(await postgres.fetchval("SELECT status FROM posts WHERE id = $1", post_id))


async def until_sealed(postgres: asyncpg.Connection, *post_ids: uuid.UUID) -> None:
    """Each once, that is with one sealed key for each key of the group."""

    async def all_sealed() -> bool:
        pending = await postgres.fetchval(
            "SELECT count(*) FROM posts WHERE id = ANY($1) AND status <> 'sealed'", list(post_ids)
        )
        return bool(pending == 0)

    await until(all_sealed)


class Process:
    """`secureblogs worker`, as a supervisor runs it."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server.cli", "worker"], env=os.environ | environ, stderr=file
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def send(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)

    async def wait(self, within_s: float) -> int:
        return await asyncio.to_thread(self._process.wait, within_s)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


Start = Callable[[], Awaitable[Process]]


@contextmanager
def ended(processes: list[Process]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.end()


@pytest.fixture
async def start(database_url: str, redis_server: RedisServer, redis: ArqRedis, tmp_path: Path) -> AsyncIterator[Start]:
    processes: list[Process] = []

    async def start_one() -> Process:
        process = Process(
            {
                "DATABASE_URL": database_url,
                "REDIS_URL": redis_server.url,
                "WORKER_PRIVATE_KEYS": base64.b64encode(WORKER_PAIR.private).decode(),
            },
            tmp_path / f"worker {len(processes)}.log",
        )
        processes.append(process)

        async def is_up() -> bool:
            assert process._process.poll() is None, process.log
            return process.pid in {worker.pid for worker in await jobs.live_workers(redis)}

        await until(is_up)
        return process

    with ended(processes):
        yield start_one


@asynccontextmanager
async def locked(database_url: str, group: Group) -> AsyncIterator[None]:
    """Sealing a post of this group comes to its last step and then waits for the end of this."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            # Not FOR UPDATE, which would keep a post from being inserted.
            await connection.execute("SELECT 1 FROM user_groups WHERE id = $1 FOR NO KEY UPDATE", group.id)
            yield
    finally:
        await connection.close()


async def until_stuck(postgres: asyncpg.Connection) -> None:
    """A worker is in the middle of a sealing, and waits there."""

    async def is_waiting() -> bool:
        return bool(
            await postgres.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock' AND application_name = 'secureblogs'"
            )
        )

    await until(is_waiting)


async def test_post_is_sealed_once_for_each_key_and_announced(
    start: Start, postgres: asyncpg.Connection, redis: ArqRedis, group: Group
) -> None:
    await start()
    async with Hub(redis) as hub:
        subscriber = Subscriber()
        await hub.join(subscriber, [events.group_channel(group.id)])
        post_ids = [await write_post(postgres, group) for _ in range(20)]
        await asyncio.gather(*(jobs.enqueue_seal(redis, post_id) for post_id in post_ids))
        await until_sealed(postgres, *post_ids)
        async with asyncio.timeout(PATIENCE_S):
            frames = [await subscriber.get() for _ in post_ids]
    assert all('"type":"post.sealed"' in str(frame) for frame in frames)
    assert {post_id for post_id in post_ids for frame in frames if str(post_id) in str(frame)} == set(post_ids)
    assert await postgres.fetchval("SELECT count(*) FROM post_keys") == 20 * group.key_count
    await until(lambda: is_announced(postgres))
    await until_empty(redis)


async def is_announced(postgres: asyncpg.Connection) -> bool:
    return not await postgres.fetchval("SELECT EXISTS (SELECT 1 FROM outbox)")


async def test_post_that_can_never_be_sealed_fails_at_once_and_is_not_tried_again(
    start: Start, postgres: asyncpg.Connection, redis: ArqRedis, group: Group
) -> None:
    await start()
    ids = PostIds(uuid.uuid4(), group.id, group.author_id)
    stranger = keys.new_encryption_pair()
    await insert_draft(postgres, ids, drafts.seal_draft(ids, "A title", SECRET, [], stranger.public))
    await jobs.enqueue_seal(redis, ids.post)
    await until_empty(redis)
    row = await postgres.fetchrow("SELECT status, failure FROM posts WHERE id = $1", ids.post)
    assert tuple(row) == ("failed", "draft_unreadable")


async def test_post_that_was_never_enqueued_is_swept_up(
    start: Start, postgres: asyncpg.Connection, group: Group
) -> None:
    post_ids = [await write_post(postgres, group, age_s=6) for _ in range(5)]
    await start()
    await until_sealed(postgres, *post_ids)


async def test_event_that_was_never_announced_is_swept_up(
    start: Start, postgres: asyncpg.Connection, redis: ArqRedis
) -> None:
    async with Hub(redis) as hub:
        subscriber = Subscriber(max_backlog=4000)
        await hub.join(subscriber, ["user:1"])
        await postgres.execute(
            "INSERT INTO outbox (id, channels, frame, created_at)"
            " SELECT gen_random_uuid(), ARRAY['user:1'], n::text, now() - interval '6 s'"
            " FROM generate_series(1, 4000) n"
        )
        await start()
        async with asyncio.timeout(PATIENCE_S):
            frames = {await subscriber.get() for _ in range(4000)}
    assert frames == {str(number) for number in range(1, 4001)}
    await until(lambda: is_announced(postgres))


async def test_post_of_a_killed_worker_is_sealed_by_another(
    start: Start, database_url: str, postgres: asyncpg.Connection, redis: ArqRedis, group: Group
) -> None:
    first = await start()
    async with locked(database_url, group):
        post_id = await write_post(postgres, group, age_s=6)
        await jobs.enqueue_seal(redis, post_id)
        await until_stuck(postgres)
        first.send(signal.SIGKILL)
        await first.wait(5)
    # As if some seconds had passed since the worker took it.
    claim = f"arq:in-progress:seal:{post_id}"
    assert await redis.pexpire(claim, await redis.pttl(claim) - 6000)
    await start()
    await until_sealed(postgres, post_id)
    assert await postgres.fetchval("SELECT count(*) FROM post_keys") == group.key_count


async def test_post_in_the_hands_of_a_living_worker_is_left_to_it(
    start: Start, database_url: str, postgres: asyncpg.Connection, redis: ArqRedis, group: Group
) -> None:
    # A post for a few is done in no time; with a key that nothing can be sealed to it is sealed by itself.
    await postgres.execute(
        "INSERT INTO user_keys (\"user\", public_key, verify_key, proof, label) VALUES ($1, $2, $2, $3, 'odd')",
        *(group.author_id, bytes(32), bytes(64)),
    )
    await start()
    async with locked(database_url, group):
        post_id = await write_post(postgres, group, age_s=6)
        await jobs.enqueue_seal(redis, post_id)
        await until_stuck(postgres)
        claim = f"arq:in-progress:seal:{post_id}"
        await redis.pexpire(claim, await redis.pttl(claim) - 6000)
        swept = await write_post(postgres, await make_group(postgres, 1), age_s=6)
        await start()
        await until_sealed(postgres, swept)
        assert await redis.exists(claim)
        assert await status(postgres, post_id) == "pending"
    await until_sealed(postgres, post_id)


@pytest.mark.thorough
async def test_all_are_sealed_after_redis_forgot_everything(
    start: Start, database_url: str, postgres: asyncpg.Connection, redis: ArqRedis, group: Group
) -> None:
    await start()
    async with locked(database_url, group):
        post_ids = [await write_post(postgres, group, age_s=6) for _ in range(15)]
        await jobs.enqueue_seals(redis, post_ids)
        await until_stuck(postgres)
        await redis.flushall()
    await until_sealed(postgres, *post_ids)
    assert await postgres.fetchval("SELECT count(*) FROM post_keys") == 15 * group.key_count
    await until_empty(redis)


@pytest.mark.thorough
async def test_all_are_sealed_after_redis_was_killed(
    start: Start,
    redis_server: RedisServer,
    database_url: str,
    postgres: asyncpg.Connection,
    redis: ArqRedis,
    group: Group,
) -> None:
    process = await start()
    async with locked(database_url, group):
        post_ids = [await write_post(postgres, group, age_s=6) for _ in range(15)]
        await jobs.enqueue_seals(redis, post_ids)
        await until_stuck(postgres)
        redis_server.kill()
    redis_server.start()
    await until_sealed(postgres, *post_ids)
    await until(lambda: jobs.live_workers(redis))
    assert [worker.pid for worker in await jobs.live_workers(redis)] == [process.pid]


async def test_sealing_cut_off_from_postgres_is_tried_again_and_quotes_nothing(
    start: Start, database_url: str, postgres: asyncpg.Connection, redis: ArqRedis, group: Group
) -> None:
    process = await start()
    async with locked(database_url, group):
        post_id = await write_post(postgres, group)
        await jobs.enqueue_seal(redis, post_id)
        await until_stuck(postgres)
        await postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'secureblogs'"
        )
    await until_sealed(postgres, post_id)
    assert "not sealed yet: asyncpg.exceptions." in process.log
    assert "at server/" in process.log
    assert '"again_in_s":0.5' in process.log
    assert "arq.worker" not in process.log, "arq took the job for failed"
    assert SECRET not in process.log


async def test_two_workers_share_the_posts_and_seal_each_once(
    start: Start, postgres: asyncpg.Connection, redis: ArqRedis, group: Group
) -> None:
    processes = [await start(), await start()]
    post_ids = [await write_post(postgres, group) for _ in range(200)]
    await jobs.enqueue_seals(redis, post_ids)
    await until_sealed(postgres, *post_ids)
    await until_empty(redis)
    for process in processes:
        process.send(signal.SIGTERM)
        assert await process.wait(10) == 0
    done = [int(re.findall(r'"done":(\d+)', process.log)[0]) for process in processes]
    assert all(done)
    assert await postgres.fetchval("SELECT count(*) FROM post_keys") == 200 * group.key_count


async def test_stopping_worker_finishes_what_it_is_at(
    start: Start, database_url: str, postgres: asyncpg.Connection, redis: ArqRedis, group: Group
) -> None:
    process = await start()
    async with locked(database_url, group):
        post_id = await write_post(postgres, group)
        await jobs.enqueue_seal(redis, post_id)
        await until_stuck(postgres)
        process.send(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            await process.wait(0.5)
    assert await process.wait(10) == 0
    assert await status(postgres, post_id) == "sealed"
    await until_empty(redis)
    assert await jobs.live_workers(redis) == []


@pytest.mark.thorough
async def test_stopping_worker_puts_back_what_it_can_not_finish(
    start: Start, database_url: str, postgres: asyncpg.Connection, redis: ArqRedis, group: Group
) -> None:
    process = await start()
    async with locked(database_url, group):
        post_id = await write_post(postgres, group)
        await jobs.enqueue_seal(redis, post_id)
        await until_stuck(postgres)
        process.send(signal.SIGTERM)
        assert await process.wait(10) == 0
        assert await status(postgres, post_id) == "pending"
        assert (await jobs.look_up_seals(redis, [post_id]))[post_id] == jobs.QueuedJob(True, None)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_idle_worker_stops_at_once(start: Start, signum: signal.Signals) -> None:
    process = await start()
    process.send(signum)
    assert await process.wait(3) == 0


@pytest.mark.thorough
async def test_worker_stops_in_time_though_redis_does_not_answer(start: Start, redis_server: RedisServer) -> None:
    process = await start()
    redis_server.send(signal.SIGSTOP)
    process.send(signal.SIGTERM)
    assert await process.wait(10) == 0


async def test_worker_that_can_not_work_ends_with_one_line(
    database_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    private = base64.b64encode(WORKER_PAIR.private).decode()
    no_postgres = f"postgresql://nobody@/none?host={tmp_path}"
    cases = [
        ({"DATABASE_URL": database_url, "WORKER_PRIVATE_KEYS": ""}, "WORKER_PRIVATE_KEYS: not set"),
        ({"DATABASE_URL": no_postgres, "WORKER_PRIVATE_KEYS": private}, "Postgres does not answer"),
    ]
    for number, (environ, reason) in enumerate(cases):
        process = Process({"REDIS_URL": redis_server.url} | environ, tmp_path / f"{number}.log")
        with ended([process]):
            assert await process.wait(PATIENCE_S) == 1
            assert reason in process.log
            assert "Traceback" not in process.log
            assert "WARN" not in process.log.upper()


async def test_worker_starts_without_redis_and_works_once_it_is_there(
    start: Start, redis_server: RedisServer, postgres: asyncpg.Connection, group: Group
) -> None:
    post_id = await write_post(postgres, group, age_s=6)
    redis_server.kill()
    starting = asyncio.create_task(start_when_possible(start))
    await asyncio.sleep(1)
    redis_server.start()
    await starting
    await until_sealed(postgres, post_id)


async def start_when_possible(start: Start) -> None:
    with pytest.raises(channels.UNAVAILABLE):
        await start()
