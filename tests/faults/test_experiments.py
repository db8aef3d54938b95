"""A small draw of each fault experiment; `make faults` makes them in full."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults import EXPERIMENTS
from tests.faults.full_disks import small_site
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import NotHere, Site, running_site

pytestmark = pytest.mark.thorough

# How much of its usual numbers each has here.
SHARES = {
    "api-killed": 1.0,
    "worker-killed": 0.1,
    "valkey-killed": 1.0,
    "valkey-flushed": 0.05,
    "valkey-restarted": 0.1,
    "postgres-crashed": 1.0,
    "job-ten-times": 1.0,
    "all-at-once": 0.1,
    "stalled-reader": 0.1,
    "socket-stampede": 0.05,
    "rolling-restart": 0.3,
    "files-under-faults": 0.1,
    "clock-off": 0.5,
}
ON_SMALL_DISKS = ["disk-full-postgres", "disk-full-valkey"]
# With interleavings that `make faults` draws more of.
IN_TEST_RACES = ["gone-while-sealing"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One for all that do not fill its disk."""
    with running_site() as one:
        yield one


@pytest.fixture(scope="module")
def on_small_disks() -> Iterator[Site]:
    with ExitStack() as stack:
        try:
            one = stack.enter_context(small_site())
        except NotHere as reason:
            pytest.skip(str(reason))
        yield one


@pytest.mark.parametrize("name", SHARES)
async def test_nothing_is_lost_and_nothing_doubled(site: Site, name: str) -> None:
    try:
        judge(await EXPERIMENTS[name].run(site, Draw(1, seed(), SHARES[name])))
    except NotHere as reason:
        pytest.skip(str(reason))
    finally:
        site.without_others()


@pytest.mark.parametrize("name", ON_SMALL_DISKS)
async def test_full_disk_loses_nothing(on_small_disks: Site, name: str) -> None:
    judge(await EXPERIMENTS[name].run(on_small_disks, Draw(1, seed())))


def test_each_experiment_has_a_small_draw() -> None:
    assert EXPERIMENTS.keys() == {*SHARES, *ON_SMALL_DISKS, *IN_TEST_RACES}


def seed() -> int:
    """Another each time; a failing test shows it."""
    drawn = secrets.randbelow(10**6)
    print(f"seed {drawn}")
    return drawn


def judge(outcome: Outcome) -> None:
    assert outcome.rounds > 0
    assert outcome.is_good, "\n".join(outcome.lines())
