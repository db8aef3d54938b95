"""Ed25519 as libsodium makes and verifies it: signatures of 64 bytes, verify keys and seeds of 32."""

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError

from server.sealing.digests import is_bytes
from server.sealing.errors import InvalidKey

SEED_BYTES = 32
VERIFY_KEY_BYTES = 32
SIGNATURE_BYTES = 64


def verify_key_of(seed: bytes) -> bytes:
    """The public half, 32 bytes, of a seed of 32 bytes; else InvalidKey."""
    return _expand(seed)[0]


def sign(message: bytes, seed: bytes) -> bytes:
    """The signature alone, 64 bytes. Raises InvalidKey unless the seed has 32 bytes."""
    return crypto_sign(message, _expand(seed)[1])[:SIGNATURE_BYTES]


def is_signed(message: bytes, signature: object, verify_key: object) -> bool:
    """Whether `signature` holds. False, never an error, for any lengths and for None.

    libsodium takes S < L alone, compares R byte for byte (no cofactor), and refuses keys and R of low order and keys
    that are not canonical.
    """
    # libsodium's call takes signature and message joined, and PyNaCl hands a short key to C as it is. With a length
    # unchecked, a signature of 65 bytes made over "last byte ‖ message" would pass.
    if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
        return False
    if not isinstance(verify_key, bytes) or len(verify_key) != VERIFY_KEY_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, verify_key)
    except CryptoError:
        return False
    return True


def _expand(seed: bytes) -> tuple[bytes, bytes]:
    if not is_bytes(seed, SEED_BYTES):
        raise InvalidKey
    return crypto_sign_seed_keypair(seed)
