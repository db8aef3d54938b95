"""Lists of jobs, a page at a time: a call looks at LOOKED_AT jobs at most, however many there are."""

from typing import Any

from server.dashboard import encoded, keys, orphans
from server.dashboard.cursors import Cursor, read_cursor, write_cursor
from server.dashboard.encoded import Deserializer
from server.dashboard.job_lines import show_foreign, show_lost, show_recorded, show_running, show_waiting
from server.dashboard.keys import TryRecord, decode, read_ref, text
from server.dashboard.models import Job, JobPage, Selection, State
from server.dashboard.moments import ms_of
from server.dashboard.scene import AT_ONCE, Front, Scene, read_front

MAX_PAGE = 100
LOOKED_AT = 1000
"""Jobs that one call looks at, at most, to find those that fit."""


async def list_jobs(
    redis: Any, deserializer: Deserializer | None, selection: Selection, cursor: str | None, limit: int, scene: Scene
) -> JobPage:
    """Those that fit, the newest first; of queued, deferred and retrying ones those that are due first.

    Raises BadCursor.
    """
    limit = max(1, min(limit, MAX_PAGE))
    at = read_cursor(cursor)
    match selection.state:
        case State.RUNNING | State.ORPHANED:
            return await list_claimed(redis, deserializer, selection, at, limit, scene)
        case State.QUEUED | State.DEFERRED:
            return await list_waiting(redis, deserializer, selection, at, limit, scene)
        case State.RETRYING:
            return await list_recorded(redis, selection, at, limit, scene, newest_first=False)
        case _:
            return await list_recorded(redis, selection, at, limit, scene, newest_first=True)


async def list_recorded(
    redis: Any, selection: Selection, at: Cursor | None, limit: int, scene: Scene, *, newest_first: bool
) -> JobPage:
    index = keys.index(selection.state, selection.queue, selection.function)
    bounds = score_bounds(selection)
    running = scene.running(selection.queue)
    items: list[Job] = []
    examined = 0
    while examined < LOOKED_AT:
        rows = await page(redis, index, bounds, at, AT_ONCE if selection.text else limit + 1, newest_first)
        fitting = [row for row in rows if fits(row.member, selection) and row.member not in running]
        shown = fitting[: limit - len(items)]
        items += await recorded(redis, [row.member for row in shown], selection)
        if len(fitting) > len(shown):
            return JobPage(items=items, next_cursor=write_cursor(shown[-1]), examined=examined + len(rows))
        examined += len(rows)
        if not rows or (len(rows) < AT_ONCE and len(rows) <= limit):
            return JobPage(items=items, next_cursor=None, examined=examined)
        at = rows[-1]
        if len(items) >= limit:
            break
    return JobPage(items=items, next_cursor=write_cursor(at), examined=examined)


async def page(
    redis: Any, index: str, bounds: tuple[float, float], at: Cursor | None, count: int, newest_first: bool
) -> list[Cursor]:
    """Rows after `at`, in order of score and then of member."""
    least, most = bounds
    if at is not None:
        least, most = (least, min(most, at.score)) if newest_first else (max(least, at.score), most)
    found: list[Cursor] = []
    offset = 0
    while len(found) < count and offset < 10 * LOOKED_AT:
        if newest_first:
            rows = await redis.zrevrangebyscore(index, most, least, offset, count, withscores=True)
        else:
            rows = await redis.zrangebyscore(index, least, most, offset, count, withscores=True)
        if not rows:
            break
        offset += len(rows)
        for member, score in rows:
            row = Cursor(score, text(member))
            is_after = at is None or (row < at if newest_first else row > at) or row.score != at.score
            if is_after and len(found) < count:
                found.append(row)
    return found


async def recorded(redis: Any, job_ids: list[str], selection: Selection) -> list[Job]:
    if not job_ids:
        return []
    async with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.lindex(keys.JOB + job_id, 0)
            pipeline.lindex(keys.JOB + job_id, -1)
            pipeline.get(keys.FROM + job_id)
        answers = iter(await pipeline.execute())
    found = []
    for job_id, (head, last, origin) in zip(job_ids, zip(answers, answers, answers, strict=True), strict=True):
        record = decode(last, TryRecord)
        if record is not None:
            found.append(show_recorded(job_id, selection.queue, selection.state, head, record, origin))
    return found


async def list_waiting(
    redis: Any, deserializer: Deserializer | None, selection: Selection, at: Cursor | None, limit: int, scene: Scene
) -> JobPage:
    """Out of arq's queue: what nobody has claimed and what was not tried before."""
    due = selection.state is State.QUEUED
    least, most = score_bounds(selection)
    bounds = (least, min(most, scene.now_ms)) if due else (max(least, scene.now_ms + 1), most)
    items: list[Job] = []
    examined = 0
    while examined < LOOKED_AT:
        count = AT_ONCE if examined or selection.text or selection.function else limit + 1
        rows = await page(redis, selection.queue, bounds, at, count, newest_first=False)
        for row, job in await waiting(redis, deserializer, rows, selection, scene):
            examined += 1
            at = row
            if job is not None:
                items.append(job)
            if len(items) == limit:
                return JobPage(items=items, next_cursor=write_cursor(at), examined=examined)
        if len(rows) < count:
            return JobPage(items=items, next_cursor=None, examined=examined)
    return JobPage(items=items, next_cursor=write_cursor(at), examined=examined)


async def waiting(
    redis: Any, deserializer: Deserializer | None, rows: list[Cursor], selection: Selection, scene: Scene
) -> list[tuple[Cursor, Job | None]]:
    running = scene.running(selection.queue)
    fitting = [row.member for row in rows if row.member not in running and fits(row.member, selection)]
    if not fitting:
        return [(row, None) for row in rows]
    claims = await redis.mget([keys.ARQ_CLAIM + one for one in fitting])
    tries = await redis.mget([keys.ARQ_RETRY + one for one in fitting])
    origins = await redis.mget([keys.FROM + one for one in fitting])
    jobs = await encoded.read(redis, deserializer, fitting)
    facts = {
        job_id: (claim, tried, origin)
        for job_id, claim, tried, origin in zip(fitting, claims, tries, origins, strict=True)
    }
    found: list[tuple[Cursor, Job | None]] = []
    for row in rows:
        claim, tried, origin = facts.get(row.member, (b"", None, None))
        known = jobs.get(row.member)
        is_wanted = known is not None and selection.function in {None, known.function}
        if known is None or not is_wanted or claim is not None or tried is not None:
            found.append((row, None))
        else:
            found.append((row, show_waiting(row.member, row.score, selection, known, scene.now_ms, origin)))
    return found


async def list_claimed(
    redis: Any, deserializer: Deserializer | None, selection: Selection, at: Cursor | None, limit: int, scene: Scene
) -> JobPage:
    """Running and orphaned ones: as many as there are slots in workers, so they are sorted here."""
    front = await read_front(redis, deserializer, selection.queue, scene)
    if selection.state is State.RUNNING:
        found = await running_jobs(redis, selection, scene, front)
    else:
        found = await lost_jobs(redis, selection, scene, front)
    least, most = score_bounds(selection)
    rows = sorted(
        (
            (Cursor(job.at.timestamp() * 1000 if job.at else 0, job_id), job)
            for job_id, job in found.items()
            if fits(job_id, selection) and (selection.function is None or job.function == selection.function)
        ),
        key=lambda row: row[0],
        reverse=True,
    )
    rows = [row for row in rows if least <= row[0].score <= most and (at is None or row[0] < at)]
    more = len(rows) > limit
    return JobPage(
        items=[job for _, job in rows[:limit]],
        next_cursor=write_cursor(rows[limit - 1][0]) if more else None,
        examined=len(found),
    )


async def running_jobs(redis: Any, selection: Selection, scene: Scene, front: Front) -> dict[str, Job]:
    queue = selection.queue
    listed = scene.running(queue)
    found = {job_id: show_running(queue, beat, job, scene.now_ms) for job_id, (beat, job) in listed.items()}
    recorded = [text(one) for one in await redis.zrevrange(keys.index(State.ORPHANED, queue), 0, AT_ONCE - 1)]
    orphaned = await orphans.find(redis, queue, recorded, scene, front)
    for job_id, left_ms in front.claimed.items():
        if job_id not in listed and job_id not in orphaned and not orphans.is_forsaken(left_ms, queue, scene):
            found[job_id] = show_foreign(job_id, queue, State.RUNNING)
    return found


async def lost_jobs(redis: Any, selection: Selection, scene: Scene, front: Front) -> dict[str, Job]:
    queue = selection.queue
    index = keys.index(State.ORPHANED, queue)
    recorded = [text(one) for one in await redis.zrevrange(index, 0, LOOKED_AT - 1)]
    orphaned = await orphans.find(redis, queue, recorded, scene, front)
    unburied = scene.lost(queue)
    found = {job_id: show_lost(queue, *unburied[job_id]) for job_id in orphaned if job_id in unburied}
    rest = [job_id for job_id in orphaned if job_id not in unburied]
    found |= dict(zip(rest, await recorded_or_foreign(redis, rest, selection), strict=True))
    listed = scene.running(queue)
    for job_id, left_ms in front.claimed.items():
        if job_id not in listed and job_id not in found and orphans.is_forsaken(left_ms, queue, scene):
            found[job_id] = show_foreign(job_id, queue, State.ORPHANED)
    return found


async def recorded_or_foreign(redis: Any, job_ids: list[str], selection: Selection) -> list[Job]:
    known = {read_ref(job.ref): job for job in await recorded(redis, job_ids, selection)}
    return [known.get(job_id) or show_foreign(job_id, selection.queue, selection.state) for job_id in job_ids]


def fits(job_id: str, selection: Selection) -> bool:
    return selection.text is None or selection.text.casefold() in job_id.casefold()


def score_bounds(selection: Selection) -> tuple[float, float]:
    least = ms_of(selection.since) if selection.since else float("-inf")
    most = ms_of(selection.until) if selection.until else float("inf")
    return least, most
