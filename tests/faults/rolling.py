"""Two APIs and two workers behind a balancer, each of them restarted in turn, under a hundred requests a second."""

import asyncio
import signal
import time
from collections import Counter
from contextlib import AsyncExitStack
from uuid import UUID

import uuid_utils.compat

from client.api import Client
from client.errors import ClientError
from client.events import Disconnected, PostSealed, ReadRequestCreated
from tests.faults import checker
from tests.faults.balancer import Balancer
from tests.faults.ledger import Ledger, Sent
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import SEALED_WITHIN_S, Site, is_ready
from tests.people import person, until
from tests.processes import Api, Process
from tests.test_requests import begin

PER_SECOND = 100
SOCKETS = 20
STOPS_WITHIN_S = 15
# Closed by a server that restarts; or cut off, where the balancer had connected to one that was just about to end.
RESTARTING = {1001, 1006, 1012, 1013}


class Load:
    """So many requests a second through our own client, which tries again as it was told to."""

    def __init__(self, client: Client, ledger: Ledger) -> None:
        self.client = client
        self.ledger = ledger
        self.done = 0
        self.failed: list[str] = []

    async def run(self, per_second: int, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            due = time.monotonic()
            number = 0
            while not stop.is_set():
                tasks.create_task(self._ask(number))
                number += 1
                due += 1 / per_second
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _ask(self, number: int) -> None:
        try:
            match number % 10:
                case 0:
                    await self._write()
                case 1:
                    await anext(aiter(self.client.posts()), None)
                case _:
                    await self.client.me()
        except ClientError as error:
            self.failed.append(f"{type(error).__name__} {error}")
        else:
            self.done += 1

    async def _write(self) -> None:
        post = self.ledger.new_post()
        self.ledger.unanswered[post.id] = post
        await self.client.create_post(UUID(post.group_id), post.title, post.content, post_id=UUID(post.id))
        self.ledger.acknowledged[post.id] = self.ledger.unanswered.pop(post.id)


class Ear:
    """A follower of the WebSocket, and what it was told."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.codes: Counter[int] = Counter()
        self.sealed: set[str] = set()
        self.asked: set[str] = set()

    async def listen(self) -> None:
        async with self.client.follow() as events:
            async for event in events:
                match event:
                    case Disconnected():
                        self.codes[event.code] += 1
                    case PostSealed():
                        self.sealed.add(str(event.post_id))
                    case ReadRequestCreated():
                        self.asked.add(str(event.request_id))


async def run(site: Site, draw: Draw) -> Outcome:
    outcome = Outcome("rolling-restart")
    await site.whole()
    apis = [await site.with_api(), await site.another_api()]
    workers = [await site.with_worker(), await site.another_worker()]
    postgres = await site.postgres()
    async with AsyncExitStack() as stack:
        balancer = await stack.enter_async_context(Balancer([api.port for api in apis]))
        alice = await stack.enter_async_context(person(balancer.url))
        carol = await stack.enter_async_context(person(balancer.url, "Carol"))
        stories = [await begin(alice, carol) for _ in range(len(apis) * draw.rounds)]
        ledger = Ledger(alice, await alice.found_group())
        clients = [
            await stack.enter_async_context(Client(balancer.url, alice.token)) for _ in range(draw.of(SOCKETS) + 1)
        ]
        ears = [Ear(client) for client in clients[1:]]
        listening = [asyncio.create_task(ear.listen()) for ear in ears]
        load, stop = Load(clients[0], ledger), asyncio.Event()
        loading = asyncio.create_task(load.run(draw.of(PER_SECOND), stop))
        asked = set()
        for _ in range(draw.rounds):
            outcome.rounds += 1
            for place in draw.chance.sample(range(len(apis)), draw.of(len(apis))):
                await asyncio.sleep(draw.chance.uniform(0.2, 1))
                apis[place] = await restart_api(outcome, site, apis[place])
                asked.add(str((await carol.ask(stories.pop().post_id))["id"]))
                workers[place] = await restart_worker(outcome, site, workers[place])
        await asyncio.sleep(1)
        stop.set()
        await loading
        last = Sent(str(uuid_utils.compat.uuid7()), ledger.group_id, "The last", "for all ears")
        outcome.check(await ledger.write(last), "the last post was not acknowledged")
        await all_hear(outcome, ears, last.id, asked)
        await end(listening)
        outcome.lost += load.failed
        outcome.check(all(ear.codes.keys() <= RESTARTING for ear in ears), f"{[ear.codes for ear in ears]}")
        codes = sum((ear.codes for ear in ears), Counter[int]())
        outcome.check(codes[1012] > 0, "no socket was told that its server restarts")
        sealed = await checker.until_none_is_pending(postgres, ledger.group_id, SEALED_WITHIN_S)
        outcome.check(sealed, "posts are pending")
        await checker.compare(outcome, ledger, postgres, [alice], opened=20)
        outcome.notes.append(f"{load.done} requests, {len(load.failed)} failed; sockets closed {dict(codes)}")
    await postgres.close()
    return outcome


async def all_hear(outcome: Outcome, ears: list[Ear], post_id: str, asked: set[str]) -> None:
    """All have heard of what was asked meanwhile, and are back to hear of the last post."""
    begun = time.monotonic()

    async def have_heard() -> bool:
        return all(post_id in ear.sealed and asked <= ear.asked for ear in ears)

    try:
        await until(have_heard, 30)
    except TimeoutError:
        outcome.lost += [
            f"an ear missed {asked - ear.asked or 'the last post'}" for ear in ears if not await have_heard()
        ]
    outcome.healed(time.monotonic() - begun, 30, "hearing again")


async def end(listening: list[asyncio.Task[None]]) -> None:
    for task in listening:
        task.cancel()
    for found in await asyncio.gather(*listening, return_exceptions=True):
        if not isinstance(found, asyncio.CancelledError):
            raise RuntimeError("an ear ended by itself") from found


async def restart_api(outcome: Outcome, site: Site, old: Api) -> Api:
    old.send(signal.SIGTERM)
    outcome.check(await old.wait(STOPS_WITHIN_S) in {0, -signal.SIGTERM}, "an API did not stop in good order")
    new = await site.another_api(port=old.port)
    await until(lambda: is_ready(new.url))
    return new


async def restart_worker(outcome: Outcome, site: Site, old: Process) -> Process:
    old.send(signal.SIGTERM)
    outcome.expect(await old.wait(STOPS_WITHIN_S), 0, "how a worker stopped")
    return await site.another_worker()
