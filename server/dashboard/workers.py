"""Worker processes, as they are shown."""

from server.dashboard.keys import Beat, make_ref
from server.dashboard.models import RunningJob, WorkerInfo
from server.dashboard.moments import moment
from server.dashboard.redaction import clean


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
