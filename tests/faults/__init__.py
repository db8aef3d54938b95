"""Fault experiments: what is killed, filled, stalled or repeated here loses nothing and doubles nothing.

`make faults` runs them all; tests/faults/test_experiments.py a smaller draw of each.
"""

import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from tests.faults import (
    all_at_once,
    clocks,
    crowds,
    dying_api,
    dying_postgres,
    dying_uploads,
    dying_valkey,
    dying_worker,
    full_disks,
    interleavings,
    repeated_job,
    rolling,
)
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import NotHere, Site, running_site


class Experiment(NamedTuple):
    run: Callable[[Site, Draw], Awaitable[Outcome]]
    rounds: int
    """As many as are usual: all experiments together take a quarter of an hour on two busy cores."""
    site: Callable[[], AbstractContextManager[Site]] = running_site


EXPERIMENTS = {
    "api-killed": Experiment(dying_api.run, 4),
    "worker-killed": Experiment(dying_worker.run, 4),
    "valkey-killed": Experiment(dying_valkey.run_killed, 4),
    "valkey-flushed": Experiment(dying_valkey.run_flushed, 2),
    "valkey-restarted": Experiment(dying_valkey.run_restarted, 3),
    "postgres-crashed": Experiment(dying_postgres.run, 6),
    "job-ten-times": Experiment(repeated_job.run, 20),
    "gone-while-sealing": Experiment(interleavings.run, interleavings.INTERLEAVINGS),
    "all-at-once": Experiment(all_at_once.run, 2),
    "disk-full-postgres": Experiment(full_disks.run_postgres, 4, full_disks.small_site),
    "disk-full-valkey": Experiment(full_disks.run_valkey, 2, full_disks.small_site),
    "stalled-reader": Experiment(crowds.run_stalled, 1),
    "socket-stampede": Experiment(crowds.run_stampede, 2),
    "rolling-restart": Experiment(rolling.run, 1),
    "files-under-faults": Experiment(dying_uploads.run, 2),
    "clock-off": Experiment(clocks.run, 1),
}


async def conduct(name: str, draw: Draw, on_site: Callable[[Site, Outcome], None] | None = None) -> Outcome:
    """On a site of its own, so that it does not suffer from what another has left. Whatever it raises is a failure.

    `on_site` is called while the site still stands.
    """
    experiment = EXPERIMENTS[name]
    try:
        with experiment.site() as site:
            try:
                outcome = await experiment.run(site, draw)
            except Exception as error:
                outcome = Outcome(name)
                outcome.wrong.append("".join(traceback.format_exception(error)))
            if on_site:
                on_site(site, outcome)
    except NotHere as reason:
        outcome = Outcome(name)
        outcome.skipped = str(reason)
    return outcome
