"""Live delivery: from a committed event to every WebSocket that should hear of it.

`publish_many` puts an event on Redis Pub/Sub channels such as `user:<id>` and `group:<id>`. Each API process has one
`Hub`, with one Pub/Sub connection however many sockets it serves. A socket's handler makes a `Subscriber`, joins its
channels and reads:

    async with hub:                                        # the lifespan of the process
        subscriber = Subscriber()
        await hub.join(subscriber, [user_channel, *group_channels])
        try:
            ...                                            # replay from Postgres, then
            async for item in subscriber:                  # a frame (str), or RECONNECTED: replay again
                ...
        except Overflowed:                                 # it did not read: close its socket
            ...
        finally:
            hub.leave(subscriber)

Pub/Sub forgets what nobody was connected for. So whenever the connection was lost, and also when a `join` had to go
on without Redis, the subscriber finds `RECONNECTED` in its queue *after* the subscription stands again: what it then
reads from Postgres and what comes live leave no gap between them. Delivery is at least once.

How the hub works: `join` and `leave` only change a table and note the channels that changed. One task compares the
table with what Redis was told and sends the difference, so that nothing a caller does, or a caller that is
cancelled half-way, can get the two out of step. Redis answers in order; a numbered PING after each SUBSCRIBE tells
when it has taken effect, and the same PING, sent every few seconds, finds a connection that has died without a word.
"""

import asyncio
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self
from uuid import UUID

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from server import metrics
from server.loops import Loop

logger = logging.getLogger(__name__)

PREFIX = "secureblogs:"
"""Pub/Sub channels are shared by all databases of a Redis, so their names carry the project's."""

MAX_BACKLOG = 1000
"""Frames that wait for one slow reader, after which it is given up."""

JOIN_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 2.0
MAX_BACKOFF_S = 2.0

SILENCE_S = 8.0
"""A connection that says nothing for so long, although it is asked twice meanwhile, is taken for dead."""

EVENT_ID_BYTES = 16
PUBLISH_AT_ONCE = 1000
SUBSCRIBE_AT_ONCE = 1000
READ_AT_ONCE = 64
REACH_AT_ONCE = 1000
MAX_HAD = 100

# What Redis raises while it is away, starting, full or read-only. asyncio's TimeoutError is the built-in one.
UNAVAILABLE: tuple[type[Exception], ...] = (RedisError, OSError, TimeoutError)


class Announced(Protocol):
    """What can be published; `server.events.Event` is one."""

    @property
    def id(self) -> UUID: ...
    @property
    def channels(self) -> Sequence[str]: ...
    @property
    def frame(self) -> str: ...


class Reconnected(Enum):
    RECONNECTED = "reconnected"


RECONNECTED: Final = Reconnected.RECONNECTED
"""In place of a frame: something may have been missed, read it from Postgres."""


class Overflowed(Exception):
    """The subscriber was too slow; its frames are gone and there will be no more."""


def wire_name(channel: str, prefix: str) -> bytes:
    return f"{prefix}{channel}".encode()


def write_envelope(event_id: bytes, frame: str) -> bytes:
    """What travels: 16 bytes that tell one event from the next, then the frame."""
    return event_id + frame.encode()


async def publish(redis: Redis, channels: Sequence[str], frame: str, *, prefix: str = PREFIX) -> None:
    """Put one frame on all `channels`; who is on several of them gets it once. Raises one of UNAVAILABLE."""
    envelope = write_envelope(os.urandom(EVENT_ID_BYTES), frame)
    await send(redis, [(wire_name(channel, prefix), envelope) for channel in channels])


async def publish_many(redis: Redis, events: Iterable[Announced], *, prefix: str = PREFIX) -> None:
    """Publish many events in few round trips. If it raises (one of UNAVAILABLE), any part of them may be out."""
    messages: list[tuple[bytes, bytes]] = []
    for event in events:
        envelope = write_envelope(event.id.bytes, event.frame)
        messages += [(wire_name(channel, prefix), envelope) for channel in event.channels]
        if len(messages) >= PUBLISH_AT_ONCE:
            await send(redis, messages)
            messages = []
    await send(redis, messages)


async def send(redis: Redis, messages: list[tuple[bytes, bytes]]) -> None:
    if not messages:
        return
    # A transaction, because it makes the copies of one event arrive one after the other: see Hub._deliver.
    async with redis.pipeline(transaction=True) as pipeline:
        for name, envelope in messages:
            pipeline.publish(name, envelope)
        await pipeline.execute()


class Receiver(Protocol):
    """Whoever can join a channel. `put` must neither wait nor raise."""

    def put(self, item: str | Reconnected, /) -> None: ...


class Backlog:
    """Frames that wait, in the order in which they came, and a bounded number of them."""

    def __init__(self, max_backlog: int = MAX_BACKLOG) -> None:
        self.overflowed = False
        self._max_backlog = max_backlog
        self._items: deque[str | Reconnected] = deque()

    def put(self, item: str | Reconnected) -> None:
        if self.overflowed or (item is RECONNECTED and RECONNECTED in self._items):
            return
        # RECONNECTED has a place of its own: a reader that was just not too slow still has to hear of it.
        if item is not RECONNECTED and len(self._items) >= self._max_backlog:
            self.overflowed = True
            metrics.events_dropped.inc(len(self._items) + 1)
            self._items.clear()
        else:
            self._items.append(item)

    def take(self) -> str | Reconnected | None:
        """The next frame, or RECONNECTED where frames may be missing; None if there is none. Raises Overflowed."""
        if self.overflowed:
            raise Overflowed
        return self._items.popleft() if self._items else None


class Subscriber(Backlog):
    """A backlog with one reader, which waits for what comes."""

    def __init__(self, max_backlog: int = MAX_BACKLOG) -> None:
        super().__init__(max_backlog)
        self._arrived = asyncio.Event()

    def put(self, item: str | Reconnected) -> None:
        super().put(item)
        self._arrived.set()

    async def get(self) -> str | Reconnected:
        """The next frame, waiting for it; RECONNECTED where frames may be missing. Raises Overflowed."""
        while (item := self.take()) is None:
            self._arrived.clear()
            await self._arrived.wait()
        return item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | Reconnected:
        return await self.get()


class Join(NamedTuple):
    """A subscription that waits for Redis to confirm it."""

    receiver: Receiver
    confirmed: asyncio.Future[None]


class Hub:
    """The Pub/Sub connection of one process and the table of who listens to what.

    `redis` says where and how to connect and publishes the hub's own checks; the hub makes its Pub/Sub connection
    itself. Everything but `__aenter__` must be called in the event loop that entered it.
    """

    def __init__(self, redis: Redis, *, prefix: str = PREFIX, silence_s: float = SILENCE_S) -> None:
        self._redis = redis
        self._prefix = prefix
        self._silence_s = silence_s
        self._members: dict[bytes, set[Receiver]] = {}
        self._joined: dict[Receiver, set[bytes]] = {}
        # Channels whose members changed since Redis was last told, and joins that wait for it to be told.
        self._changed: set[bytes] = set()
        self._joins: list[Join] = []
        self._dirty = asyncio.Event()
        # What Redis was told on the current connection, and which joins each PING on its way will confirm.
        self._subscribed: set[bytes] = set()
        self._pings: dict[bytes, list[Join]] = {}
        self._heard_at = 0.0
        self._connected = asyncio.Event()
        # The event that was delivered last, and to whom: its copies on other channels follow at once.
        self._event_id = b""
        self._frame = ""
        self._reached: set[Receiver] = set()
        # Of events of this process, which had them before their copies come from Redis: who did.
        self._had: dict[bytes, set[Receiver]] = {}
        self.loop = Loop("hub", self._stay_connected)

    @property
    def connected(self) -> bool:
        """Whether all subscriptions stand, as far as is known."""
        return self._connected.is_set()

    async def __aenter__(self) -> Self:
        """Start; goes on after CONNECT_TIMEOUT_S without Redis and keeps trying."""
        await self.loop.__aenter__()
        await within(CONNECT_TIMEOUT_S, self._connected.wait())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.loop.__aexit__(kind, error, trace)
        self._connected.clear()

    async def join(self, receiver: Receiver, channels: Iterable[str], timeout_s: float = JOIN_TIMEOUT_S) -> bool:
        """Listen to `channels` as well, from no later than the return.

        False if Redis did not confirm it within `timeout_s` seconds: the receiver gets RECONNECTED as soon as it does.
        Whoever is cancelled in here calls `leave` all the same.
        """
        names = {wire_name(channel, self._prefix) for channel in channels}
        self._joined.setdefault(receiver, set()).update(names)
        for name in names:
            self._members.setdefault(name, set()).add(receiver)
        confirmed = asyncio.get_running_loop().create_future()
        self._joins.append(Join(receiver, confirmed))
        self._note(names)
        return await within(timeout_s, confirmed)

    def leave(self, receiver: Receiver, channels: Iterable[str] | None = None) -> None:
        """Stop listening to `channels`, or to all; nothing is received any more. Leaving twice is no error."""
        joined = self._joined.get(receiver, set())
        names = set(joined) if channels is None else {wire_name(channel, self._prefix) for channel in channels} & joined
        joined -= names
        if not joined:
            self._joined.pop(receiver, None)
            for reached in (self._reached, *self._had.values()):
                reached.discard(receiver)
        for name in names:
            members = self._members[name]
            members.discard(receiver)
            if not members:
                del self._members[name]
        self._note(names)

    def deliver(self, events: Iterable[Announced]) -> None:
        """Hand events of this process to its own members at once. They are published as well, for all other processes.

        What comes back from Redis goes to those who have not had it yet.
        """
        for event in events:
            had: set[Receiver] = set()
            for channel in event.channels:
                fresh = self._members.get(wire_name(channel, self._prefix), set()) - had
                had |= fresh
                for receiver in fresh:
                    receiver.put(event.frame)
            if had:
                self._had[event.id.bytes] = had
        # Those of which Redis lost the copies.
        while len(self._had) > MAX_HAD:
            del self._had[next(iter(self._had))]

    async def check(self, timeout_s: float = 1.0) -> bool:
        """Whether a message takes the whole way, from publishing to a subscriber, within `timeout_s` seconds."""
        canary, token = Subscriber(), os.urandom(16).hex()
        try:
            async with asyncio.timeout(timeout_s):
                await self.join(canary, [f"canary:{token}"])
                await publish(self._redis, [f"canary:{token}"], token, prefix=self._prefix)
                while await canary.get() != token:
                    pass
        except UNAVAILABLE:
            return False
        finally:
            self.leave(canary)
        return True

    def _note(self, names: set[bytes]) -> None:
        self._changed |= names
        self._dirty.set()

    async def _stay_connected(self) -> None:
        """Connect, serve, and begin again, until cancelled. No error ends it."""
        backoff_s, told = 0.05, False
        while True:
            try:
                await self._serve()
            except* UNAVAILABLE as lost:
                # By type only: what Redis says quotes the command, and with it the frame.
                if self.connected or not told:
                    logger.warning("lost the Pub/Sub connection (%s), trying again", name_first(lost))
            except* Exception as error:
                logger.error("the Pub/Sub connection broke on an unexpected error, trying again", exc_info=error)
            told = True
            backoff_s = 0.05 if self.connected else min(backoff_s * 2, MAX_BACKOFF_S)
            self._connected.clear()
            await asyncio.sleep(backoff_s)

    async def _serve(self) -> None:
        """One connection, from its subscriptions to its end, which is always an exception."""
        connection = make_connection(self._redis)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py gives it no annotations
            self._subscribed.clear()
            self._changed = set(self._members)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(connection))
                tasks.create_task(self._read(connection))
        finally:
            self._joins = [join for joins in self._pings.values() for join in joins] + self._joins
            self._pings.clear()
            await connection.disconnect(nowait=True)

    async def _write(self, connection: AbstractConnection) -> None:
        """Tell Redis what changed, and ask for a sign of life after every change and at least every few seconds."""
        now = asyncio.get_running_loop().time
        self._heard_at = now()
        for number in itertools.count():
            if now() - self._heard_at > self._silence_s:
                raise TimeoutError("no sign of life")
            self._dirty.clear()
            changed, self._changed = self._changed, set()
            wanted = {name for name in changed if name in self._members}
            new, gone = wanted - self._subscribed, (changed - wanted) & self._subscribed
            self._subscribed |= new
            self._subscribed -= gone
            ping = b"%d" % number
            self._pings[ping], self._joins = self._joins, []
            commands = [*in_batches(b"SUBSCRIBE", new), *in_batches(b"UNSUBSCRIBE", gone), (b"PING", ping)]
            async with asyncio.timeout(self._silence_s):
                # No check of redis-py's own, which would read an answer that is meant for _read.
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            await within(self._silence_s / 3, self._dirty.wait())

    async def _read(self, connection: AbstractConnection) -> None:
        messages = reached = 0
        while True:
            # Without a time limit of its own, which took as long as all the rest: `_write` looks after that.
            answer = await connection.read_response()
            self._heard_at = asyncio.get_running_loop().time()
            match answer:
                case [b"message", bytes(name), bytes(envelope)]:
                    messages += 1
                    reached += self._deliver(name, envelope)
                case [b"pong", bytes(ping)] | bytes(ping):  # the second form while there is no subscription
                    self._confirm(self._pings.pop(ping, []))
            # What lies in the buffer is read without waiting. Without this pause a burst of frames would keep
            # the readers from their queues until these overflow, and everybody else from the loop.
            if messages >= READ_AT_ONCE or reached >= REACH_AT_ONCE:
                messages = reached = 0
                await asyncio.sleep(0)

    def _confirm(self, joins: list[Join]) -> None:
        if not self._connected.is_set():
            self._connected.set()
            logger.info("the Pub/Sub connection stands, %d channels", len(self._subscribed))
            for receiver in self._joined:
                receiver.put(RECONNECTED)
        for join in joins:
            if not join.confirmed.done():
                join.confirmed.set_result(None)
            elif join.receiver in self._joined:
                join.receiver.put(RECONNECTED)  # it had given up waiting, and may have missed something since

    def _deliver(self, name: bytes, envelope: bytes) -> int:
        """Hand a frame to the members of a channel, but for those whom another copy has just reached; to how many.

        The copies of one event stand in one transaction and so come one after the other. Counting the reached,
        rather than the channels that a receiver is on, loses nothing when it joins or leaves in between.
        """
        event_id = envelope[:EVENT_ID_BYTES]
        if event_id != self._event_id:
            try:
                frame = envelope[EVENT_ID_BYTES:].decode()
            except UnicodeDecodeError:
                logger.warning("dropped a message that is no frame")
                return 0
            self._event_id, self._frame, self._reached = event_id, frame, self._had.pop(event_id, set())
        # A set of its own, because whoever is reached may leave.
        fresh = self._members.get(name, set()) - self._reached
        self._reached |= fresh
        for receiver in fresh:
            receiver.put(self._frame)
        return len(fresh)


def make_connection(redis: Redis) -> AbstractConnection:
    """A connection like those of `redis`' pool, but one that may be silent for long and never reconnects by itself."""
    pool = redis.connection_pool
    options: dict[str, Any] = pool.connection_kwargs | {
        "client_name": "secureblogs-hub",
        "decode_responses": False,
        "health_check_interval": 0,
        "protocol": 2,
        "retry": None,
        "retry_on_error": [],
        "retry_on_timeout": False,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": None,
    }
    connection: AbstractConnection = pool.connection_class(**options)
    return connection


def in_batches(command: bytes, names: set[bytes]) -> Iterator[tuple[bytes, ...]]:
    ordered = list(names)
    for start in range(0, len(ordered), SUBSCRIBE_AT_ONCE):
        yield command, *ordered[start : start + SUBSCRIBE_AT_ONCE]


async def within(seconds: float, awaitable: Any) -> bool:
    """Wait for it; False if it took longer."""
    try:
        async with asyncio.timeout(seconds):
            await awaitable
    except TimeoutError:
        return False
    return True


def name_first(group: BaseExceptionGroup[Exception]) -> str:
    """The type of the error that came first, out of all nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__
