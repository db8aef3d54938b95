"""What can be done from the dashboard. Each action has a name, which permissions go by.

Every change is told to `on_action(who, action, subject)` just before it is made; if that raises, it is not made.
"""

import uuid
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from arq.constants import expires_extra_ms
from arq.utils import timestamp_ms

from server.dashboard import keys, tries
from server.dashboard.errors import BadRequest, JobNotFound, QueueNotFound
from server.dashboard.job_detail import Found, possible
from server.dashboard.keys import Pause, TryRecord, read_ref
from server.dashboard.lists import MAX_PAGE
from server.dashboard.models import Done, Outcome, Preview, Selection, State
from server.dashboard.moments import ms_of
from server.dashboard.reader import Reader
from server.dashboard.tries import UNKNOWN_FUNCTION, Bounds, as_try

RETRY, ABORT, DELETE = "retry", "abort", "delete"
PAUSE, RESUME, REPAIR = "pause", "resume", "repair"

ON_JOBS = (RETRY, ABORT, DELETE)
ACTIONS = (*ON_JOBS, PAUSE, RESUME, REPAIR)

MAX_BULK = 200
SHOWN_IN_PREVIEW = 20

HOLD_MS = 10_000
AGAIN_S = 5
"""Within which a second retry of the same job is taken for the same click."""

OnAction = Callable[[str, str, str], Awaitable[None]]
"""Who, what, and the id of the job or the name of the queue or panel."""

# ARGV: prefix, old id, new id, queue, now, how long it is kept there, whether the old one is still in the queue.
#
# What is done again is what arq had, byte by byte: nobody has to be able to read it.
_RETRY = """
local prefix, old, new, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local raw = redis.call('GET', prefix .. 'raw:' .. old) or redis.call('GET', 'arq:job:' .. old)
if not raw then return 0 end
if not redis.call('SET', prefix .. 'retried:' .. old, '', 'NX', 'EX', AGAIN_S) then return 0 end
local kept_s = redis.call('TTL', prefix .. 'job:' .. old)
if ARGV[7] == '1' then
  redis.call('ZREM', queue, old)
  redis.call('DEL', 'arq:job:' .. old, 'arq:in-progress:' .. old, 'arq:retry:' .. old)
elseif redis.call('ZSCORE', queue, old) then
  return 0
end
redis.call('SET', 'arq:job:' .. new, raw, 'PX', ARGV[6])
redis.call('ZADD', queue, ARGV[5], new)
redis.call('SET', prefix .. 'from:' .. new, old, 'EX', kept_s > 0 and kept_s or 86400)
return 1
""".replace("AGAIN_S", str(AGAIN_S))

# ARGV: prefix, id, queue, whether somebody may be working on it. Ends with nothing of the job left.
_DELETE = """
local prefix, id, queue = ARGV[1], ARGV[2], ARGV[3]
if ARGV[4] ~= '1' and redis.call('EXISTS', 'arq:in-progress:' .. id) == 1 then return 0 end
local head = redis.call('LINDEX', prefix .. 'job:' .. id, 0)
if head then
  local was = cmsgpack.unpack(head)
  local all = prefix .. 'jobs:' .. was[1] .. ':' .. was[3]
  redis.call('ZREM', all, id)
  redis.call('ZREM', all .. '|' .. was[2], id)
end
redis.call('ZREM', queue, id)
redis.call('ZREM', 'arq:abort', id)
redis.call('DEL', prefix .. 'job:' .. id, prefix .. 'raw:' .. id, prefix .. 'from:' .. id, 'arq:job:' .. id,
  'arq:in-progress:' .. id, 'arq:retry:' .. id, 'arq:result:' .. id)
redis.call('INCR', prefix .. 'revision')
return 1
"""


class Actions:
    """All raise Unavailable while Redis is away, and what `on_action` raises."""

    def __init__(self, reader: Reader, on_action: OnAction | None = None, bounds: Bounds | None = None) -> None:
        self._reader = reader
        self._redis = reader.redis
        self._on_action = on_action
        self._bounds = bounds or Bounds()

    async def _tell(self, who: str, action: str, subject: str) -> None:
        if self._on_action is not None:
            await self._on_action(who, action, subject)

    # ---------------------------------------------------------------------------------------------------------- jobs

    async def retry(self, who: str, refs: Sequence[str]) -> Done:
        """Enqueue failed, aborted and orphaned jobs again, as new jobs. `done` has the refs of the new ones."""
        return await self.bulk(who, RETRY, refs)

    async def abort(self, who: str, refs: Sequence[str]) -> Done:
        """Take waiting jobs from the queue, and have running ones cancelled, within a second or two."""
        return await self.bulk(who, ABORT, refs)

    async def delete(self, who: str, refs: Sequence[str]) -> Done:
        """Drop jobs with their history; all but running ones."""
        return await self.bulk(who, DELETE, refs)

    async def preview(self, action: str, selection: Selection) -> Preview:
        check_job_action(action)
        if action not in possible(selection.state, is_repeatable=True, is_claimed=True):
            return Preview(action=action, count=0, is_capped=False, refs=[], items=[])
        jobs, cursor = [], None
        while True:
            page = await self._reader.jobs(selection, cursor, MAX_PAGE)
            jobs += page.items
            cursor = page.next_cursor
            if cursor is None or len(jobs) >= MAX_BULK:
                break
        found = jobs[:MAX_BULK]
        return Preview(
            action=action,
            count=len(found),
            is_capped=cursor is not None or len(jobs) > len(found),
            refs=[job.ref for job in found],
            items=found[:SHOWN_IN_PREVIEW],
        )

    async def bulk(self, who: str, action: str, refs: Sequence[str]) -> Done:
        """To each of the jobs, at most MAX_BULK. Raises BadRequest if they are more."""
        check_job_action(action)
        if len(refs) > MAX_BULK:
            raise BadRequest(f"At most {MAX_BULK} jobs in one call.")
        done: list[str] = []
        skipped: list[str] = []
        for ref in dict.fromkeys(refs):
            result = await self._one(who, action, ref)
            if result is None:
                skipped.append(ref)
            else:
                done.append(result)
        return Done(action=action, done=done, skipped=skipped)

    async def _one(self, who: str, action: str, ref: str) -> str | None:
        """The ref of what came of it; None if it could not be done."""
        try:
            job_id = read_ref(ref)
            found = await self._reader.find(job_id)
        except JobNotFound:
            return None
        if action not in found.detail.actions:
            return None
        state = found.detail.job.state
        await self._tell(who, action, job_id)
        async with self._reader.asking():
            match action:
                case "retry":
                    done = await self._retry(job_id, found.queue, is_orphaned=state is State.ORPHANED)
                case "abort" if state is State.RUNNING:
                    done = await self._abort_running(job_id, found)
                case "abort":
                    done = await self._abort_waiting(job_id, found)
                case _:
                    forced = "1" if state is State.ORPHANED else "0"
                    done = ref if await self._redis.eval(_DELETE, 0, keys.PREFIX, job_id, found.queue, forced) else None
        return done

    async def _retry(self, job_id: str, queue: str, *, is_orphaned: bool) -> str | None:
        new_id = uuid.uuid4().hex
        held = "1" if is_orphaned else "0"
        done = await self._redis.eval(
            *(_RETRY, 0, keys.PREFIX, job_id, new_id, queue, timestamp_ms(), expires_extra_ms, held)
        )
        return keys.make_ref(new_id) if done else None

    async def _abort_running(self, job_id: str, found: Found) -> str | None:
        job = found.detail.job
        if job.worker is None:
            return None
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.sadd(keys.ABORT + job.worker, job_id)
            pipeline.expire(keys.ABORT + job.worker, 60)
            await pipeline.execute()
        return job.ref

    async def _abort_waiting(self, job_id: str, found: Found) -> str | None:
        """Held like a job that is being worked on, so that no worker takes it meanwhile."""
        claim = keys.ARQ_CLAIM + job_id
        if not await self._redis.set(claim, b"1", nx=True, px=HOLD_MS):
            return None
        job, now = found.detail.job, timestamp_ms()
        if await self._redis.zscore(found.queue, job_id) is None:
            await self._redis.delete(claim)
            return None
        record = TryRecord(
            number=job.tries,
            outcome=Outcome.ABORTED,
            worker="",
            enqueued_ms=ms_of(job.enqueued_at) if job.enqueued_at else now,
            started_ms=now,
            ended_ms=now,
            wait_ms=(job.wait_s or 0) * 1000,
            run_ms=0,
            raised=[],
            result=None,
            arguments=found.detail.arguments,
        )
        one = as_try(found.queue, job_id, found.function or UNKNOWN_FUNCTION, record)
        await tries.write(self._redis, self._bounds, [one])
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.zrem(found.queue, job_id)
            pipeline.delete(keys.ARQ_JOB + job_id, keys.ARQ_RETRY + job_id, claim)
            await pipeline.execute()
        return job.ref

    # --------------------------------------------------------------------------------------------------------- queues

    async def pause(self, who: str, queue: str) -> Done:
        """Within BEAT_EVERY_S no worker with a recorder begins a job of this queue, nor enqueues its cron jobs, but for
        those that its recorder was told never to pause; what runs is finished. Raises QueueNotFound."""
        await self._check_queue(queue)
        await self._tell(who, PAUSE, queue)
        async with self._reader.asking():
            await self._redis.set(keys.PAUSED + queue, msgspec.msgpack.encode(Pause(who, timestamp_ms())))
        return Done(action=PAUSE, done=[queue], skipped=[])

    async def resume(self, who: str, queue: str) -> Done:
        """Raises QueueNotFound."""
        await self._check_queue(queue)
        await self._tell(who, RESUME, queue)
        async with self._reader.asking():
            await self._redis.delete(keys.PAUSED + queue)
        return Done(action=RESUME, done=[queue], skipped=[])

    async def _check_queue(self, queue: str) -> None:
        if queue not in await self._reader.queues():
            raise QueueNotFound


def check_job_action(action: str) -> None:
    """Raises BadRequest."""
    if action not in ON_JOBS:
        raise BadRequest(f"`action` is one of {', '.join(ON_JOBS)}.")
