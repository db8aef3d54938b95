from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

from client import files
from client.errors import CannotOpen, StorageError, UntrustedKey
from client.identity import HeldKey, make_key
from client.models import Key, UserKeys
from client.pins import (
    Pin,
    Trust,
    accept,
    check_key,
    confirm,
    match_fingerprints,
    note_revoked,
    read_pins,
    save_pins,
)
from server.sealing import keys as sealing_keys

CAROL = UUID("01a20321-aa40-76b8-945e-763e3993c3be")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def made() -> HeldKey:
    return msgspec.structs.replace(make_key(CAROL, "", "", NOW), key_id=uuid4())


def shown(held: HeldKey, endorser: HeldKey | None = None, revoked: bool = False, user_id: UUID = CAROL) -> Key:
    assert held.key_id is not None
    endorsement = None
    if endorser is not None:
        endorsement = sealing_keys.endorse(user_id, held.public_key, held.verify_key, endorser.signing_seed)
    return Key(
        id=held.key_id,
        user_id=user_id,
        public_key=held.public_key,
        verify_key=held.verify_key,
        proof=sealing_keys.prove(user_id, held.public_key, held.signing_seed),
        fingerprint=sealing_keys.fingerprint(user_id, held.public_key, held.verify_key),
        label="",
        created_at=NOW,
        endorsed_by=endorser.key_id if endorser else None,
        endorsement=endorsement,
        revoked_at=NOW + timedelta(hours=1) if revoked else None,
    )


def carol(*keys: Key) -> UserKeys:
    return UserKeys(id=CAROL, name="Carol", keys=list(keys))


def fingerprints(pins: tuple[Pin, ...]) -> set[str]:
    return {pin.fingerprint for pin in pins}


def test_the_first_key_that_is_met_is_pinned_as_unverified() -> None:
    first = shown(made())
    pins, trust = accept((), carol(first), first)
    assert trust is Trust.UNVERIFIED
    assert pins == (Pin(fingerprint=first.fingerprint, trust=Trust.UNVERIFIED),)


def test_a_pinned_key_is_met_again_as_it_was() -> None:
    first = shown(made())
    pinned = (Pin(fingerprint=first.fingerprint, trust=Trust.VERIFIED),)
    assert accept(pinned, carol(first), first) == (pinned, Trust.VERIFIED)


def test_another_key_that_nobody_endorses_stops_the_client() -> None:
    first, second = shown(made()), shown(made())
    pinned, _ = accept((), carol(first), first)
    with pytest.raises(UntrustedKey) as caught:
        accept(pinned, carol(second, first), second)
    assert caught.value.pinned == (first.fingerprint,)
    assert caught.value.new == second.fingerprint


def test_the_keys_beside_the_first_one_are_not_pinned_with_it() -> None:
    first, second = shown(made()), shown(made())
    pinned, _ = accept((), carol(second, first), first)
    assert fingerprints(pinned) == {first.fingerprint}


@pytest.mark.parametrize(
    ("trust", "inherited"),
    [(Trust.VERIFIED, Trust.ENDORSED), (Trust.ENDORSED, Trust.ENDORSED), (Trust.UNVERIFIED, Trust.UNVERIFIED)],
)
def test_a_key_that_a_pinned_one_endorses_is_taken(trust: Trust, inherited: Trust) -> None:
    old = made()
    first, second = shown(old), shown(made(), endorser=old)
    pinned = (Pin(fingerprint=first.fingerprint, trust=trust),)
    pins, taken = accept(pinned, carol(second, first), second)
    assert taken is inherited
    assert fingerprints(pins) == {first.fingerprint, second.fingerprint}


def test_endorsements_are_followed_from_key_to_key() -> None:
    one, two, three = made(), made(), made()
    keys = [shown(three, endorser=two), shown(two, endorser=one), shown(one)]
    pinned = (Pin(fingerprint=keys[2].fingerprint, trust=Trust.VERIFIED),)
    pins, trust = accept(pinned, carol(*keys), keys[0])
    assert trust is Trust.ENDORSED
    assert len(pins) == 3


def test_an_endorsement_by_a_key_that_is_not_pinned_counts_for_nothing() -> None:
    pinned_key, stranger = shown(made()), made()
    second = shown(made(), endorser=stranger)
    pinned, _ = accept((), carol(pinned_key), pinned_key)
    with pytest.raises(UntrustedKey):
        accept(pinned, carol(second, shown(stranger), pinned_key), second)


def test_an_endorsement_that_names_a_pinned_key_and_was_made_by_another_counts_for_nothing() -> None:
    old, stranger = made(), made()
    first = shown(old)
    second = msgspec.structs.replace(shown(made(), endorser=stranger), endorsed_by=first.id)
    pinned, _ = accept((), carol(first), first)
    with pytest.raises(UntrustedKey):
        accept(pinned, carol(second, first), second)


def test_a_key_that_was_endorsed_and_whose_endorser_is_revoked_since_is_taken() -> None:
    old = made()
    pinned, _ = accept((), carol(shown(old)), shown(old))
    second = shown(made(), endorser=old)
    pins, _ = accept(pinned, carol(second, shown(old, revoked=True)), second)
    assert second.fingerprint in fingerprints(pins)


def test_a_key_whose_revocation_was_seen_endorses_nothing_even_if_the_server_denies_the_revocation() -> None:
    old, own = made(), made()
    met = carol(shown(own), shown(old, revoked=True))
    pinned, _ = accept((Pin(fingerprint=shown(old).fingerprint, trust=Trust.VERIFIED),), met, shown(old, revoked=True))
    second = shown(made(), endorser=old)
    with pytest.raises(UntrustedKey):
        accept(pinned, carol(second, shown(old)), second)


def test_a_seen_revocation_is_kept() -> None:
    old = made()
    pinned, _ = accept((), carol(shown(old)), shown(old))
    pinned, _ = accept(pinned, carol(shown(old, revoked=True)), shown(old, revoked=True))
    pinned, _ = accept(pinned, carol(shown(old)), shown(old))
    assert pinned[0].revoked_at == NOW + timedelta(hours=1)


@pytest.mark.parametrize("field", ["public_key", "verify_key", "proof", "fingerprint"])
def test_a_key_is_not_met_under_a_proof_or_fingerprint_of_another(field: str) -> None:
    key = msgspec.structs.replace(shown(made()), **{field: getattr(shown(made()), field)})
    with pytest.raises(CannotOpen):
        check_key(key)
    with pytest.raises(CannotOpen):
        accept((), carol(key), key)


def test_a_later_revocation_does_not_take_the_place_of_the_one_that_was_seen() -> None:
    old = shown(made(), revoked=True)
    pinned, _ = accept((), carol(old), old)
    later = msgspec.structs.replace(old, revoked_at=NOW + timedelta(days=9))
    pinned, _ = accept(pinned, carol(later), later)
    assert pinned[0].revoked_at == NOW + timedelta(hours=1)


def test_a_key_that_nothing_can_be_sealed_to_is_not_met_whatever_it_proves() -> None:
    signing, low_order = made(), bytes(32)
    key = msgspec.structs.replace(
        shown(signing),
        public_key=low_order,
        proof=sealing_keys.prove(CAROL, low_order, signing.signing_seed),
        fingerprint=sealing_keys.fingerprint(CAROL, low_order, signing.verify_key),
    )
    with pytest.raises(CannotOpen):
        check_key(key)


def test_a_key_of_another_user_is_not_met_as_this_ones() -> None:
    mallory = uuid4()
    key = msgspec.structs.replace(shown(made(), user_id=mallory), user_id=CAROL)
    with pytest.raises(CannotOpen):
        accept((), carol(key), key)


def test_confirming_pins_compared_keys_as_verified_and_keeps_the_others() -> None:
    old, new, gone = shown(made()), shown(made()), shown(made(), revoked=True)
    pinned = tuple(Pin(fingerprint=key.fingerprint, trust=Trust.UNVERIFIED) for key in (old, gone))
    compared = {old.fingerprint, new.fingerprint}
    confirmed = {pin.fingerprint: pin for pin in confirm(pinned, carol(new, old, gone), compared)}
    assert confirmed[old.fingerprint].trust is Trust.VERIFIED
    assert confirmed[new.fingerprint].trust is Trust.VERIFIED
    assert confirmed[gone.fingerprint].trust is Trust.UNVERIFIED
    assert confirmed[gone.fingerprint].revoked_at is not None


def test_confirming_brings_no_revoked_key_back() -> None:
    gone = shown(made())
    pinned = (Pin(fingerprint=gone.fingerprint, trust=Trust.VERIFIED, revoked_at=NOW),)
    assert confirm(pinned, carol(gone), {gone.fingerprint}) == pinned


def test_a_typed_fingerprint_counts_by_its_digits() -> None:
    old, new = shown(made()), shown(made())
    groups = [*old.fingerprint.upper().split(), new.fingerprint.replace(" ", "  ")]
    assert match_fingerprints(groups, carol(new, old)) == {old.fingerprint, new.fingerprint}
    assert match_fingerprints([new.fingerprint.replace(" ", "")], carol(new, old)) == {new.fingerprint}


def test_a_fingerprint_that_is_not_wholly_the_same_is_refused() -> None:
    key = shown(made())
    for typed in (key.fingerprint[:-1], key.fingerprint + "0", "0" + key.fingerprint[1:] + "g", "", "g" * 40):
        with pytest.raises(CannotOpen, match=key.fingerprint):
            match_fingerprints([typed], carol(key))


def test_no_fingerprint_is_compared_with_a_key_without_a_proof() -> None:
    bad = msgspec.structs.replace(shown(made()), proof=bytes(64))
    with pytest.raises(CannotOpen, match="proof"):
        match_fingerprints([bad.fingerprint], carol(bad))


def test_a_key_that_one_revoked_oneself_stays_so_whatever_the_server_shows() -> None:
    known, unknown = shown(made()), shown(made())
    pinned = (Pin(fingerprint=known.fingerprint, trust=Trust.VERIFIED),)
    after = note_revoked(pinned, [known, unknown], NOW)
    assert {pin.fingerprint: (pin.trust, pin.revoked_at) for pin in after} == {
        known.fingerprint: (Trust.VERIFIED, NOW),
        unknown.fingerprint: (Trust.UNVERIFIED, NOW),
    }


def test_pins_of_one_user_leave_those_of_others_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "pins.json", uuid4()
    first = Pin(fingerprint="aaaa", trust=Trust.VERIFIED, revoked_at=NOW)
    save_pins(path, {CAROL: (first,)})
    save_pins(path, {other: (Pin(fingerprint="bbbb", trust=Trust.UNVERIFIED),)})
    pins = read_pins(path)
    assert pins.users[CAROL] == (first,)
    assert set(pins.users) == {CAROL, other}


def test_damaged_pins_are_not_taken_for_none(tmp_path: Path) -> None:
    files.write(tmp_path / "pins.json", b'{"v":1,')
    with pytest.raises(StorageError, match="damaged"):
        read_pins(tmp_path / "pins.json")
