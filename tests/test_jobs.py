import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from arq.connections import ArqRedis
from arq.jobs import Job, deserialize_job, deserialize_result, serialize_result
from arq.worker import JobExecutionFailed

from server import channels, jobs
from server.channels import Hub, Subscriber
from tests.redis_server import RedisServer, running_redis


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def redis(shared_server: RedisServer) -> AsyncIterator[ArqRedis]:
    pool = await jobs.create_pool(shared_server.url, queue_name=f"test-{uuid.uuid4().hex}")
    yield pool
    await pool.aclose(close_connection_pool=True)


async def queued(redis: ArqRedis) -> list[str]:
    return [job_id.decode() for job_id in await redis.zrange(redis.default_queue_name, 0, -1)]


async def test_seal_job_carries_the_id_alone(redis: ArqRedis) -> None:
    post_id = uuid.uuid4()
    await jobs.enqueue_seal(redis, post_id)
    assert await queued(redis) == [f"seal:{post_id}"]
    job = deserialize_job(await redis.get(f"arq:job:seal:{post_id}"), deserializer=jobs.deserialize)
    assert (job.function, list(job.args), job.kwargs) == ("seal_post", [str(post_id)], {})
    assert 86_000 < await redis.ttl(f"arq:job:seal:{post_id}") <= 86_400


async def test_arq_reads_a_job_of_ours(redis: ArqRedis) -> None:
    post_id = uuid.uuid4()
    await jobs.enqueue_seal(redis, post_id)
    [job] = await redis.queued_jobs()
    assert (job.function, job.job_id) == (jobs.SEAL_POST, f"seal:{post_id}")


async def test_enqueuing_again_changes_nothing(redis: ArqRedis) -> None:
    post_id = uuid.uuid4()
    await jobs.enqueue_seal(redis, post_id)
    await redis.zincrby(redis.default_queue_name, 60_000, f"seal:{post_id}")
    put_off = await redis.zscore(redis.default_queue_name, f"seal:{post_id}")
    job = await redis.get(f"arq:job:seal:{post_id}")
    await asyncio.sleep(0.002)  # the time of the enqueuing is in the job, to the millisecond
    await jobs.enqueue_seal(redis, post_id)
    assert await redis.zscore(redis.default_queue_name, f"seal:{post_id}") == put_off
    assert await redis.get(f"arq:job:seal:{post_id}") == job


async def test_nobody_is_put_off_for_longer_than_is_said(redis: ArqRedis) -> None:
    """By whatever clock it was: one that is an hour ahead here."""
    far, near, unknown = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    await jobs.enqueue_seals(redis, [far, near])
    await redis.zincrby(redis.default_queue_name, 3_600_000, f"seal:{far}")
    as_it_was = await redis.zscore(redis.default_queue_name, f"seal:{near}")
    await jobs.pull_forward_seals(redis, [far, near, unknown], 15)
    put_off = await redis.zscore(redis.default_queue_name, f"seal:{far}")
    assert put_off is not None
    assert 10_000 < put_off - time.time() * 1000 <= 15_000
    assert await redis.zscore(redis.default_queue_name, f"seal:{near}") == as_it_was
    assert len(await queued(redis)) == 2


async def test_half_a_job_is_made_whole(redis: ArqRedis) -> None:
    no_place, no_arguments = uuid.uuid4(), uuid.uuid4()
    await jobs.enqueue_seals(redis, [no_place, no_arguments])
    await redis.zrem(redis.default_queue_name, f"seal:{no_place}")
    await redis.delete(f"arq:job:seal:{no_arguments}")
    found = await jobs.look_up_seals(redis, [no_place, no_arguments])
    assert [job.is_queued for job in found.values()] == [False, False]

    await jobs.enqueue_seals(redis, [no_place, no_arguments])

    found = await jobs.look_up_seals(redis, [no_place, no_arguments])
    assert [job.is_queued for job in found.values()] == [True, True]


async def test_jobs_run_in_the_order_of_enqueuing_but_a_tick_goes_first(redis: ArqRedis) -> None:
    first, second = uuid.uuid4(), uuid.uuid4()
    await jobs.enqueue_seal(redis, first)
    await asyncio.sleep(0.002)
    await jobs.enqueue_seal(redis, second)
    await jobs.enqueue_tick(redis, jobs.SWEEP, 1000)
    assert await queued(redis) == [f"sweep:{redis.default_queue_name}:1000", f"seal:{first}", f"seal:{second}"]


async def test_tick_is_enqueued_once_however_many_find_it_due(redis: ArqRedis) -> None:
    await asyncio.gather(*(jobs.enqueue_tick(redis, jobs.SWEEP, 1000) for _ in range(5)))
    assert len(await queued(redis)) == 1
    await redis.delete(redis.default_queue_name)
    await jobs.enqueue_tick(redis, jobs.SWEEP, 1000)
    assert await queued(redis) == [], "done, and enqueued again by a worker that came late"
    await jobs.enqueue_tick(redis, jobs.SWEEP, 6000)
    assert len(await queued(redis)) == 1


async def test_thousands_are_enqueued_and_looked_up(redis: ArqRedis) -> None:
    post_ids = [uuid.uuid4() for _ in range(1234)]
    await jobs.enqueue_seals(redis, post_ids)
    assert len(await queued(redis)) == 1234
    stranger = uuid.uuid4()
    found = await jobs.look_up_seals(redis, [*post_ids, stranger])
    assert [post_id for post_id, job in found.items() if not job.is_queued] == [stranger]
    assert all(job.running_ms_left is None for job in found.values())
    await jobs.enqueue_seals(redis, [])
    assert await jobs.look_up_seals(redis, []) == {}


async def test_claim_of_a_worker_is_seen_and_released(redis: ArqRedis) -> None:
    post_id = uuid.uuid4()
    await jobs.enqueue_seal(redis, post_id)
    await redis.set(f"arq:in-progress:seal:{post_id}", b"1", px=9000)
    left_ms = (await jobs.look_up_seals(redis, [post_id]))[post_id].running_ms_left
    assert left_ms is not None
    assert 8000 < left_ms <= 9000
    await jobs.release_seals(redis, [post_id])
    assert (await jobs.look_up_seals(redis, [post_id]))[post_id] == jobs.QueuedJob(True, None)


async def test_enqueuing_and_releasing_wake_the_workers_of_that_queue(redis: ArqRedis) -> None:
    post_id = uuid.uuid4()
    async with Hub(redis) as hub:
        sleeper, other = Subscriber(), Subscriber()
        await hub.join(sleeper, [jobs.wake_channel(redis.default_queue_name)])
        await hub.join(other, [jobs.wake_channel("another queue")])
        many = [uuid.uuid4() for _ in range(jobs.TOLD_AT_ONCE + 1)]
        for act, told in (
            (jobs.enqueue_seal(redis, post_id), f"seal:{post_id}"),
            (jobs.enqueue_seals(redis, many[:2]), f"seal:{many[0]}\nseal:{many[1]}"),
            (jobs.enqueue_seals(redis, many), ""),
            (jobs.release_seals(redis, [post_id]), ""),
        ):
            await act
            async with asyncio.timeout(2):
                assert await sleeper.get() == told
        assert not other._items


async def test_serializer_is_msgpack_and_takes_no_objects(redis: ArqRedis) -> None:
    job: dict[str, Any] = {"f": "seal_post", "a": ["x"], "k": {}, "t": None, "et": 1}
    assert jobs.deserialize(jobs.serialize(job)) == job == msgspec.msgpack.decode(jobs.serialize(job))
    with pytest.raises(TypeError):
        jobs.serialize({"a": [object()]})
    with pytest.raises(msgspec.DecodeError):
        jobs.deserialize(b"\x80\x04not msgpack")


def result_with(error: BaseException) -> bytes:
    raw = serialize_result("f", (), {}, 1, 0, False, error, 0, 0, "ref", "queue", "id", serializer=jobs.serialize)
    assert raw
    return raw


async def test_failure_is_kept_by_its_type_without_what_it_quotes() -> None:
    try:
        raise ValueError("the secret text") from KeyError("more of it")
    except ValueError as error:
        raw = result_with(error)
    assert b"secret" not in raw
    assert b"more" not in raw
    result = deserialize_result(raw, deserializer=jobs.deserialize)
    assert result.result == {"error": "ValueError", "message": ""}
    assert not result.success


async def test_what_arq_itself_says_of_a_failure_is_kept() -> None:
    result = deserialize_result(result_with(JobExecutionFailed("job expired")), deserializer=jobs.deserialize)
    assert result.result == {"error": "JobExecutionFailed", "message": "job expired"}
    assert deserialize_result(result_with(asyncio.CancelledError()), deserializer=jobs.deserialize).result == {
        "error": "CancelledError",
        "message": "",
    }


async def test_pool_comes_up_without_redis_and_works_once_it_is_there(own_server: RedisServer) -> None:
    own_server.kill()
    pool = await jobs.create_pool(own_server.url)
    with pytest.raises(channels.UNAVAILABLE):
        await jobs.enqueue_seal(pool, uuid.uuid4())
    own_server.start()
    await jobs.enqueue_seal(pool, uuid.uuid4())
    await pool.aclose(close_connection_pool=True)


async def test_connection_that_redis_closed_is_made_again_unnoticed(own_server: RedisServer) -> None:
    pool = await jobs.create_pool(own_server.url)
    await asyncio.gather(*(pool.ping() for _ in range(5)))
    own_server.kill()
    own_server.start()
    for _ in range(10):
        await jobs.enqueue_seal(pool, uuid.uuid4())
    await pool.aclose(close_connection_pool=True)


async def test_frozen_redis_holds_nobody_for_long(own_server: RedisServer) -> None:
    pool = await jobs.create_pool(own_server.url, answer_timeout_s=0.3, max_connections=4)
    await pool.ping()
    own_server.send(signal.SIGSTOP)
    begun = time.monotonic()
    outcomes = await asyncio.gather(*(jobs.enqueue_seal(pool, uuid.uuid4()) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(outcome, channels.UNAVAILABLE) for outcome in outcomes)
    assert time.monotonic() - begun < jobs.ENQUEUE_TIMEOUT_S + 1
    with pytest.raises(channels.UNAVAILABLE):
        await asyncio.wait_for(pool.ping(), 10)
    assert time.monotonic() - begun < jobs.ENQUEUE_TIMEOUT_S + 4
    own_server.send(signal.SIGCONT)
    await jobs.enqueue_seal(pool, uuid.uuid4())
    await pool.aclose(close_connection_pool=True)


async def test_call_can_be_cancelled_at_any_moment(redis: ArqRedis) -> None:
    async def call() -> None:
        for _ in range(5):
            await redis.ping()

    for number in range(500):
        calling = asyncio.create_task(call())
        for _ in range(number % 25):
            await asyncio.sleep(0)
        if calling.done() or not calling.cancel():
            continue
        with pytest.raises(asyncio.CancelledError):
            await calling


async def test_many_enqueues_at_once_share_few_connections(own_server: RedisServer) -> None:
    pool = await jobs.create_pool(own_server.url, max_connections=4, answer_timeout_s=30)
    await asyncio.gather(*(jobs.enqueue_seals(pool, [uuid.uuid4()]) for _ in range(200)))
    assert len(await queued(pool)) == 200
    assert len(await pool.client_list()) <= 4
    await pool.aclose(close_connection_pool=True)


def worker_called(name: str, queue_name: str) -> jobs.LiveWorker:
    return jobs.LiveWorker(
        id=name,
        queue_name=queue_name,
        hostname="host",
        pid=1,
        version="1.0",
        started=datetime.now(UTC),
        worker_key_ids=("00ff00ff00ff00ff",),
    )


async def test_live_workers_are_those_that_spoke_lately_of_this_queue(redis: ArqRedis) -> None:
    names = [uuid.uuid4().hex for _ in range(4)]
    old, young, stopped, gone = (worker_called(name, redis.default_queue_name) for name in names)
    elsewhere = worker_called(uuid.uuid4().hex, "another queue")
    for worker in (young, old, stopped, gone, elsewhere):
        await jobs.say_alive(redis, worker)
    await jobs.say_goodbye(redis, stopped)
    assert 13_000 < await redis.pttl(f"{jobs.WORKERS_KEY}:{gone.id}") <= 15_000
    await redis.delete(f"{jobs.WORKERS_KEY}:{gone.id}")

    assert await jobs.live_workers(redis) == [old, young]
    names_kept = await redis.execute_command("SMEMBERS", jobs.WORKERS_KEY)  # type: ignore[no-untyped-call]  # of redis-py
    assert gone.id.encode() not in names_kept


async def test_heartbeat_of_another_version_is_no_error(redis: ArqRedis) -> None:
    await jobs.say_alive(redis, worker_called("other-version", redis.default_queue_name))
    await redis.set(f"{jobs.WORKERS_KEY}:other-version", msgspec.msgpack.encode({"id": "other-version"}))
    assert await jobs.live_workers(redis) == []


async def test_no_worker_is_live_where_none_ever_was(redis: ArqRedis) -> None:
    assert await jobs.live_workers(redis) == []


async def test_job_of_ours_is_known_to_arq_by_its_id(redis: ArqRedis) -> None:
    post_id = uuid.uuid4()
    await jobs.enqueue_seal(redis, post_id)
    job = Job(jobs.seal_job_id(post_id), redis, redis.default_queue_name, jobs.deserialize)
    assert (await job.status()).value == "queued"
