"""What a file costs at least: its stream's cipher and hash, once over every byte, and a copy of it to the disk.

In one thread, one after the other, with no copies in between and no network: what `FileSealer` and `FileOpener` do,
without what they check.
"""

import os
from pathlib import Path

from nacl.bindings import (
    crypto_secretstream_xchacha20poly1305_init_pull,
    crypto_secretstream_xchacha20poly1305_init_push,
    crypto_secretstream_xchacha20poly1305_pull,
    crypto_secretstream_xchacha20poly1305_push,
    crypto_secretstream_xchacha20poly1305_state,
)
from nacl.hashlib import blake2b

from server.sealing.files import CHUNK_BYTES, HEADER_BYTES, SEALED_CHUNK_BYTES, new_file_key

KEY = new_file_key()
ASSOCIATED = bytes(43)


def seal_bare(plain: Path, sealed: Path, *, with_hash: bool = True) -> None:
    """Read a file, seal it, write the stream, and wait until it is on the disk."""
    state = crypto_secretstream_xchacha20poly1305_state()
    header = crypto_secretstream_xchacha20poly1305_init_push(state, KEY)
    hashed = blake2b(header, digest_size=32)
    with plain.open("rb", buffering=0) as source, sealed.open("wb", buffering=0) as target:
        target.write(header)
        while chunk := source.read(CHUNK_BYTES):
            stream = crypto_secretstream_xchacha20poly1305_push(state, chunk, ASSOCIATED)
            if with_hash:
                hashed.update(stream)
            target.write(stream)
        os.fsync(target.fileno())


def open_bare(sealed: Path, plain: Path, *, with_hash: bool = True) -> None:
    """Read a stream, open it, write the file, and wait until it is on the disk."""
    state = crypto_secretstream_xchacha20poly1305_state()
    with sealed.open("rb", buffering=0) as source, plain.open("wb", buffering=0) as target:
        header = source.read(HEADER_BYTES)
        crypto_secretstream_xchacha20poly1305_init_pull(state, header, KEY)
        hashed = blake2b(header, digest_size=32)
        while stream := source.read(SEALED_CHUNK_BYTES):
            if with_hash:
                hashed.update(stream)
            target.write(crypto_secretstream_xchacha20poly1305_pull(state, stream, ASSOCIATED)[0])
        os.fsync(target.fileno())
