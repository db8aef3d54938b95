"""What one did and may do, at the command line."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from client.models import Counts, Day, Usage
from client.usage_commands import BARS, DAYS, bars, chart
from server import usage as written_usage
from server.usage import UserDay
from tests.client.scripted_server import Reply, one_after_the_other, serving
from tests.client.test_client_cli import User
from tests.client.test_client_tables import run_on_a_terminal

TODAY = date(2026, 3, 1)


@pytest.fixture
async def dora(server: str, tmp_path: Path) -> User:
    return await User("Dora", server, tmp_path / "dora").sign_up()


async def test_what_was_done_is_shown_day_by_day(dora: User) -> None:
    today = datetime.now(UTC).date()
    before = today - timedelta(days=2)
    await written_usage.write({UserDay(UUID(dora.id), before): written_usage.Counts(412, 3, 1_200_000)})
    found = await dora.ask_for("usage")
    assert found["today"]["requests"] > 0
    assert found["limits"] == {"requests": 0, "posts": 0, "upload_bytes": 0}
    assert [day["date"] for day in found["days"]] == [str(today), str(before)]
    rows = [row.split("\t") for row in (await dora.do("usage")).splitlines()]
    assert rows[0][0] == str(today)
    assert rows[1:] == [[str(before), "412", "3", "1200000"], ["at most", *["any number"] * 3]]


def test_bars_are_as_high_as_what_they_stand_for() -> None:
    assert bars([0, 1, 50, 100, 800]) == ["·", "▁", "▁", "▁", "█"]
    assert bars([1, 2, 3, 4, 5, 6, 7, 8]) == list(BARS)
    assert bars([0, 0]) == ["·", "·"]
    assert bars([7]) == ["█"]


def test_chart_has_a_bar_for_each_day_and_ends_today() -> None:
    shown = chart({TODAY: 4, TODAY - timedelta(days=29): 8, TODAY - timedelta(days=30): 100}, TODAY)
    assert shown == "█" + "·" * (DAYS - 2) + "▄"
    assert chart({}, TODAY) == "·" * DAYS


@pytest.mark.parametrize("columns", [60, 120])
def test_chart_stands_beside_today_and_the_limits(columns: int) -> None:
    usage = Usage(
        today=Counts(requests=1234, posts=0, upload_bytes=0),
        limits=Counts(requests=5000, posts=20, upload_bytes=0),
        days=[
            Day(date=TODAY, requests=1234, posts=0, upload_bytes=0),
            Day(date=TODAY - timedelta(days=1), requests=4936, posts=2, upload_bytes=2_500_000),
        ],
    )
    code = "from client.models import *\nfrom client.usage_commands import show_chart\nimport datetime\n"
    sent = run_on_a_terminal(f"{code}show_chart({usage!r})", COLUMNS=str(columns), TERM="dumb")
    words = sent.split()
    assert words[words.index("requests") :][:5] == ["requests", "1,234", "5,000", "·" * (DAYS - 2) + "█▂", "4,936"]
    assert words[words.index("posts") :][:5] == ["posts", "0", "20", "·" * (DAYS - 2) + "█·", "2"]
    assert words[words.index("uploaded") :][-2:] == ["2.5", "MB"]
    if columns == 120:
        assert "2026-01-31 to 2026-03-01" in sent


async def test_used_up_quota_is_told_with_the_time_when_there_is_more(tmp_path: Path) -> None:
    problem = {
        "type": "about:blank",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "The day's quota of 3 posts is used up; a new day begins at midnight UTC.",
        "code": "quota_exceeded",
    }
    token = {"token": "sbs_x", "expires": "2099-01-01T00:00:00Z"}
    user = {"id": "019c14a5-1f00-7c3d-8e21-6b9f0d4c2a11", "name": "Eve", "created_at": "2026-01-01T00:00:00Z"}
    replies = one_after_the_other(
        Reply(201, {**user, "token": token}), Reply(429, problem, headers={"Retry-After": "7200"})
    )
    async with serving(replies) as scripted:
        eve = await User("Eve", scripted.address, tmp_path / "eve").sign_up()
        told = await eve.fail(1, "whoami")
    assert "quota of 3 posts is used up; a new day begins at midnight UTC: that is " in told
    assert "secureblogs usage" in told
    begins = datetime.now(UTC) + timedelta(seconds=7200)
    assert any((begins - timedelta(minutes=late)).astimezone().strftime("%Y-%m-%d %H:%M") in told for late in (0, 1))
