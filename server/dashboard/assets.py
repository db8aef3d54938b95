"""Scripts and styles: our own, and those that set-up takes from npm.

Each has its digest in its address, so that a browser may keep it for a year, and in the element that asks for it.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "static"
OURS = {"dashboard.css": "text/css", "dashboard.js": "text/javascript"}
PARTS = {
    "uPlot.min.css": "text/css",
    "htmx.min.js": "text/javascript",
    "uPlot.iife.min.js": "text/javascript",
}


class Asset(NamedTuple):
    name: str
    path: str
    """Below the dashboard's own path."""
    integrity: str
    media_type: str
    content: bytes


@cache
def assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """What there is, by name, in the order in which a page asks for it. Read once: a change needs a new process."""
    found = {}
    for kind, names in (("parts", PARTS), ("", OURS)):
        for name, media_type in names.items():
            file = folder / kind / name
            if file.is_file():
                found[name] = _asset(name, file.read_bytes(), media_type)
    return found


def missing(folder: Path = FOLDER) -> list[str]:
    """The parts from npm that set-up has not brought."""
    return [name for name in PARTS if name not in assets(folder)]


def _asset(name: str, content: bytes, media_type: str) -> Asset:
    digest = hashlib.sha384(content).digest()
    return Asset(
        name=name,
        path=f"static/{digest.hex()[:16]}/{name}",
        integrity=f"sha384-{base64.b64encode(digest).decode()}",
        media_type=media_type,
        content=content,
    )
