"""The dashboard in a terminal: the same structs as text, in columns."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from server.dashboard.models import Job, JobPage, Overview, Queue, WorkerInfo

MAX_COLUMN = 48


def show_queues(overview: Overview) -> str:
    rows = [queue_row(queue) for queue in overview.queues]
    head = (
        "QUEUE",
        "WAITING SINCE",
        "QUEUED",
        "DEFERRED",
        "RUNNING",
        "RETRYING",
        "ORPHANED",
        "FAILED",
        "DONE",
        "WORKERS",
    )
    alarms = [f"! {queue.name}: {queue.alarm}" for queue in overview.queues if queue.alarm]
    if not rows:
        return "No worker has ever spoken here, so there is nothing to show."
    return "\n".join([*alarms, *columns(head, rows)])


def queue_row(queue: Queue) -> tuple[str, ...]:
    numbers = (queue.queued, queue.deferred, queue.running, queue.retrying, queue.orphaned, queue.failed, queue.done)
    name = f"{queue.name} (paused)" if queue.is_paused else queue.name
    return (name, duration(queue.oldest_wait_s), *(str(number) for number in numbers), str(queue.workers))


def show_jobs(page: JobPage, now: datetime) -> str:
    if not page.items:
        return "No such jobs."
    rows = [job_row(job, now) for job in page.items]
    more = ["… and more"] if page.next_cursor else []
    return "\n".join([*columns(("JOB", "FUNCTION", "STATE", "TRIES", "WHEN", "WAITED", "RAN", "ERROR"), rows), *more])


def job_row(job: Job, now: datetime) -> tuple[str, ...]:
    return (
        job.id,
        job.function or "?",
        job.state.value,
        str(job.tries),
        relative(job.at, now),
        duration(job.wait_s),
        duration(job.run_s),
        job.error or "",
    )


def show_workers(workers: Sequence[WorkerInfo], now: datetime) -> str:
    if not workers:
        return "No worker is alive."
    rows = [
        (
            worker.id,
            worker.queue,
            f"{worker.host}:{worker.pid}",
            worker.version,
            relative(worker.started_at, now),
            f"{len(worker.running)}/{worker.max_jobs}",
            str(worker.done),
            str(worker.failed),
            f"{worker.rss / 2**20:.0f} MiB" if worker.rss else "?",
        )
        for worker in workers
    ]
    head = ("WORKER", "QUEUE", "PROCESS", "VERSION", "STARTED", "RUNNING", "DONE", "FAILED", "MEMORY")
    return "\n".join(columns(head, rows))


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    table = [tuple(head), *(tuple(cut(cell) for cell in row) for row in rows)]
    widths = [max(len(row[place]) for row in table) for place in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def cut(cell: str) -> str:
    return cell if len(cell) <= MAX_COLUMN else cell[: MAX_COLUMN - 1] + "…"


def duration(seconds: float | None) -> str:
    """`12 ms`, `3.4 s`, `5 min`, `2.0 h`, `3.1 d`."""
    if seconds is None:
        return "–"
    for limit, size, unit in ((1, 0.001, "ms"), (100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} d"


def relative(at: datetime | None, now: datetime) -> str:
    if at is None:
        return "–"
    seconds = (now - at).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"
