import math
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.sealing.argon2id import CHEAPEST, INTERACTIVE
from server.sealing.passwords import check_password, hash_of_nothing, hash_password

# libsodium's Argon2id of "correct horse", made once and kept: accounts of today must still log in.
KEPT = "$argon2id$v=19$m=8,t=1,p=1$KRJIyWbC0IU0t6/ijOJv+w$IqD8IUYKIPc3adpcpXAsdySqqh3h3fe/AI2KamE/zvQ"


def test_kept_hash_is_of_its_password() -> None:
    assert check_password(KEPT, "correct horse")
    assert not check_password(KEPT, "correct horse ")


@pytest.mark.usefixtures("costly_argon2")
def test_a_password_costs_interactive() -> None:
    hashed = hash_password("correct horse")
    assert hashed.startswith("$argon2id$v=19$m=65536,t=2,p=1$")
    assert check_password(hashed, "correct horse")
    assert not check_password(hashed, "wrong horse")


def test_a_hash_of_nothing_looks_like_any_other_and_is_as_dear_to_check() -> None:
    nothing = hash_of_nothing()
    hashed = hash_password("correct horse", INTERACTIVE)
    assert len(nothing) == len(hashed)
    assert nothing[:31] == hashed[:31]
    assert nothing != hash_of_nothing()

    def seconds(some: str) -> float:
        begin = time.perf_counter()
        assert not check_password(some, "wrong horse")
        return time.perf_counter() - begin

    # In turns, and as often as a busy machine needs to let each of them run undisturbed once.
    of_nothing, of_hashed = math.inf, math.inf
    for _ in range(20):
        of_nothing, of_hashed = min(of_nothing, seconds(nothing)), min(of_hashed, seconds(hashed))
        if 0.5 < of_nothing / of_hashed < 2:
            return
    raise AssertionError(f"{of_nothing} s to check nothing, {of_hashed} s to check a hash")


def test_one_password_has_many_hashes() -> None:
    assert hash_password("correct horse", CHEAPEST) != hash_password("correct horse", CHEAPEST)


def test_the_same_keys_on_another_system_log_in() -> None:
    assert check_password(hash_password("Gr\u00fc\u00dfe", CHEAPEST), "Gru\u0308\u00dfe")


@pytest.mark.parametrize("hashed", ["", "*", "é", "\0", KEPT[:-1], KEPT + "A", KEPT.replace("v=19", "v=18"), "$" * 200])
def test_a_broken_hash_is_of_no_password(hashed: str) -> None:
    assert not check_password(hashed, "correct horse")


@settings(deadline=None)
@given(st.text(), st.text())
@example("\ud800", "\ud801")
def test_any_password(password: str, other: str) -> None:
    hashed = hash_password(password, CHEAPEST)
    assert hashed.isascii()
    assert check_password(hashed, password)
    assert not check_password(hashed, other + "x") or password == other + "x"


@given(st.text())
@example("\ud800")
def test_any_text_is_refused_as_a_hash(hashed: str) -> None:
    assert not check_password(hashed, "correct horse")
