"""Server-sent events: that something has changed, and what kind of thing. A page then asks for what it shows.

An event's id is the state that it tells of: `<jobs>-<queues>-<workers>`, three numbers of Reader.fingerprint. So
whoever comes back with its `Last-Event-ID` is told at once what changed meanwhile, by any process, and nothing if
nothing did; no event has to be kept.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator

from server.dashboard.errors import Unavailable
from server.dashboard.reader import Reader

LOOK_EVERY_S = 0.5
COMMENT_EVERY_S = 15.0
KINDS = ("jobs", "queues", "workers")

State = tuple[int, int, int]


class Glance:
    """One look at Redis for all who listen to this process."""

    def __init__(self) -> None:
        self._state: State | None = None
        self._at = 0.0
        self._looking = asyncio.Lock()

    async def take(self, reader: Reader) -> State:
        async with self._looking:
            if self._state is None or time.monotonic() - self._at > LOOK_EVERY_S / 2:
                self._state = await reader.fingerprint()
                self._at = time.monotonic()
            return self._state


async def stream(reader: Reader, glance: Glance, last_event_id: str | None) -> AsyncIterator[bytes]:
    known = read_id(last_event_id)
    said = time.monotonic()
    yield b"retry: 2000\n\n"
    while True:
        try:
            state = await glance.take(reader)
        except Unavailable:
            state = None
        if state is not None and state != known:
            yield write_event(known, state)
            known, said = state, time.monotonic()
        elif time.monotonic() - said > COMMENT_EVERY_S:
            yield b": still here\n\n"
            said = time.monotonic()
        await asyncio.sleep(LOOK_EVERY_S)


def write_event(known: State | None, state: State) -> bytes:
    changed = [kind for place, kind in enumerate(KINDS) if known is None or known[place] != state[place]]
    number = "-".join(str(part) for part in state)
    return f"id: {number}\nevent: changed\ndata: {json.dumps({'changed': changed})}\n\n".encode()


def read_id(text: str | None) -> State | None:
    parts = (text or "").split("-")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])
