"""What is shown. The same structs are the pages' material and the JSON of `/dashboard/api/`.

Times are aware datetimes in UTC, durations are seconds, sizes are bytes. Names and ids are whatever somebody put into
Redis, cut to MAX_NAME_CHARACTERS and with control characters replaced: they may still be markup, to be escaped.
"""

from datetime import datetime
from enum import StrEnum

import msgspec

MAX_NAME_CHARACTERS = 200


class State(StrEnum):
    """Where a job stands now."""

    QUEUED = "queued"
    """Due, and waiting for a worker."""
    DEFERRED = "deferred"
    """Put off by whoever enqueued it: not due yet."""
    RUNNING = "running"
    RETRYING = "retrying"
    """Tried before, and waiting for its next try."""
    ORPHANED = "orphaned"
    """Its worker died with it. arq hands it out again once the claim has run out."""
    FAILED = "failed"
    ABORTED = "aborted"
    DONE = "done"


class Outcome(StrEnum):
    """How one try of a job ended."""

    DONE = "done"
    FAILED = "failed"
    RETRIED = "retried"
    """It asked to be tried again."""
    CANCELLED = "cancelled"
    """Its worker was stopped, and put it back on the queue."""
    ABORTED = "aborted"
    ORPHANED = "orphaned"


class Span(StrEnum):
    HOUR = "1h"
    DAY = "24h"
    WEEK = "7d"


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """In seconds, each within 5 % of the exact value; None where nothing was measured."""

    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Tries by how they ended."""

    done: int = 0
    failed: int = 0
    retried: int = 0
    cancelled: int = 0
    aborted: int = 0
    orphaned: int = 0

    @property
    def total(self) -> int:
        return self.done + self.failed + self.retried + self.cancelled + self.aborted + self.orphaned


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """One queue, now."""

    name: str
    is_alarming: bool
    """Work is due and nobody does it: no worker is alive, or the oldest has waited longer than ALARMING_WAIT_S."""
    alarm: str | None
    """Why, in one sentence; None if it is not."""
    oldest_wait_s: float | None
    """For how long the oldest job that is due has waited, in seconds; None if none waits."""
    queued: int
    deferred: int
    running: int
    retrying: int
    """Of those that wait, the ones that were tried before; they are not among `queued` and `deferred`."""
    orphaned: int
    failed: int
    """Kept ones of the history, as are `aborted` and `done`."""
    aborted: int
    done: int
    workers: int
    """With a heartbeat."""
    is_paused: bool
    paused_by: str | None
    paused_at: datetime | None
    never_paused: list[str]
    """Names of cron jobs that go on while it is paused."""


class FunctionFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One function, over a span of time."""

    name: str
    counts: Counts
    per_minute: float
    """Tries that ended, of any outcome."""
    failure_rate: float
    """Of the tries that ended, those that failed or were orphaned: 0 to 1."""
    wait: Percentiles
    """From when a job was due until it was started."""
    run: Percentiles


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The first screen."""

    at: datetime
    """Redis' own time, which all ages are counted from."""
    is_alarming: bool
    queues: list[Queue]
    functions: list[FunctionFigures]
    """Over the last hour and all queues, the busiest first."""
    workers: list["WorkerInfo"]
    panels: list["Panel"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the list."""

    id: str
    """As it is shown: too long or unprintable ids are not what they are in Redis. `ref` is."""
    ref: str
    """What stands for the id in addresses and actions: its bytes in URL-safe base64 without padding."""
    queue: str
    state: State
    function: str | None
    """None for a job whose encoding is not known here, such as a pickle, which is never opened."""
    tries: int
    """0 for one that was never started."""
    at: datetime | None
    """What the list is ordered by: when it ended, started, or is due."""
    enqueued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    wait_s: float | None
    run_s: float | None
    """So far, for one that is running."""
    worker: str | None
    error: str | None
    """The type of what was raised, for example `ValueError`."""
    retried_from: str | None
    """The `ref` of the job that this one repeats."""


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[Job]
    next_cursor: str | None
    """More may follow, even if `items` is short or empty: a call looks at LOOKED_AT jobs at most."""
    examined: int


class Argument(msgspec.Struct, frozen=True, kw_only=True):
    """Redacted to what it is, unless its function opted in."""

    name: str
    """Its position, or its keyword."""
    type: str
    size: int | None
    """Characters or bytes of text, items of a collection."""
    value: str | None
    """Ids (UUIDs, whole numbers); the text of it, cut, where the function opted in; None where it is redacted."""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    file: str
    line: int
    function: str


class Raised(msgspec.Struct, frozen=True, kw_only=True):
    """An exception, the outermost first, with those that it was raised from."""

    type: str
    message: str | None
    """Only where the function opted in."""
    frames: list[Frame]
    """The innermost last."""


class Try(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    outcome: Outcome | None
    """None while it runs."""
    worker: str
    started_at: datetime
    ended_at: datetime | None
    wait_s: float
    run_s: float
    raised: list[Raised]
    result: Argument | None


class JobDetail(msgspec.Struct, frozen=True, kw_only=True):
    job: Job
    arguments: list[Argument] | None
    """None where they are gone, or can't be read here."""
    is_opaque: bool
    """It was put there by somebody without a recorder, in an encoding that is not opened here."""
    tries: list[Try]
    """The newest MAX_TRIES, the oldest first."""
    actions: list[str]
    """What may be done with it now, by anybody at all: `retry`, `abort`, `delete`."""


class RunningJob(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    ref: str
    function: str
    number: int
    """Which try it is."""
    started_at: datetime


class CronEntry(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    queue: str
    schedule: str
    """For example `second=0,30 minute=*`."""
    next_at: datetime | None
    last_at: datetime | None
    last_outcome: Outcome | None
    last_run_s: float | None


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process that gave a sign of life in the last HEARTBEAT_KEPT_S seconds."""

    id: str
    queue: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_s: float
    """Seconds since its last sign of life."""
    max_jobs: int
    functions: list[str]
    cron: list[str]
    running: list[RunningJob]
    rss: int | None
    """Memory in use, bytes."""
    done: int
    failed: int
    retried: int
    is_recording: bool
    """False after its last try to write to Redis failed."""
    unrecorded: int
    """Tries that it could not record since its start, because Redis did not answer in time."""


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    items: list[WorkerInfo]


class CronSchedule(msgspec.Struct, frozen=True, kw_only=True):
    items: list[CronEntry]


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    """Its beginning."""
    counts: Counts
    wait: Percentiles
    run: Percentiles


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Buckets without a gap, the oldest first: 60 of a minute, 144 of ten minutes, or 168 of an hour."""

    span: Span
    bucket_s: int
    queue: str | None
    """None: all queues together."""
    function: str | None
    """None: all functions together."""
    buckets: list[Bucket]
    total: Counts
    wait: Percentiles
    """Over the whole span."""
    run: Percentiles
    functions: list[FunctionFigures]
    """Each one that `function` does not leave out, over the whole span, the busiest first."""


class PanelFact(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """What it is, for example "posts pending"."""
    value: str
    is_alarming: bool = False
    action: str | None = None
    """The name of a repair that the panel offers for it: `POST …/panels/{panel}/{action}`."""
    action_label: str | None = None
    """What stands on its button."""


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """What the application says about what its queue is for."""

    name: str
    """In addresses: letters, digits, `-`."""
    title: str
    facts: list[PanelFact]
    error: str | None = None
    """In place of facts: the type of what kept the application from telling."""


class Selection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which jobs: the filter of a list. All that is given has to fit."""

    state: State
    queue: str
    function: str | None = None
    since: datetime | None = None
    """By the time that the list is ordered by."""
    until: datetime | None = None
    text: str | None = None
    """Somewhere in the id."""


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a bulk action would be done to."""

    action: str
    count: int
    """Jobs that fit, at most MAX_BULK."""
    is_capped: bool
    """More may fit than one call does."""
    refs: list[str]
    """These are the ones, and what has to be sent back; `items` shows the first twenty."""
    items: list[Job]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an action."""

    action: str
    done: list[str]
    """The refs of the jobs that it was done to; of a retry, those of the new jobs; else the name of queue or panel."""
    skipped: list[str]
    """The refs of jobs in no state for it any more."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the one who asks may do."""

    actions: list[str]
    """Of `retry`, `abort`, `delete`, `pause`, `resume`, `repair`."""
    is_read_only: bool
    csrf_token: str
    """To be sent with each action: as the header `X-CSRF-Token`, or the form field `csrf_token`."""
