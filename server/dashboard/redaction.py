"""What of a job may be seen: kinds and sizes. Its content only where its function says so.

    @shown
    async def resize(ctx, width): ...

Ids are always shown, for without them nobody finds the job that something is about: UUIDs and whole numbers. Text of
any other form is content. A traceback is its frames' places and the exceptions' types: never a line of source, a local
variable or a message, which quote what was worked on.
"""

import contextlib
import re
import traceback
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, TypeVar
from uuid import UUID

from server.dashboard.models import MAX_NAME_CHARACTERS, Argument, Frame, Raised

MAX_ARGUMENTS = 20
MAX_VALUE_CHARACTERS = 500
MAX_FRAMES = 30
MAX_RAISED = 5

_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
_MARK = "_is_shown_on_dashboard"

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def shown(coroutine: AnyFunction) -> AnyFunction:
    """The function opts in: its arguments, results and messages hold nothing that an operator may not read."""
    setattr(coroutine, _MARK, True)
    return coroutine


def is_shown(coroutine: object) -> bool:
    return bool(getattr(coroutine, _MARK, False))


def clean(text: str, limit: int = MAX_NAME_CHARACTERS) -> str:
    """Cut, and without what a terminal or an XML reader would obey."""
    if len(text) <= limit and text.isprintable():
        return text
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in cut)


def describe_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], in_full: bool) -> list[Argument]:
    named = [(str(position), value) for position, value in enumerate(args)] + list(kwargs.items())
    return [describe(clean(str(name)), value, in_full) for name, value in named[:MAX_ARGUMENTS]]


def describe(name: str, value: Any, in_full: bool) -> Argument:
    # Of subclasses neither `len` nor `str` is called: those may be anybody's code, and take any time.
    size = len(value) if isinstance(value, Sized) and type(value).__module__ == "builtins" else None
    return Argument(name=name, type=clean(type(value).__qualname__), size=size, value=_value(value, in_full))


def _value(value: Any, in_full: bool) -> str | None:
    kind = type(value)
    if kind is UUID or (kind is str and len(value) <= 36 and _UUID.fullmatch(value)):
        return str(value)
    if kind is int and value.bit_length() <= 64:
        return str(value)
    if value is None or kind is bool:
        return repr(value)
    return _in_full(value) if in_full else None


def _in_full(value: Any) -> str | None:
    try:
        return clean(value if isinstance(value, str) else repr(value), MAX_VALUE_CHARACTERS)
    except Exception:
        return None


def describe_raised(error: BaseException, in_full: bool) -> list[Raised]:
    """The error that came out, and those that it came from."""
    found: list[Raised] = []
    current: BaseException | None = error
    while current is not None and len(found) < MAX_RAISED:
        found.append(_raised(current, in_full))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return found


def _raised(error: BaseException, in_full: bool) -> Raised:
    places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    # What lies above the recorder is arq's.
    begin = max((place for place, (code, _) in enumerate(places, 1) if code.co_filename == _RECORDER), default=0)
    frames = [
        Frame(file=_short(code.co_filename), line=line, function=clean(getattr(code, "co_qualname", code.co_name)))
        for code, line in places[begin:]
    ]
    message = None
    if in_full:
        with contextlib.suppress(Exception):
            message = clean(str(error), MAX_VALUE_CHARACTERS)
    return Raised(type=type_name(error), message=message, frames=frames[-MAX_FRAMES:])


def type_name(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return clean(name)


_RECORDER = __file__.replace("redaction.py", "recorder.py")


def _short(file: str) -> str:
    """Its last three parts: enough to find it, and nothing of how the machine is laid out."""
    return clean("/".join(file.replace("\\", "/").split("/")[-3:]))
