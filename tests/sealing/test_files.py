import hashlib
from base64 import b64decode
from itertools import count
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import (
    crypto_secretstream_xchacha20poly1305_init_pull as init_pull,
)
from nacl.bindings import (
    crypto_secretstream_xchacha20poly1305_push as push,
)
from nacl.bindings import (
    crypto_secretstream_xchacha20poly1305_state as State,
)

from server.sealing import files
from server.sealing.errors import CannotOpenFile, InvalidKey, StreamEnded
from server.sealing.files import FileOpener, FileSealer

from .tampering import assert_silent, flips
from .wire_vectors import Case, each, raw

ID = UUID(int=7)
KEY = bytes(range(32))
HEADER = bytes(range(24))
# Sizes at which something changes: nothing, one byte, a chunk and its neighbours, two chunks and theirs.
SIZES = [0, 1, 65_535, 65_536, 65_537, 131_071, 131_072, 131_073]


@each("attachment")
def test_vector(case: Case) -> None:
    stream = rebuilt(case)
    assert len(stream) == case["stream_length"]
    if "stream_b64" in case:
        assert stream == b64decode(case["stream_b64"])
    for step in (1_000, 65_553, len(stream) + 1):
        for size in (case["size"], None):
            if case["valid"]:
                plaintext = opened(case, stream, size, step)
                assert plaintext == plaintext_of(case, case["size"])
            # Who does not know the size can't see that it is wrong.
            elif case["fails"] != "size" or size is not None:
                with pytest.raises(CannotOpenFile) as caught:
                    opened(case, stream, size, step)
                assert_silent(caught.value)
    if case["valid"]:
        assert sealed_again(case, stream) == stream
        check_given_plaintext(case)


def opened(case: Case, stream: bytes, size: int | None, step: int) -> bytes:
    opener = FileOpener(raw(case, "file_key"), UUID(case["attachment_id"]), raw(case, "hash"), size)
    return b"".join(opener.update(stream[at : at + step]) for at in range(0, len(stream), step)) + opener.finish()


def sealed_again(case: Case, stream: bytes) -> bytes:
    sealer = FileSealer(raw(case, "file_key"), UUID(case["attachment_id"]), raw(case, "header"))
    again = sealer.update(plaintext_of(case, case["size"])) + sealer.finish()
    assert (sealer.size, sealer.hash) == (case["size"], raw(case, "hash"))
    assert files.sealed_size(sealer.size) == len(stream)
    return again


def check_given_plaintext(case: Case) -> None:
    plaintext = plaintext_of(case, case["size"])
    if "plaintext_b64" in case:
        assert plaintext == b64decode(case["plaintext_b64"])
    else:
        assert hashlib.blake2b(plaintext, digest_size=32).digest() == raw(case, "plaintext_blake2b_256")


def rebuilt(case: Case) -> bytes:
    """The stream, by the recipe of the vectors."""
    state = State()
    key = raw(case, "pushed_with_file_key") if "pushed_with_file_key_hex" in case else raw(case, "file_key")
    init_pull(state, raw(case, "header"), key)
    id = UUID(case.get("pushed_with_attachment_id", case["attachment_id"])).bytes
    plaintext = plaintext_of(case, max(part["offset"] + part["length"] for part in case["pushed"]))
    chunks = []
    for part in case["pushed"]:
        number = part["chunk_number_hex"]
        associated = None if number is None else b"secureblogs file v1" + id + bytes.fromhex(number)
        part_of = plaintext[part["offset"] : part["offset"] + part["length"]]
        chunk = push(state, part_of, associated, part["tag"])
        for name, digest in part.items():
            if "blake2b" in name:
                assert hashlib.blake2b(chunk, digest_size=32).hexdigest() == digest
        chunks.append(chunk)
    stream = raw(case, "header") + b"".join(chunks[place] for place in case["sent"])
    return edited(stream, case["edit"] or {})


def edited(stream: bytes, edit: dict[str, int | str]) -> bytes:
    assert edit.keys() <= {"cut_to", "append_hex", "flip_bit_0_of_byte"}
    if isinstance(length := edit.get("cut_to"), int):
        return stream[:length]
    if isinstance(text := edit.get("append_hex"), str):
        return stream + bytes.fromhex(text)
    if isinstance(place := edit.get("flip_bit_0_of_byte"), int):
        return stream[:place] + bytes([stream[place] ^ 1]) + stream[place + 1 :]
    return stream


def plaintext_of(case: Case, size: int) -> bytes:
    plaintext, seed = b"", raw(case, "plaintext_seed")
    for index in count():
        if len(plaintext) >= size:
            return plaintext[:size]
        plaintext += hashlib.blake2b(seed + index.to_bytes(8, "big"), digest_size=32).digest()
    raise AssertionError


def seal(plaintext: bytes, step: int = 1 << 20) -> tuple[bytes, bytes]:
    sealer = FileSealer(KEY, ID)
    parts = [sealer.update(plaintext[at : at + step]) for at in range(0, len(plaintext), step)]
    return b"".join(parts) + sealer.finish(), sealer.hash


def test_literal() -> None:
    sealer = FileSealer(KEY, ID, HEADER)
    assert sealer.update(b"hello") == HEADER
    assert sealer.finish().hex() == "7cf693f69d2d33ecc877612ae5c8b9544fc2cd040ca3"
    assert sealer.hash.hex() == "ebc32d57f7c9a947f9720c6d3c36ef30341404d774406b8d038ef27f853ac72d"


def test_sizes_add_up() -> None:
    for size in [*SIZES, 10**9, 2**53 - 1]:
        assert files.plain_size(files.sealed_size(size)) == size
    for size in SIZES:
        assert len(seal(bytes(size))[0]) == files.sealed_size(size)
    assert [files.chunk_count(size) for size in SIZES] == [1, 1, 1, 1, 2, 2, 2, 3]
    assert [files.sealed_size(size) for size in (0, 1, 65_536, 65_537)] == [41, 42, 65_577, 65_595]
    assert [files.chunk_offset(index) for index in (0, 1, 258)] == [24, 65_577, 24 + 65_553 * 258]


def test_no_file_has_a_stream_of_such_a_length() -> None:
    for length in (-1, 0, 1, 24, 40, 65_578, 65_594, 131_131, 131_147):
        with pytest.raises(CannotOpenFile):
            files.plain_size(length)


@given(st.integers(0, 400_000))
def test_lengths_are_of_one_size_or_of_none(length: int) -> None:
    try:
        size = files.plain_size(length)
    except CannotOpenFile:
        assert length < 41 or (length - 24) % 65_553 in range(1, 18)
    else:
        assert files.sealed_size(size) == length


def test_chunks_begin_where_they_should() -> None:
    stream, digest = seal(bytes(200_000))
    for index in range(files.chunk_count(200_000)):
        opener = FileOpener(KEY, ID, digest)
        assert len(opener.update(stream[: files.chunk_offset(index)])) == 65_536 * index
        short = FileOpener(KEY, ID, digest)
        assert len(short.update(stream[: files.chunk_offset(index) - 1])) == 65_536 * max(0, index - 1)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SIZES) | st.integers(0, 200_000),
    st.sampled_from([1_000, 24, 65_536, 65_553, 1 << 20]) | st.integers(500, 200_000),
    st.integers(500, 200_000),
)
def test_files_come_back_however_they_are_cut(size: int, step: int, other_step: int) -> None:
    plaintext = hashlib.shake_128(size.to_bytes(8, "big")).digest(size)
    stream, digest = seal(plaintext, other_step)
    for known in (size, None):
        opener = FileOpener(KEY, ID, digest, known)
        parts = [opener.update(stream[at : at + step]) for at in range(0, len(stream), step)]
        assert b"".join(parts) + opener.finish() == plaintext
        assert opener.size == size


def test_files_come_back_byte_by_byte() -> None:
    sealer = FileSealer(KEY, ID)
    stream = b"".join(sealer.update(bytes([byte])) for byte in b"hello") + sealer.finish()
    opener = FileOpener(KEY, ID, sealer.hash, 5)
    assert b"".join(opener.update(bytes([byte])) for byte in stream) + opener.finish() == b"hello"


@pytest.mark.parametrize("step", [1_000, 65_536, 65_553, 1 << 20])
def test_halves_are_the_whole(step: int) -> None:
    plaintext = hashlib.shake_128(b"halves").digest(200_000)
    sealer, memory = FileSealer(KEY, ID, HEADER), memoryview(bytearray(files.stream_room(step)))
    parts = []
    for at in range(0, len(plaintext), step):
        parts.append(bytes(memory[: sealer.seal_into(plaintext[at : at + step], memory)]))
    for part in parts:
        sealer.hash_stream(part)
    stream = b"".join(parts) + sealer.finish()
    whole = FileSealer(KEY, ID, HEADER)
    assert stream == whole.update(plaintext) + whole.finish()
    assert sealer.hash == whole.hash == hashlib.blake2b(stream, digest_size=32).digest()

    opener, memory = FileOpener(KEY, ID, whole.hash), memoryview(bytearray(files.plain_room(step)))
    opened = b""
    for at in range(0, len(stream), step):
        opened += memory[: opener.open_into(stream[at : at + step], memory)]
        opener.hash_stream(memoryview(stream)[at : at + step])
    assert opened + opener.finish() == plaintext


def test_hash_that_lags_behind_is_noticed() -> None:
    sealer, memory = FileSealer(KEY, ID, HEADER), memoryview(bytearray(files.stream_room(100_000)))
    sealed = bytes(memory[: sealer.seal_into(bytes(100_000), memory)])
    with pytest.raises(StreamEnded):
        sealer.finish()
    sealer.hash_stream(sealed)
    stream = sealed + sealer.finish()
    # Of two streams under one key it is the hash alone that tells which one was meant.
    opener = FileOpener(KEY, ID, hashlib.blake2b(digest_size=32).digest())
    opener.open_into(stream, memory)
    with pytest.raises(CannotOpenFile):
        opener.finish()
    opener = FileOpener(KEY, ID, hashlib.blake2b(stream[:50], digest_size=32).digest())
    opener.open_into(stream, memory)
    opener.hash_stream(stream[:50])
    with pytest.raises(CannotOpenFile):
        opener.finish()


def test_every_flipped_byte_is_refused() -> None:
    stream, digest = seal(b"hello")
    for changed in flips(stream):
        # With the hash of what was tampered with, only the chunks can tell.
        for known in (digest, hashlib.blake2b(changed, digest_size=32).digest()):
            refuse(changed, known)
    for changed in flips(digest):
        refuse(stream, changed)


def refuse(stream: bytes, digest: bytes, size: int | None = None) -> None:
    with pytest.raises(CannotOpenFile):
        open_whole(FileOpener(KEY, ID, digest, size), stream)


def open_whole(opener: FileOpener, stream: bytes) -> bytes:
    return opener.update(stream) + opener.finish()


def test_every_cut_is_refused() -> None:
    stream, _ = seal(bytes(65_600))
    for length in (*range(25), 40, 41, 65_576, 65_577, 65_578, len(stream) - 1):
        refuse(stream[:length], hashlib.blake2b(stream[:length], digest_size=32).digest())


def test_chunk_after_the_last_is_refused() -> None:
    state = State()
    init_pull(state, HEADER, KEY)
    numbers = [b"secureblogs file v1" + ID.bytes + bytes([0] * 7 + [index]) for index in range(2)]
    # Both are authentic, and full: whoever has the file key can make them.
    stream = HEADER + b"".join(push(state, bytes(65_536), number, 3) for number in numbers)
    refuse(stream, hashlib.blake2b(stream, digest_size=32).digest())


def test_hash_of_another_length_is_refused() -> None:
    stream, digest = seal(b"hello")
    for wrong in (b"", digest[:-1], digest + b"\0"):
        refuse(stream, wrong)


def test_a_longer_stream_is_given_up_before_its_end() -> None:
    stream, digest = seal(bytes(200_000))
    opener = FileOpener(KEY, ID, digest, 65_536)
    assert len(opener.update(stream[: files.chunk_offset(1)])) == 65_536
    with pytest.raises(CannotOpenFile):
        opener.update(stream[files.chunk_offset(1) : files.chunk_offset(2)])


def test_what_failed_once_is_never_taken_up_again() -> None:
    stream, digest = seal(bytes(70_000))
    flipped = bytearray(stream)
    flipped[100] ^= 1
    opener = FileOpener(KEY, ID, digest)
    with pytest.raises(CannotOpenFile):
        opener.update(bytes(flipped))
    for again in (b"", stream):
        with pytest.raises(CannotOpenFile):
            opener.update(again)
    with pytest.raises(CannotOpenFile):
        opener.finish()


def test_a_finished_opener_is_finished() -> None:
    stream, digest = seal(b"hello")
    opener = FileOpener(KEY, ID, digest, 5)
    assert open_whole(opener, stream) == b"hello"
    with pytest.raises(CannotOpenFile):
        opener.update(b"")
    with pytest.raises(CannotOpenFile):
        opener.finish()


def test_a_finished_sealer_is_finished() -> None:
    sealer = FileSealer(KEY, ID)
    with pytest.raises(StreamEnded):
        _ = sealer.hash
    sealer.finish()
    assert len(sealer.hash) == 32
    with pytest.raises(StreamEnded):
        sealer.update(b"")
    with pytest.raises(StreamEnded):
        sealer.finish()


def test_keys_of_another_length_are_refused_by_name() -> None:
    for key in (b"", KEY[:-1], KEY + b"\0"):
        with pytest.raises(InvalidKey):
            FileSealer(key, ID)
        with pytest.raises(CannotOpenFile):
            FileOpener(key, ID, bytes(32))
    for header in (b"", HEADER[:-1], HEADER + b"\0"):
        with pytest.raises(InvalidKey):
            FileSealer(KEY, ID, header)


def test_streams_share_nothing() -> None:
    assert seal(b"hello")[0][:24] != seal(b"hello")[0][:24]
    assert files.new_file_key() != files.new_file_key()
    assert len(files.new_file_key()) == 32


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(some: bytes) -> None:
    refuse(some, hashlib.blake2b(some, digest_size=32).digest())
