"""The open WebSockets of this process: who they are, and what they lose when that changes.

One loop asks Postgres every few seconds, with one statement for all sockets, which credentials still
live and who is in which group. Revocations, expired sessions, disabled users and lost memberships take
effect within CHECK_EVERY_S even if no event told of them.
"""

import asyncio
import logging
from collections import Counter
from types import TracebackType
from typing import Self
from uuid import UUID

import msgspec

from server import credentials, database, groups, metrics
from server.channels import Hub, Subscriber
from server.credentials import Caller
from server.events import group_channel, user_channel
from server.loops import Loop

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 3.0


class Socket:
    """One open WebSocket: its owner, what it listens to, and whether its credential has ended."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.subscriber = Subscriber()
        self.group_ids: set[UUID] = set()
        self.credential_ended = asyncio.Event()


class MembershipFrame(msgspec.Struct):
    type: str
    group_id: UUID
    user_id: UUID


class Sockets:
    """`count` is of this process: the limit is there so that no user can use up a process, and each has its own."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._open: set[Socket] = set()
        self._count: Counter[UUID] = Counter()
        self.loop = Loop("sockets", self._check_for_ever)

    async def __aenter__(self) -> Self:
        await self.loop.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.loop.__aexit__(kind, error, trace)

    def count(self, user_id: UUID) -> int:
        return self._count[user_id]

    def add(self, socket: Socket) -> None:
        """Count the socket, and have its credential checked; `remove` must follow, whatever happens."""
        self._open.add(socket)
        metrics.websockets.inc()
        self._count[socket.caller.user_id] += 1

    async def subscribe(self, socket: Socket) -> None:
        """Listen for the socket's user and all its groups."""
        await self._hub.join(socket.subscriber, [user_channel(socket.caller.user_id)])
        # Only now, so that a group that is joined meanwhile is either found here or announced on that channel.
        await self._set_groups(socket, set(await groups.ids_of_member(socket.caller.user_id)))

    def remove(self, socket: Socket) -> None:
        self._hub.leave(socket.subscriber)
        self._open.discard(socket)
        metrics.websockets.dec()
        self._count[socket.caller.user_id] -= 1
        if not self._count[socket.caller.user_id]:
            del self._count[socket.caller.user_id]

    async def follow_membership(self, socket: Socket, frame: str) -> None:
        """Where the frame says that the socket's user came into a group or left it: listen accordingly."""
        if not frame.startswith('{"type":"group.member_'):
            return
        told = msgspec.json.decode(frame, type=MembershipFrame)
        if told.user_id == socket.caller.user_id:
            left = told.type == "group.member_removed"
            await self._set_groups(
                socket, socket.group_ids - {told.group_id} if left else socket.group_ids | {told.group_id}
            )

    async def _set_groups(self, socket: Socket, group_ids: set[UUID]) -> None:
        gone, new = socket.group_ids - group_ids, group_ids - socket.group_ids
        socket.group_ids = group_ids
        if gone:
            self._hub.leave(socket.subscriber, [group_channel(group_id) for group_id in gone])
        if new:
            await self._hub.join(socket.subscriber, [group_channel(group_id) for group_id in new])

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
        heard = {socket: set(socket.group_ids) for socket in sockets}
        live = await credentials.live_credentials({socket.caller for socket in sockets})
        members = await groups.memberships(list({socket.caller.user_id for socket in sockets}))
        for socket in sockets:
            if socket.caller not in live:
                socket.credential_ended.set()
        # All at once: while Redis is away, listening to a new group takes as long as it may.
        changed = [socket for socket in sockets if heard[socket] != members[socket.caller.user_id]]
        await asyncio.gather(
            *(self._correct(socket, heard[socket], members[socket.caller.user_id]) for socket in changed)
        )

    async def _correct(self, socket: Socket, heard: set[UUID], now: set[UUID]) -> None:
        if socket in self._open:
            # Only what differs between then and now: an event may have changed the rest meanwhile.
            await self._set_groups(socket, (socket.group_ids - (heard - now)) | (now - heard))
