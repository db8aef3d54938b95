"""Pages that were made a moment ago, for all who look at the same: many viewers cost one reading.

A page is kept FRESH_S. Whoever has heard of a change since it was made, by an event, gets one that was made after that.
What differs between viewers is no part of it: what they may do is in its name, and their tokens are put in at the end.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple

FRESH_S = 1.0
MAX_PAGES = 50

TOKEN = f"token-{secrets.token_hex(16)}"
"""Stands for the viewer's own. Nobody can guess it, so nothing that is shown contains it."""


class Made(NamedTuple):
    at: float
    heard: str | None
    """The id of the event that its first viewer had heard of."""
    text: str


class PageCache:
    def __init__(self) -> None:
        self._made: dict[Hashable, Made] = {}
        self._making: dict[Hashable, asyncio.Lock] = {}

    async def find(self, name: Hashable, heard: str | None, make: Callable[[], Awaitable[str]]) -> str:
        """`heard` is the id of the last event that the viewer knows, if any."""
        async with self._making.setdefault(name, asyncio.Lock()):
            known = self._made.get(name)
            if known and time.monotonic() - known.at < FRESH_S and heard in {None, known.heard}:
                return known.text
            at = time.monotonic()
            text = await make()
            if len(self._made) >= MAX_PAGES:
                self.clear()
            self._made[name] = Made(at, heard, text)
            return text

    def clear(self) -> None:
        """After something was done, so that whoever did it sees it."""
        self._made.clear()
        self._making = {name: lock for name, lock in self._making.items() if lock.locked()}
