"""Loops that a process runs in the background for as long as it lives.

Each of them handles what it expects, such as a Redis that is away. Should one end all the same, by an error or a
cancellation that nobody thought of, it is started again, at first at once and then ever more slowly; it is counted; and
for a while it is said not to be well, so that `/health/ready` shows it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from server import metrics

logger = logging.getLogger(__name__)

WELL_AFTER_S = 15.0
"""Longer than three heartbeats of a worker, which tell of its loops."""

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
CANCELLED_AGAIN_AFTER_S = 0.5


class Loop:
    """`async with Loop("name", run):` runs `run`, which is not meant to return, and again if it does, in that block."""

    def __init__(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.name = name
        self.deaths = 0
        self._run = run
        self._died_at: float | None = None
        self._task: asyncio.Task[None] | None = None
        # So that it is among the figures before it happens for the first time.
        self._counted = metrics.loop_deaths.labels(name)

    @property
    def is_well(self) -> bool:
        """Whether it runs, or is yet to, and has not ended by itself within the last WELL_AFTER_S seconds."""
        has_ended = self._task is not None and self._task.done()
        return not has_ended and (self._died_at is None or time.monotonic() - self._died_at > WELL_AFTER_S)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name=f"keeper of {self.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            # A task of its own: a cancellation that comes out of it is then told from one of this.
            running = asyncio.create_task(self._run(), name=self.name)
            try:
                await asyncio.wait([running])
            finally:
                await _end(running)
            if self.is_well:
                pause_s = FIRST_PAUSE_S
            self._note_death(None if running.cancelled() else running.exception())
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _note_death(self, error: BaseException | None) -> None:
        self.deaths += 1
        self._died_at = time.monotonic()
        self._counted.inc()
        logger.error("a background loop has ended and is started again", extra={"loop": self.name}, exc_info=error)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel it until it has ended: a cancellation is lost where a group of tasks fails at the same moment."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCELLED_AGAIN_AFTER_S)


def unwell(*loops: Loop) -> list[str]:
    """The names of those that are not well."""
    return [loop.name for loop in loops if not loop.is_well]
