"""Read requests over HTTP: who may ask, who may decide, what a decision does, and when a request ends by itself."""

import asyncio
import base64
from collections import Counter
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from server import database
from server.sealing import keys as sealing_keys
from server.sealing.encoding import encode_base64
from tests.conftest import lasting
from tests.people import Person, all_pages, code, good, person, random_id

REQUEST_FIELDS = {
    *("id", "post_id", "group_id", "requester_id", "requester_name", "public_key_id", "public_key", "verify_key"),
    *("fingerprint", "status", "created_at", "decided_at", "decided_by"),
}
ANY_SEALED_KEY = {"sealed_key": encode_base64(bytes(80))}
alice = lasting("Alice")
bob = lasting("Bob")
carol = lasting("Carol")
dave = lasting("Dave")
stranger = lasting("Mallory")


class Story(NamedTuple):
    """A group, a post in it that is older than the latecomer's membership, and nothing asked yet."""

    group_id: str
    post: dict[str, Any]

    @property
    def post_id(self) -> str:
        return str(self.post["id"])


async def begin(author: Person, latecomer: Person, *readers: Person) -> Story:
    group_id = await author.found_group(*readers)
    post = await author.publish(group_id, "The key", "is under the mat")
    await author.add(group_id, latecomer)
    return Story(group_id, post)


async def status(someone: Person, request: dict[str, Any]) -> str:
    return str(good(await someone.get(f"/read-requests/{request['id']}"))["status"])


async def to_decide(someone: Person, status: str = "pending") -> set[str]:
    return {item["id"] for item in await all_pages(someone, f"/read-requests?role=decider&status={status}", 100)}


async def holders(post_id: str) -> set[UUID]:
    rows = await database.fetch(
        'SELECT k."user" FROM post_keys p JOIN user_keys k ON k.id = p.public_key WHERE p.post = $1', post_id
    )
    return {row["user"] for row in rows}


# ------------------------------------------------------------------------------------------------------ asking


async def test_request_names_who_asks_and_with_which_key(alice: Person, carol: Person) -> None:
    story = await begin(alice, carol)
    request = await carol.ask(story.post_id)
    device = carol.devices[0]
    assert request.keys() == REQUEST_FIELDS
    assert request | {"id": None, "created_at": None} == {
        "id": None,
        "post_id": story.post_id,
        "group_id": story.group_id,
        "requester_id": str(carol.id),
        "requester_name": "Carol",
        "public_key_id": device.id,
        "public_key": encode_base64(device.encryption.public),
        "verify_key": encode_base64(device.signing.public),
        "fingerprint": sealing_keys.fingerprint(carol.id, device.encryption.public, device.signing.public),
        "status": "pending",
        "created_at": None,
        "decided_at": None,
        "decided_by": None,
    }
    for someone in (alice, carol):
        assert good(await someone.get(f"/read-requests/{request['id']}")) == request


async def test_others_know_nothing_of_a_request(alice: Person, bob: Person, carol: Person, stranger: Person) -> None:
    story = await begin(alice, carol, bob)
    request = await carol.ask(story.post_id)
    for other in (bob, stranger):
        assert code(await other.get(f"/read-requests/{request['id']}")) == (404, "read_request_not_found")
        assert code(await other.delete(f"/read-requests/{request['id']}")) == (404, "read_request_not_found")
        for role in ("decider", "requester"):
            listed = good(await other.get(f"/read-requests?role={role}"))["items"]
            assert request["id"] not in {item["id"] for item in listed}


async def test_asking_again_with_the_same_key_is_the_same_request(server: str, alice: Person) -> None:
    async with person(server, "Carol") as carol:
        story = await begin(alice, carol)
        request = await carol.ask(story.post_id)
        path, old = f"/posts/{story.post_id}/request_read", carol.devices[0]
        for body in (None, {}, {"public_key_id": None}, {"public_key_id": old.id}, {"public_key_id": old.id.upper()}):
            assert good(await carol.post(path, body), 200) == request
        new = await carol.enrol("phone")
        assert good(await carol.post(path, {"public_key_id": old.id}), 200) == request
        for body in (None, {"public_key_id": new.id}):
            answer = await carol.post(path, body)
            assert code(answer) == (409, "already_requested")
            assert answer.json()["request_id"] == request["id"]
        assert (await carol.delete(f"/read-requests/{request['id']}")).status_code == 204
        assert (await carol.ask(story.post_id))["public_key_id"] == new.id, "the newest"


async def test_fifty_questions_at_once_are_one(alice: Person, carol: Person) -> None:
    story = await begin(alice, carol)
    answers = await asyncio.gather(*(carol.post(f"/posts/{story.post_id}/request_read") for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_question_that_makes_no_sense_is_refused(
    server: str, alice: Person, stranger: Person, database_pool: None
) -> None:
    async with person(server, "Carol") as carol:
        story = await begin(alice, carol)
        path, device = f"/posts/{story.post_id}/request_read", carol.devices[0]
        assert code(await alice.post(path)) == (409, "already_readable")
        for key_id in (alice.devices[0].id, random_id()):
            assert code(await carol.post(path, {"public_key_id": key_id})) == (404, "key_not_found")
        misfits: list[Any] = [{"public_key_id": "x"}, {"public_key_id": 1}, {"key": device.id}, [], "x"]
        for misfit in misfits:
            assert code(await carol.post(path, misfit)) == (422, "invalid"), misfit
            assert code(await stranger.post(path, misfit)) == (404, "post_not_found"), misfit
        assert code(await stranger.post(path)) == (404, "post_not_found")
        assert code(await carol.post("/posts/no-uuid/request_read")) == (404, "post_not_found")

        for status, failure in (("pending", None), ("failed", "draft_unreadable")):
            post_id = await database.fetchval(
                'INSERT INTO posts ("group", author, status, sealed_by, draft, request_mac, failure, created_at)'
                " VALUES ($1, $2, $3, 'server', 'x', 'x', $4, now() + interval '1 hour') RETURNING id",
                *(story.group_id, alice.id, status, failure),
            )
            assert code(await carol.post(f"/posts/{post_id}/request_read")) == (409, "not_sealed")

        assert (await carol.delete(f"/keys/{device.id}")).status_code == 204
        for body in (None, {"public_key_id": device.id}):
            assert code(await carol.post(path, body)) == (409, "no_key")


async def test_who_lost_its_key_asks_with_a_new_one(server: str, alice: Person) -> None:
    async with person(server, "Bob") as bob:
        group_id = await alice.found_group(bob)
        post = await alice.publish(group_id, "The key", "is under the mat")
        assert (await bob.delete(f"/keys/{bob.devices[0].id}")).status_code == 204
        assert await bob.access(post["id"]) == "no_key"
        new = await bob.enrol("new laptop")
        assert await bob.access(post["id"]) == "key_revoked"
        await alice.approve(post, await bob.ask(post["id"]))
        bob.devices = [new]
        assert bob.open(good(await bob.get(f"/posts/{post['id']}"))) == ("The key", "is under the mat")


# ---------------------------------------------------------------------------------------------------- deciders


async def assert_deciders(request: dict[str, Any], deciders: list[Person], others: list[Person]) -> None:
    """By all that tells: lists, single requests, and what is answered to a decision that does not fit."""
    path = f"/read-requests/{request['id']}"
    for someone in deciders:
        assert request["id"] in await to_decide(someone), someone.user["name"]
        assert good(await someone.get(path))["id"] == request["id"]
        assert code(await someone.post(f"{path}/approve", {"sealed_key": "AA=="})) == (422, "invalid")
    for someone in others:
        assert request["id"] not in await to_decide(someone), someone.user["name"]
        assert code(await someone.get(path)) == (404, "read_request_not_found")
        for body in (ANY_SEALED_KEY, {"sealed_key": "AA=="}, {}):
            assert code(await someone.post(f"{path}/approve", body)) == (403, "not_decider")
        assert code(await someone.post(f"{path}/deny")) == (403, "not_decider")


async def test_author_and_owners_who_hold_the_key_decide(
    alice: Person, bob: Person, carol: Person, dave: Person
) -> None:
    group_id = await alice.found_group(bob, dave)
    post = await bob.publish(group_id)
    await alice.add(group_id, carol)
    request = await carol.ask(post["id"])
    await assert_deciders(request, [alice, bob], [dave])
    good(await alice.patch(f"/groups/{group_id}/members/{dave.id}", {"role": "owner"}))
    await assert_deciders(request, [alice, bob, dave], [])


async def test_owner_who_does_not_hold_the_key_decides_nothing(
    alice: Person, bob: Person, carol: Person, dave: Person
) -> None:
    story = await begin(alice, carol, bob)
    await alice.add(story.group_id, dave, role="owner")
    request = await carol.ask(story.post_id)
    await assert_deciders(request, [alice], [bob, dave])


async def test_author_alone_decides_where_no_owner_holds_the_key(
    server: str, bob: Person, carol: Person, dave: Person
) -> None:
    async with person(server, "Alice", keys=0) as alice:
        group_id = await alice.found_group(bob, dave)
        post = await bob.publish(group_id)
        await alice.add(group_id, carol)
        await assert_deciders(await carol.ask(post["id"]), [bob], [alice, dave])


async def test_request_of_an_owner_stays_in_sight_of_all_who_could_decide_it(
    server: str, bob: Person, dave: Person
) -> None:
    async with person(server, "Alice") as alice, person(server, "Carol") as carol:
        story = await begin(alice, carol, bob, dave)
        good(await alice.patch(f"/groups/{story.group_id}/members/{carol.id}", {"role": "owner"}))
        assert (await alice.delete(f"/groups/{story.group_id}/members/{alice.id}")).status_code == 204
        request = await carol.ask(story.post_id)
        await assert_deciders(request, [bob, dave], [])
        await bob.approve(good(await bob.get(f"/posts/{story.post_id}")), request)
        # By now the one who asked is an owner who holds the key, and yet decides nothing of its own.
        for holder in (bob, dave):
            assert await status(holder, request) == "approved"
            assert code(await holder.post(f"/read-requests/{request['id']}/deny")) == (409, "already_decided")


async def test_owners_decide_for_an_author_who_has_gone(
    alice: Person, bob: Person, carol: Person, dave: Person
) -> None:
    group_id = await alice.found_group(bob, dave)
    post = await bob.publish(group_id)
    await alice.add(group_id, carol)
    request = await carol.ask(post["id"])
    assert (await bob.delete(f"/groups/{group_id}/members/{bob.id}")).status_code == 204
    await assert_deciders(request, [alice], [dave])
    assert code(await bob.post(f"/read-requests/{request['id']}/deny")) == (404, "read_request_not_found")


async def test_everyone_who_holds_the_key_decides_where_neither_author_nor_owner_does(
    server: str, bob: Person, carol: Person, dave: Person
) -> None:
    async with person(server, "Alice") as alice:
        story = await begin(alice, carol, bob)
        await alice.add(story.group_id, dave)
        request = await carol.ask(story.post_id)
        await assert_deciders(request, [alice], [bob, dave])
        assert (await alice.delete(f"/keys/{alice.devices[0].id}")).status_code == 204
        await assert_deciders(request, [bob], [alice, dave])
        assert (await carol.delete(f"/read-requests/{request['id']}")).status_code == 204
        alice.devices = [await alice.enrol("new laptop")]
        # The author now asks like anybody else, and does not decide for itself.
        own = await alice.ask(story.post_id)
        await assert_deciders(own, [bob], [carol, dave])
        assert own["id"] not in await to_decide(alice)
        await bob.approve(good(await bob.get(f"/posts/{story.post_id}")), own)
        await assert_deciders(await carol.ask(story.post_id), [alice], [bob, dave])


async def test_disabled_author_holds_nothing_up(
    server: str, bob: Person, carol: Person, dave: Person, database_pool: None
) -> None:
    async with person(server, "Alice") as alice:
        story = await begin(alice, carol, bob)
        request = await carol.ask(story.post_id)
        await database.execute("UPDATE users SET disabled_at = now() WHERE id = $1", alice.id)
        await assert_deciders(request, [bob], [])


async def test_nobody_decides_its_own_request(alice: Person, carol: Person) -> None:
    story = await begin(alice, carol)
    request = await carol.ask(story.post_id)
    path = f"/read-requests/{request['id']}"
    for body in (ANY_SEALED_KEY, {}):
        assert code(await carol.post(f"{path}/approve", body)) == (403, "own_request")
    assert code(await carol.post(f"{path}/deny")) == (403, "own_request")
    good(await alice.patch(f"/groups/{story.group_id}/members/{carol.id}", {"role": "owner"}))
    assert code(await carol.post(f"{path}/deny")) == (403, "own_request")
    assert request["id"] not in await to_decide(carol)


# --------------------------------------------------------------------------------------------------- decisions


async def test_approved_requester_reads(alice: Person, carol: Person) -> None:
    story = await begin(alice, carol)
    request = await carol.ask(story.post_id)
    approved = await alice.approve(story.post, request)
    assert approved == request | {
        "status": "approved",
        "decided_by": str(alice.id),
        "decided_at": approved["decided_at"],
    }
    assert approved["decided_at"] > request["created_at"]
    seen = good(await carol.get(f"/posts/{story.post_id}"))
    assert seen["access"] == "readable"
    assert carol.open(seen) == ("The key", "is under the mat")
    assert code(await carol.post(f"/posts/{story.post_id}/request_read")) == (409, "already_readable")


async def test_decision_is_made_once(alice: Person, carol: Person) -> None:
    story = await begin(alice, carol)
    for verb, other in (("deny", "approve"), ("approve", "deny")):
        request = await carol.ask(story.post_id)
        path = f"/read-requests/{request['id']}"
        good(await alice.post(f"{path}/{verb}", ANY_SEALED_KEY if verb == "approve" else None))
        decided = good(await alice.get(path))
        for again in (verb, other):
            answer = await alice.post(f"{path}/{again}", ANY_SEALED_KEY if again == "approve" else None)
            assert code(answer) == (409, "already_decided")
        assert code(await alice.post(f"{path}/approve", {"sealed_key": "AA=="})) == (422, "invalid"), "422 before 409"
        assert good(await carol.get(path)) == decided
        await database.execute(
            "UPDATE read_post_request SET decided_at = now() - interval '2 d' WHERE id = $1", request["id"]
        )


async def test_grant_that_is_no_sealed_key_is_refused(alice: Person, carol: Person) -> None:
    story = await begin(alice, carol)
    path = f"/read-requests/{(await carol.ask(story.post_id))['id']}/approve"
    for body in (
        *({"sealed_key": encode_base64(bytes(size))} for size in (0, 79, 81)),
        {"sealed_key": encode_base64(bytes(80)).rstrip("=")},
        {"sealed_key": base64.urlsafe_b64encode(b"\xff" * 80).decode()},
        *({"sealed_key": 1}, {}, ANY_SEALED_KEY | {"more": 1}, []),
    ):
        answer = await alice.post(path, body)
        assert code(answer) == (422, "invalid"), body
    assert await carol.access(story.post_id) == "requested"


async def test_denied_requester_may_ask_again_after_a_day(alice: Person, carol: Person) -> None:
    story = await begin(alice, carol)
    request = await carol.ask(story.post_id)
    denied = good(await alice.post(f"/read-requests/{request['id']}/deny"))
    assert (denied["status"], denied["decided_by"]) == ("denied", str(alice.id))
    assert await carol.access(story.post_id) == "denied"
    path = f"/posts/{story.post_id}/request_read"
    refused = await carol.post(path)
    assert code(refused) == (409, "recently_denied")
    waited = datetime.fromisoformat(refused.json()["retry_at"]) - datetime.fromisoformat(denied["decided_at"])
    assert waited == timedelta(days=1)
    for age, expected in (("23:59:50", 409), ("24:00:01", 201)):
        await database.execute(
            "UPDATE read_post_request SET decided_at = now() - $2::text::interval WHERE id = $1", request["id"], age
        )
        assert (await carol.post(path)).status_code == expected, age
    assert await carol.access(story.post_id) == "requested"


async def test_of_a_hundred_decisions_at_once_one_counts(
    alice: Person, bob: Person, carol: Person, database_pool: None
) -> None:
    group_id = await alice.found_group(bob)
    post = await bob.publish(group_id)
    await alice.add(group_id, carol)
    winners: Counter[str] = Counter()
    for begin_with in ("approve", "deny"):
        request = await carol.ask(post["id"])
        path = f"/read-requests/{request['id']}"
        grant = bob.reseal(post, request)

        async def decide(number: int, path: str = path, grant: Any = grant, begin_with: str = begin_with) -> str:
            verb = begin_with if number % 2 == 0 else {"approve": "deny", "deny": "approve"}[begin_with]
            decider = (alice, bob)[number // 2 % 2]
            answer = await decider.post(f"{path}/{verb}", grant if verb == "approve" else None)
            if answer.status_code != 200:
                assert code(answer) == (409, "already_decided")
                return "late"
            return str(answer.json()["status"])

        outcomes = Counter(await asyncio.gather(*(decide(number) for number in range(100))))
        assert outcomes.pop("late") == 99
        [winner] = outcomes
        winners[winner] += 1
        assert await status(carol, request) == winner
        assert (carol.id in await holders(post["id"])) == (winner == "approved")
        if winner == "approved":
            assert (await carol.delete(path)).status_code == 204
        else:
            await database.execute(
                "UPDATE read_post_request SET decided_at = now() - interval '2 d' WHERE id = $1", request["id"]
            )
    assert winners.total() == 2


# ---------------------------------------------------------------------------------- withdrawing and giving back


async def test_requester_withdraws_and_asks_again(alice: Person, carol: Person, stranger: Person) -> None:
    story = await begin(alice, carol)
    request = await carol.ask(story.post_id)
    path = f"/read-requests/{request['id']}"
    for other in (alice, stranger):
        assert code(await other.delete(path)) == (404, "read_request_not_found")
    assert (await carol.delete(path)).status_code == 204
    cancelled = good(await carol.get(path))
    assert (cancelled["status"], cancelled["decided_by"]) == ("cancelled", None)
    assert cancelled["decided_at"] is not None
    assert await carol.access(story.post_id) == "not_granted"
    assert code(await carol.delete(path)) == (409, "already_decided")
    assert code(await alice.post(f"{path}/approve", alice.reseal(story.post, request))) == (409, "already_decided")
    assert code(await alice.post(f"{path}/deny")) == (409, "already_decided")
    assert (await carol.ask(story.post_id))["id"] != request["id"]


async def test_requester_gives_back_a_grant_that_does_not_open_the_post(alice: Person, carol: Person) -> None:
    story = await begin(alice, carol)
    request = await carol.ask(story.post_id)
    path = f"/read-requests/{request['id']}"
    good(await alice.post(f"{path}/approve", ANY_SEALED_KEY))
    assert await carol.access(story.post_id) == "readable", "the server can't tell"
    for other in (alice,):
        assert code(await other.delete(path)) == (404, "read_request_not_found")
    assert (await carol.delete(path)).status_code == 204
    returned = good(await carol.get(path))
    assert (returned["status"], returned["decided_by"]) == ("returned", str(alice.id))
    seen = good(await carol.get(f"/posts/{story.post_id}"))
    assert (seen["access"], seen["sealed_keys"]) == ("not_granted", [])
    assert code(await carol.delete(path)) == (409, "already_decided")
    await alice.approve(story.post, await carol.ask(story.post_id))
    assert carol.open(good(await carol.get(f"/posts/{story.post_id}"))) == ("The key", "is under the mat")


async def test_giving_back_takes_only_the_key_that_the_approval_brought(server: str, alice: Person) -> None:
    async with person(server, "Carol") as carol:
        story = await begin(alice, carol)
        request = await carol.ask(story.post_id)
        await alice.approve(story.post, request)
        seen = good(await carol.get(f"/posts/{story.post_id}"))
        phone = await carol.enrol("phone")
        own = carol.reseal(seen, {"public_key": encode_base64(phone.encryption.public)})
        body = {"sealed_keys": [own | {"public_key_id": phone.id}]}
        good(await carol.post(f"/posts/{story.post_id}/keys", body), 201)
        assert (await carol.delete(f"/read-requests/{request['id']}")).status_code == 204
        seen = good(await carol.get(f"/posts/{story.post_id}"))
        assert [key["public_key_id"] for key in seen["sealed_keys"]] == [phone.id]
        assert carol.open(seen) == ("The key", "is under the mat")


async def test_denied_request_can_not_be_given_back(alice: Person, carol: Person) -> None:
    story = await begin(alice, carol)
    request = await carol.ask(story.post_id)
    good(await alice.post(f"/read-requests/{request['id']}/deny"))
    assert code(await carol.delete(f"/read-requests/{request['id']}")) == (409, "already_decided")
    assert await carol.access(story.post_id) == "denied"


# --------------------------------------------------------------------------------- what ends a request by itself


async def test_revoking_the_key_cancels_what_was_asked_with_it(server: str, alice: Person) -> None:
    async with person(server, "Carol", keys=2) as carol:
        first, second = await begin(alice, carol), await begin(alice, carol)
        old, new = carol.devices
        doomed = good(await carol.post(f"/posts/{first.post_id}/request_read", {"public_key_id": old.id}), 201)
        kept = await carol.ask(second.post_id)
        assert kept["public_key_id"] == new.id
        assert (await carol.delete(f"/keys/{old.id}")).status_code == 204
        assert (await status(carol, doomed), await status(carol, kept)) == ("cancelled", "pending")
        grant = alice.reseal(first.post, doomed)
        assert code(await alice.post(f"/read-requests/{doomed['id']}/approve", grant)) == (409, "already_decided")
        assert await holders(first.post_id) == {alice.id}
        assert (await carol.ask(first.post_id))["public_key_id"] == new.id


async def test_removal_cancels_what_the_member_asked_in_that_group(alice: Person, carol: Person) -> None:
    first, second = await begin(alice, carol), await begin(alice, carol)
    doomed, kept = await carol.ask(first.post_id), await carol.ask(second.post_id)
    assert (await alice.delete(f"/groups/{first.group_id}/members/{carol.id}")).status_code == 204
    assert (await status(alice, doomed), await status(alice, kept)) == ("cancelled", "pending")
    assert code(await carol.get(f"/read-requests/{doomed['id']}")) == (404, "read_request_not_found")
    own = {item["id"] for item in await all_pages(carol, "/read-requests?role=requester", 100)}
    assert kept["id"] in own
    assert doomed["id"] not in own
    grant = alice.reseal(first.post, doomed)
    assert code(await alice.post(f"/read-requests/{doomed['id']}/approve", grant)) == (409, "already_decided")
    await alice.add(first.group_id, carol)
    assert await carol.access(first.post_id) == "not_granted"
    assert (await carol.ask(first.post_id))["id"] != doomed["id"]


async def test_post_takes_its_requests_along(alice: Person, carol: Person) -> None:
    story = await begin(alice, carol)
    request = await carol.ask(story.post_id)
    assert (await alice.delete(f"/posts/{story.post_id}")).status_code == 204
    for someone in (alice, carol):
        assert code(await someone.get(f"/read-requests/{request['id']}")) == (404, "read_request_not_found")
    for verb in ("approve", "deny"):
        answer = await alice.post(
            f"/read-requests/{request['id']}/{verb}", ANY_SEALED_KEY if verb == "approve" else None
        )
        assert code(answer) == (404, "read_request_not_found")


# ------------------------------------------------------------------------------------------------------- lists


async def test_lists_tell_what_one_may_decide_and_what_one_asked(alice: Person, bob: Person, carol: Person) -> None:
    stories = [await begin(alice, carol, bob) for _ in range(5)]
    asked = [await carol.ask(story.post_id) for story in stories]
    pending, approved, denied, returned, cancelled = asked
    await alice.approve(stories[1].post, approved)
    good(await alice.post(f"/read-requests/{denied['id']}/deny"))
    await alice.approve(stories[3].post, returned)
    for request in (returned, cancelled):
        assert (await carol.delete(f"/read-requests/{request['id']}")).status_code == 204
    by_status = {
        "pending": pending,
        "approved": approved,
        "denied": denied,
        "returned": returned,
        "cancelled": cancelled,
    }
    ids = {request["id"] for request in asked}
    for someone, role in ((alice, "decider"), (carol, "requester")):
        for name, request in by_status.items():
            listed = await all_pages(someone, f"/read-requests?role={role}&status={name}", 100)
            assert {item["status"] for item in listed} <= {name}
            assert {item["id"] for item in listed} & ids == {request["id"]}
        everything = await all_pages(someone, f"/read-requests?role={role}", 2)
        order = [(item["created_at"], UUID(item["id"])) for item in everything]
        assert order == sorted(order, reverse=True)
        assert ids <= {item["id"] for item in everything}
        assert {frozenset(item) for item in everything} == {frozenset(REQUEST_FIELDS)}
    assert not ids & {item["id"] for item in await all_pages(bob, "/read-requests?role=decider", 100)}


async def test_more_than_a_hundred_requests_are_listed_once(server: str, alice: Person, database_pool: None) -> None:
    async with person(server, "Bob") as bob, person(server, "Carol") as carol:
        story = await begin(bob, carol)
        expected = await ask_often(story, carol, 130)
        for limit in (100, 50, 9):
            for someone, role in ((bob, "decider"), (carol, "requester")):
                listed = await all_pages(someone, f"/read-requests?role={role}&status=pending", limit)
                assert [item["id"] for item in listed] == expected, (limit, role)
        assert await to_decide(alice) & set(expected) == set()


async def ask_often(story: Story, requester: Person, count: int) -> list[str]:
    """As many sealed posts, with a pending request for each; the newest first, three of the same time."""
    rows = await database.fetch(
        """
        WITH copies AS (
            INSERT INTO posts ("group", author, status, sealed_by, heading, content, content_hash, commitment,
                request_mac, sealed_at)
            SELECT p."group", author, status, sealed_by, heading, content, content_hash, commitment, 'x', sealed_at
            FROM posts p, generate_series(1, $3) WHERE p.id = $1 RETURNING id, "group"
        ), sealed AS (
            INSERT INTO post_keys (post, public_key, encrypted_key)
            SELECT c.id, k.public_key, k.encrypted_key FROM copies c, post_keys k WHERE k.post = $1
        )
        INSERT INTO read_post_request (post, "group", "user", public_key, status, created_at)
        SELECT c.id, c."group", $2, $4, 'pending', now() + row_number() OVER () / 3 * interval '1 ms' FROM copies c
        RETURNING id, created_at
        """,
        *(story.post_id, requester.id, count, requester.devices[0].id),
    )
    return [str(row["id"]) for row in sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=True)]


@pytest.mark.parametrize(
    "query",
    [
        *("", "status=pending", "role=", "role=author", "role=decider&status=", "role=decider&status=open"),
        *("role=requester&limit=0", "role=requester&cursor=x", "role=requester&post_id=x", "role=Decider"),
    ],
)
async def test_query_that_means_nothing_is_refused(alice: Person, query: str) -> None:
    answer = await alice.get(f"/read-requests?{query}")
    assert code(answer) == (422, "invalid")
    assert answer.json()["errors"][0]["pointer"].startswith("?")
