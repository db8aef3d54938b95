"""The clock of one process is an hour off: what expires does so by the clock of the database, and nothing else waits.

A library of a few lines, built with the C compiler that is there and loaded into that process alone, moves the time of
day; how time passes stays as it is.
"""

import contextlib
import shutil
import subprocess
import time
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx

from tests.faults import checker
from tests.faults.ledger import Ledger
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import SEALED_WITHIN_S, NotHere, Site
from tests.jwts import token_of
from tests.people import Person, good, person, until

HOUR_S = 3600
EXPIRES_IN_S = 2.0
# What asking takes, on a busy machine.
LATE_BY_S = 2.0
POSTS = 20

SHIFTED_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long offset(void) {
    const char *seconds = getenv("CLOCK_OFFSET_S");
    return seconds ? atol(seconds) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*original)(clockid_t, struct timespec *);
    if (!original) original = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = original(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *kept) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (kept) *kept = precise.tv_sec;
    return precise.tv_sec;
}
"""


def shifted(folder: Path, seconds: int) -> dict[str, str]:
    """What starts a process with such a clock. Raises NotHere."""
    source, library = folder / "clock.c", folder / "clock.so"
    if not library.exists():
        compiler = shutil.which("cc")
        if compiler is None:
            raise NotHere("there is no C compiler for the library that moves a clock")
        source.write_text(SHIFTED_CLOCK)
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], capture_output=True, check=False
        )
        if done.returncode:
            raise NotHere("the C compiler can't build the library that moves a clock")
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET_S": str(seconds)}


async def run(site: Site, draw: Draw) -> Outcome:
    outcome = Outcome("clock-off")
    for _ in range(draw.rounds):
        for seconds in draw.chance.sample((HOUR_S, -HOUR_S), draw.of(2)):
            outcome.rounds += 1
            await with_an_api_off(outcome, site, seconds)
            await with_a_worker_off(outcome, site, seconds)
    outcome.notes.append("by a library of our own")
    return outcome


async def with_an_api_off(outcome: Outcome, site: Site, seconds: int) -> None:
    await site.whole()
    api = await site.another_api(environ=shifted(site.logs, seconds))
    postgres = await site.postgres()
    off_by = await clock_of(api.url) - time.time()
    outcome.check(abs(off_by - seconds) < 60, f"the clock of the API is off by {off_by:.0f} s, not {seconds}")
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(person(api.url))
        bob = await stack.enter_async_context(person(api.url, "Bob"))
        what = f"with the API's clock off by {seconds} s"
        await check_sealing(outcome, postgres, alice, what)
        await check_session(outcome, postgres, alice, what)
        await check_api_key(outcome, postgres, bob, what)
        await check_jwt(outcome, api.url, what)
        await check_socket(outcome, postgres, bob, what)
    await postgres.close()
    site.without_others()


async def clock_of(url: str) -> float:
    """What the process itself believes, by the header that uvicorn writes."""
    async with httpx.AsyncClient(trust_env=False) as client:
        told = (await client.get(f"{url}/health/live")).headers["date"]
    return datetime.strptime(told, "%a, %d %b %Y %H:%M:%S %Z").timestamp() - time.timezone


async def with_a_worker_off(outcome: Outcome, site: Site, seconds: int) -> None:
    """It is the only one: what it does not do is not done."""
    api = await site.with_api()
    site.without_worker()
    await site.another_worker(environ=shifted(site.logs, seconds))
    postgres = await site.postgres()
    async with person(api.url) as alice:
        what = f"with the worker's clock off by {seconds} s"
        await check_sealing(outcome, postgres, alice, what)
        await check_unattached_files(outcome, postgres, alice, what)
    await postgres.close()
    site.without_others()


async def check_sealing(outcome: Outcome, postgres: asyncpg.Connection, alice: Person, what: str) -> None:
    ledger = Ledger(alice, await alice.found_group())
    begun = time.monotonic()
    for _ in range(POSTS):
        outcome.check(await ledger.write(), f"a post was refused {what}")
    sealed = await checker.until_none_is_pending(postgres, ledger.group_id, SEALED_WITHIN_S)
    outcome.healed(time.monotonic() - begun, SEALED_WITHIN_S, f"sealing {what}")
    outcome.check(sealed, f"posts are pending {what}")
    await checker.compare(outcome, ledger, postgres, [alice], opened=3)


async def check_session(outcome: Outcome, postgres: asyncpg.Connection, someone: Person, what: str) -> None:
    await postgres.execute(
        'UPDATE user_tokens SET expires = now() + $2::interval WHERE "user" = $1',
        someone.id,
        timedelta(seconds=EXPIRES_IN_S),
    )
    await ends_in_time(outcome, someone, f"a session {what}")


async def check_api_key(outcome: Outcome, postgres: asyncpg.Connection, someone: Person, what: str) -> None:
    made = good(await someone.post("/api-keys", {"label": "robot"}), 201)
    session = someone.client.headers["Authorization"]
    someone.client.headers["Authorization"] = f"Bearer {made['token']}"
    await postgres.execute(
        "UPDATE user_tokens SET expires = now() + $2::interval WHERE id = $1",
        UUID(made["id"]),
        timedelta(seconds=EXPIRES_IN_S),
    )
    await ends_in_time(outcome, someone, f"an API key {what}")
    someone.client.headers["Authorization"] = session


async def ends_in_time(outcome: Outcome, someone: Person, what: str) -> None:
    """It ends EXPIRES_IN_S from now, not sooner and not much later."""
    begun = time.monotonic()

    async def has_ended() -> bool:
        return (await someone.get("/groups")).status_code == 401

    with contextlib.suppress(TimeoutError):
        await until(has_ended, EXPIRES_IN_S + LATE_BY_S)
    took_s = time.monotonic() - begun
    in_time = EXPIRES_IN_S - LATE_BY_S / 4 < took_s < EXPIRES_IN_S + LATE_BY_S
    outcome.check(in_time, f"{what} lived for {took_s:.1f} s, not {EXPIRES_IN_S:.0f} s")


async def check_jwt(outcome: Outcome, url: str, what: str) -> None:
    now = int(time.time())
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:

        async def status(**times: int) -> int:
            headers = {"Authorization": f"Bearer {token_of('somebody', **times)}"}
            return (await client.get("/me", headers=headers)).status_code

        outcome.expect(await status(exp=now + 600, iat=now), 200, f"a JWT that is good {what}")
        outcome.expect(await status(exp=now - 600, iat=now - 1200), 401, f"a JWT that has expired {what}")
        outcome.expect(await status(exp=now + 7200, iat=now + 600), 401, f"a JWT of the future {what}")


async def check_socket(outcome: Outcome, postgres: asyncpg.Connection, someone: Person, what: str) -> None:
    """An open socket ends with its credential, and no sooner."""
    async with someone.listen() as ear:
        begun = time.monotonic()
        await postgres.execute(
            'UPDATE user_tokens SET expires = now() + $2::interval WHERE "user" = $1',
            someone.id,
            timedelta(seconds=EXPIRES_IN_S),
        )
        outcome.expect(await ear.closed(), 4408, f"how a socket was closed {what}")
        took_s = time.monotonic() - begun
        outcome.check(EXPIRES_IN_S <= took_s < EXPIRES_IN_S + 5, f"a socket lived for {took_s:.1f} s {what}")


async def check_unattached_files(outcome: Outcome, postgres: asyncpg.Connection, alice: Person, what: str) -> None:
    """Those that no post takes go after a day, by the sweep of this worker."""
    ids = []
    for hours in (23.5, 24.1):
        file = good(await alice.client.post("/attachments", content=b"x", headers={"X-Filename": "UTF-8''x"}), 201)
        ids.append(UUID(file["id"]))
        await postgres.execute(
            "UPDATE attachments SET created_at = now() - $2::interval WHERE id = $1", ids[-1], timedelta(hours=hours)
        )
    younger, older = ids

    async def is_gone() -> bool:
        return not await postgres.fetchval("SELECT count(*) FROM attachments WHERE id = $1", older)

    await until(is_gone)
    kept = await postgres.fetchval("SELECT count(*) FROM attachments WHERE id = $1", younger)
    outcome.expect(kept, 1, f"a file of 23.5 hours {what}")
