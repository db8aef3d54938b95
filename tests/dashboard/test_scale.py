"""What it costs: the same for a hundred jobs and for a hundred thousand, and a bounded number of bytes."""

import asyncio

import httpx
from arq.connections import ArqRedis
from litestar import Litestar

from server.dashboard.actions import ACTIONS
from server.dashboard.keys import make_ref
from server.dashboard.models import State
from server.dashboard.page_cache import TOKEN
from server.dashboard.router import dashboard_router
from tests.dashboard.conftest import QUEUE, serving
from tests.dashboard.filling import fill

PATHS = [
    "overview",
    "workers",
    "cron",
    "history",
    "history?span=7d",
    "history?span=24h&function=function%203",
    *(f"jobs?queue={QUEUE}&state={state.value}" for state in State),
    f"jobs?queue={QUEUE}&state=done&function=function%203",
]


async def test_commands_do_not_grow_with_the_jobs(foreign: ArqRedis, app: httpx.AsyncClient) -> None:
    """Counted, not timed: the same calls ask Redis as many things of ten times as many jobs."""

    async def count(path: str) -> int:
        await foreign.config_resetstat()
        assert (await app.get(f"/dashboard/api/{path}")).is_success
        stats = await foreign.info("commandstats")
        assert not {"cmdstat_keys", "cmdstat_scan"} & stats.keys()
        return sum(one["calls"] for one in stats.values())

    await fill(foreign, 1000, 1000, 5)
    few = {path: await count(path) for path in PATHS}
    await foreign.flushall()
    await fill(foreign, 10_000, 10_000, 5)
    many = {path: await count(path) for path in PATHS}
    assert {path: calls for path, calls in many.items() if calls > few[path] + 5} == {}


async def test_many_viewers_cost_one_reading(foreign: ArqRedis, app: httpx.AsyncClient) -> None:
    await fill(foreign, 100, 100, 5)
    calls = []
    for path, viewers in (("/dashboard/?span=1h", 1), ("/dashboard/", 20)):
        await foreign.config_resetstat()
        pages = await asyncio.gather(*(app.get(path) for _ in range(viewers)))
        assert len({page.text for page in pages}) == 1
        calls.append(sum(one["calls"] for one in (await foreign.info("commandstats")).values()))
    assert calls[0] == calls[1]


async def test_viewer_who_heard_of_a_change_sees_it(foreign: ArqRedis, app: httpx.AsyncClient) -> None:
    path = f"/dashboard/jobs?queue={QUEUE}&state=done"
    assert "No done job" in (await app.get(path)).text
    await fill(foreign, 10, 0, 0)
    heard = {"Last-Event-ID": "1-2-3"}
    for _ in range(2):
        assert "No done job" not in (await app.get(path, headers=heard)).text


async def test_viewers_share_no_token_and_no_buttons(foreign: ArqRedis) -> None:
    await fill(foreign, 10, 0, 0)
    router = dashboard_router(
        redis=foreign,
        guards=[],
        who=lambda connection: connection.headers["x-name"],
        permissions=lambda connection: ACTIONS if connection.headers["x-name"] != "guest" else (),
    )
    async with serving(Litestar([router])) as client:
        pages, tokens = {}, {}
        for name in ("ada", "eve", "guest"):
            headers = {"X-Name": name}
            pages[name] = (await client.get(f"/dashboard/jobs?queue={QUEUE}&state=failed", headers=headers)).text
            tokens[name] = (await client.get("/dashboard/api/capabilities", headers=headers)).json()["csrf_token"]
    for name in ("ada", "eve"):
        assert tokens[name] in pages[name]
        assert not any(tokens[other] in pages[name] for other in tokens if other != name)
        assert TOKEN not in pages[name]
    assert "csrf_token" not in pages["guest"]


async def test_who_does_the_same_twice_sees_both_done(foreign: ArqRedis, app: httpx.AsyncClient) -> None:
    await fill(foreign, 10, 0, 0)
    token = (await app.get("/dashboard/api/capabilities")).json()["csrf_token"]
    for number in (1, 2):
        job_id = f"job:{number:032x}"
        path = f"/dashboard/jobs/{make_ref(job_id)}/delete"
        page = await app.post(path, data={"csrf_token": token}, follow_redirects=True)
        assert "Deleted: 1 job" in page.text
        shown = await app.get(f"/dashboard/jobs?state=done&queue={QUEUE}&did=delete&count=1")
        assert job_id not in shown.text


async def test_history_takes_the_bytes_that_it_says(foreign: ArqRedis) -> None:
    async def used() -> int:
        return int((await foreign.info("memory"))["used_memory"])

    before = await used()
    await fill(foreign, 10_000, 0, 0)
    assert (await used() - before) / 10_000 < 1024 + 0.1 * 2048
