"""`python -m tests.faults`: all experiments. With names, those alone; `--rounds` and `--seed` are for all that run."""

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import EXPERIMENTS, conduct
from tests.faults.outcomes import COLUMNS, Draw, Outcome, row
from tests.faults.sites import Site


async def main(names: list[str], rounds: int | None, seed: int) -> bool:
    print(f"seed {seed}; {os.cpu_count()} cores; {time.strftime('%Y-%m-%d')}\n")
    print(row(COLUMNS), flush=True)
    all_good = True
    for name in names:
        begun = time.monotonic()
        outcome = await conduct(name, Draw(rounds or EXPERIMENTS[name].rounds, seed), keep_logs)
        for line in outcome.lines():
            print(line, flush=True)
        print(f"    {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        all_good = all_good and outcome.is_good
    return all_good


def keep_logs(site: Site, outcome: Outcome) -> None:
    if outcome.is_good:
        return
    kept = Path(tempfile.mkdtemp(prefix=f"faults-{outcome.name}-"))
    for log in [*site.logs.glob("*.log"), *site.engines.data_dir.glob("*.log")]:
        shutil.copy(log, kept)
    print(f"    logs: {kept}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--rounds", type=int, help="in the place of each experiment's own number")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the timing")
    found = parser.parse_args()
    if unknown := set(found.names) - EXPERIMENTS.keys():
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}")
    return found


if __name__ == "__main__":
    given = arguments()
    is_good = asyncio.run(main(given.names or list(EXPERIMENTS), given.rounds, given.seed))
    sys.exit(0 if is_good else 1)
