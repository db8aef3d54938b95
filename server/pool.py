"""Connections to Postgres, each lent to one statement or transaction at a time.

asyncpg's own pool takes as long to lend a connection and to have it back as asyncpg takes for a short statement: a
return is a task of its own, under a shield and a timeout, for the sake of resets and waits that nothing here needs. So
this one hands connections on at once, and whatever may be in an unknown state is closed and replaced.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

CLOSE_WITHIN_S = 5


class Pool:
    """At most `size` connections, opened as they are needed, and kept. The one that was used last goes first."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]], size: int) -> None:
        self._connect = connect
        self._size = size
        self._idle: list[asyncpg.Connection] = []
        self._open: set[asyncpg.Connection] = set()
        self._opening = 0
        # Whoever waits is given a connection, or None: there is room to open one.
        self._waiting: deque[asyncio.Future[asyncpg.Connection | None]] = deque()
        # A task needs somebody who holds it.
        self._ending: set[asyncio.Task[None]] = set()
        self._closing = False
        self._closed = asyncio.Event()

    def get_max_size(self) -> int:
        return self._size

    def get_size(self) -> int:
        return len(self._open)

    def get_idle_size(self) -> int:
        return len(self._idle)

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        connection = self._take() or await self.acquire()
        try:
            rows: list[asyncpg.Record] = await connection.fetch(sql, *args)
        except BaseException as error:
            self._had_error(connection, error)
            raise
        self.release(connection)
        return rows

    async def fetchrow(self, sql: str, *args: Any) -> asyncpg.Record | None:
        connection = self._take() or await self.acquire()
        try:
            row: asyncpg.Record | None = await connection.fetchrow(sql, *args)
        except BaseException as error:
            self._had_error(connection, error)
            raise
        self.release(connection)
        return row

    async def fetchval(self, sql: str, *args: Any) -> Any:
        row = await self.fetchrow(sql, *args)
        return row[0] if row else None

    async def execute(self, sql: str, *args: Any) -> str:
        connection = self._take() or await self.acquire()
        try:
            tag: str = await connection.execute(sql, *args)
        except BaseException as error:
            self._had_error(connection, error)
            raise
        self.release(connection)
        return tag

    async def executemany(self, sql: str, rows: list[Any]) -> None:
        connection = self._take() or await self.acquire()
        try:
            await connection.executemany(sql, rows)
        except BaseException as error:
            self._had_error(connection, error)
            raise
        self.release(connection)

    async def acquire(self) -> asyncpg.Connection:
        """A connection, for as long as it takes: until `release` or `discard`. Raises InterfaceError after `close`."""
        while True:
            if self._closing:
                raise asyncpg.InterfaceError("the pool is closed")
            connection = self._take()
            if connection is None and len(self._open) + self._opening < self._size:
                connection = await self._open_one()
            if connection is None:
                connection = await self._wait()
            if connection is not None:
                return connection

    def release(self, connection: asyncpg.Connection) -> None:
        """It is as it was when it was acquired: in no transaction, and nothing of it is still on its way."""
        if self._closing or connection.is_closed() or connection.is_in_transaction():
            self.discard(connection)
        elif not self._hand_on(connection):
            self._idle.append(connection)

    def discard(self, connection: asyncpg.Connection) -> None:
        """Nobody knows what state it is in: close it, once what was on its way is cancelled."""
        ending = asyncio.create_task(self._end(connection), name="close a connection to Postgres")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, connection: asyncpg.Connection) -> None:
        try:
            await connection.close(timeout=CLOSE_WITHIN_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()
        finally:
            self._forget(connection)

    def _forget(self, connection: asyncpg.Connection) -> None:
        self._open.discard(connection)
        self._make_room()

    async def close(self) -> None:
        """Wait until all that is lent is back, and close all."""
        self._closing = True
        while self._hand_on(None):
            pass
        idle, self._idle = self._idle, []
        for connection in idle:
            self.discard(connection)
        self._make_room()
        await self._closed.wait()

    def terminate(self) -> None:
        """Close all, whatever they are at."""
        self._closing = True
        self._idle.clear()
        for connection in list(self._open):
            connection.terminate()
            self._forget(connection)

    def _take(self) -> asyncpg.Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            connection.terminate()
            self._forget(connection)
        return None

    async def _open_one(self) -> asyncpg.Connection:
        self._opening += 1
        try:
            connection = await self._connect()
            self._open.add(connection)
        finally:
            self._opening -= 1
            if self._opening + len(self._open) < self._size:
                self._make_room()
        return connection

    async def _wait(self) -> asyncpg.Connection | None:
        waiting: asyncio.Future[asyncpg.Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            # What was given in the meantime is for somebody else.
            if waiting.done() and not waiting.cancelled():
                given = waiting.result()
                if given is None:
                    self._make_room()
                else:
                    self.release(given)
            raise

    def _hand_on(self, connection: asyncpg.Connection | None) -> bool:
        """Whether somebody was waiting for it."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(connection)
                return True
        return False

    def _make_room(self) -> None:
        if self._closing and not self._open and not self._opening:
            self._closed.set()
        self._hand_on(None)

    def _had_error(self, connection: asyncpg.Connection, error: BaseException) -> None:
        # Where Postgres has answered, if only that it won't, or was asked nothing, it waits for the next statement. One
        # that was cancelled or took too long may be on its way still.
        if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
            self.release(connection)
        else:
            self.discard(connection)
