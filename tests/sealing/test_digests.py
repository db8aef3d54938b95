from hashlib import blake2b, sha256

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.sealing import digests
from server.sealing.errors import InvalidKey


def test_literals() -> None:
    assert digests.blake2b_256(b"abc").hex() == "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"
    assert digests.request_mac(bytes(range(32)), b"abc").hex() == (
        "d63a32d3e44738d7907f964316c241adaba0abfeabc32349677578a15a203f7f"
    )
    assert digests.token_hash("abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(st.binary(min_size=32, max_size=32), st.binary())
def test_request_mac_is_keyed_blake2b(key: bytes, message: bytes) -> None:
    assert digests.request_mac(key, message) == blake2b(message, key=key, digest_size=32).digest()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_pieces_of_any_kind_have_the_hash_of_the_whole(kind: type) -> None:
    whole = bytes(range(256)) * 10_000
    hashed = digests.Blake2b256()
    for start, end in ((0, 0), (0, 1), (1, 100), (100, 2_500_000), (2_500_000, len(whole))):
        hashed.update(kind(whole[start:end]))
    assert hashed.digest() == hashed.digest() == digests.blake2b_256(whole)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64, 65])
def test_a_mac_has_a_key(length: int) -> None:
    with pytest.raises(InvalidKey):
        digests.request_mac(bytes(length), b"abc")


@given(st.text())
@example("\ud800")
def test_any_token_has_a_hash(token: str) -> None:
    assert digests.token_hash(token) == sha256(token.encode("utf-8", "surrogatepass")).digest()
