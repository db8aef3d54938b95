import json
import math
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.sealing.errors import MalformedJSON
from server.sealing.strict_json import loads

from .tampering import assert_silent

strings = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=20,
)
REFUSED = {
    "no bytes": b"",
    "white space": b" ",
    "a byte order mark": b'\xef\xbb\xbf{"private":1}',
    "UTF-16": '{"private":1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"private":1}'.encode("utf-16-le"),
    "UTF-32": '{"private":1}'.encode("utf-32-be"),
    "Latin-1": '"private é"'.encode("latin-1"),
    "an overlong slash": b'"private \xc0\xaf"',
    "a surrogate in UTF-8": b'"private \xed\xa0\x80"',
    "a pair of surrogates in UTF-8": b'"private \xed\xa0\xbd\xed\xb1\x8b"',
    "a sequence cut short": b'"private \xe2\x82"',
    "NaN": b"[NaN]",
    "Infinity": b"[Infinity]",
    "minus Infinity": b"-Infinity",
    "a number that overflows": b"1e400",
    "a number that overflows below": b'{"private":-1e400}',
    "an integer of 5,000 digits": b"9" * 5000,
    "a negative integer of 5,000 digits": b"[-" + b"9" * 5000 + b"]",
    "a leading zero": b"016",
    "a plus": b"+1",
    "a point alone": b"1.",
    "a point first": b".5",
    "a hexadecimal number": b"0x10",
    "Arabic digits": "٣".encode(),
    "NUL": b'"private \0"',
    "NUL, escaped": b'"private \\u0000"',
    "NUL in a name": b'{"private\\u0000":1}',
    "NUL, deep inside": b'[{"a":[{"private":"\\u0000"}]}]',
    "NUL outside": b"\0{}",
    "a high surrogate": b'"private \\ud800"',
    "a low surrogate": b'"private \\uDC4B"',
    "a pair the wrong way round": b'"private \\udc4b\\ud83d"',
    "a high surrogate and a letter": b'"private \\ud83d\\u0041"',
    "a high surrogate in a name": b'{"private\\ud800":1}',
    "a surrogate deep inside": b'{"a":[{"b":{"private":["\\udfff"]}}]}',
    "a name twice": b'{"private":1,"private":2}',
    "a name twice with one value": b'{"private":1,"private":1}',
    "a name twice, once escaped": b'{"private":1,"\\u0070rivate":2}',
    "a name twice, deep inside": b'[{"a":[{"private":{},"b":0,"private":{}}]}]',
    "the empty name twice": b'{"":1,"":2}',
    "65 lists": b"[" * 65 + b"]" * 65,
    "65 objects": b'{"a":' * 65 + b"1" + b"}" * 65,
    "65 of both": b'[{"a":' * 33 + b"1" + b"}]" * 33,
    "65 lists beside others": b"[[],[],{},[" + b"[" * 63 + b"]" * 63 + b"]]",
    "100,000 lists": b"[" * 100_000 + b"]" * 100_000,
    "100,000 lists, cut short": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a second value": b'{"private":1}{"private":2}',
    "a comma after": b'{"private":1},',
    "a letter after": b"1 x",
    "NUL after": b"1\0",
    "a no-break space after": b"1\xc2\xa0",
    "a vertical tab before": b"\x0b1",
    "a comma before the end": b'["private",]',
    "single quotes": b"{'private':1}",
    "a comment": b'{"private":1/**/}',
    "a name without quotes": b"{private:1}",
    "a name that is a number": b"{1:1}",
    "a line feed in a string": b'"private\n"',
    "an escape that is none": b'"private \\x41"',
    "a short escape": b'"private \\u12"',
    "an escape with a sign": b'"private \\u+123"',
    "a string cut short": b'"private',
    "a word": b"True",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_refused(raw: bytes) -> None:
    with pytest.raises(MalformedJSON) as caught:
        loads(raw)
    assert_silent(caught.value)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b' \t\r\n{"a":[1,-2.5,1e3,true,false,null,"\xc3\xa9"]} \n', {"a": [1, -2.5, 1000.0, True, False, None, "é"]}),
        (b"1234567890123456789012345678901234567890", 1234567890123456789012345678901234567890),
        (b"-0", 0),
        (b'"\\ud83d\\udc4b \\u0041 \\\\ud800 \\\\u0000"', "👋 A \\ud800 \\u0000"),
        (b'{"a":{"a":{"a":1}},"A":2}', {"a": {"a": {"a": 1}}, "A": 2}),
        (b'"\\uffff\\ufdd0\xf4\x8f\xbf\xbf\xef\xbb\xbf\x7f"', "\uffff\ufdd0\U0010ffff\ufeff\x7f"),
        (b"[" + b"[]," * 100 + b'"[[[["]', [*[[]] * 100, "[[[["]),
        (b'"' + b"[{" * 1000 + b'"', "[{" * 1000),
    ],
)
def test_taken(raw: bytes, value: Any) -> None:
    assert loads(raw) == value


@pytest.mark.parametrize("opened", [b"[", b'{"a":'])
def test_nesting_of_64_is_taken(opened: bytes) -> None:
    closed = {b"[": b"]"}.get(opened, b"}")
    innermost = {b"[": b""}.get(opened, b"1")
    assert loads(opened * 64 + innermost + closed * 64)
    assert loads(opened * 62 + b'[{},"[",{}]' + closed * 62)


def test_nul_is_taken_where_it_is_allowed() -> None:
    assert loads(b'{"\\u0000":"\\u0000"}', allow_nul=True) == {"\0": "\0"}
    with pytest.raises(MalformedJSON):
        loads(b'["\\u0000","\\ud800"]', allow_nul=True)
    with pytest.raises(MalformedJSON):
        loads(b'"\0"', allow_nul=True)


def test_digits_alone() -> None:
    assert loads(b"[0,1,9007199254740991]", digits_alone=True) == [0, 1, 9007199254740991]
    for number in (b"9007199254740992", b"-1", b"-0", b"1.0", b"1e0", b"1E2", b"9" * 17, b"9" * 5000, b"NaN", b"1e400"):
        with pytest.raises(MalformedJSON) as caught:
            loads(b"[" + number + b"]", digits_alone=True)
        assert_silent(caught.value)


def test_a_deep_text_is_refused_near_the_end_of_the_stack() -> None:
    def at_depth(depth: int) -> None:
        if depth:
            at_depth(depth - 1)
        else:
            with pytest.raises(MalformedJSON):
                loads(b"[" * 5000)

    here = 0
    frame: Any = sys._getframe()
    while frame := frame.f_back:
        here += 1
    at_depth(sys.getrecursionlimit() - here - 150)


def test_reasons_say_where() -> None:
    with pytest.raises(MalformedJSON, match="not JSON at character 5"):
        loads(b'{"a":}')
    with pytest.raises(MalformedJSON, match="not UTF-8 at byte 2"):
        loads(b'"a\xff"')


@settings(deadline=None)
@given(values, st.booleans())
def test_values_come_back(value: Any, ascii: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=ascii).encode()) == value


@given(
    st.binary()
    | st.text(st.sampled_from('[]{}":,\\u0dD8cC1e.-+ \n\0aNé\ud83d')).map(lambda text: text.encode("utf-8", "replace"))
)
@example(b'{"a":1,"\\u0061":1}')
def test_any_bytes_are_refused_by_name_or_read_as_others_do(raw: bytes) -> None:
    try:
        value = loads(raw)
    except MalformedJSON:
        return
    assert json.loads(raw) == value
    assert msgspec.json.decode(raw) == value


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "", "é", "\\u0061"]), st.integers(0, 1)), max_size=5))
def test_each_name_stands_once(pairs: list[tuple[str, int]]) -> None:
    raw = ("{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}").encode()
    names = [name.replace("\\u0061", "a") for name, _ in pairs]
    if len(set(names)) == len(names):
        assert loads(raw) == dict(zip(names, (value for _, value in pairs), strict=True))
    else:
        with pytest.raises(MalformedJSON):
            loads(raw)


@given(st.floats())
def test_numbers_are_finite(number: float) -> None:
    raw = json.dumps(number).encode()
    if math.isfinite(number):
        assert loads(raw) == number
    else:
        with pytest.raises(MalformedJSON):
            loads(raw)
