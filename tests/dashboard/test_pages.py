"""The pages, in Chromium, on a queue and a worker of their own."""

import asyncio
import json
import os
import re
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Browser, Locator, Route, expect

from server.dashboard import assets, events, rendering
from tests.dashboard.browsing import (
    CHROMIUM,
    PATIENCE_S,
    ROOT,
    Site,
    Watched,
    beside,
    ended,
    running_chromium,
    running_site,
    start,
    tab,
)
from tests.dashboard.pages_app import HOSTILE

pytestmark = pytest.mark.thorough

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
# A folder for pictures of every page in every look, for people to look at.
SHOTS = os.environ.get("SHOTS")
LOOKS: list[tuple[Literal["light", "dark"], int]] = [("light", 1280), ("dark", 375)]
if SHOTS:
    LOOKS += [("light", 375), ("dark", 1280)]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


@pytest.fixture(scope="module")
async def site() -> AsyncIterator[Site]:
    async with running_site() as running:
        yield running


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: install it, or set CHROMIUM to where it is")
    if assets.missing():
        pytest.skip("the scripts from npm are not there: `make parts`")
    async with running_chromium() as running:
        yield running


async def pages_of(site: Site) -> dict[str, str]:
    """Every page, with something of every kind on it."""
    failed, quoted, running = (f"{kind}-{uuid.uuid4().hex}" for kind in ("failed", "quoted", "running"))
    await site.enqueue("send_letter", "Zürich", _job_id=failed)
    await site.enqueue("quote", HOSTILE * 40, _job_id=quoted)
    await site.enqueue(HOSTILE, _job_id=f"{HOSTILE}{uuid.uuid4()}")
    await site.enqueue("שלום", "x", _job_id=f"עולם {uuid.uuid4()}")
    await site.enqueue("work_long", _job_id=running)
    await site.enqueue("try_again")
    for number in range(5):
        await site.enqueue("add", number, 1)
    await site.queue.set(f"arq:job:pickled-{failed}", b"\x80\x04cos\nsystem\n")
    await site.queue.zadd("arq:queue", {f"pickled-{failed}": 4e12})
    one, other = await site.until_failed(failed), await site.until_failed(quoted)
    await site.until("/jobs?state=done&queue=arq:queue&function=add", lambda found: len(found["items"]) >= 5)
    await site.until("/jobs?state=running&queue=arq:queue", lambda found: found["items"])
    return {
        "overview": "/",
        "jobs": "/jobs?state=failed&queue=arq:queue",
        "deferred": "/jobs?state=deferred&queue=arq:queue",
        "empty": "/jobs?state=aborted&queue=arq:queue&function=nobody",
        "job": f"/jobs/{one['ref']}",
        "hostile": f"/jobs/{other['ref']}",
        "functions": "/functions",
        "function": "/functions?function=send_letter&span=24h",
        "workers": "/workers",
        "cron": "/cron",
    }


async def test_every_page_is_accessible_and_keeps_to_its_policy(site: Site, browser: Browser) -> None:
    pages = await pages_of(site)
    async with tab(browser, site) as one:
        for name, path in pages.items():
            await one.page.set_viewport_size({"width": LOOKS[0][1], "height": 800})
            await one.go(path)
            await expect(one.page.locator("#live")).to_have_text("Live")
            await one.page.evaluate(AXE.read_text(encoding="utf-8"))
            for mode, width in LOOKS:
                await one.page.emulate_media(color_scheme=mode)
                await one.page.set_viewport_size({"width": width, "height": 800})
                await until_it_fits(one, width)
                if SHOTS:
                    await one.page.screenshot(path=Path(SHOTS) / f"{name}-{mode}-{width}.png", full_page=True)
                # What is not about colours is the same in the dark.
                rules = {"runOnly": ["color-contrast"]} if mode == "dark" and not SHOTS else {}
                found = await one.page.evaluate(
                    "rules => axe.run({preload: false, resultTypes: ['violations'], ...rules})", rules
                )
                wrong = [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found["violations"]]
                assert not wrong, (name, mode, width, wrong)


FITS = """width => document.documentElement.scrollWidth <= width
  && [...document.querySelectorAll(".uplot")].every(plot => plot.closest("figure").clientWidth - plot.clientWidth < 20)
"""


async def until_it_fits(one: Watched, width: int) -> None:
    """Nothing goes beyond the right edge, and charts have followed."""
    deadline = time.monotonic() + PATIENCE_S
    while not await one.page.evaluate(FITS, width):
        assert time.monotonic() < deadline, (one.page.url, width)
        await asyncio.sleep(0.05)


async def test_pages_carry_the_policy_and_every_part_its_digest(site: Site) -> None:
    if assets.missing():
        pytest.skip("the scripts from npm are not there: `make parts`")
    page = await site.get("/")
    assert page.headers["content-security-policy"] == POLICY
    assert page.headers["cache-control"] == "no-store"
    asked_for = re.findall(r'(?:src|href)="/dashboard(/static/[^"]+)" integrity="sha384-[^"]{64}"', page.text)
    assert len(asked_for) == 5
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src)", page.text)
    for path in asked_for:
        part = await site.get(path)
        assert part.status_code == 200
        assert part.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (await site.get("/static/0000000000000000/dashboard.js")).status_code == 404
    ours = asked_for[-1]
    assert ours.endswith("/dashboard.js")
    assert (await site.get(ours.replace("dashboard.js", "..%2Fpages.py"))).status_code == 404


async def test_overview_follows_what_happens(site: Site, browser: Browser) -> None:
    await site.enqueue("add", 1, 2)
    await site.until("/overview", lambda found: found["queues"])
    async with tab(browser, site) as one:
        await one.go("/jobs?state=done&queue=arq:queue&text=live-")
        await expect(one.page.locator("#live")).to_have_text("Live")
        await one.page.evaluate("window.isTheSamePage = true")
        # A page that was made before what it is told of would be an old one.
        async with one.page.expect_request(lambda request: bool(events.read_id(request.headers.get("last-event-id")))):
            job = await site.enqueue("add", 1, 2, _job_id=f"live-{uuid.uuid4().hex}")
        await expect(one.page.get_by_role("link", name=job)).to_be_visible()
        assert await one.page.evaluate("window.isTheSamePage")


async def test_list_holds_still_while_jobs_are_chosen(site: Site, browser: Browser) -> None:
    mark = uuid.uuid4().hex
    await site.enqueue("send_letter", "é", _job_id=f"first-{mark}")
    await site.until_failed(f"first-{mark}")
    async with tab(browser, site) as one:
        await one.go(f"/jobs?state=failed&queue=arq:queue&text={mark}")
        await expect(one.page.locator("#live")).to_have_text("Live")
        box = one.page.get_by_role("checkbox", name=f"Choose first-{mark}")
        await box.check()
        await site.enqueue("send_letter", "é", _job_id=f"second-{mark}")
        await expect(one.page.locator("#live")).to_have_text("Held")
        await expect(one.page.locator("#chosen")).to_have_text("1 chosen")
        await expect(one.page.get_by_role("link", name=f"second-{mark}")).to_have_count(0)
        await box.uncheck()
        await expect(one.page.get_by_role("link", name=f"second-{mark}")).to_be_visible()


async def test_update_that_was_on_its_way_does_not_move_a_list_under_the_hand(site: Site, browser: Browser) -> None:
    mark = uuid.uuid4().hex
    await site.enqueue("send_letter", "é", _job_id=f"first-{mark}")
    await site.until_failed(f"first-{mark}")
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def late(route: Route) -> None:
        asked.set()
        await go_on.wait()
        await route.continue_()

    async with tab(browser, site) as one:
        await one.go(f"/jobs?state=failed&queue=arq:queue&text={mark}")
        await expect(one.page.locator("#live")).to_have_text("Live")
        await one.page.route("**/jobs?**", late)
        await site.enqueue("send_letter", "é", _job_id=f"second-{mark}")
        await site.until_failed(f"second-{mark}")
        await asyncio.wait_for(asked.wait(), 10)
        box = one.page.get_by_role("checkbox", name=f"Choose first-{mark}")
        await box.check()
        go_on.set()
        await expect(one.page.locator("#live")).to_have_text("Held")
        await expect(one.page.get_by_role("link", name=f"second-{mark}")).to_have_count(0)
        await box.uncheck()
        await expect(one.page.get_by_role("link", name=f"second-{mark}")).to_be_visible()


async def test_failed_job_shows_its_traceback_and_is_retried(site: Site, browser: Browser) -> None:
    mark = uuid.uuid4().hex
    await site.enqueue("send_letter", "Zürich", _job_id=mark)
    await site.until_failed(mark)
    async with tab(browser, site) as one:
        await one.go(f"/jobs?state=failed&queue=arq:queue&text={mark}")
        await one.page.get_by_role("link", name=mark).click()
        trace = one.page.locator("pre")
        await expect(trace).to_contain_text("UnicodeEncodeError (message redacted)")
        await expect(trace).to_contain_text(re.compile(r"pages_app\.py:\d+ in send_letter"))
        assert "Zürich" not in await one.page.content()
        await site.queue.set("mended", "1")
        await one.page.get_by_role("button", name="Retry").click()
        await expect(one.page.get_by_text("Enqueued again: 1 job")).to_be_visible()
        await expect(one.page.get_by_role("link", name="an earlier job")).to_be_visible()
        await expect(one.page.locator("#facts + .state")).to_have_text("done")
    await site.queue.delete("mended")


async def test_running_job_is_aborted_after_a_question(site: Site, browser: Browser) -> None:
    mark = uuid.uuid4().hex
    await site.enqueue("work_long", _job_id=mark)
    path = f"/jobs?state=running&queue=arq:queue&text={mark}"
    [job] = (await site.until(path, lambda found: found["items"]))["items"]
    async with tab(browser, site) as one:
        await one.go(f"/jobs/{job['ref']}")
        await expect(one.page.locator("#facts + .state")).to_have_text("running")
        await one.page.get_by_text("Abort…").click()
        await one.page.get_by_role("button", name="Abort this job").click()
        await expect(one.page.get_by_text("Told to abort: 1 job")).to_be_visible()
        await expect(one.page.locator("#facts + .state")).to_have_text("aborted")


async def test_queue_is_paused_and_resumed(site: Site, browser: Browser) -> None:
    await site.enqueue("add", 1, 2)
    await site.until("/overview", lambda found: found["queues"])
    async with tab(browser, site) as one:
        await one.go("/")
        await one.page.get_by_text("Pause…").click()
        await one.page.get_by_role("button", name="Pause the queue").click()
        await expect(one.page.get_by_text("Paused by ada")).to_be_visible()
        await one.page.get_by_role("button", name="Resume").click()
        await expect(one.page.get_by_text("Resumed", exact=True)).to_be_visible()
        await expect(one.page.get_by_text("Pause…")).to_be_visible()


async def test_filters_stand_in_the_address(site: Site, browser: Browser) -> None:
    mark = uuid.uuid4().hex
    for number in range(2):
        await site.enqueue("quote", "x", _job_id=f"{mark}-{number}")
    await site.enqueue("send_letter", "é", _job_id=f"{mark}-letter")
    path = f"/jobs?state=failed&queue=arq:queue&text={mark}"
    await site.until(path, lambda found: len(found["items"]) == 3)
    async with tab(browser, site) as one:
        await one.go("/jobs?state=failed&queue=arq:queue")
        await one.page.get_by_label("Function").select_option("quote")
        await one.page.get_by_label("Not older than").select_option("1 hour")
        await one.page.get_by_label("Id contains").fill(mark)
        await one.page.get_by_role("button", name="Show").click()
        await one.page.wait_for_url(lambda url: "text=" in url)
        assert one.page.url.endswith(f"/jobs?state=failed&queue=arq%3Aqueue&function=quote&within=1h&text={mark}")
        await expect(one.page.locator("tbody tr")).to_have_count(2)
        await one.page.get_by_role("link", name="Done", exact=False).first.click()
        await expect(one.page.get_by_text("No done job fits")).to_be_visible()
        await expect(one.page.get_by_label("Id contains")).to_have_value(mark)
        await one.page.get_by_role("link", name="Clear", exact=True).click()
        await expect(one.page.get_by_label("Id contains")).to_have_value("")


async def test_many_jobs_are_done_with_after_a_preview(site: Site, browser: Browser) -> None:
    mark = uuid.uuid4().hex
    for number in range(3):
        await site.enqueue("quote", "x", _job_id=f"{mark}-{number}")
    path = f"/jobs?state=failed&queue=arq:queue&text={mark}"
    await site.until(path, lambda found: len(found["items"]) == 3)
    async with tab(browser, site) as one:
        await one.go(path)
        await one.page.get_by_role("checkbox", name=f"Choose {mark}-1").check()
        await one.page.get_by_role("button", name="Delete…").click()
        await expect(one.page.get_by_role("heading", name="Delete 1 job?")).to_be_visible()
        await one.page.get_by_role("button", name="Delete 1 job").click()
        await expect(one.page.get_by_text("Deleted: 1 job")).to_be_visible()
        await expect(one.page.locator("tbody tr")).to_have_count(2)
        await one.page.get_by_role("button", name="Retry…").click()
        await expect(one.page.get_by_role("heading", name="Retry 2 jobs?")).to_be_visible()
        await one.page.get_by_role("link", name="Leave them").click()
        await expect(one.page.locator("tbody tr")).to_have_count(2)


async def test_panel_is_repaired(site: Site, browser: Browser) -> None:
    await site.queue.delete("mended")
    async with tab(browser, site) as one:
        await one.go("/")
        await expect(one.page.get_by_text("asking the application raised TimeoutError")).to_be_visible()
        await expect(one.page.get_by_role("row", name="printer")).to_contain_text("jammed")
        await one.page.get_by_role("button", name="Mend the printer").click()
        await expect(one.page.get_by_text("Repair done")).to_be_visible()
        await expect(one.page.get_by_role("row", name="printer")).to_contain_text("well")
    assert await site.queue.get("mended") == b"ada"
    await site.queue.delete("mended")


async def test_pages_are_read_and_acted_on_without_scripts(site: Site, browser: Browser) -> None:
    mark = uuid.uuid4().hex
    await site.enqueue("quote", "the words of it", _job_id=mark)
    await site.until_failed(mark)
    async with tab(browser, site, java_script_enabled=False) as one:
        await one.go("/functions?function=quote")
        await one.page.get_by_text("The same as figures").first.click()
        await expect(one.page.get_by_role("table").first).to_contain_text("Failed or orphaned")
        await one.go(f"/jobs?state=failed&queue=arq:queue&text={mark}")
        await expect(one.page.locator("td time").first).to_have_attribute("title", re.compile(r"\d\d:\d\d:\d\d UTC"))
        await one.page.get_by_role("link", name=mark).click()
        await expect(one.page.locator("pre")).to_contain_text("RuntimeError: the words of it")
        await one.page.get_by_text("Delete…").click()
        await one.page.get_by_role("button", name="Delete this job").click()
        await expect(one.page.get_by_text("Deleted: 1 job")).to_be_visible()


async def test_page_is_reached_by_keyboard(site: Site, browser: Browser) -> None:
    async with tab(browser, site) as one:
        await one.go("/workers")
        await one.page.keyboard.press("Tab")
        await expect(one.page.get_by_text("To the content")).to_be_focused()
        for name in ("Queue", "Overview", "Jobs"):
            await one.page.keyboard.press("Tab")
            await expect(one.page.get_by_role("link", name=name, exact=True)).to_be_focused()
        outline = await one.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        await one.page.keyboard.press("Enter")
        await expect(one.page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()


async def test_nothing_that_a_job_says_is_obeyed(site: Site, browser: Browser) -> None:
    mark = uuid.uuid4().hex
    await site.enqueue("quote", HOSTILE + "A" * 100_000, _job_id=f"{mark}{HOSTILE}")
    job = await site.until_failed(mark)
    async with tab(browser, site) as one:
        for path in (f"/jobs?state=failed&queue=arq:queue&text={mark}", f"/jobs/{job['ref']}"):
            await one.go(path)
            await expect(one.page.locator("#page")).to_contain_text("<script>document.title")
            assert await one.page.locator("#page script, #page img").count() == 0
            content = await one.page.content()
            assert not set("\u202e\x00\x1b") & set(content)
            assert len(content) < 60_000
            assert "owned" not in await one.page.title()


async def test_stalled_queue_alarms_on_the_first_screen_and_empty_pages_teach(site: Site, browser: Browser) -> None:
    async with beside(site, "/silent", database=1) as silent, tab(browser, silent) as one:
        for path, words in [
            ("/", "No queue yet"),
            ("/workers", "No worker is alive"),
            ("/cron", "No cron job"),
            ("/functions", "No function yet"),
            ("/jobs", "No failed job"),
        ]:
            await one.go(path)
            await expect(one.page.get_by_text(words)).to_be_visible()
        await one.go("/")
        await expect(one.page.locator("#live")).to_have_text("Live")
        with ended(start("worker", silent.redis_url)):
            await expect(one.page.get_by_role("heading", name="arq:queue")).to_be_visible()
        await silent.enqueue("add", 1, 2)
        # At once, or where the worker came to no goodbye, when its heartbeat ends.
        await expect(one.page.get_by_text("Stalled: arq:queue")).to_be_in_viewport(timeout=20_000)
        await expect(one.page).to_have_title("Alarm · Queue")


async def test_tour_of_the_readme(site: Site, browser: Browser) -> None:
    """Every word that the README's tour shows in bold is clicked here, in this order."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tour = readme.partition("#### A tour")[2].partition("\n#")[0]
    clicked = []

    async def click(one: Locator, words: str) -> None:
        clicked.append(words)
        await one.click()

    async with beside(site, "/tour", database=2) as own, tab(browser, own) as one:
        page = one.page
        with ended(start("worker", own.redis_url)) as worker:
            for number in range(3):
                await own.enqueue("send_letter", "Zürich", _job_id=f"letter-{number}")
            await own.until("/jobs?state=failed&queue=arq:queue", lambda found: len(found["items"]) == 3)
            await one.go("/workers")
            # A failing function, and its traceback.
            await click(page.get_by_role("link", name="Overview", exact=True), "Overview")
            row = page.get_by_role("row", name="send_letter")
            await expect(row.get_by_text("100 %")).to_have_class(re.compile("loud"))
            await row.get_by_role("link").click()
            await click(page.get_by_role("link", name="Failed jobs"), "Failed jobs")
            await page.get_by_role("link", name="letter-1").click()
            await expect(page.locator("pre")).to_contain_text(re.compile(r"pages_app\.py:\d+ in send_letter"))
            await expect(page.locator("pre")).to_contain_text("ValueError")
            # Mended, and its jobs done again.
            await own.queue.set("mended", "1")
            await click(page.get_by_role("link", name="Failed jobs of"), "Failed jobs of")
            await click(page.get_by_role("button", name="Retry…"), "Retry…")
            await page.get_by_role("button", name="Retry 3 jobs").click()
            await expect(page.get_by_text("Enqueued again: 3 jobs")).to_be_visible()
            await own.until("/jobs?state=done&queue=arq:queue&function=send_letter", lambda all: len(all["items"]) == 3)
            # Paused: what comes waits, and the first screen says so.
            await click(page.get_by_role("link", name="Overview", exact=True), "Overview")
            await click(page.get_by_text("Pause…"), "Pause…")
            await click(page.get_by_role("button", name="Pause the queue"), "Pause the queue")
            await expect(page.get_by_text("Paused by ada")).to_be_visible()
            # Workers ask once a second.
            await asyncio.sleep(1.2)
            await own.enqueue("work_long", _job_id="long")
            await expect(page.get_by_text("Work is due, and the queue is paused.")).to_be_visible()
            assert not (await own.get("/api/jobs?state=running&queue=arq:queue")).json()["items"]
            await click(page.get_by_role("button", name="Resume"), "Resume")
            await own.until("/jobs?state=running&queue=arq:queue", lambda found: found["items"])
            # A worker that is killed, with a job in hand.
            await click(page.get_by_role("link", name="Workers", exact=True), "Workers")
            await expect(page.get_by_role("heading", name=f"pid {worker.pid}")).to_be_visible()
            worker.kill()
            killed = time.monotonic()
            await expect(page.get_by_text("No worker is alive")).to_be_visible(timeout=20_000)
        await click(page.get_by_role("link", name="Overview", exact=True), "Overview")
        await expect(page.get_by_text("Stalled: arq:queue")).to_be_in_viewport()
        # One more where the worker died with the cron job of that second in hand.
        await click(page.get_by_role("link", name=re.compile("^[12] orphaned$")), "Orphaned")
        assert time.monotonic() - killed < 20
        await page.get_by_role("link", name="long", exact=True).click()
        await expect(page.get_by_text("Its worker is gone")).to_be_visible()
        await click(page.get_by_role("button", name="Retry", exact=True), "Retry")
        await expect(page.get_by_text("Enqueued again: 1 job")).to_be_visible()
    assert re.findall(r"\*\*(.+?)\*\*", tour) == clicked


async def test_reader_is_offered_nothing_that_is_refused(site: Site, browser: Browser) -> None:
    job = await site.enqueue("add", 1, 2, _defer_by=600)
    async with beside(site, "/read-only", database=0) as shut, tab(browser, shut) as one:
        await one.go(f"/jobs?state=deferred&queue=arq:queue&text={job}")
        await expect(one.page.get_by_text("read only", exact=True)).to_be_visible()
        await one.page.get_by_role("link", name=job).click()
        await expect(one.page.locator("#facts + .state")).to_have_text("deferred")
        assert await one.page.locator("form[method=post] button").count() == 0
        await one.go("/")
        assert await one.page.locator("form[method=post]").count() == 0


async def test_page_says_what_is_wrong_with_an_address(site: Site) -> None:
    for path, status, words in [
        ("/jobs?state=lost", 400, "There is no such state"),
        ("/?span=1y", 400, "There is no such span"),
        ("/jobs/bm9uZQ", 404, "There is no such job"),
    ]:
        page = await site.get(path)
        assert page.status_code == status
        assert words in page.text
        assert page.headers["content-security-policy"] == POLICY


async def test_words_come_from_no_address(site: Site) -> None:
    page = await site.get("/?did=%3Cb%3Eowned&count=1")
    assert "owned" not in page.text.replace("did=%3Cb%3Eowned", "")


def test_what_npm_brings_is_missed_by_name(tmp_path: Path) -> None:
    assert assets.missing(tmp_path) == ["uPlot.min.css", "htmx.min.js", "uPlot.iife.min.js"]


async def test_page_without_what_npm_brings_is_whole_but_for_charts(site: Site, browser: Browser) -> None:
    async with tab(browser, site) as one:
        for part in assets.PARTS:
            await one.page.route(f"**/{part}", lambda route: route.fulfill(status=200, body=""))
        await one.go("/functions")
        await one.page.get_by_text("The same as figures").first.click()
        await expect(one.page.get_by_role("table").first).to_contain_text("Failed or orphaned")
        await expect(one.page.locator("#live")).to_have_text("Not live")
        # An empty file has not the digest that the page asks for.
        assert len(one.wrongs) == len(assets.PARTS)
        one.wrongs.clear()


def test_what_comes_from_npm_is_pinned_by_digests_and_by_no_address() -> None:
    text = (ROOT / "package-lock.json").read_text(encoding="utf-8")
    packages = {name: one for name, one in json.loads(text)["packages"].items() if name}
    assert {one["integrity"].split("-")[0] for one in packages.values()} == {"sha512"}
    assert "resolved" not in text
    assert "://" not in text
    wanted = json.loads((ROOT / "package.json").read_text(encoding="utf-8"))
    for name, version in (wanted["dependencies"] | wanted["devDependencies"]).items():
        assert packages[f"node_modules/{name}"]["version"] == version


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>&", "<bdi>&lt;b&gt;&amp;</bdi>"),
        ("a\u202eb\x00\n", "<bdi>a\\u202eb\\x00\\n</bdi>"),
        ("\ud800", "<bdi>\\ud800</bdi>"),
        ("x" * 201, f"<bdi>{'x' * 200}… (1 more characters)</bdi>"),
    ],
)
def test_text_of_others_is_spelt_out(text: str, shown: str) -> None:
    assert rendering.plain(text) == shown


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0, "0"),
        (0.0000005, "0 µs"),
        (0.00085, "850 µs"),
        (0.0125, "12.5 ms"),
        (0.9996, "1000 ms"),
        (3.214, "3.21 s"),
        (119.0, "119 s"),
        (720, "12 min"),
        (4e5, "4 d"),
    ],
)
def test_measured_times_have_three_figures(seconds: float | None, words: str) -> None:
    assert rendering.measure(seconds) == words
