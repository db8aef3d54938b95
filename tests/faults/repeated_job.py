"""The same job, delivered ten times to two workers at once."""

import asyncio
import signal
import time

from arq.connections import ArqRedis

from server import jobs
from tests.faults import checker
from tests.faults.ledger import Ledger
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import SEALED_WITHIN_S, Site
from tests.people import person, until

TIMES = 10
KEYS = 16


async def run(site: Site, draw: Draw) -> Outcome:
    outcome = Outcome("job-ten-times")
    api = await site.whole()
    workers = [await site.with_worker(), await site.another_worker()]
    postgres = await site.postgres()
    await checker.watch_sealings(postgres)
    async with person(api.url) as alice, person(api.url, "Bob", keys=KEYS) as bob, site.redis() as redis:
        ledger = Ledger(alice, await alice.found_group(bob))
        async with alice.listen() as ear:
            for _ in range(draw.rounds):
                outcome.rounds += 1
                post = ledger.new_post()
                # Both stand still until all are queued. Ids of their own, for one id is queued once only.
                for worker in workers:
                    worker.send(signal.SIGSTOP)
                outcome.check(await ledger.write(post), "the post was not acknowledged")
                more = {f"again:{number}:{post.id}": [post.id] for number in range(TIMES - 1)}
                await jobs.enqueue(redis, jobs.SEAL_POST, more)
                begun = time.monotonic()
                for worker in draw.chance.sample(workers, 2):
                    worker.send(signal.SIGCONT)
                    await asyncio.sleep(draw.chance.uniform(0, 0.01))
                await alice.wait_until_sealed(post.id, SEALED_WITHIN_S)
                outcome.healed(time.monotonic() - begun, SEALED_WITHIN_S, "sealing")
                await ear.has_heard("post.sealed", post_id=post.id)
        await until(lambda: is_idle(redis))
        await checker.compare_sealings(outcome, ledger, postgres)
        await checker.compare(outcome, ledger, postgres, [alice, bob])
    await postgres.close()
    return outcome


async def is_idle(redis: ArqRedis) -> bool:
    return await jobs.queue_length(redis) == 0
