"""Working through many things: a few at once, with a bar on standard error if that is a terminal."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from client.terminal import line

Item = TypeVar("Item")
Result = TypeVar("Result")
Tell = Callable[[], None]

AT_ONCE = 8


async def work_through(
    items: Sequence[Item], work: Callable[[Item], Awaitable[Result]], tell: Tell, at_once: int = AT_ONCE
) -> list[Result]:
    """The results in the order of the items; `tell` is called after each. The first error ends all work."""
    results: dict[int, Result] = {}
    waiting = iter(enumerate(items))

    async def take_turns() -> None:
        for position, item in waiting:
            results[position] = await work(item)
            tell()

    tasks = [asyncio.create_task(take_turns()) for _ in range(min(at_once, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [results[position] for position in range(len(items))]


@contextmanager
def bar(title: str, total: int) -> Iterator[Tell]:
    """A bar that goes one step on each time it is called."""
    with Progress(
        # What others call themselves is no markup.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr, markup=False),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def transfer_bar(name: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, which is told how many bytes are done; of no known end if `size` is None."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr, markup=False),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        task = progress.add_task(line(name), total=size)
        yield lambda done: progress.update(task, completed=done)
