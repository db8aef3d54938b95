"""Postgres falls, as in a crash, and is started again, while posts are written."""

import asyncio
import time

from tests.faults import checker
from tests.faults.ledger import Ledger
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import SEALED_WITHIN_S, Site, crash_postgres, is_ready, readiness, started
from tests.people import person, until

PER_SECOND = 50
WHOLE_WITHIN_S = 10


async def run(site: Site, draw: Draw) -> Outcome:
    outcome = Outcome("postgres-crashed")
    api = await site.whole()
    async with person(api.url) as alice, person(api.url, "Bob") as bob:
        refusals = 0
        for _ in range(draw.rounds):
            outcome.rounds += 1
            ledger = Ledger(alice, await alice.found_group(bob))
            async with ledger.writing(PER_SECOND):
                await asyncio.sleep(draw.chance.uniform(0.3, 1.0))
                await crash_postgres(site.engines)
                said = await readiness(api.url)
                outcome.expect((said["postgres"], said["redis"]), ("away", "ok"), "readiness meanwhile")
                outcome.expect((await alice.get("/me")).status_code, 503, "a reading call meanwhile")
                await asyncio.sleep(draw.chance.uniform(0.1, 1.0))
                await started(site.engines.postgres)
                up_at, before = time.monotonic(), len(ledger.acknowledged)
                await ledger.until_more_than(before)
                await until(lambda: is_ready(api.url))
                # A post that is sealed shows that the workers' loops are back, too.
                post = ledger.new_post()
                outcome.check(await ledger.write(post), "the first post afterwards was not acknowledged")
                await alice.wait_until_sealed(post.id, WHOLE_WITHIN_S)
                outcome.healed(time.monotonic() - up_at, WHOLE_WITHIN_S, "being whole again")
            refusals += ledger.refusals
            await ledger.repeat(20)
            postgres = await site.postgres()
            sealed = await checker.until_none_is_pending(postgres, ledger.group_id, SEALED_WITHIN_S)
            outcome.check(sealed, "posts are pending")
            await checker.compare(outcome, ledger, postgres, [alice, bob], opened=20)
            await postgres.close()
        outcome.check(refusals > 0, "nobody was refused meanwhile: was it away?")
        outcome.notes.append(f"{refusals} answers 503, each with Retry-After")
    return outcome
