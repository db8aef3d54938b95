"""The dashboard in this server: who gets in, what is told, and what may be done from another page."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from arq.connections import ArqRedis

from server import administration, audit, dashboard_access, database, jobs
from server.dashboard import access
from server.dashboard.keys import make_ref
from server.lists import read_page
from server.settings import Settings
from tests.people import Person, code, good, person

QUEUE = jobs.QUEUE_NAME


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[ArqRedis]:
    pool = await jobs.create_pool(str(settings.redis_url))
    yield pool
    await pool.aclose(close_connection_pool=True)


@pytest.fixture
async def admin(server: str, database_pool: None) -> AsyncIterator[Person]:
    async with person(server, "Ada") as someone:
        await administration.grant(None, someone.id)
        yield someone


@pytest.fixture
async def browser(server: str, settings: Settings, redis: ArqRedis, admin: Person) -> AsyncIterator[httpx.AsyncClient]:
    """Ada's, after she followed a link."""
    link = await dashboard_access.make_link(redis, settings, admin.id)
    async with httpx.AsyncClient(base_url=server, timeout=30) as client:
        opened = await client.get(link.removeprefix(settings.public_url))
        assert opened.status_code == 200, opened.text
        # The client keeps a secure cookie to itself where there is no TLS.
        client.headers["Cookie"] = opened.headers["set-cookie"].partition(";")[0]
        yield client


async def token_of(browser: httpx.AsyncClient) -> str:
    return str(good(await browser.get("/dashboard/api/capabilities"))["csrf_token"])


async def test_link_opens_a_session_once(server: str, settings: Settings, redis: ArqRedis, admin: Person) -> None:
    link = (await dashboard_access.make_link(redis, settings, admin.id)).removeprefix(settings.public_url)
    async with httpx.AsyncClient(base_url=server) as client:
        answers = await asyncio.gather(*(client.get(link) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401, 401]
        [opened] = [answer for answer in answers if answer.is_success]
        cookie = opened.headers["set-cookie"].lower()
        assert cookie.startswith(f"{access.COOKIE.lower()}=")
        for attribute in ("httponly", "secure", "samesite=strict", "path=/"):
            assert attribute in cookie
        assert "domain" not in cookie


async def test_link_is_good_for_a_minute(redis: ArqRedis, settings: Settings, admin: Person) -> None:
    link = await dashboard_access.make_link(redis, settings, admin.id)
    token = link.rpartition("=")[2]
    [key] = [key async for key in redis.scan_iter("arq:dashboard:link:*")]
    assert 55 < await redis.ttl(key) <= access.LINK_S == 60
    assert token.encode() not in key
    await redis.delete(key)


async def test_administrators_alone_get_in(server: str, admin: Person, alice: Person) -> None:
    for path in ("/dashboard/", "/dashboard/jobs", "/dashboard/api/overview", "/dashboard/events"):
        async with httpx.AsyncClient(base_url=server) as stranger:
            assert (await stranger.get(path)).status_code == 401, path
            stranger.headers["Cookie"] = f"{access.COOKIE}=made-up"
            assert (await stranger.get(path)).status_code == 401, path
        assert (await alice.get(path)).status_code == 403, path
    assert good(await admin.get("/dashboard/api/overview"))["queues"]


async def test_session_ends_with_the_office(browser: httpx.AsyncClient, admin: Person) -> None:
    good(await browser.get("/dashboard/api/overview"))
    await administration.revoke(None, admin.id)
    assert code(await browser.get("/dashboard/api/overview")) == (401, "no_session")
    await administration.grant(None, admin.id)
    good(await browser.get("/dashboard/api/overview"))
    await database.execute("UPDATE users SET disabled_at = now() WHERE id = $1", admin.id)
    assert code(await browser.get("/dashboard/api/overview")) == (401, "no_session")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-CSRF-Token": "0" * 64},
        {"X-CSRF-Token": "TOKEN", "Origin": "https://elsewhere.example"},
        {"X-CSRF-Token": "TOKEN", "Origin": "null"},
        {"X-CSRF-Token": "TOKEN", "Sec-Fetch-Site": "cross-site"},
        {"X-CSRF-Token": "TOKEN", "Sec-Fetch-Site": "same-site"},
    ],
)
async def test_action_from_elsewhere_is_refused(browser: httpx.AsyncClient, headers: dict[str, str]) -> None:
    token = await token_of(browser)
    sent = {name: value.replace("TOKEN", token) for name, value in headers.items()}
    answer = await browser.post(f"/dashboard/api/queues/{QUEUE}/pause", headers=sent)
    assert code(answer) == (403, "foreign_origin")
    assert not good(await browser.get("/dashboard/api/overview"))["queues"][0]["is_paused"]


async def test_token_of_another_administrator_is_refused(
    browser: httpx.AsyncClient, server: str, database_pool: None
) -> None:
    async with person(server, "Eve") as eve:
        await administration.grant(None, eve.id)
        token = good(await eve.get("/dashboard/api/capabilities"))["csrf_token"]
    answer = await browser.post(f"/dashboard/api/queues/{QUEUE}/pause", headers={"X-CSRF-Token": token})
    assert code(answer) == (403, "foreign_origin")


async def entries(actor: Person, action: str) -> list[dict[str, Any]]:
    rows = await audit.find(read_page(None, None), actor.id, None, action)
    return [dict(audit.read_ids(row["ids"])) for row in rows]


async def test_what_is_done_is_in_the_audit_log(
    browser: httpx.AsyncClient, admin: Person, redis: ArqRedis, server: str
) -> None:
    headers = {"X-CSRF-Token": await token_of(browser), "Origin": server}
    try:
        good(await browser.post(f"/dashboard/api/queues/{QUEUE}/pause", headers=headers))
        assert await entries(admin, "queue.paused") == [{"queue": QUEUE}]
    finally:
        good(await browser.post(f"/dashboard/api/queues/{QUEUE}/resume", headers=headers))
    assert await entries(admin, "queue.resumed") == [{"queue": QUEUE}]
    await redis.enqueue_job("seal_post", "not a post", _job_id="a job of nobody", _defer_by=3600)
    ref = make_ref("a job of nobody")
    assert good(await browser.post(f"/dashboard/api/jobs/{ref}/abort", headers=headers))["done"] == [ref]
    assert await entries(admin, "job.aborted") == [{"job": "a job of nobody"}]
    again = good(await browser.post(f"/dashboard/api/jobs/{ref}/retry", headers=headers))
    assert len(again["done"]) == 1
    assert await entries(admin, "job.retried") == [{"job": "a job of nobody"}]
    good(await browser.post(f"/dashboard/api/jobs/{ref}/delete", headers=headers))
    assert await entries(admin, "job.deleted") == [{"job": "a job of nobody"}]
    assert code(await browser.get(f"/dashboard/api/jobs/{ref}")) == (404, "job_not_found")


async def test_posts_are_told_of_and_failed_ones_requeued(
    browser: httpx.AsyncClient, admin: Person, alice: Person, server: str
) -> None:
    await alice.enrol()
    group = await alice.found_group()
    post = await alice.publish(group)
    await alice.wait_until_sealed(post["id"])
    [panel] = good(await browser.get("/dashboard/api/panels"))["items"]
    facts = {fact["name"]: fact for fact in panel["facts"]}
    assert facts["Posts pending"]["value"].isdecimal()
    sealed, _, due = facts["Keys sealed, of those due for posts of the last hour"]["value"].partition(" of ")
    assert 1 <= int(sealed) <= int(due)
    assert facts["Read requests waiting"]["value"].isdecimal()
    headers = {"X-CSRF-Token": await token_of(browser), "Origin": server}
    assert good(await browser.post("/dashboard/api/panels/posts/requeue", headers=headers))["done"]
    assert code(await browser.post("/dashboard/api/panels/posts/explode", headers=headers)) == (404, "panel_not_found")


async def test_media_types_name_one_charset(browser: httpx.AsyncClient) -> None:
    page = await browser.get("/dashboard/")
    sources = re.findall(r'(?:src|href)="(/dashboard/static/[^"]+)"', page.text)
    assert {path.rpartition(".")[2] for path in sources} >= {"css", "js"}
    for answer in (page, *[await browser.get(path) for path in sources]):
        assert answer.headers["content-type"].count("charset=utf-8") == 1, answer.headers["content-type"]


@pytest.mark.parametrize(
    ("query", "pointers"), [("", {"?state", "?queue"}), ("?state=failed", {"?queue"}), ("?queue=x", {"?state"})]
)
async def test_what_is_missing_in_a_query_is_named(browser: httpx.AsyncClient, query: str, pointers: set[str]) -> None:
    answer = await browser.get(f"/dashboard/api/jobs{query}")
    assert code(answer) == (422, "invalid")
    [error] = answer.json()["errors"]
    assert error["pointer"] in pointers
    assert error["detail"] == "is needed"


async def test_pages_of_the_dashboard_have_a_strict_policy(browser: httpx.AsyncClient) -> None:
    for path in ("/dashboard/", "/dashboard/jobs", "/dashboard/workers", "/dashboard/cron", "/dashboard/functions"):
        page = await browser.get(path)
        assert page.status_code == 200, page.text
        assert "'unsafe" not in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
