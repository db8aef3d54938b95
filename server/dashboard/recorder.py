"""What a worker writes down about its jobs.

    worker = Worker(functions=[...], redis_pool=redis)
    record(worker)
    worker.run()

`record` puts itself around the worker's functions, to see how they end, and around arq's last step of each try, which
knows what becomes of the job. There it writes, before arq forgets the job: whoever is killed in between runs the job
again, and that is another try, which is recorded too.

How that costs hardly anything, and what becomes of it while Redis is away, is told in `backlog`. A job never fails of
being recorded.

What is running is told by the heartbeat, which is sent every BEAT_EVERY_S, and sooner when something has begun or
ended, but not for what is over within SETTLE_S. When it stops, the next living worker of the queue records the tries
that went down with it.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import pickle
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
from arq.constants import default_queue_name
from arq.cron import CronJob
from arq.utils import timestamp_ms, to_unix_ms
from arq.worker import Function, JobExecutionFailed, Worker

from server.dashboard import keys, tries
from server.dashboard.backlog import UNAVAILABLE, Backlog, LastStep
from server.dashboard.keys import Beat, CronRecord, RunningRecord, TryRecord
from server.dashboard.models import Outcome, Raised
from server.dashboard.redaction import describe, describe_arguments, describe_raised, is_shown, type_name
from server.dashboard.tries import UNKNOWN_FUNCTION, Bounds, as_try

__all__ = ["Bounds", "Recorder", "record"]

logger = logging.getLogger(__name__)

BEAT_EVERY_S = 1.0
SETTLE_S = 0.05
BURY_EVERY_S = 2.0
TIDY_EVERY_S = 30.0

BEAT_TIMEOUT_S = 2.0
GOODBYE_S = 0.5
TIDIED_AT_ONCE = 500


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


def record(
    worker: Worker, bounds: Bounds | None = None, *, version: str = "", never_paused: Collection[str] = ()
) -> "Recorder":
    """Have all that `worker` does recorded, from before it runs.

    `version` is of the application, and only shown. `never_paused` are names of cron jobs that go on while their queue
    is paused, such as what looks after the queue itself.
    """
    return Recorder(worker, bounds or Bounds(), version, never_paused)


@asynccontextmanager
async def meanwhile(run: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Recorder:
    """What is around one worker. Its methods take the place of the worker's, under the same names."""

    def __init__(self, worker: Worker, bounds: Bounds, version: str, never_paused: Collection[str]) -> None:
        self.worker = worker
        self.bounds = bounds
        self.id = secrets.token_hex(8)
        self.version = version
        self.queue: str = worker.queue_name or default_queue_name
        self.running: dict[str, Running] = {}
        self.is_paused = False
        # To be replaced, before the worker runs, by what has more to say about a `beat_on` that ended all the same.
        self.heart: AbstractAsyncContextManager[object] = meanwhile(self.beat_on)
        self._has_beaten = False
        self._is_over = False
        self._failures: dict[str, dict[str, Any]] = {}
        self.backlog = Backlog(worker, bounds)
        self._dirty = asyncio.Event()
        self._beating = asyncio.Lock()
        self._started_ms = timestamp_ms()
        self._suspects: set[str] = set()

        self._shown = {name for name, function in worker.functions.items() if is_shown(function.coroutine)}
        worker.functions = {name: self._wrapped(name, function) for name, function in worker.functions.items()}
        worker.cron_jobs = [worker.functions[job.name] for job in worker.cron_jobs]  # type: ignore[misc]  # by these names they are cron jobs
        self._cron_jobs = worker.cron_jobs
        self._never_paused = [job for job in worker.cron_jobs if job.name in never_paused]
        self._serialize = worker.job_serializer or pickle.dumps
        worker.job_serializer = self.job_serializer
        # A worker that ends its jobs in another way does it on its own.
        self._ends_like_arq = type(worker).finish_job is Worker.finish_job
        for name in ("main", "start_jobs", "run_job", "finish_job", "finish_failed_job"):
            setattr(self, f"_{name}", getattr(worker, name))
            setattr(worker, name, getattr(self, name))

    _main: Callable[[], Awaitable[None]]
    _start_jobs: Callable[[list[bytes]], Awaitable[None]]
    _run_job: Callable[[str, int], Awaitable[None]]
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
        try:
            async with self.heart:
                await self._main()
        finally:
            self._is_over = True
            await self._say_goodbye()

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        if not self._has_beaten:
            with contextlib.suppress(*UNAVAILABLE):
                async with asyncio.timeout(BEAT_TIMEOUT_S):
                    await self._beat()
        if self.is_paused:
            job_ids = [job_id for job_id in job_ids if self._goes_on(job_id)]
        if job_ids or not self.is_paused:
            await self._start_jobs(job_ids)

    def _goes_on(self, job_id: bytes) -> bool:
        """By its id, which arq makes of the name and the time."""
        return any(job_id.startswith(f"{job.name}:".encode()) for job in self._never_paused)

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
        if job is None:
            await self._finish_job(job_id, finish, *rest, **named)
            return
        record = self._conclude(job, finish)
        incr_score = named.get("incr_score", rest[3] if len(rest) > 3 else None)
        due_ms = 0 if finish else max(job.score + (incr_score or 0), 1)
        one = self._as_try(job_id, job.function, record, due_ms)
        # What did not end well is recorded first, for its arguments are kept, which arq drops in its last step.
        step = LastStep(self.worker)
        if self._ends_like_arq and record.outcome is Outcome.DONE:
            await Worker.finish_job(cast("Worker", step), job_id, finish, *rest, **named)
        is_written = await self.backlog.write(one, step.commands)
        self.running.pop(job_id, None)
        self._dirty.set()
        if not (step.commands and is_written):
            await self._finish_job(job_id, finish, *rest, **named)

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        """The like for a job that could not even be begun."""
        await self._record_unbegun(job_id, self._failures.get(job_id, {}))
        await self._finish_failed_job(job_id, result_data)

    # ---------------------------------------------------------------------------------------------------- recording

    def _conclude(self, job: Running, finish: bool) -> TryRecord:
        run_s = (job.ended or time.perf_counter()) - job.started
        in_full = job.function in self._shown
        outcome, error = self._judge(job, finish)
        return TryRecord(
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
        function = name if name in self.worker.functions else UNKNOWN_FUNCTION
        await self.backlog.write(self._as_try(job_id, function, record), [])

    def _as_try(
        self, job_id: str, function: str, record: TryRecord, due_ms: int = 0, *, queue: str = "", guard: str = ""
    ) -> list[Any]:
        is_cron = isinstance(self.worker.functions.get(function), CronJob)
        return as_try(queue or self.queue, job_id, function, record, due_ms, guard=guard, is_cron=is_cron)

    # ------------------------------------------------------------------------------------------------ the heartbeat

    async def beat_on(self) -> None:
        """Say every second that the worker is there, and write what could not be written; never returns."""
        while self.worker._pool is None:  # noqa: ASYNC110 - arq makes its pool in `main`, and tells nobody
            await asyncio.sleep(0.01)
        buried = tidied = 0.0
        while True:
            self._dirty.clear()
            try:
                async with asyncio.timeout(BEAT_TIMEOUT_S):
                    await self._beat()
                    if self.backlog.is_down:
                        await self.backlog.flush(BEAT_TIMEOUT_S)
                    if time.monotonic() - buried > BURY_EVERY_S:
                        buried = time.monotonic()
                        await self._bury()
                    if time.monotonic() - tidied > TIDY_EVERY_S:
                        tidied = time.monotonic()
                        await self._tidy()
            except UNAVAILABLE as error:
                self.backlog.note(error)
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
        if not self.backlog.entries:
            self.backlog.note(None)
        if self.is_paused and not paused:
            # What was not run meanwhile is not run now, one after the other.
            for job in self._cron_jobs:
                if job not in self._never_paused:
                    job.next_run = None
        self.is_paused = bool(paused)
        self.worker.cron_jobs = self._never_paused if paused else self._cron_jobs
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
            cron=[describe_cron(job) for job in self._cron_jobs],
            never_paused=[job.name for job in self._never_paused],
            running=[
                RunningRecord(
                    *(job_id, job.function, job.number, job.enqueued_ms, job.started_ms),
                    wait_ms=job.wait_ms,
                    arguments=job.arguments,
                )
                for job_id, job in self.running.items()
            ],
            rss=resident_bytes(),
            done=self.worker.jobs_complete,
            failed=self.worker.jobs_failed,
            retried=self.worker.jobs_retried,
            unrecorded=self.backlog.lost,
            is_recording=not self.backlog.is_down,
        )

    async def _say_goodbye(self) -> None:
        """A worker that still has something in hand is not let go: what it does not finish is orphaned."""
        with contextlib.suppress(*UNAVAILABLE):
            async with asyncio.timeout(GOODBYE_S):
                await self.backlog.flush(GOODBYE_S)
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
        orphans: list[list[Any]] = []
        if beat is None:
            await self.worker.pool.zrem(keys.WORKERS, worker_id)
            return
        for job in beat.running:
            newest = await self.worker.pool.lindex(keys.JOB + job.job, -1)  # type: ignore[misc]  # typed for both clients
            known = read_try(newest)
            if known and known.worker == worker_id and known.number >= job.number:
                continue  # It had ended, and died before it could say so with its heartbeat.
            orphans.append(self._orphan(job, beat))
        if orphans:
            await tries.write(self.worker.pool, self.bounds, orphans)
            logger.warning("a worker is gone, with jobs in hand", extra={"worker": worker_id, "jobs": len(orphans)})
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
            await tries.drop_old(pool, keys.index(state, self.queue), before_ms, TIDIED_AT_ONCE)
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
