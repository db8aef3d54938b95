"""Deciding many requests at once: each post is opened whole, each key checked, as for a single one."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from client.api import Client
from client.errors import ClientError, NetworkError, Unauthenticated
from client.events import event_of
from client.granting import prepare_grant
from client.identity import Identity
from client.models import ReadRequest
from client.people import AcceptedKey, People
from client.pins import Trust
from client.progress import Tell, work_through


class Ready(NamedTuple):
    """A grant that only waits for its person; what was opened for it is forgotten but for the title."""

    request: ReadRequest
    recipient: AcceptedKey
    title: str
    signed: Trust | None
    sealed_key: bytes


class Failed(NamedTuple):
    request: ReadRequest
    error: ClientError


def by_key(requests: Sequence[ReadRequest]) -> dict[tuple[UUID, UUID], list[ReadRequest]]:
    """Requests by requester and key: what a person compares and confirms once."""
    grouped: dict[tuple[UUID, UUID], list[ReadRequest]] = {}
    for request in requests:
        grouped.setdefault((request.requester_id, request.public_key_id), []).append(request)
    return grouped


async def prepare_grants(
    client: Client, identity: Identity, people: People, requests: Sequence[ReadRequest], tell: Tell
) -> tuple[list[Ready], list[Failed]]:
    """Check listed requests and seal their posts' keys; nothing is sent. `tell` is called after each.

    Each must still be what the list said. One that fails does not stop the others; a lost network or session does.
    """

    async def prepare(request: ReadRequest) -> Ready | Failed:
        try:
            grant = await prepare_grant(client, identity, people, request.id, told=event_of(request))
        except (NetworkError, Unauthenticated):
            raise
        except ClientError as error:
            return Failed(request, error)
        return Ready(grant.request, grant.recipient, grant.opened.title, grant.opened.signed, grant.sealed_key)

    done = await work_through(requests, prepare, tell)
    return [one for one in done if isinstance(one, Ready)], [one for one in done if isinstance(one, Failed)]


async def approve_all(client: Client, ready: Sequence[Ready], tell: Tell) -> tuple[list[ReadRequest], list[Failed]]:
    """Send prepared grants: those that were decided so, and those that failed, a lost network included."""

    async def approve(one: Ready) -> ReadRequest | Failed:
        try:
            return await client.approve(one.request.id, one.sealed_key)
        except ClientError as error:
            return Failed(one.request, error)

    done = await work_through(ready, approve, tell)
    return [one for one in done if isinstance(one, ReadRequest)], [one for one in done if isinstance(one, Failed)]
