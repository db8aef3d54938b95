"""The audit log: every action is in it once, what failed is not, and its chain shows what was done to it afterwards."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest

from server import administration, audit, dashboard_access, database, events, groups, posts
from server.audit import Head
from server.sealing import digests
from server.sealing.encoding import encode_base64
from server.settings import Settings
from tests.conftest import lasting
from tests.people import PASSWORD, Person, all_pages, code, good, new_email, person, random_id
from tests.test_cli import environ, secureblogs
from tests.test_sealed_posts import seal

pytestmark = pytest.mark.usefixtures("database_pool")

owner = lasting("Olga")
member = lasting("Max")

__all__ = ["environ"]

Entry = tuple[str, UUID | None, UUID | None, UUID | None, dict[str, Any]]
"""Action, actor, group, user, ids."""


class Scene:
    """A group of Alice's in which Bob is, and what has been recorded of them since `begin`."""

    def __init__(self, alice: Person, bob: Person, group_id: str) -> None:
        self.alice = alice
        self.bob = bob
        self.group = UUID(group_id)
        self.path = f"/groups/{group_id}"
        self.known: set[UUID] = set()

    async def begin(self) -> None:
        self.known = {row["id"] for row in await self.rows()}

    async def rows(self, *also: UUID) -> list[asyncpg.Record]:
        return await database.fetch(
            'SELECT * FROM audit_log WHERE actor = ANY($1) OR "user" = ANY($1) OR "group" = $2 ORDER BY id',
            *([self.alice.id, self.bob.id, *also], self.group),
        )

    async def entries(self, *also: UUID) -> list[Entry]:
        return [
            (row["action"], row["actor"], row["group"], row["user"], json.loads(row["ids"]))
            for row in await self.rows(*also)
            if row["id"] not in self.known
        ]


@pytest.fixture
async def scene(server: str, alice: Person, bob: Person) -> Scene:
    return Scene(alice, bob, await alice.found_group(bob))


async def pending_request(scene: Scene) -> tuple[dict[str, Any], dict[str, Any]]:
    """A post of Alice's that Bob has asked for."""
    good_or_gone = await scene.alice.delete(f"{scene.path}/members/{scene.bob.id}")
    assert good_or_gone.status_code == 204
    post = await scene.alice.publish(str(scene.group))
    await scene.alice.add(str(scene.group), scene.bob)
    return post, await scene.bob.ask(post["id"])


# ------------------------------------------------------------------------------- one function for each action


async def account_created(scene: Scene) -> list[Entry]:
    body = {"name": "Dora", "email": new_email(), "password": PASSWORD}
    user_id = UUID(good(await scene.alice.post("/sign-up", body), 201)["id"])
    [session_id] = [row["id"] for row in await database.fetch('SELECT id FROM user_tokens WHERE "user" = $1', user_id)]
    scene.alice.id = user_id
    return [
        ("account.created", user_id, None, user_id, {}),
        ("session.opened", user_id, None, user_id, {"session_id": str(session_id)}),
    ]


async def account_changed(scene: Scene) -> list[Entry]:
    changes = {"name": "Alicia", "email": new_email(), "current_password": PASSWORD}
    good(await scene.alice.patch("/me", changes))
    return [("account.changed", scene.alice.id, None, scene.alice.id, {"fields": ["name", "email"]})]


async def account_deleted(scene: Scene) -> list[Entry]:
    group_id = UUID(await scene.bob.found_group())
    post = await scene.bob.publish(str(scene.group))
    await scene.begin()
    assert (await scene.bob.post("/me/delete", {"password": PASSWORD})).status_code == 204
    bob_id = scene.bob.id
    return [
        ("account.deleted", bob_id, None, bob_id, {}),
        ("group.deleted", bob_id, group_id, None, {}),
        ("member.removed", bob_id, scene.group, bob_id, {}),
        ("post.deleted", bob_id, scene.group, None, {"post_id": post["id"]}),
    ]


async def account_disabled(scene: Scene) -> list[Entry]:
    await administration.disable(scene.alice.id, scene.bob.id)
    return [("account.disabled", scene.alice.id, None, scene.bob.id, {})]


async def account_enabled(scene: Scene) -> list[Entry]:
    await administration.disable(None, scene.bob.id)
    await scene.begin()
    await administration.enable(None, scene.bob.id)
    return [("account.enabled", None, None, scene.bob.id, {})]


async def password_changed(scene: Scene) -> list[Entry]:
    good(await scene.alice.patch("/me", {"password": "another one, quite long", "current_password": PASSWORD}))
    return [("password.changed", scene.alice.id, None, scene.alice.id, {})]


async def admin_granted(scene: Scene) -> list[Entry]:
    await administration.grant(None, scene.bob.id)
    return [("admin.granted", None, None, scene.bob.id, {})]


async def admin_revoked(scene: Scene) -> list[Entry]:
    await administration.grant(None, scene.bob.id)
    await scene.begin()
    await administration.revoke(None, scene.bob.id)
    return [("admin.revoked", None, None, scene.bob.id, {})]


async def session_opened(scene: Scene) -> list[Entry]:
    good(await scene.alice.post("/login", {"email": scene.alice.user["email"], "password": PASSWORD}))
    session_id = await newest(scene.alice, "user_tokens")
    return [("session.opened", scene.alice.id, None, scene.alice.id, {"session_id": session_id})]


async def session_ended(scene: Scene) -> list[Entry]:
    session_id = await newest(scene.alice, "user_tokens")
    assert (await scene.alice.post("/logout")).status_code == 204
    return [("session.ended", scene.alice.id, None, scene.alice.id, {"session_id": session_id})]


async def api_key_created(scene: Scene) -> list[Entry]:
    key = good(await scene.alice.post("/api-keys", {"label": "backup"}), 201)
    return [("api_key.created", scene.alice.id, None, scene.alice.id, {"api_key_id": key["id"]})]


async def api_key_revoked(scene: Scene) -> list[Entry]:
    key = good(await scene.alice.post("/api-keys", {"label": "backup"}), 201)
    await scene.begin()
    for _ in range(2):
        assert (await scene.alice.delete(f"/api-keys/{key['id']}")).status_code == 204
    return [("api_key.revoked", scene.alice.id, None, scene.alice.id, {"api_key_id": key["id"]})]


async def key_enrolled(scene: Scene) -> list[Entry]:
    device = await scene.alice.enrol()
    return [("key.enrolled", scene.alice.id, None, scene.alice.id, {"key_id": device.id})]


async def key_revoked(scene: Scene) -> list[Entry]:
    key_id = scene.alice.devices[0].id
    for _ in range(2):
        assert (await scene.alice.delete(f"/keys/{key_id}")).status_code == 204
    return [("key.revoked", scene.alice.id, None, scene.alice.id, {"key_id": key_id})]


async def group_created(scene: Scene) -> list[Entry]:
    group_id = UUID(await scene.alice.found_group())
    return [("group.created", scene.alice.id, group_id, None, {})]


async def group_renamed(scene: Scene) -> list[Entry]:
    good(await scene.alice.patch(scene.path, {"name": "foes"}))
    return [("group.renamed", scene.alice.id, scene.group, None, {})]


async def group_deleted(scene: Scene) -> list[Entry]:
    assert (await scene.alice.delete(scene.path)).status_code == 204
    return [("group.deleted", scene.alice.id, scene.group, None, {})]


async def member_added(scene: Scene) -> list[Entry]:
    await scene.alice.delete(f"{scene.path}/members/{scene.bob.id}")
    await scene.begin()
    await scene.alice.add(str(scene.group), scene.bob, "owner")
    return [("member.added", scene.alice.id, scene.group, scene.bob.id, {"role": "owner"})]


async def member_removed(scene: Scene) -> list[Entry]:
    assert (await scene.alice.delete(f"{scene.path}/members/{scene.bob.id}")).status_code == 204
    return [("member.removed", scene.alice.id, scene.group, scene.bob.id, {})]


async def member_role_changed(scene: Scene) -> list[Entry]:
    for _ in range(2):
        good(await scene.alice.patch(f"{scene.path}/members/{scene.bob.id}", {"role": "owner"}))
    return [("member.role_changed", scene.alice.id, scene.group, scene.bob.id, {"role": "owner"})]


async def post_created(scene: Scene) -> list[Entry]:
    post = await scene.bob.publish(str(scene.group))
    sealed = await seal(scene.alice, str(scene.group))
    for status in (201, 200):
        good(await scene.alice.post("/posts/sealed", sealed), status)
    return [
        ("post.created", scene.bob.id, scene.group, None, {"post_id": post["id"], "sealed_by": "server"}),
        ("post.created", scene.alice.id, scene.group, None, {"post_id": sealed["id"], "sealed_by": "author"}),
    ]


async def post_deleted(scene: Scene) -> list[Entry]:
    post = await scene.bob.publish(str(scene.group))
    await scene.begin()
    assert (await scene.alice.delete(f"/posts/{post['id']}")).status_code == 204
    return [("post.deleted", scene.alice.id, scene.group, scene.bob.id, {"post_id": post["id"]})]


async def post_requeued(scene: Scene) -> list[Entry]:
    post = await scene.bob.publish(str(scene.group))
    await scene.begin()
    fail = (
        "UPDATE posts SET status = 'failed', failure = 'draft_unreadable', draft = 'x', heading = NULL, content = NULL,"
        " content_hash = NULL, commitment = NULL, sealed_at = NULL WHERE id = $1"
    )
    await database.execute(fail, post["id"])
    # No worker is told, so that it is still pending when this is repeated.
    for _ in range(2):
        await posts.requeue(scene.bob.id, UUID(post["id"]))
    await database.execute(fail, post["id"])
    await posts.requeue_failed([UUID(post["id"])])
    ids = {"post_id": post["id"]}
    return [
        ("post.requeued", scene.bob.id, scene.group, None, ids),
        ("post.requeued", None, scene.group, None, ids),
    ]


async def post_keys_added(scene: Scene) -> list[Entry]:
    post = await scene.alice.publish(str(scene.group))
    device = await scene.alice.enrol("phone")
    await scene.begin()
    keys = {"sealed_keys": [{"public_key_id": device.id, "sealed_key": encode_base64(bytes(80))}]}
    for _ in range(2):
        good(await scene.alice.post(f"/posts/{post['id']}/keys", keys), 201)
    ids = {"post_id": post["id"], "key_ids": [device.id]}
    return [("post.keys_added", scene.alice.id, scene.group, None, ids)]


async def read_request_created(scene: Scene) -> list[Entry]:
    await scene.alice.delete(f"{scene.path}/members/{scene.bob.id}")
    post = await scene.alice.publish(str(scene.group))
    await scene.alice.add(str(scene.group), scene.bob)
    await scene.begin()
    request = await scene.bob.ask(post["id"])
    await scene.bob.ask(post["id"], 200)
    ids = {"request_id": request["id"], "post_id": post["id"]}
    return [("read_request.created", scene.bob.id, scene.group, None, ids)]


async def read_request_approved(scene: Scene) -> list[Entry]:
    post, request = await pending_request(scene)
    await scene.begin()
    await scene.alice.approve(post, request)
    return [decision(scene, "approved", scene.alice, post, request)]


async def read_request_denied(scene: Scene) -> list[Entry]:
    post, request = await pending_request(scene)
    await scene.begin()
    good(await scene.alice.post(f"/read-requests/{request['id']}/deny"))
    assert code(await scene.alice.post(f"/read-requests/{request['id']}/deny")) == (409, "already_decided")
    return [decision(scene, "denied", scene.alice, post, request)]


async def read_request_cancelled(scene: Scene) -> list[Entry]:
    post, request = await pending_request(scene)
    await scene.begin()
    assert (await scene.bob.delete(f"/read-requests/{request['id']}")).status_code == 204
    return [decision(scene, "cancelled", scene.bob, post, request)]


async def read_request_returned(scene: Scene) -> list[Entry]:
    post, request = await pending_request(scene)
    await scene.alice.approve(post, request)
    await scene.begin()
    assert (await scene.bob.delete(f"/read-requests/{request['id']}")).status_code == 204
    return [decision(scene, "returned", scene.bob, post, request)]


def decision(scene: Scene, status: str, actor: Person, post: dict[str, Any], request: dict[str, Any]) -> Entry:
    ids = {"request_id": request["id"], "post_id": post["id"]}
    return (f"read_request.{status}", actor.id, scene.group, scene.bob.id, ids)


async def link_created(scene: Scene) -> list[Entry]:
    attachment_id = await attached_file(scene)
    await scene.begin()
    made = good(await scene.alice.post(f"/attachments/{attachment_id}/links", {"expires_in": 60}), 201)
    ids = {"link_id": made["id"], "attachment_id": attachment_id}
    return [("link.created", scene.alice.id, scene.group, None, ids)]


async def link_revoked(scene: Scene) -> list[Entry]:
    attachment_id = await attached_file(scene)
    made = good(await scene.alice.post(f"/attachments/{attachment_id}/links", {"expires_in": 60}), 201)
    await scene.begin()
    for _ in range(2):
        assert (await scene.alice.delete(f"/links/{made['id']}")).status_code == 204
    return [("link.revoked", scene.alice.id, scene.group, None, {"link_id": made["id"]})]


async def attached_file(scene: Scene) -> str:
    headers = {"X-Filename": "UTF-8''plan"}
    uploaded = good(await scene.alice.client.post("/attachments", content=b"text", headers=headers), 201)
    body = {"group_id": str(scene.group), "title": "A title", "content": "", "attachments": [uploaded["id"]]}
    await scene.alice.wait_until_sealed(good(await scene.alice.post("/posts", body), 201)["id"])
    return str(uploaded["id"])


async def newest(someone: Person, table: str) -> str:
    found = await database.fetchval(
        f'SELECT id FROM {table} WHERE "user" = $1 ORDER BY created_at DESC LIMIT 1', someone.id
    )
    return str(found)


def told_by_dashboard(action: str, **ids: str) -> Callable[[Scene], Awaitable[list[Entry]]]:
    """What it tells just before an action; that it does is tested beside it."""

    async def act(scene: Scene) -> list[Entry]:
        [subject] = ids.values()
        told = next(name for name, audited in dashboard_access.AUDITED.items() if audited == action)
        await dashboard_access.note(cast("Any", None), str(scene.alice.id), told, subject)
        return [(action, scene.alice.id, None, None, ids)]

    return act


ACTS: dict[str, Callable[[Scene], Awaitable[list[Entry]]]] = {
    "account.created": account_created,
    "account.changed": account_changed,
    "account.deleted": account_deleted,
    "account.disabled": account_disabled,
    "account.enabled": account_enabled,
    "password.changed": password_changed,
    "admin.granted": admin_granted,
    "admin.revoked": admin_revoked,
    "session.opened": session_opened,
    "session.ended": session_ended,
    "api_key.created": api_key_created,
    "api_key.revoked": api_key_revoked,
    "key.enrolled": key_enrolled,
    "key.revoked": key_revoked,
    "group.created": group_created,
    "group.renamed": group_renamed,
    "group.deleted": group_deleted,
    "member.added": member_added,
    "member.removed": member_removed,
    "member.role_changed": member_role_changed,
    "post.created": post_created,
    "post.deleted": post_deleted,
    "post.requeued": post_requeued,
    "post.keys_added": post_keys_added,
    "read_request.created": read_request_created,
    "read_request.approved": read_request_approved,
    "read_request.denied": read_request_denied,
    "read_request.cancelled": read_request_cancelled,
    "read_request.returned": read_request_returned,
    "link.created": link_created,
    "link.revoked": link_revoked,
    "job.retried": told_by_dashboard("job.retried", job="seal:1"),
    "job.aborted": told_by_dashboard("job.aborted", job="seal:1"),
    "job.deleted": told_by_dashboard("job.deleted", job="seal:1"),
    "queue.paused": told_by_dashboard("queue.paused", queue="arq:queue"),
    "queue.resumed": told_by_dashboard("queue.resumed", queue="arq:queue"),
}


async def test_there_is_a_test_for_each_action() -> None:
    assert list(ACTS) == list(audit.ACTIONS)


@pytest.mark.parametrize("action", ACTS)
async def test_action_is_recorded_once_and_nothing_else_is(scene: Scene, action: str) -> None:
    await scene.begin()
    expected = await ACTS[action](scene)
    entries = await scene.entries()
    assert action in {entry[0] for entry in entries}
    assert entries == expected


# ------------------------------------------------------------------------------------- what is not recorded


async def test_what_is_refused_leaves_no_entry(scene: Scene) -> None:
    alice, bob = scene.alice, scene.bob
    post = await alice.publish(str(scene.group))
    await scene.begin()
    refusals = [
        await bob.patch(scene.path, {"name": "foes"}),
        await bob.delete(scene.path),
        await bob.delete(f"{scene.path}/members/{alice.id}"),
        await alice.delete(f"{scene.path}/members/{alice.id}"),
        await alice.patch(f"{scene.path}/members/{alice.id}", {"role": "member"}),
        await alice.post(f"{scene.path}/members", {"user_id": str(bob.id)}),
        await alice.post("/keys", alice.devices[0].body()),
        await alice.delete(f"/keys/{random_id()}"),
        await bob.delete(f"/posts/{post['id']}"),
        await bob.post(f"/posts/{post['id']}/requeue"),
        await bob.post(f"/posts/{post['id']}/request_read"),
        await bob.patch("/me", {"password": "another one, quite long", "current_password": "wrong"}),
        await alice.post("/me/delete", {"password": PASSWORD}),
        await bob.post("/me/delete", {"password": "wrong"}),
        await bob.post(f"/admin/users/{alice.id}/disable"),
        await bob.post("/login", {"email": bob.user["email"], "password": "wrong"}),
    ]
    assert not [answer for answer in refusals if answer.status_code < 400]
    assert await scene.entries() == []


async def test_what_is_rolled_back_leaves_no_entry(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of a removal fails, after its entry was written."""
    written: list[str] = []

    async def fail(*_: object) -> None:
        written.extend(entry[0] for entry in await scene.entries())
        raise RuntimeError("the last step")

    await scene.begin()
    monkeypatch.setattr(events, "record", fail)
    with pytest.raises(RuntimeError):
        await groups.remove_member(scene.alice.id, scene.group, scene.bob.id)
    assert written == ["member.removed"]
    assert await scene.entries() == []


async def test_unknown_action_is_refused() -> None:
    with pytest.raises(ValueError, match=r"post\.read"):
        await audit.record("post.read", actor=None)


async def test_log_holds_ids_and_fixed_words_alone(scene: Scene) -> None:
    """Of all that the tests of this process did."""
    for act in (session_opened, account_changed, member_role_changed, post_created):
        await act(scene)
    await scene.bob.post("/api-keys", {"label": "a secret label"})
    words = {"server", "author", "owner", "member", "name", "email"}
    rows = await database.fetch("SELECT action, ids FROM audit_log")
    assert len(rows) > 10
    for row in rows:
        assert row["action"] in audit.ACTIONS
        for name, value in json.loads(row["ids"]).items():
            if name in {"job", "queue"}:
                continue  # ids as well, but of arq, where they are whatever whoever enqueues makes them
            for text in value if isinstance(value, list) else [value]:
                assert text in words or (str(UUID(text)) == text and re.fullmatch(r"[a-z_]+_ids?", name))


# --------------------------------------------------------------------------------------------------- reading


async def test_entry_shows_who_did_what(scene: Scene) -> None:
    await scene.alice.patch(f"{scene.path}/members/{scene.bob.id}", {"role": "owner"})
    entry = good(await scene.alice.get(f"{scene.path}/audit?limit=1"))["items"][0]
    assert list(entry) == ["id", "at", "actor_id", "action", "group_id", "user_id", "ids"]
    assert entry["action"] == "member.role_changed"
    assert (entry["actor_id"], entry["user_id"]) == (str(scene.alice.id), str(scene.bob.id))
    assert (entry["group_id"], entry["ids"]) == (str(scene.group), {"role": "owner"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry["at"])


async def test_owners_read_the_log_of_their_group_and_nobody_else_does(
    scene: Scene, owner: Person, member: Person
) -> None:
    path = f"{scene.path}/audit"
    other = await owner.found_group(member)
    actions = [entry["action"] for entry in good(await scene.alice.get(path))["items"]]
    assert actions == ["member.added", "group.created"]
    assert code(await scene.bob.get(path)) == (403, "not_owner")
    assert code(await owner.get(path)) == (404, "group_not_found")
    assert code(await scene.alice.get(f"/groups/{other}/audit")) == (404, "group_not_found")
    assert code(await scene.alice.get(f"/groups/{random_id()}/audit")) == (404, "group_not_found")
    await scene.alice.add(str(scene.group), member, "owner")
    assert len(good(await member.get(path))["items"]) == 3


async def test_one_reads_what_one_did_and_what_was_done_to_one(scene: Scene) -> None:
    await scene.alice.patch(f"{scene.path}/members/{scene.bob.id}", {"role": "owner"})
    await scene.alice.delete(f"{scene.path}/members/{scene.bob.id}")
    items = good(await scene.bob.get("/me/audit"))["items"]
    assert [(item["action"], item["actor_id"] == str(scene.bob.id)) for item in items] == [
        ("member.removed", False),
        ("member.role_changed", False),
        ("member.added", False),
        ("key.enrolled", True),
        ("session.opened", True),
        ("account.created", True),
    ]
    others = {item["id"] for item in good(await scene.alice.get("/me/audit"))["items"]}
    assert {item["id"] for item in items[:3]} <= others


async def test_pages_show_each_entry_once_newest_first(scene: Scene) -> None:
    for number in range(7):
        good(await scene.alice.patch(scene.path, {"name": f"name {number}"}))
    for path in (f"{scene.path}/audit", "/me/audit"):
        whole = good(await scene.alice.get(path))["items"]
        assert [item["id"] for item in whole] == sorted((item["id"] for item in whole), reverse=True)
        assert [item["id"] for item in await all_pages(scene.alice, path, 2)] == [item["id"] for item in whole]


async def test_administrators_read_all_and_narrow_it_down(server: str, scene: Scene) -> None:
    async with person(server, "Root", keys=0) as root:
        for path in ("/admin/audit", "/admin/audit?action=nonsense", "/admin/audit?limit=none"):
            assert code(await root.get(path)) == (403, "not_admin")
        await administration.grant(None, root.id)
        newest_first = good(await root.get("/admin/audit?limit=1"))["items"]
        assert newest_first[0]["action"] == "admin.granted"
        assert newest_first[0]["actor_id"] is None

        async def find(query: str) -> list[str]:
            return [item["action"] for item in await all_pages(root, f"/admin/audit?{query}", 1)]

        assert await find(f"group_id={scene.group}") == ["member.added", "group.created"]
        assert await find(f"group_id={scene.group}&action=group.created") == ["group.created"]
        assert await find(f"user_id={scene.bob.id}&action=member.added") == ["member.added"]
        assert await find(f"user_id={scene.bob.id}") == [
            *("member.added", "key.enrolled", "session.opened", "account.created"),
        ]
        assert await find(f"user_id={scene.alice.id}&group_id={scene.group}") == ["member.added", "group.created"]
        for query, pointer in {"action=x": "?action", "user_id=": "?user_id", "group_id=7": "?group_id"}.items():
            answer = await root.get(f"/admin/audit?{query}")
            assert code(answer) == (422, "invalid")
            assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
        key = good(await root.post("/api-keys", {"label": "all"}), 201)["token"]
        answer = await root.get("/admin/audit", headers={"Authorization": f"Bearer {key}"})
        assert code(answer) == (403, "session_required")
        assert (await root.get("/me/audit", headers={"Authorization": f"Bearer {key}"})).status_code == 200


# ------------------------------------------------------------------------------------------------- the chain


class Undone(Exception):
    """Ends a transaction that must not stay."""


@asynccontextmanager
async def tampering() -> AsyncIterator[None]:
    """As the owner of the database, whom no trigger stops; none of it stays."""
    try:
        async with database.transaction():
            await database.execute("SET LOCAL session_replication_role = replica")
            yield
            raise Undone
    except Undone:
        pass


@pytest.fixture
async def head(scene: Scene) -> Head:
    """The end of a chain that is right, and long enough to do something to its middle."""
    for number in range(6):
        good(await scene.alice.patch(scene.path, {"name": f"name {number}"}))
    await audit.place()
    verdict = await audit.verify()
    assert verdict.fault is None
    assert verdict.head.position >= 6
    return verdict.head


TAMPERINGS = {
    "id": "id = uuidv7()",
    "at": "at = at + interval '1 microsecond'",
    "actor": "actor = gen_random_uuid()",
    "no actor": "actor = NULL",
    "action": "action = 'group.created'",
    "group": '"group" = gen_random_uuid()',
    "user": '"user" = gen_random_uuid()',
    "ids": """ids = '{"post_id": "x"}'""",
    "ids of another shape": "ids = '[1e400]'",
    "chain": "chain = sha256('x')",
}


@pytest.mark.parametrize("change", TAMPERINGS.values(), ids=TAMPERINGS)
async def test_changed_entry_is_found(head: Head, change: str) -> None:
    changed = head.position - 3
    async with tampering():
        await database.execute(f"UPDATE audit_log SET {change} WHERE position = $1", changed)
        verdict = await audit.verify()
    assert verdict.head.position == changed - 1
    assert verdict.fault
    assert verdict.fault.position == changed
    assert (await audit.verify()).fault is None


async def test_missing_entry_is_found(head: Head) -> None:
    async with tampering():
        await database.execute("DELETE FROM audit_log WHERE position = $1", head.position - 2)
        missing = await audit.verify()
        # Nor does it help to close up.
        await database.execute("UPDATE audit_log SET position = -position WHERE position > $1", head.position - 2)
        await database.execute("UPDATE audit_log SET position = -position - 1 WHERE position < 0")
        closed_up = await audit.verify()
    assert missing.fault == (head.position - 2, "is missing")
    assert closed_up.fault
    assert closed_up.fault.position == head.position - 2


@pytest.mark.parametrize("columns", ["position", "position, chain"])
async def test_swapped_entries_are_found(head: Head, columns: str) -> None:
    first, second = head.position - 4, head.position - 2
    async with tampering():
        rows = await database.fetch(
            "SELECT id, position, chain FROM audit_log WHERE position IN ($1, $2) ORDER BY position", first, second
        )
        await database.execute("UPDATE audit_log SET position = -position WHERE position IN ($1, $2)", first, second)
        for row, other in zip(rows, reversed(rows), strict=True):
            chain = other["chain"] if "chain" in columns else row["chain"]
            await database.execute(
                "UPDATE audit_log SET position = $2, chain = $3 WHERE id = $1", row["id"], other["position"], chain
            )
        verdict = await audit.verify()
    assert verdict.fault
    assert verdict.fault.position == first


async def test_entry_that_is_put_in_is_found(head: Head) -> None:
    async with tampering():
        await database.execute("UPDATE audit_log SET position = -position - 1 WHERE position > $1", head.position - 3)
        await database.execute("UPDATE audit_log SET position = -position WHERE position < 0")
        await database.execute(
            "INSERT INTO audit_log (action, position, chain) VALUES ('admin.granted', $1, sha256('x'))",
            head.position - 2,
        )
        verdict = await audit.verify()
    assert verdict.fault
    assert verdict.fault.position == head.position - 2


async def test_cut_off_end_is_found_by_a_head_that_was_kept(head: Head) -> None:
    assert (await audit.verify(head)).fault is None
    async with tampering():
        await database.execute("DELETE FROM audit_log WHERE position > $1", head.position - 2)
        unseen, seen = await audit.verify(), await audit.verify(head)
        # Written anew from there, the log is right in itself.
        await audit.record("group.renamed", actor=None)
        await place_here(head.position - 2)
        anew, against_head = await audit.verify(), await audit.verify(Head(head.position - 1, head.chain))
    assert unseen.fault is None
    assert seen.fault == (head.position - 1, f"is missing, and all up to {head.position}")
    assert (anew.head.position, anew.fault) == (head.position - 1, None)
    assert against_head.fault == (head.position - 1, "has another hash than the one that was kept")


async def place_here(last: int) -> None:
    """As `audit.place` does for one entry, in the transaction that is open."""
    chain = await database.fetchval("SELECT chain FROM audit_log WHERE position = $1", last)
    row = await database.fetchrow(
        'SELECT id, at, actor, action, "group", "user", ids::text AS ids FROM audit_log WHERE position IS NULL'
        " ORDER BY id DESC LIMIT 1"
    )
    assert row
    await database.execute(
        "UPDATE audit_log SET position = $2, chain = $3 WHERE id = $1", row["id"], last + 1, audit.chain_on(chain, row)
    )


async def test_chain_is_what_is_documented(head: Head) -> None:
    rows = await database.fetch(
        "SELECT position, chain, id, (extract(epoch FROM at) * 1000000)::bigint AS micros, actor, action,"
        ' "group", "user", ids::text AS ids FROM audit_log WHERE position > $1 ORDER BY position',
        head.position - 2,
    )
    before, last = rows[:2]
    entry = [str(last["id"]), last["micros"], str(last["actor"]), last["action"], str(last["group"]), None, last["ids"]]
    text = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
    assert last["chain"] == digests.sha256(b"secureblogs audit entry 1\n" + before["chain"] + text.encode())


async def test_log_is_only_ever_added_to(head: Head, scene: Scene) -> None:
    await audit.record("group.renamed", actor=scene.alice.id)
    newest_id = (await scene.rows())[-1]["id"]
    refused = [
        "DELETE FROM audit_log WHERE id = $1",
        "UPDATE audit_log SET action = 'group.created' WHERE id = $1",
        "UPDATE audit_log SET action = 'group.created', position = 1000000000, chain = sha256('') WHERE id = $1",
        "UPDATE audit_log SET position = position + 1, chain = sha256('') WHERE position IS NOT NULL AND id <> $1",
        "UPDATE audit_log SET position = NULL, chain = NULL WHERE position IS NOT NULL AND id <> $1",
        "WITH gone AS (DELETE FROM audit_log WHERE id = $1 RETURNING id) SELECT id FROM gone",
    ]
    for statement in refused:
        with pytest.raises(asyncpg.RestrictViolationError):
            await database.execute(statement, newest_id)
    with pytest.raises(asyncpg.RestrictViolationError):
        await database.execute("TRUNCATE audit_log")


async def test_many_who_place_at_once_make_one_chain(head: Head) -> None:
    actor = UUID(random_id())
    await database.execute(
        "INSERT INTO audit_log (actor, action) SELECT $1, 'group.renamed' FROM generate_series(1, 2500)", actor
    )
    placed = await asyncio.gather(*(audit.place() for _ in range(4)))
    # The worker of this process takes part as well.
    assert sum(placed) <= 2500 + 50
    placed_rows = await database.fetch("SELECT position FROM audit_log WHERE actor = $1", actor)
    positions = sorted(row["position"] for row in placed_rows)
    assert len(positions) == 2500
    assert positions[-1] - positions[0] <= 2500 + 50
    verdict = await audit.verify(head)
    assert verdict.fault is None
    assert verdict.head.position >= head.position + 2500


async def test_who_commits_late_is_placed_late(head: Head, scene: Scene, settings: Settings) -> None:
    late = await asyncpg.connect(settings.database_url)
    transaction = late.transaction()
    await transaction.start()
    late_id = await late.fetchval("INSERT INTO audit_log (action) VALUES ('group.renamed') RETURNING id")
    good(await scene.alice.patch(scene.path, {"name": "early"}))
    early_id = (await scene.rows())[-1]["id"]
    assert late_id < early_id
    await audit.place()
    await transaction.commit()
    await late.close()
    await audit.place()
    positions = [
        await database.fetchval("SELECT position FROM audit_log WHERE id = $1", entry_id)
        for entry_id in (early_id, late_id)
    ]
    assert positions == sorted(positions)
    assert (await audit.verify(head)).fault is None


async def test_worker_gives_places(scene: Scene) -> None:
    good(await scene.alice.patch(scene.path, {"name": "soon"}))
    [entry_id] = [row["id"] for row in await scene.rows() if row["action"] == "group.renamed"]
    async with asyncio.timeout(20):
        while not await database.fetchval("SELECT position FROM audit_log WHERE id = $1", entry_id):  # noqa: ASYNC110 - a worker's doing
            await asyncio.sleep(0.05)


@pytest.mark.thorough
async def test_verify_prints_a_head_and_checks_against_it(environ: dict[str, str], head: Head) -> None:
    done = await secureblogs("audit", "verify", **environ)
    assert (done.status, done.err) == (0, "")
    printed = re.search(r"^Head: (\d+):([0-9a-f]{64})$", done.out, re.MULTILINE)
    assert printed
    position, chain = printed.groups()
    assert f"{position} entries are as they were written." in done.out
    assert int(position) >= head.position

    again = await secureblogs("audit", "verify", "--head", f"{position}:{chain}", **environ)
    assert again.status == 0
    other = await secureblogs("audit", "verify", "--head", f"{position}:{'00' * 32}", **environ)
    assert other.status == 1
    assert other.err == f"secureblogs: entry {position} has another hash than the one that was kept\n"
    longer = await secureblogs("audit", "verify", "--head", f"999999999:{chain}", **environ)
    assert longer.status == 1
    assert "is missing, and all up to 999999999" in longer.err
    for nonsense in ("12", "x:00", f"-1:{chain}", "5:abcd"):
        assert (await secureblogs("audit", "verify", "--head", nonsense, **environ)).status == 2
