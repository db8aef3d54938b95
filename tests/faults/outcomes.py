"""What an experiment found, and how it is told."""

import random
from collections.abc import Iterable

COLUMNS = ("experiment", "rounds", "acknowledged", "lost", "duplicated", "heal")
WIDTHS = (22, 6, 12, 6, 10, 8)


class Draw:
    """How much of an experiment is done: its rounds, a share of its usual numbers, and the chance of its timing."""

    def __init__(self, rounds: int, seed: int, share: float = 1.0) -> None:
        self.rounds = rounds
        self.chance = random.Random(seed)
        self._share = share

    def of(self, usual: int) -> int:
        return max(1, round(usual * self._share))


class Outcome:
    """What was acknowledged and what became of it. All that is `wrong` fails the experiment, as does what is lost."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rounds = 0
        self.acknowledged = 0
        self.lost: list[str] = []
        self.duplicated: list[str] = []
        self.wrong: list[str] = []
        self.heal_s: float | None = None
        self.notes: list[str] = []
        self.skipped = ""

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong)

    def healed(self, seconds: float, at_most_s: float, what: str = "healing") -> None:
        """The longest of all rounds is told."""
        self.heal_s = max(self.heal_s or 0.0, seconds)
        self.check(seconds <= at_most_s, f"{what} took {seconds:.1f} s, over {at_most_s:.0f} s")

    def check(self, is_right: bool, what: str) -> None:
        if not is_right:
            self.wrong.append(what)

    def expect(self, found: object, expected: object, what: str) -> None:
        self.check(found == expected, f"{what}: {found!r}, not {expected!r}")

    def cells(self) -> tuple[str, ...]:
        heal = "-" if self.heal_s is None else f"{self.heal_s:.1f} s"
        figures = (self.rounds, self.acknowledged, len(self.lost), len(self.duplicated))
        return (self.name, *map(str, figures), heal)

    def lines(self) -> Iterable[str]:
        """A line of the table, and below it what was wrong, or why nothing was done."""
        if self.skipped:
            yield f"{self.name:{WIDTHS[0]}}  not run: {self.skipped}"
            return
        yield row(self.cells()) + ("  ok" if self.is_good else "  FAILED") + "".join(f"; {note}" for note in self.notes)
        for kind, found in (("lost", self.lost), ("duplicated", self.duplicated), ("wrong", self.wrong)):
            for one in found[:5]:
                yield f"    {kind}: {one}"
            if len(found) > 5:
                yield f"    {kind}: … {len(found)} in all"


def row(cells: Iterable[str]) -> str:
    name, *figures = cells
    rest = (f"{cell:>{width}}" for cell, width in zip(figures, WIDTHS[1:], strict=True))
    return "  ".join((f"{name:{WIDTHS[0]}}", *rest))
