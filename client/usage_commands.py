"""usage: what one did on each day, against what one may do."""

import datetime as dt
import sys
from collections.abc import Mapping, Sequence

import rich_click as click
from rich.filesize import decimal

from client.commands import connected, json_option, verb
from client.models import Usage
from client.profile import Profile
from client.terminal import show_json, show_table

DAYS = 30
NOTHING, BARS = "·", "▁▂▃▄▅▆▇█"


@click.command()
@json_option
@verb
async def usage(profile: Profile, as_json: bool) -> None:
    """Show what you did today and in the last 30 days, and what you may do a day. Days are those of UTC.

    In a pipe: day, requests, posts and uploaded bytes, and at the end what there may be of each.

    \b
    secureblogs usage
    secureblogs usage --json
    """
    async with connected(profile) as (client, _):
        found = await client.usage()
    if as_json:
        show_json(found)
    elif sys.stdout.isatty():
        show_chart(found)
    else:
        show_days(found)


def show_chart(found: Usage) -> None:
    last = found.days[0].date if found.days else dt.datetime.now(dt.UTC).date()
    heading = f"{last - dt.timedelta(days=DAYS - 1)} to {last}"
    rows = []
    for name, label, show in (
        ("requests", "requests", "{:,}".format),
        ("posts", "posts", "{:,}".format),
        ("upload_bytes", "uploaded", decimal),
    ):
        numbers = {day.date: getattr(day, name) for day in found.days}
        limit = getattr(found.limits, name)
        most = max(numbers.values(), default=0)
        row = (show(getattr(found.today, name)), show(limit) if limit else "any number", chart(numbers, last))
        rows.append((label, *row, show(most)))
    show_table(["", "today", "at most", heading, "most a day"], rows)


def chart(numbers: Mapping[dt.date, int], last: dt.date) -> str:
    """A bar for each of DAYS days, the last one at the right; the greatest number is a full one."""
    days = [last - dt.timedelta(days=before) for before in reversed(range(DAYS))]
    return "".join(bars([numbers.get(day, 0) for day in days]))


def bars(numbers: Sequence[int]) -> list[str]:
    """The least that is anything has a bar too."""
    most = max(numbers)
    return [BARS[-(-number * len(BARS) // most) - 1] if number else NOTHING for number in numbers]


def show_days(found: Usage) -> None:
    counts = ((day.date, day.requests, day.posts, day.upload_bytes) for day in found.days)
    limits = (found.limits.requests, found.limits.posts, found.limits.upload_bytes)
    show_table(
        ["day", "requests", "posts", "uploaded bytes"], [*counts, ("at most", *(one or "any number" for one in limits))]
    )
