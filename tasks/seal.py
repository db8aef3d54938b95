"""The job that seals a pending post, and the threads it does so with."""

import asyncio
import logging
import math
import traceback
from collections.abc import Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from arq.worker import Retry

from server import after_commit, database, logs, pending_posts
from server.events import Event
from server.pending_posts import SealMany, ToSeal
from server.sealing.posts import seal_key
from server.together import Together

logger = logging.getLogger(__name__)

# Some milliseconds of work: long against the price of handing it over, short against what another post may wait.
KEYS_AT_ONCE = 200
FEWEST_KEYS = 5
POSTS_AT_ONCE = 50

SEALING_ELSEWHERE_S = 2
# Below the half minute in which everything has to be sealed once Postgres is back.
MAX_BACKOFF_S = 15.0

PROJECT = Path(__file__).parent.parent


async def seal_post(ctx: dict[Any, Any], post_id: str, request_id: str | None = None) -> None:
    """Seal the post, however often that has to be tried. What can never be sealed, the domain marks as failed.

    `request_id` is of the request that made the post, for the log.
    """
    with logs.of_request(request_id):
        await seal(ctx, post_id)


async def seal(ctx: dict[Any, Any], post_id: str) -> None:
    subject = UUID(post_id)
    try:
        announced = await ctx["together"].add(subject)
        if announced is None:
            announced = await pending_posts.seal(subject, ctx["worker_private_keys"], ctx["seal_many"])
    except pending_posts.SealingElsewhere:
        raise Retry(defer=SEALING_ELSEWHERE_S) from None
    except Exception as error:
        # Whatever it is, it may pass, and the post was acknowledged. It may quote the text, so only its place is told.
        defer_s = min(0.5 * 2 ** min(ctx["job_try"] - 1, 10), MAX_BACKOFF_S)
        logger.warning("not sealed yet: %s", place(error), extra={"post_id": post_id, "again_in_s": defer_s})
        raise Retry(defer=defer_s) from None
    await after_commit.announce(ctx["redis"], announced)
    if any(is_sealed(event) for event in announced):
        took_s = (datetime.now(UTC) - ctx["enqueue_time"]).total_seconds()
        logger.info("post sealed", extra={"post_id": post_id, "ms": round(took_s * 1000, 1)})
        after_commit.note_sealing(ctx["redis"], took_s)
    elif announced:
        logger.warning("post can't be sealed", extra={"post_id": post_id})


def is_sealed(event: Event) -> bool:
    return event.frame.startswith('{"type":"post.sealed"')


def together(worker_private_keys: Sequence[bytes], seal_many: SealMany) -> Together[UUID, list[Event] | None]:
    """Seals posts for a few; what to announce of each, or None where it has to be sealed by itself."""

    async def seal_few(post_ids: list[UUID]) -> list[list[Event] | None]:
        try:
            done = await pending_posts.seal_few(post_ids, worker_private_keys, seal_many)
        except database.UNAVAILABLE:
            raise
        except Exception as error:
            # Whichever of them is at fault, it will not have the others wait with it.
            logger.warning("not sealed together: %s", place(error), extra={"posts": len(post_ids)})
            return [None] * len(post_ids)
        announced = {post_id: [event] if event else [] for post_id, event in done.items()}
        return [announced.get(post_id) for post_id in post_ids]

    return Together(seal_few, POSTS_AT_ONCE)


async def seal_many(threads: Executor, thread_count: int, to_seal: Sequence[ToSeal]) -> list[bytes | None]:
    """A sealed key, or None for a key that can't be sealed to, for each of `to_seal`; 50 µs of a core each.

    The event loop stays free. At most `thread_count` portions are handed over at a time, so that a small post is not
    sealed after all portions of a big one.
    """
    loop = asyncio.get_running_loop()
    portions: list[asyncio.Future[list[bytes | None]]] = []
    running: set[asyncio.Future[list[bytes | None]]] = set()
    # A few keys go to all threads too, but not one by one: to hand them over costs as much as two seals.
    size = max(FEWEST_KEYS, min(KEYS_AT_ONCE, math.ceil(len(to_seal) / thread_count)))
    for start in range(0, len(to_seal), size):
        if len(running) >= thread_count:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        portion = loop.run_in_executor(threads, seal_portion, to_seal[start : start + size])
        portions.append(portion)
        running.add(portion)
    return [sealed for portion in portions for sealed in await portion]


def seal_portion(to_seal: Sequence[ToSeal]) -> list[bytes | None]:
    return [seal_or_skip(post_key, public_key) for post_key, public_key in to_seal]


def seal_or_skip(post_key: bytes, public_key: bytes) -> bytes | None:
    """None whatever went wrong: one member's key never stops a group."""
    try:
        return seal_key(post_key, public_key)
    except Exception:
        return None


def place(error: BaseException) -> str:
    """The type of an error and the line of ours it came through, without its message, which may quote a post."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PROJECT) and "site-packages" not in path.parts:
            return f"{kind} at {path.relative_to(PROJECT)}:{line}"
    return kind
