"""Posts that the author's client has sealed: exactly the group's keys, a good signature, once."""

import asyncio
from typing import Any
from uuid import UUID

import uuid_utils.compat

from server.sealing import posts as sealing_posts
from server.sealing.encoding import decode_base64, encode_base64
from tests.people import Person, code, good, random_id


async def seal(author: Person, group_id: str, title: str = "Sealed", content: str = "by its author") -> dict[str, Any]:
    """The body of POST /posts/sealed, to all active keys of the group."""
    keys = good(await author.get(f"/groups/{group_id}/keys"))["items"]
    ids = sealing_posts.PostIds(uuid_utils.compat.uuid7(), UUID(group_id), author.id)
    post_key = sealing_posts.new_post_key()
    device = author.devices[-1]
    sealed = sealing_posts.seal_post(ids, title, content, [], post_key, signing_seed=device.signing.private)
    assert sealed.signature
    return {
        "id": str(ids.post),
        "group_id": group_id,
        "heading": encode_base64(sealed.heading),
        "content": encode_base64(sealed.content),
        "commitment": encode_base64(sealed.commitment),
        "signature": encode_base64(sealed.signature),
        "signing_key_id": device.id,
        "sealed_keys": [seal_to(post_key, key) for key in keys],
    }


def seal_to(post_key: bytes, key: dict[str, Any]) -> dict[str, str]:
    sealed = sealing_posts.seal_key(post_key, decode_base64(key["public_key"]))
    return {"public_key_id": key["id"], "sealed_key": encode_base64(sealed)}


def open_signed(reader: Person, author: Person, post: dict[str, Any]) -> tuple[str, str]:
    ids = sealing_posts.PostIds(UUID(post["id"]), UUID(post["group_id"]), UUID(post["author_id"]))
    parts = ("heading", "content", "content_hash", "commitment", "signature")
    title, document = sealing_posts.open_post(
        ids,
        reader.post_key(post),
        **{name: decode_base64(post[name]) for name in parts},
        verify_key=author.devices[-1].signing.public,
        sealed_by=post["sealed_by"],
    )
    return title, document.content


async def test_members_open_and_verify_what_the_author_sealed(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    answer = await alice.post("/posts/sealed", await seal(alice, group_id))
    post = good(answer, 201)
    assert answer.headers["location"] == f"/posts/{post['id']}"
    assert (post["status"], post["sealed_by"], post["access"]) == ("sealed", "author", "readable")
    assert open_signed(bob, alice, good(await bob.get(f"/posts/{post['id']}"))) == ("Sealed", "by its author")


async def test_repeated_request_gets_the_same_post(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group()
    body = await seal(alice, group_id)
    first = good(await alice.post("/posts/sealed", body), 201)
    await alice.add(group_id, bob)
    assert good(await alice.post("/posts/sealed", body)) == first
    other = await seal(alice, group_id)
    assert code(await alice.post("/posts/sealed", other | {"id": body["id"]})) == (422, "bad_signature")


async def test_fifty_at_once_store_one(alice: Person) -> None:
    group_id = await alice.found_group()
    body = await seal(alice, group_id)
    answers = await asyncio.gather(*(alice.post("/posts/sealed", body) for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert len(good(await alice.get("/posts", params={"group_id": group_id}))["items"]) == 1


async def test_deleted_id_is_never_revived(alice: Person) -> None:
    group_id = await alice.found_group()
    body = await seal(alice, group_id)
    good(await alice.post("/posts/sealed", body), 201)
    assert (await alice.delete(f"/posts/{body['id']}")).status_code == 204
    assert code(await alice.post("/posts/sealed", body)) == (409, "id_taken")


async def test_left_out_key_is_named_with_all_that_sealing_needs(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group()
    body = await seal(alice, group_id)
    await alice.add(group_id, bob)
    answer = await alice.post("/posts/sealed", body)
    assert code(answer) == (409, "recipients_changed")
    problem = answer.json()
    assert problem["missing"] == [bob.devices[0].key]
    assert problem["unknown"] == []
    # Openly withheld is as good as sealed to.
    assert good(await alice.post("/posts/sealed", body | {"withheld": [bob.devices[0].id]}), 201)["status"] == "sealed"
    closed = good(await bob.get(f"/posts/{body['id']}"))
    assert (closed["access"], closed["sealed_keys"]) == ("not_granted", [])


async def test_nobody_can_be_slipped_in(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob)
    body = await seal(alice, group_id)
    slipped = body["sealed_keys"] + [{**body["sealed_keys"][0], "public_key_id": carol.devices[0].id}]
    answer = await alice.post("/posts/sealed", body | {"sealed_keys": slipped})
    assert code(answer) == (409, "recipients_changed")
    assert answer.json()["unknown"] == [carol.devices[0].id]
    assert answer.json()["missing"] == []
    assert (await bob.delete(f"/keys/{bob.devices[0].id}")).status_code == 204
    answer = await alice.post("/posts/sealed", body)
    assert answer.json()["unknown"] == [bob.devices[0].id]


async def test_withholding_from_everyone_is_no_post(alice: Person) -> None:
    group_id = await alice.found_group()
    body = await seal(alice, group_id)
    own = [key["public_key_id"] for key in body["sealed_keys"]]
    assert code(await alice.post("/posts/sealed", body | {"sealed_keys": [], "withheld": own})) == (
        409,
        "no_recipients",
    )
    assert code(await alice.get(f"/posts/{body['id']}")) == (404, "post_not_found")


async def test_wrong_parts_are_named(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    body = await seal(alice, group_id)
    keys = body["sealed_keys"]
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "/heading": ({"heading": encode_base64(bytes(300))}, "invalid"),
        "/content": ({"content": encode_base64(bytes(40))}, "invalid"),
        "/commitment": ({"commitment": encode_base64(bytes(31))}, "invalid"),
        "/signature": ({"signature": encode_base64(bytes(65))}, "invalid"),
        "/signing_key_id": ({"signing_key_id": bob.devices[0].id}, "invalid"),
        "/sealed_keys/0/sealed_key": ({"sealed_keys": [{**keys[0], "sealed_key": "AAAA"}, keys[1]]}, "invalid"),
        "/sealed_keys/1/public_key_id": ({"sealed_keys": [keys[0], keys[0]]}, "invalid"),
        "/withheld/0": ({"withheld": [keys[0]["public_key_id"]]}, "invalid"),
        "/id": ({"id": random_id()}, "invalid"),
        "/title": ({"title": "no"}, "invalid"),
    }
    for pointer, (change, expected) in wrong.items():
        answer = await alice.post("/posts/sealed", body | change)
        assert code(answer) == (422, expected), pointer
        assert answer.json()["errors"][0]["pointer"] == pointer
    for field in ("heading", "content", "commitment", "signature"):
        flipped = bytearray(decode_base64(body[field]))
        flipped[-1] ^= 1
        answer = await alice.post("/posts/sealed", body | {field: encode_base64(bytes(flipped))})
        assert code(answer) == (422, "bad_signature"), field
    assert code(await alice.post("/posts/sealed", body | {"attachments": [random_id()]})) == (
        404,
        "attachment_not_found",
    )
    assert good(await alice.post("/posts/sealed", body), 201)


async def test_stranger_learns_nothing_but_404(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group()
    body = await seal(alice, group_id)
    assert code(await bob.post("/posts/sealed", body)) == (404, "group_not_found")
    assert code(await bob.post("/posts/sealed", {"group_id": group_id})) == (404, "group_not_found")


async def test_membership_changes_in_flight_slip_nobody_in_and_leave_nobody_out(
    alice: Person, bob: Person, carol: Person
) -> None:
    group_id = await alice.found_group(bob)
    for _ in range(15):
        body = await seal(alice, group_id)
        answer, *_ = await asyncio.gather(
            alice.post("/posts/sealed", body),
            alice.post(f"/groups/{group_id}/members", {"user_id": str(carol.id)}),
            alice.delete(f"/groups/{group_id}/members/{bob.id}"),
        )
        assert answer.status_code in {201, 409}, answer.text
        if answer.status_code == 201:
            # It was stored before both changes, for no change is half seen.
            assert carol.devices[0].id not in {key["public_key_id"] for key in body["sealed_keys"]}
            assert good(await carol.get(f"/posts/{body['id']}"))["access"] == "not_granted"
        await alice.delete(f"/groups/{group_id}/members/{carol.id}")
        await alice.add(group_id, bob)
