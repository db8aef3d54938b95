"""Where in a list somebody stopped reading."""

import base64
import json
from typing import NamedTuple

import msgspec

from server.dashboard.errors import BadCursor


class Cursor(NamedTuple):
    score: float
    member: str


def write_cursor(at: Cursor | None) -> str | None:
    if at is None:
        return None
    return base64.urlsafe_b64encode(json.dumps([at.score, at.member]).encode()).decode()


def read_cursor(cursor: str | None) -> Cursor | None:
    if cursor is None:
        return None
    try:
        score, member = msgspec.json.decode(base64.urlsafe_b64decode(cursor), type=tuple[float, str])
    except (ValueError, msgspec.DecodeError):
        raise BadCursor from None
    return Cursor(score, member)
