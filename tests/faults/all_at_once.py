"""Many who do at once what only one of them can: one wins, the others are told so, and nothing is half done."""

import asyncio
import secrets
import unicodedata
from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import asyncpg
import httpx
import uuid_utils.compat

from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import Site
from tests.people import PASSWORD, Person, good, person
from tests.test_requests import begin

AT_ONCE = 100
SAME_ID = 50


async def run(site: Site, draw: Draw) -> Outcome:
    outcome = Outcome("all-at-once")
    api = await site.whole()
    postgres = await site.postgres()
    async with person(api.url) as alice, person(api.url, "Carol") as carol:
        for _ in range(draw.rounds):
            outcome.rounds += 1
            await decide(outcome, postgres, alice, carol, draw)
            await sign_up(outcome, postgres, api.url, draw)
            await join(outcome, postgres, alice, carol, draw)
            await post(outcome, postgres, alice, draw)
    await postgres.close()
    return outcome


def judge(outcome: Outcome, what: str, answers: Sequence[httpx.Response], allowed: set[int], winners: int) -> None:
    """So many have won with 201; all others have an answer that is `allowed`."""
    counted = Counter(answer.status_code for answer in answers)
    outcome.acknowledged += counted[200] + counted[201]
    outcome.check(counted.keys() <= allowed | {201}, f"{what}: answers {dict(counted)}")
    outcome.expect(counted[201], winners, f"{what}: who won")


async def decide(outcome: Outcome, postgres: asyncpg.Connection, alice: Person, carol: Person, draw: Draw) -> None:
    """Approve against deny: what the first decided is what is, and its key is there or is not."""
    story = await begin(alice, carol)
    request = await carol.ask(story.post_id)
    path, grant = f"/read-requests/{request['id']}", alice.reseal(story.post, request)
    kinds = [draw.chance.choice(("approve", "deny")) for _ in range(draw.of(AT_ONCE))]
    answers = await asyncio.gather(
        *(alice.post(f"{path}/{kind}", grant if kind == "approve" else None) for kind in kinds)
    )
    judge(outcome, "approve against deny", answers, {200, 409}, 0)
    status = good(await carol.get(path))["status"]
    won = {kind for kind, answer in zip(kinds, answers, strict=True) if answer.status_code == 200}
    outcome.expect({f"{kind}d" if kind == "approve" else "denied" for kind in won}, {status}, "approve against deny")
    keys = await postgres.fetchval(
        "SELECT count(*) FROM post_keys WHERE post = $1 AND public_key = $2",
        *(UUID(story.post_id), UUID(request["public_key_id"])),
    )
    outcome.expect(keys, 1 if status == "approved" else 0, "approve against deny: keys")
    actions = await postgres.fetch(
        "SELECT action FROM audit_log WHERE ids->>'request_id' = $1 AND action ~ 'approved|denied'", request["id"]
    )
    if len(actions) != 1:
        outcome.duplicated.append(f"a request was decided {len(actions)} times: {actions}")


async def sign_up(outcome: Outcome, postgres: asyncpg.Connection, url: str, draw: Draw) -> None:
    """One address in a hundred spellings."""
    plain = f"zoë.{secrets.token_hex(8)}@example.org"

    def spelling() -> str:
        letters = "".join(draw.chance.choice((letter.lower(), letter.upper())) for letter in plain)
        return unicodedata.normalize("NFC" if draw.chance.random() < 0.5 else "NFD", letters) + draw.chance.choice(
            ("", " ")
        )

    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        bodies = [{"name": "Zoë", "email": spelling(), "password": PASSWORD} for _ in range(draw.of(AT_ONCE))]
        answers = await asyncio.gather(*(client.post("/sign-up", json=body) for body in bodies))
    judge(outcome, "sign-up", answers, {409}, 1)
    rows = await postgres.fetch("SELECT id FROM users WHERE email_key = $1", plain)
    if len(rows) != 1:
        outcome.duplicated.append(f"sign-up: {len(rows)} users of one address")
    tokens = await postgres.fetchval('SELECT count(*) FROM user_tokens WHERE "user" = $1', rows[0]["id"])
    outcome.expect(tokens, 1, "sign-up: sessions")


async def join(outcome: Outcome, postgres: asyncpg.Connection, alice: Person, carol: Person, draw: Draw) -> None:
    group_id = await alice.found_group()
    body = {"user_id": str(carol.id), "role": "member"}
    path = f"/groups/{group_id}/members"
    answers = await asyncio.gather(*(alice.post(path, body) for _ in range(draw.of(AT_ONCE))))
    judge(outcome, "join", answers, {200, 409}, 1)
    rows = await postgres.fetchval(
        'SELECT count(*) FROM user_group_association WHERE "group" = $1 AND "user" = $2', UUID(group_id), carol.id
    )
    if rows != 1:
        outcome.duplicated.append(f"join: {rows} memberships")


async def post(outcome: Outcome, postgres: asyncpg.Connection, alice: Person, draw: Draw) -> None:
    """The same id, with one body or another."""
    group_id, post_id = await alice.found_group(), str(uuid_utils.compat.uuid7())
    texts = [draw.chance.choice(("one", "other")) for _ in range(draw.of(SAME_ID))]
    answers = await asyncio.gather(
        *(alice.post("/posts", {"id": post_id, "group_id": group_id, "title": "T", "content": text}) for text in texts)
    )
    judge(outcome, "same post id", answers, {200, 409}, 1)
    sealed = await alice.wait_until_sealed(post_id)
    kept = alice.open(sealed)[1]
    for text, answer in zip(texts, answers, strict=True):
        outcome.check((answer.status_code in {200, 201}) == (text == kept), f"{text} answers {answer.status_code}")
    rows = await postgres.fetchval('SELECT count(*) FROM posts WHERE "group" = $1', UUID(group_id))
    if rows != 1:
        outcome.duplicated.append(f"same post id: {rows} posts")
