"""What a worker writes down about its jobs.

    worker = Worker(functions=[...], redis_pool=redis)
    record(worker)
    worker.run()

`record` puts itself around the worker's functions, to see how they end, and around arq's last step of each try, which
knows what becomes of the job. There it writes, before arq forgets the job: whoever is killed in between runs the job
again, and that is another try, which is recorded too.

A try costs one round trip at most. Those that end while one is under way share the next. A Redis that does not answer
is waited for once, for ANSWER_TIMEOUT_S, and then no more until it does; what was to be recorded waits in memory,
MAX_BACKLOG tries of it, and is written later. A job never fails of it.

What is running is told by the heartbeat, which is sent every BEAT_EVERY_S, and sooner when something has begun or
ended, but not for what is over within SETTLE_S. When it stops, the next living worker of the queue records the tries
that went down with it.
"""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
import os
import pickle
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from arq.constants import default_queue_name
from arq.cron import CronJob
from arq.utils import timestamp_ms, to_unix_ms
from arq.worker import Function, JobExecutionFailed, Worker
from redis.exceptions import NoScriptError, RedisError

from server.dashboard import histograms, keys
from server.dashboard.keys import Beat, CronRecord, CronRun, RunningRecord, TryRecord
from server.dashboard.models import Outcome, Raised
from server.dashboard.redaction import describe, describe_arguments, describe_raised, is_shown, type_name

logger = logging.getLogger(__name__)

BEAT_EVERY_S = 1.0
SETTLE_S = 0.05
BURY_EVERY_S = 2.0
TIDY_EVERY_S = 30.0

ANSWER_TIMEOUT_S = 0.25
BEAT_TIMEOUT_S = 2.0
GOODBYE_S = 0.5
MAX_BACKLOG = 1000
AT_ONCE = 50
TIDIED_AT_ONCE = 500

UNAVAILABLE: Final = (RedisError, OSError, TimeoutError)

UNKNOWN_FUNCTION = "(unknown)"


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What the history may take. A job that is kept takes 1 KiB, one that failed with its traceback about 3 KiB, and
    at most MAX_RAW_BYTES more for what it was called with."""

    max_jobs: int = 10_000
    """That are kept of one queue, in each state: done, failed, aborted, orphaned, retrying."""
    kept_s: int = 7 * 86_400


# KEYS are not named, so this is not for a Redis cluster; neither is arq.
#
# ARGV: prefix, bounds, and twelve of each try, as `as_try` gives them. A try that is there already is not counted
# twice, so that a call whose answer was lost may be sent again.
_WRITE = """
local prefix, max, kept_s = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now_s = tonumber(clock[1])
local now_ms = now_s * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function indices(state, queue, fn)
  local all = prefix .. 'jobs:' .. state .. ':' .. queue
  return all, all .. '|' .. fn
end

local function forget(id)
  local job = prefix .. 'job:' .. id
  local head = redis.call('LINDEX', job, 0)
  if head then
    local was = cmsgpack.unpack(head)
    local all, own = indices(was[1], was[3], was[2])
    redis.call('ZREM', all, id)
    redis.call('ZREM', own, id)
  end
  redis.call('DEL', job, prefix .. 'raw:' .. id, prefix .. 'from:' .. id)
end

local written = 0
for first = 4, #ARGV, 12 do
  local queue, id, state, fn, outcome, wait, run, due_ms, record, guard, cron, run_record =
    unpack(ARGV, first, first + 11)
  local job = prefix .. 'job:' .. id
  local is_new = redis.call('LINDEX', job, -1) ~= record
  if is_new and guard ~= '' then
    is_new = redis.call('SET', guard, '', 'NX', 'EX', 86400)
  end
  if is_new then
    written = written + 1
    local head = redis.call('LINDEX', job, 0)
    if head then
      local was = cmsgpack.unpack(head)
      if was[1] ~= state or was[2] ~= fn or was[3] ~= queue then
        local all, own = indices(was[1], was[3], was[2])
        redis.call('ZREM', all, id)
        redis.call('ZREM', own, id)
      end
      redis.call('LSET', job, 0, cmsgpack.pack({state, fn, queue}))
    else
      redis.call('RPUSH', job, cmsgpack.pack({state, fn, queue}))
    end
    if redis.call('RPUSH', job, record) > MAX_TRIES + 1 then
      redis.call('LSET', job, 1, 'gone')
      redis.call('LREM', job, 1, 'gone')
    end
    redis.call('EXPIRE', job, kept_s)

    local all, own = indices(state, queue, fn)
    local score = now_ms
    if tonumber(due_ms) > 0 then score = tonumber(due_ms) end
    redis.call('ZADD', all, score, id)
    redis.call('ZADD', own, score, id)
    redis.call('EXPIRE', all, kept_s)
    redis.call('EXPIRE', own, kept_s)
    while redis.call('ZCARD', all) > max do
      local oldest = redis.call('ZPOPMIN', all)[1]
      forget(oldest)
      redis.call('ZREM', own, oldest)
    end

    if state == 'done' then
      redis.call('DEL', prefix .. 'raw:' .. id)
    else
      local size = redis.call('STRLEN', 'arq:job:' .. id)
      if size > 0 and size <= MAX_RAW_BYTES then
        redis.call('SET', prefix .. 'raw:' .. id, redis.call('GET', 'arq:job:' .. id), 'EX', kept_s)
      end
    end

    for _, bucket in ipairs({BUCKETS}) do
      local counts = prefix .. 'history:' .. bucket[1] .. ':' .. math.floor(now_s / bucket[1]) .. ':' .. queue
      if redis.call('HINCRBY', counts, 'c|' .. outcome .. '|' .. fn, 1) == 1 then
        redis.call('EXPIRE', counts, bucket[2])
      end
      redis.call('HINCRBY', counts, 'w|' .. wait .. '|' .. fn, 1)
      redis.call('HINCRBY', counts, 'r|' .. run .. '|' .. fn, 1)
    end
    redis.call('SADD', prefix .. 'functions:' .. queue, fn)
    if cron ~= '' then
      redis.call('HSET', prefix .. 'cron:' .. queue, cron, run_record)
    end
  end
end
if written > 0 then redis.call('INCRBY', prefix .. 'revision', written) end
return written
"""
_WRITE = (
    _WRITE.replace("MAX_TRIES", str(keys.MAX_TRIES))
    .replace("MAX_RAW_BYTES", str(keys.MAX_RAW_BYTES))
    .replace("BUCKETS", ", ".join(f"{{{size}, {kept}}}" for size, _, kept in keys.BUCKETS.values()))
)

_WRITE_SHA = hashlib.sha1(_WRITE.encode(), usedforsecurity=False).hexdigest()

# ARGV: prefix, the index of a state, how many at most, and the time before which all goes.
_TIDY = """
local prefix = ARGV[1]
local old = redis.call('ZRANGEBYSCORE', ARGV[2], '-inf', ARGV[4], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(old) do
  local head = redis.call('LINDEX', prefix .. 'job:' .. id, 0)
  redis.call('ZREM', ARGV[2], id)
  if head then
    redis.call('ZREM', ARGV[2] .. '|' .. cmsgpack.unpack(head)[2], id)
  end
  redis.call('DEL', prefix .. 'job:' .. id, prefix .. 'raw:' .. id, prefix .. 'from:' .. id)
end
return #old
"""


@dataclasses.dataclass(slots=True)
class Running:
    """A try that is under way, and then how it ended."""

    function: str
    number: int
    enqueued_ms: int
    score: int
    started_ms: int
    started: float
    arguments: Any
    ended: float | None = None
    error: BaseException | None = None
    is_aborted: bool = False
    result: Any = None

    @property
    def wait_ms(self) -> float:
        # Some put jobs first by a score that is no time.
        return max(self.started_ms - max(self.score, self.enqueued_ms), 0)


def record(worker: Worker, bounds: Bounds | None = None, *, version: str = "") -> "Recorder":
    """Have all that `worker` does recorded, from before it runs. `version` is of the application, and only shown."""
    return Recorder(worker, bounds or Bounds(), version)


class Recorder:
    """What is around one worker. Its methods take the place of the worker's, under the same names."""

    def __init__(self, worker: Worker, bounds: Bounds, version: str) -> None:
        self.worker = worker
        self.bounds = bounds
        self.id = secrets.token_hex(8)
        self.version = version
        self.queue: str = worker.queue_name or default_queue_name
        self.running: dict[str, Running] = {}
        self.is_paused = False
        self._has_beaten = False
        self._is_over = False
        self._failures: dict[str, dict[str, Any]] = {}
        self._backlog: deque[tuple[list[Any], asyncio.Future[None]]] = deque()
        self._flushing: asyncio.Task[None] | None = None
        self._is_down = False
        self._unrecorded = 0
        self._dirty = asyncio.Event()
        self._beating = asyncio.Lock()
        self._started_ms = timestamp_ms()
        self._suspects: set[str] = set()
        self._sha: str | None = None

        self._shown = {name for name, function in worker.functions.items() if is_shown(function.coroutine)}
        worker.functions = {name: self._wrapped(name, function) for name, function in worker.functions.items()}
        worker.cron_jobs = [worker.functions[job.name] for job in worker.cron_jobs]  # type: ignore[misc]  # by these names they are cron jobs
        self._serialize = worker.job_serializer or pickle.dumps
        worker.job_serializer = self.job_serializer
        for name in ("main", "start_jobs", "run_job", "run_cron", "finish_job", "finish_failed_job"):
            setattr(self, f"_{name}", getattr(worker, name))
            setattr(worker, name, getattr(self, name))

    _main: Callable[[], Awaitable[None]]
    _start_jobs: Callable[[list[bytes]], Awaitable[None]]
    _run_job: Callable[[str, int], Awaitable[None]]
    _run_cron: Callable[..., Awaitable[None]]
    _finish_job: Callable[..., Awaitable[None]]
    _finish_failed_job: Callable[[str, bytes | None], Awaitable[None]]

    def _wrapped(self, name: str, function: Function | CronJob) -> Function | CronJob:
        coroutine = function.coroutine

        @functools.wraps(coroutine)
        async def watched(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
            job = self._begin(name, ctx, args, kwargs)
            try:
                job.result = await coroutine(ctx, *args, **kwargs)
            except BaseException as error:
                job.error, job.is_aborted = error, ctx["job_id"] in self.worker.aborting_tasks
                raise
            else:
                return job.result
            finally:
                job.ended = time.perf_counter()

        return dataclasses.replace(function, coroutine=watched)

    def _begin(self, name: str, ctx: dict[Any, Any], args: Any, kwargs: Any) -> Running:
        enqueued_ms = to_unix_ms(ctx["enqueue_time"])
        job = Running(
            function=name,
            number=ctx["job_try"],
            enqueued_ms=enqueued_ms,
            score=ctx["score"],
            started_ms=timestamp_ms(),
            started=time.perf_counter(),
            arguments=describe_arguments(args, kwargs, name in self._shown),
        )
        self.running[ctx["job_id"]] = job
        self._dirty.set()
        return job

    # ------------------------------------------------------------------------------------------ in the worker's place

    async def main(self) -> None:
        heart = asyncio.create_task(self._beat_on(), name="recorder")
        try:
            await self._main()
        finally:
            self._is_over = True
            heart.cancel()
            await asyncio.gather(heart, return_exceptions=True)
            await self._say_goodbye()

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        if not self._has_beaten:
            with contextlib.suppress(*UNAVAILABLE):
                async with asyncio.timeout(BEAT_TIMEOUT_S):
                    await self._beat()
        if not self.is_paused:
            await self._start_jobs(job_ids)

    async def run_cron(self, *args: Any, **kwargs: Any) -> None:
        if not self.is_paused:
            await self._run_cron(*args, **kwargs)

    async def run_job(self, job_id: str, score: int) -> None:
        try:
            await self._run_job(job_id, score)
        finally:
            self.running.pop(job_id, None)
            self._failures.pop(job_id, None)
            self._dirty.set()
            if self._is_over and not self.running:
                await self._say_goodbye()

    def job_serializer(self, job: dict[str, Any]) -> bytes:
        """arq's own failures, of jobs that no function was called for, show nowhere but in their results."""
        if isinstance(job.get("r"), BaseException) and isinstance(job.get("id"), str):
            self._failures[job["id"]] = job
        return self._serialize(job)

    async def finish_job(self, job_id: str, finish: bool, *rest: Any, **named: Any) -> None:
        """arq's last step of a try; it is shielded from cancellation."""
        job = self.running.get(job_id)
        if job is not None:
            incr_score = named.get("incr_score", rest[3] if len(rest) > 3 else None)
            await self._record(job_id, job, finish, incr_score)
        await self._finish_job(job_id, finish, *rest, **named)

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        """The like for a job that could not even be begun."""
        await self._record_unbegun(job_id, self._failures.get(job_id, {}))
        await self._finish_failed_job(job_id, result_data)

    # ---------------------------------------------------------------------------------------------------- recording

    async def _record(self, job_id: str, job: Running, finish: bool, incr_score: int | None) -> None:
        run_s = (job.ended or time.perf_counter()) - job.started
        in_full = job.function in self._shown
        outcome, error = self._judge(job, finish)
        self.running.pop(job_id, None)
        self._dirty.set()
        record = TryRecord(
            number=job.number,
            outcome=outcome,
            worker=self.id,
            enqueued_ms=job.enqueued_ms,
            started_ms=job.started_ms,
            ended_ms=job.started_ms + round(run_s * 1000),
            wait_ms=job.wait_ms,
            run_ms=round(run_s * 1000, 3),
            raised=describe_raised(error, in_full) if error else [],
            result=describe("result", job.result, in_full) if outcome is Outcome.DONE else None,
            arguments=job.arguments,
        )
        await self._write(job_id, job.function, record, 0 if finish else max(job.score + (incr_score or 0), 1))

    def _judge(self, job: Running, finish: bool) -> tuple[Outcome, BaseException | None]:
        error = job.error
        if not finish:
            return (Outcome.CANCELLED if isinstance(error, asyncio.CancelledError) else Outcome.RETRIED), error
        if error is None:
            return Outcome.DONE, None
        if not isinstance(error, asyncio.CancelledError):
            return Outcome.FAILED, error
        if job.is_aborted:
            return Outcome.ABORTED, None
        # To its function a limit that is over looks like any other cancellation; but those put a job back.
        late = TimeoutError().with_traceback(error.__traceback__)
        return Outcome.FAILED, late if self.worker.retry_jobs else error

    async def _record_unbegun(self, job_id: str, failure: dict[str, Any]) -> None:
        now = timestamp_ms()
        error = failure.get("r", JobExecutionFailed())
        name = failure.get("f")
        enqueued_ms = failure.get("et") or now
        aborted = isinstance(error, asyncio.CancelledError)
        # Of arq's own messages all are harmless but the one that quotes the name of a function.
        message = str(error) if isinstance(error, JobExecutionFailed) and name in self.worker.functions else None
        if name not in self.worker.functions:
            message = "job expired" if str(error) == "job expired" else "no such function, or not readable"
        record = TryRecord(
            number=failure.get("t") or 1,
            outcome=Outcome.ABORTED if aborted else Outcome.FAILED,
            worker=self.id,
            enqueued_ms=enqueued_ms,
            started_ms=now,
            ended_ms=now,
            wait_ms=max(now - enqueued_ms, 0),
            run_ms=0,
            raised=[] if aborted else [Raised(type=type_name(error), message=message, frames=[])],
            result=None,
            arguments=None,
        )
        await self._write(job_id, name if name in self.worker.functions else UNKNOWN_FUNCTION, record, 0)

    async def _write(self, job_id: str, function: str, record: TryRecord, due_ms: int) -> None:
        """Within ANSWER_TIMEOUT_S, or later."""
        if len(self._backlog) >= MAX_BACKLOG:
            _, lost = self._backlog.popleft()
            lost.cancel()
            self._unrecorded += 1
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._backlog.append((self._as_try(job_id, function, record, due_ms), written))
        if self._is_down:
            return
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(ANSWER_TIMEOUT_S), name="recording")
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(2 * ANSWER_TIMEOUT_S):
                await asyncio.shield(written)

    def _as_try(
        self, job_id: str, function: str, record: TryRecord, due_ms: int = 0, *, queue: str = "", guard: str = ""
    ) -> list[Any]:
        is_cron = isinstance(self.worker.functions.get(function), CronJob)
        return as_try(queue or self.queue, job_id, function, record, due_ms, guard=guard, is_cron=is_cron)

    async def _flush(self, limit_s: float) -> None:
        """Write what is waiting. Whatever is not written stays."""
        try:
            while self._backlog:
                batch = [self._backlog[place] for place in range(min(AT_ONCE, len(self._backlog)))]
                async with asyncio.timeout(limit_s):
                    await self._send([one for one, _ in batch])
                for one in batch:
                    # The oldest may have been dropped meanwhile.
                    if self._backlog and self._backlog[0] is one:
                        self._backlog.popleft()
                    if not one[1].done():
                        one[1].set_result(None)
                self._note_redis(None)
        except UNAVAILABLE as error:
            self._note_redis(error)
            for _, written in self._backlog:
                written.cancel()

    async def _send(self, tries: list[list[Any]]) -> None:
        self._sha = await write_tries(self.worker.pool, self.bounds, tries, self._sha)

    def _note_redis(self, error: Exception | None) -> None:
        if error and not self._is_down:
            logger.warning("jobs are not recorded for now: %s", str(error) or type(error).__name__)
        elif self._is_down and not error:
            logger.info("jobs are recorded again")
        self._is_down = error is not None

    # ------------------------------------------------------------------------------------------------ the heartbeat

    async def _beat_on(self) -> None:
        while self.worker._pool is None:  # noqa: ASYNC110 - arq makes its pool in `main`, and tells nobody
            await asyncio.sleep(0.01)
        buried = tidied = 0.0
        while True:
            self._dirty.clear()
            try:
                async with asyncio.timeout(BEAT_TIMEOUT_S):
                    await self._beat()
                    if self._backlog:
                        await self._flush(BEAT_TIMEOUT_S)
                    if time.monotonic() - buried > BURY_EVERY_S:
                        buried = time.monotonic()
                        await self._bury()
                    if time.monotonic() - tidied > TIDY_EVERY_S:
                        tidied = time.monotonic()
                        await self._tidy()
            except UNAVAILABLE as error:
                self._note_redis(error)
            except Exception:
                logger.exception("the recorder stumbled")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), BEAT_EVERY_S)
            await asyncio.sleep(SETTLE_S)

    async def _beat(self) -> None:
        # One after the other, for what is written last is what counts.
        async with self._beating:
            await self._say_alive()

    async def _say_alive(self) -> None:
        async with self.worker.pool.pipeline(transaction=False) as pipeline:
            pipeline.set(keys.WORKER + self.id, msgspec.msgpack.encode(self._describe()), ex=keys.WORKER_KEPT_S)
            pipeline.set(keys.ALIVE + self.id, b"", ex=keys.HEARTBEAT_KEPT_S)
            pipeline.zadd(keys.WORKERS, {self.id: self._started_ms})
            pipeline.zadd(keys.QUEUES, {self.queue: timestamp_ms()})
            pipeline.exists(keys.PAUSED + self.queue)
            pipeline.spop(keys.ABORT + self.id, self.worker.max_jobs)
            *_, paused, to_abort = await pipeline.execute()
        self._has_beaten = True
        if not self._backlog:
            self._note_redis(None)
        if self.is_paused and not paused:
            # What was not run meanwhile is not run now, one after the other.
            for job in self.worker.cron_jobs:
                job.next_run = None
        self.is_paused = bool(paused)
        for job_id in to_abort:
            self._abort(job_id.decode())

    def _abort(self, job_id: str) -> None:
        """As arq does it where it is told `allow_abort_jobs`, for which it asks Redis at each poll."""
        task = self.worker.job_tasks.get(job_id)
        if task is not None:
            self.worker.aborting_tasks.add(job_id)
            task.cancel()

    def _describe(self) -> Beat:
        return Beat(
            id=self.id,
            queue=self.queue,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=self.version,
            started_ms=self._started_ms,
            at_ms=timestamp_ms(),
            max_jobs=self.worker.max_jobs,
            claim_ms=int(self.worker.in_progress_timeout_s * 1000),
            functions=sorted(name for name, one in self.worker.functions.items() if not isinstance(one, CronJob)),
            shown=sorted(self._shown),
            cron=[describe_cron(job) for job in self.worker.cron_jobs],
            running=[
                RunningRecord(
                    *(job_id, job.function, job.number, job.enqueued_ms, job.started_ms),
                    wait_ms=job.wait_ms,
                    arguments=job.arguments,
                )
                for job_id, job in self.running.items()
                if job.ended is None
            ],
            rss=resident_bytes(),
            done=self.worker.jobs_complete,
            failed=self.worker.jobs_failed,
            retried=self.worker.jobs_retried,
            unrecorded=self._unrecorded,
            is_recording=not self._is_down,
        )

    async def _say_goodbye(self) -> None:
        """A worker that still has something in hand is not let go: what it does not finish is orphaned."""
        with contextlib.suppress(*UNAVAILABLE):
            async with asyncio.timeout(GOODBYE_S):
                if self._backlog:
                    await self._flush(GOODBYE_S)
                if self.worker._pool is None or any(job.ended is None for job in self.running.values()):
                    return
                async with self.worker.pool.pipeline(transaction=False) as pipeline:
                    pipeline.delete(keys.WORKER + self.id, keys.ALIVE + self.id)
                    pipeline.zrem(keys.WORKERS, self.id)
                    await pipeline.execute()

    # ---------------------------------------------------------------------------------------------------- the others

    async def _bury(self) -> None:
        """Record the tries of workers that have died. One has to look dead twice, lest Redis itself was away."""
        ids = [one.decode() for one in await self.worker.pool.zrange(keys.WORKERS, 0, -1)]
        alive = await self.worker.pool.mget([keys.ALIVE + one for one in ids]) if ids else []
        dead = {one for one, sign in zip(ids, alive, strict=True) if sign is None} - {self.id}
        for worker_id in dead & self._suspects:
            await self._bury_one(worker_id)
        self._suspects = dead

    async def _bury_one(self, worker_id: str) -> None:
        beat = read_beat(await self.worker.pool.get(keys.WORKER + worker_id))
        tries: list[list[Any]] = []
        if beat is None:
            await self.worker.pool.zrem(keys.WORKERS, worker_id)
            return
        for job in beat.running:
            newest = await self.worker.pool.lindex(keys.JOB + job.job, -1)  # type: ignore[misc]  # typed for both clients
            known = read_try(newest)
            if known and known.worker == worker_id and known.number >= job.number:
                continue  # It had ended, and died before it could say so with its heartbeat.
            tries.append(self._orphan(job, beat))
        if tries:
            await self._send(tries)
            logger.warning("a worker is gone, with jobs in hand", extra={"worker": worker_id, "jobs": len(tries)})
        async with self.worker.pool.pipeline(transaction=False) as pipeline:
            pipeline.delete(keys.WORKER + worker_id)
            pipeline.zrem(keys.WORKERS, worker_id)
            await pipeline.execute()

    def _orphan(self, job: RunningRecord, beat: Beat) -> list[Any]:
        record = TryRecord(
            number=job.number,
            outcome=Outcome.ORPHANED,
            worker=beat.id,
            enqueued_ms=job.enqueued_ms,
            started_ms=job.started_ms,
            ended_ms=max(beat.at_ms, job.started_ms),
            wait_ms=job.wait_ms,
            run_ms=max(beat.at_ms - job.started_ms, 0),
            raised=[],
            result=None,
            arguments=job.arguments,
        )
        guard = f"{keys.PREFIX}counted:{beat.id}:{job.number}:{job.job}"
        return self._as_try(job.job, job.function, record, 0, queue=beat.queue, guard=guard)

    async def _tidy(self) -> None:
        """Drop what is too old, also where nothing new comes to push it out."""
        before_ms = timestamp_ms() - self.bounds.kept_s * 1000
        pool: Any = self.worker.pool  # redis-py's types are of both of its clients at once
        for state in keys.RECORDED:
            index = keys.index(state, self.queue)
            await pool.eval(_TIDY, 0, keys.PREFIX, index, TIDIED_AT_ONCE, before_ms)
        await self._tidy_retrying()
        await self.worker.pool.zremrangebyscore(keys.QUEUES, "-inf", before_ms)

    async def _tidy_retrying(self) -> None:
        """Those that somebody took from the queue wait for nothing any more."""
        index = keys.index(keys.STATES[Outcome.RETRIED], self.queue)
        waiting = await self.worker.pool.zrange(index, 0, 99)
        if not waiting:
            return
        scores = await self.worker.pool.zmscore(self.queue, waiting)
        gone = [job_id for job_id, score in zip(waiting, scores, strict=True) if score is None]
        # What is queued again under the same id keeps its history.
        for job_id in gone:
            if job_id.decode() not in self.running:
                await self.worker.pool.zrem(index, job_id)


def as_try(
    queue: str,
    job_id: str,
    function: str,
    record: TryRecord,
    due_ms: int = 0,
    *,
    guard: str = "",
    is_cron: bool = False,
) -> list[Any]:
    """What _WRITE takes. A job that goes on waiting is due at `due_ms`; `guard` is a key that lets it in only once."""
    run = CronRun(record.ended_ms, record.outcome, record.run_ms)
    return [
        queue,
        job_id,
        keys.STATES[record.outcome].value,
        function,
        record.outcome.value,
        str(histograms.bucket(record.wait_ms / 1000)),
        str(histograms.bucket(record.run_ms / 1000)),
        due_ms,
        msgspec.msgpack.encode(record),
        guard,
        function if is_cron else "",
        msgspec.msgpack.encode(run) if is_cron else "",
    ]


async def write_tries(redis: Any, bounds: Bounds, tries: list[list[Any]], sha: str | None = None) -> str:
    """In one round trip, if `sha` is what the last call gave. Raises one of UNAVAILABLE."""
    arguments = (keys.PREFIX, bounds.max_jobs, bounds.kept_s, *itertools.chain.from_iterable(tries))
    if sha is not None:
        with contextlib.suppress(NoScriptError):
            await redis.evalsha(sha, 0, *arguments)
            return sha
    await redis.eval(_WRITE, 0, *arguments)
    return _WRITE_SHA


def describe_cron(job: CronJob) -> CronRecord:
    fields = ("month", "day", "weekday", "hour", "minute", "second")
    wanted = [(name, getattr(job, name)) for name in fields]
    schedule = " ".join(f"{name}={_options(option)}" for name, option in wanted if option is not None)
    return CronRecord(job.name, schedule or "always", to_unix_ms(job.next_run) if job.next_run else None)


def _options(option: Any) -> str:
    """`0,5,10` or, for regular steps, `0-55/5`."""
    if not isinstance(option, set | frozenset | list | tuple):
        return str(option)
    numbers = sorted(option, key=str) if any(isinstance(one, str) for one in option) else sorted(option)
    steps = {after - before for before, after in itertools.pairwise(numbers) if isinstance(before, int)}
    if len(numbers) > 3 and len(steps) == 1:
        return f"{numbers[0]}-{numbers[-1]}/{steps.pop()}"
    return ",".join(str(one) for one in numbers)


def read_beat(raw: bytes | None) -> Beat | None:
    """None for what another version wrote, too."""
    try:
        return msgspec.msgpack.decode(raw, type=Beat) if raw else None
    except msgspec.DecodeError:
        return None


def read_try(raw: bytes | None) -> TryRecord | None:
    try:
        return msgspec.msgpack.decode(raw, type=TryRecord) if raw else None
    except msgspec.DecodeError:
        return None


def resident_bytes() -> int | None:
    """Memory of this process, where the system tells."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
