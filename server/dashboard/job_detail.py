"""One job: where it stands, what was tried, and what can be done with it."""

from typing import Any, NamedTuple

import msgspec

from server.dashboard import encoded, keys
from server.dashboard.encoded import OPAQUE, Deserializer, Encoded
from server.dashboard.errors import JobNotFound
from server.dashboard.job_lines import show_foreign, show_lost, show_recorded, show_running, show_waiting
from server.dashboard.keys import Beat, RunningRecord, TryRecord, decode, make_ref, text
from server.dashboard.models import Argument, Job, JobDetail, Outcome, Selection, State, Try
from server.dashboard.moments import moment
from server.dashboard.orphans import is_over
from server.dashboard.redaction import describe_arguments
from server.dashboard.scene import Scene, look

WAITING = frozenset({State.QUEUED, State.DEFERRED, State.RETRYING})


class Found(NamedTuple):
    """A job, with the names of its queue and function as they are in Redis."""

    detail: JobDetail
    queue: str
    function: str | None


async def find(redis: Any, deserializer: Deserializer | None, job_id: str, queues: list[str]) -> Found:
    """Raises JobNotFound."""
    scene = await look(redis)
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.lrange(keys.JOB + job_id, 0, -1)
        pipeline.get(keys.FROM + job_id)
        pipeline.pttl(keys.ARQ_CLAIM + job_id)
        pipeline.exists(keys.ARQ_RETRY + job_id)
        pipeline.exists(keys.RAW + job_id)
        records, origin, left_ms, tried, kept = await pipeline.execute()
    async with redis.pipeline(transaction=False) as pipeline:
        for name in queues:
            pipeline.zscore(name, job_id)
        scores = dict(zip(queues, await pipeline.execute(), strict=True))
    head = decode(records[0], tuple[str, str, str]) if records else None
    tries = [record for raw in records[1:] if (record := decode(raw, TryRecord))]
    queued_in = next((name for name, score in scores.items() if score is not None), None)
    claim = next(((beat, job) for beat in scene.living + scene.dead for job in beat.running if job.job == job_id), None)
    if claim and tries and is_over(tries[-1], *claim):
        claim = None
    queue = queued_in or (claim[0].queue if claim else None) or (head[2] if head else None)
    waits = (await encoded.read(redis, deserializer, [job_id]))[job_id]
    if queue is None:
        raise JobNotFound
    state = place(claim, scene, scores.get(queue), left_ms, bool(tried), head, tries)
    if state is None:
        raise JobNotFound
    job = summarize(job_id, queue, state, claim, scene, scores.get(queue), tries, head, origin, waits)
    arguments = arguments_of(claim, tries, waits, queue, scene)
    detail = JobDetail(
        job=job,
        arguments=arguments,
        is_opaque=waits is OPAQUE and arguments is None,
        tries=[show_try(record) for record in tries] + ([show_current(*claim, scene)] if claim else []),
        actions=possible(state, bool(kept) or waits is not None, claim is not None),
    )
    function = claim[1].function if claim else head[1] if head else waits.function if waits else None
    return Found(detail, queue, function)


def summarize(
    job_id: str,
    queue: str,
    state: State,
    claim: tuple[Beat, RunningRecord] | None,
    scene: Scene,
    score: float | None,
    tries: list[TryRecord],
    head: tuple[str, str, str] | None,
    origin: bytes | None,
    encoded: Encoded | None,
) -> Job:
    if claim and state is State.RUNNING:
        job = show_running(queue, *claim, scene.now_ms)
    elif claim:
        job = show_lost(queue, *claim)
    elif tries:
        raw_head = msgspec.msgpack.encode(head) if head else None
        job = show_recorded(job_id, queue, state, raw_head, tries[-1], None)
        if score is not None and state in {State.QUEUED, State.DEFERRED, State.RETRYING}:
            job = msgspec.structs.replace(job, at=moment(score))
    elif encoded and score is not None and state in {State.QUEUED, State.DEFERRED}:
        job = show_waiting(job_id, score, Selection(state=state, queue=queue), encoded, scene.now_ms, None)
    else:
        job = show_foreign(job_id, queue, state)
    return msgspec.structs.replace(job, retried_from=make_ref(text(origin)) if origin else None)


def arguments_of(
    claim: tuple[Beat, RunningRecord] | None,
    tries: list[TryRecord],
    encoded: Encoded | None,
    queue: str,
    scene: Scene,
) -> list[Argument] | None:
    if claim:
        return claim[1].arguments
    if tries and tries[-1].arguments is not None:
        return tries[-1].arguments
    if encoded is None or encoded is OPAQUE:
        return None
    in_full = any(encoded.function in beat.shown for beat in scene.living if beat.queue == queue)
    return describe_arguments(encoded.args, encoded.kwargs, in_full)


def place(
    claim: tuple[Beat, RunningRecord] | None,
    scene: Scene,
    score: float | None,
    left_ms: int,
    tried: bool,
    head: tuple[str, str, str] | None,
    tries: list[TryRecord],
) -> State | None:
    """Where a job stands; None if nothing is known of it."""
    recorded = State(head[0]) if head else None
    if claim:
        return State.RUNNING if claim[0] in scene.living else State.ORPHANED
    if score is not None and left_ms != -2:
        return State.ORPHANED if recorded is State.ORPHANED else State.RUNNING
    if score is not None:
        if tried or (tries and recorded is State.RETRYING):
            return State.RETRYING
        return State.DEFERRED if score > scene.now_ms else State.QUEUED
    return recorded


def possible(state: State, is_repeatable: bool, is_claimed: bool) -> list[str]:
    """What can be done with a job that stands so. A running one can be aborted where its worker listens to us."""
    found = []
    if state in {State.FAILED, State.ABORTED, State.ORPHANED} and is_repeatable:
        found.append("retry")
    if state in WAITING or (state is State.RUNNING and is_claimed):
        found.append("abort")
    if state is not State.RUNNING:
        found.append("delete")
    return found


def show_try(record: TryRecord) -> Try:
    return Try(
        number=record.number,
        outcome=record.outcome,
        worker=record.worker,
        started_at=moment(record.started_ms),
        ended_at=moment(record.ended_ms),
        wait_s=record.wait_ms / 1000,
        run_s=record.run_ms / 1000,
        raised=record.raised,
        result=record.result,
    )


def show_current(beat: Beat, job: RunningRecord, scene: Scene) -> Try:
    lives = beat in scene.living
    return Try(
        number=job.number,
        outcome=None if lives else Outcome.ORPHANED,
        worker=beat.id,
        started_at=moment(job.started_ms),
        ended_at=None if lives else moment(beat.at_ms),
        wait_s=job.wait_ms / 1000,
        run_s=max((scene.now_ms if lives else beat.at_ms) - job.started_ms, 0) / 1000,
        raised=[],
        result=None,
    )
