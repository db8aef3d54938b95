"""The worker process: arq's worker with what makes it quick to start a job and hard to kill.

SIGTERM lets running jobs finish for COMPLETION_WAIT_S and then puts them back on the queue. Once it runs, a lost Redis
or Postgres is waited for, however long it takes; what a new start could mend ends it, with a status other than 0.
"""

import asyncio
import contextvars
import functools
import logging
import math
import os
import socket
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, cast

import arq.worker
import msgspec
import rich_click as click
import uvloop
from arq import cron, func
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.utils import timestamp_ms, to_unix_ms

from server import after_commit, coredumps, database, jobs, logs, objects
from server.channels import UNAVAILABLE, Hub, Reconnected, within
from server.dashboard.recorder import Bounds, record
from server.loops import Loop, unwell
from server.sealing.drafts import worker_key_id
from server.sealing.keys import encryption_pair
from server.settings import Settings, SettingsError, load
from server.up import attach
from tasks.seal import seal_many, seal_post, together
from tasks.sweep import EVERY_S, TIMEOUT_S, sweep

logger = logging.getLogger(__name__)

# The wake-up makes a job start at once. The poll finds what was put off, what a lost wake-up would have told, and the
# time of the next sweep.
POLL_DELAY_S = 0.5
MAX_BACKOFF_S = 2.0
SETTLE_S = 0.002
SEALING_NICENESS = 10

# A group of the largest size is sealed in some twenty seconds.
SEAL_TIMEOUT_S = 300
# What may pass is tried for as long as it takes, so the count of tries must never be the end of it.
NO_LIMIT = 2**31

# Together below the ten seconds that `up`, Docker and systemd's impatient users leave a process to stop.
COMPLETION_WAIT_S = 4
CANCEL_WAIT_S = 1.0
GOODBYE_S = 0.5

ANSWER_TIMEOUT_S = 5.0


# ARGV: queue, Unix time in milliseconds, how many at most, for how many milliseconds, for how many seconds the number
# of tries is kept, and the jobs. What `run_job` would ask for first is answered along: the job, and which try this is.
CLAIM = f"""
local queue, now_ms, room = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local claimed = {{}}
for place = 6, #ARGV do
  local id = ARGV[place]
  local claim, tries = '{in_progress_key_prefix}' .. id, '{retry_key_prefix}' .. id
  if #claimed < room and redis.call('EXISTS', claim) == 0 then
    -- Not where another worker has ended it, or put it off, since the queue was read.
    local score = redis.call('ZSCORE', queue, id)
    if score and tonumber(score) <= now_ms then
      redis.call('SET', claim, '1', 'PX', ARGV[4])
      local number = redis.call('INCR', tries)
      redis.call('EXPIRE', tries, ARGV[5])
      table.insert(claimed, {{id, score, redis.call('GET', '{job_key_prefix}' .. id), number}})
    end
  end
end
return claimed
"""
RETRIES_KEPT_S = 88_400  # arq's own


class Brought:
    """Stands in for the connections of a worker in the first round trip of `run_job`, which a claim has saved it."""

    def __init__(self, job: bytes | None, number: int) -> None:
        self._answers = (job, number, True)

    def pipeline(self, transaction: bool) -> "Brought":  # noqa: ARG002 - as it is called
        return self

    async def __aenter__(self) -> "Brought":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def get(self, _: str) -> None:
        pass

    def incr(self, _: str) -> None:
        pass

    def expire(self, _: str, __: int) -> None:
        pass

    async def execute(self) -> tuple[bytes | None, int, bool]:
        return self._answers


_BROUGHT: contextvars.ContextVar[Brought | None] = contextvars.ContextVar("brought", default=None)


class Worker(arq.worker.Worker):
    """What arq's worker lacks:

    * It is told of a job that is enqueued, and reads the queue when one of its own ends and more may be there, where
      arq sleeps until its next poll.
    * It outlives a lost Redis, of any length. arq ends, or hangs on SIGTERM where many retries are set.
    * It claims all that it has room for in one round trip, which brings the jobs along, and loses no slot if Redis goes
      in the middle of that.
    * A cron job that is due goes before all that is queued, once for all workers, and not once for each time missed.
    """

    def __init__(self, redis: ArqRedis, **options: Any) -> None:
        super().__init__(redis_pool=redis, queue_name=redis.default_queue_name, **options)
        self._woken = asyncio.Event()
        self._told: list[bytes] = []
        # Whether there may be more in the queue than one is told of.
        self._reads_queue = True
        self._is_behind = False
        self._read_at = -math.inf
        self._lost_redis = False
        self._looks_again: asyncio.TimerHandle | None = None
        self._claim = redis.register_script(CLAIM)

    def put(self, item: str | Reconnected) -> None:
        """Receiver of the channel that tells of new jobs, by their ids; anything else is a reason to read the queue."""
        if isinstance(item, str) and item:
            self._told += item.encode().split(b"\n")
        else:
            self._reads_queue = True
        self._woken.set()

    async def main(self) -> None:
        if self.burst:
            await super().main()
            return
        self.ctx["redis"] = self.pool
        backoff_s = 0.05
        # A signal ends this by cancelling it, but for one that came before there was anything to cancel.
        while not (self.is_stopping and not self.tasks):
            self._woken.clear()
            try:
                await self._look()
            except UNAVAILABLE as error:
                self._note_redis(error)
                self._reads_queue = True
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            else:
                self._note_redis(None)
                backoff_s = 0.05
                await within(self.poll_delay_s, self._woken.wait())

    async def _look(self) -> None:
        told, self._told = self._told, []
        # Where others wait, who is told of waits for its turn, in the queue.
        reads_queue = self._reads_queue or self._is_behind
        if told and not reads_queue and self.loop.time() - self._read_at < self.poll_delay_s:
            if self.allow_pick_jobs:
                await self.start_jobs(told)
            return
        self._reads_queue = False
        self._read_at = self.loop.time()
        # Without room arq reads nothing.
        self._is_behind = self.job_counter >= self.max_jobs
        await self._poll_iteration()

    def _note_redis(self, error: Exception | None) -> None:
        if error and not self._lost_redis:
            logger.warning("Redis is away (%s), waiting for it", type(error).__name__)
        elif self._lost_redis and not error:
            logger.info("Redis is back")
        self._lost_redis = error is not None

    @property
    def pool(self) -> ArqRedis:
        """For a job that begins, once, what answers from what its claim has brought."""
        brought = _BROUGHT.get()
        if brought is None:
            return super().pool
        _BROUGHT.set(None)
        return cast("ArqRedis", brought)

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Claim and start those that no other worker took before. A claim whose answer is lost the sweep releases."""
        wanted = [name for name in map(bytes.decode, job_ids) if not self._has_in_hand(name)]
        room = self.max_jobs - self.job_counter
        claimed: list[Any] = []
        if wanted and room > 0:
            claim_ms = int(self.in_progress_timeout_s * 1000)
            arguments: list[str | int] = [self.queue_name, timestamp_ms(), room, claim_ms, RETRIES_KEPT_S, *wanted]
            claimed = await self._claim(args=arguments)
        # The queue holds what is running too. With many workers that may be all that one reading shows: read on.
        reads_on = not claimed and room > 0 and len(job_ids) == self.queue_read_limit
        self._is_behind = len(wanted) > room or len(job_ids) == self.queue_read_limit
        self._queue_read_offset = self._queue_read_offset + self.queue_read_limit if reads_on else 0
        if reads_on:
            self._reads_queue = True
            self._woken.set()
        for job_id, score, job, number in claimed:
            self._start(job_id.decode(), int(float(score)), Brought(job, number))

    def _has_in_hand(self, job_id: str) -> bool:
        return job_id in self.tasks and not self.tasks[job_id].done()

    def _start(self, job_id: str, score: int, brought: "Brought") -> None:
        context = contextvars.copy_context()
        context.run(_BROUGHT.set, brought)
        task = self.loop.create_task(self.run_job(job_id, score), context=context)
        self.tasks[job_id] = task
        self.job_counter += 1
        task.add_done_callback(functools.partial(self._end_job, job_id))

    def _end_job(self, job_id: str, task: asyncio.Task[None]) -> None:
        self.job_counter -= 1
        # The next reading of the queue raises what a task has raised.
        if not task.cancelled() and task.exception() is None:
            self.tasks.pop(job_id, None)
        # Jobs that end at about the same time make room together: a look at the queue takes as long as a short job.
        if self._looks_again is None and (self._is_behind or self.is_stopping):
            self._looks_again = self.loop.call_later(SETTLE_S if self.job_counter else 0, self._look_again)

    def _look_again(self) -> None:
        self._looks_again = None
        self._reads_queue = True
        self._woken.set()

    async def run_cron(self, n: datetime, delay: float, num_windows: int = 2) -> None:  # noqa: ARG002 - arq's signature
        for job in self.cron_jobs if self.allow_pick_jobs else []:
            if job.next_run is None and not job.run_at_startup:
                job.calculate_next(n)
            elif job.next_run is None or job.next_run <= n:
                await jobs.enqueue_tick(self.pool, job.name, to_unix_ms(job.next_run or n))
                job.calculate_next(n)

    @property
    def is_stopping(self) -> bool:
        return not self.allow_pick_jobs

    async def release(self) -> None:
        """Put what is still running back on the queue; within a few seconds, whether Redis is there or not."""
        running = [task for task in self.tasks.values() if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=CANCEL_WAIT_S)
        with suppress(*UNAVAILABLE):
            async with asyncio.timeout(GOODBYE_S):
                await self.pool.delete(self.health_check_key)


@asynccontextmanager
async def open_worker(settings: Settings, redis: ArqRedis, **options: Any) -> AsyncIterator[Worker]:
    """A worker on the queue of `redis`, ready to run. Needs the open pool of `server.database`; `options` are arq's."""
    worker_id = uuid.uuid4().hex
    thread_count = settings.worker_threads or core_count()
    threads = ThreadPoolExecutor(thread_count, thread_name_prefix="seal")
    patient_threads = ThreadPoolExecutor(thread_count, thread_name_prefix="seal-many", initializer=yield_to_others)
    worker = Worker(
        redis,
        functions=[func(seal_post, name=jobs.SEAL_POST, timeout=SEAL_TIMEOUT_S, max_tries=NO_LIMIT)],
        cron_jobs=[
            cron(sweep, name=jobs.SWEEP, second=set(range(0, 60, EVERY_S)), run_at_startup=True, timeout=TIMEOUT_S)
        ],
        max_jobs=settings.worker_jobs,
        # A result would keep arq from taking the same post again once it was requeued.
        keep_result=0,
        poll_delay=POLL_DELAY_S,
        health_check_key=f"{redis.default_queue_name}:health-check:{worker_id}",
        health_check_interval=60,
        job_completion_wait=COMPLETION_WAIT_S,
        job_serializer=jobs.serialize,
        job_deserializer=jobs.deserialize,
        **options,
    )
    seal_few = functools.partial(seal_many, threads, thread_count)
    worker.ctx |= {
        "worker_private_keys": settings.worker_private_keys,
        # A big group goes behind everything else on the machine; a post for a few is what somebody waits for.
        "seal_many": functools.partial(seal_many, patient_threads, thread_count),
        "together": together(settings.worker_private_keys, seal_few),
        "sweeping": asyncio.Lock(),
        "store": objects.open_store(settings),
        "claim_s": worker.in_progress_timeout_s,
    }
    recorder = record(
        worker,
        Bounds(max_jobs=settings.dashboard_jobs, kept_s=settings.dashboard_days * 86_400),
        version=version(),
        # It mends what is lost between Postgres and Redis, whether posts are sealed for now or not.
        never_paused=[jobs.SWEEP],
    )
    recording = recorder.heart = Loop("recorder", recorder.beat_on)
    try:
        described = describe(worker_id, settings, redis.default_queue_name)
        async with Hub(redis) as hub, beating(redis, described, [hub.loop, recording]):
            await hub.join(worker, [jobs.wake_channel(redis.default_queue_name)])
            yield worker
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        patient_threads.shutdown(wait=False, cancel_futures=True)


def yield_to_others() -> None:
    """Of the thread that calls it: a big group is sealed on all cores, and nobody else is to wait for one meanwhile."""
    # On Linux priorities are of threads; elsewhere it would be the whole process that takes a back seat.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SEALING_NICENESS)


def core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(worker_id: str, settings: Settings, queue_name: str) -> jobs.LiveWorker:
    return jobs.LiveWorker(
        id=worker_id,
        queue_name=queue_name,
        hostname=socket.gethostname(),
        pid=os.getpid(),
        version=version(),
        started=datetime.now(UTC),
        worker_key_ids=tuple(key_ids(settings.worker_private_keys)),
    )


def version() -> str:
    try:
        return metadata.version("secureblogs")
    except metadata.PackageNotFoundError:  # run from its source
        return "0"


def key_ids(worker_private_keys: Sequence[bytes]) -> list[str]:
    return [worker_key_id(encryption_pair(private).public).hex() for private in worker_private_keys]


@asynccontextmanager
async def beating(redis: ArqRedis, worker: jobs.LiveWorker, loops: Sequence[Loop]) -> AsyncIterator[None]:
    """Say that the worker is alive, and how its `loops` and this one are."""

    async def beat() -> None:
        while True:
            all_loops = [*loops, heart]
            deaths = {loop.name: loop.deaths for loop in all_loops}
            now = msgspec.structs.replace(worker, unwell=tuple(unwell(*all_loops)), loop_deaths=deaths)
            # The worker itself says when Redis is away.
            with suppress(*UNAVAILABLE):
                await jobs.say_alive(redis, now)
            await asyncio.sleep(jobs.HEARTBEAT_EVERY_S)

    heart = Loop("heartbeat", beat)
    try:
        async with heart:
            yield
    finally:
        with suppress(*UNAVAILABLE):
            async with asyncio.timeout(GOODBYE_S):
                await jobs.say_goodbye(redis, worker)


async def run(settings: Settings, queue_name: str = jobs.QUEUE_NAME) -> None:
    """Work until SIGTERM or SIGINT. Raises one of database.UNAVAILABLE if Postgres is away at the start."""
    redis = await jobs.create_pool(
        str(settings.redis_url),
        queue_name=queue_name,
        answer_timeout_s=ANSWER_TIMEOUT_S,
        max_connections=2 * settings.worker_jobs + 8,
    )
    try:
        async with (
            database.open_pool(str(settings.database_url), settings.database_pool_size),
            after_commit.settling(redis),
            open_worker(settings, redis) as worker,
        ):
            logger.info("worker started", extra={"queue": queue_name, "jobs": settings.worker_jobs})
            try:
                await worker.async_run()
            except asyncio.CancelledError:
                if not worker.is_stopping:
                    raise
            finally:
                await worker.release()
            logger.info("worker stopped", extra={"done": worker.jobs_complete})
    finally:
        await redis.aclose(close_connection_pool=True)


@click.command("worker", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Seal what is pending, and sweep up.

    Start as many as you like, on one Postgres and Redis; each seals on all cores.
    """
    coredumps.forbid()
    settings = attach(load(os.environ))
    if not settings.worker_private_keys:
        raise SettingsError("WORKER_PRIVATE_KEYS: not set; `secureblogs secrets FOLDER` makes one")
    logs.configure(settings.log_level, settings.log_format)
    # At info arq writes two lines for each job and each sweep, and its errors are what it can't handle.
    logging.getLogger("arq").setLevel(max(logging.WARNING, logging.getLogger().level))
    try:
        uvloop.run(run(settings))
    except database.UNAVAILABLE as error:
        sys.exit(f"secureblogs: Postgres does not answer ({error}); `secureblogs doctor` looks into it")
