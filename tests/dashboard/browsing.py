"""A real Chromium, the application of `pages_app` and its worker, for tests of the pages."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright, expect

from tests.redis_server import running_redis

PATIENCE_S = 10
ROOT = Path(__file__).parent.parent.parent
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
# It asks nobody for anything: the tests run where nobody would answer.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=PATIENCE_S * 1000)


class Site:
    """The dashboard of the tests: where it is, and the queue behind it."""

    def __init__(self, url: str, redis_url: str, queue: ArqRedis) -> None:
        self.url = url
        self.redis_url = redis_url
        self.queue = queue

    async def enqueue(self, function: str, *args: Any, **options: Any) -> str:
        job = await self.queue.enqueue_job(function, *args, **options)
        assert job is not None
        return job.job_id

    async def get(self, path: str, **options: Any) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(f"{self.url}{path}", **options)

    async def until(self, path: str, is_so: Callable[[Any], object]) -> Any:
        """The JSON at the path, once it is so."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = (await self.get(f"/api{path}")).json()
            if is_so(found):
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)

    async def until_failed(self, text: str) -> dict[str, Any]:
        """The failed job whose id has this text."""
        path = f"/jobs?state=failed&queue=arq:queue&text={text}"
        items = (await self.until(path, lambda found: found["items"]))["items"]
        return dict(items[0])


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "tests.dashboard.pages_app", *arguments], cwd=ROOT)


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]") -> "Iterator[subprocess.Popen[bytes]]":
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    async with httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                await client.get(url)
                return
            assert process.poll() is None, "it has ended"
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running_site() -> AsyncIterator[Site]:
    with running_redis() as redis, contextlib.ExitStack() as processes:
        port = free_port()
        web = processes.enter_context(ended(start("web", redis.url, str(port))))
        processes.enter_context(ended(start("worker", redis.url)))
        queue = await create_pool(RedisSettings.from_dsn(redis.url))
        site = Site(f"http://127.0.0.1:{port}/dashboard", redis.url, queue)
        await until_answers(site.url, web)
        await site.until("/workers", lambda found: found["items"])
        yield site
        await queue.aclose()


@contextlib.asynccontextmanager
async def beside(site: Site, path: str, database: int) -> AsyncIterator[Site]:
    """Another dashboard of the same application."""
    redis_url = f"{site.redis_url}?db={database}"
    queue = await create_pool(RedisSettings.from_dsn(redis_url))
    yield Site(site.url.replace("/dashboard", path), redis_url, queue)
    await queue.aclose()


@contextlib.asynccontextmanager
async def running_chromium() -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


class Watched:
    """A tab of which everything is noted that a page should never do."""

    def __init__(self, page: Page, site: Site) -> None:
        self.page = page
        self.site = site
        self.wrongs: list[str] = []
        self._origin = urlsplit(site.url).netloc
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.wrongs.append(f"script: {error}"))
        page.on("request", lambda request: self._see(request.url))
        page.on("dialog", lambda dialog: self.wrongs.append(f"dialog: {dialog.message}"))

    def _hear(self, message: ConsoleMessage) -> None:
        # What a policy refuses, and what an integrity does not fit, is told here and nowhere else.
        if message.type in {"error", "warning"}:
            self.wrongs.append(f"console: {message.text}")

    def _see(self, url: str) -> None:
        if not url.startswith("data:") and urlsplit(url).netloc != self._origin:
            self.wrongs.append(f"request elsewhere: {url}")

    async def go(self, path: str) -> None:
        await self.page.goto(f"{self.site.url}{path}")


@contextlib.asynccontextmanager
async def tab(
    browser: Browser, site: Site, look: Callable[[BrowserContext], Awaitable[None]] | None = None, **options: Any
) -> AsyncIterator[Watched]:
    context = await browser.new_context(**options)
    if look is not None:
        await look(context)
    watched = Watched(await context.new_page(), site)
    yield watched
    await context.close()
    assert not watched.wrongs
