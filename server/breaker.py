"""A circuit breaker between calls and Redis: one that is away, or hangs, is waited for once and not by each call."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# While Redis is away it is asked again only so often: nobody waits for it in the meantime.
RETRY_AFTER_S = 2.0
# A Redis that hangs holds up no call for longer than this.
ANSWER_TIMEOUT_S = 1.0


class RedisAway(Exception):
    """Go on without it."""


class Breaker:
    """One for a whole process, so that a call which asks a hanging Redis several things waits for the first alone."""

    def __init__(self, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._answer_timeout_s = answer_timeout_s
        self._away_until = 0.0

    async def ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        """What Redis answers in time. Raises RedisAway, without asking if it has just been away."""
        if time.monotonic() < self._away_until:
            raise RedisAway
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                return await question()
        except (RedisError, OSError) as error:
            # All that were waiting find out at once.
            if time.monotonic() >= self._away_until:
                logger.warning("Redis is away, limits count in this process", extra={"error": type(error).__name__})
            self._away_until = time.monotonic() + RETRY_AFTER_S
            raise RedisAway from None
