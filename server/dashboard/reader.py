"""What the pages and the JSON show, out of Redis.

No call goes through all keys or all jobs: what it costs depends on the number of queues, functions and living workers,
and on the length of a page. Nothing is ever unpickled: of a job that is neither msgpack nor JSON only its id, its place
in the queue and its claim are told.
"""

import asyncio
import base64
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from arq.constants import default_queue_name
from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.dashboard import histograms, keys
from server.dashboard.errors import BadCursor, JobNotFound, Unavailable
from server.dashboard.keys import Beat, CronRun, Pause, RunningRecord, TryRecord, make_ref, read_ref
from server.dashboard.models import (
    Argument,
    Bucket,
    Counts,
    CronEntry,
    FunctionFigures,
    History,
    Job,
    JobDetail,
    JobPage,
    Outcome,
    Overview,
    Panel,
    Percentiles,
    Queue,
    RunningJob,
    Selection,
    Span,
    State,
    Try,
    WorkerInfo,
)
from server.dashboard.redaction import clean, describe_arguments

ALARMING_WAIT_S = 60.0
MAX_PAGE = 100
LOOKED_AT = 1000
"""Jobs that one call looks at, at most, to find those that fit."""
AT_ONCE = 200
FRONT = 1000
"""Jobs at the front of a queue, where those are that were claimed."""
CLAIMS_ASKED = 50
FRESH_CLAIM_MS = 5000
MAX_ENCODED_BYTES = 64 * 1024
MAX_QUEUES = 100
TIMEOUT_S = 5.0

WAITING = frozenset({State.QUEUED, State.DEFERRED, State.RETRYING})

Deserializer = Callable[[bytes], dict[str, Any]]


class Encoded(NamedTuple):
    """What could be read of a job that waits."""

    function: str | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    enqueued_ms: int | None


OPAQUE = Encoded(None, (), {}, None)


class Scene(NamedTuple):
    """The workers of all queues, now."""

    now_ms: int
    living: list[Beat]
    dead: list[Beat]
    """That nobody has buried yet."""

    def running(self, queue: str) -> dict[str, tuple[Beat, RunningRecord]]:
        return {job.job: (beat, job) for beat in self.living if beat.queue == queue for job in beat.running}

    def lost(self, queue: str) -> dict[str, tuple[Beat, RunningRecord]]:
        return {job.job: (beat, job) for beat in self.dead if beat.queue == queue for job in beat.running}


class Front(NamedTuple):
    """The front of a queue."""

    claimed: dict[str, int]
    """Those that no living worker tells of: for how many milliseconds more."""
    oldest_ms: float | None
    """When the oldest that nobody has taken became due."""


class Found(NamedTuple):
    """A job, with the names of its queue and function as they are in Redis."""

    detail: JobDetail
    queue: str
    function: str | None


class Cursor(NamedTuple):
    score: float
    member: str


class Reader:
    """Reads what recorders wrote. All methods raise Unavailable while Redis is away.

    `queues` are shown even if no worker has ever spoken of them, and so is arq's default one if there is work in it.
    `deserializer` is that of the application's jobs, to show what waiting jobs are called with; it must be safe for
    whatever lies in Redis. Without it msgpack and JSON are understood.
    """

    def __init__(self, redis: Redis, deserializer: Deserializer | None = None, queues: Collection[str] = ()) -> None:
        self.redis: Any = redis  # redis-py's types are of both of its clients at once
        self._deserializer = deserializer
        self._known = set(queues)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                yield
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable from error

    # --------------------------------------------------------------------------------------------------- the overview

    async def overview(self, panels: Sequence[Panel] = ()) -> Overview:
        async with self.asking():
            scene = await self._look()
            names = await self._queues()
            queues = [await self._queue(name, scene) for name in names]
            _, sums = await self._sum(Span.HOUR, names, None)
        return Overview(
            at=moment(scene.now_ms),
            is_alarming=any(queue.is_alarming for queue in queues)
            or any(panel.error or any(fact.is_alarming for fact in panel.facts) for panel in panels),
            queues=queues,
            functions=figures(sums, Span.HOUR),
            workers=[show_worker(beat, scene.now_ms) for beat in scene.living],
            panels=list(panels),
        )

    async def queues(self) -> list[str]:
        async with self.asking():
            return await self._queues()

    async def _queues(self) -> list[str]:
        async with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.zrevrange(keys.QUEUES, 0, MAX_QUEUES - 1)
            pipeline.exists(default_queue_name)
            spoken_of, default = await pipeline.execute()
        # Work that waits for a worker that never was is what an operator must not miss.
        return sorted(self._known | set(map(text, spoken_of)) | ({default_queue_name} if default else set()))

    async def functions(self, queue: str | None = None) -> list[str]:
        """Names of functions that were ever recorded or can be called now."""
        async with self.asking():
            names = [queue] if queue is not None else await self._queues()
            recorded = [await self.redis.smembers(keys.FUNCTIONS + name) for name in names]
            scene = await self._look()
        able = (name for beat in scene.living if beat.queue in names for name in beat.functions)
        return sorted({text(name) for some in recorded for name in some} | set(able))

    async def fingerprint(self) -> tuple[int, int, int]:
        """Three numbers that change when jobs have ended, when a queue is another, and when workers are."""
        async with self.asking():
            names = await self._queues()
            scene = await self._look()
            async with self.redis.pipeline(transaction=False) as pipeline:
                pipeline.get(keys.REVISION)
                for name in names:
                    pipeline.zcard(name)
                    pipeline.zrange(name, 0, 0, withscores=True)
                    pipeline.exists(keys.PAUSED + name)
                revision, *fronts = await pipeline.execute()
        workers = sorted((beat.id, sorted(job.job for job in beat.running)) for beat in scene.living)
        return int(revision or 0), checksum((names, fronts)), checksum((workers, sorted(b.id for b in scene.dead)))

    async def _look(self) -> Scene:
        async with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.zrange(keys.WORKERS, 0, -1)
            (seconds, micros), ids = await pipeline.execute()
        names = [text(one) for one in ids]
        found: list[bytes | None] = []
        if names:
            found = await self.redis.mget(
                [keys.ALIVE + one for one in names] + [keys.WORKER + one for one in names],
            )
        living: list[Beat] = []
        dead: list[Beat] = []
        for sign, raw in zip(found[: len(names)], found[len(names) :], strict=True):
            beat = decode(raw, Beat)
            if beat is not None:
                (dead if sign is None else living).append(beat)
        return Scene(seconds * 1000 + micros // 1000, living, dead)

    async def _front(self, queue: str, scene: Scene) -> Front:
        claimed: dict[str, int] = {}
        listed, now_ms = scene.running(queue), scene.now_ms
        for start in range(0, FRONT, AT_ONCE):
            rows = await self.redis.zrangebyscore(queue, "-inf", now_ms, start, AT_ONCE, withscores=True)
            if not rows:
                return Front(claimed, None)
            # What a worker tells of need not be asked for.
            rows = [row for row in rows if text(row[0]) not in listed][:CLAIMS_ASKED]
            if not rows:
                continue
            async with self.redis.pipeline(transaction=False) as pipeline:
                for job_id, _ in rows:
                    pipeline.pttl(keys.ARQ_CLAIM + text(job_id))
                left = await pipeline.execute()
            claimed |= {text(job_id): left_ms for (job_id, _), left_ms in zip(rows, left, strict=True) if left_ms != -2}
            waiting = [(text(job_id), score) for (job_id, score), ms in zip(rows, left, strict=True) if ms == -2]
            if waiting:
                return Front(claimed, await self._due_ms(waiting[0]))
        return Front(claimed, None)

    async def _due_ms(self, waiting: tuple[str, float]) -> float | None:
        """Whoever puts a job first gives it a score that is no time; then it waits since it was enqueued."""
        job_id, score = waiting
        if score > 1e11:
            return score
        encoded = (await self._read_encoded([job_id]))[job_id]
        return encoded.enqueued_ms if encoded and encoded.enqueued_ms else None

    async def _queue(self, name: str, scene: Scene) -> Queue:
        front = await self._front(name, scene)
        running, lost = scene.running(name), scene.lost(name)
        retrying = keys.index(State.RETRYING, name)
        async with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.zcount(name, "-inf", scene.now_ms)
            pipeline.zcount(name, f"({scene.now_ms}", "+inf")
            pipeline.zcount(retrying, "-inf", scene.now_ms)
            pipeline.zcount(retrying, f"({scene.now_ms}", "+inf")
            for state in keys.ENDED:
                pipeline.zcard(keys.index(state, name))
            pipeline.zrevrange(keys.index(State.ORPHANED, name), 0, AT_ONCE - 1)
            pipeline.get(keys.PAUSED + name)
            pipeline.zmscore(retrying, [*running, *lost, *front.claimed, ""])
            due, later, again_due, again_later, done, failed, aborted, orphans, paused, busy = await pipeline.execute()
        orphaned = await self._orphaned(name, [text(one) for one in orphans], scene, front)
        unknown = {
            job_id
            for job_id, left_ms in front.claimed.items()
            if job_id not in running and job_id not in orphaned and not self._is_forsaken(left_ms, name, scene)
        }
        forsaken = front.claimed.keys() - running.keys() - unknown - orphaned
        at_it = len(running) + len(unknown)
        in_hand = len(running.keys() | front.claimed.keys())
        again = max(again_due - sum(score is not None for score in busy), 0)
        pause = decode(paused, Pause)
        workers = sum(beat.queue == name for beat in scene.living)
        wait_s = max(scene.now_ms - front.oldest_ms, 0) / 1000 if front.oldest_ms is not None else None
        queued = max(due - in_hand - again, 0)
        alarm = judge(wait_s, due, workers, pause is not None, len(orphaned) + len(forsaken))
        return Queue(
            name=clean(name),
            is_alarming=alarm is not None,
            alarm=alarm,
            oldest_wait_s=wait_s,
            queued=queued,
            deferred=max(later - again_later, 0),
            running=at_it,
            retrying=again + again_later,
            orphaned=len(orphaned) + len(forsaken),
            failed=failed,
            aborted=aborted,
            done=done,
            workers=workers,
            is_paused=pause is not None,
            paused_by=clean(pause.who) if pause else None,
            paused_at=moment(pause.at_ms) if pause else None,
        )

    def _is_forsaken(self, left_ms: int, queue: str, scene: Scene) -> bool:
        """A claim that no worker tells of, and that is not so new that none could have.

        Where all workers of a queue record, such a job's worker died before it had told of it. Workers without a
        recorder tell of nothing, so nothing can be said where none is alive that does.
        """
        claims = [beat.claim_ms for beat in scene.living + scene.dead if beat.queue == queue]
        return bool(scene.dead) and bool(claims) and 0 <= left_ms < max(claims) - FRESH_CLAIM_MS

    async def _orphaned(self, queue: str, recorded: list[str], scene: Scene, front: Front) -> set[str]:
        """Of those that went down with their workers, the ones that nobody has in hand and that wait for nobody."""
        running, lost = scene.running(queue), scene.lost(queue)
        candidates = list(dict.fromkeys([*lost, *recorded]).keys() - running.keys())
        if not candidates:
            return set()
        async with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.zmscore(queue, candidates)
            for job_id in candidates:
                pipeline.exists(keys.ARQ_CLAIM + job_id)
                pipeline.lindex(keys.JOB + job_id, -1)
            scores, *rest = await pipeline.execute()
        found = set()
        for job_id, score, claim, newest in zip(candidates, scores, rest[::2], rest[1::2], strict=True):
            last = decode(newest, TryRecord)
            if job_id in lost and last and is_over(last, *lost[job_id]) and last.outcome is not Outcome.ORPHANED:
                continue
            if score is None or claim or job_id in front.claimed:
                found.add(job_id)
        return found

    # ---------------------------------------------------------------------------------------------------------- jobs

    async def jobs(self, selection: Selection, cursor: str | None = None, limit: int = 50) -> JobPage:
        """Those that fit, the newest first; of queued, deferred and retrying ones those that are due first.

        Raises BadCursor.
        """
        limit = max(1, min(limit, MAX_PAGE))
        at = read_cursor(cursor)
        async with self.asking():
            scene = await self._look()
            match selection.state:
                case State.RUNNING | State.ORPHANED:
                    return await self._list_claimed(selection, at, limit, scene)
                case State.QUEUED | State.DEFERRED:
                    return await self._list_waiting(selection, at, limit, scene)
                case State.RETRYING:
                    return await self._list_recorded(selection, at, limit, scene, newest_first=False)
                case _:
                    return await self._list_recorded(selection, at, limit, scene, newest_first=True)

    async def _list_recorded(
        self, selection: Selection, at: Cursor | None, limit: int, scene: Scene, *, newest_first: bool
    ) -> JobPage:
        index = keys.index(selection.state, selection.queue, selection.function)
        bounds = score_bounds(selection)
        running = scene.running(selection.queue)
        items: list[Job] = []
        examined = 0
        while examined < LOOKED_AT:
            rows = await self._page(index, bounds, at, AT_ONCE if selection.text else limit + 1, newest_first)
            fitting = [row for row in rows if fits(row.member, selection) and row.member not in running]
            shown = fitting[: limit - len(items)]
            items += await self._recorded([row.member for row in shown], selection)
            if len(fitting) > len(shown):
                return JobPage(items=items, next_cursor=write_cursor(shown[-1]), examined=examined + len(rows))
            examined += len(rows)
            if not rows or (len(rows) < AT_ONCE and len(rows) <= limit):
                return JobPage(items=items, next_cursor=None, examined=examined)
            at = rows[-1]
            if len(items) >= limit:
                break
        return JobPage(items=items, next_cursor=write_cursor(at), examined=examined)

    async def _page(
        self, index: str, bounds: tuple[float, float], at: Cursor | None, count: int, newest_first: bool
    ) -> list[Cursor]:
        """Rows after `at`, in order of score and then of member."""
        least, most = bounds
        if at is not None:
            least, most = (least, min(most, at.score)) if newest_first else (max(least, at.score), most)
        found: list[Cursor] = []
        offset = 0
        while len(found) < count and offset < 10 * LOOKED_AT:
            if newest_first:
                rows = await self.redis.zrevrangebyscore(index, most, least, offset, count, withscores=True)
            else:
                rows = await self.redis.zrangebyscore(index, least, most, offset, count, withscores=True)
            if not rows:
                break
            offset += len(rows)
            for member, score in rows:
                row = Cursor(score, text(member))
                is_after = at is None or (row < at if newest_first else row > at) or row.score != at.score
                if is_after and len(found) < count:
                    found.append(row)
        return found

    async def _recorded(self, job_ids: list[str], selection: Selection) -> list[Job]:
        if not job_ids:
            return []
        async with self.redis.pipeline(transaction=False) as pipeline:
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

    async def _list_waiting(self, selection: Selection, at: Cursor | None, limit: int, scene: Scene) -> JobPage:
        """Out of arq's queue: what nobody has claimed and what was not tried before."""
        due = selection.state is State.QUEUED
        least, most = score_bounds(selection)
        bounds = (least, min(most, scene.now_ms)) if due else (max(least, scene.now_ms + 1), most)
        items: list[Job] = []
        examined = 0
        while examined < LOOKED_AT:
            count = AT_ONCE if examined or selection.text or selection.function else limit + 1
            rows = await self._page(selection.queue, bounds, at, count, newest_first=False)
            for row, job in await self._waiting(rows, selection, scene):
                examined += 1
                at = row
                if job is not None:
                    items.append(job)
                if len(items) == limit:
                    return JobPage(items=items, next_cursor=write_cursor(at), examined=examined)
            if len(rows) < count:
                return JobPage(items=items, next_cursor=None, examined=examined)
        return JobPage(items=items, next_cursor=write_cursor(at), examined=examined)

    async def _waiting(self, rows: list[Cursor], selection: Selection, scene: Scene) -> list[tuple[Cursor, Job | None]]:
        fitting = [row.member for row in rows if fits(row.member, selection)]
        if not fitting:
            return [(row, None) for row in rows]
        claims = await self.redis.mget([keys.ARQ_CLAIM + one for one in fitting])
        tries = await self.redis.mget([keys.ARQ_RETRY + one for one in fitting])
        origins = await self.redis.mget([keys.FROM + one for one in fitting])
        encoded = await self._read_encoded(fitting)
        facts = {
            job_id: (claim, tried, origin)
            for job_id, claim, tried, origin in zip(fitting, claims, tries, origins, strict=True)
        }
        found: list[tuple[Cursor, Job | None]] = []
        for row in rows:
            claim, tried, origin = facts.get(row.member, (b"", None, None))
            known = encoded.get(row.member)
            is_wanted = known is not None and selection.function in {None, known.function}
            if known is None or not is_wanted or claim is not None or tried is not None:
                found.append((row, None))
            else:
                found.append((row, show_waiting(row, selection, known, scene.now_ms, origin)))
        return found

    async def _read_encoded(self, job_ids: list[str]) -> dict[str, Encoded | None]:
        """None for a job that is gone; those that can't be read, or are too big to be, are OPAQUE."""
        async with self.redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.strlen(keys.ARQ_JOB + job_id)
            sizes = await pipeline.execute()
        small = [job_id for job_id, size in zip(job_ids, sizes, strict=True) if 0 < size <= MAX_ENCODED_BYTES]
        raws = await self.redis.mget([keys.ARQ_JOB + job_id for job_id in small]) if small else []
        found: dict[str, Encoded | None] = {
            job_id: OPAQUE if size else None for job_id, size in zip(job_ids, sizes, strict=True)
        }
        for job_id, raw in zip(small, raws, strict=True):
            found[job_id] = self.read_encoded(raw) if raw is not None else None
        return found

    def read_encoded(self, raw: bytes) -> Encoded:
        """Only by what can do no harm: the application's own deserializer, msgpack, JSON."""
        readers: list[Deserializer] = (
            [self._deserializer] if self._deserializer else [msgspec.msgpack.decode, msgspec.json.decode]
        )
        for read in readers:
            try:
                found = read(raw)
                enqueued_ms = found["et"]
                if isinstance(found["f"], str) and isinstance(enqueued_ms, int):
                    return Encoded(found["f"], list(found["a"]), dict(found["k"]), enqueued_ms)
            except Exception:  # noqa: S112 - whatever it is, it is not that
                continue
        return OPAQUE

    async def _list_claimed(self, selection: Selection, at: Cursor | None, limit: int, scene: Scene) -> JobPage:
        """Running and orphaned ones: as many as there are slots in workers, so they are sorted here."""
        front = await self._front(selection.queue, scene)
        if selection.state is State.RUNNING:
            found = await self._running(selection, scene, front)
        else:
            found = await self._lost(selection, scene, front)
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

    async def _running(self, selection: Selection, scene: Scene, front: Front) -> dict[str, Job]:
        queue = selection.queue
        listed = scene.running(queue)
        found = {job_id: show_running(queue, beat, job, scene.now_ms) for job_id, (beat, job) in listed.items()}
        recorded = [text(one) for one in await self.redis.zrevrange(keys.index(State.ORPHANED, queue), 0, AT_ONCE - 1)]
        orphaned = await self._orphaned(queue, recorded, scene, front)
        for job_id, left_ms in front.claimed.items():
            if job_id not in listed and job_id not in orphaned and not self._is_forsaken(left_ms, queue, scene):
                found[job_id] = show_foreign(job_id, queue, State.RUNNING)
        return found

    async def _lost(self, selection: Selection, scene: Scene, front: Front) -> dict[str, Job]:
        queue = selection.queue
        index = keys.index(State.ORPHANED, queue)
        recorded = [text(one) for one in await self.redis.zrevrange(index, 0, LOOKED_AT - 1)]
        orphaned = await self._orphaned(queue, recorded, scene, front)
        unburied = scene.lost(queue)
        found = {job_id: show_lost(queue, *unburied[job_id]) for job_id in orphaned if job_id in unburied}
        rest = [job_id for job_id in orphaned if job_id not in unburied]
        found |= dict(zip(rest, await self._recorded_or_foreign(rest, selection), strict=True))
        listed = scene.running(queue)
        for job_id, left_ms in front.claimed.items():
            if job_id not in listed and job_id not in found and self._is_forsaken(left_ms, queue, scene):
                found[job_id] = show_foreign(job_id, queue, State.ORPHANED)
        return found

    async def _recorded_or_foreign(self, job_ids: list[str], selection: Selection) -> list[Job]:
        known = {read_ref(job.ref): job for job in await self._recorded(job_ids, selection)}
        return [known.get(job_id) or show_foreign(job_id, selection.queue, selection.state) for job_id in job_ids]

    async def job(self, ref: str) -> JobDetail:
        """Raises JobNotFound."""
        return (await self.find(read_ref(ref))).detail

    async def find(self, job_id: str) -> "Found":
        """Raises JobNotFound."""
        async with self.asking():
            return await self._find(job_id)

    async def _find(self, job_id: str) -> "Found":
        scene = await self._look()
        async with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.lrange(keys.JOB + job_id, 0, -1)
            pipeline.get(keys.FROM + job_id)
            pipeline.pttl(keys.ARQ_CLAIM + job_id)
            pipeline.exists(keys.ARQ_RETRY + job_id)
            pipeline.exists(keys.RAW + job_id)
            records, origin, left_ms, tried, kept = await pipeline.execute()
        queues = await self._queues()
        async with self.redis.pipeline(transaction=False) as pipeline:
            for name in queues:
                pipeline.zscore(name, job_id)
            scores = dict(zip(queues, await pipeline.execute(), strict=True))
        head = decode(records[0], tuple[str, str, str]) if records else None
        tries = [record for raw in records[1:] if (record := decode(raw, TryRecord))]
        queued_in = next((name for name, score in scores.items() if score is not None), None)
        claim = next(
            ((beat, job) for beat in scene.living + scene.dead for job in beat.running if job.job == job_id), None
        )
        if claim and tries and is_over(tries[-1], *claim):
            claim = None
        queue = queued_in or (claim[0].queue if claim else None) or (head[2] if head else None)
        encoded = (await self._read_encoded([job_id]))[job_id]
        if queue is None:
            raise JobNotFound
        state = place(claim, scene, scores.get(queue), left_ms, bool(tried), head, tries)
        if state is None:
            raise JobNotFound
        job = self._summary(job_id, queue, state, claim, scene, scores.get(queue), tries, head, origin, encoded)
        arguments = self._arguments(claim, tries, encoded, queue, scene)
        detail = JobDetail(
            job=job,
            arguments=arguments,
            is_opaque=encoded is OPAQUE and arguments is None,
            tries=[show_try(record) for record in tries] + ([show_current(*claim, scene)] if claim else []),
            actions=possible(state, bool(kept) or encoded is not None, claim is not None),
        )
        function = claim[1].function if claim else head[1] if head else encoded.function if encoded else None
        return Found(detail, queue, function)

    def _summary(
        self,
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
            job = show_waiting(Cursor(score, job_id), Selection(state=state, queue=queue), encoded, scene.now_ms, None)
        else:
            job = show_foreign(job_id, queue, state)
        return msgspec.structs.replace(job, retried_from=make_ref(text(origin)) if origin else None)

    def _arguments(
        self,
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

    # ------------------------------------------------------------------------------------------------ workers and cron

    async def workers(self) -> list[WorkerInfo]:
        """The living ones, the oldest first."""
        async with self.asking():
            scene = await self._look()
        return [show_worker(beat, scene.now_ms) for beat in scene.living]

    async def cron(self) -> list[CronEntry]:
        """What the living workers have on their schedules, and how it went the last time."""
        async with self.asking():
            scene = await self._look()
            names = sorted({beat.queue for beat in scene.living if beat.cron})
            runs = {name: await self.redis.hgetall(keys.CRON + name) for name in names}
        entries: dict[tuple[str, str], CronEntry] = {}
        for beat in scene.living:
            for one in beat.cron:
                run = decode(runs[beat.queue].get(one.name.encode()), CronRun)
                known = entries.get((beat.queue, one.name))
                upcoming = [ms for ms in (one.next_ms, known and known.next_at and ms_of(known.next_at)) if ms]
                entries[beat.queue, one.name] = CronEntry(
                    name=clean(one.name),
                    queue=clean(beat.queue),
                    schedule=clean(one.schedule),
                    next_at=moment(min(upcoming)) if upcoming else None,
                    last_at=moment(run.ended_ms) if run else None,
                    last_outcome=run.outcome if run else None,
                    last_run_s=run.run_ms / 1000 if run else None,
                )
        return [entries[key] for key in sorted(entries)]

    # -------------------------------------------------------------------------------------------------------- history

    async def history(self, span: Span, queue: str | None = None, function: str | None = None) -> History:
        async with self.asking():
            names = [queue] if queue is not None else await self._queues()
            rows, sums = await self._sum(span, names, function)
        bucket_s, _, _ = keys.BUCKETS[span]
        total = Sums()
        for one in sums.values():
            total.add(one)
        return History(
            span=span,
            bucket_s=bucket_s,
            queue=queue,
            function=function,
            buckets=[
                Bucket(at=moment(number * bucket_s * 1000), counts=one.counts(), wait=rank(one.wait), run=rank(one.run))
                for number, one in rows
            ],
            total=total.counts(),
            wait=rank(total.wait),
            run=rank(total.run),
            functions=figures(sums, span),
        )

    async def _sum(
        self, span: Span, queues: list[str], function: str | None
    ) -> tuple[list[tuple[int, "Sums"]], dict[str, "Sums"]]:
        """By bucket and by function."""
        bucket_s, count, _ = keys.BUCKETS[span]
        seconds, _ = await self.redis.time()
        last = seconds // bucket_s
        numbers = range(last - count + 1, last + 1)
        async with self.redis.pipeline(transaction=False) as pipeline:
            for number in numbers:
                for queue in queues:
                    pipeline.hgetall(keys.history(bucket_s, number, queue))
            answers = iter(await pipeline.execute())
        rows: list[tuple[int, Sums]] = []
        functions: dict[str, Sums] = {}
        for number in numbers:
            row = Sums()
            for _ in queues:
                for field, raw in next(answers).items():
                    kind, what, name = text(field).split("|", 2)
                    if function is None or name == function:
                        row.note(kind, what, int(raw))
                        functions.setdefault(name, Sums()).note(kind, what, int(raw))
            rows.append((number, row))
        return rows, functions


class Sums:
    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wait: Counter[int] = Counter()
        self.run: Counter[int] = Counter()

    def note(self, kind: str, what: str, count: int) -> None:
        if kind == "c":
            self.outcomes[what] += count
        else:
            (self.wait if kind == "w" else self.run)[int(what)] += count

    def add(self, other: "Sums") -> None:
        self.outcomes.update(other.outcomes)
        self.wait.update(other.wait)
        self.run.update(other.run)

    def counts(self) -> Counts:
        return Counts(**{name: self.outcomes[name] for name in Counts.__struct_fields__})


def rank(counts: Counter[int]) -> Percentiles:
    p50, p95, p99 = histograms.percentiles(counts, (0.5, 0.95, 0.99))
    return Percentiles(p50_s=p50, p95_s=p95, p99_s=p99)


def figures(sums: dict[str, Sums], span: Span) -> list[FunctionFigures]:
    bucket_s, count, _ = keys.BUCKETS[span]
    found = []
    for name, one in sums.items():
        counts = one.counts()
        bad = counts.failed + counts.orphaned
        found.append(
            FunctionFigures(
                name=clean(name),
                counts=counts,
                per_minute=counts.total * 60 / (bucket_s * count),
                failure_rate=bad / counts.total if counts.total else 0.0,
                wait=rank(one.wait),
                run=rank(one.run),
            )
        )
    return sorted(found, key=lambda one: (-one.counts.total, one.name))


def judge(wait_s: float | None, due: int, workers: int, is_paused: bool, orphaned: int) -> str | None:
    """What an operator has to hear of a queue first."""
    if due and not workers:
        return "Work is due, and no worker is alive."
    if is_paused and wait_s is not None:
        return "Work is due, and the queue is paused."
    if wait_s is not None and wait_s > ALARMING_WAIT_S:
        return "The oldest job that is due has waited too long."
    if orphaned:
        return "Workers died with jobs in hand."
    return None


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


def is_over(last: TryRecord, beat: Beat, job: RunningRecord) -> bool:
    """A heartbeat tells of tries that have ended since; the record of their end is there before."""
    return last.worker == beat.id and last.number >= job.number and last.started_ms >= job.started_ms


# -------------------------------------------------------------------------------------------------------- showing


def moment(ms: float) -> datetime:
    # Somebody may have put anything into a score: it must not keep all the others from being shown.
    return datetime.fromtimestamp(min(max(ms, 0), 253_402_300_799_000) / 1000, UTC)


def ms_of(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def text(name: bytes) -> str:
    return name.decode(errors="replace")


def decode(raw: Any, kind: Any) -> Any:
    """None for what is not there, or was written by another version."""
    try:
        return msgspec.msgpack.decode(raw, type=kind) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


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


def show_waiting(row: Cursor, selection: Selection, encoded: Encoded, now_ms: int, origin: bytes | None) -> Job:
    due_ms = row.score if row.score > 1e11 else float(encoded.enqueued_ms or row.score)
    return show_job(
        *(row.member, selection.queue, selection.state),
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


def show_worker(beat: Beat, now_ms: int) -> WorkerInfo:
    return WorkerInfo(
        id=beat.id,
        queue=clean(beat.queue),
        host=clean(beat.host),
        pid=beat.pid,
        version=clean(beat.version),
        started_at=moment(beat.started_ms),
        seen_s=max(now_ms - beat.at_ms, 0) / 1000,
        max_jobs=beat.max_jobs,
        functions=[clean(name) for name in beat.functions],
        cron=[clean(one.name) for one in beat.cron],
        running=[
            RunningJob(
                id=clean(job.job),
                ref=make_ref(job.job),
                function=clean(job.function),
                number=job.number,
                started_at=moment(job.started_ms),
            )
            for job in beat.running
        ],
        rss=beat.rss,
        done=beat.done,
        failed=beat.failed,
        retried=beat.retried,
        is_recording=beat.is_recording,
        unrecorded=beat.unrecorded,
    )


# ------------------------------------------------------------------------------------------------ filters, cursors


def fits(job_id: str, selection: Selection) -> bool:
    return selection.text is None or selection.text.casefold() in job_id.casefold()


def score_bounds(selection: Selection) -> tuple[float, float]:
    least = ms_of(selection.since) if selection.since else float("-inf")
    most = ms_of(selection.until) if selection.until else float("inf")
    return least, most


def write_cursor(at: Cursor | None) -> str | None:
    if at is None:
        return None
    return base64.urlsafe_b64encode(json.dumps([at.score, at.member]).encode()).decode()


def read_cursor(cursor: str | None) -> Cursor | None:
    if cursor is None:
        return None
    try:
        score, member = msgspec.json.decode(base64.urlsafe_b64decode(cursor), type=tuple[float, str])
    except (ValueError, msgspec.DecodeError):
        raise BadCursor from None
    return Cursor(score, member)


def checksum(facts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=6).digest())
