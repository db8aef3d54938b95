from collections.abc import Iterator
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_scalarmult

from server.sealing import keys, posts
from server.sealing.errors import BadProof, InvalidKey, UnusableKey

from .tampering import flips
from .wire_vectors import Case, each, raw, uuid

ANA = UUID("0197c5a4-0e0e-7ac4-8df5-4cd587eceb41")


@each("public_key")
def test_vector_of_a_public_key(case: Case) -> None:
    public_key = raw(case, "public_key")
    if case["valid"]:
        keys.check_public_key(public_key)
        assert len(posts.seal_key(bytes(32), public_key)) == 80
    else:
        with pytest.raises(InvalidKey):
            keys.check_public_key(public_key)
        with pytest.raises(UnusableKey):
            posts.seal_key(bytes(32), public_key)


@each("fingerprint")
def test_vector_of_a_fingerprint(case: Case) -> None:
    shown = keys.fingerprint(uuid(case, "user"), raw(case, "public_key"), raw(case, "verify_key"))
    assert (shown == case["shown"]) is case["valid"]
    if case["valid"]:
        assert shown.replace(" ", "") == case["fingerprint_hex"]


@each("enrolment_proof")
def test_vector_of_a_proof(case: Case) -> None:
    parts = uuid(case, "user"), raw(case, "public_key"), raw(case, "verify_key"), raw(case, "proof")
    if not case["valid"]:
        with pytest.raises(BadProof):
            keys.check_proof(*parts)
        return
    keys.check_proof(*parts)
    if "signing_seed_hex" in case:
        seed = raw(case, "signing_seed")
        assert keys.signing_pair(seed) == keys.KeyPair(parts[2], seed)
        assert keys.prove(parts[0], parts[1], seed) == parts[3]


@each("endorsement")
def test_vector_of_an_endorsement(case: Case) -> None:
    def vouch() -> None:
        # Whose key the endorser is, is known to who holds the keys: only this user's are asked.
        if uuid(case, "endorser_user") != uuid(case, "user"):
            raise BadProof
        keys.check_endorsement(
            uuid(case, "user"),
            raw(case, "public_key"),
            raw(case, "verify_key"),
            raw(case, "endorser_verify_key"),
            raw(case, "endorsement"),
        )

    if not case["valid"]:
        with pytest.raises(BadProof):
            vouch()
        return
    vouch()
    seed = raw(case, "endorser_signing_seed")
    endorsement = keys.endorse(uuid(case, "user"), raw(case, "public_key"), raw(case, "verify_key"), seed)
    assert endorsement == raw(case, "endorsement")


def test_literals() -> None:
    pair = keys.encryption_pair(bytes(range(32)))
    assert pair.public.hex() == "8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f"
    signing = keys.signing_pair(bytes(range(32)))
    assert signing.public.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert keys.prove(ANA, pair.public, signing.private).hex() == (
        "d05e1fad646c976907bedea289475964cef5998e0582751336fac594c0d66ec44498913552945a90743ba0c1e4a7f4b2"
        "89d4273d06c0859d2df14dc656da840d"
    )
    assert keys.endorse(ANA, pair.public, bytes(32), signing.private).hex() == (
        "5011680308dbb27fd233973773c37c40d7886af44e6e7ab4ec0644276573ef09efb8722c205f5173b745d13b1aa3024b"
        "d579e2818a47052818b42db8d708480d"
    )
    assert keys.fingerprint(ANA, pair.public, signing.public) == "2773 1d5e 05cc 93d6 7f72 481d 64e8 7637 bf2e 839d"


def test_new_pairs_are_whole_and_new() -> None:
    encryption, signing = keys.new_encryption_pair(), keys.new_signing_pair()
    assert keys.encryption_pair(encryption.private) == encryption
    assert keys.signing_pair(signing.private) == signing
    assert keys.new_encryption_pair() != encryption
    assert keys.new_signing_pair() != signing
    keys.check_public_key(encryption.public)


def test_every_refused_canonical_key_gives_zero() -> None:
    # libsodium refuses to give a shared secret of zero: that is what "of low order" means.
    for u in (0, 1, 2**255 - 20):
        with pytest.raises(RuntimeError):
            crypto_scalarmult(bytes(range(32)), u.to_bytes(32, "little"))


def test_flipped_proofs_and_endorsements_are_refused() -> None:
    first, second = keys.new_signing_pair(), keys.new_signing_pair()
    public = keys.new_encryption_pair().public
    proof = keys.prove(ANA, public, first.private)
    endorsement = keys.endorse(ANA, public, second.public, first.private)
    keys.check_proof(ANA, public, first.public, proof)
    keys.check_endorsement(ANA, public, second.public, first.public, endorsement)
    for parts in flips_of_each(ANA.bytes, public, first.public, proof):
        with pytest.raises(BadProof):
            keys.check_proof(UUID(bytes=parts[0]), *parts[1:])
    for parts in flips_of_each(ANA.bytes, public, second.public, first.public, endorsement):
        with pytest.raises(BadProof):
            keys.check_endorsement(UUID(bytes=parts[0]), *parts[1:])


def flips_of_each(*parts: bytes) -> Iterator[list[bytes]]:
    for place, part in enumerate(parts):
        for changed in flips(part):
            yield [*parts[:place], changed, *parts[place + 1 :]]


def test_bytes_do_not_move_between_the_keys() -> None:
    # 31 + 33 bytes join to the same message as 32 + 32: lengths are looked at before anything is joined.
    signing = keys.new_signing_pair()
    public = keys.new_encryption_pair().public
    proof = keys.prove(ANA, public, signing.private)
    with pytest.raises(BadProof):
        keys.check_proof(ANA, public + signing.public[:1], signing.public[1:], proof)
    with pytest.raises(InvalidKey):
        keys.fingerprint(ANA, public + signing.public[:1], signing.public[1:])


@given(st.binary(max_size=70), st.binary(max_size=70), st.binary(max_size=70))
def test_any_bytes_are_refused_by_name(first: bytes, second: bytes, third: bytes) -> None:
    with pytest.raises(BadProof):
        keys.check_proof(ANA, first, second, third)
    with pytest.raises(BadProof):
        keys.check_endorsement(ANA, bytes(32), first, second, third)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_keys_of_another_length_are_refused_by_name(length: int) -> None:
    wrong, good = bytes(length), bytes(32)
    for make in (
        lambda: keys.encryption_pair(wrong),
        lambda: keys.signing_pair(wrong),
        lambda: keys.prove(ANA, wrong, good),
        lambda: keys.prove(ANA, good, wrong),
        lambda: keys.endorse(ANA, wrong, good, good),
        lambda: keys.endorse(ANA, good, wrong, good),
        lambda: keys.endorse(ANA, good, good, wrong),
        lambda: keys.fingerprint(ANA, wrong, good),
        lambda: keys.fingerprint(ANA, good, wrong),
    ):
        with pytest.raises(InvalidKey):
            make()


def test_no_key_endorses_itself() -> None:
    pair = keys.new_signing_pair()
    with pytest.raises(InvalidKey):
        keys.endorse(ANA, bytes(32), pair.public, pair.private)
