"""Attachments: a file as a stream of chunks, sealed and opened without ever being whole in memory.

`header(24) ‖ chunk 0 ‖ chunk 1 ‖ …`, each chunk a message of libsodium's secretstream (XChaCha20-Poly1305), 17 bytes
longer than what it holds. All chunks but the last hold 65,536 bytes and the tag MESSAGE; the last holds the rest, at
least one byte unless the file is empty, and the tag FINAL. So each file has one division only, and a stream cut off
anywhere lacks FINAL. Chunk i is bound to the attachment's id and to i, and begins at byte 24 + 65,553·i.

BLAKE2b takes as long as the cipher. So sealing and opening come in two halves as well, of which the second, the hash of
the stream, may run in another thread. And they write into memory that the caller has already: for a file, a system that
has to find new memory for each block does little else.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from uuid import UUID

from nacl.bindings import (
    crypto_secretstream_xchacha20poly1305_init_pull,
    crypto_secretstream_xchacha20poly1305_TAG_FINAL,
    crypto_secretstream_xchacha20poly1305_TAG_MESSAGE,
)
from nacl.utils import random

from server.sealing.ciphers import new_key
from server.sealing.digests import HASH_BYTES, Blake2b256, is_bytes, same
from server.sealing.errors import CannotOpenFile, InvalidKey, StreamEnded
from server.sealing.sodium import STREAM_OVERHEAD_BYTES, Buffer, StreamState, pull_into, push_into
from server.sealing.texts import FILE_KEY_BYTES

__all__ = [
    "CHUNK_BYTES",
    "FILE_KEY_BYTES",
    "HEADER_BYTES",
    "SEALED_CHUNK_BYTES",
    "FileOpener",
    "FileSealer",
    "chunk_count",
    "chunk_offset",
    "in_blocks",
    "new_file_key",
    "plain_room",
    "plain_size",
    "sealed_size",
    "stream_room",
]

FILE_LABEL = b"secureblogs file v1"

HEADER_BYTES = 24
CHUNK_BYTES = 65_536
SEALED_CHUNK_BYTES = CHUNK_BYTES + STREAM_OVERHEAD_BYTES


def new_file_key() -> bytes:
    """32 random bytes, for one file."""
    return new_key()


def chunk_count(size: int) -> int:
    """How many chunks a file of `size` bytes has: an empty one has one."""
    return max(1, -(-size // CHUNK_BYTES))


def chunk_offset(index: int) -> int:
    """Where chunk `index`, from 0, begins in a stream."""
    return HEADER_BYTES + SEALED_CHUNK_BYTES * index


def sealed_size(size: int) -> int:
    """How many bytes the stream of a file of `size` bytes has."""
    return HEADER_BYTES + size + STREAM_OVERHEAD_BYTES * chunk_count(size)


def plain_size(stream_bytes: int) -> int:
    """The size of the file whose stream has so many bytes; CannotOpenFile where no file has such a stream."""
    chunks = -(-(stream_bytes - HEADER_BYTES) // SEALED_CHUNK_BYTES)
    size = stream_bytes - HEADER_BYTES - STREAM_OVERHEAD_BYTES * chunks
    if size < 0 or sealed_size(size) != stream_bytes:
        raise CannotOpenFile
    return size


def stream_room(length: int) -> int:
    """How many bytes of a stream `length` bytes of its file make at most, after any others."""
    return HEADER_BYTES + SEALED_CHUNK_BYTES * (length // CHUNK_BYTES + 1)


def plain_room(length: int) -> int:
    """How many bytes of a file `length` bytes of its stream make at most, after any others."""
    return CHUNK_BYTES * (length // SEALED_CHUNK_BYTES + 1)


class FileSealer:
    """Seals one file: what `update` and `finish` give, joined, is the stream.

    `size` counts the bytes taken. `header` is given only to reproduce a stream. Raises InvalidKey unless key and header
    have 32 and 24 bytes.

    In the place of `update`, `seal_into` and `hash_stream` may be called, from two threads.
    """

    def __init__(self, file_key: bytes, attachment_id: UUID, header: bytes | None = None) -> None:
        header = random(HEADER_BYTES) if header is None else header
        # libsodium's init_push draws a random header, and then does just what init_pull does with a given one: the
        # state after it seals as well as it opens. So there is one way for all streams, and it can be tested.
        self._state = _begun(header, file_key)
        self._attachment_id = attachment_id
        self._index = 0
        self._waiting = bytearray()
        self._ready = header
        self._hash = Blake2b256()
        self._stream_bytes = 0
        self._hashed_bytes = 0
        self._ended = False
        self.size = 0

    @property
    def hash(self) -> bytes:
        """BLAKE2b-256 of the whole stream, 32 bytes, once it is finished; before that StreamEnded is raised."""
        if not self._ended:
            raise StreamEnded("the stream has not ended yet")
        return self._hash.digest()

    def update(self, plaintext: Buffer) -> bytes:
        """Takes the next bytes of the file, any number, and gives what of the stream is ready.

        Raises StreamEnded after `finish`.
        """
        memory = memoryview(bytearray(stream_room(len(plaintext))))
        stream = bytes(memory[: self.seal_into(plaintext, memory)])
        self.hash_stream(stream)
        return stream

    def seal_into(self, plaintext: Buffer, stream: memoryview) -> int:
        """The first half of `update`: writes what is ready to the beginning of `stream`, and gives its number of bytes.

        `stream` has room for `stream_room(len(plaintext))` bytes. Raises StreamEnded after `finish`.
        """
        if self._ended:
            raise StreamEnded
        self.size += len(plaintext)
        end = len(self._ready)
        stream[:end], self._ready = self._ready, b""
        # A full chunk waits until a byte follows it: it may be the last, which is tagged FINAL.
        for chunk in _chunks(self._waiting, plaintext, CHUNK_BYTES, kept=1):
            end += self._push(chunk, crypto_secretstream_xchacha20poly1305_TAG_MESSAGE, stream[end:])
        self._stream_bytes += end
        return end

    def hash_stream(self, stream: Buffer) -> None:
        """The second half of `update`: takes all that `seal_into` wrote, in the same order."""
        self._hash.update(stream)
        self._hashed_bytes += len(stream)

    def finish(self) -> bytes:
        """Gives the rest of the stream, never empty. StreamEnded if it was called before, or the hash lags behind."""
        if self._ended or self._hashed_bytes != self._stream_bytes:
            raise StreamEnded
        self._ended = True
        memory = memoryview(bytearray(SEALED_CHUNK_BYTES))
        end = self._push(self._waiting, crypto_secretstream_xchacha20poly1305_TAG_FINAL, memory)
        rest = self._ready + memory[:end]
        self._hash.update(rest)
        return rest

    def _push(self, chunk: Buffer, tag: int, sealed: memoryview) -> int:
        associated = _associated(self._attachment_id, self._index)
        self._index += 1
        return push_into(self._state, chunk, associated, tag, sealed)


class FileOpener:
    """Opens one stream. What `update` and `finish` give, joined, is the file, once `finish` has returned.

    Every byte given is authentic, but only `finish` tells that it is the whole file, of this `hash` and `size` (None
    where a reader does not know it): write to a temporary name, and rename after it. The first failure is for good;
    each is CannotOpenFile.

    In the place of `update`, `open_into` and `hash_stream` may be called, from two threads.
    """

    def __init__(self, file_key: bytes, attachment_id: UUID, hash: bytes, size: int | None = None) -> None:
        if not is_bytes(file_key, FILE_KEY_BYTES):
            raise CannotOpenFile
        self._file_key = file_key
        self._attachment_id = attachment_id
        self._expected_hash = hash
        self._expected_size = size
        self._state: StreamState | None = None
        self._index = 0
        self._waiting = bytearray()
        self._hash = Blake2b256()
        self._stream_bytes = 0
        self._hashed_bytes = 0
        self._final = False
        self._dead = False
        self.size = 0

    def update(self, stream: Buffer) -> bytes:
        """Takes the next bytes of the stream, any number; gives what of the file has been opened."""
        memory = memoryview(bytearray(plain_room(len(stream))))
        plaintext = bytes(memory[: self.open_into(stream, memory)])
        self.hash_stream(stream)
        return plaintext

    def open_into(self, stream: Buffer, plaintext: memoryview) -> int:
        """The first half of `update`: writes to the beginning of `plaintext`, and gives how many bytes that were.

        `plaintext` has room for `plain_room(len(stream))` bytes.
        """
        self._enter()
        self._stream_bytes += len(stream)
        end = 0
        with memoryview(stream) as view:
            header_bytes = 0 if self._state else HEADER_BYTES - len(self._waiting)
            self._waiting += view[:header_bytes]
            if self._state is None and len(self._waiting) == HEADER_BYTES:
                self._state = _begun(bytes(self._waiting), self._file_key)
                self._waiting.clear()
            if self._state:
                for chunk in _chunks(self._waiting, view[header_bytes:], SEALED_CHUNK_BYTES, kept=0):
                    end += self._pull(self._state, chunk, plaintext[end:])
        if self._final and self._waiting:
            raise CannotOpenFile
        # A stream that is longer than its document says is given up at once, not when it has filled a disk.
        if self._expected_size is not None and self.size > self._expected_size:
            raise CannotOpenFile
        self._dead = False
        return end

    def hash_stream(self, stream: Buffer) -> None:
        """The second half of `update`: takes all that `open_into` took, in the same order."""
        self._hash.update(stream)
        self._hashed_bytes += len(stream)

    def finish(self) -> bytes:
        """Gives the rest of the file. To be called once, at the end of the stream."""
        self._enter()
        memory, end = memoryview(bytearray(CHUNK_BYTES)), 0
        if self._state is not None and not self._final:
            end = self._pull(self._state, self._waiting, memory)
        # Without FINAL there is more of the file than was given: it was cut off between two chunks.
        if not self._final or self._hashed_bytes != self._stream_bytes:
            raise CannotOpenFile
        if self._expected_size is not None and self.size != self._expected_size:
            raise CannotOpenFile
        # Whoever holds the file key can make another stream for this id. Only the hash, which the author signed or
        # committed to, tells that it is this one.
        if not is_bytes(self._expected_hash, HASH_BYTES) or not same(self._hash.digest(), self._expected_hash):
            raise CannotOpenFile
        return bytes(memory[:end])

    def _enter(self) -> None:
        # Dead until the call has succeeded: what fails once, or has been finished, is never taken up again.
        if self._dead:
            raise CannotOpenFile
        self._dead = True

    def _pull(self, state: StreamState, chunk: Buffer, plaintext: memoryview) -> int:
        # Nothing follows FINAL, and an empty chunk after others would be a second division of the same file.
        least = STREAM_OVERHEAD_BYTES + (self._index > 0)
        if self._final or len(chunk) < least:
            raise CannotOpenFile
        tag = pull_into(state, chunk, _associated(self._attachment_id, self._index), plaintext)
        # PUSH and REKEY can be authentic too, and are not of this format.
        if tag == crypto_secretstream_xchacha20poly1305_TAG_FINAL:
            self._final = True
        elif tag != crypto_secretstream_xchacha20poly1305_TAG_MESSAGE:
            raise CannotOpenFile
        self._index += 1
        length = len(chunk) - STREAM_OVERHEAD_BYTES
        self.size += length
        return length


def _chunks(waiting: bytearray, more: Buffer, length: int, *, kept: int) -> Iterator[Buffer]:
    """What waits and what comes after it, in chunks of `length` bytes. The rest, at least `kept` bytes, waits on."""
    with memoryview(more) as view:
        start = 0
        while len(waiting) + len(view) - start >= length + kept:
            end = start + length - len(waiting)
            chunk = bytes(waiting) + view[start:end] if waiting else view[start:end]
            waiting.clear()
            start = end
            yield chunk
        waiting += view[start:]


def _begun(header: bytes, file_key: bytes) -> StreamState:
    if not is_bytes(header, HEADER_BYTES) or not is_bytes(file_key, FILE_KEY_BYTES):
        raise InvalidKey
    state = StreamState()
    crypto_secretstream_xchacha20poly1305_init_pull(state, header, file_key)
    return state


def _associated(attachment_id: UUID, index: int) -> bytes:
    return FILE_LABEL + attachment_id.bytes + index.to_bytes(8, "big")


async def in_blocks(pieces: AsyncIterator[Buffer], block_bytes: int) -> AsyncGenerator[memoryview, None]:
    """The same bytes in blocks of one size, but for the last: a thread is not worth its while for less.

    A block is good until the one after the next is asked for.
    """
    memory, next_memory = (memoryview(bytearray(block_bytes)) for _ in range(2))
    end = 0
    async for piece in pieces:
        left = memoryview(piece)
        while left:
            taken = min(len(left), block_bytes - end)
            memory[end : end + taken] = left[:taken]
            left, end = left[taken:], end + taken
            if end == block_bytes:
                yield memory
                memory, next_memory, end = next_memory, memory, 0
    if end:
        yield memory[:end]
