"""Compares a ledger with what is there: in Postgres, by statements of its own, and for a reader, by way of the API.

It shares no code with the server but the opening of posts.
"""

import asyncio
from collections import Counter
from uuid import UUID

import asyncpg

from tests.faults.ledger import Ledger
from tests.faults.outcomes import Outcome
from tests.people import Person

# The keys that a post of the group is to be sealed to, as long as nobody came or went since.
ELIGIBLE = (
    'SELECT k.id FROM user_group_association m JOIN users u ON u.id = m."user" JOIN user_keys k ON k."user" = u.id'
    ' WHERE m."group" = $1 AND u.disabled_at IS NULL AND NOT k.is_revoked AND k.unusable_at IS NULL'
)
# What is neither one thing nor the other: the constraints of the table should make it impossible.
HALF = (
    'SELECT p.id FROM posts p WHERE p."group" = $1 AND NOT CASE p.status'
    " WHEN 'sealed' THEN p.draft IS NULL AND p.content IS NOT NULL AND p.heading IS NOT NULL"
    " ELSE p.draft IS NOT NULL AND p.content IS NULL"
    " AND NOT EXISTS (SELECT 1 FROM post_keys k WHERE k.post = p.id) END"
)


async def until_none_is_pending(postgres: asyncpg.Connection, group_id: str, within_s: float) -> bool:
    """Whether that came about."""
    pending = "SELECT count(*) FROM posts WHERE \"group\" = $1 AND status = 'pending'"
    try:
        async with asyncio.timeout(within_s):
            while await postgres.fetchval(pending, UUID(group_id)):  # noqa: ASYNC110 - it is other processes' doing
                await asyncio.sleep(0.05)
    except TimeoutError:
        return False
    return True


async def compare(
    outcome: Outcome, ledger: Ledger, postgres: asyncpg.Connection, readers: list[Person], *, opened: int = 50
) -> None:
    """All that was acknowledged is there once, whole and sealed, to each key once; each reader opens some of it."""
    outcome.acknowledged += len(ledger.acknowledged)
    outcome.wrong += ledger.unexpected
    group_id = UUID(ledger.group_id)
    rows = await postgres.fetch('SELECT id, author, status FROM posts WHERE "group" = $1', group_id)
    found = Counter(str(row["id"]) for row in rows)
    outcome.lost += [f"post {post_id} has no row" for post_id in ledger.acknowledged if not found[post_id]]
    outcome.duplicated += [f"post {post_id} has {count} rows" for post_id, count in found.items() if count > 1]
    outcome.duplicated += [f"nobody sent post {post_id}" for post_id in found.keys() - ledger.sent]
    outcome.lost += [f"post {row['id']} is {row['status']}" for row in rows if row["status"] != "sealed"]
    outcome.wrong += [f"post {row['id']} is another's" for row in rows if row["author"] != ledger.author.id]
    outcome.wrong += [f"post {row['id']} is half a post" for row in await postgres.fetch(HALF, group_id)]
    await compare_keys(outcome, postgres, group_id)
    created = await postgres.fetch(
        "SELECT ids->>'post_id' AS id, count(*) FROM audit_log"
        " WHERE action = 'post.created' AND \"group\" = $1 GROUP BY 1",
        group_id,
    )
    outcome.duplicated += [f"post {row['id']} was created {row['count']} times" for row in created if row["count"] > 1]
    for reader in readers:
        await compare_texts(outcome, ledger, reader, opened)


async def compare_keys(outcome: Outcome, postgres: asyncpg.Connection, group_id: UUID) -> None:
    """Each sealed post has exactly one sealed key for each key that was eligible."""
    eligible = {row["id"] for row in await postgres.fetch(ELIGIBLE, group_id)}
    rows = await postgres.fetch(
        "SELECT p.id, array_agg(k.public_key) AS key_ids FROM posts p JOIN post_keys k ON k.post = p.id"
        " WHERE p.\"group\" = $1 AND p.status = 'sealed' GROUP BY p.id",
        group_id,
    )
    for row in rows:
        if len(row["key_ids"]) > len(set(row["key_ids"])):
            outcome.duplicated.append(f"post {row['id']} is sealed to a key twice")
        if set(row["key_ids"]) != eligible:
            outcome.wrong.append(f"post {row['id']} is sealed to {len(row['key_ids'])} keys, not {len(eligible)}")


async def compare_texts(outcome: Outcome, ledger: Ledger, reader: Person, opened: int) -> None:
    """What the reader opens is what the author sent."""
    for post in list(ledger.acknowledged.values())[-opened:]:
        answer = await reader.get(f"/posts/{post.id}")
        if answer.status_code != 200 or answer.json()["access"] != "readable":
            outcome.lost.append(f"post {post.id} answers {answer.status_code} {answer.text[:100]}")
        elif reader.open(answer.json()) != (post.title, post.content):
            outcome.wrong.append(f"post {post.id} says something else")


WATCH = """
    CREATE TABLE IF NOT EXISTS seen_sealings (post uuid);
    CREATE OR REPLACE FUNCTION see_sealing() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO seen_sealings VALUES (NEW.id); RETURN NULL; END';
    CREATE OR REPLACE TRIGGER see_sealing AFTER UPDATE ON posts
        FOR EACH ROW WHEN (NEW.status = 'sealed') EXECUTE FUNCTION see_sealing();
"""


async def watch_sealings(postgres: asyncpg.Connection) -> None:
    """From now on Postgres itself notes each time that a post is stored as sealed."""
    await postgres.execute(WATCH)


async def compare_sealings(outcome: Outcome, ledger: Ledger, postgres: asyncpg.Connection) -> None:
    """All posts of this ledger were sealed once."""
    ids = [UUID(post_id) for post_id in ledger.acknowledged]
    rows = await postgres.fetch("SELECT post, count(*) FROM seen_sealings WHERE post = ANY($1) GROUP BY post", ids)
    outcome.duplicated += [f"post {row['post']} was sealed {row['count']} times" for row in rows if row["count"] > 1]
    outcome.expect(len(rows), len(ids), "posts whose sealing was seen")
