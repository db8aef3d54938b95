"""What the living workers have on their schedules."""

from typing import Any

from server.dashboard import keys
from server.dashboard.keys import CronRun, decode
from server.dashboard.models import CronEntry
from server.dashboard.moments import moment, ms_of
from server.dashboard.redaction import clean
from server.dashboard.scene import Scene


async def read_cron(redis: Any, scene: Scene) -> list[CronEntry]:
    """With how it went the last time."""
    names = sorted({beat.queue for beat in scene.living if beat.cron})
    runs = {name: await redis.hgetall(keys.CRON + name) for name in names}
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
