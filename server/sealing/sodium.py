"""libsodium on memory that is there already, where PyNaCl's own functions take bytes and give bytes.

Of each chunk of a file they make three copies, each with the GIL held, for which the threads that fetch, open, hash and
write a file then stand in line: of the 5 ms that a MiB took to come, 0.3 to 0.4. This is the one place that knows of
PyNaCl's inside, and its version is pinned.
"""

from nacl._sodium import ffi, lib  # type: ignore[import-not-found]  # a compiled module
from nacl.bindings import crypto_secretstream_xchacha20poly1305_state as StreamState
from nacl.bindings.crypto_generichash import Blake2State

__all__ = ["Blake2State", "Buffer", "StreamState", "blake2b_update", "pull_into", "push_into"]

Buffer = bytes | bytearray | memoryview

STREAM_OVERHEAD_BYTES = 17


def push_into(state: StreamState, message: Buffer, associated: bytes, tag: int, sealed: memoryview) -> int:
    """Write the next message of a secretstream to the beginning of `sealed`; how long it is: 17 bytes more.

    Raises ValueError where it does not fit.
    """
    length = len(message) + STREAM_OVERHEAD_BYTES
    if len(sealed) < length:
        raise ValueError("no room for the sealed message")
    failed = lib.crypto_secretstream_xchacha20poly1305_push(
        state.statebuf,
        ffi.from_buffer(sealed, require_writable=True),
        ffi.NULL,
        ffi.from_buffer(message),
        len(message),
        associated,
        len(associated),
        tag,
    )
    if failed:
        raise RuntimeError("libsodium did not seal")
    return length


def pull_into(state: StreamState, sealed: Buffer, associated: bytes, message: memoryview) -> int | None:
    """Write what the next message of a secretstream holds, 17 bytes less, to the beginning of `message`; its tag.

    None, and nothing is written, where it is not authentic. Raises ValueError where it does not fit.
    """
    length = len(sealed) - STREAM_OVERHEAD_BYTES
    if not 0 <= length <= len(message):
        raise ValueError("no room for the message")
    tag = ffi.new("unsigned char *")
    failed = lib.crypto_secretstream_xchacha20poly1305_pull(
        state.statebuf,
        ffi.from_buffer(message, require_writable=True),
        ffi.NULL,
        tag,
        ffi.from_buffer(sealed),
        len(sealed),
        associated,
        len(associated),
    )
    return None if failed else int(tag[0])


def blake2b_update(state: Blake2State, some: Buffer) -> None:
    """Any number of bytes; the GIL is free meanwhile."""
    if lib.crypto_generichash_blake2b_update(state._statebuf, ffi.from_buffer(some), len(some)):
        raise RuntimeError("libsodium did not hash")
