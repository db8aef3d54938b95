"""Approving without asking, by one rule of this machine alone: only for keys that its person has verified.

A request is approved if the fingerprint of the very key that asks is marked as verified here, all that a grant demands
holds, and no more than so many were approved within an hour. Every other request is left to its person. The server has
no part in the rule and can't widen it. Each decision is written to a file, which makes the limit outlast a restart.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec
from msgspec import Struct

from client import files
from client.api import Client
from client.errors import CannotGrant, ClientError
from client.events import ReadRequestCreated
from client.granting import prepare_grant
from client.identity import Identity
from client.people import People
from client.pins import Trust, standing
from server.sealing import keys as sealing_keys
from server.sealing.errors import SealingError

HOUR = timedelta(hours=1)


class Decision(Struct, frozen=True, kw_only=True):
    """What was done about a request, and why. `approving` is written before the server is told."""

    at: datetime
    request_id: UUID
    post_id: UUID
    requester_id: UUID
    requester_name: str
    fingerprint: str
    standing: str
    decision: Literal["approving", "approved", "left"]
    reason: str


class Allowance:
    """So many approvals within any hour."""

    def __init__(self, per_hour: int, used: Iterable[datetime] = ()) -> None:
        self.per_hour = per_hour
        self._used = sorted(used)

    def has_room(self, now: datetime) -> bool:
        self._used = [at for at in self._used if at > now - HOUR]
        return len(self._used) < self.per_hour

    def take(self, now: datetime) -> None:
        self._used.append(now)


async def consider(
    client: Client,
    identity: Identity,
    people: People,
    event: ReadRequestCreated,
    *,
    allowance: Allowance,
    record: Callable[[Decision], None],
    now: datetime,
) -> Decision:
    """Approve a request if the rule allows it, else leave it. `people` must know the pins as they are now.

    `record` is called with each decision, and with the intention to approve before the server is told.
    """
    decision = describe(people, event, now)
    reason = None
    if decision.standing != Trust.VERIFIED:
        reason = f"its key is {decision.standing}"
    elif not allowance.has_room(now):
        reason = f"{allowance.per_hour} were approved within the hour"
    else:
        try:
            grant = await prepare_grant(client, identity, people, event.request_id, told=event)
            if grant.recipient.trust is not Trust.VERIFIED or grant.recipient.fingerprint != decision.fingerprint:
                raise CannotGrant("the key that asks is not the verified one")
            allowance.take(now)
            record(msgspec.structs.replace(decision, decision="approving", reason="verified"))
            await client.approve(event.request_id, grant.sealed_key)
        except ClientError as error:
            reason = str(error)
    if reason is None:
        decided = msgspec.structs.replace(decision, decision="approved", reason="verified")
    else:
        decided = msgspec.structs.replace(decision, decision="left", reason=reason)
    record(decided)
    return decided


def describe(people: People, event: ReadRequestCreated, now: datetime) -> Decision:
    """A request with the fingerprint of the bytes that it shows, and what the pins say of it. Nothing is asked for."""
    try:
        fingerprint = sealing_keys.fingerprint(event.requested_user_id, event.user_public_key, event.verify_key)
    except SealingError:
        fingerprint = ""
    return Decision(
        at=now,
        request_id=event.request_id,
        post_id=event.post_id,
        requester_id=event.requested_user_id,
        requester_name=event.requester_name,
        fingerprint=fingerprint,
        standing=standing(people.pinned(event.requested_user_id), fingerprint),
        decision="left",
        reason="",
    )


def write_decision(path: Path, decision: Decision) -> None:
    """One more line of JSON in the file of decisions."""
    files.append(path, msgspec.json.encode(decision) + b"\n")


def read_approvals(path: Path, since: datetime) -> list[datetime]:
    """When this machine approved by itself since then. A line that a crash cut short counts for nothing."""
    times = []
    for line in (files.read(path) or b"").splitlines():
        try:
            decision = msgspec.json.decode(line, type=Decision)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if decision.decision == "approving" and decision.at > since:
            times.append(decision.at)
    return times
