"""Who did what: ids and fixed words, never content, names, addresses or tokens.

An entry is written in the transaction of what it tells of, so there is one exactly if that happened. What follows from
an action by itself (requests that end with a membership, all that goes with a group) has no entry of its own.

A step of the sweep then gives the entries their places in a chain of hashes, in the order in which it finds them:

    chain(n) = SHA-256(LABEL ‖ chain(n - 1) ‖ entry(n)),    chain(0) = 32 zero bytes
    entry(n) = [id, microseconds since 1970, actor, action, group, user, ids], JSON in UTF-8 without spaces,
               where `ids` is a string: the text that Postgres gives of the column

so that no two calls ever wait for each other here. A transaction that commits late is found late; nothing that has a
place is ever moved. The chain shows whether a placed entry was changed, taken out or put in. It does not show that the
last ones were cut off, unless somebody kept a head, and who owns the database can write all of it anew.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from server import database
from server.lists import EPOCH, Page
from server.sealing import digests

ACTIONS = {
    "account.created": "signed up, or came with a first token of the issuer",
    "account.changed": "changed name or email; `fields` says which",
    "account.deleted": "deleted the own account and all that belonged to it",
    "account.disabled": "shut an account; all its credentials ended",
    "account.enabled": "opened an account again",
    "password.changed": "changed the own password; all other credentials ended",
    "admin.granted": "made somebody an administrator",
    "admin.revoked": "made an administrator an ordinary user",
    "session.opened": "logged in",
    "session.ended": "logged out, or ended a session",
    "api_key.created": "made an API key",
    "api_key.revoked": "revoked an API key",
    "key.enrolled": "enrolled a public key",
    "key.revoked": "revoked a public key",
    "group.created": "founded a group",
    "group.renamed": "gave a group another name",
    "group.deleted": "deleted a group and all in it",
    "member.added": "took somebody into a group; `role` says as what",
    "member.removed": "took somebody out of a group, or left it",
    "member.role_changed": "changed a member's role; `role` is the new one",
    "post.created": "posted; `sealed_by` says who sealed it",
    "post.deleted": "deleted a post",
    "post.requeued": "had a failed post sealed again",
    "post.keys_added": "opened a post to further keys of the own",
    "read_request.created": "asked to read a post",
    "read_request.approved": "let somebody read a post",
    "read_request.denied": "denied somebody to read a post",
    "read_request.cancelled": "took back the own request",
    "read_request.returned": "gave back a grant that did not open the post",
    "link.created": "made a link to a file",
    "link.revoked": "ended a link to a file",
    "job.retried": "had a job of the workers done again; `job` is its id",
    "job.aborted": "had a job of the workers aborted",
    "job.deleted": "dropped a job of the workers",
    "queue.paused": "kept the workers from beginning jobs of a `queue`",
    "queue.resumed": "let them go on",
}

LABEL = b"secureblogs audit entry 1\n"
NO_CHAIN = bytes(32)
# Any fixed number: it only has to be the same in every process that places entries.
PLACING_LOCK = 0x5EC0_B106_A0D1
AT_ONCE = 1000

Ids = dict[str, str | list[str]]

_COLUMNS = 'id, at, actor, action, "group", "user", ids::text AS ids'


async def record(
    action: str,
    *,
    actor: UUID | None,
    group: UUID | None = None,
    user: UUID | None = None,
    **ids: UUID | str | Sequence[UUID | str],
) -> None:
    """One of ACTIONS, within the caller's transaction. No `actor`: somebody at the machine itself.

    `user` is whom it was done to; `ids` are further ids and fixed words, by name.
    """
    await database.execute(
        'INSERT INTO audit_log (actor, action, "group", "user", ids) VALUES ($1, $2, $3, $4, $5)',
        *(actor, _checked(action), group, user, msgspec.json.encode(ids).decode()),
    )


def insertion(action: str, *, actor: str, group: str, ids: str, source: str) -> str:
    """SQL of an entry for each row of `source`, for a statement that does what it tells of; the others are SQL too."""
    return (
        'INSERT INTO audit_log (actor, action, "group", ids)'
        f" SELECT {actor}, '{_checked(action)}', {group}, {ids} FROM {source}"
    )


def _checked(action: str) -> str:
    if action not in ACTIONS:
        raise ValueError(f"{action} is not among the actions")
    return action


async def record_posts_deleted(author_id: UUID, posts: Sequence[tuple[UUID, UUID]]) -> None:
    """The like for all posts, (id, group), that go with their author."""
    rows = [(author_id, group_id, msgspec.json.encode({"post_id": post_id}).decode()) for post_id, group_id in posts]
    await database.executemany(
        "INSERT INTO audit_log (actor, action, \"group\", ids) VALUES ($1, 'post.deleted', $2, $3)", rows
    )


async def find(
    page: Page, user_id: UUID | None = None, group_id: UUID | None = None, action: str | None = None
) -> list[asyncpg.Record]:
    """One row more than the page, newest first; of `user_id`: what it did, and what was done to it."""
    args: list[object] = [page.id_before, page.limit + 1]
    conditions = "id < $1"
    if group_id is not None:
        args.append(group_id)
        conditions += f' AND "group" = ${len(args)}'
    if action is not None:
        # Spelled out, not a parameter: some are rare, and only so a plan knows which.
        conditions += f" AND action = '{_checked(action)}'"
    branches = [conditions]
    if user_id is not None:
        args.append(user_id)
        # Two halves, for each of which there is an index that has it in this order.
        branches = [
            f"{conditions} AND actor = ${len(args)}",
            f'{conditions} AND "user" = ${len(args)} AND actor IS DISTINCT FROM ${len(args)}',
        ]
    halves = [f"(SELECT {_COLUMNS} FROM audit_log WHERE {half} ORDER BY id DESC LIMIT $2)" for half in branches]
    return await database.fetch(
        f"SELECT *, at AS created_at FROM ({' UNION ALL '.join(halves)}) found ORDER BY id DESC LIMIT $2", *args
    )


def read_ids(text: str) -> Ids:
    return msgspec.json.decode(text, type=Ids)


# ------------------------------------------------------------------------------------------------ the chain


class Head(NamedTuple):
    """The last place that was given, and its hash: whoever keeps it can tell later whether the log was cut."""

    position: int
    chain: bytes

    def __str__(self) -> str:
        return f"{self.position}:{self.chain.hex()}"


class Fault(NamedTuple):
    position: int
    what: str


class Verdict(NamedTuple):
    """`head` is the last entry that is right, with all before it; there is no `fault` where that is the last one."""

    head: Head
    fault: Fault | None


def read_head(text: str) -> Head:
    """What `str(head)` gave. Raises ValueError."""
    position, _, chain = text.strip().partition(":")
    head = Head(int(position), bytes.fromhex(chain))
    if head.position < 0 or len(head.chain) != len(NO_CHAIN):
        raise ValueError("not a position and a hash")
    return head


async def place() -> int:
    """Give a place to every entry that has none yet; how many. Whoever comes at the same time waits and finds less."""
    placed = 0
    while (more := await _place_some()) == AT_ONCE:
        placed += more
    return placed + more


async def _place_some() -> int:
    async with database.transaction():
        await database.execute("SELECT pg_advisory_xact_lock($1)", PLACING_LOCK)
        last = await database.fetchrow(
            "SELECT position, chain FROM audit_log WHERE position IS NOT NULL ORDER BY position DESC LIMIT 1"
        )
        head = Head(*last) if last else Head(0, NO_CHAIN)
        rows = await database.fetch(
            f"SELECT {_COLUMNS} FROM audit_log WHERE position IS NULL ORDER BY id LIMIT $1", AT_ONCE
        )
        heads = []
        for row in rows:
            head = Head(head.position + 1, chain_on(head.chain, row))
            heads.append(head)
        await database.execute(
            "UPDATE audit_log a SET position = p.position, chain = p.chain"
            " FROM unnest($1::uuid[], $2::bigint[], $3::bytea[]) AS p (id, position, chain) WHERE a.id = p.id",
            *([row["id"] for row in rows], [head.position for head in heads], [head.chain for head in heads]),
        )
        return len(rows)


def chain_on(before: bytes, row: asyncpg.Record) -> bytes:
    """The hash of an entry after the one whose hash is `before`; `ids` as Postgres writes them."""
    micros = (row["at"] - EPOCH) // timedelta(microseconds=1)
    entry = [row["id"], micros, row["actor"], row["action"], row["group"], row["user"], row["ids"]]
    return digests.sha256(LABEL + before + msgspec.json.encode(entry))


async def verify(kept: Head | None = None) -> Verdict:
    """Go through the whole chain, in pages; `kept` is a head of before, which the log must still contain."""
    head = Head(0, NO_CHAIN)
    while rows := await database.fetch(
        f"SELECT {_COLUMNS}, position, chain FROM audit_log WHERE position > $1 ORDER BY position LIMIT $2",
        *(head.position, AT_ONCE),
    ):
        for row in rows:
            following = head.position + 1
            if row["position"] != following:
                return Verdict(head, Fault(following, "is missing"))
            if row["chain"] != chain_on(head.chain, row):
                return Verdict(head, Fault(following, "is not what was written here"))
            head = Head(following, row["chain"])
            if kept and kept.position == following and kept.chain != head.chain:
                return Verdict(head, Fault(following, "has another hash than the one that was kept"))
    if kept and kept.position > head.position:
        return Verdict(head, Fault(head.position + 1, f"is missing, and all up to {kept.position}"))
    return Verdict(head, None)
