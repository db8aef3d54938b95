"""What follows a commit. None of it may fail or delay what was acknowledged: the sweep repeats what is lost here.

What is to follow at the same time goes together: in one round trip to Redis, and one to Postgres.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

from arq import ArqRedis
from redis.asyncio import Redis

from server import channels, database, events, jobs, logs
from server.events import Event
from server.together import Together

logger = logging.getLogger(__name__)


# Nobody waits for these, so they gather for a moment.
LINGER_S = 0.2
SETTLE_WITHIN_S = 1.0


class Following(NamedTuple):
    """What goes together, of one process and one Redis, which comes along with each."""

    announcements: Together[tuple[Redis, Sequence[Event]], None]
    announced: Together[Sequence[Event], None]
    seals: Together[tuple[ArqRedis, UUID, str | None], None]
    sealing_times: Together[tuple[ArqRedis, float], None]


async def _announce(batch: list[tuple[Redis, Sequence[Event]]]) -> list[None]:
    await channels.publish_many(batch[0][0], [event for _, some in batch for event in some])
    return [None] * len(batch)


async def _forget(batch: list[Sequence[Event]]) -> list[None]:
    announced = [event.id for some in batch for event in some]
    try:
        await events.published(announced)
    except database.UNAVAILABLE as error:
        logger.warning("events will be told again", extra={"events": len(announced), "error": type(error).__name__})
    return [None] * len(batch)


async def _enqueue(batch: list[tuple[ArqRedis, UUID, str | None]]) -> list[None]:
    async with asyncio.timeout(jobs.ENQUEUE_TIMEOUT_S):
        await jobs.enqueue_seals_of(batch[0][0], {post_id: request_id for _, post_id, request_id in batch})
    return [None] * len(batch)


async def _note(batch: list[tuple[ArqRedis, float]]) -> list[None]:
    with suppress(*channels.UNAVAILABLE):
        await jobs.note_sealings(batch[0][0], [seconds for _, seconds in batch])
    return [None] * len(batch)


_following: WeakKeyDictionary[Redis, Following] = WeakKeyDictionary()


def following(redis: Redis) -> Following:
    found = _following.get(redis)
    if found is None:
        found = _following[redis] = Following(
            Together(_announce),
            Together(_forget, linger_s=LINGER_S),
            Together(_enqueue),
            Together(_note, linger_s=LINGER_S),
        )
    return found


async def announce(redis: Redis, announced: Sequence[Event]) -> None:
    """Publish events, and have them taken out of the outbox."""
    if not announced:
        return
    try:
        await following(redis).announcements.add((redis, announced))
    except channels.UNAVAILABLE as error:
        logger.warning("events are left to the sweep", extra={"events": len(announced), "error": type(error).__name__})
    else:
        following(redis).announced.put(announced)


async def enqueue_seal(redis: ArqRedis, post_id: UUID) -> None:
    try:
        await following(redis).seals.add((redis, post_id, logs.request_id()))
    except channels.UNAVAILABLE as error:
        logger.warning("a post is left to the sweep", extra={"post_id": post_id, "error": type(error).__name__})


def note_sealing(redis: ArqRedis, seconds: float) -> None:
    following(redis).sealing_times.put((redis, seconds))


@asynccontextmanager
async def settling(redis: Redis) -> AsyncIterator[None]:
    """What has been put off here is done at the end, if that goes within SETTLE_WITHIN_S."""
    try:
        yield
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_WITHIN_S):
                await following(redis).announced.settle()
                await following(redis).sealing_times.settle()
