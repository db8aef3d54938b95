"""`crypto_box_seal`: to one X25519 public key, from nobody. Ephemeral key(32) ‖ tag(16) ‖ ciphertext."""

from nacl.bindings import crypto_box_seal, crypto_box_seal_open, crypto_scalarmult_base
from nacl.exceptions import CryptoError

from server.sealing.digests import is_bytes
from server.sealing.errors import InvalidKey, UnusableKey

PUBLIC_KEY_BYTES = 32
PRIVATE_KEY_BYTES = 32
OVERHEAD_BYTES = 48

_P = 2**255 - 19
# The u-coordinates of low order: X25519 with one of them gives zero whatever the private key, so that anybody could
# open what is sealed to it. Two are of order 8; the others are 0, 1 and -1.
_LOW_ORDER = frozenset(
    {
        0,
        1,
        _P - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)


def check_public_key(public_key: bytes) -> None:
    """Raises InvalidKey unless this is 32 bytes, canonical (top bit included) and not of low order."""
    if not is_bytes(public_key, PUBLIC_KEY_BYTES):
        raise InvalidKey
    # X25519 masks the top bit and reduces by p: without this, one key would have several encodings, and what is unique
    # in the database or pinned by a client would not be unique to a reader.
    u = int.from_bytes(public_key, "little")
    if u >= _P or u in _LOW_ORDER:
        raise InvalidKey


def public_key_of(private_key: bytes) -> bytes:
    """The public half, 32 bytes, of a private key of 32 bytes; else InvalidKey."""
    if not is_bytes(private_key, PRIVATE_KEY_BYTES):
        raise InvalidKey
    return crypto_scalarmult_base(private_key)


def seal(message: bytes, public_key: bytes) -> bytes:
    """`len(message) + 48` bytes. Raises UnusableKey for a key that `check_public_key` refuses or libsodium does."""
    try:
        check_public_key(public_key)
        return crypto_box_seal(message, public_key)
    except (InvalidKey, CryptoError):
        raise UnusableKey from None


def unseal(sealed: object, private_key: object) -> bytes | None:
    """The message, or None where it does not open: wrong lengths, another recipient, or a changed byte."""
    # PyNaCl raises its TypeError for a short box and its ValueError for a short key: lengths come first.
    if not isinstance(sealed, bytes) or len(sealed) < OVERHEAD_BYTES:
        return None
    if not isinstance(private_key, bytes) or len(private_key) != PRIVATE_KEY_BYTES:
        return None
    try:
        return crypto_box_seal_open(sealed, crypto_scalarmult_base(private_key), private_key)
    except CryptoError:
        return None
