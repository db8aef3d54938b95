"""Enrolling and revoking keys, and who sees them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import httpx
import pytest

from server import database
from server.sealing import keys as sealing_keys
from server.sealing.encoding import decode_base64, encode_base64
from tests.people import Device, Person, all_pages, code, good, person, random_id

P = 2**255 - 19
FIELDS = [
    *("id", "user_id", "public_key", "verify_key", "proof", "fingerprint", "endorsed_by", "endorsement", "label"),
    *("created_at", "revoked_at"),
]


@pytest.fixture(scope="module")
async def eve(server: str) -> AsyncIterator[Person]:
    """Of her attempts to enrol a key none succeeds."""
    async with person(server, "Eve", keys=0) as someone:
        yield someone
        assert good(await someone.get("/keys"))["items"] == []


def wrong(answer: httpx.Response, kind: str = "invalid") -> list[str]:
    """The pointers of an answer of 422 with this code."""
    assert code(answer) == (422, kind)
    return [error["pointer"] for error in answer.json()["errors"]]


def key_body(user_id: UUID, public_key: bytes, **changes: Any) -> dict[str, Any]:
    """A good body but for the changes; the proof is over this very public key."""
    signing = sealing_keys.new_signing_pair()
    body = {
        "public_key": encode_base64(public_key),
        "verify_key": encode_base64(signing.public),
        "proof": encode_base64(sealing_keys.prove(user_id, public_key, signing.private)),
        "label": "phone",
    }
    return body | changes


def endorsed_body(someone: Person, device: Device, by: Device) -> dict[str, str]:
    endorsement = sealing_keys.endorse(someone.id, device.encryption.public, device.signing.public, by.signing.private)
    return device.body() | {"endorsed_by": by.id, "endorsement": encode_base64(endorsement)}


# ---------------------------------------------------------------------------------------------- enrolling


async def test_enrolled_key_is_answered_whole(alice: Person) -> None:
    device = Device(alice.id)
    body = device.body("phone")
    key = good(await alice.post("/keys", body), 201)
    assert list(key) == FIELDS
    assert key.items() >= body.items()
    assert (key["user_id"], key["revoked_at"], key["endorsed_by"], key["endorsement"]) == (
        *(str(alice.id), None, None, None),
    )
    assert key["fingerprint"] == sealing_keys.fingerprint(alice.id, device.encryption.public, device.signing.public)
    sealing_keys.check_proof(alice.id, *(decode_base64(key[name]) for name in ("public_key", "verify_key", "proof")))
    assert good(await alice.get("/keys"))["items"][0] == key


@pytest.mark.parametrize(
    "number",
    [
        *(0, 1, P - 1),
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        # Not canonical: the same points, and others, in another way of writing them.
        *(P, P + 1, P + 9, 2**255 - 1, 2**255, 2**255 + 1, 2**255 + 9, 2**256 - 1),
    ],
)
async def test_key_that_nobody_should_be_sealed_to_is_invalid(eve: Person, number: int) -> None:
    body = key_body(eve.id, number.to_bytes(32, "little"))
    assert wrong(await eve.post("/keys", body), "invalid_key") == ["/public_key"]


@pytest.mark.parametrize("size", [0, 31, 33, 64])
async def test_key_of_another_size_is_invalid(eve: Person, size: int) -> None:
    key = encode_base64(secrets.token_bytes(size))
    assert wrong(await eve.post("/keys", Device(eve.id).body() | {"public_key": key}), "invalid_key") == ["/public_key"]
    for field in ("verify_key", "proof"):
        if size == 64 and field == "proof":
            continue
        assert wrong(await eve.post("/keys", Device(eve.id).body() | {field: key}), "bad_proof") == ["/proof"]


async def test_proof_must_be_of_this_very_user_and_keys(alice: Person, bob: Person) -> None:
    mine, other = Device(alice.id).body(), Device(alice.id).body()
    flipped = bytearray(decode_base64(mine["proof"]))
    flipped[0] ^= 1
    for body in (
        mine | {"proof": encode_base64(bytes(flipped))},
        mine | {"proof": other["proof"]},
        mine | {"verify_key": other["verify_key"]},
        mine | {"public_key": other["public_key"]},
        Device(bob.id).body(),
        mine | {"proof": encode_base64(bytes(64)), "verify_key": encode_base64(bytes(32))},
    ):
        assert wrong(await alice.post("/keys", body), "bad_proof") == ["/proof"]
    good(await alice.post("/keys", mine), 201)


def loose_bits(text: str) -> str:
    """The same bytes: of the last digit before the padding two bits count for nothing, and here they are not zero."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return text[:-2] + digits[digits.index(text[-2]) + 1] + "="


@pytest.mark.parametrize(
    "spoil",
    [
        loose_bits,
        *(lambda text: text.rstrip("="), lambda text: text + "=", lambda text: "=" + text),
        *(lambda text: text + "\n", lambda text: " " + text, lambda text: text[:20] + "\n" + text[20:]),
        *(lambda text: "_" + text[1:], lambda text: "é" + text[1:], lambda text: "\u202e" + text),
    ],
)
async def test_base64_is_canonical_or_invalid(eve: Person, spoil: Callable[[str], str]) -> None:
    body = Device(eve.id).body()
    for field in ("public_key", "verify_key"):
        assert wrong(await eve.post("/keys", body | {field: spoil(body[field])})) == [f"/{field}"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("label", value) for value in ("", "x" * 101, 5, None)),
        *(("public_key", value) for value in (5, None, [1], {"a": "b"}, 10**40, True)),
        *(("endorsed_by", value) for value in ("x", 5, "")),
        *(("endorsement", value) for value in ("x", 5)),
        *(("id", value) for value in ("019c14a5-2b3f-7b1e-9d5a-3f0c52a1b7e4",)),
    ],
)
async def test_what_does_not_fit_is_named(eve: Person, field: str, value: Any) -> None:
    body: dict[str, Any] = Device(eve.id).body()
    assert wrong(await eve.post("/keys", body | {field: value})) == [f"/{field}"]


async def test_public_key_is_enrolled_once_by_a_user_revoked_or_not(alice: Person, bob: Person) -> None:
    [device] = alice.devices
    # Another signing key, another label: it is the public key that counts.
    body = key_body(alice.id, device.encryption.public)
    assert code(await alice.post("/keys", body)) == (409, "key_taken")
    good(await bob.post("/keys", key_body(bob.id, device.encryption.public)), 201)
    assert (await alice.delete(f"/keys/{device.id}")).status_code == 204
    assert code(await alice.post("/keys", body)) == (409, "key_taken")
    assert code(await alice.post("/keys", device.body())) == (409, "key_taken")


async def test_of_fifty_enrolments_of_one_key_one_wins(alice: Person, bob: Person) -> None:
    await alice.found_group(bob)
    device = Device(alice.id)
    answers = await asyncio.gather(*(alice.post("/keys", device.body(f"n{n}")) for n in range(50)))
    [winner] = [good(answer, 201) for answer in answers if answer.status_code == 201]
    assert [code(answer) for answer in answers if answer.status_code != 201] == [(409, "key_taken")] * 49
    assert [key["id"] for key in good(await alice.get("/keys"))["items"]] == [winner["id"], alice.devices[0].id]


async def test_sixteen_keys_may_be_active(alice: Person) -> None:
    answers = await asyncio.gather(*(alice.post("/keys", Device(alice.id).body(f"n{n}")) for n in range(18)))
    kept = [good(answer, 201) for answer in answers if answer.status_code == 201]
    assert len(kept) == 15, "with the one that was there before"
    assert [wrong(answer) for answer in answers if answer.status_code != 201] == [["/public_key"]] * 3
    # A taken key is answered as such, whether there is room or not.
    assert code(await alice.post("/keys", alice.devices[0].body())) == (409, "key_taken")
    await alice.delete(f"/keys/{kept[0]['id']}")
    good(await alice.post("/keys", Device(alice.id).body()), 201)


# --------------------------------------------------------------------------------------------- endorsing


async def test_second_device_is_endorsed_by_the_first(alice: Person) -> None:
    [first] = alice.devices
    body = endorsed_body(alice, Device(alice.id), first)
    key = good(await alice.post("/keys", body | {"endorsed_by": first.id.upper()}), 201)
    assert (key["endorsed_by"], key["endorsement"]) == (first.id, body["endorsement"])
    assert good(await alice.get("/keys"))["items"][0] == key


async def test_endorsement_that_does_not_hold_is_a_bad_proof(alice: Person, bob: Person) -> None:
    [first], second = alice.devices, Device(alice.id)
    body = endorsed_body(alice, second, first)
    cases = {
        "/endorsement": [
            body | {"endorsement": encode_base64(bytes(64))},
            body | {"endorsement": encode_base64(bytes(63))},
            body | {"endorsement": body["proof"]},
            # of another key of the same user
            body | {"endorsement": endorsed_body(alice, Device(alice.id), first)["endorsement"]},
        ],
        "/endorsed_by": [
            body | {"endorsed_by": random_id()},
            # somebody else's key, though it signed
            endorsed_body(alice, second, bob.devices[0]),
        ],
    }
    for pointer, bodies in cases.items():
        for case in bodies:
            assert wrong(await alice.post("/keys", case), "bad_proof") == [pointer]
    for field in ("endorsed_by", "endorsement"):
        half = {name: value for name, value in body.items() if name != field}
        assert wrong(await alice.post("/keys", half)) == ["/endorsement"]
    assert len(good(await alice.get("/keys"))["items"]) == 1


async def test_revoked_key_endorses_nothing(alice: Person) -> None:
    [first] = alice.devices
    body = endorsed_body(alice, Device(alice.id), first)
    await alice.delete(f"/keys/{first.id}")
    assert wrong(await alice.post("/keys", body), "bad_proof") == ["/endorsed_by"]


async def test_key_that_is_revoked_while_it_endorses_does_so_before_or_not_at_all(alice: Person) -> None:
    [first] = alice.devices
    bodies = [endorsed_body(alice, Device(alice.id), first) for _ in range(10)]
    *answers, revoked = await asyncio.gather(
        *(alice.post("/keys", body) for body in bodies), alice.delete(f"/keys/{first.id}")
    )
    assert revoked.status_code == 204
    assert [wrong(answer, "bad_proof") for answer in answers if answer.status_code != 201] == [
        ["/endorsed_by"] for answer in answers if answer.status_code != 201
    ]
    keys = {key["id"]: key for key in good(await alice.get("/keys"))["items"]}
    ended = keys.pop(first.id)["revoked_at"]
    assert len(keys) == [answer.status_code for answer in answers].count(201)
    assert all(key["created_at"] <= ended for key in keys.values())


# ---------------------------------------------------------------------------------------------- revoking


async def test_revoked_key_stays_on_the_list_with_its_time(alice: Person) -> None:
    [first] = alice.devices
    second = await alice.enrol()
    assert (await alice.delete(f"/keys/{first.id}")).status_code == 204
    keys = good(await alice.get("/keys"))
    assert [key["id"] for key in keys["items"]] == [second.id, first.id]
    assert [key["revoked_at"] is None for key in keys["items"]] == [True, False]
    assert keys["items"][1] == first.key | {"revoked_at": keys["items"][1]["revoked_at"]}
    assert keys["next_cursor"] is None

    again = await alice.delete(f"/keys/{first.id.upper()}")
    assert (again.status_code, again.content) == (204, b"")
    assert good(await alice.get("/keys")) == keys


async def test_key_of_somebody_else_is_as_absent_as_any_other(alice: Person, bob: Person) -> None:
    await alice.found_group(bob)
    answers = [await alice.delete(f"/keys/{key}") for key in (bob.devices[0].id, random_id(), "x", "%00", str(bob.id))]
    assert {code(answer) for answer in answers} == {(404, "key_not_found")}
    assert len({answer.content for answer in answers}) == 1
    assert good(await bob.get("/keys"))["items"][0]["revoked_at"] is None


async def test_keys_come_and_go_while_others_post_and_ask(alice: Person, bob: Person) -> None:
    """Each of these locks users and groups; together they must not wait for one another in a circle."""
    groups = [await alice.found_group(bob), await bob.found_group(alice)]
    devices = [Device(who.id) for who in (alice, bob) for _ in range(5)]

    async def come_and_go(who: Person, device: Device) -> int:
        key = good(await who.post("/keys", device.body()), 201)
        return (await who.delete(f"/keys/{key['id']}")).status_code

    async def publish(who: Person, group_id: str) -> int:
        return (await who.post("/posts", {"group_id": group_id, "title": "t", "content": "c"})).status_code

    async def rejoin(owner: Person, member: Person, group_id: str) -> set[int]:
        gone = await owner.delete(f"/groups/{group_id}/members/{member.id}")
        back = await owner.post(f"/groups/{group_id}/members", {"user_id": str(member.id)})
        return {gone.status_code, back.status_code}

    results = await asyncio.gather(
        *(come_and_go(alice if device.user_id == alice.id else bob, device) for device in devices),
        *(publish(who, group_id) for who in (alice, bob) for group_id in groups for _ in range(6)),
        *(rejoin(alice, bob, groups[0]) for _ in range(1)),
    )
    revoked, published, rejoined = results[:10], results[10:-1], results[-1]
    assert set(revoked) == {204}
    # Bob is out of the first group for a moment.
    assert set(published) <= {201, 404}
    assert rejoined == {204, 201}


async def test_revoking_at_once_is_one_revocation(alice: Person) -> None:
    [device] = alice.devices
    answers = await asyncio.gather(*(alice.delete(f"/keys/{device.id}") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {204}


# ------------------------------------------------------------------------------------- who sees which keys


async def test_list_of_own_keys_comes_in_pages(alice: Person) -> None:
    for _ in range(4):
        await alice.enrol()
    await alice.delete(f"/keys/{alice.devices[2].id}")
    newest_first = [device.id for device in reversed(alice.devices)]
    for limit in (1, 2, 5, 100):
        assert [key["id"] for key in await all_pages(alice, "/keys", limit)] == newest_first


async def test_keys_of_somebody_one_has_nothing_to_do_with_are_not_there(server: str, alice: Person) -> None:
    async with person(server) as stranger:
        for path in (str(stranger.id), random_id(), "x", "%ff"):
            answer = await alice.get(f"/users/{path}/keys")
            assert code(answer) == (404, "user_not_found")
            assert answer.json()["detail"] == "There is no such user."


async def test_keys_of_oneself_and_of_fellow_members_are_seen_revoked_ones_too(alice: Person, bob: Person) -> None:
    await alice.found_group(bob)
    await bob.delete(f"/keys/{bob.devices[0].id}")
    await bob.enrol()
    seen = good(await alice.get(f"/users/{str(bob.id).upper()}/keys"))
    assert seen == {"id": str(bob.id), "name": "Bob", "keys": good(await bob.get("/keys"))["items"]}
    assert [key["revoked_at"] is None for key in seen["keys"]] == [True, False]
    own = good(await alice.get(f"/users/{alice.id}/keys"))
    assert own == {"id": str(alice.id), "name": "Alice", "keys": good(await alice.get("/keys"))["items"]}


async def test_keys_of_an_author_are_seen_after_it_has_left(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob, carol)
    await bob.publish(group_id)
    for leaver in (bob, carol):
        assert (await leaver.delete(f"/groups/{group_id}/members/{leaver.id}")).status_code == 204
    assert good(await alice.get(f"/users/{bob.id}/keys"))["name"] == "Bob"
    assert code(await alice.get(f"/users/{carol.id}/keys")) == (404, "user_not_found")
    assert code(await bob.get(f"/users/{alice.id}/keys")) == (404, "user_not_found")


async def test_keys_of_who_asked_are_seen_by_who_decided(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob)
    post = await alice.publish(group_id)
    await alice.add(group_id, carol)
    asked = good(await carol.post(f"/posts/{post['id']}/request_read"), 201)
    good(await alice.post(f"/read-requests/{asked['id']}/deny"))
    assert (await carol.delete(f"/groups/{group_id}/members/{carol.id}")).status_code == 204
    # Bob reads the post and is no decider, as long as there is Alice.
    assert code(await bob.get(f"/read-requests/{asked['id']}")) == (404, "read_request_not_found")
    assert code(await bob.get(f"/users/{carol.id}/keys")) == (404, "user_not_found")
    await alice.delete(f"/keys/{alice.devices[0].id}")
    for decider in (alice, bob):
        assert good(await decider.get(f"/read-requests/{asked['id']}"))["requester_name"] == "Carol"
        assert good(await decider.get(f"/users/{carol.id}/keys"))["name"] == "Carol"


async def test_keys_of_a_group_are_the_active_ones_of_its_members(
    alice: Person, bob: Person, carol: Person, database_pool: None
) -> None:
    group_id = await alice.found_group(bob, carol)
    revoked, active = bob.devices[0], await bob.enrol()
    await bob.delete(f"/keys/{revoked.id}")
    answer = good(await bob.get(f"/groups/{group_id}/keys"))
    assert answer.keys() == {"items"}
    assert sorted(key["id"] for key in answer["items"]) == sorted([alice.devices[0].id, active.id, carol.devices[0].id])
    assert all(list(key) == FIELDS for key in answer["items"])
    assert active.key in answer["items"]

    await carol.delete(f"/groups/{group_id}/members/{carol.id}")
    await database.execute("UPDATE users SET disabled_at = now() WHERE id = $1", bob.id)
    assert [key["id"] for key in good(await alice.get(f"/groups/{group_id}/keys"))["items"]] == [alice.devices[0].id]
    assert code(await carol.get(f"/groups/{group_id}/keys")) == (404, "group_not_found")


async def test_keys_of_a_group_are_whole_however_many(alice: Person, database_pool: None) -> None:
    group_id = await alice.found_group()
    await database.execute(
        'INSERT INTO user_keys ("user", public_key, verify_key, proof, label)'
        " SELECT $1, sha256(n::text::bytea), sha256(n::text::bytea), sha512(n::text::bytea), 'n' || n"
        " FROM generate_series(1, 150) n",
        alice.id,
    )
    assert len({key["id"] for key in good(await alice.get(f"/groups/{group_id}/keys"))["items"]}) == 151
