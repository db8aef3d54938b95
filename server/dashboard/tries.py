"""Tries of jobs, as they are written into the history: many in one call, and each of them once.

What belongs together is one script, so that no reader and no killed worker sees or leaves half of it.
"""

import contextlib
import hashlib
import itertools
from typing import Any

import msgspec
from redis.exceptions import NoScriptError

from server.dashboard import histograms, keys
from server.dashboard.keys import CronRun, TryRecord

UNKNOWN_FUNCTION = "(unknown)"


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What the history may take. A job that is kept takes 1 KiB, one that failed with its traceback about 3 KiB, and
    at most MAX_RAW_BYTES more for what it was called with."""

    max_jobs: int = 10_000
    """That are kept of one queue, in each state: done, failed, aborted, orphaned, retrying."""
    kept_s: int = 7 * 86_400


# KEYS are not named, so this is not for a Redis cluster; neither is arq.
#
# ARGV: prefix, bounds, and twelve of each try, as `as_try` gives them. A try that is there already is not counted
# twice, so that a call whose answer was lost may be sent again. What is the same for many is done once for all of them:
# at a thousand tries a second the calls are what costs.
_WRITE = """
local prefix, max, kept_s = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now_s = tonumber(clock[1])
local now_ms = now_s * 1000 + math.floor(tonumber(clock[2]) / 1000)
local written, counts, touched = 0, {}, {}

local function indices(state, queue, fn)
  local all = prefix .. 'jobs:' .. state .. ':' .. queue
  return all, all .. '|' .. fn
end

local function forget(id)
  local head = redis.call('LINDEX', prefix .. 'job:' .. id, 0)
  if head then
    local was = cmsgpack.unpack(head)
    local all, own = indices(was[1], was[3], was[2])
    redis.call('ZREM', all, id)
    redis.call('ZREM', own, id)
  end
  redis.call('DEL', prefix .. 'job:' .. id, prefix .. 'raw:' .. id, prefix .. 'from:' .. id)
end

local function append(job, id, state, queue, fn, record)
  local head = cmsgpack.pack({state, fn, queue})
  local known = redis.call('LINDEX', job, 0)
  if not known then
    redis.call('RPUSH', job, head, record)
    return
  end
  local was = cmsgpack.unpack(known)
  if was[1] ~= state or was[2] ~= fn or was[3] ~= queue then
    local all, own = indices(was[1], was[3], was[2])
    redis.call('ZREM', all, id)
    redis.call('ZREM', own, id)
  end
  redis.call('LSET', job, 0, head)
  if redis.call('RPUSH', job, record) > MAX_TRIES + 1 then
    redis.call('LSET', job, 1, 'gone')
    redis.call('LREM', job, 1, 'gone')
  end
  if state == 'done' then redis.call('DEL', prefix .. 'raw:' .. id) end
end

local function keep_raw(id)
  local size = redis.call('STRLEN', 'arq:job:' .. id)
  if size > 0 and size <= MAX_RAW_BYTES then
    redis.call('SET', prefix .. 'raw:' .. id, redis.call('GET', 'arq:job:' .. id), 'EX', kept_s)
  end
end

for first = 4, #ARGV, 12 do
  local queue, id, state, fn, outcome, wait, run, due_ms, record, guard, cron, run_record =
    unpack(ARGV, first, first + 11)
  local job = prefix .. 'job:' .. id
  local is_new = redis.call('LINDEX', job, -1) ~= record
  if is_new and guard ~= '' then
    is_new = redis.call('SET', guard, '', 'NX', 'EX', 86400)
  end
  if is_new then
    written = written + 1
    append(job, id, state, queue, fn, record)
    redis.call('EXPIRE', job, kept_s)
    if state ~= 'done' then keep_raw(id) end

    local all, own = indices(state, queue, fn)
    local score = now_ms
    if tonumber(due_ms) > 0 then score = tonumber(due_ms) end
    redis.call('ZADD', all, score, id)
    redis.call('ZADD', own, score, id)
    touched[all], touched[own] = all, all

    local of_queue = counts[queue] or {}
    counts[queue] = of_queue
    for _, field in ipairs({'c|' .. outcome .. '|' .. fn, 'w|' .. wait .. '|' .. fn, 'r|' .. run .. '|' .. fn}) do
      of_queue[field] = (of_queue[field] or 0) + 1
    end
    redis.call('SADD', prefix .. 'functions:' .. queue, fn)
    if cron ~= '' then
      redis.call('HSET', prefix .. 'cron:' .. queue, cron, run_record)
    end
  end
end

for index, all in pairs(touched) do
  redis.call('EXPIRE', index, kept_s)
  local excess = index == all and redis.call('ZCARD', all) - max or 0
  if excess > 0 then
    local oldest = redis.call('ZPOPMIN', all, excess)
    for place = 1, #oldest, 2 do
      forget(oldest[place])
    end
  end
end
for queue, of_queue in pairs(counts) do
  for _, bucket in ipairs({BUCKETS}) do
    local history = prefix .. 'history:' .. bucket[1] .. ':' .. math.floor(now_s / bucket[1]) .. ':' .. queue
    for field, count in pairs(of_queue) do
      redis.call('HINCRBY', history, field, count)
    end
    redis.call('EXPIRE', history, bucket[2])
  end
end
if written > 0 then redis.call('INCRBY', prefix .. 'revision', written) end
return written
"""
_WRITE = (
    _WRITE.replace("MAX_TRIES", str(keys.MAX_TRIES))
    .replace("MAX_RAW_BYTES", str(keys.MAX_RAW_BYTES))
    .replace("BUCKETS", ", ".join(f"{{{size}, {kept}}}" for size, _, kept in keys.BUCKETS.values()))
)

WRITE_SHA = hashlib.sha1(_WRITE.encode(), usedforsecurity=False).hexdigest()

# ARGV: prefix, the index of a state, how many at most, and the time before which all goes.
_TIDY = """
local prefix = ARGV[1]
local old = redis.call('ZRANGEBYSCORE', ARGV[2], '-inf', ARGV[4], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(old) do
  local head = redis.call('LINDEX', prefix .. 'job:' .. id, 0)
  redis.call('ZREM', ARGV[2], id)
  if head then
    redis.call('ZREM', ARGV[2] .. '|' .. cmsgpack.unpack(head)[2], id)
  end
  redis.call('DEL', prefix .. 'job:' .. id, prefix .. 'raw:' .. id, prefix .. 'from:' .. id)
end
return #old
"""


def as_try(
    queue: str,
    job_id: str,
    function: str,
    record: TryRecord,
    due_ms: int = 0,
    *,
    guard: str = "",
    is_cron: bool = False,
) -> list[Any]:
    """What _WRITE takes. A job that goes on waiting is due at `due_ms`; `guard` is a key that lets it in only once."""
    run = CronRun(record.ended_ms, record.outcome, record.run_ms)
    return [
        queue,
        job_id,
        keys.STATES[record.outcome].value,
        function,
        record.outcome.value,
        str(histograms.bucket(record.wait_ms / 1000)),
        str(histograms.bucket(record.run_ms / 1000)),
        due_ms,
        msgspec.msgpack.encode(record),
        guard,
        function if is_cron else "",
        msgspec.msgpack.encode(run) if is_cron else "",
    ]


def script_arguments(bounds: Bounds, tries: list[list[Any]]) -> list[Any]:
    """Of the script with WRITE_SHA."""
    return [keys.PREFIX, bounds.max_jobs, bounds.kept_s, *itertools.chain.from_iterable(tries)]


async def write(redis: Any, bounds: Bounds, tries: list[list[Any]]) -> None:
    """In one round trip, but for the first time after Redis was started."""
    arguments = script_arguments(bounds, tries)
    with contextlib.suppress(NoScriptError):
        await redis.evalsha(WRITE_SHA, 0, *arguments)
        return
    await redis.eval(_WRITE, 0, *arguments)


async def drop_old(redis: Any, index: str, before_ms: int, at_most: int) -> None:
    """Of one index, with all that is kept of the jobs."""
    await redis.eval(_TIDY, 0, keys.PREFIX, index, at_most, before_ms)
