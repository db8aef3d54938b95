"""docs/javascript.md, run as it stands, against a real server and the Python client."""

import asyncio
import random
from asyncio.subprocess import PIPE
from pathlib import Path
from uuid import UUID

import pytest

from client.events import CaughtUp, ReadRequestApproved, ReadRequestCreated
from client.granting import prepare_grant
from client.pins import Trust
from client.progress import work_through
from server.sealing import keys as sealing_keys
from server.sealing.encoding import encode_base64
from tests.javascript.node import WAIT_S, Expect, Hear, JavaScriptError, Kept
from tests.javascript.scripted import Scripted, add, found_group, hear, pythonic
from tests.people import Device, Person, good
from tests.test_sealed_posts import seal


# So that both kinds of WebSocket are used, whatever the version of Node.
@pytest.mark.parametrize("flag", ["--no-experimental-websocket", "--experimental-websocket"], ids=["ws", "built in"])
async def test_story_of_the_page(page: Path, server: str, flag: str) -> None:
    shown = await asyncio.create_subprocess_exec(
        *("node", flag, "story.mjs", server), cwd=page, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(WAIT_S):
        out, err = await shown.communicate()
    assert shown.returncode == 0, err.decode()
    first, asked, read = out.decode().splitlines()
    assert first == "Carol can't read it. this key does not open the post: not_granted"
    assert asked.startswith('Carol wants to read "The lighthouse" with the key ')
    assert read.startswith('Carol reads "The lighthouse": We meet on Thursday at eight. (signed by ')


ODD = [
    *'aéß漢字\U0010ffff\ud7ff\ue000\ufffd\ufeff\u202e\u2028\u2029\u0085\x7f\n\r\t\b"\\/{} ',
    *("e\u0301", "👩\u200d👩\u200d👧\u200d👦", "🇩🇰", "\r\n", "\\u0041", "</script>"),
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


@pytest.mark.thorough
async def test_what_javascript_posts_python_reads(alice: Person, bo: Scripted, server: str) -> None:
    group_id = await found_group(alice, bo)
    texts = odd_texts(500, 1, nul=True)
    ids = await bo.call("publishAll", [(group_id, *text) for text in texts])
    async with pythonic(server, alice) as python:
        assert await python.list_ids(group_id) == set(ids)
        opened = await work_through(ids, python.read, lambda: None)
    assert [(one.title, one.document and one.document.content) for one in opened] == texts
    assert {one.signed for one in opened} == {Trust.UNVERIFIED}


@pytest.mark.thorough
async def test_what_python_posts_javascript_reads(alice: Person, bo: Scripted, server: str) -> None:
    group_id = await found_group(alice, bo)
    # What a server seals, it reads first, and refuses NUL.
    signed, unsigned = odd_texts(300, 2, nul=True), odd_texts(200, 3, nul=False)
    async with pythonic(server, alice) as python:
        unsigned_ids = await work_through(unsigned, lambda text: python.leave_to_server(group_id, *text), lambda: None)
        signed_ids = await work_through(signed, lambda text: python.publish(group_id, *text), lambda: None)
        assert await python.list_ids(group_id) == {*unsigned_ids, *signed_ids}

    by_alice = f"signed by {alice.devices[0].key['fingerprint']}"
    assert await bo.call("readAll", signed_ids) == [[*text, by_alice] for text in signed]
    for post_id in unsigned_ids:
        await alice.wait_until_sealed(post_id)
    by_server = "unsigned, vouched for by the server"
    assert await bo.call("readAll", unsigned_ids) == [[*text, by_server] for text in unsigned]


async def test_titles_of_a_list_are_opened(alice: Person, bo: Scripted) -> None:
    group_id = await found_group(alice, bo)
    good(await alice.post("/posts/sealed", await seal(alice, group_id, "Listed")), 201)
    (listed,) = (await bo.request("GET", f"/posts?group_id={group_id}"))["items"]
    opened = await bo.call("open", listed)
    assert (opened["title"], "content" in opened) == ("Listed", False)


async def test_javascript_asks_and_python_approves(alice: Person, bo: Scripted, server: str) -> None:
    group_id = await found_group(alice)
    async with pythonic(server, alice) as python, python.client.follow() as events:
        post_id = await python.publish(group_id, "The key", "under the mat")
        await add(alice, group_id, bo)
        with pytest.raises(JavaScriptError, match="not_granted"):
            await bo.call("read", post_id)
        await bo.call("listen", Hear("Bo"), keep="socket")
        caught_up = await bo.node.hear("Bo", "caught_up")
        await hear(events, CaughtUp)
        asked = await bo.call("ask", post_id)
        heard = await hear(events, ReadRequestCreated)
        assert str(heard.request_id) == asked["id"]
        grant = await prepare_grant(python.client, python.identity, python.people, heard.request_id)
        assert grant.recipient.fingerprint == bo.key["fingerprint"]
        await python.client.approve(heard.request_id, grant.sealed_key)
    assert (await bo.node.hear("Bo", "read_request.approved"))["request_id"] == asked["id"]
    assert (await bo.call("read", post_id))["content"] == "under the mat"
    await bo.node.call("close", Kept("socket"))
    # Who comes back hears of the decisions since then.
    await bo.call("listen", Hear("Bo, later"), caught_up["at"], keep="socket")
    assert (await bo.node.hear("Bo, later", "read_request.approved"))["replayed"]
    await bo.node.call("close", Kept("socket"))


@pytest.mark.parametrize("author", ["Python", "JavaScript"])
async def test_python_asks_and_javascript_approves(
    alice: Person, carol: Person, bo: Scripted, server: str, author: str
) -> None:
    group_id = await found_group(alice)
    # Bo decides as the author of a post, or as an owner who holds the key of another's.
    await add(alice, group_id, bo, "owner")
    if author == "JavaScript":
        post = await bo.call("publish", group_id, "The key", "under the mat")
    else:
        post = await alice.publish(group_id, "The key", "under the mat")
    await alice.add(group_id, carol)
    await bo.call("listen", Hear("Bo"), keep="socket")
    async with pythonic(server, carol) as python, python.client.follow() as events:
        await hear(events, CaughtUp)
        asked = await python.client.request_read(UUID(post["id"]))
        frame = await bo.node.hear("Bo", "read_request.created")
        assert frame["request_id"] == str(asked.id)
        fingerprint = carol.devices[0].key["fingerprint"]
        # Nothing is granted to whoever is not the one that was expected.
        assert await bo.call("approve", frame["request_id"], Expect("of somebody else")) is None
        assert (await python.client.read_request(asked.id)).status == "pending"
        assert (await bo.call("approve", frame["request_id"], Expect(fingerprint)))["status"] == "approved"
        shown = {"name": "Carol", "fingerprint": fingerprint, "title": "The key"}
        assert await bo.node.call("takeShown") == [shown, shown]
        assert (await hear(events, ReadRequestApproved)).request_id == asked.id
        opened = await python.read(post["id"])
    assert opened.document
    assert (opened.title, opened.document.content) == ("The key", "under the mat")
    await bo.node.call("close", Kept("socket"))


async def test_recipients_that_change_are_sealed_to_and_left_out(
    alice: Person, carol: Person, bo: Scripted, server: str
) -> None:
    group_id = await found_group(alice, bo)
    gone = await alice.enrol("lost")
    before = good(await alice.get(f"/groups/{group_id}/keys"))
    assert (await alice.delete(f"/keys/{gone.id}")).status_code == 204
    # A second key that no known one endorses would stop Bo; he knows this one.
    pins = {str(alice.id): [device.key["fingerprint"] for device in alice.devices]}
    await bo.call("pin", pins)
    await alice.add(group_id, carol)
    await bo.node.call("lie", {f"GET /groups/{group_id}/keys": before})
    post = await bo.call("publish", group_id, "For all", "who are here now")
    for person in (alice, carol):
        async with pythonic(server, person) as python:
            assert (await python.read(post["id"])).title == "For all"


async def test_who_is_withheld_reads_nothing(alice: Person, bo: Scripted) -> None:
    group_id = await found_group(alice, bo)
    post = await bo.call("publish", group_id, "Not for her", "", [alice.devices[0].id])
    assert good(await alice.get(f"/posts/{post['id']}"))["access"] == "not_granted"
    assert (await bo.call("read", post["id"]))["title"] == "Not for her"
    # Whoever is gone can't be withheld from: the server says so, and the client lets go.
    before = good(await alice.get(f"/groups/{group_id}/keys"))
    assert (await alice.delete(f"/keys/{alice.devices[0].id}")).status_code == 204
    await bo.node.call("lie", {f"GET /groups/{group_id}/keys": before})
    assert await bo.call("publish", group_id, "Not for her", "", [alice.devices[0].id])


async def test_a_second_device_is_taken_if_the_first_endorses_it(alice: Person, bo: Scripted) -> None:
    first, second = alice.devices[0], Device(alice.id)
    endorsement = sealing_keys.endorse(alice.id, second.encryption.public, second.signing.public, first.signing.private)
    body = second.body("phone") | {"endorsed_by": first.id, "endorsement": encode_base64(endorsement)}
    second.key = good(await alice.post("/keys", body), 201)
    group_id = await found_group(alice, bo)
    # Whatever order they come in, the one that endorses is met first.
    listed = good(await alice.get(f"/groups/{group_id}/keys"))["items"]
    for keys in (listed, listed[::-1]):
        await bo.node.call("lie", {f"GET /groups/{group_id}/keys": {"items": keys}})
        await bo.call("forget", str(alice.id))
        assert await bo.call("publish", group_id, "To both", "")
    await bo.node.call("lie", {})
    await alice.enrol("stranger")
    known = f"{first.key['fingerprint']}, {second.key['fingerprint']}"
    with pytest.raises(JavaScriptError, match=f"UntrustedKey: .*known: {known}$"):
        await bo.call("publish", group_id, "Not to a third", "")


async def test_text_that_readers_would_refuse_is_not_sealed(alice: Person, bo: Scripted) -> None:
    group_id = await found_group(alice, bo)
    for title, content in (("\ud800", ""), ("", "\udc00\ud83d")):
        with pytest.raises(JavaScriptError, match="lone surrogate"):
            await bo.call("publish", group_id, title, content)
