"""What follows a commit. None of it may fail or delay what was acknowledged: the sweep repeats what is lost here."""

import logging
from collections.abc import Sequence
from uuid import UUID

from arq import ArqRedis
from redis.asyncio import Redis

from server import channels, database, events, jobs
from server.events import Event

logger = logging.getLogger(__name__)


async def announce(redis: Redis, announced: Sequence[Event]) -> None:
    """Publish events and take them out of the outbox."""
    if not announced:
        return
    try:
        await channels.publish_many(redis, announced)
        await events.published([event.id for event in announced])
    except (*channels.UNAVAILABLE, *database.UNAVAILABLE) as error:
        logger.warning("events are left to the sweep", extra={"events": len(announced), "error": type(error).__name__})


async def enqueue_seal(redis: ArqRedis, post_id: UUID) -> None:
    try:
        await jobs.enqueue_seal(redis, post_id)
    except channels.UNAVAILABLE as error:
        logger.warning("a post is left to the sweep", extra={"post_id": post_id, "error": type(error).__name__})
