"""Groups and their members: who may what, who is told what, and that there always is an owner."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import uuid_utils.compat

from server import database
from tests.people import PASSWORD, Person, all_pages, code, good, person, random_id


@pytest.fixture(scope="module")
async def people(server: str) -> AsyncIterator[list[Person]]:
    """They found groups of their own in each test; who is changed in other ways is somebody else."""
    async with AsyncExitStack() as stack:
        names = ("Alice", "Bob", "Carol", "Dora")
        yield [await stack.enter_async_context(person(server, name)) for name in names]


@pytest.fixture
def alice(people: list[Person]) -> Person:
    return people[0]


@pytest.fixture
def bob(people: list[Person]) -> Person:
    return people[1]


@pytest.fixture
def carol(people: list[Person]) -> Person:
    return people[2]


@pytest.fixture
def dora(people: list[Person]) -> Person:
    """She is in no group, ever."""
    return people[3]


@pytest.fixture
async def newcomer(server: str) -> AsyncIterator[Person]:
    async with person(server, "Nina", keys=0) as someone:
        yield someone


def new_id() -> str:
    return str(uuid_utils.compat.uuid7())


def wrong(answer: httpx.Response) -> list[str]:
    assert code(answer) == (422, "invalid")
    return [error["pointer"] for error in answer.json()["errors"]]


def gone(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.content) == (204, b"")


async def roles(someone: Person, group_id: str) -> dict[str, str]:
    return {member["name"]: member["role"] for member in await all_pages(someone, f"/groups/{group_id}/members", 100)}


# ------------------------------------------------------------------------------------------------ groups


async def test_founder_is_owner(alice: Person) -> None:
    group = good(await alice.post("/groups", {"name": "Friends"}), 201)
    assert list(group) == ["id", "name", "role", "created_by", "created_at"]
    assert (group["name"], group["role"], group["created_by"]) == ("Friends", "owner", str(alice.id))
    assert uuid.UUID(group["id"]).version == 7
    assert good(await alice.get(f"/groups/{group['id'].upper()}")) == group
    assert good(await alice.get("/groups"))["items"][0] == group
    assert await roles(alice, group["id"]) == {"Alice": "owner"}


async def test_role_is_the_callers(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    assert good(await alice.get(f"/groups/{group_id}"))["role"] == "owner"
    assert good(await bob.get(f"/groups/{group_id}"))["role"] == "member"
    for someone, role in ((alice, "owner"), (bob, "member")):
        newest = good(await someone.get("/groups?limit=1"))["items"][0]
        assert (newest["id"], newest["role"]) == (group_id, role)


async def test_owner_renames(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    renamed = good(await alice.patch(f"/groups/{group_id}", {"name": "🔑" * 100}))
    assert renamed["name"] == "🔑" * 100
    assert good(await alice.get(f"/groups/{group_id}")) == renamed
    assert code(await bob.patch(f"/groups/{group_id}", {"name": "Mine"})) == (403, "not_owner")
    assert good(await bob.get(f"/groups/{group_id}"))["name"] == "🔑" * 100


@pytest.mark.parametrize("name", ["", "x" * 101, None, 1, 10**40, ["x"], {"name": "x"}])
async def test_name_that_is_none_is_refused(alice: Person, name: Any) -> None:
    assert wrong(await alice.post("/groups", {"name": name})) == ["/name"]
    group_id = await alice.found_group()
    assert wrong(await alice.patch(f"/groups/{group_id}", {"name": name})) == ["/name"]


async def test_unknown_and_missing_fields_are_named(alice: Person) -> None:
    assert wrong(await alice.post("/groups", {})) == ["/name"]
    assert wrong(await alice.post("/groups", {"name": "x", "role": "owner"})) == ["/role"]
    group_id = await alice.found_group()
    assert wrong(await alice.patch(f"/groups/{group_id}", {"name": "x", "id": new_id()})) == ["/id"]
    assert wrong(await alice.patch(f"/groups/{group_id}", {})) == ["/name"]


# ------------------------------------------------------------------------------------------ trying again


async def test_same_request_with_the_same_id_is_the_same_group(alice: Person) -> None:
    body = {"name": "Friends", "id": new_id()}
    group = good(await alice.post("/groups", body), 201)
    assert group["id"] == body["id"]
    assert good(await alice.post("/groups", body), 200) == group
    assert good(await alice.post("/groups", {"name": "Friends", "id": body["id"].upper()}), 200) == group
    renamed = good(await alice.patch(f"/groups/{group['id']}", {"name": "Foes"}))
    assert good(await alice.post("/groups", body), 200) == renamed, "the group, as it now is"
    assert [group["id"] for group in await all_pages(alice, "/groups", 100)].count(body["id"]) == 1


async def test_id_of_another_request_is_taken(alice: Person, bob: Person) -> None:
    body = {"name": "Friends", "id": new_id()}
    good(await alice.post("/groups", body), 201)
    assert code(await alice.post("/groups", body | {"name": "Foes"})) == (409, "id_taken")
    assert code(await bob.post("/groups", body)) == (409, "id_taken")
    await alice.add(body["id"], bob)
    assert code(await bob.post("/groups", body)) == (409, "id_taken")


async def test_id_of_a_deleted_group_stays_taken(alice: Person, bob: Person) -> None:
    body = {"name": "Friends", "id": new_id()}
    good(await alice.post("/groups", body), 201)
    gone(await alice.delete(f"/groups/{body['id']}"))
    for someone in (alice, bob):
        assert code(await someone.post("/groups", body)) == (409, "id_taken")
    assert code(await alice.get(f"/groups/{body['id']}")) == (404, "group_not_found")


async def test_founder_who_left_does_not_come_back_by_trying_again(alice: Person, bob: Person) -> None:
    body = {"name": "Friends", "id": new_id()}
    good(await alice.post("/groups", body), 201)
    await alice.add(body["id"], bob, "owner")
    gone(await alice.delete(f"/groups/{body['id']}/members/{alice.id}"))
    assert code(await alice.post("/groups", body)) == (409, "id_taken")
    assert await roles(bob, body["id"]) == {"Bob": "owner"}


@pytest.mark.parametrize(
    "bad",
    [
        "5f0c1c5e-6c0e-4d57-9b0c-2f6f3c1f9a11",
        "2c7a4f8c-e676-11f1-b281-02fc00000001",
        "0" * 32,
        "x",
        "",
        7,
        str(uuid.UUID(int=0)),
    ],
)
async def test_id_is_a_uuid_of_version_7(alice: Person, bad: Any) -> None:
    assert wrong(await alice.post("/groups", {"name": "Friends", "id": bad})) == ["/id"]


async def test_fifty_tries_at_once_found_one_group(alice: Person) -> None:
    body = {"name": "Friends", "id": new_id()}
    answers = await asyncio.gather(*(alice.post("/groups", body) for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert len({answer.content for answer in answers}) == 1
    assert await roles(alice, body["id"]) == {"Alice": "owner"}


async def test_of_fifty_who_found_a_group_with_one_id_one_wins(alice: Person, bob: Person) -> None:
    group_id = new_id()
    answers = await asyncio.gather(
        *((alice, bob)[n % 2].post("/groups", {"name": f"N{n}", "id": group_id}) for n in range(50))
    )
    [winner] = [good(answer, 201) for answer in answers if answer.status_code == 201]
    assert [code(answer) for answer in answers if answer.status_code != 201] == [(409, "id_taken")] * 49
    owner, other = (alice, bob) if winner["created_by"] == str(alice.id) else (bob, alice)
    assert good(await owner.get(f"/groups/{group_id}")) == winner
    assert code(await other.get(f"/groups/{group_id}")) == (404, "group_not_found")


# ---------------------------------------------------------------------------------------------- strangers


async def test_group_is_not_there_for_strangers_and_former_members(alice: Person, bob: Person, dora: Person) -> None:
    group_id = await alice.found_group(bob)
    gone(await alice.delete(f"/groups/{group_id}/members/{bob.id}"))
    calls: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("PATCH", "", {"name": "Mine"}),
        ("PATCH", "", {"nonsense": 1}),
        ("DELETE", "", None),
        ("GET", "/members", None),
        ("GET", "/members?limit=0", None),
        ("GET", "/members?cursor=x", None),
        ("POST", "/members", {"user_id": str(dora.id)}),
        ("POST", "/members", {"email": dora.user["email"], "role": "owner"}),
        ("POST", "/members", {"user_id": random_id()}),
        ("POST", "/members", {}),
        ("POST", "/members", {"nonsense": 1}),
        ("PATCH", f"/members/{alice.id}", {"role": "member"}),
        ("PATCH", f"/members/{alice.id}", {"role": "king"}),
        ("PATCH", f"/members/{random_id()}", {"role": "member"}),
        ("PATCH", "/members/x", {"role": "member"}),
        ("DELETE", f"/members/{alice.id}", None),
        ("DELETE", f"/members/{dora.id}", None),
        ("DELETE", f"/members/{bob.id}", None),
        ("DELETE", "/members/x", None),
        ("GET", "/keys", None),
    ]
    bodies = set()
    for method, path, body in calls:
        for someone, group in ((bob, group_id), (dora, group_id), (dora, random_id()), (dora, "x"), (dora, "%00")):
            answer = await someone.client.request(method, f"/groups/{group}{path}", json=body)
            assert code(answer) == (404, "group_not_found"), (method, path, body)
            bodies.add(answer.content)
    assert len(bodies) == 1
    assert good(await dora.get("/groups")) == {"items": [], "next_cursor": None}
    assert not [group for group in await all_pages(bob, "/groups", 100) if group["id"] == group_id]
    assert await roles(alice, group_id) == {"Alice": "owner"}


# ------------------------------------------------------------------------------------------------ members


async def test_owner_adds_by_id_or_by_email(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group()
    added = good(await alice.post(f"/groups/{group_id}/members", {"user_id": str(bob.id).upper()}), 201)
    assert list(added) == ["user_id", "name", "role", "created_at", "email"]
    assert added | {"created_at": None} == {
        **{"user_id": str(bob.id), "name": "Bob", "role": "member", "created_at": None, "email": bob.user["email"]},
    }
    body = {"email": f" {carol.user['email'].upper()}", "role": "owner"}
    added = good(await alice.post(f"/groups/{group_id}/members", body), 201)
    assert (added["user_id"], added["role"]) == (str(carol.id), "owner")
    assert await roles(bob, group_id) == {"Alice": "owner", "Bob": "member", "Carol": "owner"}


async def test_owner_alone_adds(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob)
    for body in (
        {"user_id": str(carol.id)},
        {"user_id": str(alice.id)},
        {"user_id": random_id()},
        {"email": carol.user["email"]},
        {"user_id": 5},
        {},
    ):
        assert code(await bob.post(f"/groups/{group_id}/members", body)) == (403, "not_owner")
    assert await roles(bob, group_id) == {"Alice": "owner", "Bob": "member"}


async def test_who_is_not_there_is_not_added(alice: Person, newcomer: Person, database_pool: None) -> None:
    group_id = await alice.found_group()
    await database.execute("UPDATE users SET disabled_at = now() WHERE id = $1", newcomer.id)
    for body in (
        {"user_id": random_id()},
        {"email": "nobody@example.org"},
        {"email": "not an address"},
        {"user_id": str(newcomer.id)},
        {"email": newcomer.user["email"]},
    ):
        answer = await alice.post(f"/groups/{group_id}/members", body)
        assert code(answer) == (404, "user_not_found")
        assert answer.json()["detail"] == "There is no such user."


async def test_member_body_is_judged(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    path, bob_id = f"/groups/{group_id}/members", str(bob.id)
    assert wrong(await alice.post(path, {})) == [""]
    assert wrong(await alice.post(path, {"user_id": bob_id, "email": bob.user["email"]})) == [""]
    assert wrong(await alice.post(path, {"user_id": None, "email": None})) == [""]
    # 422 goes before 409: Bob is in the group.
    for role in ("king", "", None, 1, ["owner"]):
        assert wrong(await alice.post(path, {"user_id": bob_id, "role": role})) == ["/role"]
        assert wrong(await alice.patch(f"{path}/{bob_id}", {"role": role})) == ["/role"]
        assert wrong(await alice.patch(f"{path}/{alice.id}", {"role": role})) == ["/role"]
    assert wrong(await alice.post(path, {"user_id": "x"})) == ["/user_id"]
    assert wrong(await alice.post(path, {"email": "x" * 255})) == ["/email"]
    assert wrong(await alice.post(path, {"user_id": bob_id, "name": "Bob"})) == ["/name"]
    assert wrong(await alice.patch(f"{path}/{bob_id}", {})) == ["/role"]
    assert wrong(await alice.patch(f"{path}/{bob_id}", {"role": "owner", "name": "x"})) == ["/name"]


async def test_member_is_added_once(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    for body in ({"user_id": str(bob.id)}, {"email": bob.user["email"], "role": "owner"}, {"user_id": str(alice.id)}):
        assert code(await alice.post(f"/groups/{group_id}/members", body)) == (409, "already_member")
    assert await roles(alice, group_id) == {"Alice": "owner", "Bob": "member"}


async def test_of_fifty_additions_of_one_member_one_wins(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group()
    bodies = [{"user_id": str(bob.id)}, {"email": bob.user["email"]}] * 25
    answers = await asyncio.gather(*(alice.post(f"/groups/{group_id}/members", body) for body in bodies))
    assert [answer.status_code for answer in answers].count(201) == 1
    assert [code(answer) for answer in answers if answer.status_code != 201] == [(409, "already_member")] * 49
    assert await roles(alice, group_id) == {"Alice": "owner", "Bob": "member"}


async def test_email_is_for_owners_and_oneself(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob, carol)

    async def emails(someone: Person) -> dict[str, Any]:
        members = good(await someone.get(f"/groups/{group_id}/members"))["items"]
        return {member["name"]: member["email"] for member in members if "email" in member}

    everyone = {someone.user["name"]: someone.user["email"] for someone in (alice, bob, carol)}
    assert await emails(alice) == everyone
    assert await emails(bob) == {"Bob": bob.user["email"]}
    good(await alice.patch(f"/groups/{group_id}/members/{bob.id}", {"role": "owner"}))
    assert await emails(bob) == everyone


async def test_members_come_newest_first_and_in_pages(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob, carol)
    for limit in (1, 2, 3, 100):
        members = await all_pages(bob, f"/groups/{group_id}/members", limit)
        assert [member["name"] for member in members] == ["Carol", "Bob", "Alice"]


# -------------------------------------------------------------------------------------- roles and leaving


async def test_owner_changes_roles(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    changed = good(await alice.patch(f"/groups/{group_id}/members/{str(bob.id).upper()}", {"role": "owner"}))
    assert (changed["user_id"], changed["role"], changed["email"]) == (str(bob.id), "owner", bob.user["email"])
    good(await bob.patch(f"/groups/{group_id}/members/{alice.id}", {"role": "member"}))
    assert await roles(bob, group_id) == {"Alice": "member", "Bob": "owner"}
    assert code(await alice.patch(f"/groups/{group_id}", {"name": "Mine"})) == (403, "not_owner")
    assert code(await alice.delete(f"/groups/{group_id}")) == (403, "not_owner")


async def test_member_changes_no_role_not_even_its_own(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob, carol)
    for member_id in (alice.id, bob.id, carol.id, random_id(), "x"):
        answer = await bob.patch(f"/groups/{group_id}/members/{member_id}", {"role": "owner"})
        assert code(answer) == (403, "not_owner"), member_id
    assert code(await bob.patch(f"/groups/{group_id}/members/{bob.id}", {"role": "king"})) == (403, "not_owner")
    assert await roles(bob, group_id) == {"Alice": "owner", "Bob": "member", "Carol": "member"}


async def test_member_who_is_none_is_not_found(alice: Person, dora: Person) -> None:
    group_id = await alice.found_group()
    for member_id in (dora.id, random_id(), "x", "%00"):
        path = f"/groups/{group_id}/members/{member_id}"
        for answer in (await alice.patch(path, {"role": "owner"}), await alice.delete(path)):
            assert code(answer) == (404, "member_not_found")


async def test_anyone_leaves_and_owners_remove(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob, carol)
    assert code(await bob.delete(f"/groups/{group_id}/members/{carol.id}")) == (403, "not_owner")
    assert code(await bob.delete(f"/groups/{group_id}/members/{random_id()}")) == (403, "not_owner")
    gone(await bob.delete(f"/groups/{group_id}/members/{bob.id}"))
    assert code(await bob.get(f"/groups/{group_id}")) == (404, "group_not_found")
    assert code(await bob.delete(f"/groups/{group_id}/members/{bob.id}")) == (404, "group_not_found")
    gone(await alice.delete(f"/groups/{group_id}/members/{carol.id}"))
    assert code(await alice.delete(f"/groups/{group_id}/members/{carol.id}")) == (404, "member_not_found")
    assert await roles(alice, group_id) == {"Alice": "owner"}


async def test_last_owner_stays(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    own = f"/groups/{group_id}/members/{alice.id}"
    assert code(await alice.delete(own)) == (409, "last_owner")
    assert code(await alice.patch(own, {"role": "member"})) == (409, "last_owner")
    good(await alice.patch(own, {"role": "owner"}))
    gone(await alice.delete(f"/groups/{group_id}/members/{bob.id}"))
    assert code(await alice.delete(own)) == (409, "last_owner"), "alone in it, one deletes the group"
    gone(await alice.delete(f"/groups/{group_id}"))


@pytest.mark.parametrize("way", ["leave", "step down", "depose one another"])
async def test_of_owners_who_go_at_once_one_stays(alice: Person, bob: Person, way: str) -> None:
    for _ in range(5):
        group_id = await alice.found_group()
        await alice.add(group_id, bob, "owner")
        paths = [f"/groups/{group_id}/members/{someone.id}" for someone in (alice, bob)]
        if way == "leave":
            answers = await asyncio.gather(alice.delete(paths[0]), bob.delete(paths[1]))
        elif way == "step down":
            body = {"role": "member"}
            answers = await asyncio.gather(alice.patch(paths[0], body), bob.patch(paths[1], body))
        else:
            body = {"role": "member"}
            answers = await asyncio.gather(alice.patch(paths[1], body), bob.patch(paths[0], body))
        lost = [code(answer) for answer in answers if answer.status_code not in {200, 204}]
        # Whoever was deposed, or is gone, can't do the same to the other.
        assert lost == [(403, "not_owner") if way == "depose one another" else (409, "last_owner")]
        owner = alice if (await alice.get(f"/groups/{group_id}")).status_code == 200 else bob
        assert list((await roles(owner, group_id)).values()).count("owner") == 1


async def test_deleted_group_is_gone_with_all_in_it(alice: Person, bob: Person, database_pool: None) -> None:
    group_id = await alice.found_group(bob)
    post = await bob.publish(group_id)
    assert code(await bob.delete(f"/groups/{group_id}")) == (403, "not_owner")
    gone(await alice.delete(f"/groups/{group_id}"))
    for someone in (alice, bob):
        assert code(await someone.get(f"/posts/{post['id']}")) == (404, "post_not_found")
        assert code(await someone.get(f"/posts?group_id={group_id}")) == (404, "group_not_found")
        assert not [group for group in await all_pages(someone, "/groups", 100) if group["id"] == group_id]
    assert code(await alice.delete(f"/groups/{group_id}")) == (404, "group_not_found")
    left = await database.fetchval(
        'SELECT (SELECT count(*) FROM user_groups WHERE id = $1) + (SELECT count(*) FROM posts WHERE "group" = $1)'
        ' + (SELECT count(*) FROM user_group_association WHERE "group" = $1)',
        uuid.UUID(group_id),
    )
    assert left == 0


async def test_group_that_is_deleted_while_members_are_added_is_gone(alice: Person, bob: Person, carol: Person) -> None:
    for _ in range(3):
        group_id = await alice.found_group()
        add, delete = f"/groups/{group_id}/members", f"/groups/{group_id}"
        answers = await asyncio.gather(
            alice.post(add, {"user_id": str(bob.id)}),
            *(alice.delete(delete) for _ in range(3)),
            alice.post(add, {"user_id": str(carol.id)}),
            alice.patch(delete, {"name": "x"}),
        )
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(204) == 1
        assert set(statuses) <= {200, 201, 204, 404}
        assert code(await alice.get(delete)) == (404, "group_not_found")
        assert code(await bob.get(delete)) == (404, "group_not_found")


async def test_user_is_in_a_thousand_groups_at_most(alice: Person, newcomer: Person, database_pool: None) -> None:
    await database.execute(
        "WITH g AS (INSERT INTO user_groups (name, request_mac) SELECT 'x', '' FROM generate_series(1, 999)"
        ' RETURNING id) INSERT INTO user_group_association ("user", "group", role) SELECT $1, id, \'member\' FROM g',
        newcomer.id,
    )
    first, second = await alice.found_group(), await alice.found_group()
    good(await alice.post(f"/groups/{first}/members", {"user_id": str(newcomer.id)}), 201)
    assert wrong(await alice.post(f"/groups/{second}/members", {"user_id": str(newcomer.id)})) == [""]
    assert wrong(await newcomer.post("/groups", {"name": "One more"})) == [""]
    assert await roles(alice, second) == {"Alice": "owner"}, "nothing of it was done"


async def test_user_with_another_email_is_found_by_the_new_one(alice: Person, newcomer: Person) -> None:
    group_id, old = await alice.found_group(), newcomer.user["email"]
    good(await newcomer.patch("/me", {"email": f"new.{old}", "current_password": PASSWORD}))
    assert code(await alice.post(f"/groups/{group_id}/members", {"email": old})) == (404, "user_not_found")
    good(await alice.post(f"/groups/{group_id}/members", {"email": f"NEW.{old}"}), 201)
