"""Queues: their names, and how each of them stands."""

from collections.abc import Collection
from typing import Any

from arq.constants import default_queue_name

from server.dashboard import keys, orphans
from server.dashboard.encoded import Deserializer
from server.dashboard.keys import Pause, decode, text
from server.dashboard.models import Queue, State
from server.dashboard.moments import moment
from server.dashboard.redaction import clean
from server.dashboard.scene import AT_ONCE, Scene, read_front

ALARMING_WAIT_S = 60.0
MAX_QUEUES = 100


async def list_names(redis: Any, known: Collection[str]) -> list[str]:
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.zrevrange(keys.QUEUES, 0, MAX_QUEUES - 1)
        pipeline.exists(default_queue_name)
        spoken_of, default = await pipeline.execute()
    # Work that waits for a worker that never was is what an operator must not miss.
    return sorted(set(known) | set(map(text, spoken_of)) | ({default_queue_name} if default else set()))


async def read_queue(redis: Any, deserializer: Deserializer | None, name: str, scene: Scene) -> Queue:
    front = await read_front(redis, deserializer, name, scene)
    running, lost = scene.running(name), scene.lost(name)
    retrying = keys.index(State.RETRYING, name)
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.zcount(name, "-inf", scene.now_ms)
        pipeline.zcount(name, f"({scene.now_ms}", "+inf")
        pipeline.zcount(retrying, "-inf", scene.now_ms)
        pipeline.zcount(retrying, f"({scene.now_ms}", "+inf")
        for state in keys.ENDED:
            pipeline.zcard(keys.index(state, name))
        pipeline.zrevrange(keys.index(State.ORPHANED, name), 0, AT_ONCE - 1)
        pipeline.get(keys.PAUSED + name)
        pipeline.zmscore(retrying, [*running, *lost, *front.claimed, ""])
        due, later, again_due, again_later, done, failed, aborted, recorded, paused, busy = await pipeline.execute()
    orphaned = await orphans.find(redis, name, [text(one) for one in recorded], scene, front)
    unknown = {
        job_id
        for job_id, left_ms in front.claimed.items()
        if job_id not in running and job_id not in orphaned and not orphans.is_forsaken(left_ms, name, scene)
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
        never_paused=sorted({clean(one) for beat in scene.living if beat.queue == name for one in beat.never_paused}),
    )


def judge(wait_s: float | None, due: int, workers: int, is_paused: bool, orphaned: int) -> str | None:
    """What an operator has to hear of a queue first."""
    if not workers:
        return "Work is due, and no worker is alive." if due else "No worker is alive: what is enqueued will wait."
    if is_paused and wait_s is not None:
        return "Work is due, and the queue is paused."
    if wait_s is not None and wait_s > ALARMING_WAIT_S:
        return "The oldest job that is due has waited too long."
    if orphaned:
        return "Workers died with jobs in hand."
    return None
