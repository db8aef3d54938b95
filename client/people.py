"""Other users as this client knows them: their names and keys, asked for once, and how far those keys are trusted."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec

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
    revoked_at: datetime | None
    """As the server says now, or as this client saw it once, whichever is earlier."""


class People:
    """Names and accepted keys. `save` is called with the pins of the users whose pins have changed."""

    def __init__(
        self, client: Client, identity: Identity, pins: Pins, save: Callable[[Mapping[UUID, tuple[Pin, ...]]], None]
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
        pinned, trust = accept(self.pinned(user_id), user, key)
        self.keep({user_id: pinned})
        return accepted_key(pinned, key, trust)

    def pinned(self, user_id: UUID) -> tuple[Pin, ...]:
        """The pins of a user. Who holds the private half needs no other proof that a key is one's own: it is verified.

        So oneself is never met for the first time, and no further key of one's own is taken unless it is endorsed.
        """
        saved = self._pins.users.get(user_id, ())
        held = {key.fingerprint for key in self._identity.keys if key.user_id == user_id}
        known = {pin.fingerprint for pin in saved}
        return tuple(
            msgspec.structs.replace(pin, trust=Trust.VERIFIED) if pin.fingerprint in held else pin for pin in saved
        ) + tuple(Pin(fingerprint=one, trust=Trust.VERIFIED) for one in sorted(held - known))

    def keep(self, met: Mapping[UUID, tuple[Pin, ...]]) -> None:
        """Save the pins of users who were met, as far as that changed them."""
        changed = {user_id: pins for user_id, pins in met.items() if pins != self.pinned(user_id)}
        if changed:
            self._pins.users.update(changed)
            self._save(changed)

    async def signing_key(self, author_id: UUID, key_id: UUID, signed_at: datetime) -> AcceptedKey:
        """The key of an author's signature, which counts only if it was active then; else CannotOpen."""
        accepted = await self.accepted_key(author_id, key_id)
        is_over = accepted.revoked_at is not None and accepted.revoked_at <= signed_at
        if accepted.key.created_at > signed_at or is_over:
            raise CannotOpen("this post is signed with a key that was not active then: take it for unsigned")
        return accepted


def accepted_key(pinned: tuple[Pin, ...], key: Key, trust: Trust) -> AcceptedKey:
    """A key that the pins of its user accept, with what they know of its end."""
    fingerprint = check_key(key)
    ends = [key.revoked_at, *(pin.revoked_at for pin in pinned if pin.fingerprint == fingerprint)]
    return AcceptedKey(key, fingerprint, trust, min((end for end in ends if end is not None), default=None))
