"""A second device: the first one vouches for its key, and hands it the keys of all posts that it can read.

    new device                                     first device
    make a key ── save it ── show its link code ─ ─ ─ ─ ─ ─ ► check proof, compare the fingerprint
    wait until the server lists it ◄── POST /keys with an endorsement ── enrol it
    save its id                                    open each post whole, seal its key to the new one

The code holds public bytes alone, so it may travel by any way; what counts is that the person compares the fingerprint
on both screens. Each step can be taken again after a crash: the new device goes on with the key that it saved, the
first one passes over what the server has already. From its enrolment on new posts are sealed to the key anyway.

    link code = base64url( version(1) ‖ public_key(32) ‖ verify_key(32) ‖ proof(64) ‖ label in UTF-8 ‖ CRC-32(4) )
"""

import asyncio
import base64
import binascii
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from client.api import Client
from client.enrolling import enrol_proven, find_endorser
from client.errors import (
    BadLinkCode,
    CannotOpen,
    HeldElsewhere,
    NetworkError,
    NoIdentity,
    NotFound,
    NotReadable,
    Substituted,
    Unavailable,
)
from client.identity import HeldKey, Identity
from client.models import Key, SealedKey, UserKeys
from client.people import People
from client.pins import Pin, Trust, check_key, confirm
from client.progress import Tell, work_through
from client.reading import read_post
from server.sealing import keys as sealing_keys
from server.sealing import posts as sealing_posts
from server.sealing.errors import SealingError

CODE_VERSION = 1
LOOKING_SECONDS = 1.0

_HEAD_BYTES = 1 + sealing_keys.PUBLIC_KEY_BYTES + sealing_keys.VERIFY_KEY_BYTES + sealing_keys.SIGNATURE_BYTES
_CHECK_BYTES = 4
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


class LinkCode(NamedTuple):
    """The public halves of a key that waits to be linked, with its proof, which holds; 32 + 32 + 64 bytes."""

    public_key: bytes
    verify_key: bytes
    proof: bytes
    label: str


def write_link_code(held: HeldKey, label: str) -> str:
    """Some 190 letters and digits, `-` and `_`. It begins with a letter, and so is never taken for an option."""
    proof = sealing_keys.prove(held.user_id, held.public_key, held.signing_seed)
    body = bytes([CODE_VERSION]) + held.public_key + held.verify_key + proof + label.encode()
    return base64.urlsafe_b64encode(body + zlib.crc32(body).to_bytes(_CHECK_BYTES)).rstrip(b"=").decode()


def read_link_code(text: str, user_id: UUID) -> LinkCode:
    """What a code holds, for a key of this user; white space in it does not count.

    Raises BadLinkCode where it is none or not whole, CannotOpen where it was made for another account.
    """
    code = "".join(text.split())
    try:
        raw = base64.urlsafe_b64decode(code + "=" * (-len(code) % 4)) if _BASE64URL.fullmatch(code) else b""
    except binascii.Error:
        raw = b""
    body, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    if len(body) < _HEAD_BYTES or zlib.crc32(body).to_bytes(_CHECK_BYTES) != check:
        raise BadLinkCode("this is no link code, or not all of it: copy it again")
    if body[0] != CODE_VERSION:
        raise BadLinkCode("this link code is of another version of this program")
    public_key, verify_key, proof = body[1:33], body[33:65], body[65:_HEAD_BYTES]
    try:
        sealing_keys.check_public_key(public_key)
        sealing_keys.check_proof(user_id, public_key, verify_key, proof)
        return LinkCode(public_key, verify_key, proof, body[_HEAD_BYTES:].decode())
    except UnicodeDecodeError:
        raise BadLinkCode("this is no link code") from None
    except SealingError:
        raise CannotOpen("this link code was made for another account, or is false") from None


# The new device


def must_link(identity: Identity, own: Iterable[Key]) -> bool:
    """Whether the account has active keys, and none of them is here: another device can vouch for a new one."""
    active = [key for key in own if key.revoked_at is None]
    return bool(active) and not any(identity.held(key.id) for key in active)


def waiting_key(identity: Identity, own: Iterable[Key], user_id: UUID) -> HeldKey | None:
    """A key that was made earlier to be linked, and that still can be."""
    revoked = {key.public_key for key in own if key.revoked_at is not None}
    return next((key for key in identity.not_enrolled(user_id) if key.public_key not in revoked), None)


async def wait_until_enrolled(client: Client, held: HeldKey, pause: float = LOOKING_SECONDS) -> tuple[Key, list[Key]]:
    """The key once the server lists it, and all keys of the account. It waits for ever; being cancelled loses nothing.

    Raises Substituted where the server lists something else in its place, CannotOpen where it was revoked meanwhile.
    """
    while True:
        try:
            own = [key async for key in client.own_keys()]
        except (NetworkError, Unavailable):
            # Whoever is to type the code elsewhere takes longer than most servers are away.
            own = []
        for key in own:
            if key.public_key == held.public_key:
                if (key.user_id, key.verify_key) != (held.user_id, held.verify_key):
                    raise Substituted("the server lists this key with another one to sign")
                if key.revoked_at is not None:
                    raise CannotOpen("this key was revoked before it was used: make another one")
                return key, own
        await asyncio.sleep(pause)


def find_voucher(key: Key, own: Iterable[Key]) -> Key | None:
    """The key of the account that endorses another one; None unless the endorsement holds."""
    voucher = next((one for one in own if one.id == key.endorsed_by), None)
    if voucher is None:
        return None
    try:
        check_key(voucher)
        sealing_keys.check_endorsement(
            key.user_id, key.public_key, key.verify_key, voucher.verify_key, key.endorsement or b""
        )
    except (SealingError, CannotOpen):
        return None
    return voucher


def own_pins(pinned: tuple[Pin, ...], key: Key, own: list[Key], compared: Iterable[Key]) -> tuple[Pin, ...]:
    """The pins of one's own account on a device that has just got `key`, the keys in `compared` verified.

    Where nothing was compared and no other key was met yet, the oldest active one is, as of any other user.
    """
    fingerprint = check_key(key)
    verified = {fingerprint, *(check_key(one) for one in compared)}
    if all(pin.fingerprint == fingerprint for pin in pinned) and len(verified) == 1:
        others = [one for one in own if one.revoked_at is None and one.id != key.id]
        oldest = sorted(others, key=lambda one: (one.created_at, one.id))[:1]
        pinned = (*pinned, *(Pin(fingerprint=check_key(one), trust=Trust.UNVERIFIED) for one in oldest))
    return confirm(pinned, UserKeys(id=key.user_id, name="", keys=own), verified)


# The first device


async def enrol_linked(client: Client, identity: Identity, own: list[Key], user_id: UUID, code: LinkCode) -> Key:
    """Enrol the key of a link code, whose fingerprint its person has compared, endorsed by one of this device.

    Enrolled already: that key, revoked or not (`trust_own_key` tells). Raises NoIdentity where this device has no
    active key.
    """
    endorser = find_endorser(identity, own)
    if endorser is None:
        raise NoIdentity("this device has no active key that could vouch for another one")
    key = next((one for one in own if one.public_key == code.public_key), None)
    if key is None:
        key = await enrol_proven(client, user_id, code.public_key, code.verify_key, code.proof, code.label, endorser)
    if (key.user_id, key.public_key, key.verify_key) != (user_id, code.public_key, code.verify_key):
        raise Substituted("the server lists this key with another one to sign")
    return key


def trust_own_key(people: People, key: Key, own: list[Key]) -> None:
    """Pin a further key of one's own, whose fingerprint its person has compared; CannotOpen if it is revoked."""
    user_id = key.user_id
    fingerprint = check_key(key)
    pinned = confirm(people.pinned(user_id), UserKeys(id=user_id, name="", keys=own), {fingerprint})
    if any(pin.fingerprint == fingerprint and pin.revoked_at is not None for pin in pinned):
        raise CannotOpen("this key was revoked: make another one on the new device")
    people.keep({user_id: pinned})


class ToHand(NamedTuple):
    """Readable posts that a new key has not, newest first, and how many others there are."""

    post_ids: list[UUID]
    had: int
    """The new key has them already."""
    elsewhere: int
    """Neither key opens them: a third device does."""


class Handed(NamedTuple):
    granted: list[UUID]
    failed: dict[UUID, CannotOpen]
    """Nothing is handed on that does not verify."""


async def posts_to_hand(client: Client, identity: Identity, new: Key) -> ToHand:
    post_ids, had, elsewhere = [], 0, 0
    async for post in client.posts():
        key_ids = {sealed.public_key_id for sealed in post.sealed_keys}
        if new.id in key_ids:
            had += 1
        elif any(identity.held(key_id) for key_id in key_ids):
            post_ids.append(post.id)
        elif key_ids:
            elsewhere += 1
    return ToHand(post_ids, had, elsewhere)


async def hand_posts(
    client: Client, identity: Identity, people: People, new: Key, post_ids: Sequence[UUID], tell: Tell
) -> Handed:
    """Hand posts to a key of one's own that its person has compared, a few at once; `tell` is called after each.

    A post that does not verify is passed over and told; any other error ends it, and doing it again goes on.
    """
    failed: dict[UUID, CannotOpen] = {}

    async def hand(post_id: UUID) -> bool:
        try:
            await hand_post(client, identity, people, new, post_id)
        except (NotFound, NotReadable, HeldElsewhere):
            # It was deleted, or the group left, since it was listed.
            return False
        except CannotOpen as error:
            failed[post_id] = error
            return False
        return True

    done = await work_through(post_ids, hand, tell)
    return Handed([post_id for post_id, is_done in zip(post_ids, done, strict=True) if is_done], failed)


async def hand_post(client: Client, identity: Identity, people: People, new: Key, post_id: UUID) -> None:
    """Open a post whole and seal its key to a further key of one's own."""
    opened = await read_post(client, identity, people, post_id)
    sealed_key = sealing_posts.seal_key(opened.post_key, new.public_key)
    await client.add_post_keys(post_id, [SealedKey(public_key_id=new.id, sealed_key=sealed_key)])
