"""What a person sees: results on standard output, everything else on standard error.

Text that others wrote (names, titles, content, what a server says) may hold anything. It goes through `line` or
`passage` first, which show control characters instead of obeying them, and it is never read as markup.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TextIO

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Beyond the C0 and C1 controls and DEL: marks that turn the writing direction or break lines, which can make a text
# show other than what it says, and the invisible tags.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)

# Cells that a table leaves to titles and names, however narrow the terminal.
LEAST_FIRST_CELLS = 16
# Cells between two columns.
GAP = 2


def line(text: object) -> str:
    """Text for one line: all control characters, line breaks too, are shown escaped."""
    return _UNSAFE.sub(_escape, str(text))


def passage(text: str) -> str:
    """Text of several lines: line breaks and tabs stay, every other control character is shown escaped."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in "\n\t" else _escape(found), text.replace("\r\n", "\n"))


def count(number: int, thing: str, things: str | None = None) -> str:
    """A number and what is counted, in the right number of the word."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def when(at: datetime | None) -> str:
    """A time as people here write it, to the minute."""
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M")


def say(text: str = "", style: str = "") -> None:
    """One result on standard output. The text must be safe already."""
    _print(text, style, to_error=False)


def note(text: str) -> None:
    """What happens meanwhile, on standard error, so that results can be piped on."""
    _print(text, "dim", to_error=True)


def warn(text: str) -> None:
    _print(f"warning: {text}", "yellow", to_error=True)


def complain(text: str, what_to_do: str | None = None) -> None:
    """The one line of an error, and what to do about it."""
    _print(f"error: {text}" if what_to_do is None else f"error: {text.rstrip('.')}: {what_to_do}", "red", to_error=True)


def show_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A list: a table with headings on a terminal, else one line with tabs for each item."""
    clean = ([line("" if value is None else value) for value in row] for row in rows)
    if sys.stdout.isatty():
        _print_table(headings, list(clean))
    else:
        for row in clean:
            say("\t".join(row))


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    console = _console(sys.stdout)
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, GAP, 0, 0))
    # What is first is what people wrote, and may take several lines. An id or a fingerprint that is copied must stay
    # whole.
    first = min(max(cell_len(row[0]) for row in rows), LEAST_FIRST_CELLS)
    table.add_column(headings[0], style="bold", overflow="fold", min_width=first)
    for heading in headings[1:]:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    # All but the first value are counted whole: rich, when asked, counts on their being broken between words.
    widths = [max(map(cell_len, values)) for values in zip(headings, *rows, strict=True)]
    if max(first, cell_len(headings[0])) + sum(GAP + width for width in widths[1:]) <= console.width:
        console.print(table)
        return
    # Too narrow for columns: each item's first value above the others.
    for row in rows:
        say(row[0], "bold")
        say("  " + "  ".join(value for value in row[1:] if value))


def show_fields(fields: Iterable[tuple[str, object]]) -> None:
    """What one thing consists of, one line for each."""
    shown = [(f"{name}:", line(value)) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        say(f"{name:<{width}} {value}")


def show_json(value: Any, *, on_one_line: bool = False) -> None:
    """JSON in which no character is left that a terminal would obey."""
    raw = msgspec.json.encode(value)
    text = (raw if on_one_line else msgspec.json.format(raw, indent=2)).decode()
    # All of these stand within strings, where an escape means the same. The encoder has escaped C0 already, and what is
    # left of it is the layout.
    escaped = _UNSAFE.sub(lambda found: found[0] if found[0] < " " else _json_escape(found), text)
    sys.stdout.write(escaped + "\n")
    sys.stdout.flush()


def _print(text: str, style: str, *, to_error: bool) -> None:
    stream = sys.stderr if to_error else sys.stdout
    if not stream.isatty():
        # For another program: as it is, where rich would turn tabs into spaces.
        print(text, file=stream, flush=True)
        return
    # Folding at the edge is the terminal's own affair: an id or a fingerprint that is copied must stay whole.
    _console(stream).print(Text(text, style=style), soft_wrap=True)


def _console(stream: TextIO) -> Console:
    return Console(file=stream, highlight=False, emoji=False, markup=False)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
