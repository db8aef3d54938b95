from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from client import files
from client.errors import IdentityError, NoIdentity, WrongPassphrase
from client.identity import HeldKey, Identity, make_key, read_identity, write_identity
from server.sealing import keys as sealing_keys
from server.sealing.argon2id import CHEAPEST
from server.sealing.identity import wrap_identity

ALICE = UUID("01a20321-a5ff-7417-ba1c-afe16fbe8207")
BOB = UUID("01a20321-aa40-76b8-945e-763e3993c3be")
KEY_ID = UUID("01a20321-b2f8-7739-b870-1badb3868bd3")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def a_key(user_id: UUID = ALICE) -> HeldKey:
    return make_key(user_id, "http://127.0.0.1:8000", "laptop", NOW)


def test_an_identity_comes_back_whole(tmp_path: Path) -> None:
    identity = Identity().with_key(a_key()).with_key(a_key(BOB))
    write_identity(tmp_path / "identity", "pass", identity)
    assert read_identity(tmp_path / "identity", "pass") == identity


def test_the_file_holds_no_key_in_the_clear(tmp_path: Path) -> None:
    key = a_key()
    write_identity(tmp_path / "identity", "pass", Identity(keys=(key,)))
    raw = (tmp_path / "identity").read_bytes()
    for secret in (key.private_key, key.signing_seed):
        assert secret not in raw
        assert msgspec.json.encode(secret).strip(b'"') not in raw
    assert b"laptop" not in raw


def test_another_passphrase_opens_nothing(tmp_path: Path) -> None:
    write_identity(tmp_path / "identity", "pass", Identity(keys=(a_key(),)))
    with pytest.raises(WrongPassphrase):
        read_identity(tmp_path / "identity", "Pass")


def test_a_file_of_something_else_is_told_apart_from_a_wrong_passphrase(tmp_path: Path) -> None:
    files.write(tmp_path / "identity", b"something else")
    with pytest.raises(IdentityError) as caught:
        read_identity(tmp_path / "identity", "pass")
    assert not isinstance(caught.value, WrongPassphrase)


def test_no_file_is_no_identity(tmp_path: Path) -> None:
    with pytest.raises(NoIdentity):
        read_identity(tmp_path / "identity", "pass")


@pytest.mark.parametrize("broken", ['{"v":2,"keys":[]}', '{"v":1,"keys":[{"private_key":"c2VjcmV0"}]}', "not json"])
def test_an_error_about_the_content_quotes_none_of_it(tmp_path: Path, broken: str) -> None:
    files.write(tmp_path / "identity", wrap_identity(broken.encode(), "pass", CHEAPEST))
    with pytest.raises(IdentityError) as caught:
        read_identity(tmp_path / "identity", "pass")
    assert "c2VjcmV0" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_key_is_known_by_its_id_once_it_is_enrolled() -> None:
    waiting, other = a_key(), a_key(BOB)
    identity = Identity(keys=(waiting, other))
    assert identity.not_enrolled(ALICE) == [waiting]
    assert identity.held(KEY_ID) is None
    enrolled = identity.with_id(waiting, KEY_ID)
    assert enrolled.not_enrolled(ALICE) == []
    assert enrolled.not_enrolled(BOB) == [other]
    held = enrolled.held(KEY_ID)
    assert held is not None
    assert held.private_key == waiting.private_key


def test_the_two_pairs_of_a_key_are_independent_and_new() -> None:
    one, two = a_key(), a_key()
    assert len({one.private_key, one.signing_seed, two.private_key, two.signing_seed}) == 4
    assert one.public_key == sealing_keys.encryption_pair(one.private_key).public
    assert one.verify_key == sealing_keys.signing_pair(one.signing_seed).public


def test_private_keys_are_not_in_what_is_logged() -> None:
    key = a_key()
    shown = repr(Identity(keys=(key,)))
    assert repr(key.private_key)[2:10] not in shown
    assert "private_key" not in shown
