"""A user's two key pairs, and what binds them to the user.

A user has an X25519 pair to be sealed to and an Ed25519 pair to sign with. Neither is ever made from the other. The
private halves stay with the client. A `proof` signs both public halves and the user's id, an `endorsement` does
so by another key of the same user, and a `fingerprint` is what people read to each other.
"""

import hashlib
from typing import NamedTuple
from uuid import UUID

from nacl.bindings import crypto_box_keypair
from nacl.utils import random

from server.sealing import boxes, signatures
from server.sealing.boxes import PUBLIC_KEY_BYTES, check_public_key
from server.sealing.digests import is_bytes
from server.sealing.errors import BadProof, InvalidKey
from server.sealing.signatures import SEED_BYTES, SIGNATURE_BYTES, VERIFY_KEY_BYTES

__all__ = [
    "PUBLIC_KEY_BYTES",
    "SEED_BYTES",
    "SIGNATURE_BYTES",
    "VERIFY_KEY_BYTES",
    "KeyPair",
    "check_endorsement",
    "check_proof",
    "check_public_key",
    "encryption_pair",
    "endorse",
    "fingerprint",
    "new_encryption_pair",
    "new_signing_pair",
    "prove",
    "signing_pair",
]

PROOF_LABEL = b"secureblogs key v1"
ENDORSEMENT_LABEL = b"secureblogs endorse v1"
FINGERPRINT_LABEL = b"secureblogs fingerprint v1"

_FINGERPRINT_BYTES = 20


class KeyPair(NamedTuple):
    """X25519: public key and private key, 32 + 32 bytes. Ed25519: verify key and seed, 32 + 32 bytes."""

    public: bytes
    private: bytes


def new_encryption_pair() -> KeyPair:
    """A new X25519 pair."""
    return KeyPair(*crypto_box_keypair())


def new_signing_pair() -> KeyPair:
    """A new Ed25519 pair."""
    return signing_pair(random(SEED_BYTES))


def encryption_pair(private: bytes) -> KeyPair:
    """The X25519 pair of a private key of 32 bytes; else InvalidKey."""
    return KeyPair(boxes.public_key_of(private), private)


def signing_pair(seed: bytes) -> KeyPair:
    """The Ed25519 pair of a seed of 32 bytes; else InvalidKey."""
    return KeyPair(signatures.verify_key_of(seed), seed)


def prove(user_id: UUID, public_key: bytes, signing_seed: bytes) -> bytes:
    """The proof, 64 bytes, that who holds the signing key takes `public_key` for this user.

    Raises InvalidKey for a key or seed that is not 32 bytes.
    """
    verify_key = signatures.verify_key_of(signing_seed)
    return signatures.sign(_bound(PROOF_LABEL, user_id, public_key, verify_key), signing_seed)


def check_proof(user_id: UUID, public_key: bytes, verify_key: bytes, proof: bytes) -> None:
    """Raises BadProof unless `proof` holds; lengths and None included."""
    if not _is_key(public_key, verify_key):
        raise BadProof
    if not signatures.is_signed(_bound(PROOF_LABEL, user_id, public_key, verify_key), proof, verify_key):
        raise BadProof


def endorse(user_id: UUID, public_key: bytes, verify_key: bytes, endorser_seed: bytes) -> bytes:
    """The endorsement, 64 bytes, of a new key by another key of the same user.

    Raises InvalidKey for a key or seed that is not 32 bytes, or that endorses itself.
    """
    if signatures.verify_key_of(endorser_seed) == verify_key:
        raise InvalidKey
    return signatures.sign(_bound(ENDORSEMENT_LABEL, user_id, public_key, verify_key), endorser_seed)


def check_endorsement(
    user_id: UUID, public_key: bytes, verify_key: bytes, endorser_verify_key: bytes, endorsement: bytes
) -> None:
    """Raises BadProof unless `endorsement` of the first key holds by the second; lengths and None included.

    That the endorser is a key of `user_id`, and active or pinned, is the caller's to know: it looks
    `endorser_verify_key` up among that user's keys.
    """
    # A key that vouches for itself would say nothing, and its signature holds.
    if not _is_key(public_key, verify_key) or endorser_verify_key == verify_key:
        raise BadProof
    message = _bound(ENDORSEMENT_LABEL, user_id, public_key, verify_key)
    if not signatures.is_signed(message, endorsement, endorser_verify_key):
        raise BadProof


def fingerprint(user_id: UUID, public_key: bytes, verify_key: bytes) -> str:
    """BLAKE2b-160 of user and keys, as people read it: "21b9 a9ff 7afc …", ten groups of four; 49 characters.

    Raises InvalidKey unless both keys have 32 bytes.
    """
    message = _bound(FINGERPRINT_LABEL, user_id, public_key, verify_key)
    digest = hashlib.blake2b(message, digest_size=_FINGERPRINT_BYTES).digest()
    return digest.hex(" ", 2)


def _bound(label: bytes, user_id: UUID, public_key: bytes, verify_key: bytes) -> bytes:
    # Every part but the label has a fixed length, and no label begins another: no two meanings give the same bytes.
    if not _is_key(public_key, verify_key):
        raise InvalidKey
    return label + user_id.bytes + public_key + verify_key


def _is_key(public_key: object, verify_key: object) -> bool:
    return is_bytes(public_key, PUBLIC_KEY_BYTES) and is_bytes(verify_key, VERIFY_KEY_BYTES)
