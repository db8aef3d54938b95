"""What is to be recorded, until it is: tries in memory, on their way to Redis.

Those that end together are written in one call, and with jobs that have ended well goes arq's own last step, in the
same transaction: so recording takes no round trip of its own, and no job is forgotten that is not recorded. The first
one waits SHARED_S for others, as long as there are any in hand and it is worth the while.

A Redis that does not answer is waited for once, for ANSWER_TIMEOUT_S, and then no more until it does; meanwhile
MAX_BACKLOG tries wait here, and are written later.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
from collections import deque
from typing import Any, Final

from arq.worker import Worker
from redis.exceptions import NoScriptError, RedisError

from server.dashboard import tries
from server.dashboard.tries import Bounds

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 0.25
MAX_BACKLOG = 1000
AT_ONCE = 50
SHARED_S = 0.005
SPARED = 10

UNAVAILABLE: Final = (RedisError, OSError, TimeoutError)


@dataclasses.dataclass(slots=True, eq=False)
class Entry:
    one: list[Any]
    """What `tries.as_try` gave."""
    commands: list[Any]
    """Those of arq's last step that go along."""
    written: asyncio.Future[bool]

    def settle(self, is_written: bool) -> None:
        self.commands = []
        if not self.written.done():
            self.written.set_result(is_written)


class Backlog:
    def __init__(self, worker: Worker, bounds: Bounds) -> None:
        self.is_down = False
        """Since the last call to Redis failed."""
        self.lost = 0
        """Tries that were never written, for there were too many."""
        self.entries: deque[Entry] = deque()
        self._worker = worker
        self._bounds = bounds
        self._flushing: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._nobody_else = asyncio.Event()
        self._spared = 0

    async def write(self, one: list[Any], commands: list[Any]) -> bool:
        """True once both have been done; else the try waits for its time, and the commands are left to the caller."""
        if len(self.entries) >= MAX_BACKLOG:
            self.entries.popleft().settle(False)
            self.lost += 1
        entry = Entry(one, commands, asyncio.get_running_loop().create_future())
        self.entries.append(entry)
        if self.is_down:
            entry.settle(False)
            return False
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._keep_up(), name="recording")
        if len(self.entries) >= self._worker.job_counter:
            self._nobody_else.set()
        return await entry.written

    async def _keep_up(self) -> None:
        try:
            while self.entries and not self.is_down:
                await self._wait_for_others()
                await self._write(ANSWER_TIMEOUT_S)
        finally:
            for entry in self.entries:
                entry.settle(False)

    async def _wait_for_others(self) -> None:
        """For jobs that are about to end. A wait that was in vain is spared the next ones."""
        known = len(self.entries)
        if self._spared:
            self._spared -= 1
        elif known < self._worker.job_counter:
            self._nobody_else.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHARED_S):
                    await self._nobody_else.wait()
            if len(self.entries) == known:
                self._spared = SPARED

    async def flush(self, limit_s: float) -> None:
        """Write all that waits, each call within so many seconds. Whatever is not written stays."""
        while self.entries and await self._write(limit_s):
            pass

    async def _write(self, limit_s: float) -> bool:
        async with self._writing:
            batch = list(itertools.islice(self.entries, AT_ONCE))
            if not batch:
                return True
            try:
                async with asyncio.timeout(limit_s):
                    await self.send(batch)
            except UNAVAILABLE as error:
                self.note(error)
                return False
            for entry in batch:
                # The oldest may have been dropped meanwhile.
                if self.entries and self.entries[0] is entry:
                    self.entries.popleft()
                entry.settle(True)
            self.note(None)
            return True

    async def send(self, batch: list[Entry]) -> None:
        """May be repeated. Raises one of UNAVAILABLE."""
        pool: Any = self._worker.pool  # redis-py's types are of both of its clients at once
        written = [entry.one for entry in batch]
        commands = [command for entry in batch for command in entry.commands]
        if not commands:
            await tries.write(pool, self._bounds, written)
            return
        async with pool.pipeline(transaction=True) as pipeline:
            pipeline.evalsha(tries.WRITE_SHA, 0, *tries.script_arguments(self._bounds, written))
            pipeline.command_stack += commands
            recorded, *rest = await pipeline.execute(raise_on_error=False)
        if isinstance(recorded, NoScriptError):
            await tries.write(pool, self._bounds, written)
        for answer in (recorded, *rest):
            if isinstance(answer, Exception) and not isinstance(answer, NoScriptError):
                raise answer

    def note(self, error: Exception | None) -> None:
        """Whether Redis is there."""
        if error and not self.is_down:
            logger.warning("jobs are not recorded for now: %s", str(error) or type(error).__name__)
        elif self.is_down and not error:
            logger.info("jobs are recorded again")
        self.is_down = error is not None


class LastStep:
    """The worker as arq's last step of a try sees it, whose commands are taken down in place of being sent."""

    def __init__(self, worker: Worker) -> None:
        self.queue_name = worker.queue_name
        self.pool = self
        self.commands: list[Any] = []
        self._pool: Any = worker.pool

    def pipeline(self, transaction: bool = True) -> Any:
        pipeline = self._pool.pipeline(transaction=transaction)

        async def execute() -> None:
            self.commands += pipeline.command_stack

        pipeline.execute = execute
        return pipeline
