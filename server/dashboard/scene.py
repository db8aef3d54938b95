"""The workers of all queues, now, and the front of a queue: what they have in hand of it."""

from typing import Any, NamedTuple

from server.dashboard import encoded, keys
from server.dashboard.encoded import Deserializer
from server.dashboard.keys import Beat, RunningRecord, decode, text

AT_ONCE = 200
FRONT = 1000
"""Jobs at the front of a queue, where those are that were claimed."""
CLAIMS_ASKED = 50


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


async def look(redis: Any) -> Scene:
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.zrange(keys.WORKERS, 0, -1)
        (seconds, micros), ids = await pipeline.execute()
    names = [text(one) for one in ids]
    found: list[bytes | None] = []
    if names:
        found = await redis.mget(
            [keys.ALIVE + one for one in names] + [keys.WORKER + one for one in names],
        )
    living: list[Beat] = []
    dead: list[Beat] = []
    for sign, raw in zip(found[: len(names)], found[len(names) :], strict=True):
        beat = decode(raw, Beat)
        if beat is not None:
            (dead if sign is None else living).append(beat)
    return Scene(seconds * 1000 + micros // 1000, living, dead)


async def read_front(redis: Any, deserializer: Deserializer | None, queue: str, scene: Scene) -> Front:
    claimed: dict[str, int] = {}
    listed, now_ms = scene.running(queue), scene.now_ms
    for start in range(0, FRONT, AT_ONCE):
        rows = await redis.zrangebyscore(queue, "-inf", now_ms, start, AT_ONCE, withscores=True)
        if not rows:
            return Front(claimed, None)
        # What a worker tells of need not be asked for.
        rows = [row for row in rows if text(row[0]) not in listed][:CLAIMS_ASKED]
        if not rows:
            continue
        async with redis.pipeline(transaction=False) as pipeline:
            for job_id, _ in rows:
                pipeline.pttl(keys.ARQ_CLAIM + text(job_id))
            left = await pipeline.execute()
        claimed |= {text(job_id): left_ms for (job_id, _), left_ms in zip(rows, left, strict=True) if left_ms != -2}
        waiting = [(text(job_id), score) for (job_id, score), ms in zip(rows, left, strict=True) if ms == -2]
        if waiting:
            return Front(claimed, await due_ms(redis, deserializer, waiting[0]))
    return Front(claimed, None)


async def due_ms(redis: Any, deserializer: Deserializer | None, waiting: tuple[str, float]) -> float | None:
    """Whoever puts a job first gives it a score that is no time; then it waits since it was enqueued."""
    job_id, score = waiting
    if score > 1e11:
        return score
    job = (await encoded.read(redis, deserializer, [job_id]))[job_id]
    return job.enqueued_ms if job and job.enqueued_ms else None
