import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.sealing import argon2id, identity
from server.sealing.argon2id import CHEAPEST, MODERATE, Cost
from server.sealing.errors import IdentityUnreadable, NoMemory, WrongPassphrase
from server.sealing.identity import unwrap_identity, wrap_identity

from .tampering import assert_silent, flips

# Wrapped by "correct horse" with one pass over 8 KiB, once, and kept: files of today must open.
KEPT = bytes.fromhex(
    "736563757265626c6f6773206964656e746974792076310000000100000000000020007c5b534da6e687cdabd4cf1025"
    "d4853fa35ae0aefd72f24c967653397a4dba107584a774a0c834edc4109b28dc736ec61a1fe887efa583f36270277596"
    "636fcbd2f1f057"
)


def test_kept_file_opens() -> None:
    assert unwrap_identity(KEPT, "correct horse") == b"private keys"


def test_layout() -> None:
    wrapped = wrap_identity(b"private keys", "correct horse", CHEAPEST)
    assert len(wrapped) == 12 + 91
    assert wrapped[:35] == b"secureblogs identity v1" + (1).to_bytes(4, "big") + (8192).to_bytes(8, "big")
    again = wrap_identity(b"private keys", "correct horse", CHEAPEST)
    assert wrapped[35:51] != again[35:51], "the salt is new"
    assert wrapped[51:75] != again[51:75], "the nonce is new"


@pytest.mark.usefixtures("costly_argon2")
def test_an_identity_costs_moderate() -> None:
    wrapped = wrap_identity(b"private keys", "correct horse")
    assert wrapped[23:35] == MODERATE.opslimit.to_bytes(4, "big") + MODERATE.memlimit.to_bytes(8, "big")
    assert (MODERATE.opslimit, MODERATE.memlimit) == (3, 256 << 20)
    assert unwrap_identity(wrapped, "correct horse") == b"private keys"


@settings(deadline=None)
@given(st.binary(max_size=100), st.text())
@example(b"private", "\ud800")
def test_what_was_wrapped_comes_back(plaintext: bytes, passphrase: str) -> None:
    assert unwrap_identity(wrap_identity(plaintext, passphrase, CHEAPEST), passphrase) == plaintext


@pytest.mark.parametrize(
    "passphrase", ["", "correct horse ", "Correct horse", "correct\0horse", "correct horse\0", "\ud800"]
)
def test_wrong_passphrase(passphrase: str) -> None:
    with pytest.raises(WrongPassphrase) as caught:
        unwrap_identity(KEPT, passphrase)
    assert_silent(caught.value)


def test_the_same_keys_on_another_system_open_it() -> None:
    composed, decomposed = "Gr\u00fc\u00dfe", "Gru\u0308\u00dfe"
    assert unwrap_identity(wrap_identity(b"private", composed, CHEAPEST), decomposed) == b"private"


def test_every_flipped_byte_is_refused() -> None:
    for changed in flips(KEPT):
        with pytest.raises((WrongPassphrase, IdentityUnreadable)):
            unwrap_identity(changed, "correct horse")


@pytest.mark.parametrize(
    ("opslimit", "memlimit"),
    [(0, 8192), (17, 8192), (2**32 - 1, 8192), (1, 8191), (1, 0), (1, (1 << 30) + 1), (1, 2**64 - 1)],
)
def test_a_file_does_not_ask_for_everything(opslimit: int, memlimit: int) -> None:
    header = identity.LABEL + opslimit.to_bytes(4, "big") + memlimit.to_bytes(8, "big")
    with pytest.raises(IdentityUnreadable):
        unwrap_identity(header + KEPT[35:], "correct horse")


def test_every_cut_is_refused() -> None:
    for length in range(len(KEPT)):
        with pytest.raises((IdentityUnreadable, WrongPassphrase)):
            unwrap_identity(KEPT[:length], "correct horse")


def test_no_memory_is_no_wrong_passphrase() -> None:
    with pytest.raises(NoMemory):
        argon2id.derive_key(32, "correct horse", bytes(16), Cost(1, 1 << 50))
    with pytest.raises(NoMemory):
        argon2id.hash_string("correct horse", Cost(1, 1 << 50))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(some: bytes) -> None:
    with pytest.raises(IdentityUnreadable):
        unwrap_identity(some, "correct horse")
    with pytest.raises((IdentityUnreadable, WrongPassphrase)):
        unwrap_identity(KEPT[:51] + some, "correct horse")
