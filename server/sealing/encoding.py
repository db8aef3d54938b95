"""Binary values in JSON: canonical standard base64."""

import base64
from contextlib import suppress

from server.sealing.errors import NotCanonical


def encode_base64(raw: bytes) -> str:
    """Standard base64, padded: 4 characters for every 3 bytes begun."""
    return base64.b64encode(raw).decode("ascii")


def decode_base64(text: str) -> bytes:
    """The bytes that canonical `text` stands for; else NotCanonical, which is a ValueError too."""
    raw: bytes | None = None
    with suppress(ValueError):
        raw = base64.b64decode(text, validate=True)
    # Decoders let spare bits and odd padding pass. One value must have one text, so it is encoded again and compared.
    if raw is None or encode_base64(raw) != text:
        raise NotCanonical
    return raw
