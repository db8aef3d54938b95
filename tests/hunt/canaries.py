"""What is planted: two words that all texts hold, and each secret that the server hands out."""

import base64
import binascii
from typing import Any

from tests.hunt.forms import Needle, needles_of, new_odd_word, new_word


class Canaries:
    """Words of this run alone, in everything that people say, and the secrets that came up in it."""

    def __init__(self) -> None:
        self.plain, self.odd = new_word(), new_odd_word()
        self.planted: dict[str, int] = {}
        self.secrets: dict[str, str] = {}

    def text(self, what: str) -> str:
        """Something to say, which is counted as one more of `what`. Good for a title: under 120 characters."""
        self.planted[what] = number = self.planted.get(what, 0) + 1
        return f"{what} {number} {self.plain} {self.odd}"

    def secret(self, what: str, text: str) -> str:
        """One that the server made, or was given; by its text, and by the bytes that this stands for."""
        if text not in self.secrets:
            self.planted[what] = number = self.planted.get(what, 0) + 1
            self.secrets[text] = f"{what} {number}"
        return text

    @property
    def words(self) -> list[Needle]:
        return needles_of("a word", self.plain) + needles_of("an odd word", self.odd)

    def secret_needles(self) -> list[Needle]:
        """Without UTF-16, which `wide_needles` has."""
        found = []
        for text, what in self.secrets.items():
            found += needles_of(what, text.encode())
            if raw := bytes_of(text):
                found += needles_of(f"{what}, its bytes", raw)
        return found

    def wide_needles(self) -> list[Needle]:
        return [
            Needle(what, form, text.encode(form.lower()))
            for text, what in self.secrets.items()
            for form in ("UTF-16-LE", "UTF-16-BE")
        ]


def bytes_of(text: str) -> bytes | None:
    """Of base64 behind a prefix like `sbs_`, where it is that."""
    encoded = text[4:] if text.startswith(("sbs_", "sbk_")) else text
    try:
        raw = base64.b64decode(encoded.translate(str.maketrans("-_", "+/")) + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) >= 16 else None


def note_secrets(canaries: Canaries, path: str, answer: Any) -> None:
    """Those that an answer in JSON hands out."""
    if not isinstance(answer, dict):
        return
    if path.endswith(("/sign-up", "/login")) and "token" in answer:
        canaries.secret("session token", answer["token"]["token"])
    elif path.endswith("/api-keys") and "token" in answer:
        canaries.secret("API key", answer["token"])
    elif path.endswith("/ws-tickets") and "ticket" in answer:
        canaries.secret("ticket", answer["ticket"])
    elif path.endswith("/links") and "url" in answer:
        canaries.secret("link", answer["url"].rpartition("/")[2])
