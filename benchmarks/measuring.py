"""Figures beside their limits: taken in turns in the same run, as medians, with what each process used of the cores."""

import math
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.running import Running

ROUNDS = 5
SAMPLE_EVERY_S = 0.02


class Result(msgspec.Struct, kw_only=True):
    """One line of the table."""

    benchmark: str
    name: str
    unit: str
    figure: float
    limit: float | None
    ratio: float | None
    """Figure to limit."""
    target: str
    """For the ratio, such as `>= 0.7`; nothing where a figure only informs."""
    holds: bool | None
    spread: float
    """Half the distance from the lowest to the highest figure, in parts of the median."""
    cores: dict[str, float] = {}
    """How many cores were busy with what, while our figure was taken."""


def result(
    benchmark: str,
    name: str,
    unit: str,
    figures: Sequence[float],
    limits: Sequence[float] | float | None = None,
    target: str = "",
    cores: dict[str, float] | None = None,
) -> Result:
    """Medians of both, and their ratio. Where there is no limit, the target is for the figure itself."""
    figure = statistics.median(figures)
    limit = statistics.median(limits) if isinstance(limits, Sequence) else limits
    ratio = figure / limit if limit else None
    return Result(
        benchmark=benchmark,
        name=name,
        unit=unit,
        figure=figure,
        limit=limit,
        ratio=ratio,
        target=target,
        holds=keeps(target, figure if ratio is None else ratio),
        spread=(max(figures) - min(figures)) / 2 / figure if figure else 0.0,
        cores=cores or {},
    )


def keeps(target: str, found: float) -> bool | None:
    if not target:
        return None
    sign, bound = target.split()
    return found >= float(bound) if sign == ">=" else found <= float(bound)


async def in_turns(*parts: Callable[[], Awaitable[Any]], rounds: int = ROUNDS) -> list[list[Any]]:
    """What each part gives, round by round: one after the other, and backwards in every second round."""
    found: list[list[Any]] = [[] for _ in parts]
    for number in range(rounds):
        order = range(len(parts)) if number % 2 == 0 else range(len(parts) - 1, -1, -1)
        for which in order:
            found[which].append(await parts[which]())
    return found


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that is not below so many percent of them."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class Cores:
    """How many cores each part of a server is busy with, between two looks."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._before = self._look()
        self._began = time.perf_counter()

    def used(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._began
        return {name: round((now - self._before.get(name, 0.0)) / seconds, 2) for name, now in self._look().items()}

    def _look(self) -> dict[str, float]:
        used: dict[str, float] = {}
        for name, process in parts_of(self._running):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used[name] = used.get(name, 0.0) + times.user + times.system
        return used


def parts_of(running: Running) -> list[tuple[str, psutil.Process]]:
    """The processes of a server, by what they are: API, worker, Postgres, Valkey."""
    found = []
    for pid in running.pids:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            names = {"api": "API", "worker": "worker"}
            kind = next((names[word] for word in words if word in names), None)
            if words and "valkey" in Path(words[0]).name:
                kind = "Valkey"
            if words and words[0].startswith(("postgres", "/")) and "postgres" in words[0]:
                kind = "Postgres"
            if kind:
                found.append((kind, process))
    return found


def resident_mebibytes(running: Running, *kinds: str) -> float:
    """Of all processes of these kinds together, pages that they share with others counted in parts."""
    return sum(process.memory_full_info().pss for kind, process in parts_of(running) if kind in kinds) / 2**20


class Peak:
    """The most resident memory of a process meanwhile."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.mebibytes = 0.0

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_EVERY_S):
            self.mebibytes = max(self.mebibytes, self._process.memory_info().rss / 2**20)


def table(results: Sequence[Result]) -> str:
    """For a terminal, and as Markdown."""
    lines = [
        "| # | figure | ours | limit | ratio | target | spread |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        limit = "" if one.limit is None else f"{number(one.limit)} {one.unit}"
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        target = one.target.replace(">=", "≥").replace("<=", "≤") + ("" if one.holds is not False else " ✗")
        figure = f"{number(one.figure)} {one.unit}"
        lines.append(
            f"| {one.benchmark} | {one.name} | {figure} | {limit} | {ratio} | {target} | ±{one.spread * 100:.0f} % |"
        )
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
