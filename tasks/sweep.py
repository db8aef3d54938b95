"""Every few seconds: repair what was lost between Postgres, which is the truth, and Redis, which is a hint.

* A pending post that is not queued is enqueued: its job was never sent, or Redis lost it.
* A pending post whose job is put off for longer than any is, by a clock that is wrong, is put off no longer.
* A pending post whose job has been in the hands of a worker for longer than a few readers take, while nobody holds the
  post's lock in Postgres, was left behind by a worker that died. arq would keep the claim until the longest job would
  have timed out; here it is released. Where the worker lives after all, the post is sealed twice and stored once.
* Files that no post has taken for a day go, and the objects of all that is deleted.
* An event that was committed and not announced is announced.
* An entry of the audit log that has no place in its chain yet gets one.
* What users did, which is counted in Redis, is written to Postgres once it is half a minute old.

All of it may run twice, on several workers at once, or half: each statement leaves what it finds right as it is.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from arq.connections import ArqRedis
from obstore.store import ObjectStore
from redis.exceptions import ResponseError

from server import attachments, audit, channels, credentials, events, jobs, links, objects, pending_posts, quotas, usage
from server.channels import UNAVAILABLE
from server.events import Event
from tasks.seal import MAX_BACKOFF_S, place

logger = logging.getLogger(__name__)

EVERY_S = 5
TIMEOUT_S = 60

DUE_AFTER_S = 5.0
MAX_POSTS = 10_000
EVENTS_AT_ONCE = 500
MAX_EVENTS = 10_000
OBJECTS_AT_ONCE = 20
MAX_OBJECTS = 1000
MAX_USAGE = 100_000


async def sweep(ctx: dict[Any, Any]) -> None:
    """Do everything that is due. One at a time in a process, so that slow sweeps do not pile up."""
    busy: asyncio.Lock = ctx["sweeping"]
    if busy.locked():
        return
    async with busy:
        await isolate(repair_queue, ctx["redis"], ctx["claim_s"])
        await isolate(announce_late, ctx["redis"])
        await isolate(write_usage, ctx["redis"])
        await isolate(credentials.expire_tokens)
        await isolate(attachments.expire)
        await isolate(links.expire)
        await isolate(delete_objects, ctx["store"])
        await isolate(audit.place)


async def delete_objects(store: ObjectStore) -> None:
    """What the store does not delete now comes up again in a minute, and keeps no other from being deleted."""
    for _ in range(0, MAX_OBJECTS, OBJECTS_AT_ONCE):
        due = await attachments.objects_to_delete(OBJECTS_AT_ONCE)
        outcomes = await asyncio.gather(*(objects.delete(store, key) for key in due), return_exceptions=True)
        await attachments.objects_deleted([key for key, error in zip(due, outcomes, strict=True) if error is None])
        for error in outcomes:
            if error is not None:
                raise error
        if len(due) < OBJECTS_AT_ONCE:
            return


async def isolate(step: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """A step that fails keeps no other from its work, and is tried again by the next sweep."""
    try:
        await step(*args)
    except Exception as error:
        logger.warning("sweep: %s failed: %s", step.__name__, place(error))


async def repair_queue(redis: ArqRedis, claim_s: float) -> None:
    """`claim_s`: for how long a worker claims a job, in seconds."""
    due = await pending_posts.waiting(DUE_AFTER_S, MAX_POSTS)
    if not due:
        return
    known = await jobs.look_up_seals(redis, due)
    lost = [post_id for post_id in due if not known[post_id].is_queued]
    if lost:
        await jobs.enqueue_seals(redis, lost)
        logger.info("enqueued posts that were not in the queue", extra={"posts": len(lost)})
    await jobs.pull_forward_seals(redis, due, MAX_BACKOFF_S)
    # A worker that has only just taken a job may not have come to its lock yet, or need none.
    newest_ms_left = (claim_s - DUE_AFTER_S) * 1000
    claimed = [
        post_id for post_id in due if (left := known[post_id].running_ms_left) is not None and left < newest_ms_left
    ]
    if claimed and (orphaned := await pending_posts.unlocked(claimed)):
        await jobs.release_seals(redis, orphaned)
        logger.info("took posts from workers that are gone", extra={"posts": len(orphaned)})


async def announce_late(redis: ArqRedis) -> None:
    for _ in range(0, MAX_EVENTS, EVENTS_AT_ONCE):
        late = await events.unpublished(DUE_AFTER_S, EVENTS_AT_ONCE)
        published = await publish_each(redis, late)
        await events.published([event.id for event in published])
        if len(late) < EVENTS_AT_ONCE or not published:
            return


async def publish_each(redis: ArqRedis, late: list[Event]) -> list[Event]:
    """Those that could be published. One that Redis refuses keeps back no other; raises if Redis is away."""
    try:
        await channels.publish_many(redis, late)
    except ResponseError:
        return [event for event in late if await publish_one(redis, event)]
    return late


async def publish_one(redis: ArqRedis, event: Event) -> bool:
    try:
        await channels.publish_many(redis, [event])
    except UNAVAILABLE as error:
        logger.warning("sweep: event %s not announced: %s", event.id, place(error))
        return False
    return True


async def write_usage(redis: ArqRedis, older_than_s: float = quotas.WRITE_AFTER_S) -> None:
    """Counts that have been waiting for so long, in seconds, with all that came to them since."""
    if await quotas.note_run(redis) and await usage.is_any():
        logger.warning("this Redis is empty: what was done in the last minute may not be counted")
    for _ in range(0, MAX_USAGE, quotas.WRITE_AT_ONCE):
        due = await quotas.changed(redis, older_than_s, quotas.WRITE_AT_ONCE)
        forgotten = await quotas.settle(redis, due, await usage.write(dict(due))) if due else 0
        if forgotten:
            logger.warning(
                "this Redis went back to an old copy: what was done in the last minute may not be counted",
                extra={"users": forgotten},
            )
        if len(due) < quotas.WRITE_AT_ONCE:
            return
