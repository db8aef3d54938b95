"""Posts over HTTP: accepted, sealed, listed, read, failed and tried again, deleted; and who gets which of it."""

import asyncio
import base64
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import pytest
import uuid_utils.compat

from server import database, jobs, posts
from server.sealing import posts as sealing_posts
from server.sealing.encoding import decode_base64, encode_base64
from server.settings import Settings
from tests.conftest import lasting
from tests.people import Person, all_pages, code, good, person, random_id, until

POST_FIELDS = {
    *("id", "group_id", "author_id", "status", "sealed_by", "heading", "content", "content_hash", "commitment"),
    *("signature", "signing_key_id", "failure", "sealed_keys", "access", "created_at", "sealed_at"),
}
LOW_ORDER = bytes(32)
alice = lasting("Alice")
bob = lasting("Bob")
carol = lasting("Carol")
stranger = lasting("Mallory")


class Drafts(NamedTuple):
    """Posts that were accepted and that no worker knows of, so that they stay pending until a test lets them go."""

    settings: Settings

    async def write(self, author: Person, group_id: str, title: str = "A title", content: str = "Some text") -> str:
        row, _ = await posts.publish(
            *(author.id, UUID(group_id), title, content, [], None),
            worker_public_key=self.settings.worker_public_key or b"",
            mac_key=self.settings.request_mac_key or b"",
        )
        # The sweep takes up only what is some seconds old.
        await database.execute("UPDATE posts SET created_at = now() + interval '1 hour' WHERE id = $1", row["id"])
        return str(row["id"])

    async def let_go(self, *post_ids: str) -> None:
        redis = await jobs.create_pool(str(self.settings.redis_url))
        await jobs.enqueue_seals(redis, [UUID(post_id) for post_id in post_ids])
        await redis.aclose(close_connection_pool=True)


@pytest.fixture
async def drafts(settings: Settings, database_pool: None) -> Drafts:
    return Drafts(settings)


@pytest.fixture
async def postgres(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection of a test's own."""
    connection = await asyncpg.connect(settings.database_url)
    yield connection
    await connection.close()


async def insert_key(user_id: UUID, public_key: bytes) -> UUID:
    """A key that `POST /keys` would refuse, as an older or a broken server may have left it."""
    key_id: UUID = await database.fetchval(
        'INSERT INTO user_keys ("user", public_key, verify_key, proof, label)'
        " VALUES ($1, $2, $3, $4, 'odd') RETURNING id",
        *(user_id, public_key, bytes(32), bytes(64)),
    )
    return key_id


# ---------------------------------------------------------------------------------------------- the way of a post


async def test_new_post_is_pending_and_shows_nothing_of_what_it_says(alice: Person) -> None:
    group_id = await alice.found_group()
    answer = await alice.post("/posts", {"group_id": group_id, "title": "The key", "content": "under the mat"})
    post = good(answer, 201)
    assert answer.headers["location"] == f"/posts/{post['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert post.keys() == POST_FIELDS
    assert (post["status"], post["access"], post["sealed_by"]) == ("pending", "sealing", "server")
    assert (post["group_id"], post["author_id"]) == (group_id, str(alice.id))
    empty = POST_FIELDS - {"id", "group_id", "author_id", "status", "sealed_by", "sealed_keys", "access", "created_at"}
    assert {post[name] for name in empty} == {None}
    assert post["sealed_keys"] == []
    assert "mat" not in answer.text
    assert "The key" not in answer.text


async def test_sealed_post_opens_for_each_member_with_each_of_its_keys(server: str, alice: Person, bob: Person) -> None:
    async with person(server, "Carol", keys=2) as carol:
        group_id = await alice.found_group(bob, carol)
        post = await alice.publish(group_id, "The key", "is under the mat")
        assert post.keys() == POST_FIELDS
        assert (post["status"], post["access"], post["failure"]) == ("sealed", "readable", None)
        assert (post["signature"], post["signing_key_id"]) == (None, None)
        sizes = {name: len(decode_base64(post[name])) for name in ("heading", "content", "content_hash", "commitment")}
        assert (sizes["content_hash"], sizes["commitment"]) == (32, 32)
        assert {(sizes[name] - 40) % 256 for name in ("heading", "content")} == {0}
        for reader in (alice, bob, carol):
            seen = good(await reader.get(f"/posts/{post['id']}"))
            assert {key["public_key_id"] for key in seen["sealed_keys"]} == {device.id for device in reader.devices}
            for key in seen["sealed_keys"]:
                assert len(decode_base64(key["sealed_key"])) == 80
                assert reader.open(seen | {"sealed_keys": [key]}) == ("The key", "is under the mat")


async def test_longest_and_oddest_texts_arrive_as_they_were_written(alice: Person) -> None:
    group_id = await alice.found_group()
    longest = "é" * (128 * 1024)
    for title, content in (("𝄞" * 200, longest), ('\r\n\t\u202e\\"', ""), ("\ufeff x", "\ufffd\u2028 y ")):
        assert alice.open(await alice.publish(group_id, title, content)) == (title, content)


async def test_body_that_does_not_fit_is_refused_after_the_group_was_found(alice: Person, stranger: Person) -> None:
    group_id = await alice.found_group()
    fit = {"group_id": group_id, "title": "A title", "content": "Some text"}
    for change, pointer in (
        ({"title": ""}, "/title"),
        ({"title": "x" * 201}, "/title"),
        ({"title": None}, "/title"),
        ({"content": "é" * (128 * 1024) + "x"}, "/content"),
        ({"content": 1}, "/content"),
        ({"id": "not an id"}, "/id"),
        ({"id": random_id()}, "/id"),
        ({"attachments": "x"}, "/attachments"),
        ({"attachments": [random_id()] * 21}, "/attachments"),
        ({"draft": "AA=="}, "/draft"),
    ):
        answer = await alice.post("/posts", fit | change)
        assert code(answer) == (422, "invalid"), change
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
        assert code(await stranger.post("/posts", fit | change)) == (404, "group_not_found"), change
    for missing in fit:
        answer = await alice.post("/posts", {name: value for name, value in fit.items() if name != missing})
        assert code(answer) == (422, "invalid"), missing
    assert good(await alice.get(f"/posts?group_id={group_id}"))["items"] == []


async def test_unknown_attachment_is_not_found_however_often_it_is_named(alice: Person, stranger: Person) -> None:
    group_id, attachment_id = await alice.found_group(), random_id()
    body = {"group_id": group_id, "title": "A title", "content": "Some text"}
    for attachments in ([attachment_id], [attachment_id, attachment_id]):
        answer = await alice.post("/posts", body | {"attachments": attachments})
        assert code(answer) == (404, "attachment_not_found")
        answer = await stranger.post("/posts", body | {"attachments": attachments})
        assert code(answer) == (404, "group_not_found")


async def test_nobody_posts_where_nobody_could_read(server: str) -> None:
    async with person(server, keys=0) as alice:
        group_id, post_id = await alice.found_group(), str(uuid_utils.compat.uuid7())
        body = {"group_id": group_id, "title": "A title", "content": "Some text", "id": post_id}
        assert code(await alice.post("/posts", body)) == (409, "no_recipients")
        assert code(await alice.get(f"/posts/{post_id}")) == (404, "post_not_found")
        await alice.enrol()
        assert good(await alice.post("/posts", body), 201)["id"] == post_id


# ----------------------------------------------------------------------------------------------- trying again


async def test_same_request_with_the_same_id_answers_the_same_post(alice: Person, bob: Person) -> None:
    group_id, post_id = await alice.found_group(bob), str(uuid_utils.compat.uuid7())
    body = {"group_id": group_id, "title": "A title", "content": "Some text", "id": post_id}
    first = good(await alice.post("/posts", body), 201)
    same: list[dict[str, Any]] = [{}, {"id": post_id.upper(), "group_id": group_id.upper()}, {"attachments": []}]
    for again in same:
        answer = await alice.post("/posts", body | again)
        second = good(answer, 200)
        assert answer.headers["location"] == f"/posts/{post_id}"
        assert (second["id"], second["created_at"]) == (post_id, first["created_at"])
    sealed = await alice.wait_until_sealed(post_id)
    assert good(await alice.post("/posts", body), 200) == sealed


async def test_id_that_means_something_else_is_taken(alice: Person, bob: Person, stranger: Person) -> None:
    group_id, other_group_id = await alice.found_group(bob), await alice.found_group()
    post_id = str(uuid_utils.compat.uuid7())
    body = {"group_id": group_id, "title": "A title", "content": "Some text", "id": post_id}
    good(await alice.post("/posts", body), 201)
    for change in ({"title": "Another"}, {"content": "Another"}, {"group_id": other_group_id}):
        assert code(await alice.post("/posts", body | change)) == (409, "id_taken")
    assert code(await bob.post("/posts", body)) == (409, "id_taken")
    elsewhere = {"group_id": await stranger.found_group()}
    assert code(await stranger.post("/posts", body | elsewhere)) == (409, "id_taken")


async def test_late_retry_revives_nothing(alice: Person) -> None:
    group_id, doomed_id, kept_id = await alice.found_group(), await alice.found_group(), await alice.found_group()
    ids = [str(uuid_utils.compat.uuid7()) for _ in range(2)]
    first = {"group_id": group_id, "title": "A title", "content": "Some text", "id": ids[0]}
    second = first | {"group_id": doomed_id, "id": ids[1]}
    good(await alice.post("/posts", first), 201)
    good(await alice.post("/posts", second), 201)
    assert (await alice.delete(f"/posts/{ids[0]}")).status_code == 204
    assert (await alice.delete(f"/groups/{doomed_id}")).status_code == 204

    assert code(await alice.post("/posts", first)) == (409, "id_taken")
    assert code(await alice.post("/posts", second)) == (404, "group_not_found")
    # The group's posts went with it, and their ids are remembered all the same.
    assert code(await alice.post("/posts", second | {"group_id": kept_id})) == (409, "id_taken")


async def test_retry_that_meets_the_deletion_halfway_revives_nothing(
    alice: Person, postgres: asyncpg.Connection, database_pool: None
) -> None:
    group_id, post_id = await alice.found_group(), str(uuid_utils.compat.uuid7())
    body = {"group_id": group_id, "title": "A title", "content": "Some text", "id": post_id}
    good(await alice.post("/posts", body), 201)
    await alice.wait_until_sealed(post_id)
    async with postgres.transaction():
        await postgres.execute("DELETE FROM posts WHERE id = $1", post_id)
        retry = asyncio.create_task(alice.post("/posts", body))
        await until(lambda: is_somebody_waiting_for(postgres))
    assert code(await retry) == (409, "id_taken")
    assert code(await alice.get(f"/posts/{post_id}")) == (404, "post_not_found")


async def is_somebody_waiting_for(connection: asyncpg.Connection) -> bool:
    pid = connection.get_server_pid()
    return bool(
        await database.fetchval(
            "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid)))", pid
        )
    )


async def test_fifty_of_the_same_at_once_are_one_post(alice: Person) -> None:
    group_id, post_id = await alice.found_group(), str(uuid_utils.compat.uuid7())
    body = {"group_id": group_id, "title": "A title", "content": "Some text", "id": post_id}
    answers = await asyncio.gather(*(alice.post("/posts", body) for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert [post["id"] for post in good(await alice.get(f"/posts?group_id={group_id}"))["items"]] == [post_id]


# ---------------------------------------------------------------------------------------------- when sealing fails


async def test_draft_that_nobody_can_open_fails_and_is_sealed_once_it_is_mended(
    alice: Person, bob: Person, carol: Person, stranger: Person, drafts: Drafts
) -> None:
    group_id = await alice.found_group(bob)
    await alice.add(group_id, carol, role="owner")
    post_id = await drafts.write(bob, group_id, "The key", "is under the mat")
    draft = await database.fetchval("SELECT draft FROM posts WHERE id = $1", post_id)
    await database.execute("UPDATE posts SET draft = $2 WHERE id = $1", post_id, os.urandom(200))
    await drafts.let_go(post_id)

    failed = await bob.wait_until_not_pending(post_id)
    assert (failed["status"], failed["failure"], failed["access"]) == ("failed", "draft_unreadable", "failed")
    assert failed["content"] is None
    assert failed["sealed_keys"] == []
    for owner in (alice, carol):
        assert good(await owner.get(f"/posts/{post_id}"))["failure"] == "draft_unreadable"
        assert code(await owner.post(f"/posts/{post_id}/requeue")) == (403, "not_author")
    assert code(await stranger.post(f"/posts/{post_id}/requeue")) == (404, "post_not_found")

    await database.execute("UPDATE posts SET draft = $2 WHERE id = $1", post_id, draft)
    again = good(await bob.post(f"/posts/{post_id}/requeue"))
    assert (again["status"], again["failure"], again["access"]) == ("pending", None, "sealing")
    assert bob.open(await bob.wait_until_sealed(post_id)) == ("The key", "is under the mat")
    assert await database.fetchval("SELECT draft FROM posts WHERE id = $1", post_id) is None
    assert good(await bob.post(f"/posts/{post_id}/requeue"))["status"] == "sealed"


async def test_draft_that_was_put_under_another_post_opens_for_nobody(alice: Person, drafts: Drafts) -> None:
    group_id = await alice.found_group()
    ids = [await drafts.write(alice, group_id, title) for title in ("First", "Second")]
    rows = [await database.fetchval("SELECT draft FROM posts WHERE id = $1", post_id) for post_id in ids]
    for post_id, draft in zip(ids, reversed(rows), strict=True):
        await database.execute("UPDATE posts SET draft = $2 WHERE id = $1", post_id, draft)
    await drafts.let_go(*ids)
    for post_id in ids:
        post = await alice.wait_until_not_pending(post_id)
        assert (post["status"], post["failure"]) == ("failed", "draft_mismatch")


async def test_post_fails_once_nobody_is_left_to_read_it_and_is_sealed_when_somebody_is(
    server: str, drafts: Drafts
) -> None:
    async with person(server) as alice:
        group_id = await alice.found_group()
        post_id = await drafts.write(alice, group_id)
        assert (await alice.delete(f"/keys/{alice.devices[0].id}")).status_code == 204
        await drafts.let_go(post_id)
        assert (await alice.wait_until_not_pending(post_id))["failure"] == "no_recipients"
        alice.devices = []
        await alice.enrol()
        good(await alice.post(f"/posts/{post_id}/requeue"))
        assert alice.open(await alice.wait_until_sealed(post_id)) == ("A title", "Some text")


async def test_failed_post_can_be_deleted(alice: Person, drafts: Drafts) -> None:
    post_id = await drafts.write(alice, await alice.found_group())
    await database.execute("UPDATE posts SET status = 'failed', failure = 'draft_unreadable' WHERE id = $1", post_id)
    assert (await alice.delete(f"/posts/{post_id}")).status_code == 204
    assert code(await alice.get(f"/posts/{post_id}")) == (404, "post_not_found")


async def test_odd_key_of_one_member_is_skipped_and_recorded(server: str, alice: Person, database_pool: None) -> None:
    async with person(server, "Bob") as bob, person(server, "Carol", keys=0) as carol:
        odd = [await insert_key(bob.id, LOW_ORDER), await insert_key(carol.id, LOW_ORDER)]
        group_id = await alice.found_group(bob, carol)
        post = await alice.publish(group_id, "The key", "is under the mat")
        for reader in (alice, bob):
            seen = good(await reader.get(f"/posts/{post['id']}"))
            assert len(seen["sealed_keys"]) == 1
            assert reader.open(seen) == ("The key", "is under the mat")
        assert await carol.access(post["id"]) == "not_granted"
        unusable = "SELECT count(*) FROM user_keys WHERE id = ANY($1) AND unusable_at IS NOT NULL"
        assert await database.fetchval(unusable, odd) == 2
        assert await alice.publish(group_id), "the next post is sealed too"


async def test_group_of_odd_keys_alone_has_no_recipients(server: str, database_pool: None) -> None:
    async with person(server, keys=0) as alice:
        await insert_key(alice.id, LOW_ORDER)
        group_id = await alice.found_group()
        body = {"group_id": group_id, "title": "A title", "content": "Some text"}
        post = await alice.wait_until_not_pending(good(await alice.post("/posts", body), 201)["id"])
        assert (post["status"], post["failure"]) == ("failed", "no_recipients")
        assert code(await alice.post("/posts", body)) == (409, "no_recipients"), "by now it is known"


async def test_nothing_is_sealed_to_a_disabled_user(server: str, alice: Person, database_pool: None) -> None:
    async with person(server, "Bob") as bob:
        group_id = await alice.found_group(bob)
        await database.execute("UPDATE users SET disabled_at = now() WHERE id = $1", bob.id)
        post = await alice.publish(group_id)
        assert await keys_of(post["id"]) == {UUID(alice.devices[0].id)}


async def keys_of(post_id: str) -> set[UUID]:
    return {
        row["public_key"] for row in await database.fetch("SELECT public_key FROM post_keys WHERE post = $1", post_id)
    }


# --------------------------------------------------------------------------------------------------------- access


async def test_access_tells_the_first_reason_that_applies(
    server: str, alice: Person, bob: Person, database_pool: None
) -> None:
    """All of them apply at first; one after the other is taken away."""
    async with person(server, "Carol", keys=2) as carol:
        group_id = await alice.found_group(bob, carol)
        post = await alice.publish(group_id)
        post_id, old, new = post["id"], *(device.id for device in carol.devices)
        assert (await carol.delete(f"/keys/{old}")).status_code == 204
        for status in ("pending", "denied"):
            await database.execute(
                'INSERT INTO read_post_request (post, "group", "user", public_key, status, decided_at)'
                " VALUES ($1, $2, $3, $4, $5::text, CASE WHEN $5 = 'denied' THEN now() END)",
                *(post_id, group_id, carol.id, new, status),
            )
        sealed = await database.fetchrow("SELECT * FROM posts WHERE id = $1", post_id)
        await database.execute(
            "UPDATE posts SET status = 'failed', failure = 'draft_unreadable', draft = 'x', heading = NULL,"
            " content = NULL, content_hash = NULL, commitment = NULL, sealed_at = NULL,"
            " created_at = now() + interval '1 hour' WHERE id = $1",
            post_id,
        )
        assert await carol.access(post_id) == "failed"
        await database.execute("UPDATE posts SET status = 'pending', failure = NULL WHERE id = $1", post_id)
        assert await carol.access(post_id) == "sealing"
        await database.execute(
            "UPDATE posts SET status = 'sealed', draft = NULL, heading = $2, content = $3, content_hash = $4,"
            " commitment = $5, sealed_at = now() WHERE id = $1",
            *(post_id, sealed["heading"], sealed["content"], sealed["content_hash"], sealed["commitment"]),  # type: ignore[index]  # it was just inserted
        )
        assert await carol.access(post_id) == "readable"
        await database.execute("DELETE FROM post_keys WHERE post = $1 AND public_key = $2", post_id, new)
        assert await carol.access(post_id) == "requested"
        await database.execute(
            "UPDATE read_post_request SET status = 'cancelled', decided_at = now()"
            " WHERE post = $1 AND status = 'pending'",
            post_id,
        )
        assert await carol.access(post_id) == "denied"
        await database.execute(
            "UPDATE read_post_request SET decided_at = now() - interval '23:59' WHERE post = $1 AND status = 'denied'",
            post_id,
        )
        assert await carol.access(post_id) == "denied"
        await database.execute(
            "UPDATE read_post_request SET decided_at = now() - interval '24:01' WHERE post = $1 AND status = 'denied'",
            post_id,
        )
        await database.execute("UPDATE user_keys SET is_revoked = TRUE, revoked_at = now() WHERE id = $1", new)
        assert await carol.access(post_id) == "no_key"
        await database.execute("UPDATE user_keys SET is_revoked = FALSE, revoked_at = NULL WHERE id = $1", new)
        assert await carol.access(post_id) == "key_revoked"
        await database.execute("DELETE FROM post_keys WHERE post = $1 AND public_key = $2", post_id, old)
        assert await carol.access(post_id) == "not_granted"

        listed = good(await carol.get(f"/posts?group_id={group_id}"))["items"]
        assert [post["access"] for post in listed] == ["not_granted"]
        assert await bob.access(post_id) == "readable", "the others noticed nothing"


async def test_revoked_key_is_served_no_more(server: str, alice: Person) -> None:
    async with person(server, "Bob", keys=2) as bob:
        group_id = await alice.found_group(bob)
        post = await alice.publish(group_id)
        gone, kept = (device.id for device in bob.devices)
        assert (await bob.delete(f"/keys/{gone}")).status_code == 204
        for seen in (good(await bob.get(f"/posts/{post['id']}")), good(await bob.get("/posts"))["items"][0]):
            assert [key["public_key_id"] for key in seen["sealed_keys"]] == [kept]
        assert gone not in {str(key_id) for key_id in await keys_of((await alice.publish(group_id))["id"])}


# ------------------------------------------------------------------------------------------------- deletion


async def test_author_and_owners_delete_and_nobody_else(
    alice: Person, bob: Person, carol: Person, stranger: Person
) -> None:
    group_id = await alice.found_group(bob, carol)
    of_alice, of_bob, of_carol = [await author.publish(group_id) for author in (alice, bob, carol)]
    assert code(await bob.delete(f"/posts/{of_alice['id']}")) == (403, "not_author")
    assert code(await carol.delete(f"/posts/{of_bob['id']}")) == (403, "not_author")
    assert code(await stranger.delete(f"/posts/{of_bob['id']}")) == (404, "post_not_found")
    assert (await bob.delete(f"/posts/{of_bob['id']}")).status_code == 204
    assert (await alice.delete(f"/posts/{of_carol['id']}")).status_code == 204
    assert code(await bob.delete(f"/posts/{of_bob['id']}")) == (404, "post_not_found")
    for someone in (alice, bob, carol):
        assert code(await someone.get(f"/posts/{of_bob['id']}")) == (404, "post_not_found")
        listed = good(await someone.get(f"/posts?group_id={group_id}"))["items"]
        assert [post["id"] for post in listed] == [of_alice["id"]]


async def test_pending_post_can_be_deleted_and_is_never_sealed(alice: Person, drafts: Drafts) -> None:
    group_id = await alice.found_group()
    gone, kept = await drafts.write(alice, group_id), await drafts.write(alice, group_id)
    assert (await alice.delete(f"/posts/{gone}")).status_code == 204
    await drafts.let_go(gone, kept)
    await alice.wait_until_sealed(kept)
    assert code(await alice.get(f"/posts/{gone}")) == (404, "post_not_found")
    assert await keys_of(gone) == set()


# ------------------------------------------------------------------------------------------ who is no (more) member


async def test_removed_member_finds_nothing_of_the_group_and_its_keys_get_nothing(
    alice: Person, bob: Person, carol: Person
) -> None:
    group_id = await alice.found_group(bob)
    own, other = await bob.publish(group_id), await alice.publish(group_id)
    await alice.add(group_id, carol)
    asked = await carol.ask(own["id"])
    assert (await alice.delete(f"/groups/{group_id}/members/{bob.id}")).status_code == 204

    late = await alice.publish(group_id)
    assert await keys_of(late["id"]) == {UUID(alice.devices[0].id), UUID(carol.devices[0].id)}
    keys = {"sealed_keys": [{"public_key_id": bob.devices[0].id, "sealed_key": encode_base64(bytes(80))}]}
    for post_id in (own["id"], other["id"], late["id"]):
        answers = [
            await bob.get(f"/posts/{post_id}"),
            await bob.delete(f"/posts/{post_id}"),
            await bob.post(f"/posts/{post_id}/requeue"),
            await bob.post(f"/posts/{post_id}/request_read"),
            await bob.post(f"/posts/{post_id}/request_read", {"public_key_id": 5}),
            await bob.post(f"/posts/{post_id}/keys", keys),
            await bob.post(f"/posts/{post_id}/keys", {}),
        ]
        absent = [
            await bob.get(f"/posts/{random_id()}"),
            await bob.get("/posts/no-uuid"),
        ]
        assert {code(answer) for answer in answers + absent} == {(404, "post_not_found")}
        assert len({answer.text for answer in answers + absent}) == 1, "nobody can tell what is there"
    sealed = {"sealed_key": encode_base64(bytes(80))}
    answers = [
        await bob.get(f"/read-requests/{asked['id']}"),
        await bob.post(f"/read-requests/{asked['id']}/approve", sealed),
        await bob.post(f"/read-requests/{asked['id']}/approve", {}),
        await bob.post(f"/read-requests/{asked['id']}/deny"),
        await bob.delete(f"/read-requests/{asked['id']}"),
        await bob.get(f"/read-requests/{random_id()}"),
        await bob.delete("/read-requests/no-uuid"),
    ]
    assert {code(answer) for answer in answers} == {(404, "read_request_not_found")}
    assert len({answer.text for answer in answers}) == 1
    assert code(await bob.get(f"/posts?group_id={group_id}")) == (404, "group_not_found")
    body = {"group_id": group_id, "title": "A title", "content": "Some text"}
    assert code(await bob.post("/posts", body)) == (404, "group_not_found")
    assert group_id not in {post["group_id"] for post in await all_pages(bob, "/posts", 100)}
    assert good(await bob.get("/read-requests?role=decider"))["items"] == []


async def test_retry_of_a_removed_author_tells_nothing(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    body = {"group_id": group_id, "title": "A title", "content": "Some text", "id": str(uuid_utils.compat.uuid7())}
    good(await bob.post("/posts", body), 201)
    assert (await bob.delete(f"/groups/{group_id}/members/{bob.id}")).status_code == 204
    assert code(await bob.post("/posts", body)) == (404, "group_not_found")


async def test_who_comes_back_reads_what_it_could_read_and_nothing_of_the_meantime(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    before = await alice.publish(group_id, "Before")
    assert (await alice.delete(f"/groups/{group_id}/members/{bob.id}")).status_code == 204
    meanwhile = await alice.publish(group_id, "Meanwhile")
    await alice.add(group_id, bob)
    assert bob.open(good(await bob.get(f"/posts/{before['id']}")))[0] == "Before"
    assert await bob.access(meanwhile["id"]) == "not_granted"


async def test_nobody_without_a_credential_hears_anything(alice: Person, server: str) -> None:
    post = await alice.publish(await alice.found_group())
    for method, path in (
        ("GET", "/posts"),
        ("POST", "/posts"),
        ("GET", f"/posts/{post['id']}"),
        ("DELETE", f"/posts/{post['id']}"),
        ("POST", f"/posts/{post['id']}/keys"),
        ("POST", f"/posts/{post['id']}/request_read"),
        ("GET", "/read-requests"),
        ("POST", f"/read-requests/{random_id()}/approve"),
    ):
        answer = await alice.client.request(method, path, headers={"Authorization": "Bearer sbs_nobody"})
        assert code(answer) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


# --------------------------------------------------------------------------------------- keys for one's own devices


def sealed_for(holder: Person, post: dict[str, Any], *devices: Any) -> dict[str, Any]:
    post_key = holder.post_key(post)
    return {
        "sealed_keys": [
            {
                "public_key_id": device.id,
                "sealed_key": encode_base64(sealing_posts.seal_key(post_key, device.encryption.public)),
            }
            for device in devices
        ]
    }


async def test_holder_hands_the_key_on_to_its_other_devices(server: str, alice: Person) -> None:
    async with person(server, "Bob") as bob:
        post = await alice.publish(await alice.found_group(bob), "The key", "is under the mat")
        seen = good(await bob.get(f"/posts/{post['id']}"))
        phone, tablet = await bob.enrol("phone"), await bob.enrol("tablet")
        answer = good(await bob.post(f"/posts/{post['id']}/keys", sealed_for(bob, seen, phone, tablet)), 201)
        assert {key["public_key_id"] for key in answer["sealed_keys"]} == {device.id for device in bob.devices}
        for key in good(await bob.get(f"/posts/{post['id']}"))["sealed_keys"]:
            assert bob.open(answer | {"sealed_keys": [key]}) == ("The key", "is under the mat")
        again = await bob.post(f"/posts/{post['id']}/keys", sealed_for(bob, seen, phone))
        assert len(good(again, 201)["sealed_keys"]) == 3
        assert (await bob.delete(f"/keys/{bob.devices[0].id}")).status_code == 204
        assert await bob.access(post["id"]) == "readable"


async def test_keys_are_added_all_or_none(server: str, alice: Person, stranger: Person) -> None:
    async with person(server, "Bob") as bob:
        post = await alice.publish(await alice.found_group(bob))
        seen = good(await bob.get(f"/posts/{post['id']}"))
        phone, lost = await bob.enrol("phone"), await bob.enrol("lost")
        assert (await bob.delete(f"/keys/{lost.id}")).status_code == 204
        [fit] = sealed_for(bob, seen, phone)["sealed_keys"]
        for misfit, pointer in (
            (fit | {"public_key_id": alice.devices[0].id}, "/sealed_keys/1/public_key_id"),
            (fit | {"public_key_id": lost.id}, "/sealed_keys/1/public_key_id"),
            (fit | {"public_key_id": random_id()}, "/sealed_keys/1/public_key_id"),
            (fit, "/sealed_keys/1/public_key_id"),
            (
                fit | {"public_key_id": bob.devices[0].id, "sealed_key": fit["sealed_key"][4:]},
                "/sealed_keys/1/sealed_key",
            ),
            (fit | {"sealed_key": fit["sealed_key"].rstrip("=")}, "/sealed_keys/1/sealed_key"),
            (fit | {"sealed_key": 1}, "/sealed_keys/1/sealed_key"),
        ):
            answer = await bob.post(f"/posts/{post['id']}/keys", {"sealed_keys": [fit, misfit]})
            assert code(answer) == (422, "invalid"), misfit
            assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
        bodies: list[dict[str, Any]] = [{"sealed_keys": []}, {}, {"sealed_keys": [fit], "more": 1}]
        for body in bodies:
            assert code(await bob.post(f"/posts/{post['id']}/keys", body)) == (422, "invalid")
        assert await keys_of(post["id"]) == {UUID(alice.devices[0].id), UUID(bob.devices[0].id)}
        assert code(await stranger.post(f"/posts/{post['id']}/keys", {"sealed_keys": []})) == (404, "post_not_found")


async def test_who_holds_no_key_adds_none(alice: Person, carol: Person, drafts: Drafts) -> None:
    group_id = await alice.found_group()
    post = await alice.publish(group_id)
    await alice.add(group_id, carol)
    body = {"sealed_keys": [{"public_key_id": carol.devices[0].id, "sealed_key": encode_base64(bytes(80))}]}
    for misfit in (body, {}, {"sealed_keys": [{"public_key_id": alice.devices[0].id, "sealed_key": "AA=="}]}):
        assert code(await carol.post(f"/posts/{post['id']}/keys", misfit)) == (403, "not_decider")
    assert await carol.access(post["id"]) == "not_granted"

    pending = await drafts.write(alice, group_id)
    assert code(await carol.post(f"/posts/{pending}/keys", body)) == (409, "not_sealed")
    assert code(await carol.post(f"/posts/{pending}/keys", {})) == (422, "invalid")


# ------------------------------------------------------------------------------------------------------- lists


async def write_many(author: Person, group_id: str, count: int, *, at_once: int = 1, day: int = 1) -> list[str]:
    """Pending posts that no worker will find, `at_once` of them at the very same time; the newest first."""
    rows = await database.fetch(
        'INSERT INTO posts (id, "group", author, status, sealed_by, draft, request_mac, created_at)'
        " SELECT uuidv7(), $1, $2, 'pending', 'server', 'x', 'x',"
        " now() + $5 * interval '1 day' + n / $4 * interval '1 s'"
        " FROM generate_series(0, $3 - 1) n RETURNING id, created_at",
        *(group_id, author.id, count, at_once, day),
    )
    return [str(row["id"]) for row in sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=True)]


async def test_all_posts_are_listed_once_newest_first(alice: Person, bob: Person, database_pool: None) -> None:
    group_id = await alice.found_group(bob)
    expected = await write_many(alice, group_id, 230, at_once=3)
    for limit in (100, 50, 7):
        listed = await all_pages(bob, f"/posts?group_id={group_id}", limit)
        assert [post["id"] for post in listed] == expected, limit
    first = good(await bob.get(f"/posts?group_id={group_id}"))
    assert len(first["items"]) == 50
    assert {frozenset(post) for post in first["items"]} == {frozenset(POST_FIELDS - {"content"})}


async def test_page_goes_on_where_the_last_one_ended_whatever_came_or_went(alice: Person, database_pool: None) -> None:
    group_id = await alice.found_group()
    expected = await write_many(alice, group_id, 20)
    first = good(await alice.get(f"/posts?group_id={group_id}&limit=10"))
    newer = await write_many(alice, group_id, 1, day=2)
    assert (await alice.delete(f"/posts/{first['items'][-1]['id']}")).status_code == 204
    second = good(await alice.get(f"/posts?group_id={group_id}&limit=10&cursor={first['next_cursor']}"))
    assert [post["id"] for post in second["items"]] == expected[10:]
    assert second["next_cursor"] is None
    assert newer[0] not in {post["id"] for post in second["items"]}


async def test_list_without_a_group_is_of_all_ones_groups(server: str, alice: Person, database_pool: None) -> None:
    async with person(server, "Bob") as bob:
        groups = [await alice.found_group(bob) for _ in range(3)]
        foreign = await alice.found_group()
        await write_many(alice, foreign, 5)
        expected: set[str] = set()
        for group_id, count in zip(groups, (60, 61, 3), strict=True):
            expected |= set(await write_many(alice, group_id, count, at_once=2))
        for limit in (100, 9):
            listed = await all_pages(bob, "/posts", limit)
            assert {post["id"] for post in listed} == expected
            assert len(listed) == 124
            order = [(post["created_at"], UUID(post["id"])) for post in listed]
            assert order == sorted(order, reverse=True)
        assert good(await bob.get(f"/posts?group_id={groups[2]}"))["next_cursor"] is None


async def test_list_of_readable_posts_brings_the_keys_to_open_their_headings(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    post = await alice.publish(group_id, "The key", "is under the mat")
    [listed] = good(await bob.get(f"/posts?group_id={group_id}"))["items"]
    assert listed == {
        name: value for name, value in good(await bob.get(f"/posts/{post['id']}")).items() if name != "content"
    }
    ids = sealing_posts.PostIds(UUID(post["id"]), UUID(group_id), alice.id)
    parts = {name: decode_base64(listed[name]) for name in ("heading", "content_hash", "commitment")}
    title = sealing_posts.open_heading(
        ids, bob.post_key(listed), **parts, signature=None, verify_key=None, sealed_by="server"
    )
    assert title == "The key"


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=101", "limit=-1", "limit=x", "limit=", "limit=1.0", "limit=%D9%A1", "limit=" + "9" * 50),
        *("cursor=", "cursor=x", "cursor=" + "A" * 31, "cursor=" + base64.urlsafe_b64encode(b"\x7f" * 24).decode()),
        *("group_id=x", "group_id=", "groupid=x", "role=decider"),
    ],
)
async def test_query_that_means_nothing_is_refused(alice: Person, query: str) -> None:
    answer = await alice.get(f"/posts?{query}")
    assert code(answer) == (422, "invalid")
    assert answer.json()["errors"][0]["pointer"].startswith("?")


async def test_trailing_slash_makes_no_difference(alice: Person) -> None:
    group_id = await alice.found_group()
    post = good(await alice.post("/posts/", {"group_id": group_id, "title": "A title", "content": "Some text"}), 201)
    assert good(await alice.get(f"/posts/{post['id']}/"))["id"] == post["id"]
    assert [item["id"] for item in good(await alice.get(f"/posts/?group_id={group_id}"))["items"]] == [post["id"]]


async def test_times_are_written_alike(alice: Person) -> None:
    post = await alice.publish(await alice.found_group())
    for name in ("created_at", "sealed_at"):
        assert uuid.UUID(post["id"]).version == 7
        assert len(post[name]) == len("2026-01-31T12:00:00.123456Z")
        assert post[name].endswith("Z")
