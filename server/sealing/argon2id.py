"""Argon2id: what makes guessing a password dear. `opslimit` counts passes, `memlimit` is bytes of memory."""

import unicodedata
from base64 import b64encode
from typing import NamedTuple

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.utils import random

from server.sealing.errors import NoMemory

SALT_BYTES = argon2id.SALTBYTES


class Cost(NamedTuple):
    """Passes over the memory, and the memory in bytes."""

    opslimit: int
    memlimit: int


# libsodium's own choices. The first takes 64 MiB and some 65 ms: many log in at once. The second takes 256 MiB and some
# 400 ms: one person unwraps one file.
INTERACTIVE = Cost(argon2id.OPSLIMIT_INTERACTIVE, argon2id.MEMLIMIT_INTERACTIVE)
MODERATE = Cost(argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE)
CHEAPEST = Cost(argon2id.OPSLIMIT_MIN, argon2id.MEMLIMIT_MIN)


def password_bytes(password: str) -> bytes:
    """UTF-8 of the password in normal form C, for the same keys give other code points on other systems.

    A lone surrogate, as Python makes it of a byte that is not UTF-8, gives bytes too, and never an error.
    """
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def derive_key(length: int, password: str, salt: bytes, cost: Cost) -> bytes:
    """A key of `length` bytes from a password and a salt of 16 bytes. Raises NoMemory."""
    try:
        return argon2id.kdf(length, password_bytes(password), salt, cost.opslimit, cost.memlimit)
    except CryptoError:
        raise NoMemory from None


def hash_string(password: str, cost: Cost) -> str:
    """The usual text "$argon2id$v=19$m=…,t=…,p=1$salt$hash", with a random salt. Raises NoMemory."""
    try:
        return argon2id.str(password_bytes(password), cost.opslimit, cost.memlimit).decode("ascii")
    except CryptoError:
        raise NoMemory from None


def random_string(cost: Cost) -> str:
    """A text like that of `hash_string`, made without its work: salt and hash are random, so it is of no password."""
    salt, hashed = (b64encode(random(length)).decode("ascii").rstrip("=") for length in (SALT_BYTES, 32))
    return f"$argon2id$v=19$m={cost.memlimit // 1024},t={cost.opslimit},p=1${salt}${hashed}"


def matches(hashed: str, password: str) -> bool:
    """Whether `hashed` is of this password. False, never an error, for any text."""
    try:
        return argon2id.verify(hashed.encode("ascii"), password_bytes(password))
    except (CryptoError, UnicodeEncodeError):
        return False
