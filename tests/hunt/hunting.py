"""A whole run: plant, drive, search; then leak on purpose, and search that."""

import time
from collections.abc import Iterator
from typing import NamedTuple

from tests.hunt.canaries import Canaries
from tests.hunt.driving import Driver, drive
from tests.hunt.forms import Needle, search
from tests.hunt.grounds import running_grounds
from tests.hunt.places import Place, leaking, visit


class Trail(NamedTuple):
    """What the search of one place came to."""

    place: str
    files: int
    size: int
    hits: frozenset[Needle]
    control: frozenset[Needle]
    """Of the leak on purpose, what was found."""
    missed: frozenset[Needle]
    """And what should have been."""


class Report(NamedTuple):
    trails: list[Trail]
    calls: int
    operations: int
    planted: dict[str, int]
    forms: int
    samples: int
    seconds: float

    @property
    def is_void(self) -> bool:
        return any(trail.missed or not trail.control for trail in self.trails)

    @property
    def is_clean(self) -> bool:
        return not any(trail.hits for trail in self.trails)


async def hunt(posts: int, *, is_short: bool = False) -> Report:
    """Plant, drive, and search all places; `posts` of each kind are written.

    A short one leaves out the files of Postgres that have not changed since its tables were made, and takes it that
    nothing as short as a token is compressed.
    """
    begun = time.monotonic()
    canaries, control = Canaries(), Canaries()
    async with running_grounds(canaries) as grounds:
        driver = Driver(grounds, canaries, posts, is_short=is_short)
        await drive(driver)
        # What was leaked is searched apart: odd words are alike in what is escaped.
        places = await visit(driver)
        async with leaking(driver, control):
            places_with_leaks = await visit(driver)
        trails = [
            look(*pair, canaries, control, is_short=is_short) for pair in zip(places, places_with_leaks, strict=True)
        ]
        return report(driver, trails, time.monotonic() - begun)


def look(place: Place, with_leaks: Place, canaries: Canaries, control: Canaries, *, is_short: bool) -> Trail:
    """The place is searched for the canaries, and later, the very same way, for what was leaked to it."""
    hits = search(place.haystacks, canaries.words, compressed=place.is_compressed)
    hits |= search(place.haystacks, canaries.secret_needles(), compressed=place.is_compressed and not is_short)
    hits |= search(place.haystacks, canaries.wide_needles())
    leaks = search(with_leaks.haystacks, control.words, compressed=place.is_compressed)
    # Where text alone can be leaked, one form has to do: that the others would be found, other places show.
    missed = set(control.words) - leaks if place.has_all_forms else set()
    return Trail(place.name, len(place.haystacks), place.size, frozenset(hits), frozenset(leaks), frozenset(missed))


def report(driver: Driver, trails: list[Trail], seconds: float) -> Report:
    canaries = driver.canaries
    needles = [*canaries.words, *canaries.secret_needles(), *canaries.wide_needles()]
    return Report(
        trails,
        driver.count,
        len(driver.calls),
        canaries.planted,
        len({(needle.what, needle.form) for needle in needles}),
        driver.grounds.sampler.rounds,
        seconds,
    )


def lines(found: Report) -> Iterator[str]:
    """The table for people."""
    yield f"{found.calls:,} calls of {found.operations} operations"
    yield f"{found.samples:,} looks at processes and temporary files"
    yield "planted: " + ", ".join(f"{count:,} × {what}" for what, count in sorted(found.planted.items()))
    yield f"searched in {found.forms:,} ways of writing them, in {found.seconds:.0f} s"
    yield ""
    yield "| place | files | bytes | leaked on purpose | hits |"
    yield "|---|---|---|---|---|"
    for trail in found.trails:
        control = f"found in {len(trail.control)} forms" if trail.control and not trail.missed else "**NOT FOUND**"
        yield f"| {trail.place} | {trail.files:,} | {trail.size:,} | {control} | {len(trail.hits)} |"
        for needle in sorted(trail.missed):
            yield f"    void: {needle.what}, leaked to {trail.place} as {needle.form}, was not found"
        for needle in sorted(trail.hits):
            yield f"    {needle.what}, as {needle.form}"
    yield ""
    yield "VOID" if found.is_void else "clean" if found.is_clean else "NOT CLEAN"
