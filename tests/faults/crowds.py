"""Many WebSockets: one reader among them that has stalled, and all of them coming back within a second."""

import asyncio
import json
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
from websockets.asyncio.client import ClientConnection, connect

from server import events
from server.channels import publish
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import Site
from tests.people import Person, person, until
from tests.processes import Api

SOCKETS = 200
STAMPEDE = 1000
EVENTS = 300
FLOOD_FRAMES = 100
FRAME_BYTES = 8000
P99_WITHIN_S = 1.0
BACK_WITHIN_S = 30.0
MEMORY_MAY_GROW_BY = 16 * 1024 * 1024


async def open_one(api: Api, someone: Person, **options: Any) -> ClientConnection:
    """Caught up: whatever happens from now on it hears."""
    connection = await connect(
        api.url.replace("http", "ws", 1) + "/ws/post_request",
        additional_headers={"Authorization": f"Bearer {someone.token}"},
        compression=None,
        proxy=None,
        ping_interval=None,
        open_timeout=BACK_WITHIN_S,
        close_timeout=1,
        **options,
    )
    while json.loads(await connection.recv())["type"] != "caught_up":
        pass
    return connection


async def run_stalled(site: Site, draw: Draw) -> Outcome:
    """One reads nothing while frames come by the megabyte: it is given up, and no other notices."""
    outcome = Outcome("stalled-reader")
    api = await site.whole()
    async with person(api.url) as alice, person(api.url, "Bob") as bob, site.redis() as redis:
        group_id = await alice.found_group(bob)
        channel = f"group:{group_id}"
        for _ in range(draw.rounds):
            outcome.rounds += 1
            sockets = await asyncio.gather(*(open_one(api, bob) for _ in range(draw.of(SOCKETS) - 1)))
            stalled = await open_one(api, alice, max_queue=1)
            # More than all buffers on the way take.
            for _ in range(FLOOD_FRAMES):
                await publish(redis, [events.user_channel(alice.id)], json.dumps({"type": "test", "of": "x" * 200_000}))
            latencies: list[float] = []
            count = draw.of(EVENTS)
            hearing = [asyncio.create_task(hear(socket, count, latencies)) for socket in sockets]
            for number in range(count):
                filling = "x" * draw.chance.randrange(FRAME_BYTES // 2, FRAME_BYTES)
                frame = json.dumps({"type": "test", "number": number, "at": time.monotonic(), "filling": filling})
                await publish(redis, [channel], frame)
                outcome.acknowledged += 1
                await asyncio.sleep(draw.chance.uniform(0, 0.04))
            heard = await asyncio.gather(*hearing)
            outcome.lost += [f"a socket heard {one} of {count} events" for one in heard if one < count]
            p99 = quantiles(latencies, n=100)[-1]
            outcome.check(p99 < P99_WITHIN_S, f"p99 of the others was {p99:.2f} s")
            outcome.notes.append(f"p99 of {len(sockets)} others {p99 * 1000:.0f} ms")
            outcome.check(await is_given_up(api, outcome.rounds), "the one that stalled was not given up")
            stalled.transport.abort()
            await asyncio.gather(*(socket.close() for socket in sockets))
    return outcome


async def is_given_up(api: Api, times: int) -> bool:
    """Whether the log says so: a client that reads nothing can't see it."""

    async def is_logged() -> bool:
        return api.log.read_text().count('"status":1013') >= times

    try:
        await until(is_logged, BACK_WITHIN_S)
    except TimeoutError:
        return False
    return True


async def hear(socket: ClientConnection, count: int, latencies: list[float]) -> int:
    """How many of so many events came, each within half a minute."""
    seen: set[int] = set()
    try:
        while len(seen) < count:
            async with asyncio.timeout(BACK_WITHIN_S):
                frame = json.loads(await socket.recv())
            if frame["type"] == "test":
                seen.add(frame["number"])
                latencies.append(time.monotonic() - frame["at"])
    except TimeoutError:
        pass
    return len(seen)


async def run_stampede(site: Site, draw: Draw) -> Outcome:
    """The first wave is to warm up; after each of the others the API has no more memory and files than after that."""
    outcome = Outcome("socket-stampede")
    api = await site.whole()
    count = draw.of(STAMPEDE)
    async with AsyncExitStack() as stack:
        people = [await stack.enter_async_context(person(api.url, f"Person {n}")) for n in range(10)]
        at_rest = await descriptors_at_rest(api, None)
        sockets = await open_all(api, people, count)
        await hear_once_each(outcome, site, people, sockets)
        await drop_all(sockets)
        outcome.check(await descriptors_at_rest(api, at_rest) <= at_rest, "descriptors stay open")
        memory = resident(api)
        for _ in range(draw.rounds):
            outcome.rounds += 1
            sockets = await open_all(api, people, count)
            await drop_all(sockets)
            begun = time.monotonic()
            sockets = await open_all(api, people, count, within_s=1.0, draw=draw)
            outcome.healed(time.monotonic() - begun, BACK_WITHIN_S, "coming back")
            await hear_once_each(outcome, site, people, sockets)
            await drop_all(sockets)
            found = await descriptors_at_rest(api, at_rest)
            outcome.check(found <= at_rest, f"{found} descriptors, {at_rest} at the start")
        grown = resident(api) - memory
        outcome.check(grown < MEMORY_MAY_GROW_BY, f"memory has grown by {grown >> 20} MiB")
        outcome.notes.append(f"{count} sockets; memory {grown / 2**20:+.1f} MiB, descriptors {found - at_rest:+d}")
    return outcome


async def open_all(
    api: Api, people: list[Person], count: int, within_s: float = 0.0, draw: Draw | None = None
) -> list[ClientConnection]:
    """All begin within so many seconds."""

    async def open_later(number: int) -> ClientConnection:
        if draw:
            await asyncio.sleep(draw.chance.uniform(0, within_s))
        return await open_one(api, people[number % len(people)])

    return await asyncio.gather(*(open_later(number) for number in range(count)))


async def drop_all(sockets: list[ClientConnection]) -> None:
    """As if the network had gone."""
    for socket in sockets:
        socket.transport.abort()
    await asyncio.gather(*(socket.wait_closed() for socket in sockets))


async def hear_once_each(outcome: Outcome, site: Site, people: list[Person], sockets: list[ClientConnection]) -> None:
    async with site.redis() as redis:
        frame = json.dumps({"type": "test", "number": 0, "at": time.monotonic()})
        await publish(redis, [events.user_channel(someone.id) for someone in people], frame)
        outcome.acknowledged += len(sockets)
    heard = await asyncio.gather(*(hear(socket, 1, []) for socket in sockets))
    outcome.lost += ["a socket that came back hears nothing" for one in heard if not one]


async def descriptors_at_rest(api: Api, expected: int | None) -> int:
    """Once they are down to what is expected; or, where nothing is, once they don't change any more."""
    found = descriptors(api)

    async def are_at_rest() -> bool:
        nonlocal found
        before, found = found, descriptors(api)
        if expected is not None:
            return found <= expected
        await asyncio.sleep(0.5)
        return before == found

    try:
        await until(are_at_rest, 15)
    except TimeoutError:
        return found
    return found


def descriptors(api: Api) -> int:
    return len(os.listdir(Path("/proc") / str(api.process.pid) / "fd"))


def resident(api: Api) -> int:
    return int(psutil.Process(api.process.pid).memory_info().rss)
