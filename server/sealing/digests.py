"""Hashes. BLAKE2b has its digest size as a parameter, no salt, no person, and a key only where it says so."""

import hashlib
from hmac import compare_digest

from nacl.bindings.crypto_generichash import generichash_blake2b_final, generichash_blake2b_init

from server.sealing import sodium
from server.sealing.errors import InvalidKey
from server.sealing.sodium import Buffer

HASH_BYTES = 32
MAC_KEY_BYTES = 32


def blake2b_256(message: bytes) -> bytes:
    """BLAKE2b-256, unkeyed: 32 bytes."""
    return hashlib.blake2b(message, digest_size=HASH_BYTES).digest()


class Blake2b256:
    """BLAKE2b-256, unkeyed, of what comes in pieces. By libsodium, which takes two thirds of hashlib's time."""

    def __init__(self) -> None:
        self._state = generichash_blake2b_init(digest_size=HASH_BYTES)

    def update(self, some: Buffer) -> None:
        """Takes the next bytes, any number; the GIL is free meanwhile."""
        sodium.blake2b_update(self._state, some)

    def digest(self) -> bytes:
        """32 bytes, of all that came so far."""
        return generichash_blake2b_final(self._state.copy())


def keyed_blake2b_256(key: bytes, message: bytes) -> bytes:
    """BLAKE2b-256 under a key of 32 bytes. Raises InvalidKey for another length."""
    # A key of no bytes would silently be BLAKE2b without a key, which anybody can compute.
    if not is_bytes(key, MAC_KEY_BYTES):
        raise InvalidKey
    return hashlib.blake2b(message, digest_size=HASH_BYTES, key=key).digest()


def request_mac(key: bytes, message: bytes) -> bytes:
    """What is kept of a request instead of the request: BLAKE2b-256 under the API's key of 32 bytes; 32 bytes.

    Raises InvalidKey for a key of another length.
    """
    return keyed_blake2b_256(key, message)


def sha256(message: bytes) -> bytes:
    """SHA-256: 32 bytes."""
    return hashlib.sha256(message).digest()


def token_hash(token: str) -> bytes:
    """SHA-256 of a token, 32 bytes. A token holds 256 random bits, so that a plain hash can't be searched."""
    # Tokens come from strangers: "surrogatepass" gives bytes for every str there is, different ones for different ones.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def same(left: bytes, right: bytes) -> bool:
    """Compares in a time that depends on the lengths alone."""
    return compare_digest(left, right)


def is_bytes(value: object, length: int) -> bool:
    """Whether `value` is bytes of just this length: looked at before anything is joined or handed to C."""
    return isinstance(value, bytes) and len(value) == length
