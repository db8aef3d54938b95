"""What follows a commit. None of it may fail or delay what was acknowledged: the sweep repeats what is lost here.

What is to follow at the same time goes together: in one round trip to Redis, and one to Postgres.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

from arq import ArqRedis
from redis.asyncio import Redis

from server import channels, database, events, jobs, logs
from server.events import Event

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_TOGETHER = 500


class Together(Generic[Item]):
    """Does for many at once what is asked for one by one.

    What comes while a batch is under way makes up the next one, so that nothing is put off for the sake of company.
    """

    def __init__(self, do: Callable[[list[Item]], Awaitable[None]]) -> None:
        self._do = do
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, item: Item) -> None:
        """Until it is done. Raises what its batch raised."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._task is None or self._task.done():
            # In nobody's context: a batch belongs to no request, and to no transaction.
            self._task = asyncio.create_task(self._run(), name="together", context=Context())
        await done

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
            error: BaseException | None = None
            try:
                await self._do([item for item, _ in batch])
            except asyncio.CancelledError:
                for _, done in (*batch, *self._waiting):
                    done.cancel()
                raise
            except Exception as raised:
                error = raised
            for _, done in batch:
                # Whoever was cancelled meanwhile waits no more.
                if not done.done():
                    done.set_exception(error) if error else done.set_result(None)


class Following(NamedTuple):
    """What goes together, of one process and one Redis, which comes along with each."""

    announcements: Together[tuple[Redis, Sequence[Event]]]
    seals: Together[tuple[ArqRedis, UUID, str | None]]
    sealing_times: Together[tuple[ArqRedis, float]]


async def _announce(batch: list[tuple[Redis, Sequence[Event]]]) -> None:
    announced = [event for _, some in batch for event in some]
    await channels.publish_many(batch[0][0], announced)
    await events.published([event.id for event in announced])


async def _enqueue(batch: list[tuple[ArqRedis, UUID, str | None]]) -> None:
    async with asyncio.timeout(jobs.ENQUEUE_TIMEOUT_S):
        await jobs.enqueue_seals_of(batch[0][0], {post_id: request_id for _, post_id, request_id in batch})


async def _note(batch: list[tuple[ArqRedis, float]]) -> None:
    await jobs.note_sealings(batch[0][0], [seconds for _, seconds in batch])


_following: WeakKeyDictionary[Redis, Following] = WeakKeyDictionary()


def following(redis: Redis) -> Following:
    found = _following.get(redis)
    if found is None:
        found = _following[redis] = Following(Together(_announce), Together(_enqueue), Together(_note))
    return found


async def announce(redis: Redis, announced: Sequence[Event]) -> None:
    """Publish events and take them out of the outbox."""
    if not announced:
        return
    try:
        await following(redis).announcements.add((redis, announced))
    except (*channels.UNAVAILABLE, *database.UNAVAILABLE) as error:
        logger.warning("events are left to the sweep", extra={"events": len(announced), "error": type(error).__name__})


async def enqueue_seal(redis: ArqRedis, post_id: UUID) -> None:
    try:
        await following(redis).seals.add((redis, post_id, logs.request_id()))
    except channels.UNAVAILABLE as error:
        logger.warning("a post is left to the sweep", extra={"post_id": post_id, "error": type(error).__name__})


async def note_sealing(redis: ArqRedis, seconds: float) -> None:
    with suppress(*channels.UNAVAILABLE):
        await following(redis).sealing_times.add((redis, seconds))
