"""What each user does on a day of UTC: requests, posts, uploaded bytes; and what there may be of it.

Where a quota is set, Redis counts and decides in one step, across all processes: the last unit goes to exactly one of
those who ask for it at once. What is only counted is added up in this process and brought to Redis every second, in one
round trip for all users, so it costs no call anything. Workers write Redis' counts to Postgres (`tasks.sweep`).

There is one clock, that of Redis; a process without Redis goes on by what it last saw of that clock. While Redis is
away nobody is refused.

In Redis, where a day is its number since 1970:

    secureblogs:usage:<day>:<user>      hash of requests, posts, upload_bytes
    secureblogs:usage:changed           sorted set of <day>:<user> that are yet to be written, by when that began
    secureblogs:usage:whole_after       the day after which all is here that was counted
    secureblogs:usage:run_id            of the Redis whose counts these are
    secureblogs:usage:flushed:<process> number of the last batch that a process brought here

Redis may lose all of that, or go back to an old copy. What it has forgotten up to the day of `whole_after` is read from
Postgres again, so no more is lost than what was not written yet.
"""

import asyncio
import functools
import itertools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import UUID

from redis.asyncio import Redis

from server import database, usage
from server.breaker import Breaker, RedisAway
from server.errors import QuotaExceeded
from server.loops import Loop
from server.settings import Settings
from server.usage import Counts, Kind, UserDay

logger = logging.getLogger(__name__)

FLUSH_EVERY_S = 1.0
FLUSH_AT_ONCE = 500
WRITE_AFTER_S = 30
WRITE_AT_ONCE = 500

DAY_S = 86400

NEVER_REFUSED = {"never_refused": True}
"""The `opt` of handlers that answer even when no request is left, though they count: to see what was used, to leave."""

# ARGV[1] is the time to decide by, in Unix seconds, or nothing for Redis' own.
_COMMON = """
local NAMES = {'requests', 'posts', 'upload_bytes'}
local PREFIX = 'secureblogs:usage:'
local CHANGED, WHOLE_AFTER = PREFIX .. 'changed', PREFIX .. 'whole_after'
local KEPT_S = 172800

local now = tonumber(ARGV[1]) or tonumber(redis.call('TIME')[1])
local today = math.floor(now / 86400)

local whole_after = redis.call('GET', WHOLE_AFTER)
if not whole_after then
    redis.call('SET', WHOLE_AFTER, today)
    whole_after = today
end

local function may_have_forgotten(day)
    return tonumber(day) <= tonumber(whole_after)
end

local function is_unknown(day, user)
    return may_have_forgotten(day) and redis.call('EXISTS', PREFIX .. day .. ':' .. user) == 0
end

local function seed(day, user, counts)
    for n, name in ipairs(NAMES) do
        redis.call('HSET', PREFIX .. day .. ':' .. user, name, counts[n])
    end
    redis.call('EXPIRE', PREFIX .. day .. ':' .. user, KEPT_S)
end

local function add(day, user, name, amount)
    local member = day .. ':' .. user
    redis.call('HINCRBY', PREFIX .. member, name, amount)
    if redis.call('ZADD', CHANGED, 'NX', now, member) == 1 then
        -- What is not written yet must not expire.
        redis.call('PERSIST', PREFIX .. member)
    end
end
"""

# now, user, name, amount, limit [, day, three counts that Postgres has of it]
# -> what became of it, now, how much there was before
_TAKE = (
    _COMMON
    + """
local user, name, amount, limit = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if is_unknown(today, user) then
    if tonumber(ARGV[6]) ~= today then
        return {'unknown', now, 0}
    end
    seed(today, user, {ARGV[7], ARGV[8], ARGV[9]})
end
local count = tonumber(redis.call('HGET', PREFIX .. today .. ':' .. user, name) or '0')
if count + tonumber(amount) > limit then
    return {'refused', now, count}
end
add(today, user, name, amount)
return {'taken', now, count}
"""
)

# now, process, number of the batch, then for each user and day: day, user, three counts to add, three that Postgres
# has of it or three times nothing -> now, day, user, day, user, … of those that Postgres must be asked about first
_ADD = (
    _COMMON
    + """
local flushed, number = PREFIX .. 'flushed:' .. ARGV[2], tonumber(ARGV[3])
if tonumber(redis.call('GET', flushed) or '0') >= number then
    -- It was here before, and the answer was lost.
    return {now}
end
local answer = {now}
for i = 4, #ARGV, 8 do
    if ARGV[i + 5] == '' and is_unknown(ARGV[i], ARGV[i + 1]) then
        table.insert(answer, ARGV[i])
        table.insert(answer, ARGV[i + 1])
    end
end
if #answer > 1 then
    return answer
end
for i = 4, #ARGV, 8 do
    local day, user = ARGV[i], ARGV[i + 1]
    if is_unknown(day, user) then
        seed(day, user, {ARGV[i + 5], ARGV[i + 6], ARGV[i + 7]})
    end
    for n, name in ipairs(NAMES) do
        if ARGV[i + 1 + n] ~= '0' then
            add(day, user, name, ARGV[i + 1 + n])
        end
    end
end
redis.call('SET', flushed, number, 'EX', KEPT_S)
return answer
"""
)

# now, user -> now, three counts of today
_READ = _COMMON + "return {now, unpack(redis.call('HMGET', PREFIX .. today .. ':' .. ARGV[2], unpack(NAMES)))}"

# now, age in seconds, how many -> {day:user, three counts}, …
_CHANGED = (
    _COMMON
    + """
local answer = {}
local due = redis.call('ZRANGE', CHANGED, '-inf', now - tonumber(ARGV[2]), 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[3]))
for _, member in ipairs(due) do
    local counts = redis.call('HMGET', PREFIX .. member, unpack(NAMES))
    table.insert(answer, {member, counts[1] or '0', counts[2] or '0', counts[3] or '0'})
end
return answer
"""
)

# now, then for each user and day: day, user, three counts that were read here, three that Postgres has now or three
# times nothing if the user is no more -> for how many Redis had less than Postgres
_SETTLE = (
    _COMMON
    + """
local forgotten = 0
for i = 2, #ARGV, 8 do
    local day, user = ARGV[i], ARGV[i + 1]
    local member = day .. ':' .. user
    if ARGV[i + 5] == '' then
        for before = 0, 2 do
            redis.call('DEL', PREFIX .. string.format('%d', tonumber(day) - before) .. ':' .. user)
        end
        redis.call('ZREM', CHANGED, member)
    else
        local is_as_read, is_behind = true, false
        for n, name in ipairs(NAMES) do
            local count, written = redis.call('HGET', PREFIX .. member, name) or '0', ARGV[i + 4 + n]
            is_as_read = is_as_read and count == ARGV[i + 1 + n]
            if may_have_forgotten(day) and tonumber(count) < tonumber(written) then
                redis.call('HSET', PREFIX .. member, name, written)
                is_behind = true
            end
        end
        forgotten = forgotten + (is_behind and 1 or 0)
        if is_as_read then
            redis.call('ZREM', CHANGED, member)
            redis.call('EXPIRE', PREFIX .. member, KEPT_S)
        else
            redis.call('ZADD', CHANGED, now, member)
        end
    end
end
return forgotten
"""
)

# now, run id -> whether this Redis is another than before, or the same, and empty
_NOTE_RUN = (
    _COMMON
    + """
local before = redis.call('GET', PREFIX .. 'run_id')
if before == ARGV[2] then
    return 0
end
redis.call('SET', PREFIX .. 'run_id', ARGV[2])
redis.call('SET', WHOLE_AFTER, today)
return before and 0 or 1
"""
)

NOTHING = Counts()
NOT_ASKED = ("", "", "")


class Reservation:
    """A unit that was taken in advance."""

    is_used = False


class Today(NamedTuple):
    day: int
    counts: Counts
    """As far as Redis and this process know."""


class Quotas:
    """What the users of this process do. `async with` it, so that what it counts gets to Redis.

    `clock` is that of this machine, in Unix seconds.
    """

    def __init__(
        self, redis: Redis, breaker: Breaker, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self.limits = Counts(settings.quota_requests, settings.quota_posts, settings.quota_upload_bytes)
        self._breaker = breaker
        self._take = redis.register_script(_TAKE)
        self._add = redis.register_script(_ADD)
        self._read = redis.register_script(_READ)
        self._counts: dict[tuple[int, UUID], Counts] = {}
        # What is on its way, until it surely got there; repeated as it is, under its number.
        self._batch: dict[tuple[int, UUID], Counts] = {}
        self._batch_number = 0
        self._process_id = uuid.uuid4().hex
        self._flushing = asyncio.Lock()
        self._clock = clock
        # How far that of Redis is ahead.
        self._clock_ahead_s = 0.0
        self.loop = Loop("quotas", self._flush_for_ever)

    async def __aenter__(self) -> Self:
        with suppress(RedisAway):
            # An empty batch: only to see Redis' clock before anything is counted by it.
            await self._send_batch()
        await self.loop.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.loop.__aexit__(kind, error, trace)
        await self.flush()
        if self._batch or self._counts:
            logger.warning("what was counted and could not be brought to Redis is lost")

    async def take(self, user_id: UUID, kind: Kind, amount: int = 1, *, at: float | None = None) -> int:
        """Count what is about to be done, and refuse it if that is more than there may be today; the day's number.

        `at`, in Unix seconds, stands for Redis' clock. Raises QuotaExceeded, and counts nothing then.
        """
        limit: int = getattr(self.limits, kind)
        if not limit:
            return self.count(user_id, kind, amount, at=at)
        try:
            is_taken, now, before = await self._decide(user_id, kind, amount, limit, at)
        except RedisAway:
            return self.count(user_id, kind, amount, at=at)
        if not is_taken:
            raise QuotaExceeded(
                name=f"{kind.replace('_', '-')}-per-day",
                limit=limit,
                window_s=DAY_S,
                left=max(0, limit - before),
                retry_after_s=usage.seconds_to_midnight(now),
            )
        return usage.day_number(now)

    async def take_request(self, user_id: UUID, opt: Mapping[str, object]) -> None:
        """`take` a request, but for handlers with NEVER_REFUSED in their `opt`: there it only counts."""
        if not self.limits.requests or "never_refused" in opt:
            self.count(user_id, "requests")
        else:
            await self.take(user_id, "requests")

    async def _decide(
        self, user_id: UUID, kind: Kind, amount: int, limit: int, at: float | None
    ) -> tuple[bool, int, int]:
        """Whether it is taken, Redis' time, and how much there was before."""
        known: tuple[int, ...] = ()
        while True:
            args: tuple[str | int, ...] = (_argument(at), str(user_id), kind, amount, limit, *known)
            outcome, now, before = await self._breaker.ask(functools.partial(self._take, args=args))
            self._see_clock(now, at)
            if outcome != b"unknown":
                return outcome == b"taken", now, before
            asked = UserDay(user_id, usage.date_of(usage.day_number(now)))
            known = (usage.day_number(now), *(await usage.read([asked])).get(asked, NOTHING))

    def count(
        self, user_id: UUID, kind: Kind, amount: int = 1, *, day: int | None = None, at: float | None = None
    ) -> int:
        """Count without asking; the day's number. Redis hears of it within about FLUSH_EVERY_S."""
        day = usage.day_number(self._now() if at is None else at) if day is None else day
        key = (day, user_id)
        counts = self._counts.get(key, NOTHING)
        self._counts[key] = counts._replace(**{kind: getattr(counts, kind) + amount})
        return day

    async def give_back(self, user_id: UUID, kind: Kind, amount: int, day: int) -> None:
        """What was taken on that day, and came to nothing."""
        self.count(user_id, kind, -amount, day=day)
        if getattr(self.limits, kind):
            # At once, for it may have been the last.
            await self.flush()

    @asynccontextmanager
    async def reserve(
        self, user_id: UUID, kind: Kind, is_repeated: Callable[[], Awaitable[bool]], *, at: float | None = None
    ) -> AsyncIterator[Reservation]:
        """`take` one for the time of a block, and give it back after it unless the block says that it was used.

        Where none is left, what `is_repeated` goes on all the same, for it won't use any.
        """
        reservation = Reservation()
        try:
            day = await self.take(user_id, kind, at=at)
        except QuotaExceeded:
            if not await is_repeated():
                raise
            yield reservation
            return
        try:
            yield reservation
        finally:
            if not reservation.is_used:
                await self.give_back(user_id, kind, 1, day)

    async def today(self, user_id: UUID, *, at: float | None = None) -> Today:
        """What Redis knows, and what it has not been told yet; without Redis the latter alone."""
        await self.flush()
        now, counts = self._now() if at is None else at, NOTHING
        try:
            now, *found = await self._breaker.ask(functools.partial(self._read, args=(_argument(at), str(user_id))))
            counts = _counts(found)
        except RedisAway:
            pass
        day = usage.day_number(now)
        for untold in (self._batch, self._counts):
            counts = counts.plus(untold.get((day, user_id), NOTHING))
        return Today(day, counts)

    async def flush(self) -> None:
        """Bring to Redis what was counted. What can't be brought stays for the next time."""
        async with self._flushing:
            while self._batch or self._counts:
                if not self._batch:
                    self._batch = dict(itertools.islice(self._counts.items(), FLUSH_AT_ONCE))
                    self._batch_number += 1
                    for key in self._batch:
                        del self._counts[key]
                try:
                    await self._send_batch()
                except RedisAway:
                    return
                except database.UNAVAILABLE as error:
                    logger.warning("Postgres is away, counts wait", extra={"error": type(error).__name__})
                    return
                self._batch = {}

    async def _send_batch(self) -> None:
        known: Mapping[UserDay, Counts] = {}
        asked: set[UserDay] = set()
        while True:
            args: list[str | int] = ["", self._process_id, self._batch_number]
            for (day, user_id), counts in self._batch.items():
                one = UserDay(user_id, usage.date_of(day))
                args += [day, str(user_id), *counts, *(known.get(one, NOTHING) if one in asked else NOT_ASKED)]
            now, *unknown = await self._breaker.ask(functools.partial(self._add, args=args))
            self._see_clock(now, None)
            if not unknown:
                return
            asked |= {_user_day(day, user_id) for day, user_id in zip(unknown[::2], unknown[1::2], strict=True)}
            known = await usage.read(sorted(asked))

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            try:
                await self.flush()
            except Exception:
                logger.exception("counts were not brought to Redis")

    def _see_clock(self, now: int, at: float | None) -> None:
        if at is None:
            ahead_s = now - self._clock()
            # Redis tells whole seconds: a difference below one is none.
            self._clock_ahead_s = ahead_s if abs(ahead_s) >= 1 else 0.0

    def _now(self) -> float:
        return self._clock() + self._clock_ahead_s


# ------------------------------------------------------------------------------------------------- for the workers


class Changed(NamedTuple):
    """What a user did on a day, and Postgres does not have."""

    whose: UserDay
    counts: Counts


async def note_run(redis: Redis) -> bool:
    """Whether this Redis has nothing of what a worker saw before: it is new, or was emptied. Told once.

    Of one that was started anew, whatever it came back with is compared with Postgres for the rest of the day.
    Raises one of channels.UNAVAILABLE.
    """
    run_id = (await redis.info("server"))["run_id"]
    return bool(await redis.register_script(_NOTE_RUN)(args=("", run_id)))


async def changed(redis: Redis, older_than_s: float, limit: int) -> list[Changed]:
    """What has been waiting to be written for so long, oldest first. Raises one of channels.UNAVAILABLE."""
    rows = await redis.register_script(_CHANGED)(args=("", older_than_s, limit))
    return [Changed(_user_day(*row[0].split(b":")), _counts(row[1:])) for row in rows]


async def settle(redis: Redis, read: Iterable[Changed], written: Mapping[UserDay, Counts]) -> int:
    """What was written and has not changed meanwhile is not due any more; of how many Redis had forgotten something.

    Raises one of channels.UNAVAILABLE.
    """
    args: list[str | int] = [""]
    for whose, counts in read:
        day = usage.number_of(whose.date)
        args += [day, str(whose.user_id), *counts, *(written.get(whose) or NOT_ASKED)]
    return int(await redis.register_script(_SETTLE)(args=args))


def _argument(at: float | None) -> str | int:
    return "" if at is None else int(at)


def _user_day(day: bytes, user_id: bytes) -> UserDay:
    return UserDay(UUID(user_id.decode()), usage.date_of(int(day)))


def _counts(found: Iterable[Any]) -> Counts:
    return Counts(*(int(count or 0) for count in found))
