"""`/metrics`, in the text format of Prometheus, for whoever has METRICS_TOKEN.

Some figures are of the process that answers, so each API process wants to be asked; the others are of the whole
installation and the same everywhere.
"""

import secrets
from collections import Counter
from collections.abc import Iterator
from typing import Any

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.openapi.datastructures import ResponseSpec
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from server import auth, database, events, jobs, posts
from server.bodies import Request
from server.channels import UNAVAILABLE
from server.errors import Unauthenticated
from server.jobs import LiveWorker, SealingTimes
from server.posts import Statistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@get(
    "/metrics",
    operation_id="getMetrics",
    tags=["Operations"],
    summary="Figures for Prometheus",
    security=[{"metrics": []}],
    media_type="text/plain",
    responses={200: ResponseSpec(str, description="Prometheus' text format", media_type="text/plain")},
)
async def get_metrics(request: Request) -> Response[bytes]:
    """Only with the bearer token that `METRICS_TOKEN` sets; where it is not set, there is nothing at this address."""
    expected = request.settings.metrics_token
    if expected is None:
        raise NotFoundException
    token = auth.bearer(request.headers.get("authorization"))
    if token is None or not secrets.compare_digest(token, expected):
        raise Unauthenticated
    shared = CollectorRegistry()
    shared.register(Gathered([*pool_figures(), *await postgres_figures(), *await redis_figures(request)]))
    return Response(generate_latest(REGISTRY) + generate_latest(shared), headers={"Content-Type": CONTENT_TYPE})


class Gathered(Collector):
    """Figures that were asked for already: a collector of Prometheus' own can't wait for a database."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"secureblogs_{name}", documentation, value=value)


def pool_figures() -> list[Metric]:
    pool = database.pool_use()
    return [
        gauge("database_connections_max", "Connections to Postgres that this process may hold", pool.limit),
        gauge("database_connections_open", "Connections to Postgres that this process holds", pool.open),
        gauge("database_connections_used", "Connections to Postgres that this process works with", pool.used),
    ]


async def postgres_figures() -> list[Metric]:
    try:
        statistics, unpublished = await posts.statistics(), await events.backlog()
    except database.UNAVAILABLE:
        return [gauge("postgres_up", "Whether Postgres answers", 0)]
    return [
        gauge("postgres_up", "Whether Postgres answers", 1),
        posts_by_status(statistics),
        gauge("oldest_pending_seconds", "Age of the oldest post that waits to be sealed", statistics.oldest_pending_s),
        gauge("events_unpublished", "Events that were committed and wait to be announced", unpublished),
    ]


def posts_by_status(statistics: Statistics) -> Metric:
    family = GaugeMetricFamily(
        "secureblogs_posts", "Posts by status; above 100,000 the sealed ones are an estimate", labels=["status"]
    )
    for status in ("pending", "failed", "sealed"):
        family.add_metric([status], getattr(statistics, status))
    return family


async def redis_figures(request: Request) -> list[Metric]:
    try:
        workers: list[Any] = await jobs.live_workers(request.redis)
        queued, sealing = await jobs.queue_length(request.redis), await jobs.sealing_times(request.redis)
    except UNAVAILABLE:
        return [gauge("redis_up", "Whether Redis answers", 0)]
    return [
        gauge("redis_up", "Whether Redis answers", 1),
        gauge("workers", "Workers with a heartbeat", len(workers)),
        worker_loop_deaths(workers),
        gauge("jobs_queued", "Jobs that wait or run", queued),
        sealing_histogram(sealing),
    ]


def worker_loop_deaths(workers: list[LiveWorker]) -> Metric:
    total: Counter[str] = Counter()
    for worker in workers:
        total.update(worker.loop_deaths)
    family = GaugeMetricFamily(
        "secureblogs_worker_loop_deaths",
        "Background loops of the workers with a heartbeat that ended and were started again, by loop",
        labels=["loop"],
    )
    for name, count in total.items():
        family.add_metric([name], count)
    return family


def sealing_histogram(times: SealingTimes) -> Metric:
    family = HistogramMetricFamily(
        "secureblogs_sealing_seconds", "From the enqueuing of a post to its being sealed, over all workers"
    )
    family.add_metric([], [(str(bound), count) for bound, count in times.cumulative()], sum_value=times.sum_s)
    return family


PUBLIC = [get_metrics]
