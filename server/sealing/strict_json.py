"""JSON from strangers, read so that two readers can't disagree on what it says.

Decoders differ on repeated names, NaN, UTF-16, lone surrogates and nesting. Here each of these is MalformedJSON, and so
is every other failure: whatever the bytes, nothing else is raised.

One pass of the standard library's C scanner does the work, with a hook for each object. What can only be seen in the
finished value (nesting, NUL, surrogates) is looked for where the bytes hold more than 64 brackets, or an escape that
could give one of them: hardly ever.
"""

import json
import re
from math import isfinite
from typing import Any, Never

from server.sealing.errors import MalformedJSON

MAX_NESTING = 64
MAX_INTEGER = 2**53 - 1

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SUSPICIOUS_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_CONTAINERS = frozenset({dict, list})


def loads(raw: bytes, *, allow_nul: bool = False, digits_alone: bool = False) -> Any:
    r"""The value of the one JSON text in `raw`, of the types that `json.loads` gives; else MalformedJSON.

    Refused are: what is not UTF-8 or starts with a byte order mark; NaN, Infinity and numbers that overflow to it;
    integers of more than 4,300 digits; lone surrogates, and `\u0000` unless `allow_nul`, in any string or name; nesting
    over 64; a name that stands twice in an object, at any depth, compared after unescaping; anything but white space
    after the value. With `digits_alone` any number is refused that is not an integer of 0 to 2^53 - 1 in digits alone.
    """
    if raw.startswith(_BYTE_ORDER_MARK):
        raise MalformedJSON("it starts with a byte order mark")
    value = _decode(raw, _DIGITS_ALONE if digits_alone else _ANY_NUMBER)
    if raw.count(b"[") + raw.count(b"{") > MAX_NESTING:
        _check_nesting(value)
    if _SUSPICIOUS_ESCAPE.search(raw):
        _check_strings(value, allow_nul)
    return value


def _decode(raw: bytes, decoder: json.JSONDecoder) -> Any:
    # The decoders' errors hold all that they read. Ours is raised when theirs is gone, not from within `except`: a
    # private text must not hang behind an error that is logged.
    try:
        return decoder.decode(str(raw, "utf-8"))
    except MalformedJSON as error:
        reason = str(error)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        reason = f"not JSON at character {error.pos}"
    except RecursionError:
        reason = f"nested deeper than {MAX_NESTING}"
    except ValueError:
        reason = "a number has too many digits"
    raise MalformedJSON(reason)


def _check_nesting(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(MAX_NESTING + 1):
        level = [item for container in level for item in _items(container) if type(item) in _CONTAINERS]
        if not level:
            return
    raise MalformedJSON(f"nested deeper than {MAX_NESTING}")


def _check_strings(value: Any, allow_nul: bool) -> None:
    waiting: list[Any] = [[value]]
    while waiting:
        container = waiting.pop()
        for item in _items(container):
            if isinstance(item, str):
                _check_string(item, allow_nul)
            elif type(item) in _CONTAINERS:
                waiting.append(item)
        if isinstance(container, dict):
            for name in container:
                _check_string(name, allow_nul)


def _check_string(text: str, allow_nul: bool) -> None:
    if not allow_nul and "\0" in text:
        raise MalformedJSON("NUL in a string")
    if not _has_utf8(text):
        raise MalformedJSON("a lone surrogate in a string")


def _has_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _items(container: dict[str, Any] | list[Any]) -> Any:
    return container.values() if isinstance(container, dict) else container


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedJSON("a name stands twice in an object")
    return value


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise MalformedJSON("a number is out of range")
    return number


def _refused(_: str) -> Never:
    raise MalformedJSON("a number of a kind that is not allowed")


def _plain_integer(digits: str) -> int:
    # Sixteen digits hold 2^53 - 1: a longer number need not be converted to be refused.
    if digits.startswith("-") or len(digits) > 16 or (number := int(digits)) > MAX_INTEGER:
        raise MalformedJSON("a number of a kind that is not allowed")
    return number


_ANY_NUMBER = json.JSONDecoder(object_pairs_hook=_unique_names, parse_float=_finite, parse_constant=_refused)
_DIGITS_ALONE = json.JSONDecoder(
    object_pairs_hook=_unique_names, parse_float=_refused, parse_int=_plain_integer, parse_constant=_refused
)
