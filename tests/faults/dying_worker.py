"""kill -9 of the worker at a random row of the sealing of one post to a big group."""

import asyncio
import os
import time
from uuid import UUID

import asyncpg

from server import pending_posts
from tests.faults import checker
from tests.faults.ledger import Ledger
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import SEALED_WITHIN_S, Site
from tests.people import Person, person

MEMBERS = 10_000


async def run(site: Site, draw: Draw) -> Outcome:
    outcome = Outcome("worker-killed")
    api = await site.whole()
    postgres = await site.postgres()
    await checker.watch_sealings(postgres)
    async with person(api.url) as alice:
        group_id = await alice.found_group()
        # In a short run, too, so many that the post is not sealed in a single statement.
        members = max(draw.of(MEMBERS), 3 * pending_posts.FEW // 2)
        await add_members(postgres, group_id, members)
        # One that is left alone, to know how long it takes: the others are killed somewhere on that way.
        took_s = await seal_undisturbed(outcome, site, postgres, alice, group_id)
        for _ in range(draw.rounds):
            outcome.rounds += 1
            await kill_once(outcome, site, postgres, alice, group_id, draw.chance.uniform(0, took_s))
        outcome.notes.append(f"{members} members")
    await postgres.close()
    return outcome


async def add_members(postgres: asyncpg.Connection, group_id: str, count: int) -> None:
    """With a key each that can be sealed to; and some who get nothing: revoked, disabled, unusable."""
    await postgres.execute(
        "WITH people AS (INSERT INTO users (name, email, email_key, password, disabled_at)"
        " SELECT 'Someone', e, e, '', CASE WHEN n % 100 = 1 THEN now() END"
        " FROM (SELECT n, n || '@' || gen_random_uuid() AS e FROM generate_series(1, $2) n) made RETURNING id),"
        ' joined AS (INSERT INTO user_group_association ("user", "group", role)'
        " SELECT id, $1, 'member' FROM people),"
        " numbered AS (SELECT id, row_number() OVER () AS n FROM people)"
        ' INSERT INTO user_keys ("user", public_key, verify_key, proof, label, is_revoked, revoked_at, unusable_at)'
        " SELECT p.id, k.public_key, $4, $5, 'key', n % 100 = 2, CASE WHEN n % 100 = 2 THEN now() END,"
        " CASE WHEN n % 100 = 3 THEN now() END"
        " FROM numbered p JOIN unnest($3::bytea[]) WITH ORDINALITY k (public_key, n) USING (n)",
        *(UUID(group_id), count, [os.urandom(31) + b"\x01" for _ in range(count)], bytes(32), bytes(64)),
    )


async def seal_undisturbed(
    outcome: Outcome, site: Site, postgres: asyncpg.Connection, alice: Person, group_id: str
) -> float:
    ledger = Ledger(alice, group_id)
    outcome.check(await ledger.write(), "the post was not acknowledged")
    [post_id] = ledger.acknowledged
    begun = await until_it_is_sealed(postgres, post_id)
    return time.monotonic() - begun


async def until_it_is_sealed(postgres: asyncpg.Connection, post_id: str) -> float:
    """When its sealing was first seen to have begun."""
    begun = None
    async with asyncio.timeout(SEALED_WITHIN_S):
        while True:
            row = await look(postgres, post_id)
            if begun is None and row["is_worked_on"]:
                begun = time.monotonic()
            if row["status"] == "sealed":
                return begun or 0.0
            await asyncio.sleep(0.005)


async def look(postgres: asyncpg.Connection, post_id: str) -> asyncpg.Record:
    """One statement, and so one moment."""
    row = await postgres.fetchrow(
        "SELECT status, content IS NOT NULL AS has_content, draft IS NOT NULL AS has_draft,"
        " (SELECT count(*) FROM post_keys WHERE post = p.id) AS keys,"
        # Somebody has locked it, or has done so and died.
        " status = 'sealed' OR xmax <> '0'::xid AS is_worked_on FROM posts p WHERE id = $1",
        UUID(post_id),
    )
    assert row is not None
    return row


async def kill_once(
    outcome: Outcome, site: Site, postgres: asyncpg.Connection, alice: Person, group_id: str, after_s: float
) -> None:
    await site.whole()
    assert site.worker
    ledger = Ledger(alice, group_id)
    outcome.check(await ledger.write(), "the post was not acknowledged")
    [post_id] = ledger.acknowledged
    while not (await look(postgres, post_id))["is_worked_on"]:  # noqa: ASYNC110 - the worker's doing
        await asyncio.sleep(0.001)
    await asyncio.sleep(after_s)
    site.worker.kill()
    killed_at = time.monotonic()
    await site.with_worker()
    async with asyncio.timeout(2 * SEALED_WITHIN_S):
        while True:
            row = await look(postgres, post_id)
            if row["status"] == "sealed":
                break
            outcome.check(
                (row["status"], row["has_content"], row["has_draft"], row["keys"]) == ("pending", False, True, 0),
                f"half of a sealing is visible: {dict(row)}",
            )
            told = await alice.access(post_id)
            outcome.check(told in {"sealing", "readable"}, f"the author is told {told} meanwhile")
            await asyncio.sleep(0.05)
    outcome.healed(time.monotonic() - killed_at, SEALED_WITHIN_S)
    await compare_one(outcome, ledger, postgres, alice)


async def compare_one(outcome: Outcome, ledger: Ledger, postgres: asyncpg.Connection, alice: Person) -> None:
    """Against the ledgers of the other posts of this group too, so only what is this post's is looked at."""
    outcome.acknowledged += len(ledger.acknowledged)
    await checker.compare_sealings(outcome, ledger, postgres)
    await checker.compare_keys(outcome, postgres, UUID(ledger.group_id))
    await checker.compare_texts(outcome, ledger, alice, 1)
