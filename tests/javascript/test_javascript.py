"""docs/javascript.md, run as it stands: beside the Python client, against a server that lies, and by the vectors."""

import asyncio
import json
import random
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from client.api import Client
from client.events import ReadRequestApproved, ReadRequestCreated
from client.granting import prepare_grant
from client.identity import HeldKey, Identity
from client.people import People
from client.pins import Pins
from client.reading import OpenedPost, read_post
from server.sealing import keys as sealing_keys
from server.sealing import posts as sealing_posts
from server.sealing.encoding import encode_base64
from tests.javascript.node import (
    Expect,
    Hear,
    JavaScriptError,
    Kept,
    Node,
    install_packages,
    node_version,
    running_node,
    write_page,
)
from tests.people import PASSWORD, Device, Person, good, new_email
from tests.sealing.wire_vectors import Case, cases, raw
from tests.test_sealed_posts import seal, seal_to

HERE = Path(__file__).parent
POSTS = 1000


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder with the code of the page and what it imports."""
    node_version()
    assert pytestconfig.cache
    folder = tmp_path_factory.mktemp("javascript")
    (folder / "node_modules").symlink_to(install_packages(pytestconfig.cache))
    (folder / "driver.mjs").write_text((HERE / "driver.mjs").read_text("utf-8"), "utf-8")
    write_page(folder)
    return folder


@pytest.fixture(scope="module")
async def node(page: Path) -> AsyncIterator[Node]:
    async with running_node(page) as running:
        yield running


class Scripted(NamedTuple):
    """Somebody whose client is the page's."""

    node: Node
    name: str
    id: UUID
    key: dict[str, Any]
    """As the server shows it."""

    @property
    def me(self) -> Kept:
        return Kept(self.name)

    async def call(self, function: str, *given: Any, keep: str | None = None) -> Any:
        return await self.node.call(function, self.me, *given, keep=keep)

    async def request(self, method: str, path: str, *body: Any) -> Any:
        return await self.call("call", method, path, *body)


async def arrive(node: Node, server: str, name: str) -> Scripted:
    await node.call("signUp", server, name, new_email(), PASSWORD, keep=name)
    await node.call("enrol", Kept(name), "browser", keep=name)
    me = await node.call("call", Kept(name), "GET", "/me")
    keys = await node.call("call", Kept(name), "GET", "/keys")
    return Scripted(node, name, UUID(me["id"]), keys["items"][0])


@pytest.fixture
async def bo(node: Node, server: str) -> AsyncIterator[Scripted]:
    yield await arrive(node, server, "Bo")
    await node.call("lie", {})


class Reader(NamedTuple):
    """Somebody's Python client."""

    client: Client
    identity: Identity
    people: People

    async def read(self, post_id: str) -> OpenedPost:
        return await read_post(self.client, self.identity, self.people, UUID(post_id))


@asynccontextmanager
async def reading(server: str, person: Person) -> AsyncIterator[Reader]:
    held = tuple(
        HeldKey(
            user_id=person.id,
            server=server,
            label="laptop",
            private_key=device.encryption.private,
            signing_seed=device.signing.private,
            made_at=datetime.now(UTC),
            key_id=UUID(device.id),
        )
        for device in person.devices
    )
    async with Client(server, person.token) as client:
        identity = Identity(keys=held)
        yield Reader(client, identity, People(client, identity, Pins(), lambda _user, _pins: None))


async def group_of(owner: Person, *others: Scripted) -> str:
    group_id = await owner.found_group()
    for one in others:
        await add(owner, group_id, one)
    return group_id


async def add(owner: Person, group_id: str, one: Scripted) -> None:
    good(await owner.post(f"/groups/{group_id}/members", {"user_id": str(one.id)}), 201)


# So that both kinds of WebSocket are used, whatever the version of Node.
@pytest.mark.parametrize("flag", ["--no-experimental-websocket", "--experimental-websocket"], ids=["ws", "built in"])
async def test_story_of_the_page(page: Path, server: str, flag: str) -> None:
    shown = await asyncio.create_subprocess_exec(
        *("node", flag, "story.mjs", server), cwd=page, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(30):
        out, err = await shown.communicate()
    assert shown.returncode == 0, err.decode()
    first, asked, read = out.decode().splitlines()
    assert first == "Carol can't read it. this key does not open the post: not_granted"
    assert asked.startswith('Carol wants to read "The lighthouse" with the key ')
    assert read.startswith('Carol reads "The lighthouse": We meet on Thursday at eight. (signed by ')


ODD = [
    *(
        "a",
        "é",
        "e\u0301",
        "ß",
        "漢字",
        "👩‍👩‍👧‍👦",
        "🇩🇰",
        "\U0010ffff",
        "\ud7ff",
        "\ue000",
        "\ufffd",
        "\ufeff",
        "\u202e",
    ),
    *(
        "\u2028",
        "\u2029",
        "\u0085",
        "\x7f",
        "\n",
        "\r\n",
        "\t",
        "\b",
        '"',
        "\\",
        "\\u0041",
        "/",
        "</script>",
        "{}",
        " ",
    ),
]


def odd_texts(count: int, seed: int, *, nul: bool) -> list[tuple[str, str]]:
    """Titles of 1 to 200 characters and contents, with lengths on both sides of whole blocks among them."""
    chance = random.Random(seed)
    pieces = [*ODD, "\x00", "\x00\x00"] if nul else ODD
    texts = []
    for number in range(count):
        title = "".join(chance.choices(pieces, k=chance.randint(1, 12)))
        content = "".join(chance.choices(pieces, k=chance.randint(0, 30)))
        # One byte more each time, from 0 to two blocks: whatever stands before, some text ends a block exactly.
        texts.append((title + "t" * (number % 150), content + "x" * (number % 512)))
    texts[0] = (texts[0][0], "")
    texts[1] = (texts[1][0], "long \u2028\u0301\\" * 20_000)
    return texts


async def test_a_thousand_posts_are_the_same_on_both_sides(alice: Person, bo: Scripted, server: str) -> None:
    group_id = await group_of(alice, bo)
    quarter = POSTS // 4
    from_bo = odd_texts(2 * quarter, 1, nul=True)
    signed = odd_texts(quarter, 2, nul=True)
    unsigned = odd_texts(quarter, 3, nul=False)

    ids = await bo.call("publishAll", group_id, from_bo)
    signed_ids = [
        good(await alice.post("/posts/sealed", await seal(alice, group_id, *text)), 201)["id"] for text in signed
    ]
    bodies = [{"group_id": group_id, "title": title, "content": content} for title, content in unsigned]
    unsigned_ids = [good(await alice.post("/posts", body), 201)["id"] for body in bodies]

    async with reading(server, alice) as reader:
        opened = [await reader.read(post_id) for post_id in ids]
    assert [(one.title, one.document and one.document.content) for one in opened] == from_bo
    assert {one.signed for one in opened} == {"unverified"}

    for post_id in unsigned_ids:
        await alice.wait_until_sealed(post_id)
    by_alice = f"signed by {alice.devices[0].key['fingerprint']}"
    assert await bo.call("readAll", signed_ids) == [[*text, by_alice] for text in signed]
    by_server = "unsigned, vouched for by the server"
    assert await bo.call("readAll", unsigned_ids) == [[*text, by_server] for text in unsigned]


async def test_titles_of_a_list_are_opened(alice: Person, bo: Scripted) -> None:
    group_id = await group_of(alice, bo)
    good(await alice.post("/posts/sealed", await seal(alice, group_id, "Listed")), 201)
    (listed,) = (await bo.request("GET", f"/posts?group_id={group_id}"))["items"]
    opened = await bo.call("open", listed)
    assert (opened["title"], "content" in opened) == ("Listed", False)


async def test_javascript_asks_and_python_approves(alice: Person, bo: Scripted, server: str) -> None:
    group_id = await group_of(alice)
    post_id = good(await alice.post("/posts/sealed", await seal(alice, group_id, "The key", "under the mat")), 201)[
        "id"
    ]
    await add(alice, group_id, bo)
    with pytest.raises(JavaScriptError, match="not_granted"):
        await bo.call("read", post_id)
    await bo.call("listen", Hear("Bo"), keep="socket")
    await bo.node.hear("Bo", "caught_up")
    async with reading(server, alice) as reader, reader.client.follow() as events:
        asked = await bo.call("ask", post_id)
        heard = await anext(event async for event in events if isinstance(event, ReadRequestCreated))
        assert str(heard.request_id) == asked["id"]
        grant = await prepare_grant(reader.client, reader.identity, reader.people, heard.request_id)
        assert grant.recipient.fingerprint == bo.key["fingerprint"]
        await reader.client.approve(heard.request_id, grant.sealed_key)
    assert (await bo.node.hear("Bo", "read_request.approved"))["request_id"] == asked["id"]
    assert (await bo.call("read", post_id))["content"] == "under the mat"
    await bo.node.call("close", Kept("socket"))


@pytest.mark.parametrize("author", ["Python", "JavaScript"])
async def test_python_asks_and_javascript_approves(
    alice: Person, carol: Person, bo: Scripted, server: str, author: str
) -> None:
    group_id = await group_of(alice, bo)
    # Bo decides as the author of a post, or as an owner who holds the key of another's.
    good(await alice.patch(f"/groups/{group_id}/members/{bo.id}", {"role": "owner"}))
    if author == "JavaScript":
        post = await bo.call("publish", group_id, "The key", "under the mat")
    else:
        post = await alice.publish(group_id, "The key", "under the mat")
    await alice.add(group_id, carol)
    await bo.call("listen", Hear("Bo"), keep="socket")
    async with reading(server, carol) as reader, reader.client.follow() as events:
        asked = await reader.client.request_read(UUID(post["id"]))
        frame = await bo.node.hear("Bo", "read_request.created")
        assert frame["request_id"] == str(asked.id)
        fingerprint = carol.devices[0].key["fingerprint"]
        # Nothing is granted to whoever is not the one that was expected.
        assert await bo.call("approve", frame["request_id"], Expect("of somebody else")) is None
        assert (await reader.client.read_request(asked.id)).status == "pending"
        assert (await bo.call("approve", frame["request_id"], Expect(fingerprint)))["status"] == "approved"
        shown = {"name": "Carol", "fingerprint": fingerprint, "title": "The key"}
        assert await bo.node.call("takeShown") == [shown, shown]
        assert (await anext(one async for one in events if isinstance(one, ReadRequestApproved))).request_id == asked.id
        opened = await reader.read(post["id"])
    assert opened.document
    assert (opened.title, opened.document.content) == ("The key", "under the mat")
    await bo.node.call("close", Kept("socket"))


async def test_recipients_that_change_are_sealed_to_and_left_out(
    alice: Person, carol: Person, bo: Scripted, server: str
) -> None:
    group_id = await group_of(alice, bo)
    gone = await alice.enrol("lost")
    before = good(await alice.get(f"/groups/{group_id}/keys"))
    assert (await alice.delete(f"/keys/{gone.id}")).status_code == 204
    # A second key that no known one endorses would stop Bo; he knows this one.
    pins = {str(alice.id): [device.key["fingerprint"] for device in alice.devices]}
    await bo.node.call("pin", bo.me, pins)
    await alice.add(group_id, carol)
    await bo.node.call("lie", {f"GET /groups/{group_id}/keys": before})
    post = await bo.call("publish", group_id, "For all", "who are here now")
    for person in (alice, carol):
        async with reading(server, person) as reader:
            assert (await reader.read(post["id"])).title == "For all"


async def test_who_is_withheld_reads_nothing(alice: Person, bo: Scripted) -> None:
    group_id = await group_of(alice, bo)
    post = await bo.call("publish", group_id, "Not for her", "", [alice.devices[0].id])
    assert good(await alice.get(f"/posts/{post['id']}"))["access"] == "not_granted"
    assert (await bo.call("read", post["id"]))["title"] == "Not for her"


async def test_a_second_device_is_taken_if_the_first_endorses_it(alice: Person, bo: Scripted) -> None:
    group_id = await group_of(alice, bo)
    good(await alice.post("/posts/sealed", await seal(alice, group_id)), 201)
    assert await bo.call("publish", group_id, "To her laptop", "")
    first, second = alice.devices[0], Device(alice.id)
    endorsement = sealing_keys.endorse(alice.id, second.encryption.public, second.signing.public, first.signing.private)
    body = second.body("phone") | {"endorsed_by": first.id, "endorsement": encode_base64(endorsement)}
    second.key = good(await alice.post("/keys", body), 201)
    assert await bo.call("publish", group_id, "To both", "")
    alice.devices.append(second)
    signed_by_phone = good(await alice.post("/posts/sealed", await seal(alice, group_id, "By phone")), 201)
    assert (await bo.call("read", signed_by_phone["id"]))["seal"] == f"signed by {second.key['fingerprint']}"
    await alice.enrol("stranger")
    with pytest.raises(JavaScriptError, match=f"UntrustedKey: .*known: {first.key['fingerprint']}"):
        await bo.call("publish", group_id, "Not to a third", "")


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


def forged(stage: Stage) -> dict[str, Any]:
    """What a server can do: seal its own text in Alice's name, signed with a key of its own, to Bo's public key."""
    ids = sealing_posts.PostIds(UUID(stage.post["id"]), UUID(stage.post["group_id"]), stage.alice.id)
    post_key = sealing_posts.new_post_key()
    device = stage.mallory.devices[0]
    sealed = sealing_posts.seal_post(ids, "Forged", "", [], post_key, signing_seed=device.signing.private)
    assert sealed.signature
    raw_parts = {
        name: getattr(sealed, name) for name in ("heading", "content", "content_hash", "commitment", "signature")
    }
    return {name: encode_base64(part) for name, part in raw_parts.items()} | {"post_key": post_key}


async def forged_answers(stage: Stage, bo: Scripted, *, with_key: bool) -> Answers:
    changes = forged(stage)
    sealed_keys = [seal_to(changes.pop("post_key"), bo.key)]
    answers = telling(stage.post, **changes, sealed_keys=sealed_keys)
    if with_key:
        answers |= alices_keys(stage, **mallorys_key(stage))
    return answers


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
    "an id of 15 bytes": (lambda s: telling(s.post, group_id=s.post["group_id"][:-2]), "CannotOpen"),
    "no content": (lambda s: telling(s.post, content=None), "CannotOpen"),
    "sealed by nobody": (lambda s: telling(s.post, sealed_by="nobody"), "CannotOpen"),
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
    group_id = await group_of(alice, bo)
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
        caught[lie] = await refusal(bo, "read", next(iter(told)).rsplit("/", 1)[1])
    assert caught == {lie: error for lie, (_, error) in LIES.items()}
    await bo.node.call("lie", await forged_answers(stage, bo, with_key=False))
    assert await refusal(bo, "read", stage.post["id"]) == "CannotOpen"
    await bo.node.call("lie", await forged_answers(stage, bo, with_key=True))
    assert await refusal(bo, "read", stage.post["id"]) == "UntrustedKey"
    # That a post was signed can be denied; it is shown as unsigned then.
    await bo.node.call("lie", telling(stage.post, sealed_by="server", signature=None))
    assert (await bo.call("read", stage.post["id"]))["seal"] == "unsigned, vouched for by the server"


async def refusal(one: Scripted, function: str, *given: Any) -> str | None:
    try:
        await one.call(function, *given)
    except JavaScriptError as error:
        return error.name
    return None


async def test_nothing_is_sealed_to_a_key_that_was_swapped(stage: Stage, bo: Scripted) -> None:
    path = f"/groups/{stage.post['group_id']}/keys"
    keys = (await bo.request("GET", path))["items"]
    for change in (mallorys_key(stage), parts(stage.mallory.devices[0].key, "public_key", "verify_key")):
        swapped = [key | change if key["user_id"] == str(stage.alice.id) else key for key in keys]
        await bo.node.call("lie", {f"GET {path}": {"items": swapped}})
        assert await refusal(bo, "publish", stage.post["group_id"], "Title", "") == "UntrustedKey"
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
        assert await refusal(bo, "approve", request["id"], fingerprint) == "UntrustedKey", lie
    # A whole other person's key is the very one whose fingerprint is shown.
    whole = {"requester_id": str(stage.mallory.id), "public_key_id": mallory["id"]}
    await bo.node.call("lie", {path: request | whole | parts(mallory, "public_key", "verify_key")})
    await bo.node.call("takeShown")
    assert await bo.call("approve", request["id"], fingerprint) is None
    assert [shown["fingerprint"] for shown in await bo.node.call("takeShown")] == [mallory["fingerprint"]]
    # A post that does not open whole is not granted, and one that was not asked for is shown by its own title.
    await bo.node.call("lie", {path: request} | telling(await bo.request("GET", f"/posts/{post['id']}"), content=None))
    assert await refusal(bo, "approve", request["id"], fingerprint) == "CannotOpen"
    await bo.node.call("lie", {path: request | {"post_id": stage.other["id"]}})
    assert await bo.call("approve", request["id"], Expect("nobody")) is None
    assert [shown["title"] for shown in await bo.node.call("takeShown")] == ["B"]
    await bo.node.call("lie", {f"GET /groups/{group_id}/keys": {"items": [bo.key]}})
    assert await refusal(bo, "approve", request["id"], fingerprint) == "UntrustedKey"
    await bo.node.call("lie", {})
    assert good(await bob.get(f"/read-requests/{request['id']}"))["status"] == "pending"
    assert (await bo.call("approve", request["id"], fingerprint))["status"] == "approved"


async def test_a_grant_of_another_key_is_given_back_and_asked_for_again(alice: Person, bo: Scripted) -> None:
    group_id = await group_of(alice)
    posts = [await alice.publish(group_id, title) for title in ("One", "Two")]
    await add(alice, group_id, bo)
    asked = await bo.call("ask", posts[0]["id"])
    good(await alice.post(f"/read-requests/{asked['id']}/approve", alice.reseal(posts[1], asked)))
    assert await refusal(bo, "read", posts[0]["id"]) == "CannotOpen"
    await bo.request("DELETE", f"/read-requests/{asked['id']}")
    again = await bo.call("ask", posts[0]["id"])
    good(await alice.post(f"/read-requests/{again['id']}/approve", alice.reseal(posts[0], again)))
    assert (await bo.call("read", posts[0]["id"]))["title"] == "One"


async def test_text_that_readers_would_refuse_is_not_sealed(alice: Person, bo: Scripted) -> None:
    group_id = await group_of(alice, bo)
    for title, content in (("\ud800", ""), ("", "\udc00\ud83d")):
        with pytest.raises(JavaScriptError, match="lone surrogate"):
            await bo.call("publish", group_id, title, content)


async def tried(node: Node, function: str, group: list[Case], given: Callable[[Case], list[Any]]) -> list[Any]:
    answers: list[Any] = await node.call("tryAll", function, [given(case) for case in group])
    assert len(answers) == len(group) > 0
    return answers


def wrong(group: list[Case], holds: list[bool]) -> list[str]:
    return [case["name"] for case, held in zip(group, holds, strict=True) if not held]


def base64_of(case: Case, name: str) -> str | None:
    found = raw(case, name)
    return None if found is None else encode_base64(found)


def shown_key(case: Case, prefix: str = "") -> dict[str, Any]:
    """A key of a case, as a server would show it."""
    key = {name: base64_of(case, prefix + name) for name in ("public_key", "verify_key")}
    return key | {"user_id": case[f"{prefix}user_id"], "id": "id"}


async def test_vectors_of_bytes_and_keys(node: Node) -> None:
    group = cases("base64")
    read = await tried(node, "fromBase64", group, lambda case: [case["base64"]])
    expected = [raw(case, "bytes") if case["valid"] else None for case in group]
    assert wrong(group, [one == other for one, other in zip(read, expected, strict=True)]) == []

    group = cases("fingerprint")
    keys = [{"publicKey": raw(case, "public_key"), "verifyKey": raw(case, "verify_key")} for case in group]
    by_case = {case["name"]: key for case, key in zip(group, keys, strict=True)}
    shown = await tried(node, "fingerprint", group, lambda case: [case["user_id"], by_case[case["name"]]])
    right = [(one == case["shown"]) == case["valid"] for one, case in zip(shown, group, strict=True)]
    assert wrong(group, right) == []

    group = cases("enrolment_proof")
    checked = await tried(node, "checkKey", group, lambda case: [shown_key(case) | {"proof": base64_of(case, "proof")}])
    assert wrong(group, [bool(one) == case["valid"] for one, case in zip(checked, group, strict=True)]) == []

    group = cases("public_key")
    sealed = await tried(node, "sealKey", group, lambda case: [bytes(32), raw(case, "public_key")])
    assert wrong(group, [bool(one) == case["valid"] for one, case in zip(sealed, group, strict=True)]) == []

    group = cases("sealed_key")
    opened = await tried(
        node,
        "openKey",
        group,
        lambda case: [
            base64_of(case, "sealed_key"),
            {"publicKey": raw(case, "public_key"), "privateKey": raw(case, "secret_key")},
        ],
    )
    right = [one == (raw(case, "post_key") if case["valid"] else None) for one, case in zip(opened, group, strict=True)]
    assert wrong(group, right) == []


async def test_vectors_of_endorsements(node: Node) -> None:
    group = cases("endorsement")

    def given(case: Case) -> list[Any]:
        key, endorser = shown_key(case), shown_key(case, "endorser_")
        for one, prefix in ((key, ""), (endorser, "endorser_")):
            one |= {"publicKey": raw(case, f"{prefix}public_key"), "verifyKey": raw(case, f"{prefix}verify_key")}
        return [key | {"endorsement": base64_of(case, "endorsement")}, endorser]

    endorsed = await tried(node, "isEndorsed", group, given)
    assert wrong(group, [bool(one) == case["valid"] for one, case in zip(endorsed, group, strict=True)]) == []


async def test_vectors_of_texts(node: Node) -> None:
    for part, function in (("heading", "readHeading"), ("content", "readDocument")):
        group = [case for case in cases("text") if case["part"] == part]
        read = await tried(node, function, group, lambda case: [raw(case, "text") + b" " * case["spaces"]])
        assert wrong(group, [bool(one) == case["valid"] for one, case in zip(read, group, strict=True)]) == []


PARTS = ("heading", "content", "content_hash", "commitment", "signature")


def shown_post(case: Case) -> dict[str, Any]:
    by_server = base64_of(case, "signature") is None and raw(case, "verify_key") is None
    return {
        "id": case["post_id"],
        "group_id": case["group_id"],
        "author_id": case["author_id"],
        "sealed_by": case.get("sealed_by", "server" if by_server else "author"),
        **{part: base64_of(case, part) for part in PARTS},
    }


async def test_vectors_of_posts(node: Node) -> None:
    group = cases("post")
    opened = await tried(
        node, "openPost", group, lambda case: [shown_post(case), raw(case, "post_key"), raw(case, "verify_key")]
    )
    assert wrong(group, [opens_right(one, case) for one, case in zip(opened, group, strict=True)]) == []


async def test_vectors_of_answered_posts(node: Node) -> None:
    group = cases("opened_post")
    opened = await tried(
        node,
        "openAnswered",
        group,
        lambda case: [
            shown_post(case),
            base64_of(case, "sealed_key"),
            {"publicKey": raw(case, "public_key"), "privateKey": raw(case, "secret_key")},
            raw(case, "verify_key"),
        ],
    )
    assert wrong(group, [opens_right(one, case) for one, case in zip(opened, group, strict=True)]) == []


def opens_right(opened: Any, case: Case) -> bool:
    if not case["valid"]:
        return bool(opened is None)
    if opened is None or opened["title"] != json.loads(case["heading_json"])["title"]:
        return False
    if raw(case, "content") is None:
        return "content" not in opened
    if "document_json" not in case:
        document = {"v": 1, "content": opened["content"], "attachments": opened["attachments"]}
        return blake2b(compact(document).encode(), digest_size=32).digest() == raw(case, "document_blake2b_256")
    return {name: opened[name] for name in ("v", "content", "attachments")} == json.loads(case["document_json"])


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def test_sealings_of_the_vectors_are_made_again_byte_for_byte(node: Node) -> None:
    made = 0
    for case in cases("post"):
        heading, document = (json.loads(case.get(name, "null")) for name in ("heading_json", "document_json"))
        # Not those of the server, with attachments, or in which another library wrote the JSON.
        if not case["valid"] or document is None or document["attachments"] or raw(case, "signature") is None:
            continue
        if (compact(heading), compact(document)) != (case["heading_json"], case["document_json"]):
            continue
        ids = b"".join(UUID(case[f"{name}_id"]).bytes for name in ("post", "group", "author"))
        drawn = [raw(case, name) for name in ("post_key", "heading_nonce", "content_nonce")]
        await node.call("setRandom", *drawn)
        signing_key = raw(case, "signing_seed") + raw(case, "verify_key")
        sealed = await node.call("sealPost", ids, heading["title"], document["content"], signing_key)
        names = ("heading", "content", "commitment", "signature")
        assert sealed == {"postKey": drawn[0]} | {name: raw(case, name) for name in names}, case["name"]
        made += 1
    assert made >= 6
