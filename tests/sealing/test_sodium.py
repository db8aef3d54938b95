"""Memory that libsodium writes to: never beyond its end, and nothing but what is authentic."""

import hashlib

import pytest
from nacl.bindings import crypto_secretstream_xchacha20poly1305_init_pull as init_pull
from nacl.bindings import crypto_secretstream_xchacha20poly1305_pull as pull

from server.sealing.digests import Blake2b256
from server.sealing.sodium import StreamState, pull_into, push_into

KEY, HEADER, AD = bytes(range(32)), bytes(range(24)), b"associated"


def begun() -> StreamState:
    state = StreamState()
    init_pull(state, HEADER, KEY)
    return state


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 1, 65_536])
def test_message_is_what_the_library_takes_and_goes_no_further(kind: type, size: int) -> None:
    message, memory = bytes(n % 251 for n in range(size)), bytearray(b"\xaa" * (size + 20))
    assert push_into(begun(), kind(message), AD, 3, memoryview(memory)) == size + 17
    sealed = bytes(memory[: size + 17])
    assert memory[size + 17 :] == b"\xaa" * 3
    assert pull(begun(), sealed, AD) == (message, 3)
    opened = bytearray(b"\xaa" * (size + 3))
    assert pull_into(begun(), kind(sealed), AD, memoryview(opened)) == 3
    assert opened == message + b"\xaa" * 3


def test_message_that_does_not_fit_is_not_begun() -> None:
    state, memory = begun(), bytearray(100)
    with pytest.raises(ValueError, match="no room"):
        push_into(state, bytes(84), AD, 0, memoryview(memory))
    assert memory == bytes(100)
    # The state has not moved on either.
    push_into(state, bytes(83), AD, 0, memoryview(memory))
    for sealed, room in ((bytes(memory), 82), (bytes(16), 100)):
        with pytest.raises(ValueError, match="no room"):
            pull_into(begun(), sealed, AD, memoryview(bytearray(room)))
    assert pull_into(begun(), memory, AD, memoryview(bytearray(83))) == 0


def test_memory_that_may_not_be_written_to_is_not() -> None:
    message = bytes(100)
    with pytest.raises(BufferError):
        push_into(begun(), b"x", AD, 0, memoryview(message))
    assert message == bytes(100)


def test_what_is_not_authentic_writes_nothing() -> None:
    memory, opened = bytearray(117), bytearray(b"\xaa" * 100)
    push_into(begun(), bytes(100), AD, 0, memoryview(memory))
    for place in (0, 1, 60, 101, 116):
        changed = bytearray(memory)
        changed[place] ^= 1
        assert pull_into(begun(), changed, AD, memoryview(opened)) is None
    assert pull_into(begun(), memory, b"another", memoryview(opened)) is None
    assert opened == b"\xaa" * 100


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_hash_of_pieces_is_that_of_the_whole(kind: type) -> None:
    hashed = Blake2b256()
    for size in (0, 1, 127, 128, 129, 1_000_000):
        hashed.update(kind(bytes(size)))
    whole = hashlib.blake2b(bytes(1_000_385), digest_size=32).digest()
    # Asking changes nothing.
    assert hashed.digest() == whole
    assert hashed.digest() == whole
