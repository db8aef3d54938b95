"""Rate limits: counted in Redis across all processes, and in this process alone while Redis is away."""

import math
import time
from typing import NamedTuple

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from server import accounts
from server.breaker import Breaker, RedisAway
from server.errors import RateLimited
from server.sealing import digests
from server.settings import Settings


class Limits(NamedTuple):
    login: RateLimitItem
    request_read: RateLimitItem
    call: RateLimitItem


class Limiter:
    """Raises RateLimited once a limit is used up; never anything else."""

    def __init__(self, redis_url: str, pool: ConnectionPool, settings: Settings, breaker: Breaker) -> None:
        self.on = settings.rate_limits
        self.limits = Limits(
            RateLimitItemPerMinute(settings.login_rate_per_minute, namespace="login"),
            RateLimitItemPerHour(settings.request_read_rate_per_hour, namespace="request_read"),
            RateLimitItemPerMinute(settings.rate_per_minute, namespace="call"),
        )
        shared = RedisStorage(
            redis_url.replace("unix://", "redis+unix://"),
            connection_pool=pool,  # type: ignore[arg-type]  # handed on to redis-py, whatever it is
            implementation="redispy",
            key_prefix="secureblogs:limits",
        )
        self._shared = SlidingWindowCounterRateLimiter(shared)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._breaker = breaker

    async def login(self, address: str, email: str) -> None:
        """Logins and sign-ups, per address and per email, of which Redis sees a hash alone."""
        await self._take(self.limits.login, "address", address)
        await self._take(self.limits.login, "email", digests.token_hash(accounts.email_key(email)).hex())

    async def request_read(self, user_id: object) -> None:
        await self._take(self.limits.request_read, str(user_id))

    async def call(self, user_id: object) -> None:
        await self._take(self.limits.call, str(user_id))

    async def _take(self, limit: RateLimitItem, *whose: str) -> None:
        if not self.on:
            return
        strategy = self._shared
        try:
            is_free = await self._breaker.ask(lambda: self._shared.hit(limit, *whose))
        except RedisAway:
            strategy = self._own
            is_free = await self._own.hit(limit, *whose)
        if is_free:
            return
        raise RateLimited(
            name=limit.namespace,
            limit=limit.amount,
            window_s=limit.get_expiry(),
            retry_after_s=await _wait_s(strategy, limit, *whose),
        )


async def _wait_s(strategy: SlidingWindowCounterRateLimiter, limit: RateLimitItem, *whose: str) -> int:
    try:
        stats = await strategy.get_window_stats(limit, *whose)
    except (RedisError, OSError):
        return limit.get_expiry()
    return max(1, math.ceil(stats.reset_time - time.time()))
