"""Administrators: who is one, what they see, and what shutting an account does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from server import administration, database
from server.errors import UserNotFound
from server.settings import Settings
from tests.conftest import lasting
from tests.people import PASSWORD, Person, all_pages, code, good, open_socket, person, random_id
from tests.processes import environ_of, running_api_process
from tests.test_cli import environ, secureblogs
from tests.test_requests import begin

pytestmark = pytest.mark.usefixtures("database_pool")

__all__ = ["environ"]

FIELDS = [
    *("id", "name", "email", "issuer", "subject", "claimed_email", "is_admin", "created_at", "disabled_at"),
]
alice = lasting("Alice")


@pytest.fixture(scope="module")
async def root(server: str) -> AsyncIterator[Person]:
    async with person(server, "Root", keys=0) as someone:
        await administration.grant(None, someone.id)
        yield someone


@pytest.fixture
async def bob(server: str) -> AsyncIterator[Person]:
    """Whose account is going to be shut."""
    async with person(server, "Bob") as someone:
        yield someone


async def disable(root: Person, user_id: object, verb: str = "disable") -> dict[str, Any]:
    return dict(good(await root.post(f"/admin/users/{user_id}/{verb}")))


async def test_users_are_listed_with_all_but_the_password(root: Person, alice: Person, bob: Person) -> None:
    users = await all_pages(root, "/admin/users", 100)
    assert [user["id"] for user in users] == sorted((user["id"] for user in users), reverse=True)
    assert len({user["id"] for user in users}) == len(users)
    [own] = [user for user in users if user["id"] == str(alice.id)]
    assert list(own) == FIELDS
    assert (own["name"], own["email"]) == ("Alice", alice.user["email"])
    assert (own["is_admin"], own["disabled_at"], own["issuer"]) == (False, None, None)
    by_twos = await all_pages(root, "/admin/users", 2)
    assert by_twos == users


async def test_user_is_found_by_the_whole_address_alone(root: Person, alice: Person) -> None:
    email = alice.user["email"]
    for spelling in (email, f" {email.upper()} "):
        answer = good(await root.client.get("/admin/users", params={"email": spelling}))
        assert [item["id"] for item in answer["items"]] == [str(alice.id)]
        assert answer["next_cursor"] is None
    for other in (email[:-1], "%", ""):
        assert good(await root.client.get("/admin/users", params={"email": other}))["items"] == []


async def test_only_administrators_with_a_session_get_in(root: Person, alice: Person, bob: Person) -> None:
    key = good(await root.post("/api-keys", {"label": "all"}), 201)["token"]
    calls = [
        ("GET", "/admin/users"),
        ("GET", "/admin/audit"),
        ("POST", f"/admin/users/{bob.id}/disable"),
        ("POST", f"/admin/users/{bob.id}/enable"),
        ("POST", f"/admin/users/{random_id()}/disable"),
        ("POST", "/admin/users/no-uuid/disable"),
        ("GET", "/admin/users?limit=none"),
    ]
    for method, path in calls:
        nobody = await alice.client.request(method, path, headers={"Authorization": ""})
        assert code(nobody)[0] == 401, path
        assert code(await alice.client.request(method, path)) == (403, "not_admin"), path
        with_key = await root.client.request(method, path, headers={"Authorization": f"Bearer {key}"})
        assert code(with_key) == (403, "session_required"), path
    assert good(await bob.get("/me"))["id"] == str(bob.id)


async def test_unknown_user_is_not_found(root: Person) -> None:
    for verb in ("disable", "enable"):
        for user_id in (random_id(), "no-uuid"):
            assert code(await root.post(f"/admin/users/{user_id}/{verb}")) == (404, "user_not_found")


async def test_nobody_shuts_the_own_account(root: Person) -> None:
    assert code(await root.post(f"/admin/users/{root.id}/disable")) == (409, "own_account")
    assert good(await root.get("/me"))["is_admin"] is True


async def test_revoked_administrator_is_none_at_once(server: str) -> None:
    async with person(server, keys=0) as someone:
        assert code(await someone.get("/admin/users")) == (403, "not_admin")
        await administration.grant(None, someone.id)
        assert good(await someone.get("/me"))["is_admin"] is True
        good(await someone.get("/admin/users"))
        await administration.revoke(None, someone.id)
        assert code(await someone.get("/admin/users")) == (403, "not_admin")


async def test_all_credentials_end_and_none_comes_back(root: Person, bob: Person) -> None:
    login = {"email": bob.user["email"], "password": PASSWORD}
    other = good(await bob.post("/login", login))["token"]["token"]
    key = good(await bob.post("/api-keys", {"label": "script"}), 201)["token"]
    ticket = good(await bob.post("/ws-tickets"), 201)["ticket"]

    shown = await disable(root, bob.id)
    assert list(shown) == FIELDS
    assert shown["disabled_at"] is not None
    assert shown == await disable(root, bob.id)
    for token in (bob.token, other, key):
        answer = await bob.get("/me", headers={"Authorization": f"Bearer {token}"})
        assert code(answer) == (401, "unauthenticated")
    assert code(await bob.post("/login", login)) == (401, "unauthenticated")

    assert (await disable(root, bob.id, "enable"))["disabled_at"] is None
    assert (await disable(root, bob.id, "enable"))["disabled_at"] is None
    for token in (bob.token, other, key):
        answer = await bob.get("/me", headers={"Authorization": f"Bearer {token}"})
        assert code(answer) == (401, "unauthenticated")
    good(await bob.post("/login", login))
    # Sold before, and to a credential that is none any more.
    assert await opens(bob, ticket) is False


async def opens(someone: Person, ticket: str) -> bool:
    async with open_socket(str(someone.client.base_url), f"?ticket={ticket}", {}) as listener:
        return await listener.closed() != 4401


async def test_sockets_end_within_five_seconds(root: Person, bob: Person) -> None:
    async with bob.listen() as first, bob.listen() as second:
        await disable(root, bob.id)
        async with asyncio.timeout(5):
            assert {await first.closed(), await second.closed()} == {4408}


@pytest.mark.thorough
async def test_other_api_processes_take_part(settings: Settings, tmp_path: Path, root: Person, bob: Person) -> None:
    """Shut at one of them, an account's sockets and tokens end at the other."""
    async with running_api_process(environ_of(settings), tmp_path / "log") as other:
        async with bob.listen(at=other.url) as listener:
            async with asyncio.timeout(5):
                await disable(root, bob.id)
                assert await listener.closed() == 4408
        headers = {"Authorization": f"Bearer {bob.token}"}
        async with httpx.AsyncClient(base_url=other.url, headers=headers, timeout=30) as client:
            assert code(await client.get("/me")) == (401, "unauthenticated")


async def test_pending_requests_are_cancelled_and_nothing_is_sealed(root: Person, alice: Person, bob: Person) -> None:
    story = await begin(alice, bob)
    request = await bob.ask(story.post_id)
    async with alice.listen() as listener:
        await disable(root, bob.id)
        await listener.hear("read_request.cancelled", request_id=request["id"])
    assert good(await alice.get(f"/read-requests/{request['id']}"))["status"] == "cancelled"
    late = await alice.post(f"/read-requests/{request['id']}/approve", alice.reseal(story.post, request))
    assert code(late) == (409, "already_decided")
    post = await alice.publish(story.group_id)
    sealed_to = await database.fetch(
        'SELECT k."user" FROM post_keys p JOIN user_keys k ON k.id = p.public_key WHERE p.post = $1', UUID(post["id"])
    )
    assert [row["user"] for row in sealed_to] == [alice.id]
    await disable(root, bob.id, "enable")
    token = good(await bob.post("/login", {"email": bob.user["email"], "password": PASSWORD}))["token"]["token"]
    answer = await bob.get(f"/posts/{post['id']}", headers={"Authorization": f"Bearer {token}"})
    assert good(answer)["access"] == "not_granted"


async def test_last_owner_may_be_shut_and_stays_the_owner(root: Person, alice: Person, bob: Person) -> None:
    group_id = await bob.found_group(alice)
    await disable(root, bob.id)
    members = good(await alice.get(f"/groups/{group_id}/members"))["items"]
    assert {(item["user_id"], item["role"]) for item in members} == {(str(bob.id), "owner"), (str(alice.id), "member")}


async def test_shutting_and_opening_at_once_leaves_one_of_both(root: Person, bob: Person) -> None:
    verbs = ["disable", "enable"] * 10
    answers = await asyncio.gather(*(root.post(f"/admin/users/{bob.id}/{verb}") for verb in verbs))
    assert {answer.status_code for answer in answers} == {200}
    actions = await database.fetch(
        "SELECT action FROM audit_log WHERE \"user\" = $1 AND action LIKE 'account.%abled' ORDER BY id", bob.id
    )
    # Each took effect or did nothing, and they alternate.
    told = [row["action"] for row in actions]
    assert told == (["account.disabled", "account.enabled"] * 10)[: len(told)]


# ------------------------------------------------------------------------------------------- at the machine


@pytest.mark.thorough
async def test_machine_makes_and_unmakes_administrators(server: str, environ: dict[str, str]) -> None:
    async with person(server, keys=0) as someone:
        email = someone.user["email"]
        granted = await secureblogs("admin", "grant", email.upper(), **environ)
        assert (granted.status, granted.out) == (0, f"{email} is an administrator.\n")
        assert good(await someone.get("/me"))["is_admin"] is True
        listed = await secureblogs("admin", "list", **environ)
        assert f"{someone.id}  {email}\n" in listed.out
        revoked = await secureblogs("admin", "revoke", str(someone.id), **environ)
        assert (revoked.status, revoked.out) == (0, f"{email} is no administrator.\n")
        assert good(await someone.get("/me"))["is_admin"] is False
        assert str(someone.id) not in (await secureblogs("admin", "list", **environ)).out


@pytest.mark.thorough
async def test_machine_shuts_and_opens_accounts(
    environ: dict[str, str], alice: Person, bob: Person, root: Person
) -> None:
    story = await begin(alice, bob)
    request = await bob.ask(story.post_id)
    email = bob.user["email"]
    async with alice.listen() as listener, bob.listen() as own:
        disabled = await secureblogs("admin", "disable", email, **environ)
        assert (disabled.status, disabled.out) == (0, f"{email} is disabled.\n")
        assert await own.closed() == 4408
        # The worker's sweep announces it.
        await listener.hear("read_request.cancelled", request_id=request["id"])
    enabled = await secureblogs("admin", "enable", str(bob.id), **environ)
    assert (enabled.status, enabled.out) == (0, f"{email} is enabled.\n")
    entries = good(await root.get(f"/admin/audit?user_id={bob.id}&limit=2"))["items"]
    assert [(entry["action"], entry["actor_id"]) for entry in entries] == [
        ("account.enabled", None),
        ("account.disabled", None),
    ]


@pytest.mark.thorough
async def test_machine_knows_no_such_account(environ: dict[str, str]) -> None:
    for verb in ("grant", "revoke", "disable", "enable"):
        done = await secureblogs("admin", verb, "nobody@example.org", **environ)
        assert done.status == 1
        assert done.err == "secureblogs: no account has the address or id nobody@example.org\n"


async def test_terminal_is_not_told_what_an_issuer_likes_to_say(environ: dict[str, str]) -> None:
    user_id = await database.fetchval(
        "INSERT INTO users (name, issuer, subject, is_admin) VALUES ('X', 'https://issuer.example', $1, TRUE)"
        " RETURNING id",
        "\x1b[31m" + random_id(),
    )
    listed = await secureblogs("admin", "list", **environ)
    assert str(user_id) in listed.out
    assert "\x1b" not in listed.out
    with pytest.raises(UserNotFound):
        await administration.find("\x1b[31m")
    await administration.revoke(None, user_id)


async def test_disabled_administrator_does_nothing(server: str, root: Person, bob: Person) -> None:
    await administration.grant(None, bob.id)
    await disable(root, bob.id)
    assert code(await bob.post(f"/admin/users/{root.id}/disable")) == (401, "unauthenticated")
    assert await is_shown_as_admin(root, bob)


async def is_shown_as_admin(root: Person, someone: Person) -> bool:
    answer = await root.client.get("/admin/users", params={"email": someone.user["email"]})
    return bool(good(answer)["items"][0]["is_admin"])
