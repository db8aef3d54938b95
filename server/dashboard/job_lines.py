"""Lines of a list of jobs, from what is known of each."""

from typing import Any

import msgspec

from server.dashboard.encoded import Encoded
from server.dashboard.keys import Beat, RunningRecord, TryRecord, decode, make_ref, text
from server.dashboard.models import Job, Selection, State
from server.dashboard.moments import moment
from server.dashboard.redaction import clean


def show_job(job_id: str, queue: str, state: State, **facts: Any) -> Job:
    none: dict[str, Any] = dict.fromkeys(
        ("function", "at", "enqueued_at", "started_at", "ended_at", "wait_s", "run_s", "worker", "error")
    )
    all_facts = none | {"tries": 0, "retried_from": None} | facts
    return Job(id=clean(job_id), ref=make_ref(job_id), queue=clean(queue), state=state, **all_facts)


def show_recorded(
    job_id: str, queue: str, state: State, head: bytes | None, last: TryRecord, origin: bytes | None
) -> Job:
    known = decode(head, tuple[str, str, str])
    return show_job(
        *(job_id, queue, state),
        function=clean(known[1]) if known else None,
        tries=last.number,
        at=moment(last.ended_ms),
        enqueued_at=moment(last.enqueued_ms),
        started_at=moment(last.started_ms),
        ended_at=moment(last.ended_ms),
        wait_s=last.wait_ms / 1000,
        run_s=last.run_ms / 1000,
        worker=last.worker,
        error=last.raised[0].type if last.raised else None,
        retried_from=make_ref(text(origin)) if origin else None,
    )


def show_waiting(
    job_id: str, score: float, selection: Selection, encoded: Encoded, now_ms: int, origin: bytes | None
) -> Job:
    due_ms = score if score > 1e11 else float(encoded.enqueued_ms or score)
    return show_job(
        *(job_id, selection.queue, selection.state),
        function=clean(encoded.function) if encoded.function is not None else None,
        at=moment(due_ms),
        enqueued_at=moment(encoded.enqueued_ms) if encoded.enqueued_ms is not None else None,
        wait_s=max(now_ms - due_ms, 0) / 1000,
        retried_from=make_ref(text(origin)) if origin else None,
    )


def show_running(queue: str, beat: Beat, job: RunningRecord, now_ms: int) -> Job:
    return show_job(
        *(job.job, queue, State.RUNNING),
        function=clean(job.function),
        tries=job.number,
        at=moment(job.started_ms),
        enqueued_at=moment(job.enqueued_ms),
        started_at=moment(job.started_ms),
        wait_s=job.wait_ms / 1000,
        run_s=max(now_ms - job.started_ms, 0) / 1000,
        worker=beat.id,
    )


def show_lost(queue: str, beat: Beat, job: RunningRecord) -> Job:
    shown = show_running(queue, beat, job, beat.at_ms)
    return msgspec.structs.replace(shown, state=State.ORPHANED, ended_at=moment(beat.at_ms), at=moment(beat.at_ms))


def show_foreign(job_id: str, queue: str, state: State) -> Job:
    """Of workers without a recorder no more is known."""
    return show_job(job_id, queue, state)
