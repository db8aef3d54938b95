"""Users of a running server: those whose client is the page's, and those whose client is the Python one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from client.api import Client
from client.events import Event
from client.follow import Follower
from client.identity import HeldKey, Identity
from client.people import People
from client.pins import Pins
from client.posting import NewPost, publish
from client.reading import OpenedPost, read_post
from tests.javascript.node import WAIT_S, JavaScriptError, Kept, Node
from tests.people import PASSWORD, Person, good, new_email

Heard = TypeVar("Heard", bound=Event)


class Scripted(NamedTuple):
    """Somebody whose client is the page's."""

    node: Node
    name: str
    id: UUID
    key: dict[str, Any]
    """As the server shows it."""

    async def call(self, function: str, *given: Any, keep: str | None = None) -> Any:
        return await self.node.call(function, Kept(self.name), *given, keep=keep)

    async def request(self, method: str, path: str) -> Any:
        return await self.call("call", method, path)

    async def refusal(self, function: str, *given: Any) -> str | None:
        """The name of the error that a call throws, or None."""
        try:
            await self.call(function, *given)
        except JavaScriptError as error:
            return error.name
        return None


async def arrive(node: Node, server: str, name: str) -> Scripted:
    await node.call("signUp", server, name, new_email(), PASSWORD, keep=name)
    await node.call("enrol", Kept(name), "browser", keep=name)
    me = await node.call("call", Kept(name), "GET", "/me")
    keys = await node.call("call", Kept(name), "GET", "/keys")
    return Scripted(node, name, UUID(me["id"]), keys["items"][0])


class Pythonic(NamedTuple):
    """Somebody whose client is the Python one."""

    id: UUID
    client: Client
    identity: Identity
    people: People
    recipients: dict[str, frozenset[UUID]]
    """Of the last post to each group."""

    async def read(self, post_id: str) -> OpenedPost:
        return await read_post(self.client, self.identity, self.people, UUID(post_id))

    async def list_ids(self, group_id: str) -> set[str]:
        """Of all posts of a group, page after page."""
        return {str(post.id) async for post in self.client.posts(UUID(group_id))}

    async def leave_to_server(self, group_id: str, title: str, content: str) -> str:
        """The id of a post that the server will seal."""
        return str((await self.client.create_post(UUID(group_id), title, content)).id)

    async def publish(self, group_id: str, title: str, content: str) -> str:
        """The id of a post that is sealed here."""
        new = NewPost(UUID(group_id), self.id, title, content, known=self.recipients.get(group_id, frozenset()))
        posted = await publish(self.client, self.identity, self.people, new)
        self.recipients[group_id] = frozenset(one.key.user_id for one in posted.recipients.accepted)
        return str(posted.post.id)


@asynccontextmanager
async def pythonic(server: str, person: Person) -> AsyncIterator[Pythonic]:
    held = tuple(
        HeldKey(
            user_id=person.id,
            server=server,
            label="laptop",
            private_key=device.encryption.private,
            signing_seed=device.signing.private,
            made_at=datetime.now(UTC),
            key_id=UUID(device.id),
        )
        for device in person.devices
    )
    identity = Identity(keys=held)
    async with Client(server, person.token) as client:
        yield Pythonic(person.id, client, identity, People(client, identity, Pins(), lambda _changed: None), {})


async def hear(events: Follower, kind: type[Heard]) -> Heard:
    """The next event of this kind."""
    async with asyncio.timeout(WAIT_S):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError("the socket has ended")


async def found_group(owner: Person, *members: Scripted) -> str:
    group_id = await owner.found_group()
    for member in members:
        await add(owner, group_id, member)
    return group_id


async def add(owner: Person, group_id: str, member: Scripted, role: str = "member") -> None:
    good(await owner.post(f"/groups/{group_id}/members", {"user_id": str(member.id), "role": role}), 201)
