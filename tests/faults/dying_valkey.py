"""Valkey killed between commit and enqueuing, emptied with many posts pending, and restarted under open sockets."""

import asyncio
import signal
import time
from contextlib import AsyncExitStack
from typing import Any

from tests.faults import checker
from tests.faults.ledger import Ledger
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import SEALED_WITHIN_S, Site, is_ready, started
from tests.people import Listener, Person, good, person, until

POSTS_AT_ONCE = 10
PENDING = 1000
SOCKETS = 200
SOCKETS_OF_EACH = 20


async def run_killed(site: Site, draw: Draw) -> Outcome:
    """Every other round it stands still first, so that what was committed can surely not be enqueued."""
    outcome = Outcome("valkey-killed")
    api = await site.whole()
    postgres = await site.postgres()
    async with person(api.url) as alice, person(api.url, "Bob") as bob:
        for number in range(draw.rounds):
            outcome.rounds += 1
            ledger = Ledger(alice, await alice.found_group(bob))
            valkey = site.engines.valkey.process
            assert valkey
            if number % 2:
                valkey.send_signal(signal.SIGSTOP)
            writing = [asyncio.create_task(ledger.write()) for _ in range(POSTS_AT_ONCE)]
            await asyncio.sleep(draw.chance.uniform(0, 0.2))
            site.engines.valkey.kill()
            outcome.check(all(await asyncio.gather(*writing)), "a post was refused because Valkey was away")
            await asyncio.sleep(draw.chance.uniform(0, 1))
            await started(site.engines.valkey)
            up_at = time.monotonic()
            sealed = await checker.until_none_is_pending(postgres, ledger.group_id, SEALED_WITHIN_S)
            outcome.check(sealed, "posts are pending")
            await until(lambda: is_ready(api.url))
            outcome.healed(time.monotonic() - up_at, SEALED_WITHIN_S)
            await checker.compare(outcome, ledger, postgres, [alice, bob])
    await postgres.close()
    return outcome


async def run_flushed(site: Site, draw: Draw) -> Outcome:
    outcome = Outcome("valkey-flushed")
    api = await site.with_api()
    postgres = await site.postgres()
    async with person(api.url) as alice, person(api.url, "Bob") as bob, site.redis() as redis:
        for _ in range(draw.rounds):
            outcome.rounds += 1
            site.without_worker()
            ledger = Ledger(alice, await alice.found_group(bob))
            for _ in range(0, draw.of(PENDING), 20):
                await asyncio.gather(*(ledger.write() for _ in range(min(20, draw.of(PENDING)))))
            revoked = await with_revoked_token(bob)
            await site.with_worker()
            # Somewhere between before the worker takes the first and after it has sealed some.
            await asyncio.sleep(draw.chance.uniform(0, 2))
            await redis.flushall()
            flushed_at = time.monotonic()
            outcome.expect((await alice.get("/me")).status_code, 200, "a token after FLUSHALL")
            outcome.expect(await status_with(api.url, revoked), 401, "a revoked token after FLUSHALL")
            sealed = await checker.until_none_is_pending(postgres, ledger.group_id, SEALED_WITHIN_S)
            outcome.check(sealed, "posts are pending")
            await until(lambda: is_ready(api.url))
            outcome.healed(time.monotonic() - flushed_at, SEALED_WITHIN_S)
            await checker.compare(outcome, ledger, postgres, [alice, bob])
    await postgres.close()
    return outcome


async def with_revoked_token(someone: Person) -> str:
    made = good(await someone.post("/api-keys", {"label": "robot"}), 201)
    assert (await someone.delete(f"/api-keys/{made['id']}")).status_code == 204
    return str(made["token"])


async def status_with(url: str, token: str) -> int:
    async with person(url, "Nobody") as someone:
        someone.client.headers["Authorization"] = f"Bearer {token}"
        return (await someone.get("/me")).status_code


async def run_restarted(site: Site, draw: Draw) -> Outcome:
    """What happens while it is away is heard afterwards, on the same sockets."""
    outcome = Outcome("valkey-restarted")
    api = await site.whole()
    postgres = await site.postgres()
    count = draw.of(SOCKETS)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(person(api.url))
        users = -(-count // SOCKETS_OF_EACH)
        members = [await stack.enter_async_context(person(api.url, f"Member {n}")) for n in range(users)]
        group_id = await alice.found_group(*members)
        opening = [stack.enter_async_context(members[number // SOCKETS_OF_EACH].listen()) for number in range(count)]
        sockets = [await one for one in opening]
        for _ in range(draw.rounds):
            outcome.rounds += 1
            ledger = Ledger(alice, group_id)
            site.engines.valkey.kill()
            for _ in range(5):
                outcome.check(await ledger.write(), "a post was refused because Valkey was away")
            revoked = await with_revoked_token(alice)
            await asyncio.sleep(draw.chance.uniform(0, 3))
            await started(site.engines.valkey)
            up_at = time.monotonic()
            missed = await asyncio.gather(*(misses(socket, ledger, SEALED_WITHIN_S) for socket in sockets))
            outcome.healed(time.monotonic() - up_at, SEALED_WITHIN_S)
            outcome.lost += [f"a socket did not hear of post {post_id}" for of_one in missed for post_id in of_one]
            outcome.expect(await status_with(api.url, revoked), 401, "a token revoked meanwhile")
            outcome.acknowledged += len(ledger.acknowledged)
            outcome.wrong += ledger.unexpected
            await checker.compare_texts(outcome, ledger, alice, 5)
        outcome.notes.append(f"{count} sockets, none reconnected")
    await postgres.close()
    return outcome


async def misses(socket: Listener, ledger: Ledger, within_s: float) -> set[str]:
    """Posts whose sealing this socket was not told of in time."""
    missing = set(ledger.acknowledged)

    def cross_off(frame: dict[str, Any]) -> None:
        if frame["type"] == "post.sealed":
            missing.discard(frame["post_id"])

    for frame in socket.frames:
        cross_off(frame)
    try:
        async with asyncio.timeout(within_s):
            while missing:
                cross_off(await socket.next(within_s))
    except TimeoutError:
        pass
    return missing
