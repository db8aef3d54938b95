"""What a process counts of itself, for Prometheus; `/metrics` adds what Postgres and Redis know."""

import bisect
import itertools
import math
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

websockets = Gauge("secureblogs_websockets", "Open WebSockets of this process")
events_dropped = Counter(
    "secureblogs_events_dropped",
    "Events that a WebSocket of this process did not read in time",
)
loop_deaths = Counter(
    "secureblogs_loop_deaths",
    "Background loops of this process that ended and were started again, by loop",
    ["loop"],
)


BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, math.inf)
_LABELS = ["method", "path", "status_code"]
_NOT_COUNTED = ("/metrics", "/health/", "/ws/")


class Requests(Collector):
    """How many requests there were and how long they took, by method, path template and status.

    Added up here, and given Prometheus' form when it asks: its own counters take locks, six for each request.
    """

    def __init__(self) -> None:
        # How many took up to each of BOUNDS_S and over the one before, and the seconds of all.
        self._found: dict[tuple[str, str, int], tuple[list[int], list[float]]] = {}

    def note(self, scope: Any, status: int | None, seconds: float) -> None:
        """What reached no route is nobody's."""
        template: str | None = scope.get("path_template")
        if template is None or status is None or scope["type"] != "http" or template.startswith(_NOT_COUNTED):
            return
        key = (scope["method"], template, status)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = ([0] * len(BOUNDS_S), [0.0])
        found[0][bisect.bisect_left(BOUNDS_S, seconds)] += 1
        found[1][0] += seconds

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("secureblogs_http_requests", "Requests", labels=_LABELS)
        errors = CounterMetricFamily("secureblogs_http_requests_error", "Requests that a defect failed", labels=_LABELS)
        durations = HistogramMetricFamily(
            "secureblogs_http_request_duration_seconds", "Request duration, in seconds", labels=_LABELS
        )
        names = ["+Inf" if bound == math.inf else str(bound) for bound in BOUNDS_S]
        for (method, template, status), (counts, [seconds]) in self._found.items():
            labels = [method, template, str(status)]
            requests.add_metric(labels, sum(counts))
            if status >= 500:
                errors.add_metric(labels, sum(counts))
            durations.add_metric(labels, list(zip(names, itertools.accumulate(counts), strict=True)), sum_value=seconds)
        yield from (requests, errors, durations)


requests = Requests()
REGISTRY.register(requests)
