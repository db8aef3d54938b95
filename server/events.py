"""What WebSockets are told, and the outbox that makes sure they are.

A domain function records its events in its own transaction. After the commit they are published and
forgotten; what a crash or a lost Redis left behind is published by the sweep. Delivery is at least
once, `event_id` tells repetitions.
"""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import uuid_utils.compat

from server import database

# Namespace of the ids of events that happen once for their subject: a replay has the same id.
ONCE = UUID("5ec0b106-0000-5000-8000-000000000001")


class Event(NamedTuple):
    id: UUID
    channels: list[str]
    frame: str
    """The JSON text that goes out on the sockets, encoded once."""


def user_channel(user_id: UUID) -> str:
    return f"user:{user_id}"


def group_channel(group_id: UUID) -> str:
    return f"group:{group_id}"


def timestamp(at: datetime) -> str:
    """`YYYY-MM-DDTHH:MM:SS.ffffffZ`."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def once_id(kind: str, subject: UUID) -> UUID:
    return uuid.uuid5(ONCE, f"{kind} {subject}")


def write_frame(kind: str, event_id: UUID, **fields: Any) -> str:
    ready = {name: timestamp(value) if isinstance(value, datetime) else value for name, value in fields.items()}
    return msgspec.json.encode({"type": kind, "event_id": event_id} | ready).decode()


def event(kind: str, channels: Sequence[str], subject: UUID | None = None, **fields: Any) -> Event:
    """An event for everyone on `channels`; with a `subject`, one that happens to it once."""
    event_id = once_id(kind, subject) if subject else uuid_utils.compat.uuid7()
    return Event(event_id, list(channels), write_frame(kind, event_id, **fields))


def member_removed(group_id: UUID, user_id: UUID) -> Event:
    channels = [group_channel(group_id), user_channel(user_id)]
    return event("group.member_removed", channels, group_id=group_id, user_id=user_id)


INSERT = "INSERT INTO outbox (id, channels, frame) VALUES ({}, {}, {}) ON CONFLICT DO NOTHING"
_INSERT = INSERT.format("$1", "$2", "$3")


async def record(*events: Event) -> list[Event]:
    """Into the outbox, within the current transaction. The caller publishes them once it has committed."""
    if len(events) == 1:
        await database.execute(_INSERT, *events[0])
    elif events:
        await database.executemany(_INSERT, list(events))
    return list(events)


async def unpublished(older_than_s: float, limit: int) -> list[Event]:
    """What was committed at least `older_than_s` seconds ago and is still in the outbox, oldest first."""
    rows = await database.fetch(
        "SELECT id, channels, frame FROM outbox WHERE created_at < now() - make_interval(secs => $1)"
        " ORDER BY created_at LIMIT $2",
        older_than_s,
        limit,
    )
    return [Event(*row) for row in rows]


async def backlog() -> int:
    """How many events wait to be published."""
    count: int = await database.fetchval("SELECT count(*) FROM outbox")
    return count


async def published(ids: Sequence[UUID]) -> None:
    await database.execute("DELETE FROM outbox WHERE id = ANY($1)", list(ids))
