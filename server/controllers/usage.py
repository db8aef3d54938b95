from datetime import date, timedelta

import msgspec
from litestar import get

from server import usage
from server.bodies import Request
from server.quotas import NEVER_REFUSED
from server.usage import Counts

DAYS = 30


class CountsOut(msgspec.Struct):
    requests: int
    posts: int
    upload_bytes: int


class DayOut(CountsOut):
    date: date


class UsageOut(msgspec.Struct):
    today: CountsOut
    limits: CountsOut
    """What there may be of each a day; 0 is any number."""
    days: list[DayOut]
    """Those of the last 30 days of UTC that have anything, newest first, today too."""


@get(
    "/me/usage",
    operation_id="getUsage",
    tags=["Accounts"],
    summary="What the caller did, by day",
    opt=NEVER_REFUSED,
)
async def get_usage(request: Request) -> UsageOut:
    """Also answered when no request is left for today; days are those of UTC."""
    caller_id = request.user.user_id
    day, counted = await request.quotas.today(caller_id)
    today = usage.date_of(day)
    days = await usage.read_days(caller_id, today - timedelta(days=DAYS))
    # Redis, which is ahead, may have been lost; Postgres follows within a minute.
    days = {today: counted.at_least(days.get(today, Counts()))} | {
        one: counts for one, counts in days.items() if one < today
    }
    return UsageOut(
        CountsOut(*days[today]),
        CountsOut(*request.quotas.limits),
        [DayOut(*counts, one) for one, counts in days.items() if any(counts)],
    )


AUTHENTICATED = [get_usage]
