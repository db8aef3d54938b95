"""What becomes of a word on its way, and finding that."""

import base64
import gzip
import html
import json
import os
import re
import secrets
import subprocess
import tempfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote, quote_plus

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
WORD = 24
# What compresses for Postgres leaves the first of several alike as it is, but for a byte of its own after every eight.
# So of any sixteen bytes there are eight in a row somewhere, and of these one of nine begins where such a row does.
ROW = 8

# How streams begin that others compressed: gzip, and zlib at its usual levels.
STREAMS = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")
MAX_INFLATED_BYTES = 1 << 20


class Needle(NamedTuple):
    """One thing to search, as it may be written."""

    what: str
    form: str
    written: bytes


def new_word(length: int = WORD) -> str:
    """Of characters that come once each: what repeats itself is cut to pieces wherever it is compressed."""
    return "".join(secrets.SystemRandom().sample(ALPHABET, length))


def new_odd_word() -> str:
    """One whose forms differ wherever anything is escaped."""
    word = new_word()
    return f'{word[:8]}"é<{word[8:16]} +%\\ü🔑&{word[16:]}'


def forms_of(word: str | bytes) -> dict[str, bytes]:
    """What becomes of a word, wherever it stands in what is written."""
    raw = word.encode() if isinstance(word, str) else word
    written = {
        "raw": raw,
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        # The first and the last four characters depend on what stands beside it.
        **{f"base64 at {offset}": base64.b64encode(bytes(offset) + raw)[4:-4] for offset in range(3)},
    }
    url_safe = {f"base64url at {offset}": written[f"base64 at {offset}"].translate(URL_SAFE) for offset in range(3)}
    return once(written | url_safe | (forms_of_text(word) if isinstance(word, str) else {}))


URL_SAFE = bytes.maketrans(b"+/", b"-_")


def forms_of_text(word: str) -> dict[str, bytes]:
    return {
        "UTF-16-LE": word.encode("utf-16-le"),
        "UTF-16-BE": word.encode("utf-16-be"),
        "URL": quote(word, safe="").encode(),
        "url": re.sub(r"%\w\w", lambda found: found[0].lower(), quote(word, safe="")).encode(),
        "form": quote_plus(word).encode(),
        "JSON": json.dumps(word)[1:-1].encode(),
        "JSON in UTF-8": json.dumps(word, ensure_ascii=False)[1:-1].encode(),
        "HTML": html.escape(word).encode(),
        "Python": repr(word)[1:-1].encode(),
        "bytes of Python": repr(word.encode())[2:-1].encode(),
        "Redis": b"".join(escape(byte) for byte in word.encode()),
    }


def escape(byte: int) -> bytes:
    """As MONITOR writes it."""
    if byte in b'"\\':
        return b"\\" + bytes([byte])
    return bytes([byte]) if 32 <= byte < 127 else b"\\x%02x" % byte


def once(forms: dict[str, bytes]) -> dict[str, bytes]:
    """Without those that are written like another before them."""
    first: dict[bytes, str] = {}
    for form, written in forms.items():
        first.setdefault(written, form)
    return {form: written for written, form in first.items()}


def needles_of(what: str, word: str | bytes) -> list[Needle]:
    return [Needle(what, form, written) for form, written in forms_of(word).items()]


def rows(written: bytes) -> list[bytes]:
    """Of which one stays as it is wherever Postgres or Redis compress."""
    return [written[start : start + ROW] for start in range(ROW + 1)]


def found_in(haystacks: Sequence[bytes], word: str | bytes, *, compressed: bool = False) -> set[str]:
    """The forms of a word that are there; also where they are `compressed` by Postgres or Redis."""
    return {needle.form for needle in search(haystacks, needles_of("", word), compressed=compressed)}


def search(haystacks: Sequence[bytes], needles: Sequence[Needle], *, compressed: bool = False) -> set[Needle]:
    """Those that are in any haystack, or in what a stream within it inflates to."""
    joined = SEPARATOR.join([*haystacks, *(opened for haystack in haystacks for opened in inflated(haystack))])
    wide = [needle for needle in needles if b"\0" in needle.written]
    found = {needle for needle in narrow(joined, wide) if needle.written in joined}
    by_fragment: dict[bytes, set[Needle]] = {}
    for needle in needles:
        if needle not in wide:
            for fragment in fragments(needle, compressed):
                by_fragment.setdefault(fragment, set()).add(needle)
        elif compressed and needle not in found and any(row in joined for row in rows(needle.written)):
            found.add(needle)
    there = grep(joined, by_fragment)
    if compressed:
        # Postgres' own byte after every eight is 0 where none of them was seen before, as of digits may be.
        there |= grep(joined.replace(b"\0", b""), [piece for piece in by_fragment if len(piece) == 2 * ROW])
    return found.union(*(by_fragment[fragment] for fragment in there))


# No needle reaches over it, and grep takes it for the end of a line.
SEPARATOR = b"\n\xff\n"


def narrow(joined: bytes, wide: Sequence[Needle]) -> set[Needle]:
    """Of those with NULs in them, which grep takes for the end of a pattern, the ones that may be there."""
    by_text: dict[bytes, set[Needle]] = {}
    for needle in wide:
        by_text.setdefault(longest_line(needle.written.replace(b"\0", b"")), set()).add(needle)
    there = grep(joined.replace(b"\0", b""), by_text) if wide else set()
    return set().union(*(by_text[text] for text in there))


def longest_line(written: bytes) -> bytes:
    return max(written.split(b"\n"), key=len)


def fragments(needle: Needle, compressed: bool) -> list[bytes]:
    """What grep is to look for: no newline may be in it."""
    if not compressed:
        return [longest_line(needle.written)]
    if needle.form in {"hex", "HEX"}:
        # Of digits alone eight in a row come about by chance, in as many digits as there are.
        return [needle.written[at : at + 2 * ROW] for at in range(len(needle.written) - 2 * ROW + 1)]
    return [row for row in rows(needle.written) if b"\n" not in row]


def grep(joined: bytes, patterns: Collection[bytes]) -> set[bytes]:
    """Those of the patterns that are there. Where two overlap, the other may be left out."""
    if not patterns:
        return set()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(patterns) + b"\n")
        file.flush()
        command = ["grep", "--text", "--only-matching", "--fixed-strings", "--file", file.name]
        done = subprocess.run(command, input=joined, capture_output=True, env=os.environ | {"LC_ALL": "C"}, check=False)
    if done.returncode > 1:
        raise RuntimeError(done.stderr.decode())
    return set(done.stdout.split(b"\n")) & set(patterns)


def inflated(haystack: bytes) -> Iterator[bytes]:
    """What is in it and begins like a compressed stream, as far as it is one."""
    for match in STREAMS.finditer(haystack):
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            opened = stream.decompress(haystack[match.start() : match.start() + MAX_INFLATED_BYTES], MAX_INFLATED_BYTES)
        except zlib.error:
            continue
        if len(opened) >= ROW:
            yield opened


def deflated(text: bytes) -> bytes:
    """For the positive control of streams."""
    return gzip.compress(text) + zlib.compress(text)
