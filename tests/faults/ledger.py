"""A client that writes down what it sent and what it was told. What was answered with 2xx is a promise."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import httpx
import uuid_utils.compat

from tests.people import Person, until

# What a client may meet while something is down. Everything else that is no success is a finding.
UNANSWERED = httpx.TransportError
# Where a machine can not keep up, so many wait, and no more are sent.
MAX_WAITING = 20


class Sent(NamedTuple):
    """A post, under an id that the client made: the very same request may be sent again."""

    id: str
    group_id: str
    title: str
    content: str

    def body(self) -> dict[str, str]:
        return self._asdict()


class Ledger:
    """Of one author and one group."""

    def __init__(self, author: Person, group_id: str) -> None:
        self.author = author
        self.group_id = group_id
        self.acknowledged: dict[str, Sent] = {}
        self.unanswered: dict[str, Sent] = {}
        """No answer came, or one of 503: it may be there, or not."""
        self.unexpected: list[str] = []
        self.refusals = 0
        """Answers 503, all of them with Retry-After."""

    @property
    def sent(self) -> set[str]:
        return self.acknowledged.keys() | self.unanswered.keys()

    def new_post(self) -> Sent:
        number = len(self.sent)
        return Sent(str(uuid_utils.compat.uuid7()), self.group_id, f"Title {number}", f"Text {number} under the mat")

    async def write(self, post: Sent | None = None) -> bool:
        """Send one, new or again; whether it was acknowledged."""
        post = post or self.new_post()
        if post.id not in self.acknowledged:
            self.unanswered[post.id] = post
        try:
            answer = await self.author.post("/posts", post.body())
        except UNANSWERED:
            return False
        if answer.status_code in {200, 201}:
            self.acknowledged[post.id] = post
            self.unanswered.pop(post.id, None)
            return True
        if answer.status_code == 503 and int(answer.headers.get("retry-after", "0")) >= 1:
            self.refusals += 1
        else:
            self.unexpected.append(f"{answer.status_code} {answer.text}")
        return False

    @asynccontextmanager
    async def writing(self, per_second: float) -> AsyncIterator[None]:
        """So many a second for the time of the block, whether or not the last ones were answered."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._write_on(per_second, stop))
        try:
            yield
            stop.set()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _write_on(self, per_second: float, stop: asyncio.Event) -> None:
        room = asyncio.Semaphore(MAX_WAITING)

        async def write_one() -> None:
            async with room:
                await self.write()

        async with asyncio.TaskGroup() as tasks:
            while not stop.is_set():
                if not room.locked():
                    tasks.create_task(write_one())
                await asyncio.sleep(1 / per_second)

    async def until_more_than(self, count: int) -> None:
        """So many were acknowledged."""

        async def are_more() -> bool:
            return len(self.acknowledged) > count

        await until(are_more)

    async def until_refused(self) -> None:
        """Some were answered with 503."""

        async def are_some() -> bool:
            return self.refusals > 3

        await until(are_some)

    async def repeat(self, how_many: int) -> None:
        """Send again whatever was not answered, and so many of what was."""
        again = [*self.unanswered.values(), *list(self.acknowledged.values())[-how_many:]]
        for post in again:
            if not await self.write(post):
                self.unexpected.append(f"the repetition of {post.id} was not acknowledged")
