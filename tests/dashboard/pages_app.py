"""What the pages are tested on: an application of its own, its worker, and functions that end in every way.

python -m tests.dashboard.pages_app web REDIS_URL PORT
python -m tests.dashboard.pages_app worker REDIS_URL
"""

import asyncio
import contextlib
import sys
from typing import Any

import uvicorn
from arq import create_pool, cron
from arq.connections import RedisSettings
from arq.worker import Retry, Worker
from litestar import Litestar
from litestar.connection import ASGIConnection
from redis.asyncio import Redis

from server.dashboard.dashboard import PanelSource
from server.dashboard.models import PanelFact
from server.dashboard.recorder import record
from server.dashboard.redaction import shown
from server.dashboard.router import dashboard_router

Connection = ASGIConnection[Any, Any, Any, Any]
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\u202egnp.exe\u0000\u001b[31m"


async def add(ctx: dict[str, Any], left: int, right: int) -> int:
    return left + right


async def send_letter(ctx: dict[str, Any], text: str) -> str:
    """Fails until it has been mended."""
    if not await ctx["redis"].get("mended"):
        try:
            text.encode("ascii")
        except UnicodeEncodeError as error:
            raise ValueError(text) from error
    return text


@shown
async def quote(ctx: dict[str, Any], text: str) -> str:
    raise RuntimeError(text)


async def try_again(ctx: dict[str, Any]) -> None:
    if ctx["job_try"] < 2:
        raise Retry(defer=0.1)


async def work_long(ctx: dict[str, Any]) -> None:
    await asyncio.sleep(300)


async def tidy(ctx: dict[str, Any]) -> None:
    """Each second."""


def run_worker(url: str) -> None:
    async def main() -> None:
        redis = await create_pool(RedisSettings.from_dsn(url))
        worker = Worker(
            functions=[add, send_letter, quote, try_again, work_long],
            cron_jobs=[cron(tidy, second=set(range(60)), keep_result=0)],
            redis_pool=redis,
            max_tries=3,
            poll_delay=0.05,
            allow_abort_jobs=True,
        )
        record(worker, version="1.2.3")
        await worker.async_run()

    # That is how arq ends on a signal.
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main())


def make_app(url: str) -> Litestar:
    """A dashboard of database 0 at /dashboard, and to be read only at /read-only; of 1 at /silent, of 2 at /tour."""
    redis: Redis = Redis.from_url(url)

    async def letters(connection: Connection) -> list[PanelFact]:
        mended = await redis.exists("mended")
        return [
            PanelFact(name="letters sent", value="1,204"),
            PanelFact(
                name="printer",
                value="well" if mended else "jammed",
                is_alarming=not mended,
                action=None if mended else "mend",
                action_label="Mend the printer",
            ),
        ]

    async def mend(connection: Connection, who: str) -> None:
        await redis.set("mended", who)

    async def broken(connection: Connection) -> list[PanelFact]:
        raise TimeoutError

    panels = [
        PanelSource("letters", "Letters", letters, {"mend": mend}),
        PanelSource("broken", "Parcels", broken),
    ]
    return Litestar(
        [
            dashboard_router(redis=redis, guards=[], who=lambda _: "ada", panels=panels),
            dashboard_router(redis=redis, guards=[], read_only=True, path="/read-only"),
            dashboard_router(redis=Redis.from_url(f"{url}?db=1"), guards=[], path="/silent"),
            dashboard_router(redis=Redis.from_url(f"{url}?db=2"), guards=[], who=lambda _: "ada", path="/tour"),
        ],
        openapi_config=None,
    )


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        run_worker(sys.argv[2])
    else:
        uvicorn.run(make_app(sys.argv[2]), port=int(sys.argv[3]), log_level="warning")
