"""How values become words on a page: the templates, their filters, and the text that others wrote.

Names, results and tracebacks come from whoever may enqueue a job or make one fail. They are escaped by Jinja, cut to a
length, isolated in direction, and what can't be seen in them is spelt out.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup, escape

# Controls, but for tab and line feed; what turns the direction of a line or has no width; and halves of surrogate
# pairs, which UTF-8 can't carry.
_UNSEEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u00ad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb"
    "\\ud800-\\udfff]|[\\U000e0000-\\U000e007f]"
)
_UNITS = (("d", 86_400, 1), ("h", 3_600, 2), ("min", 60, 2), ("s", 1, 1))


def _spell_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cut(text: str, length: int) -> str:
    """At most `length` characters of the text, and how many were left out."""
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length:,} more characters)"


def line(text: object, length: int = 200) -> str:
    """Somebody else's text on one line, of at most `length` characters before what is unseen is spelt out."""
    return _UNSEEN.sub(_spell_out, cut(str(text), length).replace("\n", "\\n").replace("\t", "\\t"))


def plain(text: object, length: int = 200) -> Markup:
    """The same among other words, whose direction it leaves alone."""
    return Markup(f"<bdi>{escape(line(text, length))}</bdi>")  # noqa: S704 - escaped; `Markup.format` takes ten times as long


def block(text: object, length: int = 20_000) -> str:
    """Somebody else's text in lines, as for `<pre>`; Jinja escapes it."""
    return _UNSEEN.sub(_spell_out, cut(str(text).replace("\r\n", "\n"), length))


def span(seconds: float) -> str:
    """A length of time in its largest fitting unit: 45 s, 12 min, 3 h, 5 d. The script of the pages says the same."""
    for unit, size, least in _UNITS:
        if seconds >= size * least:
            return f"{int(seconds // size)} {unit}"
    return "0 s"


def measure(seconds: float | None) -> str:
    """A measured time, to three figures: 850 µs, 12.5 ms, 3.21 s, 12 min."""
    if seconds is None:
        return "–"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs" if seconds > 0 else "0"
    if seconds < 1:
        return f"{_figures(seconds * 1000)} ms"
    return f"{_figures(seconds)} s" if seconds < 120 else span(seconds)


def _figures(value: float) -> str:
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e" in text else text


def count(value: int) -> str:
    return f"{value:,}"


def rate(per_minute: float) -> str:
    """Jobs per minute: 0, 0.25, 12.5, 1,240."""
    return f"{per_minute:,.0f}" if per_minute >= 100 or per_minute == 0 else f"{per_minute:.2g}"


def share(part: float, whole: float) -> str:
    """A share in percent; what is not nothing never reads as 0 %."""
    if not whole or not part:
        return "0 %" if whole else "–"
    percent = 100 * part / whole
    return "< 0.1 %" if percent < 0.1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def size(count_of_bytes: int | None) -> str:
    """Bytes in decimal units: 512 B, 12.5 kB, 85.2 MB."""
    if count_of_bytes is None:
        return "–"
    value, units = float(count_of_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


def absolute(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _moment(at: datetime | float) -> datetime:
    return at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)


def relative(at: datetime | float, now: datetime) -> str:
    seconds = (now - _moment(at)).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def ago(at: datetime | float | None, now: datetime) -> Markup:
    """A time relative to now, with the absolute one on hover; the script of the pages lets it go on."""
    if at is None:
        return Markup("–")
    when = _moment(at)
    return _time("data-relative ", when, absolute(when), relative(when, now))


def since(at: datetime | float | None, now: datetime) -> Markup:
    """How long ago, as a length of time that goes on: an age."""
    if at is None:
        return Markup("–")
    when = _moment(at)
    words = span(max(0.0, (now - when).total_seconds()))
    return _time("data-since ", when, f"since {absolute(when)}", words)


def exactly(at: datetime | float, precision: str = "milliseconds") -> Markup:
    """The absolute time itself, in UTC."""
    when = _moment(at).astimezone(UTC)
    words = when.strftime("%H:%M" if precision == "minutes" else "%Y-%m-%d %H:%M:%S")
    if precision == "milliseconds":
        words += f".{when.microsecond // 1000:03d}"
    return _time("", when, absolute(when), words)


def _time(mark: str, when: datetime, title: str, words: str) -> Markup:
    """All of it is made of figures and of words that stand here."""
    at = when.astimezone(UTC).isoformat(timespec="milliseconds")
    return Markup(f'<time {mark}datetime="{at}" title="{title}">{words}</time>')  # noqa: S704 - as above


def anchor(text: str) -> str:
    """An id for an element that stands for something with a name of any kind."""
    return f"x{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"


def query(parameters: Mapping[str, Any], **changes: Any) -> str:
    """The parameters with some changed, as they stand in an address; nothing and empty texts are left out."""
    pairs: list[tuple[str, str]] = []
    for name, value in {**parameters, **changes}.items():
        values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
        pairs += [(name, str(one)) for one in values if one is not None and str(one) != ""]
    return f"?{urlencode(pairs, errors='surrogatepass')}" if pairs else "?"


def environment() -> jinja2.Environment:
    """The templates of this package. A name that a template misspells is an error, never an empty text."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("server.dashboard"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for one in (line, plain, block, span, measure, count, rate, share, size, ago, since, exactly, anchor):
        made.filters[one.__name__] = one
    made.globals["query"] = query
    return made
