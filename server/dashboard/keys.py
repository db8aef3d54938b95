"""Where things lie in Redis: arq's keys, and those of the history, which the recorder writes and the reader reads.

All of the history's keys begin with `arq:dashboard:`; `<queue>` and `<job>` are names as arq has them.

    queues                       zset  names of queues, by when a worker last spoke of them
    workers                      zset  ids of workers, by when they began
    worker:<worker>              what it says of itself, `Beat`, kept for a day
    alive:<worker>               there while it is alive: kept HEARTBEAT_KEPT_S after its last sign of life
    paused:<queue>               there while the queue is paused, `Pause`
    functions:<queue>            set   names of functions that were recorded
    cron:<queue>                 hash  last run of each cron function, `CronRun`
    job:<job>                    list  [state, function, queue], then one `TryRecord` for each of the newest tries
    raw:<job>                    the job as arq had it, kept of what did not end well, so that it can be done again
    from:<job>                   the id of the job that it repeats
    jobs:<state>:<queue>         zset  job ids, by when they ended; by when they are due where they are `retrying`
    jobs:<state>:<queue>|<function>    the same of one function
    history:<seconds>:<n>:<queue>  hash  counts of the n-th bucket of so many seconds since 1970:
                                 `c|<outcome>|<function>`, `w|<bucket>|<function>` of wait, `r|…` of run
    abort:<worker>               set   ids of running jobs that it is asked to abort
    counted:<worker>:<try>:<job> there when a try of a dead worker has been counted as orphaned
    revision                     how many tries were ever recorded
"""

import base64
import binascii
from typing import Any, Final

import msgspec
from arq.constants import abort_jobs_ss, in_progress_key_prefix, job_key_prefix, result_key_prefix, retry_key_prefix

from server.dashboard.errors import JobNotFound
from server.dashboard.models import Argument, Outcome, Raised, Span, State

ARQ_JOB, ARQ_CLAIM, ARQ_RETRY = job_key_prefix, in_progress_key_prefix, retry_key_prefix
ARQ_RESULT, ARQ_ABORT = result_key_prefix, abort_jobs_ss

PREFIX: Final = "arq:dashboard:"

QUEUES = PREFIX + "queues"
WORKERS = PREFIX + "workers"
REVISION = PREFIX + "revision"
WORKER = PREFIX + "worker:"
ALIVE = PREFIX + "alive:"
PAUSED = PREFIX + "paused:"
FUNCTIONS = PREFIX + "functions:"
CRON = PREFIX + "cron:"
JOB = PREFIX + "job:"
RAW = PREFIX + "raw:"
FROM = PREFIX + "from:"
ABORT = PREFIX + "abort:"

HEARTBEAT_KEPT_S = 12
WORKER_KEPT_S = 86_400

MAX_TRIES = 20
"""That are kept of one job."""
MAX_RAW_BYTES = 64 * 1024
"""Of a job that can be done again from here."""

# Seconds of a bucket, how many a span shows, and how long they are kept. What is kept is about as much for each.
BUCKETS: dict[Span, tuple[int, int, int]] = {
    Span.HOUR: (60, 60, 2 * 3600),
    Span.DAY: (600, 144, 26 * 3600),
    Span.WEEK: (3600, 168, 8 * 86_400),
}

ENDED = (State.DONE, State.FAILED, State.ABORTED)
RECORDED = (*ENDED, State.ORPHANED, State.RETRYING)

# Where a job is after a try that ended so.
STATES = {
    Outcome.DONE: State.DONE,
    Outcome.FAILED: State.FAILED,
    Outcome.RETRIED: State.RETRYING,
    Outcome.CANCELLED: State.RETRYING,
    Outcome.ABORTED: State.ABORTED,
    Outcome.ORPHANED: State.ORPHANED,
}


def index(state: State, queue: str, function: str | None = None) -> str:
    return f"{PREFIX}jobs:{state.value}:{queue}" + (f"|{function}" if function is not None else "")


def history(bucket_s: int, number: int, queue: str) -> str:
    return f"{PREFIX}history:{bucket_s}:{number}:{queue}"


def make_ref(job_id: str) -> str:
    return base64.urlsafe_b64encode(job_id.encode()).rstrip(b"=").decode()


def read_ref(ref: str) -> str:
    """Raises JobNotFound: what is no ref is no job either."""
    try:
        return base64.b64decode(ref + "=" * (-len(ref) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise JobNotFound from None


def text(name: bytes) -> str:
    return name.decode(errors="replace")


def decode(raw: Any, kind: Any) -> Any:
    """None for what is not there, or was written by another version."""
    try:
        return msgspec.msgpack.decode(raw, type=kind) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class TryRecord(msgspec.Struct, array_like=True, frozen=True):
    """Times are milliseconds, since 1970 or of duration."""

    number: int
    outcome: Outcome
    worker: str
    enqueued_ms: int
    started_ms: int
    ended_ms: int
    wait_ms: float
    run_ms: float
    raised: list[Raised]
    result: Argument | None
    arguments: list[Argument] | None


class RunningRecord(msgspec.Struct, array_like=True, frozen=True):
    job: str
    function: str
    number: int
    enqueued_ms: int
    started_ms: int
    wait_ms: float
    arguments: list[Argument] | None


class CronRecord(msgspec.Struct, array_like=True, frozen=True):
    name: str
    schedule: str
    next_ms: int | None


class CronRun(msgspec.Struct, array_like=True, frozen=True):
    ended_ms: int
    outcome: Outcome
    run_ms: float


class Beat(msgspec.Struct, frozen=True):
    id: str
    queue: str
    host: str
    pid: int
    version: str
    started_ms: int
    at_ms: int
    max_jobs: int
    claim_ms: int
    """For how long it claims a job."""
    functions: list[str]
    shown: list[str]
    """Those of them that opted in."""
    cron: list[CronRecord]
    running: list[RunningRecord]
    rss: int | None
    done: int
    failed: int
    retried: int
    unrecorded: int
    is_recording: bool
    never_paused: list[str] = []
    """Cron jobs that go on while the queue is paused."""


class Pause(msgspec.Struct, array_like=True, frozen=True):
    who: str
    at_ms: int
