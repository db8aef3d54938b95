"""The code of docs/javascript.md against a server that lies: the answers of the real one, changed on their way."""

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from msgspec.structs import asdict

from server.sealing import keys as sealing_keys
from server.sealing import posts as sealing_posts
from server.sealing.encoding import encode_base64
from tests.javascript.node import Expect
from tests.javascript.scripted import Scripted, add, found_group
from tests.people import Device, Person, good
from tests.test_sealed_posts import seal, seal_to


class Stage(NamedTuple):
    """Alice sealed `post` and `other`, the server sealed `unsigned`; Mallory is a member too. All as Bo is told."""

    alice: Person
    mallory: Person
    post: dict[str, Any]
    other: dict[str, Any]
    unsigned: dict[str, Any]


Answers = dict[str, Any]


def telling(post: dict[str, Any], **changed: Any) -> Answers:
    return {f"GET /posts/{post['id']}": post | changed}


def parts(post: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: post[name] for name in names}


def forge(stage: Stage, reader: dict[str, Any]) -> Answers:
    """What a server can do: seal its own text in Alice's name, signed with Mallory's key, to a reader's public key."""
    ids = sealing_posts.PostIds(UUID(stage.post["id"]), UUID(stage.post["group_id"]), stage.alice.id)
    post_key = sealing_posts.new_post_key()
    seed = stage.mallory.devices[0].signing.private
    sealed = asdict(sealing_posts.seal_post(ids, "Forged", "", [], post_key, signing_seed=seed))
    text = {name: encode_base64(part) for name, part in sealed.items()}
    return telling(stage.post, **text, sealed_keys=[seal_to(post_key, reader)])


def mallorys_key(stage: Stage) -> dict[str, Any]:
    """A key of Mallory's that says it is Alice's, with a proof that holds."""
    device = stage.mallory.devices[0]
    proof = sealing_keys.prove(stage.alice.id, device.encryption.public, device.signing.private)
    return parts(device.key, "public_key", "verify_key") | {"proof": encode_base64(proof)}


def alices_keys(stage: Stage, **changed: Any) -> Answers:
    key = stage.alice.devices[0].key | changed
    return {f"GET /users/{stage.alice.id}/keys": {"id": str(stage.alice.id), "name": "Alice", "keys": [key]}}


LIES: dict[str, tuple[Callable[[Stage], Answers], str]] = {
    "another content": (lambda s: telling(s.post, **parts(s.other, "content")), "CannotOpen"),
    "another content and its hash": (
        lambda s: telling(s.post, **parts(s.other, "content", "content_hash")),
        "CannotOpen",
    ),
    "another heading": (lambda s: telling(s.post, **parts(s.other, "heading")), "CannotOpen"),
    "another commitment": (lambda s: telling(s.post, **parts(s.other, "commitment")), "CannotOpen"),
    "another signature": (lambda s: telling(s.post, **parts(s.other, "signature")), "CannotOpen"),
    "no signature": (lambda s: telling(s.post, signature=None), "CannotOpen"),
    "an empty signature": (lambda s: telling(s.post, signature=""), "CannotOpen"),
    "another sealed key": (lambda s: telling(s.post, **parts(s.other, "sealed_keys")), "CannotOpen"),
    "another post": (lambda s: telling(s.post, **s.other), "CannotOpen"),
    "another post under this id": (lambda s: telling(s.post, **s.other | parts(s.post, "id")), "CannotOpen"),
    "another group": (lambda s: telling(s.post, group_id=s.other["id"]), "CannotOpen"),
    "another author": (lambda s: telling(s.post, author_id=str(s.mallory.id)), "UntrustedKey"),
    "a byte of one id in another": (
        # What is joined stays the same.
        lambda s: telling(
            s.unsigned,
            group_id=s.unsigned["group_id"] + s.unsigned["author_id"][:2],
            author_id=s.unsigned["author_id"][2:],
        ),
        "CannotOpen",
    ),
    "no content": (lambda s: telling(s.post, content=None), "CannotOpen"),
    "sealed by nobody": (lambda s: telling(s.post, sealed_by="nobody"), "CannotOpen"),
    "sealed by nobody, unsigned": (lambda s: telling(s.unsigned, sealed_by="nobody"), "CannotOpen"),
    "sealed by the server, and signed": (lambda s: telling(s.post, sealed_by="server"), "CannotOpen"),
    "the server's, told as the author's": (
        lambda s: telling(s.unsigned, sealed_by="author", **parts(s.post, "signing_key_id", "signature")),
        "CannotOpen",
    ),
    "a key without a valid proof": (
        lambda s: telling(s.post) | alices_keys(s, proof=s.mallory.devices[0].key["proof"]),
        "UntrustedKey",
    ),
    "another's key": (lambda s: telling(s.post) | alices_keys(s, **mallorys_key(s)), "UntrustedKey"),
    "a key of later": (
        lambda s: telling(s.post) | alices_keys(s, created_at="9999-01-01T00:00:00.000000Z"),
        "CannotOpen",
    ),
    "a key revoked before": (
        lambda s: telling(s.post) | alices_keys(s, revoked_at=s.alice.devices[0].key["created_at"]),
        "CannotOpen",
    ),
}


@pytest.fixture
async def stage(alice: Person, carol: Person, bo: Scripted) -> Stage:
    group_id = await found_group(alice, bo)
    await alice.add(group_id, carol)
    ids = [good(await alice.post("/posts/sealed", await seal(alice, group_id, text)), 201)["id"] for text in ("A", "B")]
    ids.append((await alice.publish(group_id))["id"])
    # Bo has met Alice's key, and pinned it.
    assert [title for title, _, _ in await bo.call("readAll", ids)] == ["A", "B", "A title"]
    return Stage(alice, carol, *[await bo.request("GET", f"/posts/{post_id}") for post_id in ids])


async def test_a_reader_refuses_what_a_lying_server_tells(stage: Stage, bo: Scripted) -> None:
    caught = {}
    for lie, (answers, _) in LIES.items():
        told = answers(stage)
        await bo.node.call("lie", told)
        caught[lie] = await bo.refusal("read", next(iter(told)).rsplit("/", 1)[1])
    assert caught == {lie: error for lie, (_, error) in LIES.items()}
    # That a post was signed can be denied; it is shown as unsigned then.
    await bo.node.call("lie", telling(stage.post, sealed_by="server", signature=None))
    assert (await bo.call("read", stage.post["id"]))["seal"] == "unsigned, vouched for by the server"


async def test_nobody_signs_for_another(stage: Stage, bo: Scripted) -> None:
    forged, mallory = forge(stage, bo.key), stage.mallory.devices[0].key
    for lie, keys, error in (
        ("by Alice's key", {}, "CannotOpen"),
        ("by Mallory's, as if it were Alice's", alices_keys(stage, **mallorys_key(stage)), "UntrustedKey"),
        ("by Mallory's own", alices_keys(stage, **mallory | parts(stage.alice.devices[0].key, "id")), "UntrustedKey"),
    ):
        await bo.node.call("lie", forged | keys)
        assert await bo.refusal("read", stage.post["id"]) == error, lie


async def test_an_endorsement_counts_if_it_holds_and_its_key_is_known_and_active(stage: Stage, bo: Scripted) -> None:
    alice, group_id = stage.alice, stage.post["group_id"]
    laptop, phone = alice.devices[0], Device(alice.id)
    endorsement = sealing_keys.endorse(alice.id, phone.encryption.public, phone.signing.public, laptop.signing.private)
    body = phone.body("phone") | {"endorsed_by": laptop.id, "endorsement": encode_base64(endorsement)}
    phone.key = good(await alice.post("/keys", body), 201)
    stranger = await alice.enrol("stranger")
    alice.devices.append(phone)
    post_id = good(await alice.post("/posts/sealed", await seal(alice, group_id, "By phone")), 201)["id"]
    by_stranger = sealing_keys.endorse(
        alice.id, phone.encryption.public, phone.signing.public, stranger.signing.private
    )
    for lie, keys in {
        "unendorsed": [laptop.key, phone.key | {"endorsed_by": None, "endorsement": None}],
        "another signature": [laptop.key, phone.key | {"endorsement": phone.key["proof"]}],
        "by a revoked key": [laptop.key | {"revoked_at": laptop.key["created_at"]}, phone.key],
        "by an unknown key": [
            stranger.key,
            phone.key | {"endorsed_by": stranger.id, "endorsement": encode_base64(by_stranger)},
        ],
    }.items():
        await bo.node.call("lie", {f"GET /users/{alice.id}/keys": {"keys": keys}})
        assert await bo.refusal("read", post_id) == "UntrustedKey", lie
    await bo.node.call("lie", {})
    by_phone = f"signed by {phone.key['fingerprint']}"
    assert (await bo.call("read", post_id))["seal"] == by_phone
    # It is known by itself now.
    assert (await alice.delete(f"/keys/{laptop.id}")).status_code == 204
    assert (await bo.call("read", post_id))["seal"] == by_phone


async def test_nothing_is_sealed_to_a_key_that_was_swapped(stage: Stage, bo: Scripted) -> None:
    path = f"/groups/{stage.post['group_id']}/keys"
    keys = (await bo.request("GET", path))["items"]
    for change in (mallorys_key(stage), parts(stage.mallory.devices[0].key, "public_key", "verify_key")):
        swapped = [key | change if key["user_id"] == str(stage.alice.id) else key for key in keys]
        await bo.node.call("lie", {f"GET {path}": {"items": swapped}})
        assert await bo.refusal("publish", stage.post["group_id"], "Title", "") == "UntrustedKey"
    assert len((await bo.request("GET", f"/posts?group_id={stage.post['group_id']}"))["items"]) == 3


async def test_nothing_is_granted_but_what_was_asked_by_whom_it_was_asked(
    stage: Stage, bob: Person, bo: Scripted
) -> None:
    group_id = stage.post["group_id"]
    post = await bo.call("publish", group_id, "Bo's", "own")
    await stage.alice.add(group_id, bob)
    request = good(await bob.post(f"/posts/{post['id']}/request_read"), 201)
    path, mallory = f"GET /read-requests/{request['id']}", stage.mallory.devices[0].key
    other = good(await bob.post(f"/posts/{stage.post['id']}/request_read"), 201)
    fingerprint = Expect(bob.devices[0].key["fingerprint"])
    lies = {
        "another's public key": {"public_key": mallory["public_key"]},
        "another's verify key": {"verify_key": mallory["verify_key"]},
        "another's key id": {"public_key_id": mallory["id"]},
        "another group": {"group_id": other["id"]},
        "another request": {"id": other["id"]},
        "somebody else": {"requester_id": str(stage.mallory.id)},
    }
    for lie, change in lies.items():
        await bo.node.call("lie", {path: request | change})
        assert await bo.refusal("approve", request["id"], fingerprint) == "UntrustedKey", lie
    # A whole other person's key is the very one whose fingerprint is shown.
    whole = {"requester_id": str(stage.mallory.id), "public_key_id": mallory["id"]}
    await bo.node.call("lie", {path: request | whole | parts(mallory, "public_key", "verify_key")})
    await bo.node.call("takeShown")
    assert await bo.call("approve", request["id"], fingerprint) is None
    assert [shown["fingerprint"] for shown in await bo.node.call("takeShown")] == [mallory["fingerprint"]]
    # A post that does not open whole is not granted, and one that was not asked for is shown by its own title.
    await bo.node.call("lie", {path: request} | telling(await bo.request("GET", f"/posts/{post['id']}"), content=None))
    assert await bo.refusal("approve", request["id"], fingerprint) == "CannotOpen"
    await bo.node.call("lie", {path: request | {"post_id": stage.other["id"]}})
    assert await bo.call("approve", request["id"], Expect("nobody")) is None
    assert [shown["title"] for shown in await bo.node.call("takeShown")] == ["B"]
    await bo.node.call("lie", {f"GET /groups/{group_id}/keys": {"items": [bo.key]}})
    assert await bo.refusal("approve", request["id"], fingerprint) == "UntrustedKey"
    await bo.node.call("lie", {})
    assert good(await bob.get(f"/read-requests/{request['id']}"))["status"] == "pending"
    assert (await bo.call("approve", request["id"], fingerprint))["status"] == "approved"


async def test_a_grant_of_another_key_is_given_back_and_asked_for_again(alice: Person, bo: Scripted) -> None:
    group_id = await found_group(alice)
    posts = [await alice.publish(group_id, title) for title in ("One", "Two")]
    await add(alice, group_id, bo)
    asked = await bo.call("ask", posts[0]["id"])
    good(await alice.post(f"/read-requests/{asked['id']}/approve", alice.reseal(posts[1], asked)))
    assert await bo.refusal("read", posts[0]["id"]) == "CannotOpen"
    await bo.request("DELETE", f"/read-requests/{asked['id']}")
    again = await bo.call("ask", posts[0]["id"])
    good(await alice.post(f"/read-requests/{again['id']}/approve", alice.reseal(posts[0], again)))
    assert (await bo.call("read", posts[0]["id"]))["title"] == "One"
