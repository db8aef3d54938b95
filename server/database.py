"""Postgres: one pool per process, transactions, and SQL with asyncpg's own placeholders.

Piccolo owns tables, migrations, the engine and its transactions. The domain's statements need row
locks, `RETURNING`, arrays and plans that stay the same on big tables, so they are written in SQL
and run here, on the connection of the current transaction or on the pool.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Literal, NamedTuple, cast

import asyncpg
from piccolo.engine.postgres import PostgresEngine, PostgresTransaction

from server.lasting import lasting
from server.pool import Pool

# Any fixed number: it only has to be the same in every process that migrates.
MIGRATION_LOCK = 0x5EC0_B106

CLOSE_WITHIN_S = 5

# What a query raises while Postgres is away, starting, or ending its connections.
UNAVAILABLE: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.OperatorInterventionError,
    asyncpg.DiskFullError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class Transaction(PostgresTransaction):
    """Piccolo's transaction, which also lets go of its connection when that connection has died.

    The original leaves the context variable set if `ROLLBACK` or `COMMIT` raises, and every later
    query of the same task then fails on the dead connection, for ever.
    """

    async def __aenter__(self) -> "Transaction":
        self.connection = await self.get_connection()
        try:
            self.transaction = self.connection.transaction()
            await self.begin()  # type: ignore[no-untyped-call]  # Piccolo's
        except BaseException:
            await self._let_go()
            raise
        self.context = self.engine.current_transaction.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        try:
            if error is None:
                await self.commit()  # type: ignore[no-untyped-call]  # Piccolo's
            else:
                with suppress(*UNAVAILABLE):
                    await self.rollback()  # type: ignore[no-untyped-call]  # Piccolo's
        finally:
            self.engine.current_transaction.reset(self.context)
            await self._let_go()
        return False

    async def get_connection(self) -> asyncpg.Connection:
        """One of the pool's; migrations run before there is a pool."""
        self.pool = cast("Pool | None", self.engine.pool)
        return await self.pool.acquire() if self.pool else await _connect()

    async def _let_go(self) -> None:
        if self.pool is None:
            with suppress(*UNAVAILABLE):
                await self.connection.close()
        elif self._committed or self._rolled_back:
            self.pool.release(self.connection)
        else:
            self.pool.discard(self.connection)


class Engine(PostgresEngine):
    async def check_version(self) -> None:
        """Does nothing: the original opens a connection at import, only to print a warning."""

    def transaction(self, allow_nested: bool = False) -> Transaction:
        # A nested transaction of Piccolo's is a no-op whose caught errors still commit.
        return Transaction(engine=self, allow_nested=allow_nested)


ENGINE = Engine(config={})


def configure(database_url: str) -> None:
    """Name the database that `open_pool`, `migrate` and Piccolo's own commands connect to."""
    ENGINE.config = {
        "dsn": database_url,
        "server_settings": {
            "application_name": "secureblogs",
            "jit": "off",
            # A statement's plan is kept for as long as nobody analyzes the tables. One made while they were small would
            # read them through for each post of a young server's first busy minutes.
            "enable_seqscan": "off",
            # A host that vanished from the network must not keep its locks for hours.
            "tcp_keepalives_idle": "30",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
            "idle_in_transaction_session_timeout": "300s",
        },
        "timeout": 10,
        "command_timeout": 60,
    }


async def _connect() -> asyncpg.Connection:
    return await asyncpg.connect(**ENGINE.config)


@asynccontextmanager
async def open_pool(database_url: str, size: int) -> AsyncIterator[None]:
    """The pool of this process: at most `size` connections, opened as they are needed, the first of them now."""
    configure(database_url)
    if ENGINE.pool is not None:
        raise RuntimeError("this process has a pool already")
    pool = Pool(_connect, size)
    pool.release(await pool.acquire())
    # In the place of asyncpg's, for transactions and this module. Queries of Piccolo's own, which nothing here makes,
    # would need one that has `async with pool.acquire()`.
    ENGINE.pool = pool
    try:
        yield
    finally:
        ENGINE.pool = None
        await _close(pool)


async def _close(pool: Pool) -> None:
    try:
        async with asyncio.timeout(CLOSE_WITHIN_S):
            await pool.close()
    except TimeoutError:
        pool.terminate()


class PoolUse(NamedTuple):
    """Connections of this process' pool."""

    limit: int
    open: int
    used: int


def pool_use() -> PoolUse:
    pool = ENGINE.pool
    if pool is None:
        return PoolUse(0, 0, 0)
    return PoolUse(pool.get_max_size(), pool.get_size(), pool.get_size() - pool.get_idle_size())


def transaction() -> Transaction:
    """`async with transaction():` READ COMMITTED; never nested."""
    return ENGINE.transaction()


def _executor() -> Any:
    current = ENGINE.current_transaction.get()
    if current:
        return current.connection
    if ENGINE.pool is None:
        raise OSError("there is no open connection pool")
    return ENGINE.pool


async def fetch(sql: str, *args: Any) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await _executor().fetch(sql, *args)
    return rows


async def fetchrow(sql: str, *args: Any) -> asyncpg.Record | None:
    return await _executor().fetchrow(sql, *args)


async def fetchval(sql: str, *args: Any) -> Any:
    return await _executor().fetchval(sql, *args)


async def execute(sql: str, *args: Any) -> str:
    """The command tag, for example `UPDATE 3`."""
    tag: str = await _executor().execute(sql, *args)
    return tag


async def executemany(sql: str, rows: list[Any]) -> None:
    await _executor().executemany(sql, rows)


async def copy_rows(table: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    """COPY into `table`, inside the current transaction: the fastest way in for thousands of rows."""
    await _executor().copy_records_to_table(table, columns=columns, records=rows)


async def migrate(database_url: str) -> None:
    """Bring the schema up to date; of several processes at once, one does it and the others wait."""
    with lasting():
        from piccolo.apps.migrations.commands.forwards import run_forwards  # noqa: PLC0415 - slow, and only needed here

    configure(database_url)
    guard = await asyncpg.connect(database_url)
    try:
        await guard.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        result = await run_forwards(app_name="all")
        if not result.success:
            raise RuntimeError(f"a migration failed: {result.message}")
    finally:
        await guard.close()


async def applied_migrations() -> set[str]:
    """Ids of the migrations that the database has had."""
    try:
        return {row["name"] for row in await fetch("SELECT name FROM migration WHERE app_name = 'secureblogs'")}
    except asyncpg.UndefinedTableError:
        return set()
