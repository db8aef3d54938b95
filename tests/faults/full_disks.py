"""The disk of Postgres, or that of Valkey, is full while posts are written, and then has room again.

Each lies on a small file system in memory. This process does what `secureblogs up` does: it starts an engine that ends
again, ever more slowly.
"""

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from server import database
from server.embedded import Engine
from server.supervisor import Keeper
from tests.faults import checker
from tests.faults.ledger import Ledger
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import SEALED_WITHIN_S, NotHere, Site, is_ready, running_site
from tests.people import Person, person, until

POSTGRES_MIB = 256
VALKEY_MIB = 8
PER_SECOND = 30
HEALED_WITHIN_S = 30


@contextmanager
def small_site() -> Iterator[Site]:
    """A site on two small disks. Raises NotHere where none can be mounted."""
    if os.geteuid() != 0:
        raise NotHere("only root may mount the small disk that is to be filled")
    with tempfile.TemporaryDirectory(prefix="sb", ignore_cleanup_errors=True) as folder:
        data_dir = Path(folder) / "d"
        Path(folder).chmod(0o711)
        with mounted(data_dir, POSTGRES_MIB), mounted(data_dir / "valkey", VALKEY_MIB), running_site(data_dir) as site:
            yield site


@contextmanager
def mounted(place: Path, mib: int) -> Iterator[None]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=711", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"the small disk that is to be filled can't be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """To the last block."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue
        yield
    finally:
        ballast.unlink(missing_ok=True)


@asynccontextmanager
async def kept(engine: Engine) -> AsyncIterator[None]:
    keeper = Keeper(engine)

    async def tend() -> None:
        while True:
            keeper.tend(time.monotonic())
            await asyncio.sleep(0.1)

    keeping = asyncio.create_task(tend())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def run_postgres(site: Site, draw: Draw) -> Outcome:
    """Every other round its log is made to want room at once, which it can't do without: then it panics."""
    outcome = Outcome("disk-full-postgres")
    api = await site.whole()
    refusals = 0
    async with person(api.url) as alice, person(api.url, "Bob") as bob, kept(site.engines.postgres):
        for number in range(draw.rounds):
            outcome.rounds += 1
            ledger = Ledger(alice, await alice.found_group(bob))
            async with ledger.writing(PER_SECOND):
                await asyncio.sleep(draw.chance.uniform(0.2, 0.5))
                with filled(site.engines.data_dir):
                    if number % 2 == 0:
                        await want_room_for_the_log(site)
                    await ledger.until_refused()
                    await asyncio.sleep(draw.chance.uniform(0.2, 2))
                freed_at, before = time.monotonic(), len(ledger.acknowledged)
                await ledger.until_more_than(before)
                await until(lambda: is_ready(api.url))
                outcome.healed(time.monotonic() - freed_at, HEALED_WITHIN_S)
            refusals += ledger.refusals
            await compare(outcome, site, ledger, [alice, bob])
    outcome.notes.append(f"{refusals} answers 503, each with Retry-After")
    return outcome


async def want_room_for_the_log(site: Site) -> None:
    try:
        postgres = await site.postgres()
        for _ in range(4):
            await postgres.execute("SELECT pg_switch_wal()")
            await postgres.execute("SELECT pg_logical_emit_message(true, 'faults', repeat('x', 100))")
        await postgres.close()
    except (*database.UNAVAILABLE, asyncpg.PostgresError):
        pass  # It has panicked, as it should.


async def compare(outcome: Outcome, site: Site, ledger: Ledger, readers: list[Person]) -> None:
    await ledger.repeat(10)
    postgres = await site.postgres()
    sealed = await checker.until_none_is_pending(postgres, ledger.group_id, SEALED_WITHIN_S)
    outcome.check(sealed, "posts are pending")
    await checker.compare(outcome, ledger, postgres, readers, opened=20)
    await postgres.close()


async def run_valkey(site: Site, draw: Draw) -> Outcome:
    """Posts are accepted all the while: Postgres alone is needed for that."""
    outcome = Outcome("disk-full-valkey")
    api = await site.whole()
    async with person(api.url) as alice, person(api.url, "Bob") as bob, kept(site.engines.valkey):
        for _ in range(draw.rounds):
            outcome.rounds += 1
            ledger = Ledger(alice, await alice.found_group(bob))
            async with ledger.writing(PER_SECOND):
                await asyncio.sleep(draw.chance.uniform(0.2, 0.5))
                with filled(site.engines.data_dir / "valkey"):
                    await until(lambda: refuses_writes(site))
                    await asyncio.sleep(draw.chance.uniform(0.2, 2))
                    outcome.check(not await is_ready(api.url), "it is ready, although Valkey takes nothing")
                freed_at = time.monotonic()
                await until(lambda: is_ready(api.url), SEALED_WITHIN_S)
                outcome.healed(time.monotonic() - freed_at, HEALED_WITHIN_S)
            outcome.expect((len(ledger.unanswered), ledger.refusals), (0, 0), "posts refused because of Valkey's disk")
            await compare(outcome, site, ledger, [alice, bob])
    return outcome


async def refuses_writes(site: Site) -> bool:
    async with site.redis() as redis:
        info: dict[str, str] = await redis.info("persistence")
        return info["aof_last_write_status"] != "ok"
