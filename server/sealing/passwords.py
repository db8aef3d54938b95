"""Passwords of local users, as the server keeps them."""

from server.sealing import argon2id
from server.sealing.argon2id import INTERACTIVE, Cost


def hash_password(password: str, cost: Cost = INTERACTIVE) -> str:
    """Argon2id with a random salt, as ASCII text of about 97 characters; 64 MiB for some 65 ms. Raises NoMemory.

    The GIL is released meanwhile: call it in a thread.
    """
    return argon2id.hash_string(password, cost)


def hash_of_nothing() -> str:
    """As long and as dear to check as any of `hash_password`, but at random and so of no password."""
    return argon2id.random_string(INTERACTIVE)


def check_password(hashed: str, password: str) -> bool:
    """Whether the password is the one that was hashed; False for a `hashed` that is none. It costs what that cost."""
    return argon2id.matches(hashed, password)
