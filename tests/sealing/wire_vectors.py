"""The cases of `vectors/wire-v1.json`, a test for each."""

import json
from base64 import b64decode
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

FILE = Path(__file__).with_name("vectors") / "wire-v1.json"

Case = dict[str, Any]


def each(group: str) -> pytest.MarkDecorator:
    """Runs a test for each case of a group."""
    found = cases(group)
    return pytest.mark.parametrize("case", found, ids=[case["name"].replace("\\u0000", "NUL") for case in found])


def cases(group: str) -> list[Case]:
    it = groups()[group]
    return [it.get("defaults", {}) | case for case in it["cases"]]


@cache
def groups() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text("utf-8"))["groups"])


def raw(case: Case, name: str) -> Any:
    """The bytes of a field that is given in hex or base64; None where it is absent."""
    if f"{name}_b64" in case:
        text = case[f"{name}_b64"]
        return None if text is None else b64decode(text, validate=True)
    text = case[f"{name}_hex"]
    return None if text is None else bytes.fromhex(text)


def uuid(case: Case, name: str) -> UUID:
    return UUID(case[f"{name}_id"])
