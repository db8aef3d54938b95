"""What users did on each day of UTC, as far as it is written down: the rows of `user_daily_usage`."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Literal, NamedTuple
from uuid import UUID

from server import database

Kind = Literal["requests", "posts", "upload_bytes"]


class Counts(NamedTuple):
    requests: int = 0
    posts: int = 0
    upload_bytes: int = 0

    def at_least(self, other: "Counts") -> "Counts":
        """The greater of each."""
        return Counts(*map(max, self, other))

    def plus(self, other: "Counts") -> "Counts":
        return Counts(*(own + others for own, others in zip(self, other, strict=True)))


class UserDay(NamedTuple):
    """A user on a day."""

    user_id: UUID
    date: date


EPOCH = date(1970, 1, 1)


def day_number(at: float) -> int:
    """The day of UTC that a Unix time is in, counted from 1970."""
    return int(at // 86400)


def date_of(day: int) -> date:
    return EPOCH + timedelta(days=day)


def number_of(day: date) -> int:
    return (day - EPOCH).days


def seconds_to_midnight(at: float) -> int:
    """Until the next day of UTC; from 1 to 86,400."""
    return 86400 - int(at % 86400)


async def read(user_days: list[UserDay]) -> dict[UserDay, Counts]:
    """What is written of these; what is not there was nothing."""
    rows = await database.fetch(
        'SELECT "user", date, requests, posts, upload_bytes FROM user_daily_usage'
        ' JOIN unnest($1::uuid[], $2::date[]) AS wanted ("user", date) USING ("user", date)',
        *([one.user_id for one in user_days], [one.date for one in user_days]),
    )
    return {UserDay(user_id, day): Counts(*counts) for user_id, day, *counts in rows}


async def read_days(user_id: UUID, after: date) -> dict[date, Counts]:
    """All that is written of a user since a day, which is left out itself; newest first."""
    rows = await database.fetch(
        'SELECT date, requests, posts, upload_bytes FROM user_daily_usage WHERE "user" = $1 AND date > $2'
        " ORDER BY date DESC",
        *(user_id, after),
    )
    return {day: Counts(*counts) for day, *counts in rows}


async def write(counts: Mapping[UserDay, Counts]) -> dict[UserDay, Counts]:
    """Write totals, not additions, so it may be done twice or late: none is ever lowered. What is then written.

    What is of users that are no more is left out, there too.
    """
    # In one order everywhere, so that two workers with the same rows don't wait for one another in a circle. The users'
    # rows go first for the same reason: who deletes a user locks that row, and then these.
    rows = await database.fetch(
        """
        WITH known AS (SELECT id FROM users WHERE id = ANY($1) ORDER BY id FOR KEY SHARE)
        INSERT INTO user_daily_usage AS u ("user", date, requests, posts, upload_bytes)
        SELECT c.* FROM unnest($1::uuid[], $2::date[], $3::bigint[], $4::bigint[], $5::bigint[])
            AS c ("user", date, requests, posts, upload_bytes)
        JOIN known ON known.id = c."user" ORDER BY c."user", c.date
        ON CONFLICT ("user", date) DO UPDATE SET requests = GREATEST(u.requests, excluded.requests),
            posts = GREATEST(u.posts, excluded.posts),
            upload_bytes = GREATEST(u.upload_bytes, excluded.upload_bytes)
        RETURNING "user", date, requests, posts, upload_bytes
        """,
        *([one.user_id for one in counts], [one.date for one in counts]),
        *([max(0, getattr(found, name)) for found in counts.values()] for name in Counts._fields),
    )
    return {UserDay(user_id, day): Counts(*counts) for user_id, day, *counts in rows}


async def is_any() -> bool:
    """Whether anything was ever written."""
    return bool(await database.fetchval("SELECT EXISTS (SELECT 1 FROM user_daily_usage)"))
