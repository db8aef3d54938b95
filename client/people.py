"""Other users as this client knows them: their names and keys, asked for once, and how far those keys are trusted."""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from client.api import Client
from client.errors import CannotOpen, NotFound
from client.identity import Identity
from client.models import Key, UserKeys
from client.pins import Pin, Pins, Trust, accept, check_key


class AcceptedKey(NamedTuple):
    key: Key
    fingerprint: str
    """Computed here, from the bytes of `key`."""
    trust: Trust


class People:
    """Names and accepted keys. `save` is called with a user's pins whenever they change."""

    def __init__(
        self, client: Client, identity: Identity, pins: Pins, save: Callable[[UUID, tuple[Pin, ...]], None]
    ) -> None:
        self._client = client
        self._identity = identity
        self._pins = pins
        self._save = save
        self._users: dict[UUID, UserKeys] = {}

    async def user(self, user_id: UUID) -> UserKeys:
        if user_id not in self._users:
            self._users[user_id] = await self._client.user_keys(user_id)
        return self._users[user_id]

    async def name(self, user_id: UUID) -> str:
        """The user's name, or the id of one of whom the server tells nothing."""
        try:
            return (await self.user(user_id)).name
        except NotFound:
            return str(user_id)

    async def accepted_key(self, user_id: UUID, key_id: UUID) -> AcceptedKey:
        """A key of a user, its proof checked, once it is accepted by the pins. Raises CannotOpen, UntrustedKey."""
        user = await self.user(user_id)
        key = next((one for one in user.keys if one.id == key_id), None)
        if key is None:
            raise CannotOpen("the key that this rests on is none of that user's")
        fingerprint = check_key(key)
        own = self._identity.held(key_id)
        if own is not None and own.fingerprint == fingerprint:
            return AcceptedKey(key, fingerprint, Trust.VERIFIED)
        pinned = self._pins.users.get(user_id, ())
        pinned_now, trust = accept(pinned, user, key)
        if pinned_now != pinned:
            self._pins.users[user_id] = pinned_now
            self._save(user_id, pinned_now)
        return AcceptedKey(key, fingerprint, trust)

    async def signing_key(self, author_id: UUID, key_id: UUID, signed_at: datetime) -> AcceptedKey:
        """The key of an author's signature, which counts only if it was active then; else CannotOpen."""
        accepted = await self.accepted_key(author_id, key_id)
        ends = [accepted.key.revoked_at] + [
            pin.revoked_at for pin in self._pins.users.get(author_id, ()) if pin.fingerprint == accepted.fingerprint
        ]
        if accepted.key.created_at > signed_at or any(end is not None and end <= signed_at for end in ends):
            raise CannotOpen("this post is signed with a key that was not active then: take it for unsigned")
        return accepted
