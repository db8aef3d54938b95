"""`python -m tests.fuzzing`: 0 if every answer was as the OpenAPI document says, for each of the seeds."""

import argparse
import asyncio
import random
import sys

from tests.faults.sites import running_site
from tests.fuzzing.running import run
from tests.people import person


async def main(seconds: int, seeds: list[int]) -> bool:
    is_good = True
    with running_site() as site:
        api = await site.whole()
        for seed in seeds:
            async with person(api.url) as alice, person(api.url) as bob:
                group_id = await alice.found_group(bob)
                await alice.publish(group_id)
                found = await run(api.url, [alice, bob], seed, "--max-time", str(seconds), folder=site.logs)
            print(found.said if found.status else f"seed {seed}: {found.cases:,} cases, {found.operations} operations")
            is_good = is_good and not found.status and found.cases > 0
        log = (site.logs / "api.log").read_text()
    defects = log.count('"unexpected error"')
    print(f"{defects} unexpected errors in the log of the API")
    return is_good and not defects


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--seconds", type=int, default=300, help="for each seed (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[random.SystemRandom().randrange(10**6) for _ in range(3)]
    )
    given = parser.parse_args()
    sys.exit(0 if asyncio.run(main(given.seconds, given.seeds)) else 1)
