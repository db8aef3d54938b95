import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.sealing.encoding import decode_base64, encode_base64
from server.sealing.errors import NotCanonical, SealingError

from .wire_vectors import Case, each


@each("base64")
def test_vector(case: Case) -> None:
    if case["valid"]:
        assert decode_base64(case["base64"]) == bytes.fromhex(case["bytes_hex"])
        assert encode_base64(bytes.fromhex(case["bytes_hex"])) == case["base64"]
    else:
        with pytest.raises(NotCanonical):
            decode_base64(case["base64"])


def test_not_canonical_is_a_value_error_and_a_sealing_error() -> None:
    assert issubclass(NotCanonical, ValueError)
    assert issubclass(NotCanonical, SealingError)


@given(st.binary())
def test_bytes_come_back(some: bytes) -> None:
    assert decode_base64(encode_base64(some)) == some


@given(st.text(st.sampled_from("ABab01+/=-_ \n\0é\ud800"), max_size=12))
def test_one_value_has_one_text(text: str) -> None:
    try:
        some = decode_base64(text)
    except NotCanonical:
        return
    assert encode_base64(some) == text
