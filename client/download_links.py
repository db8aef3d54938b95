"""Links to files that strangers open: an address, and after its `#` what opens the file, which no server sees.

https://posts.example.org/download/<token>#<attachment id(16) ‖ file key(32) ‖ hash(32), base64url without padding>
"""

import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from client.downloads import FileKey
from client.errors import BadAddress, BadAnswer, BadFileLink
from client.streams import SealedStream
from client.transport import Retries, Transport, parse_address
from server.sealing.digests import HASH_BYTES
from server.sealing.files import FILE_KEY_BYTES

FRAGMENT_BYTES = 16 + FILE_KEY_BYTES + HASH_BYTES
# 80 bytes, in six bits each.
_FRAGMENT = re.compile(r"[A-Za-z0-9_-]{107}")
_PATH = re.compile(r"((?:/[^/]+)*)(/download/[A-Za-z0-9_-]{1,200})")


class FileLink(NamedTuple):
    """A link taken apart. `key` is the client's alone."""

    address: str
    path: str
    key: FileKey

    def __repr__(self) -> str:
        # It opens the file: not into a traceback.
        return f"FileLink(address={self.address!r})"


def write_link(url: str, key: FileKey) -> str:
    """What a stranger needs: the address that the server gave, and what opens the file. BadAnswer where it is none."""
    link = f"{url}#{write_fragment(key)}"
    try:
        read_link(link)
    except BadFileLink:
        raise BadAnswer("the server gave something else than the address of a file") from None
    return link


def write_fragment(key: FileKey) -> str:
    """107 characters, without the `#`."""
    return base64.urlsafe_b64encode(key.id.bytes + key.key + key.hash).rstrip(b"=").decode()


def is_link(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def read_link(text: str) -> FileLink:
    """Take a link apart. Raises BadFileLink; what was given is not in its text."""
    try:
        parts = urlsplit(text.strip())
        found = _PATH.fullmatch(parts.path)
        address = parse_address(f"{parts.scheme}://{parts.netloc}{found[1] if found else ''}")
    except (ValueError, BadAddress):
        found = None
    if found is None or parts.query:
        raise BadFileLink("this is no link to a file: it should look like https://…/download/…#…")
    return FileLink(address, found[2], read_fragment(parts.fragment))


def read_fragment(fragment: str) -> FileKey:
    """What opens the file. Raises BadFileLink."""
    if not fragment:
        raise BadFileLink("this link has lost its end, from the # on: nothing opens the file without it")
    raw = base64.urlsafe_b64decode(f"{fragment}=") if _FRAGMENT.fullmatch(fragment) else b""
    key = FileKey(UUID(bytes=raw[:16] or bytes(16)), raw[16 : 16 + FILE_KEY_BYTES], raw[16 + FILE_KEY_BYTES :])
    # Two bits of the last character stand for nothing: with others it would be another text for the same bytes.
    if len(raw) != FRAGMENT_BYTES or write_fragment(key) != fragment:
        raise BadFileLink("the end of this link, from the # on, is damaged: have it sent again")
    return key


@asynccontextmanager
async def linked_stream(link: FileLink, retries: Retries | None = None) -> AsyncIterator[SealedStream]:
    """The sealed stream that a link leads to. Nothing but the address is sent, and no credential."""
    transport = Transport(link.address, retries=retries)
    try:
        yield SealedStream(transport, link.path)
    finally:
        await transport.aclose()
