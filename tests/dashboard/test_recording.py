"""What a worker's jobs leave behind: it is true, it is no more than it should be, and it never costs a job."""

import asyncio
import json
import math
import pickle
import random
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from arq import func
from arq.connections import ArqRedis
from arq.worker import Worker

from server.dashboard import histograms, keys
from server.dashboard.backlog import MAX_BACKLOG, Entry
from server.dashboard.keys import make_ref
from server.dashboard.models import Outcome, Span, State
from server.dashboard.reader import Reader
from server.dashboard.recorder import Bounds, record
from server.dashboard.tries import as_try
from tests.dashboard.conftest import (
    QUEUE,
    connect,
    foreign_worker,
    job_of,
    list_all,
    queue_of,
    until,
    working,
)
from tests.dashboard.foreign_worker import add, make_worker
from tests.redis_server import RedisServer, running_redis


async def until_done(reader: Reader, count: int = 1, state: State = State.DONE) -> None:
    async def are_done() -> bool:
        return len(await list_all(reader, state)) >= count

    await until(are_done)


async def test_each_end_is_told(foreign: ArqRedis, reader: Reader) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    await foreign.enqueue_job("add", 1, 2, _job_id="good")
    await foreign.enqueue_job("fail", "a secret", _job_id="bad")
    await foreign.enqueue_job("stumble", 2, _job_id="again")
    await foreign.enqueue_job("stumble_twice", 5, _job_id="exhausted")
    await foreign.enqueue_job("sleep_briefly", 5, _job_id="slow")
    await foreign.enqueue_job("nobody knows", _job_id="unknown")
    await foreign.zadd(QUEUE, {"expired": time.time() * 1000})
    async with working(worker):
        await until_done(reader, 2)
        await until_done(reader, 5, State.FAILED)
    ends = {
        job_id: [one.outcome for one in (await job_of(reader, job_id)).tries]
        for job_id in ("good", "bad", "again", "exhausted", "slow", "unknown", "expired")
    }
    retried, failed = Outcome.RETRIED, Outcome.FAILED
    assert ends == {
        "good": [Outcome.DONE],
        "bad": [failed],
        "again": [retried, retried, Outcome.DONE],
        "exhausted": [retried, retried, failed],
        "slow": [failed],
        "unknown": [failed],
        "expired": [failed],
    }
    errors = {job_id: (await job_of(reader, job_id)).job.error for job_id in ("bad", "exhausted", "slow", "unknown")}
    assert errors == {
        "bad": "ValueError",
        "exhausted": "arq.worker.JobExecutionFailed",
        "slow": "TimeoutError",
        "unknown": "arq.worker.JobExecutionFailed",
    }
    queue = await queue_of(reader)
    assert (queue.done, queue.failed, queue.queued, queue.running, queue.retrying) == (2, 5, 0, 0, 0)


async def test_traceback_is_places_and_types_alone(foreign: ArqRedis, reader: Reader) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    await foreign.enqueue_job("fail", "a secret word", _job_id="bad")
    await foreign.enqueue_job("add", 7, 8, _job_id="good")
    async with working(worker):
        await until_done(reader, 1, State.FAILED)
        await until_done(reader)
    detail = await job_of(reader, "bad")
    [raised] = detail.tries[0].raised
    assert raised.type == "ValueError"
    assert raised.message is None
    [frame] = raised.frames
    assert (frame.file, frame.function) == ("tests/dashboard/foreign_worker.py", "fail")
    assert detail.arguments is not None
    assert [(one.type, one.size, one.value) for one in detail.arguments] == [("str", 13, None)]
    result = (await job_of(reader, "good")).tries[0].result
    assert result is not None
    assert (result.type, result.value) == ("int", "15")
    # Nor does it lie anywhere else among what was recorded, but for the job itself, as arq had it.
    for key in await foreign.keys("arq:dashboard:*"):
        if not key.startswith(b"arq:dashboard:raw:"):
            assert b"secret" not in await foreign.dump(key), key


async def test_function_that_opted_in_shows_all(foreign: ArqRedis, reader: Reader) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    await foreign.enqueue_job("fail_openly", "a word", _job_id="bad")
    async with working(worker):
        await until_done(reader, 1, State.FAILED)
    detail = await job_of(reader, "bad")
    assert detail.arguments is not None
    assert detail.arguments[0].value == "a word"
    assert [(raised.type, raised.message) for raised in detail.tries[0].raised] == [
        ("ValueError", "can't work with a word"),
        ("KeyError", "'a word'"),
    ]


@pytest.mark.thorough
async def test_killed_worker_orphans_its_job_within_20_s_and_all_adds_up(
    foreign: ArqRedis, reader: Reader, own_redis: RedisServer
) -> None:
    for number in range(30):
        await foreign.enqueue_job("add", number)
    await foreign.enqueue_job("stumble", 1, _job_id="again")
    await foreign.enqueue_job("fail", "x")
    await foreign.enqueue_job("sleep", 60, _job_id="long")

    async def is_running() -> bool:
        return [(job.id, job.function) for job in await list_all(reader, State.RUNNING)] == [("long", "sleep")]

    with foreign_worker(own_redis) as first, foreign_worker(own_redis) as second:
        await until(is_running)
        await until_done(reader, 31)
        for process in (first, second):
            process.kill()
    killed = time.monotonic()

    async def is_orphaned() -> bool:
        # Beside it the cron jobs of that second, where a worker died with one in hand.
        orphaned = [job.id for job in await list_all(reader, State.ORPHANED)]
        return [job_id for job_id in orphaned if not job_id.startswith("cron:tick:")] == ["long"]

    await until(is_orphaned, 20)
    assert (await queue_of(reader)).is_alarming
    assert time.monotonic() - killed < 20
    with foreign_worker(own_redis):

        async def is_counted() -> bool:
            functions = (await reader.history(Span.HOUR)).functions
            return [one.counts.orphaned for one in functions if one.name == "sleep"] == [1]

        await until(is_counted)
        assert await is_orphaned()
        # As arq does it when the claim runs out.
        await foreign.delete("arq:in-progress:long")

        async def runs_again() -> bool:
            detail = await job_of(reader, "long")
            return detail.job.state is State.RUNNING and detail.job.tries == 2

        await until(runs_again)
        assert (await queue_of(reader)).orphaned == 0
    counted: Any = await foreign.hgetall("ledger")  # type: ignore[misc]  # typed for both of its clients
    ledger = {name.decode(): int(count) for name, count in counted.items()}
    history = await reader.history(Span.HOUR)
    counts = {figures.name: figures.counts for figures in history.functions if not figures.name.startswith("cron:")}
    assert ledger == {"done": 31, "failed": 1, "retried": 1, "begun": 2}
    assert sum(one.done for one in counts.values()) == ledger["done"]
    assert sum(one.failed for one in counts.values()) == ledger["failed"]
    assert sum(one.retried for one in counts.values()) == ledger["retried"]
    assert counts["sleep"].total == 1  # the second try still runs, as far as anybody can tell


async def test_tries_are_counted_once_however_often_they_are_sent(foreign: ArqRedis, reader: Reader) -> None:
    worker = make_worker(foreign, handle_signals=False)
    recorder = record(worker)
    send = recorder.backlog.send

    async def send_twice(batch: list[Entry]) -> None:
        await send(batch)
        await send(batch)

    recorder.backlog.send = send_twice  # type: ignore[method-assign]  # as when an answer is lost
    for number in range(20):
        await foreign.enqueue_job("add", number)
    async with working(worker):
        await until_done(reader, 20)
    assert (await reader.history(Span.HOUR)).total.done == 20


def test_percentiles_are_within_5_percent() -> None:
    numbers = random.Random(7)
    for times in (
        [numbers.lognormvariate(-3, 2) for _ in range(5000)],
        [numbers.uniform(0.001, 0.002) for _ in range(500)],
        [numbers.expovariate(0.1) for _ in range(3)],
    ):
        counts: dict[int, int] = {}
        for seconds in times:
            counts[histograms.bucket(seconds)] = counts.get(histograms.bucket(seconds), 0) + 1
        for rank, found in zip((0.5, 0.95, 0.99), histograms.percentiles(counts, (0.5, 0.95, 0.99)), strict=True):
            exact = sorted(times)[max(1, math.ceil(rank * len(times))) - 1]
            assert found is not None
            assert abs(found / max(exact, histograms.LEAST_S) - 1) < 0.05


def test_every_duration_has_a_bucket() -> None:
    for seconds in (-1.0, 0.0, 1e-9, 1e-4, 1.0, 86_400.0, 1e12):
        assert 0 <= histograms.bucket(seconds) <= histograms.LAST


async def test_history_is_bounded_in_number(foreign: ArqRedis, reader: Reader) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker, Bounds(max_jobs=10))
    for number in range(60):
        await foreign.enqueue_job("fail" if number % 2 else "add", number, _job_id=f"job {number}")
    async with working(worker):

        async def is_over() -> bool:
            return (await reader.history(Span.HOUR)).total.total == 60

        await until(is_over)
    queue = await queue_of(reader)
    assert (queue.done, queue.failed) == (10, 10)
    assert len(await foreign.keys("arq:dashboard:job:*")) == 20
    assert len(await foreign.keys("arq:dashboard:raw:*")) == 10
    assert len(await list_all(reader, State.FAILED, function="fail")) == 10


async def test_everything_that_is_recorded_ends_by_itself(foreign: ArqRedis, reader: Reader) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker, Bounds(kept_s=1000))
    await foreign.enqueue_job("fail", "x")
    await foreign.enqueue_job("add", 1)
    async with working(worker):
        await until_done(reader, 1, State.FAILED)
        await until_done(reader)
    lasting = {key for key in await foreign.keys("arq:dashboard:*") if await foreign.ttl(key) == -1}
    # Of these there is one a queue, however much is done.
    assert lasting <= {
        f"arq:dashboard:{name}".encode() for name in ("queues", "workers", "revision", f"functions:{QUEUE}")
    }


async def test_old_jobs_are_tidied_away(foreign: ArqRedis, reader: Reader) -> None:
    worker = make_worker(foreign, handle_signals=False)
    recorder = record(worker, Bounds(kept_s=1000))
    await foreign.enqueue_job("add", 1, _job_id="old")
    async with working(worker):
        await until_done(reader)
    for index in (keys.index(State.DONE, QUEUE), keys.index(State.DONE, QUEUE, "add")):
        await foreign.zadd(index, {"old": (time.time() - 2000) * 1000})
    await recorder._tidy()
    assert await list_all(reader, State.DONE) == []
    assert await foreign.exists("arq:dashboard:job:old", keys.index(State.DONE, QUEUE, "add")) == 0


async def has_begun(foreign: ArqRedis, count: int) -> bool:
    return int(await cast("Any", foreign).hget("ledger", "begun") or 0) == count


async def is_empty(foreign: ArqRedis) -> bool:
    return int(await foreign.zcard(QUEUE)) == 0


async def run_ten(foreign: ArqRedis, worker: Worker) -> dict[str, int]:
    """How often Redis was asked for what, for ten jobs one after the other."""
    await foreign.config_resetstat()
    async with working(worker):
        for number in range(10):
            await foreign.enqueue_job("add", number)
            await until(lambda: is_empty(foreign))
    stats = await foreign.info("commandstats")
    return {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}


async def test_recording_takes_no_round_trip_of_its_own(foreign: ArqRedis, reader: Reader) -> None:
    bare = await run_ten(foreign, make_worker(foreign, handle_signals=False))
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    recorded = await run_ten(foreign, worker)
    # What Redis does not know yet goes there in full, which takes one more.
    assert recorded["exec"] == bare["exec"]
    assert recorded["evalsha"] == 10
    tidying = 5  # one for each state that is kept
    assert recorded["eval"] <= 1 + 2 * tidying
    assert (await reader.history(Span.HOUR)).total.done == 10


async def test_jobs_that_end_together_are_written_together(foreign: ArqRedis, reader: Reader) -> None:
    gate = asyncio.Event()
    worker = make_worker(foreign, handle_signals=False, ctx={"gate": gate})
    record(worker)
    for _ in range(10):
        await foreign.enqueue_job("wait")
    async with working(worker):
        await until(lambda: has_begun(foreign, 10))
        await foreign.config_resetstat()
        gate.set()
        await until_done(reader, 10)
    stats = await foreign.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] <= 3
    assert (await reader.history(Span.HOUR)).total.done == 10


async def test_redis_that_forgot_the_script_loses_no_try(foreign: ArqRedis, reader: Reader) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    async with working(worker):
        for number in range(5):
            await foreign.script_flush()
            await foreign.enqueue_job("add", number)
            await until_done(reader, number + 1)
    assert (await reader.history(Span.HOUR)).total.done == 5
    assert await foreign.zcard(QUEUE) == 0


async def test_worker_that_ends_its_jobs_in_its_own_way_is_recorded(foreign: ArqRedis, reader: Reader) -> None:
    ended: list[str] = []

    class OwnWorker(Worker):
        async def finish_job(self, job_id: str, *rest: Any, **named: Any) -> None:
            await super().finish_job(job_id, *rest, **named)
            ended.append(job_id)

    worker = OwnWorker([add], redis_pool=foreign, queue_name=QUEUE, poll_delay=0.02, handle_signals=False)
    record(worker)
    await foreign.enqueue_job("add", 1, _job_id="good")
    async with working(worker):
        await until_done(reader)
        await until(lambda: is_empty(foreign))
    assert ended == ["good"]


@pytest.mark.thorough
async def test_worker_that_is_killed_at_any_time_counts_each_end_once(
    foreign: ArqRedis, reader: Reader, own_redis: RedisServer
) -> None:
    """What is done and what is recorded of it come in one transaction, so they can't differ."""
    jobs = 400
    for number in range(jobs):
        await foreign.enqueue_job("add", number, _job_id=str(number))

    async def count() -> int:
        figures = {one.name: one.counts for one in (await reader.history(Span.HOUR)).functions}
        return figures["add"].total if "add" in figures else 0

    for wanted in (100, 200, jobs):

        async def are_done(least: int = wanted) -> bool:
            return await count() >= least

        with foreign_worker(own_redis):
            await until(are_done)
        # As arq does it when the claims run out.
        for key in await foreign.keys("arq:in-progress:*"):
            await foreign.delete(key)
    assert await count() == jobs
    assert await foreign.exists(*(f"arq:job:{number}" for number in range(jobs))) == 0


async def test_dead_redis_fails_no_job_and_delays_it_hardly(foreign: ArqRedis) -> None:
    with running_redis() as mortal:
        redis = connect(mortal.url)
        worker = make_worker(redis, handle_signals=False)
        recorder = record(worker)
        mortal.kill()
        begun = time.monotonic()
        record_of = msgspec.convert([1, "done", "w", 0, 0, 0, 0.0, 0.0, [], None, None], keys.TryRecord)
        for number in range(50):
            assert not await recorder.backlog.write(as_try(QUEUE, str(number), "add", record_of), [])
        assert time.monotonic() - begun < 1.5
        for number in range(MAX_BACKLOG):
            await recorder.backlog.write(as_try(QUEUE, str(number), "add", record_of), [])
        assert len(recorder.backlog.entries) == MAX_BACKLOG
        assert recorder.backlog.lost == 50
        await redis.aclose(close_connection_pool=True)


async def test_what_could_not_be_written_is_written_later(foreign: ArqRedis, reader: Reader) -> None:
    worker = make_worker(foreign, handle_signals=False)
    recorder = record(worker)
    send, down = recorder.backlog.send, True

    async def send_if_up(batch: list[Entry]) -> None:
        if down:
            raise ConnectionError
        await send(batch)

    recorder.backlog.send = send_if_up  # type: ignore[method-assign]  # as when Redis is away for a while
    for number in range(20):
        await foreign.enqueue_job("add", number)
    async with working(worker):

        async def is_through() -> bool:
            return int(await foreign.zcard(QUEUE)) == 0

        await until(is_through)
        assert await list_all(reader, State.DONE) == []
        down = False
        await until_done(reader, 20)


class Bomb:
    """Goes off where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


async def test_pickles_are_never_opened(foreign: ArqRedis, reader: Reader, tmp_path: Path, app: Any) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    for prefix in ("arq:job:", "arq:result:", "arq:dashboard:raw:", "arq:dashboard:worker:", "arq:dashboard:from:"):
        await foreign.set(f"{prefix}bomb", bomb)
    await foreign.rpush("arq:dashboard:job:bomb2", bomb, bomb)  # type: ignore[misc]  # typed for both clients
    await foreign.zadd(keys.index(State.FAILED, QUEUE), {"bomb2": 1})
    await foreign.zadd("arq:dashboard:workers", {"bomb": 1})
    await foreign.zadd("arq:dashboard:queues", {QUEUE: 1})
    await foreign.zadd(QUEUE, {"bomb": 1000, "bomb3": 2000})
    await foreign.set("arq:in-progress:bomb3", b"1")
    [job] = await list_all(reader, State.QUEUED)
    assert (job.id, job.function) == ("bomb", None)
    detail = await job_of(reader, "bomb")
    assert detail.is_opaque
    assert detail.arguments is None
    assert [job.id for job in await list_all(reader, State.RUNNING)] == ["bomb3"]
    for path in ("overview", "workers", "cron", "history", f"jobs/{make_ref('bomb')}"):
        assert (await app.get(f"/dashboard/api/{path}")).is_success
    for state in State:
        answer = await app.get("/dashboard/api/jobs", params={"state": state.value, "queue": QUEUE})
        assert answer.is_success, answer.text
    assert not (tmp_path / "exploded").exists()


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egnirts",
    "a\nb\r\nc: d",
    "../../etc/passwd",
    "x" * 100_000,
    "{{ 7 * 7 }}",
]


async def test_hostile_names_and_arguments_do_no_harm(foreign: ArqRedis, reader: Reader, app: Any) -> None:
    async def work(_ctx: dict[Any, Any], *_args: Any) -> Any:
        return HOSTILE

    functions = [func(cast("Any", work), name=name) for name in HOSTILE if len(name) < 1000]
    worker = Worker(functions, redis_pool=foreign, queue_name=QUEUE, poll_delay=0.02, handle_signals=False)
    record(worker)
    for name in HOSTILE:
        await foreign.enqueue_job(name, name, b"\xff\x00" * 1000, {name: name}, _job_id=name)
    async with working(worker):
        await until_done(reader, len(functions))
        await until_done(reader, 1, State.FAILED)
    jobs = await list_all(reader, State.DONE) + await list_all(reader, State.FAILED)
    assert len(jobs) == len(HOSTILE)
    for job in jobs:
        assert len(job.id) <= 200
        assert job.id.isprintable()
        assert (job.function or "").isprintable()
        if len(job.ref) > 1000:
            continue  # longer than an address may be; a bulk action still gets at it
        answer = await app.get(f"/dashboard/api/jobs/{job.ref}")
        assert answer.is_success
        shown = json.loads(answer.text)
        assert all(one["value"] is None for one in shown["arguments"] or [])


@pytest.mark.parametrize("ref", ["", "!", "AAAA=", "_" * 5, "////", "gICA", "x" * 5000])
async def test_ref_that_is_none_is_not_found(app: Any, ref: str) -> None:
    assert (await app.get(f"/dashboard/api/jobs/{ref}")).status_code in {400, 404}
