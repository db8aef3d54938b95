"""What the pages and the JSON show, out of Redis.

No call goes through all keys or all jobs: what it costs depends on the number of queues, functions and living workers,
and on the length of a page.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.dashboard import cron, histories, job_detail, keys, lists, queues
from server.dashboard.encoded import Deserializer
from server.dashboard.errors import Unavailable
from server.dashboard.job_detail import Found
from server.dashboard.keys import read_ref, text
from server.dashboard.models import (
    CronEntry,
    History,
    JobDetail,
    JobPage,
    Overview,
    Panel,
    Queue,
    Selection,
    Span,
    WorkerInfo,
)
from server.dashboard.moments import moment
from server.dashboard.scene import Scene, look
from server.dashboard.workers import show_worker

TIMEOUT_S = 5.0


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

    async def overview(self, panels: Sequence[Panel] = ()) -> Overview:
        async with self.asking():
            scene = await look(self.redis)
        shown, _ = await self._overview(scene, Span.HOUR, panels)
        return msgspec.structs.replace(shown, workers=[show_worker(beat, scene.now_ms) for beat in scene.living])

    async def first_screen(self, span: Span, panels: Sequence[Panel] = ()) -> tuple[Overview, History]:
        """The overview, which is always of an hour, but for its workers; and the history, in one reading."""
        async with self.asking():
            scene = await look(self.redis)
        return await self._overview(scene, span, panels)

    async def _overview(self, scene: Scene, span: Span, panels: Sequence[Panel]) -> tuple[Overview, History]:
        async with self.asking():
            names = await self._names()
            found = await self._read_queues(names, scene)
            rows, sums = await histories.read_sums(self.redis, Span.HOUR, names, None)
            figures = histories.figures(sums, Span.HOUR)
            if span is not Span.HOUR:
                rows, sums = await histories.read_sums(self.redis, span, names, None)
        overview = Overview(
            at=moment(scene.now_ms),
            is_alarming=any(queue.is_alarming for queue in found)
            or any(panel.error or any(fact.is_alarming for fact in panel.facts) for panel in panels),
            queues=found,
            functions=figures,
            workers=[],
            panels=list(panels),
        )
        return overview, histories.make_history(span, None, None, rows, sums)

    async def _read_queues(self, names: Sequence[str], scene: Scene) -> list[Queue]:
        return [await queues.read_queue(self.redis, self._deserializer, name, scene) for name in names]

    async def queues(self) -> list[str]:
        async with self.asking():
            return await self._names()

    async def _names(self) -> list[str]:
        return await queues.list_names(self.redis, self._known)

    async def functions(self, queue: str | None = None) -> list[str]:
        """Names of functions that were ever recorded or can be called now."""
        async with self.asking():
            names = [queue] if queue is not None else await self._names()
            return await self._functions(names, await look(self.redis))

    async def _functions(self, names: Sequence[str], scene: Scene) -> list[str]:
        recorded = [await self.redis.smembers(keys.FUNCTIONS + name) for name in names]
        able = (name for beat in scene.living if beat.queue in names for name in beat.functions)
        return sorted({text(name) for some in recorded for name in some} | set(able))

    async def fingerprint(self) -> tuple[int, int, int]:
        """Three numbers that change when jobs have ended, when a queue is another, and when workers are."""
        async with self.asking():
            names = await self._names()
            scene = await look(self.redis)
            async with self.redis.pipeline(transaction=False) as pipeline:
                pipeline.get(keys.REVISION)
                for name in names:
                    pipeline.zcard(name)
                    pipeline.zrange(name, 0, 0, withscores=True)
                    pipeline.exists(keys.PAUSED + name)
                revision, *fronts = await pipeline.execute()
        workers = sorted((beat.id, sorted(job.job for job in beat.running)) for beat in scene.living)
        return int(revision or 0), checksum((names, fronts)), checksum((workers, sorted(b.id for b in scene.dead)))

    async def jobs(self, selection: Selection, cursor: str | None = None, limit: int = 50) -> JobPage:
        """Those that fit, the newest first; of queued, deferred and retrying ones those that are due first.

        Raises BadCursor.
        """
        async with self.asking():
            return await self._jobs(selection, cursor, limit, await look(self.redis))

    async def list_screen(
        self, selection: Selection, cursor: str | None, limit: int
    ) -> tuple[JobPage, Queue, list[str]]:
        """The jobs, their queue and the functions that can be chosen of it, in one reading."""
        async with self.asking():
            scene = await look(self.redis)
            page = await self._jobs(selection, cursor, limit, scene)
            [queue] = await self._read_queues([selection.queue], scene)
            return page, queue, await self._functions([selection.queue], scene)

    async def _jobs(self, selection: Selection, cursor: str | None, limit: int, scene: Scene) -> JobPage:
        return await lists.list_jobs(self.redis, self._deserializer, selection, cursor, limit, scene)

    async def job(self, ref: str) -> JobDetail:
        """Raises JobNotFound."""
        return (await self.find(read_ref(ref))).detail

    async def find(self, job_id: str) -> Found:
        """Raises JobNotFound."""
        async with self.asking():
            return await job_detail.find(self.redis, self._deserializer, job_id, await self._names())

    async def workers(self) -> list[WorkerInfo]:
        """The living ones, the oldest first."""
        async with self.asking():
            scene = await look(self.redis)
        return [show_worker(beat, scene.now_ms) for beat in scene.living]

    async def cron(self) -> list[CronEntry]:
        """What the living workers have on their schedules, and how it went the last time."""
        async with self.asking():
            return await cron.read_cron(self.redis, await look(self.redis))

    async def history(self, span: Span, queue: str | None = None, function: str | None = None) -> History:
        async with self.asking():
            names = [queue] if queue is not None else await self._names()
            rows, sums = await histories.read_sums(self.redis, span, names, function)
        return histories.make_history(span, queue, function, rows, sums)


def checksum(facts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=6).digest())
