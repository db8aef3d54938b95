"""The export of one's own data: what is in it, what is not, and that it takes neither memory nor a connection."""

import json
import time
import tracemalloc
from typing import Any
from uuid import UUID

import pytest

from server import administration, credentials, database, export
from server.credentials import Caller
from server.sealing.encoding import decode_base64, encode_base64
from tests.people import PASSWORD, Person, code, good, person
from tests.test_requests import begin
from tests.test_sealed_posts import seal

pytestmark = pytest.mark.usefixtures("database_pool")

ROWS = 100_000


async def exported(someone: Person) -> list[dict[str, Any]]:
    """The lines but the last one, which is checked."""
    answer = await someone.get("/me/export")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["content-disposition"] == 'attachment; filename="secureblogs.ndjson"'
    assert answer.text.endswith("\n")
    *lines, last = [json.loads(line) for line in answer.text.splitlines()]
    assert last == {"type": "end", "lines": len(lines)}
    return lines


def of(kind: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["type"] == kind]


async def caller_of(someone: Person) -> Caller:
    return await credentials.authenticate(someone.token)


async def test_everything_about_the_caller_is_in_it(alice: Person, bob: Person) -> None:
    story = await begin(alice, bob)
    asked = await bob.ask(story.post_id)
    await alice.approve(story.post, asked)
    own = await begin(bob, alice)
    other = await alice.ask(own.post_id)
    good(await bob.post(f"/read-requests/{other['id']}/deny"))
    sealed = await seal(bob, story.group_id)
    good(await bob.post("/posts/sealed", sealed), 201)
    key = good(await bob.post("/api-keys", {"label": "script"}), 201)
    await database.execute(
        "INSERT INTO user_daily_usage (\"user\", date, requests, posts) VALUES ($1, '2026-01-31', 7, 2)", bob.id
    )
    attachment_id = await database.fetchval(
        "INSERT INTO attachments (owner, post, sealed_by, size, object_key, request_mac)"
        " VALUES ($1, $2, 'server', 7, gen_random_uuid()::text, 'x') RETURNING id",
        *(bob.id, own.post_id),
    )
    await database.execute(
        "INSERT INTO download_links (attachment, token_hash, created_by, expires)"
        " VALUES ($1, sha256($2), $3, now() + interval '1 day')",
        *(attachment_id, attachment_id.bytes, bob.id),
    )
    lines = await exported(bob)

    assert [line["type"] for line in lines[:2]] == ["user", "session"]
    [user] = of("user", lines)
    assert (user["id"], user["name"], user["email"]) == (str(bob.id), "Bob", bob.user["email"])
    assert user["created_at"] == bob.user["created_at"]
    [api_key] = of("api_key", lines)
    assert (api_key["id"], api_key["label"], api_key["scopes"]) == (key["id"], "script", ["read", "write"])
    [public_key] = of("key", lines)
    assert {name: public_key[name] for name in ("id", "public_key", "proof")} == {
        name: bob.devices[0].key[name] for name in ("id", "public_key", "proof")
    }
    assert {(line["group_id"], line["role"]) for line in of("membership", lines)} == {
        (story.group_id, "member"),
        (own.group_id, "owner"),
    }
    assert [line["group_id"] for line in of("created_group", lines)] == [own.group_id]
    posts = {line["id"]: line for line in of("post", lines)}
    assert posts.keys() == {own.post_id, sealed["id"]}
    assert posts[own.post_id]["content"] == good(await bob.get(f"/posts/{own.post_id}"))["content"]
    assert posts[sealed["id"]]["signature"] == sealed["signature"]
    sealed_keys = {line["post_id"]: line["sealed_key"] for line in of("post_key", lines)}
    assert sealed_keys.keys() == {own.post_id, sealed["id"], story.post_id}
    assert all(len(decode_base64(sealed_key)) == 80 for sealed_key in sealed_keys.values())
    [request] = of("read_request", lines)
    assert (request["id"], request["status"], request["decided_by"]) == (asked["id"], "approved", str(alice.id))
    [decision] = of("decision", lines)
    assert (decision["id"], decision["status"], decision["requester_id"]) == (other["id"], "denied", str(alice.id))
    [day] = [line for line in of("usage", lines) if line["date"] == "2026-01-31"]
    assert (day["requests"], day["posts"]) == (7, 2)
    own_entries = {item["id"] for item in good(await bob.get("/me/audit?limit=100"))["items"]}
    assert {line["id"] for line in of("audit", lines)} == own_entries
    [attachment], [link] = of("attachment", lines), of("download_link", lines)
    assert (attachment["id"], attachment["post_id"], attachment["size"]) == (str(attachment_id), own.post_id, 7)
    assert (link["attachment_id"], link["downloads_left"]) == (str(attachment_id), None)
    granted = of("granted_key", await exported(alice))
    assert [(line["post_id"], line["public_key_id"]) for line in granted] == [(story.post_id, bob.devices[0].id)]


async def test_secrets_and_others_are_not_in_it(alice: Person, bob: Person) -> None:
    story = await begin(alice, bob)
    hidden = await database.fetchrow(
        "SELECT u.password, encode(t.token_hash, 'base64') AS token, encode(p.request_mac, 'base64') AS mac"
        ' FROM users u JOIN user_tokens t ON t."user" = u.id JOIN posts p ON p.author = u.id WHERE u.id = $1 LIMIT 1',
        alice.id,
    )
    assert hidden
    text = (await alice.get("/me/export")).text
    for secret in (*hidden.values(), alice.token, alice.token.removeprefix("sbs_"), bob.user["email"]):
        assert secret not in text
    assert story.post_id not in (await bob.get("/me/export")).text


async def test_who_has_left_gets_its_own_words_but_no_key_to_others(server: str, alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    theirs, own = await alice.publish(group_id), await bob.publish(group_id)
    assert (await alice.delete(f"/groups/{group_id}/members/{bob.id}")).status_code == 204
    lines = await exported(bob)
    sealed_keys = {line["post_id"]: line["sealed_key"] for line in of("post_key", lines)}
    assert sealed_keys[theirs["id"]] is None
    assert sealed_keys[own["id"]] == own["sealed_keys"][0]["sealed_key"]
    assert [line["content"] for line in of("post", lines)] == [own["content"]]
    assert of("membership", lines) == []
    assert (await bob.delete(f"/keys/{bob.devices[0].id}")).status_code == 204
    assert {line["sealed_key"] for line in of("post_key", await exported(bob))} == {None}


async def test_pending_post_is_in_it_as_its_draft(alice: Person) -> None:
    group_id = await alice.found_group()
    post = await alice.publish(group_id)
    await database.execute(
        "UPDATE posts SET status = 'failed', failure = 'draft_unreadable', draft = 'abc', heading = NULL,"
        " content = NULL, content_hash = NULL, commitment = NULL, sealed_at = NULL WHERE id = $1",
        post["id"],
    )
    [line] = of("post", await exported(alice))
    assert (line["status"], line["draft"], line["content"]) == ("failed", encode_base64(b"abc"), None)


async def test_api_key_takes_nothing_away(alice: Person) -> None:
    key = good(await alice.post("/api-keys", {"label": "script"}), 201)["token"]
    answer = await alice.get("/me/export", headers={"Authorization": f"Bearer {key}"})
    assert code(answer) == (403, "session_required")


@pytest.mark.parametrize("kind", ["session", "jwt"])
async def test_export_stops_without_its_last_line_when_the_credential_ends(
    alice: Person, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    caller = await caller_of(alice)
    if kind == "jwt":
        caller = caller._replace(kind="jwt", credential_id=None)
    lines = export.lines(caller)
    assert json.loads(await anext(lines))["type"] == "user"
    await administration.disable(None, alice.id)
    assert [line async for line in lines] == []


async def test_pages_of_any_size_give_the_same(alice: Person, bob: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    story = await begin(alice, bob)
    for _ in range(4):
        await alice.enrol()
        await alice.publish(story.group_id)
        await alice.found_group()
        await alice.post("/login", {"email": alice.user["email"], "password": PASSWORD})
    await bob.ask(story.post_id)
    whole = await exported(alice)
    for size in (1, 2, 3):
        small = {kind: section._replace(page=size) for kind, section in export.SECTIONS.items()}
        monkeypatch.setattr(export, "SECTIONS", small)
        assert await exported(alice) == whole


async def test_no_connection_is_held_while_nobody_reads(alice: Person) -> None:
    assert database.ENGINE.pool
    caller = await caller_of(alice)
    exports = [export.lines(caller) for _ in range(2 * database.ENGINE.pool.get_max_size())]
    for lines in exports:
        await anext(lines)
    assert good(await alice.get("/me"))["id"] == str(alice.id)


# ------------------------------------------------------------------------------------- a hundred thousand rows

# A tenth of them posts, and nine keys to each.
FILL = """
    WITH made AS (
        INSERT INTO posts ("group", author, status, sealed_by, heading, content, content_hash, commitment, request_mac,
            sealed_at)
        SELECT $2, $1, 'sealed', 'server', sha512(''), decode(repeat('ab', 2000), 'hex'), sha256(''), sha256(''), '',
            now() FROM generate_series(1, $3) RETURNING id
    )
    INSERT INTO post_keys (post, public_key, encrypted_key)
    SELECT made.id, k.id, decode(repeat('cd', 80), 'hex') FROM made, user_keys k WHERE k."user" = $1
"""


@pytest.mark.thorough
async def test_hundred_thousand_rows_take_little_memory_and_begin_at_once(server: str) -> None:
    async with person(server, keys=9) as someone:
        group_id = await someone.found_group()
        await database.execute(FILL, someone.id, UUID(group_id), ROWS // 10)
        await database.execute("ANALYZE posts, post_keys")
        tracemalloc.start()
        try:
            begun = time.monotonic()
            first_after = None
            size = count = 0
            async for chunk in export.lines(await caller_of(someone)):
                first_after = first_after or time.monotonic() - begun
                count += chunk.count(b"\n")
                size += len(chunk)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert count > ROWS
        assert size > 40_000_000
        assert first_after is not None
        assert first_after < 1
        assert peak < 8_000_000
        # Over HTTP as well, and complete.
        begun = time.monotonic()
        async with someone.client.stream("GET", "/me/export", timeout=120) as answer:
            lines = answer.aiter_lines()
            last = await anext(lines)
            assert time.monotonic() - begun < 1
            received = 1
            async for line in lines:
                received, last = received + 1, line
        # A line more than before where the worker has just written the day's usage.
        assert received >= count
        assert json.loads(last) == {"type": "end", "lines": received - 1}
