"""`secureblogs jobs`, `workers` and `dashboard-link`: the dashboard from the machine itself."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import rich_click as click

from server import administration, dashboard_access, database, jobs
from server.dashboard import terminal
from server.dashboard.errors import Unavailable
from server.dashboard.lists import MAX_PAGE
from server.dashboard.models import JobPage, Overview, Selection, State, Workers
from server.dashboard.reader import Reader
from server.errors import UserNotFound
from server.settings import Settings, load
from server.up import at_running_address, attach

WATCH_EVERY_S = 1.0
REDIS_AWAY = "secureblogs: Redis does not answer; `secureblogs doctor` looks into it"
HELP = {"help_option_names": ["-h", "--help"]}

watch_option = click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON, one document a line.")


class Screen(msgspec.Struct):
    """What `secureblogs jobs --json` prints."""

    overview: Overview
    jobs: JobPage


@click.command("jobs", context_settings=HELP)
@click.option(
    "--state", type=click.Choice([state.value for state in State]), default="failed", show_default=True, help="Which."
)
@click.option("--queue", default=jobs.QUEUE_NAME, show_default=True, help="Of which queue.")
@click.option("--function", help="Of this function alone.")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=20, show_default=True, help="How many.")
@watch_option
@json_option
def list_jobs(state: str, queue: str, function: str | None, limit: int, watch: bool, as_json: bool) -> None:
    """Show the workers' queues, and the jobs of a state."""
    selection = Selection(state=State(state), queue=queue, function=function)

    async def look(reader: Reader) -> str:
        overview, page = await reader.overview(), await reader.jobs(selection, limit=limit)
        if as_json:
            return msgspec.json.encode(Screen(overview, page)).decode()
        return f"{terminal.show_queues(overview)}\n\n{terminal.show_jobs(page, overview.at)}"

    show(look, watch, as_json)


@click.command("workers", context_settings=HELP)
@watch_option
@json_option
def list_workers(watch: bool, as_json: bool) -> None:
    """Show the living workers and what they have done."""

    async def look(reader: Reader) -> str:
        workers = await reader.workers()
        if as_json:
            return msgspec.json.encode(Workers(items=workers)).decode()
        return terminal.show_workers(workers, datetime.now(UTC))

    show(look, watch, as_json)


def show(look: Callable[[Reader], Awaitable[str]], watch: bool, as_json: bool) -> None:
    try:
        asyncio.run(print_it(look, watch, as_json))
    except Unavailable:
        sys.exit(REDIS_AWAY)


async def print_it(look: Callable[[Reader], Awaitable[str]], watch: bool, as_json: bool) -> None:
    async with open_redis(attach(load(os.environ))) as redis:
        reader = Reader(redis, jobs.deserialize, [jobs.QUEUE_NAME])
        while True:
            begun = time.monotonic()
            text = await look(reader)
            if watch and not as_json and sys.stdout.isatty():
                click.clear()
            click.echo(text)
            if not watch:
                return
            await asyncio.sleep(max(0.0, begun + WATCH_EVERY_S - time.monotonic()))


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Any]:
    redis = await jobs.create_pool(str(settings.redis_url))
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


@click.command("dashboard-link", context_settings=HELP)
@click.argument("email_or_id")
def print_link(email_or_id: str) -> None:
    """Print an address that opens the dashboard for an administrator: once, and within a minute."""
    try:
        settings = at_running_address(attach(load(os.environ)), os.environ)
        click.echo(asyncio.run(make_link(settings, email_or_id)))
    except UserNotFound:
        sys.exit(f"secureblogs: no account has the address or id {email_or_id}")
    except Unavailable:
        sys.exit(REDIS_AWAY)
    except database.UNAVAILABLE as error:
        sys.exit(f"secureblogs: Postgres does not answer ({error}); `secureblogs doctor` looks into it")


async def make_link(settings: Settings, email_or_id: str) -> str:
    async with database.open_pool(str(settings.database_url), 1), open_redis(settings) as redis:
        user_id = await administration.find(email_or_id)
        if not await administration.is_admin(user_id):
            raise click.ClickException("that account is no administrator's; `secureblogs admin grant` makes it one")
        return await dashboard_access.make_link(redis, settings, user_id)
