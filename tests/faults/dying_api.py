"""kill -9 of the API while fifty posts a second are written."""

import asyncio
import time

from tests.faults import checker
from tests.faults.ledger import Ledger
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import SEALED_WITHIN_S, Site
from tests.people import person

PER_SECOND = 50
HEALED_WITHIN_S = 20


async def run(site: Site, draw: Draw) -> Outcome:
    outcome = Outcome("api-killed")
    api = await site.whole()
    postgres = await site.postgres()
    async with person(api.url) as alice, person(api.url, "Bob") as bob:
        for _ in range(draw.rounds):
            outcome.rounds += 1
            ledger = Ledger(alice, await alice.found_group(bob))
            async with ledger.writing(PER_SECOND):
                await asyncio.sleep(draw.chance.uniform(0.2, 1.2))
                assert site.api
                site.api.kill()
                killed_at, before = time.monotonic(), len(ledger.acknowledged)
                await site.with_api()
                await ledger.until_more_than(before)
                outcome.healed(time.monotonic() - killed_at, HEALED_WITHIN_S)
                await asyncio.sleep(0.3)
            outcome.check(before > 0, "nothing was acknowledged before the kill")
            await ledger.repeat(20)
            outcome.check(
                await checker.until_none_is_pending(postgres, ledger.group_id, SEALED_WITHIN_S), "posts are pending"
            )
            await checker.compare(outcome, ledger, postgres, [alice, bob], opened=20)
    await postgres.close()
    return outcome
