"""XChaCha20-Poly1305-IETF: nonce(24) ‖ ciphertext ‖ tag(16)."""

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt, crypto_aead_xchacha20poly1305_ietf_encrypt
from nacl.exceptions import CryptoError
from nacl.utils import random

from server.sealing.digests import is_bytes
from server.sealing.errors import InvalidKey

KEY_BYTES = 32
NONCE_BYTES = 24
TAG_BYTES = 16
OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES


def new_key() -> bytes:
    """32 random bytes."""
    return random(KEY_BYTES)


def new_nonce() -> bytes:
    """24 random bytes: so many that drawing them anew for every message never repeats one."""
    return random(NONCE_BYTES)


def encrypt(plaintext: bytes, associated: bytes, nonce: bytes, key: bytes) -> bytes:
    """`len(plaintext) + 40` bytes. Raises InvalidKey unless key and nonce have 32 and 24 bytes."""
    if not is_bytes(key, KEY_BYTES) or not is_bytes(nonce, NONCE_BYTES):
        raise InvalidKey
    return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, associated, nonce, key)


def decrypt(ciphertext: object, associated: bytes, key: object) -> bytes | None:
    """The plaintext, or None where it does not open: wrong lengths, key, associated data, or a changed byte."""
    # PyNaCl's errors for wrong lengths are of four kinds, one of them the built-in ValueError: they are looked at here.
    if not isinstance(ciphertext, bytes) or len(ciphertext) < OVERHEAD_BYTES:
        return None
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        return None
    nonce, sealed = ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:]
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, associated, nonce, key)
    except CryptoError:
        return None
