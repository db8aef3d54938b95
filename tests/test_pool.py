"""The pool of connections to Postgres: lent to one at a time, handed on, and replaced where something is amiss."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import pytest

from server.pool import Pool
from server.settings import Settings

SIZE = 2


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    pool = Pool(partial(asyncpg.connect, settings.database_url), SIZE)
    yield pool
    pool.terminate()
    await pool.close()


async def backend(pool: Pool) -> int:
    pid: int = await pool.fetchval("SELECT pg_backend_pid()")
    return pid


async def until_gone(pool: Pool, pid: int) -> None:
    async with asyncio.timeout(5):
        while await pool.fetchval("SELECT TRUE FROM pg_stat_activity WHERE pid = $1", pid):  # noqa: ASYNC110 - Postgres tells nobody
            await asyncio.sleep(0.01)


async def test_statements_one_after_the_other_use_one_connection(pool: Pool) -> None:
    assert len({await backend(pool) for _ in range(5)}) == 1
    assert (pool.get_size(), pool.get_idle_size()) == (1, 1)


async def test_many_at_once_use_no_more_connections_than_there_may_be(pool: Pool) -> None:
    pids = await asyncio.gather(*(pool.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.01)") for _ in range(20)))
    assert len(pids) == 20
    assert len(set(pids)) == SIZE
    assert (pool.get_size(), pool.get_idle_size()) == (SIZE, SIZE)


async def test_whoever_waited_longest_is_next(pool: Pool) -> None:
    lent = [await pool.acquire() for _ in range(SIZE)]
    order: list[int] = []

    async def use(number: int) -> None:
        connection = await pool.acquire()
        order.append(number)
        pool.release(connection)

    waiting = [asyncio.create_task(use(number)) for number in range(4)]
    await asyncio.sleep(0)
    pool.release(lent.pop())
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3]
    pool.release(lent.pop())


async def test_who_gives_up_waiting_takes_no_connection_along(pool: Pool) -> None:
    lent = [await pool.acquire() for _ in range(SIZE)]
    waiting = [asyncio.create_task(pool.acquire()) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    # Given, and cancelled before it could be taken.
    pool.release(lent.pop())
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    pool.release(lent.pop())
    assert pool.get_idle_size() == SIZE


async def test_refused_statement_costs_no_connection(pool: Pool) -> None:
    pid = await backend(pool)
    with pytest.raises(asyncpg.UndefinedTableError):
        await pool.execute("SELECT * FROM nowhere")
    with pytest.raises(asyncpg.DataError):
        await pool.fetch("SELECT $1::int", "a")
    assert await backend(pool) == pid


async def test_cancelled_statement_ends_in_postgres_and_its_connection_with_it(pool: Pool) -> None:
    pid = await backend(pool)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pool.execute("SELECT pg_sleep(60)")
    assert await backend(pool) != pid
    await until_gone(pool, pid)
    # Postgres has ended it before its own end here is closed.
    async with asyncio.timeout(5):
        while pool.get_size() > 1:  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0.01)


async def test_transaction_that_was_left_open_is_nobody_elses(pool: Pool) -> None:
    connection = await pool.acquire()
    pid = connection.get_server_pid()
    await connection.execute("BEGIN")
    pool.release(connection)
    assert await backend(pool) != pid
    await until_gone(pool, pid)


async def test_connection_that_died_idle_is_replaced(pool: Pool) -> None:
    dead, other = [await pool.acquire() for _ in range(SIZE)]
    pool.release(dead)
    await other.execute("SELECT pg_terminate_backend($1, 5000)", dead.get_server_pid())
    async with asyncio.timeout(5):
        while not dead.is_closed():  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0.01)
    assert await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(5))) == [1] * 5
    pool.release(other)


async def test_who_waits_is_served_after_a_connection_could_not_be_made(settings: Settings) -> None:
    failures = [OSError("refused")] * 3

    async def connect() -> asyncpg.Connection:
        await asyncio.sleep(0.01)
        if failures:
            raise failures.pop()
        return await asyncpg.connect(settings.database_url)

    pool = Pool(connect, 1)
    async with asyncio.timeout(5):
        found = await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(5)), return_exceptions=True)
        assert sorted(map(str, found)) == ["1", "1", "refused", "refused", "refused"]
        await pool.close()


async def test_closing_waits_for_what_is_lent_and_lends_no_more(pool: Pool) -> None:
    lent = [await pool.acquire() for _ in range(SIZE)]
    waiting = asyncio.create_task(pool.fetchval("SELECT 1"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(pool.close())
    with pytest.raises(asyncpg.InterfaceError):
        await waiting
    with pytest.raises(asyncpg.InterfaceError):
        await pool.acquire()
    assert await lent[0].fetchval("SELECT 1") == 1
    assert not closing.done()
    for connection in lent:
        pool.release(connection)
    async with asyncio.timeout(5):
        await closing
    assert all(connection.is_closed() for connection in lent)
