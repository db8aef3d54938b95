"""Somebody with an account, a key and a profile on the disk, for the SDK and the command line alike."""

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from client import Client
from client.enrolling import new_key
from client.identity import HeldKey, Identity, read_identity, write_identity
from client.models import Key, SignedUp
from client.people import People
from client.pins import Pin, Trust, read_pins, save_pins
from client.posting import NewPost, Posted, publish
from client.profile import Profile, Session
from client.reading import OpenedPost, read_post
from client.recipients import Withhold
from tests.client.test_client_cli import User
from tests.people import PASSWORD, new_email


class Device(User):
    """A user at a keyboard, and the same user through the SDK. The empty passphrase makes wrapping cheap."""

    def __init__(self, name: str, home: Path, client: Client, user: SignedUp) -> None:
        super().__init__(name, client.address, home)
        self.email = user.email or ""
        self.id = str(user.id)
        self.user = user
        self.client = client
        self.profile = Profile("default", home / "config/secureblogs", home / "data/secureblogs")
        self.environment["SECUREBLOGS_PASSPHRASE"] = ""

    def go_through(self, address: str) -> None:
        """Let the command line of this user talk to another address, such as a liar's."""
        self.environment["SECUREBLOGS_SERVER"] = address
        self.profile.change_session(server=address)

    @property
    def identity(self) -> Identity:
        return read_identity(self.profile.identity_path, "")

    @property
    def key(self) -> HeldKey:
        return self.identity.keys[-1]

    def save_identity(self, identity: Identity) -> None:
        write_identity(self.profile.identity_path, "", identity)

    def people(self, client: Client | None = None) -> People:
        path = self.profile.pins_path
        return People(client or self.client, self.identity, read_pins(path), functools.partial(save_pins, path))

    def pinned(self, user_id: UUID) -> dict[str, Trust]:
        return {pin.fingerprint: pin.trust for pin in read_pins(self.profile.pins_path).users.get(user_id, ())}

    def verify(self, other: "Device") -> None:
        """As if the two had read their fingerprints to each other."""
        pins = tuple(Pin(fingerprint=key.fingerprint, trust=Trust.VERIFIED) for key in other.identity.keys)
        save_pins(self.profile.pins_path, {other.user.id: pins})

    async def enrol(self, endorser: Identity | None = None) -> Key:
        """A further key of this account, on this device, endorsed by a key of `endorser` if that is given."""
        enrolled = await new_key(
            self.client,
            self.user.id,
            "another",
            endorser or Identity(),
            save=lambda _: None,
            now=datetime.now(UTC),
        )
        self.save_identity(self.identity.with_key(enrolled.identity.keys[-1]))
        return enrolled.key

    async def found_group(self, *members: "Device", name: str = "friends") -> UUID:
        group = await self.client.create_group(name)
        for member in members:
            await self.client.add_member(group.id, user_id=member.user.id)
        return group.id

    async def publish(
        self,
        group_id: UUID,
        title: str = "The key",
        content: str = "is under the mat",
        withhold: Withhold | None = None,
    ) -> Posted:
        new = NewPost(group_id, self.user.id, title, content, withhold or Withhold())
        return await publish(self.client, self.identity, self.people(), new)

    async def read(self, post_id: UUID) -> OpenedPost:
        return await read_post(self.client, self.identity, self.people(), post_id)


@asynccontextmanager
async def device(server: str, name: str, home: Path) -> AsyncIterator[Device]:
    async with Client(server) as client:
        user = await client.sign_up(name, new_email(), PASSWORD)
        someone = Device(name, home, client, user)
        someone.profile.save_session(
            Session(
                server=server,
                user_id=user.id,
                email=someone.email,
                name=name,
                token=user.token.token,
                token_expires=user.token.expires,
            )
        )
        someone.save_identity(Identity())
        key = await someone.enrol()
        someone.profile.change_session(key_id=key.id, fingerprint=someone.key.fingerprint)
        yield someone
