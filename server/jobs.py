"""Work for the workers: the only place that enqueues.

A job is a hint that carries ids; the row in Postgres is the truth, and the sweep enqueues again whatever a lost Redis
forgot. Jobs go by name, so that the server never imports the workers' code.

The queue is arq's, with arq's keys. What differs is how a job gets in: arq watches the job's key over four round trips
and refuses a job whose key exists even if the queue has lost it. `NX` on both keys does it in one, repairs that case,
and is safe to repeat. The same round trip wakes a worker, which would otherwise see the job at its next poll only.
"""

import asyncio
import bisect
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from arq.connections import ArqRedis
from arq.constants import default_queue_name, in_progress_key_prefix, job_key_prefix
from arq.jobs import serialize_job
from arq.utils import timestamp_ms
from arq.worker import JobExecutionFailed
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from server import channels, logs

QUEUE_NAME: str = default_queue_name

SEAL_POST = "seal_post"
SWEEP = "sweep"

JOB_KEPT_S = 86_400
"""How long a job that nobody takes stays in Redis; the sweep enqueues it again if it is still due then."""

TICK_KEPT_S = 60

ENQUEUE_AT_ONCE = 500
TOLD_AT_ONCE = 50

CONNECT_TIMEOUT_S = 1.0
ANSWER_TIMEOUT_S = 2.0
MAX_CONNECTIONS = 32
ENQUEUE_TIMEOUT_S = 2.5
"""What a caller waits at most, however Redis fails."""


async def create_pool(
    redis_url: str,
    *,
    queue_name: str = QUEUE_NAME,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
    max_connections: int = MAX_CONNECTIONS,
) -> ArqRedis:
    """A client for `redis://`, `rediss://` or `unix://`; connects when it is first used, so Redis may be away.

    Each call ends within a few seconds: it waits for a free connection, for a connection to be made and for an answer,
    each with a limit. A connection that Redis closed meanwhile is made again once, without the caller's notice.
    """
    pool = BlockingConnectionPool.from_url(
        redis_url,
        max_connections=max_connections,
        timeout=answer_timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=answer_timeout_s,
        # Not after a timeout: a Redis that does not answer would be waited for twice.
        retry=Retry(ConstantBackoff(0.02), 1, supported_errors=(RedisConnectionError,)),
        retry_on_error=[RedisConnectionError],
    )
    pool.connection_class = type(pool.connection_class.__name__, (Cancellable, pool.connection_class), {})
    return ArqRedis(
        pool,
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=queue_name,
        expires_extra_ms=JOB_KEPT_S * 1000,
    )


class Cancellable(AbstractConnection):
    """Lets a cancellation through while a command is being sent.

    With a `socket_timeout` redis-py sends by `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that
    comes when the sending is just done, as it nearly always is. A task then could not be stopped, and no
    `asyncio.timeout` around a call would be kept.
    """

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        limit_s, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(limit_s):
                await super().send_packed_command(command, check_health)
        finally:
            self.socket_timeout = limit_s


async def enqueue_seal(redis: ArqRedis, post_id: UUID) -> None:
    """Have a pending post sealed.

    Raises one of channels.UNAVAILABLE, after ENQUEUE_TIMEOUT_S at the latest: it is left to the sweep then.
    """
    async with asyncio.timeout(ENQUEUE_TIMEOUT_S):
        await enqueue_seals(redis, [post_id])


async def enqueue_seals(redis: ArqRedis, post_ids: Sequence[UUID]) -> None:
    """The same for many, however long it takes. The job takes the id of the request that it comes from along."""
    request_id = logs.request_id()
    for start in range(0, len(post_ids), ENQUEUE_AT_ONCE):
        await enqueue_seals_of(redis, dict.fromkeys(post_ids[start : start + ENQUEUE_AT_ONCE], request_id))


async def enqueue_seals_of(redis: ArqRedis, request_ids: Mapping[UUID, str | None]) -> None:
    """The same in one round trip: posts, each with the request that it comes from."""
    jobs = {
        seal_job_id(post_id): [str(post_id), *([request_id] if request_id else [])]
        for post_id, request_id in request_ids.items()
    }
    await enqueue(redis, SEAL_POST, jobs)


def seal_job_id(post_id: UUID) -> str:
    return f"seal:{post_id}"


async def enqueue(
    redis: ArqRedis, function: str, arguments: dict[str, list[str]], *, first: bool = False, kept_s: int = JOB_KEPT_S
) -> None:
    """Jobs of one function, by their ids; those that are queued or running already stay as they are.

    They run in the order of the enqueuing, but for those that go `first`. A job that nobody took is dropped after
    `kept_s` seconds. Raises one of channels.UNAVAILABLE.
    """
    now = timestamp_ms()
    entries: list[str | bytes] = []
    for job_id, args in arguments.items():
        entries += job_id, serialize_job(function, tuple(args), {}, None, now, serializer=serialize)
    told = arguments if len(arguments) <= TOLD_AT_ONCE else ()
    channel, message = wake(redis.default_queue_name, told)
    head = redis.default_queue_name, 1 if first else now, kept_s, channel, message
    await redis.register_script(_ENQUEUE)(args=[*head, *entries])


# ARGV: the queue, the place in it, for how many seconds a job is kept, the channel and message of the wake-up, and then
# of each job its id and itself.
_ENQUEUE = f"""
for place = 6, #ARGV, 2 do
  redis.call('SET', '{job_key_prefix}' .. ARGV[place], ARGV[place + 1], 'NX', 'EX', ARGV[3])
  redis.call('ZADD', ARGV[1], 'NX', ARGV[2], ARGV[place])
end
redis.call('PUBLISH', ARGV[4], ARGV[5])
"""


async def enqueue_tick(redis: ArqRedis, function: str, tick_ms: int) -> None:
    """Once for all workers, however many of them find that `function` is due at this time: Unix time in milliseconds.

    Before all other jobs, because it repairs what these wait for. Raises one of channels.UNAVAILABLE.
    """
    job_id = f"{function}:{redis.default_queue_name}:{tick_ms}"
    if await redis.set(f"secureblogs:tick:{job_id}", b"", nx=True, ex=TICK_KEPT_S):
        await enqueue(redis, function, {job_id: []}, first=True, kept_s=TICK_KEPT_S)


def wake_channel(queue_name: str) -> str:
    """Told whenever something was put on the queue: which jobs, or nothing where it is for the workers to look."""
    return f"queued:{queue_name}"


def wake(queue_name: str, job_ids: Iterable[str] = ()) -> tuple[bytes, bytes]:
    """The message that wakes the workers of a queue: its channel and what is in it, ids of jobs or nothing."""
    return (
        channels.wire_name(wake_channel(queue_name), channels.PREFIX),
        channels.write_envelope(os.urandom(channels.EVENT_ID_BYTES), "\n".join(job_ids)),
    )


class QueuedJob(msgspec.Struct, frozen=True):
    """What Redis knows of a job that Postgres says is due."""

    is_queued: bool
    """Both in the queue and with its arguments."""
    running_ms_left: int | None
    """When the claim of the worker that took it runs out; None if no worker has."""


async def look_up_seals(redis: ArqRedis, post_ids: Sequence[UUID]) -> dict[UUID, QueuedJob]:
    """Raises one of channels.UNAVAILABLE."""
    found: dict[UUID, QueuedJob] = {}
    for start in range(0, len(post_ids), ENQUEUE_AT_ONCE):
        batch = post_ids[start : start + ENQUEUE_AT_ONCE]
        async with redis.pipeline(transaction=True) as pipeline:
            for job_id in map(seal_job_id, batch):
                pipeline.zscore(redis.default_queue_name, job_id)
                pipeline.exists(job_key_prefix + job_id)
                pipeline.pttl(in_progress_key_prefix + job_id)
            answers = iter(await pipeline.execute())
        for post_id, (score, exists, left_ms) in zip(batch, zip(answers, answers, answers, strict=True), strict=True):
            found[post_id] = QueuedJob(score is not None and bool(exists), left_ms if left_ms >= 0 else None)
    return found


async def queue_length(redis: ArqRedis) -> int:
    """Jobs that wait or run. Raises one of channels.UNAVAILABLE."""
    length: int = await redis.zcard(redis.default_queue_name)
    return length


SEALING_TIMES_KEY = "secureblogs:sealing_times"
SEALING_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, math.inf)


class SealingTimes(msgspec.Struct, frozen=True):
    """How long posts took from their enqueuing until they were sealed, since Redis was last empty."""

    counts: tuple[int, ...]
    """One for each of SEALING_BOUNDS_S: those up to that bound and over the one before."""
    sum_s: float

    def cumulative(self) -> Iterable[tuple[str, int]]:
        names = ("+Inf" if bound == math.inf else str(bound) for bound in SEALING_BOUNDS_S)
        return zip(names, itertools.accumulate(self.counts), strict=True)


async def note_sealings(redis: ArqRedis, seconds: Sequence[float]) -> None:
    """Raises one of channels.UNAVAILABLE."""
    counts = Counter(bisect.bisect_left(SEALING_BOUNDS_S, one) for one in seconds)
    async with redis.pipeline(transaction=True) as pipeline:
        for bucket, count in counts.items():
            pipeline.hincrby(SEALING_TIMES_KEY, str(bucket), count)
        pipeline.hincrbyfloat(SEALING_TIMES_KEY, "sum", sum(seconds))
        await pipeline.execute()


async def sealing_times(redis: ArqRedis) -> SealingTimes:
    """Raises one of channels.UNAVAILABLE."""
    found: dict[bytes, bytes] = await redis.hgetall(SEALING_TIMES_KEY)  # type: ignore[misc]  # typed for both clients
    counts = tuple(int(found.get(str(bucket).encode(), 0)) for bucket in range(len(SEALING_BOUNDS_S)))
    return SealingTimes(counts, float(found.get(b"sum", 0)))


async def pull_forward_seals(redis: ArqRedis, post_ids: Sequence[UUID], within_s: float) -> None:
    """No job of these waits for more than so many seconds, by this process' clock and by that of Redis.

    A job is put off until a time by the clock of whoever queued it, and taken by that of a worker: where one of these
    is an hour wrong, it would wait for an hour. Raises one of channels.UNAVAILABLE.
    """
    seconds, micros = await redis.time()
    latest_ms = min(timestamp_ms(), seconds * 1000 + micros // 1000) + int(within_s * 1000)
    for start in range(0, len(post_ids), ENQUEUE_AT_ONCE):
        scores = {seal_job_id(post_id): latest_ms for post_id in post_ids[start : start + ENQUEUE_AT_ONCE]}
        await redis.zadd(redis.default_queue_name, scores, xx=True, lt=True)


async def release_seals(redis: ArqRedis, post_ids: Iterable[UUID]) -> None:
    """Take the jobs from the worker that has them in hand, and wake the others. Raises one of channels.UNAVAILABLE."""
    async with redis.pipeline(transaction=True) as pipeline:
        for post_id in post_ids:
            pipeline.delete(in_progress_key_prefix + seal_job_id(post_id))
        pipeline.publish(*wake(redis.default_queue_name))
        await pipeline.execute()


# ------------------------------------------------------------------------------------------------- msgpack


def serialize(job: dict[str, Any]) -> bytes:
    return _ENCODER.encode(job)


def deserialize(raw: bytes) -> dict[str, Any]:
    """Raises msgspec.DecodeError."""
    return _DECODER.decode(raw)


def encode_exception(value: object) -> dict[str, str]:
    """A job's failure by its type alone: messages quote what was worked on, but for those that arq itself writes."""
    if isinstance(value, BaseException):
        message = str(value) if isinstance(value, JobExecutionFailed) else ""
        return {"error": type(value).__name__, "message": message}
    raise TypeError(f"{type(value).__name__} in a job")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=encode_exception)
_DECODER = msgspec.msgpack.Decoder(dict[str, Any])

# ------------------------------------------------------------------------------------------------- workers

HEARTBEAT_EVERY_S = 5.0
HEARTBEAT_KEPT_S = 15
WORKERS_KEY = "secureblogs:workers"


class LiveWorker(msgspec.Struct, frozen=True):
    """What a worker process tells of itself every HEARTBEAT_EVERY_S; gone HEARTBEAT_KEPT_S after its last word."""

    id: str
    queue_name: str
    hostname: str
    pid: int
    version: str
    started: datetime
    worker_key_ids: tuple[str, ...]
    """The ids of its private keys, 16 hexadecimal digits each, the current one first."""
    unwell: tuple[str, ...] = ()
    """Its background loops that have ended of late and were started again."""
    loop_deaths: dict[str, int] = {}
    """How often that has happened to each since the process began."""


async def say_alive(redis: ArqRedis, worker: LiveWorker) -> None:
    """Raises one of channels.UNAVAILABLE."""
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.set(_heartbeat_key(worker.id), msgspec.msgpack.encode(worker), ex=HEARTBEAT_KEPT_S)
        pipeline.sadd(WORKERS_KEY, worker.id)
        await pipeline.execute()
    await live_workers(redis)


async def say_goodbye(redis: ArqRedis, worker: LiveWorker) -> None:
    """Raises one of channels.UNAVAILABLE."""
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(_heartbeat_key(worker.id))
        pipeline.srem(WORKERS_KEY, worker.id)
        await pipeline.execute()


async def live_workers(redis: ArqRedis) -> list[LiveWorker]:
    """The workers of this queue that have a heartbeat, the oldest first. Raises one of channels.UNAVAILABLE."""
    ids: list[bytes] = sorted(await redis.smembers(WORKERS_KEY))  # type: ignore[misc]  # typed for both of its clients
    if not ids:
        return []
    heartbeats = await redis.mget([_heartbeat_key(worker_id.decode()) for worker_id in ids])
    gone = [worker_id for worker_id, heartbeat in zip(ids, heartbeats, strict=True) if heartbeat is None]
    if gone:
        # Should one of them have spoken just now, then its next heartbeat brings it back.
        await redis.srem(WORKERS_KEY, *gone)  # type: ignore[misc]  # likewise
    workers = (_read_heartbeat(heartbeat) for heartbeat in heartbeats if heartbeat is not None)
    ours = [worker for worker in workers if worker and worker.queue_name == redis.default_queue_name]
    return sorted(ours, key=lambda worker: worker.started)


def _read_heartbeat(heartbeat: bytes) -> LiveWorker | None:
    try:
        return msgspec.msgpack.decode(heartbeat, type=LiveWorker)
    except msgspec.DecodeError:
        return None  # of another version, during an update


def _heartbeat_key(worker_id: str) -> str:
    return f"{WORKERS_KEY}:{worker_id}"
