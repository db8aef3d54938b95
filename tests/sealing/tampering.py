"""Changed bytes, and what the error that they meet must not carry."""

import traceback
from collections.abc import Iterator


def flips(some: bytes) -> Iterator[bytes]:
    """The bytes, once for each of them, with one bit of it flipped: every bit has its turn in any eight."""
    for index in range(len(some)):
        changed = bytearray(some)
        changed[index] ^= 1 << index % 8
        yield bytes(changed)


def assert_silent(error: BaseException) -> None:
    """Nothing hangs behind the error, and it quotes nothing: errors end up in logs."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None:
        seen.append(current)
        current = current.__cause__ or current.__context__
    assert [type(each).__module__ for each in seen] == ["server.sealing.errors"] * len(seen)
    for each in seen:
        assert "private" not in repr(each) + str(each.__dict__)
        assert "private" not in "".join(traceback.format_exception_only(each))
