"""The open WebSockets of this process: who they are, what they are told, and what they lose when that changes.

A frame is written to a socket at once, by whoever brings it, as long as nothing stands in its way. That is so while its
peer takes what it is sent, and once it has caught up. Whatever else there is to do for it takes time, and meanwhile a
task of its own tells it what waits; the task ends when nothing is left. So a socket that is idle has no task but the
one that its connection was given, which reads.

One loop asks Postgres every few seconds, with one statement for all sockets, which credentials still
live and who is in which group. Revocations, expired sessions, disabled users and lost memberships take
effect within CHECK_EVERY_S even if no event told of them. Another sends all of them their pings.
"""

import asyncio
import functools
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import UUID

import msgspec

from server import credentials, database, groups, metrics
from server.channels import RECONNECTED, Backlog, Hub, Reconnected
from server.connections import text_frame
from server.credentials import Caller
from server.events import group_channel, user_channel
from server.loops import Loop

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 3.0
PING_EVERY_S = 25.0
PING = '{"type":"ping"}'
MEMBERSHIP = '{"type":"group.member_'
NO_GROUPS: frozenset[UUID] = frozenset()


class CredentialEnded(Exception):
    """What the socket was opened with is no longer good."""


class Connection(Protocol):
    """What `server.connections.SocketConnection` gives."""

    def write(self, frames: bytes, /) -> bool: ...
    def ping(self, frames: bytes, /) -> bool: ...
    def forget_handshake(self) -> None: ...


class Socket:
    """One open WebSocket: its owner, what it listens to, and what it is yet to be told.

    `tell` takes what waits, one by one, and tells it. Its error, and whatever else ends the socket, is raised by
    `listen`.
    """

    __slots__ = ("_backlog", "_connection", "_end", "_listening", "_tell", "_telling", "caller", "group_ids", "since")

    def __init__(
        self,
        caller: Caller,
        since: datetime | None,
        connection: Connection,
        tell: Callable[["Socket"], Coroutine[Any, Any, None]],
    ) -> None:
        self.caller = caller
        self.since = since
        """From when on decisions are to be replayed."""
        self.group_ids = NO_GROUPS
        self._connection = connection
        self._tell = tell
        self._backlog: Backlog | None = None
        self._telling: asyncio.Task[None] | None = None
        self._end: Exception | None = None
        self._listening: asyncio.Timeout | None = None

    def put(self, item: str | Reconnected) -> None:
        """Tell it, or have it told when its turn comes."""
        if self._backlog is None:
            if item is not RECONNECTED and self.move_by(item) is None and self._connection.write(encoded(item)):
                return
            self._backlog = Backlog()
            self._telling = asyncio.create_task(self._tell(self), name="telling a socket")
            self._telling.add_done_callback(self._note_end_of_telling)
        self._backlog.put(item)

    def take(self) -> str | Reconnected | None:
        """What waits, for `tell`; after None the next is written at once again. Raises Overflowed."""
        item = self._backlog.take() if self._backlog else None
        if item is None:
            self._backlog = self._telling = None
        return item

    def move_by(self, frame: str) -> "MembershipFrame | None":
        """How its user came into a group or left one, if the frame tells of that."""
        told = membership(frame) if frame.startswith(MEMBERSHIP) else None
        return told if told is not None and told.user_id == self.caller.user_id else None

    def ping(self) -> None:
        """In a frame, and so that the connection answers by itself."""
        if self._backlog is not None or not self._connection.ping(encoded(PING)):
            self.put(PING)

    async def listen(self, reading: Awaitable[None]) -> None:
        """Catch up, and be told what comes, until `reading` ends or something ends the socket, which is raised."""
        self.put(RECONNECTED)
        try:
            async with asyncio.timeout(None if self._end is None else 0) as self._listening:
                await reading
        except TimeoutError:
            if self._end is None:
                raise
        finally:
            self._listening = None
            if self._telling is not None:
                self._telling.cancel()
                await asyncio.gather(self._telling, return_exceptions=True)
        if self._end is not None:
            raise self._end

    def end(self, error: Exception) -> None:
        """Have `listen` raise this, unless something else has ended it before."""
        if self._end is None:
            self._end = error
            if self._listening is not None:
                self._listening.reschedule(asyncio.get_running_loop().time())

    def _note_end_of_telling(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.end(error)


# Of the last frame alone, which so many sockets at a time are told.
encoded = functools.lru_cache(maxsize=1)(text_frame)


class MembershipFrame(msgspec.Struct):
    type: str
    group_id: UUID
    user_id: UUID


@functools.lru_cache(maxsize=1)
def membership(frame: str) -> MembershipFrame | None:
    try:
        return msgspec.json.decode(frame, type=MembershipFrame)
    except msgspec.DecodeError:
        return None


class Sockets:
    """`count` is of this process: the limit is there so that no user can use up a process, and each has its own."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # With the time of the loop at which each is to be pinged next, in that order.
        self._open: dict[Socket, float] = {}
        self._count: Counter[UUID] = Counter()
        self.loops = (Loop("sockets", self._check_for_ever), Loop("pings", self._ping_for_ever))

    async def __aenter__(self) -> Self:
        for loop in self.loops:
            await loop.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for loop in self.loops:
            await loop.__aexit__(kind, error, trace)

    def count(self, user_id: UUID) -> int:
        return self._count[user_id]

    def add(self, socket: Socket) -> None:
        """Count the socket, and have its credential checked; `remove` must follow, whatever happens."""
        self._open[socket] = asyncio.get_running_loop().time() + PING_EVERY_S
        metrics.websockets.inc()
        self._count[socket.caller.user_id] += 1

    async def subscribe(self, socket: Socket) -> None:
        """Listen for the socket's user and all its groups."""
        await self._hub.join(socket, [user_channel(socket.caller.user_id)])
        # Only now, so that a group that is joined meanwhile is either found here or announced on that channel.
        await self._set_groups(socket, frozenset(await groups.ids_of_member(socket.caller.user_id)))

    def remove(self, socket: Socket) -> None:
        self._hub.leave(socket)
        self._open.pop(socket, None)
        metrics.websockets.dec()
        self._count[socket.caller.user_id] -= 1
        if not self._count[socket.caller.user_id]:
            del self._count[socket.caller.user_id]

    async def follow_membership(self, socket: Socket, frame: str) -> None:
        """Where the frame says that the socket's user came into a group or left it: listen accordingly."""
        told = socket.move_by(frame)
        if told is not None:
            left = told.type == "group.member_removed"
            await self._set_groups(
                socket, socket.group_ids - {told.group_id} if left else socket.group_ids | {told.group_id}
            )

    async def _set_groups(self, socket: Socket, group_ids: frozenset[UUID]) -> None:
        gone, new = socket.group_ids - group_ids, group_ids - socket.group_ids
        socket.group_ids = group_ids
        if gone:
            self._hub.leave(socket, [group_channel(group_id) for group_id in gone])
        if new:
            await self._hub.join(socket, [group_channel(group_id) for group_id in new])

    async def _check_for_ever(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            try:
                await self._check()
            except database.UNAVAILABLE as error:
                # Nobody's rights can change in Postgres while it is away.
                logger.warning("sockets are not checked", extra={"error": type(error).__name__})
            except Exception:
                logger.exception("sockets are not checked")

    async def _check(self) -> None:
        sockets = list(self._open)
        if not sockets:
            return
        heard = [(socket.caller.user_id, socket.group_ids) for socket in sockets]
        ended = await credentials.ended_credentials([socket.caller for socket in sockets])
        for socket in sockets if ended else ():
            if socket.caller in ended:
                socket.end(CredentialEnded())
        known = dict(heard)
        moved = await groups.who_has_moved(known)
        if len(known) < len(sockets):
            # Of two sockets of a user one may know more than the other for a moment.
            moved |= {user_id for user_id, group_ids in heard if group_ids != known[user_id]}
        if not moved:
            return
        members = await groups.memberships(list(moved))
        # All at once: while Redis is away, listening to a new group takes as long as it may.
        await asyncio.gather(
            *(
                self._correct(socket, group_ids, members[user_id])
                for socket, (user_id, group_ids) in zip(sockets, heard, strict=True)
                if user_id in moved and group_ids != members[user_id]
            )
        )

    async def _correct(self, socket: Socket, heard: frozenset[UUID], now: set[UUID]) -> None:
        if socket in self._open:
            # Only what differs between then and now: an event may have changed the rest meanwhile.
            await self._set_groups(socket, (socket.group_ids - (heard - now)) | (now - heard))

    async def _ping_for_ever(self) -> None:
        while True:
            await asyncio.sleep(PING_EVERY_S / 25)
            now = asyncio.get_running_loop().time()
            for socket in self._due(now):
                # Behind all others: they stand in the order in which they are due.
                del self._open[socket]
                self._open[socket] = now + PING_EVERY_S
                socket.ping()

    def _due(self, now: float) -> list[Socket]:
        return list(itertools.takewhile(lambda socket: self._open[socket] <= now, self._open))
