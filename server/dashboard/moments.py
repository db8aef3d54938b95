"""Times, as Redis has them and as they are shown."""

from datetime import UTC, datetime


def moment(ms: float) -> datetime:
    # Somebody may have put anything into a score: it must not keep all the others from being shown.
    return datetime.fromtimestamp(min(max(ms, 0), 253_402_300_799_000) / 1000, UTC)


def ms_of(at: datetime) -> int:
    return round(at.timestamp() * 1000)
