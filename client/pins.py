"""Which keys of other people this client has accepted.

For every user a *set* of fingerprints is pinned. The first key that is met is pinned and stays `unverified` until
its fingerprint is compared. A further key is taken if a pinned key of the same user endorses it; any other stops
the client until its person confirms it (`key verify`). A revocation that was seen is remembered, since a server could
later deny it: such a key endorses nothing any more, and what it signs from then on does not count.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec
from msgspec import Struct

from client import files
from client.errors import CannotOpen, StorageError, UntrustedKey
from client.models import Key, UserKeys
from server.sealing import keys as sealing_keys
from server.sealing.errors import SealingError

FINGERPRINT_DIGITS = 40


class Trust(StrEnum):
    """How a key came to be accepted."""

    VERIFIED = "verified"
    """Its person compared the fingerprint, or holds the key."""
    ENDORSED = "endorsed"
    """A verified key of the same user endorses it."""
    UNVERIFIED = "unverified"
    """It was the first that was met, or rests on one that was."""


class Pin(Struct, frozen=True, kw_only=True):
    fingerprint: str
    trust: Trust
    revoked_at: datetime | None = None


class Pins(Struct, kw_only=True):
    v: Literal[1] = 1
    users: dict[UUID, tuple[Pin, ...]] = msgspec.field(default_factory=dict)


def read_pins(path: Path) -> Pins:
    content = files.read(path)
    try:
        return Pins() if content is None else msgspec.json.decode(content, type=Pins)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # To begin anew would accept whatever is shown next.
        raise StorageError(f"{path} is damaged: restore it, or remove it and compare all fingerprints again") from None


def save_pins(path: Path, changed: Mapping[UUID, tuple[Pin, ...]]) -> None:
    """Write the pins of some users; those of the others stay as another process may just have left them."""
    with files.locked(path):
        pins = read_pins(path)
        pins.users.update(changed)
        files.write(path, msgspec.json.format(msgspec.json.encode(pins), indent=2))


def check_key(key: Key) -> str:
    """The fingerprint, computed from the very bytes of a key whose proof holds; else CannotOpen."""
    try:
        sealing_keys.check_public_key(key.public_key)
        sealing_keys.check_proof(key.user_id, key.public_key, key.verify_key, key.proof)
    except SealingError:
        raise CannotOpen("a key of this user comes without a valid proof: nothing is sealed to it") from None
    computed = sealing_keys.fingerprint(key.user_id, key.public_key, key.verify_key)
    if computed != key.fingerprint:
        raise CannotOpen("the server shows another fingerprint than this key has")
    return computed


def accept(pinned: tuple[Pin, ...], user: UserKeys, wanted: Key) -> tuple[tuple[Pin, ...], Trust]:
    """The pins of a user after meeting its keys, and how far the wanted one is trusted.

    Raises UntrustedKey where it is neither known nor endorsed, CannotOpen where its proof does not hold.
    """
    fingerprint = check_key(wanted)
    pinned_now = pinned if pinned else (Pin(fingerprint=fingerprint, trust=Trust.UNVERIFIED),)
    pinned_now = _note_revocations(_follow_endorsements(pinned_now, user.keys), user.keys)
    for pin in pinned_now:
        if pin.fingerprint == fingerprint:
            return pinned_now, pin.trust
    raise UntrustedKey(user.id, user.name, tuple(pin.fingerprint for pin in pinned_now), fingerprint)


def confirm(pinned: tuple[Pin, ...], user: UserKeys, compared: Collection[str]) -> tuple[Pin, ...]:
    """The pins of a user after its person has compared some fingerprints, and of what those keys endorse.

    A revocation that was seen stays.
    """
    known = {pin.fingerprint: pin for pin in pinned}
    blank = (Pin(fingerprint=one, trust=Trust.VERIFIED) for one in sorted(set(compared) - known.keys()))
    confirmed = (
        msgspec.structs.replace(pin, trust=Trust.VERIFIED) if pin.fingerprint in compared else pin for pin in pinned
    )
    return _note_revocations(_follow_endorsements((*confirmed, *blank), user.keys), user.keys)


def note_revoked(pinned: tuple[Pin, ...], revoked: Iterable[Key], now: datetime) -> tuple[Pin, ...]:
    """The pins of one's own account after some of its keys were revoked from here, however the server shows them."""
    ended = {check_key(key): key.revoked_at or now for key in revoked}
    known = {pin.fingerprint for pin in pinned}
    new = tuple(Pin(fingerprint=one, trust=Trust.UNVERIFIED) for one in sorted(ended.keys() - known))
    return tuple(
        msgspec.structs.replace(pin, revoked_at=pin.revoked_at or ended.get(pin.fingerprint)) for pin in (*pinned, *new)
    )


def match_fingerprints(typed: Iterable[str], user: UserKeys) -> set[str]:
    """The fingerprints of a user's keys that a person typed or was told, in groups or not, in capitals or not.

    All of them must be those of keys whose proof holds, revoked ones too; else CannotOpen.
    """
    shown = {fingerprint.replace(" ", ""): fingerprint for fingerprint in map(check_key, user.keys)}
    digits = "".join("".join(typed).split()).lower()
    # Ten groups of four, however many arguments they came in.
    told = [digits[start : start + FINGERPRINT_DIGITS] for start in range(0, len(digits), FINGERPRINT_DIGITS)]
    for one in told or [""]:
        if one not in shown:
            raise CannotOpen(f"no key of {user.name} has the fingerprint {one}, but {_join(shown.values())}")
    return {shown[one] for one in told}


def is_same_fingerprint(typed: str, fingerprint: str) -> bool:
    """Whether a person typed this fingerprint. Spaces are left out and capitals written: what counts is the digits."""
    return "".join(typed.split()).lower() == fingerprint.replace(" ", "")


def standing(pinned: tuple[Pin, ...], fingerprint: str) -> str:
    """What the pins of a user say of a fingerprint that is shown for it, in a word or two."""
    for pin in pinned:
        if pin.fingerprint == fingerprint:
            return pin.trust.value if pin.revoked_at is None else "revoked"
    return "another key than was met" if pinned else "never met"


def _follow_endorsements(pinned: tuple[Pin, ...], keys: Sequence[Key]) -> tuple[Pin, ...]:
    by_id = {key.id: key for key in keys}
    waiting = [key for key in keys if key.endorsed_by in by_id]
    # A key may be endorsed by one that is itself taken for its endorsement: go on until nothing is added.
    while True:
        known = {pin.fingerprint: pin for pin in pinned}
        added = []
        for key in waiting:
            fingerprint, endorser = _fingerprint(key), by_id[key.endorsed_by] if key.endorsed_by else None
            voucher = known.get(_fingerprint(endorser)) if endorser else None
            if fingerprint in known or endorser is None or voucher is None or voucher.revoked_at is not None:
                continue
            if _is_endorsed(key, endorser):
                trust = Trust.UNVERIFIED if voucher.trust is Trust.UNVERIFIED else Trust.ENDORSED
                added.append(Pin(fingerprint=fingerprint, trust=trust))
        if not added:
            return pinned
        pinned = (*pinned, *added)


def _is_endorsed(key: Key, endorser: Key) -> bool:
    try:
        check_key(key)
        check_key(endorser)
        sealing_keys.check_endorsement(
            key.user_id, key.public_key, key.verify_key, endorser.verify_key, key.endorsement or b""
        )
    except (SealingError, CannotOpen):
        return False
    return True


def _note_revocations(pinned: tuple[Pin, ...], keys: Sequence[Key]) -> tuple[Pin, ...]:
    revoked = {_fingerprint(key): key.revoked_at for key in keys if key.revoked_at is not None}
    return tuple(
        msgspec.structs.replace(pin, revoked_at=revoked[pin.fingerprint])
        if pin.revoked_at is None and pin.fingerprint in revoked
        else pin
        for pin in pinned
    )


def _join(fingerprints: Iterable[str]) -> str:
    return " or ".join(fingerprints) or "none at all"


def _fingerprint(key: Key) -> str:
    try:
        return sealing_keys.fingerprint(key.user_id, key.public_key, key.verify_key)
    except SealingError:
        return ""
