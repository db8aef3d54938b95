"""Tries over time, added up from the buckets that recorders count in."""

from collections import Counter
from typing import Any

from server.dashboard import histograms, keys
from server.dashboard.keys import text
from server.dashboard.models import Bucket, Counts, FunctionFigures, History, Percentiles, Span
from server.dashboard.moments import moment
from server.dashboard.redaction import clean


class Sums:
    """What fields of buckets say, added up."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wait: Counter[int] = Counter()
        self.run: Counter[int] = Counter()

    def note(self, kind: bytes, what: bytes, count: int) -> None:
        if kind == b"c":
            self.outcomes[text(what)] += count
        elif kind == b"w":
            self.wait[int(what)] += count
        else:
            self.run[int(what)] += count

    def add(self, other: "Sums") -> None:
        self.outcomes.update(other.outcomes)
        self.wait.update(other.wait)
        self.run.update(other.run)

    def counts(self) -> Counts:
        return Counts(**{name: self.outcomes[name] for name in Counts.__struct_fields__})


async def read_sums(
    redis: Any, span: Span, queues: list[str], function: str | None
) -> tuple[list[tuple[int, Sums]], dict[str, Sums]]:
    """By bucket and by function."""
    bucket_s, count, _ = keys.BUCKETS[span]
    seconds, _ = await redis.time()
    last = seconds // bucket_s
    numbers = range(last - count + 1, last + 1)
    async with redis.pipeline(transaction=False) as pipeline:
        for number in numbers:
            for queue in queues:
                pipeline.hgetall(keys.history(bucket_s, number, queue))
        answers = iter(await pipeline.execute())
    wanted = function.encode() if function is not None else None
    rows: list[tuple[int, Sums]] = []
    functions: dict[bytes, Sums] = {}
    for number in numbers:
        row = Sums()
        for _ in queues:
            for field, raw in next(answers).items():
                kind, what, name = field.split(b"|", 2)
                if wanted is None or name == wanted:
                    count_of = int(raw)
                    row.note(kind, what, count_of)
                    if name not in functions:
                        functions[name] = Sums()
                    functions[name].note(kind, what, count_of)
        rows.append((number, row))
    return rows, {text(name): sums for name, sums in functions.items()}


def make_history(
    span: Span, queue: str | None, function: str | None, rows: list[tuple[int, Sums]], sums: dict[str, Sums]
) -> History:
    bucket_s, _, _ = keys.BUCKETS[span]
    total = Sums()
    for one in sums.values():
        total.add(one)
    return History(
        span=span,
        bucket_s=bucket_s,
        queue=queue,
        function=function,
        buckets=[
            Bucket(at=moment(number * bucket_s * 1000), counts=one.counts(), wait=rank(one.wait), run=rank(one.run))
            for number, one in rows
        ],
        total=total.counts(),
        wait=rank(total.wait),
        run=rank(total.run),
        functions=figures(sums, span),
    )


def rank(counts: Counter[int]) -> Percentiles:
    p50, p95, p99 = histograms.percentiles(counts, (0.5, 0.95, 0.99))
    return Percentiles(p50_s=p50, p95_s=p95, p99_s=p99)


def figures(sums: dict[str, Sums], span: Span) -> list[FunctionFigures]:
    bucket_s, count, _ = keys.BUCKETS[span]
    found = []
    for name, one in sums.items():
        counts = one.counts()
        bad = counts.failed + counts.orphaned
        found.append(
            FunctionFigures(
                name=clean(name),
                counts=counts,
                per_minute=counts.total * 60 / (bucket_s * count),
                failure_rate=bad / counts.total if counts.total else 0.0,
                wait=rank(one.wait),
                run=rank(one.run),
            )
        )
    return sorted(found, key=lambda one: (-one.counts.total, one.name))
