import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec

from server import database, jobs, piccolo_app
from server.bodies import Request
from server.channels import UNAVAILABLE
from server.loops import unwell

CHECK_TIMEOUT_S = 2.0


class Live(msgspec.Struct):
    status: str = "live"


class Readiness(msgspec.Struct):
    """Each check says `ok` or what is wrong."""

    status: str
    postgres: str
    migrations: str
    redis: str
    channels: str
    worker: str
    loops: str


@get("/health/live", operation_id="getLiveness", tags=["Operations"], summary="The process answers", security=[{}])
async def get_liveness() -> Live:
    """Asks nothing of Postgres or Redis: whoever restarts processes by this must not do so because those are away."""
    return Live()


@get(
    "/health/ready",
    operation_id="getReadiness",
    tags=["Operations"],
    summary="All that a post needs is there",
    security=[{}],
    responses={503: ResponseSpec(Readiness, description="Which of it is not")},
)
async def get_readiness(request: Request) -> Response[Readiness]:
    checks = {
        "postgres": check_postgres(),
        "migrations": check_migrations(),
        "redis": check_redis(request),
        "channels": check_channels(request),
        "worker": check_worker(request),
        "loops": check_loops(request),
    }
    results = await asyncio.gather(*(judge(check) for check in checks.values()))
    found = dict(zip(checks, results, strict=True))
    ready = set(results) == {"ok"}
    return Response(
        Readiness(status="ready" if ready else "unready", **found),
        status_code=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE,
        headers={} if ready else {"Retry-After": "1"},
    )


async def judge(check: Awaitable[str]) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await check
    except (*database.UNAVAILABLE, *UNAVAILABLE):
        return "away"


async def check_postgres() -> str:
    await database.fetchval("SELECT 1")
    return "ok"


async def check_migrations() -> str:
    missing = set(piccolo_app.migration_ids()) - await database.applied_migrations()
    return "run `secureblogs migrate`" if missing else "ok"


async def check_redis(request: Request) -> str:
    await request.redis.ping()
    return "ok"


async def check_channels(request: Request) -> str:
    return "ok" if await request.hub.check() else "deaf"


async def check_worker(request: Request) -> str:
    workers: list[Any] = await jobs.live_workers(request.redis)
    if not workers:
        return "no worker is alive"
    return describe_unwell({name for worker in workers for name in worker.unwell})


async def check_loops(request: Request) -> str:
    """The loops of this very process."""
    state = request.app.state
    return describe_unwell(set(unwell(state.hub.loop, *state.sockets.loops, state.quotas.loop)))


def describe_unwell(names: set[str]) -> str:
    return f"ended of late, and was started again: {', '.join(sorted(names))}" if names else "ok"


PUBLIC = [get_liveness, get_readiness]
