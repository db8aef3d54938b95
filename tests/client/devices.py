"""Somebody with an account, a key and a profile on the disk, for the SDK and the command line alike."""

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import msgspec

from client import Client, files
from client.enrolling import new_key
from client.identity import HeldKey, Identity, read_identity
from client.models import Key, SignedUp
from client.people import People
from client.pins import Pin, Trust, read_pins, save_pins
from client.posting import Posted, publish
from client.profile import Profile, Session
from client.reading import OpenedPost, read_post
from client.recipients import Withhold
from server.sealing.argon2id import CHEAPEST
from server.sealing.identity import wrap_identity
from tests.client.test_client_cli import User
from tests.people import PASSWORD, new_email


class Device(User):
    """A user at a keyboard, and the same user through the SDK. The passphrase is empty and its wrapping cheap."""

    def __init__(self, name: str, home: Path, client: Client, user: SignedUp) -> None:
        super().__init__(name, client.address, home)
        self.email = user.email or ""
        self.id = str(user.id)
        self.user = user
        self.client = client
        self.profile = Profile("default", home / "config/secureblogs", home / "data/secureblogs")
        self.environment["SECUREBLOGS_PASSPHRASE"] = ""
        self._opened: tuple[bytes, Identity] | None = None

    def go_through(self, address: str) -> None:
        """Let the command line of this user talk to another address, such as a liar's."""
        self.environment["SECUREBLOGS_SERVER"] = address
        self.profile.change_session(server=address)

    @property
    def identity(self) -> Identity:
        """As it is on the disk; what the command line wrapped takes half a second, and is unwrapped but once."""
        wrapped = self.profile.identity_path.read_bytes()
        if self._opened is None or self._opened[0] != wrapped:
            self._opened = (wrapped, read_identity(self.profile.identity_path, ""))
            self.save_identity(self._opened[1])
        return self._opened[1]

    @property
    def key(self) -> HeldKey:
        return self.identity.keys[-1]

    def save_identity(self, identity: Identity) -> None:
        wrapped = wrap_identity(msgspec.json.encode(identity), "", CHEAPEST)
        files.write(self.profile.identity_path, wrapped)
        self._opened = (wrapped, identity)

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
        return await publish(
            self.client,
            self.identity,
            self.people(),
            group_id,
            self.user.id,
            title,
            content,
            withhold=withhold,
        )

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
