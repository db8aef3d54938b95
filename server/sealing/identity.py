"""The identity file: private keys at rest, wrapped by a passphrase.

    "secureblogs identity v1" ‖ opslimit(4) ‖ memlimit(8) ‖ salt(16)      the header, numbers big-endian: 51 bytes
    nonce(24) ‖ XChaCha20-Poly1305-IETF(plaintext, ad = header)           under Argon2id(passphrase, salt)

The cost is in the file, so that it can rise with machines; it is authenticated, so that lowering it opens nothing.
"""

import struct

from nacl.utils import random

from server.sealing import argon2id, ciphers
from server.sealing.argon2id import CHEAPEST, MODERATE, SALT_BYTES, Cost
from server.sealing.errors import IdentityUnreadable, WrongPassphrase

LABEL = b"secureblogs identity v1"

_COST = struct.Struct(">IQ")
_HEADER_BYTES = len(LABEL) + _COST.size + SALT_BYTES

# What a file may ask for: a changed one must not take all memory or run for ever. 1 GiB is libsodium's SENSITIVE.
_MAX_OPSLIMIT = 16
_MAX_MEMLIMIT = 1 << 30


def wrap_identity(plaintext: bytes, passphrase: str, cost: Cost = MODERATE) -> bytes:
    """`len(plaintext) + 91` bytes, in 256 MiB and some 400 ms. Raises NoMemory."""
    header = LABEL + _COST.pack(*cost) + random(SALT_BYTES)
    return header + ciphers.encrypt(plaintext, header, ciphers.new_nonce(), _key(passphrase, header))


def unwrap_identity(wrapped: bytes, passphrase: str) -> bytes:
    """What was wrapped.

    Raises WrongPassphrase where it does not open, IdentityUnreadable where these are no bytes of ours or ask for more
    than 1 GiB or 16 passes, NoMemory.
    """
    if len(wrapped) < _HEADER_BYTES + ciphers.OVERHEAD_BYTES or not wrapped.startswith(LABEL):
        raise IdentityUnreadable
    header = wrapped[:_HEADER_BYTES]
    plaintext = ciphers.decrypt(wrapped[_HEADER_BYTES:], header, _key(passphrase, header))
    if plaintext is None:
        raise WrongPassphrase
    return plaintext


def _key(passphrase: str, header: bytes) -> bytes:
    cost = Cost(*_COST.unpack_from(header, len(LABEL)))
    if not CHEAPEST.opslimit <= cost.opslimit <= _MAX_OPSLIMIT:
        raise IdentityUnreadable
    if not CHEAPEST.memlimit <= cost.memlimit <= _MAX_MEMLIMIT:
        raise IdentityUnreadable
    return argon2id.derive_key(ciphers.KEY_BYTES, passphrase, header[-SALT_BYTES:], cost)
