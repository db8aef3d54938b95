import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.sealing import ciphers
from server.sealing.errors import InvalidKey

from .tampering import flips

KEY, NONCE = bytes(range(32)), bytes(range(24))


@given(st.binary(), st.binary())
def test_what_was_encrypted_comes_back(plaintext: bytes, associated: bytes) -> None:
    ciphertext = ciphers.encrypt(plaintext, associated, NONCE, KEY)
    assert len(ciphertext) == len(plaintext) + 40
    assert ciphertext.startswith(NONCE)
    assert ciphers.decrypt(ciphertext, associated, KEY) == plaintext


def test_every_flipped_byte_is_refused() -> None:
    ciphertext = ciphers.encrypt(b"hello", b"for you", NONCE, KEY)
    assert all(ciphers.decrypt(changed, b"for you", KEY) is None for changed in flips(ciphertext))
    assert all(ciphers.decrypt(ciphertext, changed, KEY) is None for changed in flips(b"for you"))
    assert all(ciphers.decrypt(ciphertext, b"for you", changed) is None for changed in flips(KEY))


@pytest.mark.parametrize("wrong", [None, b"", KEY[:-1], KEY + b"\0", KEY.hex()])
def test_keys_of_another_length_open_and_seal_nothing(wrong: bytes) -> None:
    ciphertext = ciphers.encrypt(b"hello", b"", NONCE, KEY)
    assert ciphers.decrypt(ciphertext, b"", wrong) is None
    with pytest.raises(InvalidKey):
        ciphers.encrypt(b"hello", b"", NONCE, wrong)
    with pytest.raises(InvalidKey):
        ciphers.encrypt(b"hello", b"", wrong, KEY)


@given(st.binary(max_size=100))
def test_any_bytes_are_refused(some: bytes) -> None:
    assert ciphers.decrypt(some, b"", KEY) is None
