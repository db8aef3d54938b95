"""Jobs that wait, as arq has them: read by what can do no harm, and never unpickled."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from server.dashboard import keys

MAX_ENCODED_BYTES = 64 * 1024

Deserializer = Callable[[bytes], dict[str, Any]]


class Encoded(NamedTuple):
    """What could be read of a job that waits."""

    function: str | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    enqueued_ms: int | None


OPAQUE = Encoded(None, (), {}, None)


async def read(redis: Any, deserializer: Deserializer | None, job_ids: list[str]) -> dict[str, Encoded | None]:
    """None for a job that is gone; those that can't be read, or are too big to be, are OPAQUE."""
    async with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.strlen(keys.ARQ_JOB + job_id)
        sizes = await pipeline.execute()
    small = [job_id for job_id, size in zip(job_ids, sizes, strict=True) if 0 < size <= MAX_ENCODED_BYTES]
    raws = await redis.mget([keys.ARQ_JOB + job_id for job_id in small]) if small else []
    found: dict[str, Encoded | None] = {
        job_id: OPAQUE if size else None for job_id, size in zip(job_ids, sizes, strict=True)
    }
    for job_id, raw in zip(small, raws, strict=True):
        found[job_id] = decode(raw, deserializer) if raw is not None else None
    return found


def decode(raw: bytes, deserializer: Deserializer | None) -> Encoded:
    """Only by what can do no harm: the application's own deserializer, msgpack, JSON."""
    readers: list[Deserializer] = [deserializer] if deserializer else [msgspec.msgpack.decode, msgspec.json.decode]
    for read in readers:
        try:
            found = read(raw)
            enqueued_ms = found["et"]
            if isinstance(found["f"], str) and isinstance(enqueued_ms, int):
                return Encoded(found["f"], list(found["a"]), dict(found["k"]), enqueued_ms)
        except Exception:  # noqa: S112 - whatever it is, it is not that
            continue
    return OPAQUE
