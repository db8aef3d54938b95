"""What a process counts of itself, for Prometheus; `/metrics` adds what Postgres and Redis know."""

from prometheus_client import Counter, Gauge

websockets = Gauge("secureblogs_websockets", "Open WebSockets of this process")
events_dropped = Counter(
    "secureblogs_events_dropped",
    "Events that a WebSocket of this process did not read in time",
)
