"""A server that lies: its answers are rewritten on the way, and each lie ends with exit code 5 and a clear word.

What it is told to do in the dark is also looked at: nothing may have been sealed, sent or granted on its word.
"""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from uuid_utils.compat import uuid7

from client.identity import HeldKey, make_key
from client.models import Key, Post, ReadRequest
from client.pins import Pin, Trust, save_pins
from server.sealing import keys as sealing_keys
from server.sealing import posts as sealing_posts
from tests.client.devices import Device, device
from tests.client.lying_server import public
from tests.client.rewriting_server import Liar, lying
from tests.client.scripted_server import Call, Reply, problem

NOW = datetime.now(UTC)


def forged(user_id: UUID) -> HeldKey:
    """A key of the server's own for somebody, with a proof that holds: all that a server can make up."""
    return msgspec.structs.replace(make_key(user_id, "", "", NOW), key_id=uuid7())


class Accounts(NamedTuple):
    """Three people and a liar, for all tests of this file: none of these lies is to leave a trace."""

    liar: Liar
    anna: Device
    ben: Device
    cleo: Device

    def forget(self, *known: tuple[Device, Device]) -> None:
        """No lies, no pins but those of the people named, and everybody talks through the liar."""
        self.liar.tell_the_truth()
        self.liar.calls.clear()
        for someone in (self.anna, self.ben, self.cleo):
            someone.profile.pins_path.unlink(missing_ok=True)
            someone.profile.returns_path.unlink(missing_ok=True)
            someone.go_through(self.liar.address)
        for knows, whom in known:
            knows.verify(whom)


@pytest.fixture(scope="module")
async def accounts(server: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Accounts]:
    home = tmp_path_factory.mktemp("home")
    async with (
        device(server, "Anna", home / "anna") as anna,
        device(server, "Ben", home / "ben") as ben,
        device(server, "Cleo", home / "cleo") as cleo,
        lying(server) as liar,
    ):
        yield Accounts(liar, anna, ben, cleo)


# Reading


class Shelf(NamedTuple):
    """Two posts that Anna sealed, of which Ben asks for the first; he knows Anna."""

    liar: Liar
    anna: Device
    ben: Device
    wanted: Post
    other: Post

    def rewrite(self, change: Callable[[dict[str, Any]], object]) -> None:
        self.liar.rewrite("GET", f"/posts/{self.wanted.id}", lambda post: change(post) and None)


@pytest.fixture(scope="module")
async def full_shelf(accounts: Accounts) -> Shelf:
    liar, anna, ben, _ = accounts
    group_id = await anna.found_group(ben)
    ids = [(await anna.publish(group_id, title)).post.id for title in ("wanted", "other")]
    # As Ben is served them: with the keys that are sealed to him.
    wanted, other = [await ben.client.post(post_id) for post_id in ids]
    return Shelf(liar, anna, ben, wanted, other)


@pytest.fixture
def shelf(accounts: Accounts, full_shelf: Shelf) -> Shelf:
    accounts.forget((accounts.ben, accounts.anna))
    return full_shelf


def put(*fields: str) -> Callable[[Shelf], None]:
    """These fields of the other post, in the place of the wanted one's."""

    def lie(shelf: Shelf) -> None:
        shelf.rewrite(lambda post: post.update({field: getattr(shelf.other, field) for field in fields}))

    return lie


def say(**fields: Any) -> Callable[[Shelf], None]:
    return lambda shelf: shelf.rewrite(lambda post: post.update(fields))


def swap_bens_key_for_annas(shelf: Shelf) -> None:
    own = shelf.wanted.sealed_keys[0]
    sealed = sealing_posts.seal_key(sealing_posts.new_post_key(), shelf.anna.key.public_key)
    shelf.rewrite(lambda post: post.update(sealed_keys=[{"public_key_id": own.public_key_id, "sealed_key": sealed}]))


ALL = ("heading", "content", "content_hash", "commitment", "signature", "sealed_keys")
CANNOT, WRONG_KEY = "cannot open this post", "the key that came with it is not the one"

FALSE_POSTS: dict[str, tuple[Callable[[Shelf], None], str]] = {
    "another content": (put("content"), CANNOT),
    "another content and its hash": (put("content", "content_hash"), WRONG_KEY),
    "another heading": (put("heading"), WRONG_KEY),
    "another commitment": (put("commitment"), WRONG_KEY),
    "another signature": (put("signature"), CANNOT),
    "no signature": (say(signature=None), CANNOT),
    "a signature, and sealed by the server": (say(sealed_by="server"), CANNOT),
    "another post's sealed key": (put("sealed_keys"), WRONG_KEY),
    "a key sealed to somebody else": (swap_bens_key_for_annas, WRONG_KEY),
    "another post under this id": (put(*ALL), WRONG_KEY),
    "another post's id": (put("id", *ALL), "answered with another post"),
    "another author": (lambda shelf: say(author_id=shelf.ben.user.id)(shelf), "none of that user's"),
    "another group": (say(group_id=uuid7()), WRONG_KEY),
    "no content": (say(content=None), "without its content"),
}


@pytest.mark.parametrize(("lie", "reason"), FALSE_POSTS.values(), ids=FALSE_POSTS)
async def test_a_false_post_is_not_read(shelf: Shelf, lie: Callable[[Shelf], None], reason: str) -> None:
    lie(shelf)
    assert reason in await shelf.ben.fail(5, "post", "read", shelf.wanted.id)


async def test_a_false_post_is_marked_in_a_list(shelf: Shelf) -> None:
    def lie(page: Any) -> None:
        for post in page["items"]:
            post.update(heading=shelf.other.heading)

    shelf.liar.rewrite("GET", "/posts", lie)
    listed = {one["id"]: one for one in await shelf.ben.ask_for("post", "list")}
    assert (listed[str(shelf.other.id)]["title"], listed[str(shelf.other.id)]["problem"]) == ("other", None)
    assert listed[str(shelf.wanted.id)]["title"] is None
    assert WRONG_KEY in listed[str(shelf.wanted.id)]["problem"]


async def test_a_signature_that_was_taken_away_is_missed(shelf: Shelf) -> None:
    """Whoever wrote it may have been somebody else then, and that is what is said."""
    assert "signed by the author" in await shelf.ben.do("post", "read", shelf.wanted.id)
    say(sealed_by="server", signature=None, signing_key_id=None)(shelf)
    said = await shelf.ben.do("post", "read", shelf.wanted.id)
    assert "unsigned, vouched for by the server" in said
    assert "signed by the author" not in said


async def test_an_author_whose_key_was_replaced_is_not_believed(shelf: Shelf) -> None:
    false = forged(shelf.anna.user.id)
    shelf.liar.rewrite(
        "GET",
        f"/users/{shelf.anna.user.id}/keys",
        lambda user: user.update(keys=[public(false, id=shelf.wanted.signing_key_id)]),
    )
    said = await shelf.ben.fail(5, "post", "read", shelf.wanted.id)
    assert false.fingerprint in said
    assert shelf.anna.key.fingerprint in said


async def test_a_revocation_that_was_seen_can_not_be_hidden_from_a_reader(shelf: Shelf) -> None:
    seen = Pin(
        fingerprint=shelf.anna.key.fingerprint,
        trust=Trust.VERIFIED,
        revoked_at=shelf.wanted.created_at - timedelta(seconds=1),
    )
    save_pins(shelf.ben.profile.pins_path, {shelf.anna.user.id: (seen,)})
    assert "not active then" in await shelf.ben.fail(5, "post", "read", shelf.wanted.id)


async def test_a_replayed_grant_is_given_back(anna: Device, cleo: Device, liar: Liar) -> None:
    group_id = await anna.found_group()
    first, second = [(await anna.publish(group_id, title)).post for title in ("first", "second")]
    await anna.client.add_member(group_id, user_id=cleo.user.id)
    for post in (first, second):
        asked = await cleo.client.request_read(post.id)
        await anna.do("requests", "approve", asked.id, "--yes")
    earlier = (await cleo.client.post(first.id)).sealed_keys
    cleo.go_through(liar.address)
    liar.rewrite("GET", f"/posts/{second.id}", lambda post: post.update(sealed_keys=earlier))
    said = await cleo.fail(5, "post", "read", second.id)
    assert "what was granted does not open this post: it was given back, and asked for again (1 of 2)" in said
    assert (await cleo.client.read_request(asked.id)).status == "returned"


# Posting


class Desk(NamedTuple):
    """Anna, who knows Ben, is about to post to their group."""

    liar: Liar
    anna: Device
    ben: Device
    group_id: UUID
    bens: Key

    def list_keys(self, change: Callable[[list[Any]], object]) -> None:
        self.liar.rewrite("GET", f"/groups/{self.group_id}/keys", lambda page: change(page["items"]) and None)

    async def fail(self, *arguments: object) -> str:
        return await self.anna.fail(5, "post", "new", self.group_id, "T", "C", *arguments)


@pytest.fixture
async def desk(accounts: Accounts) -> Desk:
    liar, anna, ben, _ = accounts
    accounts.forget((anna, ben))
    group_id = await anna.found_group(ben)
    [bens] = [key for key in await anna.client.group_keys(group_id) if key.user_id == ben.user.id]
    return Desk(liar, anna, ben, group_id, bens)


def change_bens(**fields: Any) -> Callable[[Desk], None]:
    def lie(desk: Desk) -> None:
        def change(keys: list[Any]) -> None:
            for key in keys:
                if key["id"] == str(desk.bens.id):
                    key.update(fields)

        desk.list_keys(change)

    return lie


def replace_bens(desk: Desk) -> None:
    change_bens(**public(forged(desk.ben.user.id), id=desk.bens.id))(desk)


def slip_in_for_ben(desk: Desk) -> None:
    desk.list_keys(lambda keys: keys.append(public(forged(desk.ben.user.id))))


def slip_in_for_ben_with_an_endorsement_of_its_own(desk: Desk) -> None:
    false = forged(desk.ben.user.id)
    other = forged(desk.ben.user.id)
    endorsement = sealing_keys.endorse(false.user_id, false.public_key, false.verify_key, other.signing_seed)
    desk.list_keys(lambda keys: keys.append(public(false, endorsed_by=desk.bens.id, endorsement=endorsement)))


def slip_in_for_oneself(desk: Desk) -> None:
    desk.list_keys(lambda keys: keys.append(public(forged(desk.anna.user.id))))


def slip_in_a_stranger(desk: Desk) -> None:
    stranger = public(forged(uuid7()))
    desk.list_keys(lambda keys: keys.append(stranger))


def list_twice(desk: Desk) -> None:
    desk.list_keys(lambda keys: keys.append(keys[0]))


def replace_ones_own(desk: Desk) -> None:
    def change(keys: list[Any]) -> None:
        for key in keys:
            if key["id"] == str(desk.anna.key.key_id):
                key.update(public(forged(desk.anna.user.id), id=key["id"]))

    desk.list_keys(change)


def hide_a_revocation(desk: Desk) -> None:
    seen = Pin(fingerprint=desk.bens.fingerprint, trust=Trust.VERIFIED, revoked_at=NOW)
    save_pins(desk.anna.profile.pins_path, {desk.ben.user.id: (seen,)})


def slip_in_on_the_way(desk: Desk) -> None:
    false = public(forged(desk.ben.user.id))
    desk.liar.answer("POST", "/posts/sealed", lambda _: problem(409, "recipients_changed", missing=[false], unknown=[]))


def slip_a_stranger_in_on_the_way(desk: Desk) -> None:
    stranger = public(forged(uuid7()))

    def change(_: Call) -> Reply:
        desk.list_keys(lambda keys: keys.append(stranger))
        return problem(409, "recipients_changed", missing=[stranger], unknown=[])

    desk.liar.answer("POST", "/posts/sealed", change)


FALSE_RECIPIENTS: dict[str, tuple[Callable[[Desk], None], str]] = {
    "a key slipped in for a known member": (slip_in_for_ben, "key verify"),
    "a key slipped in with a false endorsement": (slip_in_for_ben_with_an_endorsement_of_its_own, "key verify"),
    "a key slipped in for oneself": (slip_in_for_oneself, "key verify"),
    "a key slipped in for a stranger": (slip_in_a_stranger, "who is none of its members"),
    "a member's key replaced": (replace_bens, "key verify"),
    "a member's key replaced, its proof kept": (
        change_bens(public_key=sealing_keys.new_encryption_pair().public),
        "without a valid proof",
    ),
    "a member's signing key replaced": (change_bens(verify_key=bytes(32)), "without a valid proof"),
    "a false fingerprint": (change_bens(fingerprint="0000 1111"), "another fingerprint than this key has"),
    "a key twice": (list_twice, "twice"),
    "one's own key replaced": (replace_ones_own, "under the id of yours"),
    "a revocation hidden": (hide_a_revocation, "was seen revoked"),
    "a key slipped in on the way": (slip_in_on_the_way, "key verify"),
    "a stranger slipped in on the way": (slip_a_stranger_in_on_the_way, "who is none of its members"),
}


@pytest.mark.parametrize(("lie", "reason"), FALSE_RECIPIENTS.values(), ids=FALSE_RECIPIENTS)
async def test_nothing_is_sealed_to_a_false_recipient(desk: Desk, lie: Callable[[Desk], None], reason: str) -> None:
    lie(desk)
    assert reason in await desk.fail()
    # What was sent before the lie was told was for true recipients alone.
    named = {
        sealed["public_key_id"]
        for call in desk.liar.seen("POST", "/posts/sealed")
        for sealed in call.json["sealed_keys"]
    }
    assert named <= {str(desk.bens.id), str(desk.anna.key.key_id)}
    assert [post async for post in desk.anna.client.posts(desk.group_id)] == []


async def test_a_false_recipient_can_be_left_out_openly(desk: Desk) -> None:
    replace_bens(desk)
    said = await desk.anna.do("post", "new", desk.group_id, "T", "C", "--withhold-untrusted")
    assert f"Withheld from Ben, key {desk.bens.id}" in said
    [sent] = desk.liar.seen("POST", "/posts/sealed")
    assert sent.json["withheld"] == [str(desk.bens.id)]


async def test_who_is_met_first_can_be_left_out_until_compared(desk: Desk) -> None:
    """A server that makes up a member with a key is told from nobody's arrival by its person alone."""
    mallory = forged(uuid7())

    def join(page: Any) -> None:
        page["items"].append({"user_id": mallory.user_id, "name": "Mallory", "role": "member", "created_at": NOW})

    desk.list_keys(lambda keys: keys.append(public(mallory)))
    desk.liar.rewrite("GET", f"/groups/{desk.group_id}/members", join)
    await desk.anna.do("post", "new", desk.group_id, "T", "C", "--withhold-unverified")
    first = desk.liar.seen("POST", "/posts/sealed")[0]
    assert first.json["withheld"] == [str(mallory.key_id)]
    assert {key["public_key_id"] for key in first.json["sealed_keys"]} == {str(desk.bens.id), str(desk.anna.key.key_id)}


async def test_a_key_that_nothing_can_be_sealed_to_is_left_out_openly(desk: Desk) -> None:
    signing = sealing_keys.new_signing_pair()
    proof = sealing_keys.prove(desk.ben.user.id, bytes(32), signing.private)
    change_bens(public_key=bytes(32), verify_key=signing.public, proof=proof)(desk)
    said = await desk.anna.do("post", "new", desk.group_id, "T", "C")
    assert f"Withheld from Ben, key {desk.bens.id}: nothing can be sealed to it" in said


@pytest.mark.parametrize("field", ["heading", "content", "commitment", "signature", "author_id", "id", "sealed_by"])
async def test_what_is_stored_is_held_against_what_was_sent(desk: Desk, field: str) -> None:
    false = {"author_id": desk.ben.user.id, "id": uuid7(), "sealed_by": "server"}.get(field, bytes(296))
    desk.liar.rewrite("POST", "/posts/sealed", lambda post: post.update({field: false}))
    assert "stored something else" in await desk.fail()


# Granting


class Counter(NamedTuple):
    """Cleo, whom Anna knows, asks for a post of Anna's; there is another group with another post."""

    liar: Liar
    anna: Device
    ben: Device
    cleo: Device
    request: ReadRequest
    elsewhere: Post
    beside: Post

    def request_says(self, **fields: Any) -> None:
        self.liar.rewrite("GET", f"/read-requests/{self.request.id}", lambda request: request.update(fields))

    def cleos_key_is(self, **fields: Any) -> None:
        path = f"/users/{self.cleo.user.id}/keys"
        self.liar.rewrite("GET", path, lambda user: user["keys"][0].update(fields))


@pytest.fixture(scope="module")
async def set_counter(accounts: Accounts) -> Counter:
    liar, anna, ben, cleo = accounts
    group_id, other_id = await anna.found_group(), await anna.found_group(ben, name="others")
    wanted, beside = [(await anna.publish(group_id, title)).post for title in ("wanted", "beside")]
    elsewhere = (await anna.publish(other_id, "elsewhere")).post
    await anna.client.add_member(group_id, user_id=cleo.user.id)
    request = await cleo.client.request_read(wanted.id)
    return Counter(liar, anna, ben, cleo, request, elsewhere, beside)


@pytest.fixture
def counter(accounts: Accounts, set_counter: Counter) -> Counter:
    accounts.forget((accounts.anna, accounts.cleo))
    return set_counter


def name_a_post_of_another_group(counter: Counter) -> None:
    counter.request_says(post_id=counter.elsewhere.id)


def name_another_key(counter: Counter) -> None:
    counter.request_says(public_key_id=counter.anna.key.key_id)


def show_another_key(counter: Counter) -> None:
    counter.request_says(public_key=forged(counter.cleo.user.id).public_key)


def replace_cleos_key(counter: Counter) -> None:
    false = forged(counter.cleo.user.id)
    counter.request_says(public_key=false.public_key, verify_key=false.verify_key, fingerprint=false.fingerprint)
    counter.cleos_key_is(**public(false, id=counter.request.public_key_id))


def name_another_requester(counter: Counter) -> None:
    counter.request_says(requester_id=counter.ben.user.id)


def answer_with_another_request(counter: Counter) -> None:
    counter.request_says(id=uuid7())


def let_a_stranger_ask(counter: Counter) -> None:
    counter.liar.rewrite(
        "GET",
        f"/groups/{counter.request.group_id}/members",
        lambda page: page.update(items=[one for one in page["items"] if one["user_id"] != counter.cleo.id]),
    )


def hide_cleos_revocation(counter: Counter) -> None:
    seen = Pin(fingerprint=counter.cleo.key.fingerprint, trust=Trust.VERIFIED, revoked_at=NOW)
    save_pins(counter.anna.profile.pins_path, {counter.cleo.user.id: (seen,)})


def tamper_with_the_post(counter: Counter) -> None:
    counter.liar.rewrite(
        "GET", f"/posts/{counter.request.post_id}", lambda post: post.update(content=counter.beside.content)
    )


def put_another_post_in_its_place(counter: Counter) -> None:
    fields = (*ALL, "author_id", "group_id")
    own = {field: getattr(counter.beside, field) for field in fields}
    counter.liar.rewrite("GET", f"/posts/{counter.request.post_id}", lambda post: post.update(own))


def list_it_for_another_post(counter: Counter) -> None:
    """The person decides by the list, the server hands over a request for something else."""
    counter.request_says(post_id=counter.beside.id)


FALSE_REQUESTS: dict[str, tuple[Callable[[Counter], None], str]] = {
    "a post of another group": (name_a_post_of_another_group, "another group"),
    "another key": (name_another_key, "none of that user's"),
    "another key's bytes": (show_another_key, "shows another key"),
    "a key that was replaced everywhere": (replace_cleos_key, "key verify"),
    "another requester": (name_another_requester, "none of that user's"),
    "another request": (answer_with_another_request, "answered with another request"),
    "a stranger": (let_a_stranger_ask, "no member of the group"),
    "a revocation hidden": (hide_cleos_revocation, "is revoked"),
    "a post that was tampered with": (tamper_with_the_post, CANNOT),
    "another post in its place": (put_another_post_in_its_place, WRONG_KEY),
}


@pytest.mark.parametrize(("lie", "reason"), FALSE_REQUESTS.values(), ids=FALSE_REQUESTS)
async def test_nothing_is_granted_to_a_false_request(
    counter: Counter, lie: Callable[[Counter], None], reason: str
) -> None:
    lie(counter)
    assert reason in await counter.anna.fail(5, "requests", "approve", counter.request.id, "--yes")
    assert counter.liar.seen("POST", "/read-requests/.*") == []


@pytest.mark.parametrize("lie", [list_it_for_another_post, replace_cleos_key, tamper_with_the_post])
async def test_nothing_is_granted_to_a_false_request_among_all(
    counter: Counter, lie: Callable[[Counter], None]
) -> None:
    lie(counter)
    result = await counter.anna.run("requests", "approve", "--all", "--yes")
    assert result.exit_code == 5
    assert "Approved 0, failed 1." in result.stdout
    assert counter.liar.seen("POST", "/read-requests/.*") == []


async def test_a_key_that_nobody_knew_is_caught_by_the_told_fingerprint(counter: Counter) -> None:
    save_pins(counter.anna.profile.pins_path, {counter.cleo.user.id: ()})
    replace_cleos_key(counter)
    told = counter.cleo.key.fingerprint
    said = await counter.anna.fail(5, "requests", "approve", counter.request.id, "--fingerprint", told)
    assert "has another fingerprint" in said
    assert counter.liar.seen("POST", "/read-requests/.*") == []


# Keys


async def test_a_typed_fingerprint_is_held_against_the_very_bytes(desk: Desk) -> None:
    before = desk.anna.pinned(desk.ben.user.id)
    false = forged(desk.ben.user.id)
    path = f"/users/{desk.ben.user.id}/keys"
    # The server shows the fingerprint that Ben told, over another key.
    desk.liar.rewrite("GET", path, lambda user: user.update(keys=[public(false, fingerprint=desk.bens.fingerprint)]))
    said = await desk.anna.fail(5, "key", "verify", desk.ben.id, desk.bens.fingerprint)
    assert "another fingerprint than this key has" in said
    desk.liar.tell_the_truth()
    desk.liar.rewrite("GET", path, lambda user: user.update(keys=[public(false)]))
    said = await desk.anna.fail(5, "key", "verify", desk.ben.id, *desk.bens.fingerprint.split())
    assert false.fingerprint in said
    desk.liar.tell_the_truth()
    desk.liar.rewrite("GET", path, lambda user: user.update(id=desk.anna.id))
    assert "another user's keys" in await desk.anna.fail(5, "key", "verify", desk.ben.id, desk.bens.fingerprint)
    assert desk.anna.pinned(desk.ben.user.id) == before


async def test_a_key_that_was_revoked_here_stays_so(anna: Device, liar: Liar) -> None:
    group_id = await anna.found_group()
    second = await anna.enrol(endorser=anna.identity)
    await anna.do("key", "revoke", second.id, "--yes")
    anna.go_through(liar.address)
    shown = msgspec.structs.replace(second, revoked_at=None)
    liar.rewrite("GET", f"/groups/{group_id}/keys", lambda page: page["items"].append(shown))
    assert "was seen revoked" in await anna.fail(5, "post", "new", group_id, "T", "C")
    assert liar.seen("POST", "/posts/sealed") == []
