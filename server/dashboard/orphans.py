"""Jobs whose workers died with them."""

from typing import Any

from server.dashboard import keys
from server.dashboard.keys import Beat, RunningRecord, TryRecord, decode
from server.dashboard.models import Outcome
from server.dashboard.scene import Front, Scene

FRESH_CLAIM_MS = 5000


def is_forsaken(left_ms: int, queue: str, scene: Scene) -> bool:
    """A claim that no worker tells of, and that is not so new that none could have.

    Where all workers of a queue record, such a job's worker died before it had told of it. Workers without a
    recorder tell of nothing, so nothing can be said where none is alive that does.
    """
    claims = [beat.claim_ms for beat in scene.living + scene.dead if beat.queue == queue]
    return bool(scene.dead) and bool(claims) and 0 <= left_ms < max(claims) - FRESH_CLAIM_MS


async def find(redis: Any, queue: str, recorded: list[str], scene: Scene, front: Front) -> set[str]:
    """Of those that went down with their workers, the ones that nobody has in hand and that wait for nobody."""
    running, lost = scene.running(queue), scene.lost(queue)
    candidates = list(dict.fromkeys([*lost, *recorded]).keys() - running.keys())
    if not candidates:
        return set()
    async with redis.pipeline(transaction=False) as pipeline:
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


def is_over(last: TryRecord, beat: Beat, job: RunningRecord) -> bool:
    """A heartbeat tells of tries that have ended since; the record of their end is there before."""
    return last.worker == beat.id and last.number >= job.number and last.started_ms >= job.started_ms
