"""Making a key and telling the server of its public half, in an order in which a crash loses nothing.

    make ── save it, without an id ── enrol ── save its id

A key that was saved and never got its id is enrolled first when the next one is wanted; the server knows a public key
that it has seen, so doing it twice does no harm.
"""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import Struct

from client.api import Client
from client.errors import Conflict, Substituted
from client.identity import HeldKey, Identity, make_key
from client.models import Key
from server.sealing import keys as sealing_keys


class Enrolled(Struct, frozen=True, kw_only=True):
    """The enrolled key, the identity that holds it, and whether it had been made earlier and was left waiting."""

    key: Key
    identity: Identity
    was_waiting: bool


async def new_key(
    client: Client,
    user_id: UUID,
    label: str,
    identity: Identity,
    *,
    save: Callable[[Identity], None],
    now: datetime,
) -> Enrolled:
    """Have one more active key than before. `save` is called with the identity each time it changed."""
    own = [key async for key in client.own_keys()]
    for waiting in identity.not_enrolled(user_id):
        # With the label that is wanted now: the one of then may be why it is still waiting.
        key = await enrol(client, identity, own, msgspec.structs.replace(waiting, label=label))
        identity = identity.with_id(waiting, key.id)
        save(identity)
        if key.revoked_at is None:
            return Enrolled(key=key, identity=identity, was_waiting=True)
    made = make_key(user_id, client.address, label, now)
    identity = identity.with_key(made)
    save(identity)
    key = await enrol(client, identity, own, made)
    identity = identity.with_id(made, key.id)
    save(identity)
    return Enrolled(key=key, identity=identity, was_waiting=False)


async def enrol(client: Client, identity: Identity, own: list[Key], made: HeldKey) -> Key:
    """Enrol a held key, endorsed by an active one that this identity holds too. Enrolled before: that key.

    `own` are the keys of the user that the server knows already.
    """
    proof = sealing_keys.prove(made.user_id, made.public_key, made.signing_seed)
    endorser = find_endorser(identity, own)
    return await enrol_proven(client, made.user_id, made.public_key, made.verify_key, proof, made.label, endorser)


async def enrol_proven(
    client: Client,
    user_id: UUID,
    public_key: bytes,
    verify_key: bytes,
    proof: bytes,
    label: str,
    endorser: HeldKey | None,
) -> Key:
    """Enrol the public halves of a key that may be held elsewhere, endorsed by one that is held here."""
    endorsed_by, endorsement = None, None
    if endorser is not None:
        endorsed_by = endorser.key_id
        endorsement = sealing_keys.endorse(user_id, public_key, verify_key, endorser.signing_seed)
    try:
        key = await client.enrol_key(
            public_key, verify_key, proof, label, endorsed_by=endorsed_by, endorsement=endorsement
        )
    except Conflict as error:
        if error.code != "key_taken":
            raise
        known = [key async for key in client.own_keys() if key.public_key == public_key]
        if not known:
            raise
        key = known[0]
    if (key.user_id, key.public_key, key.verify_key) != (user_id, public_key, verify_key):
        raise Substituted("the server enrolled other keys than it was given")
    return key


def find_endorser(identity: Identity, own: list[Key]) -> HeldKey | None:
    """The newest active key of the user whose private half is here."""
    for key in own:
        held = identity.held(key.id)
        if key.revoked_at is None and held is not None:
            return held
    return None
