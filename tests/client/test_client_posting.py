"""Posts that their author seals: to whom, to whom not, and once, whatever happens on the way."""

import asyncio
import time
from uuid import UUID

import msgspec
import pytest
from uuid_utils.compat import uuid7

from client import Client
from client.errors import (
    BadAnswer,
    BadText,
    ClientError,
    Conflict,
    NetworkError,
    NoIdentity,
    UntrustedKey,
    UntrustedRecipients,
)
from client.identity import Identity
from client.models import Post
from client.pins import Trust
from client.posting import SENDING_TRIES, NewPost, Outgoing, prepare_post, publish, send_post
from client.recipients import Withhold
from server import database
from server.sealing import keys as sealing_keys
from tests.client.devices import Device
from tests.client.rewriting_server import Liar
from tests.client.scripted_server import HANG_UP, Call, problem


async def prepare(author: Device, group_id: UUID, withhold: Withhold | None = None) -> Outgoing:
    new = NewPost(group_id, author.user.id, "The key", "is under the mat", withhold or Withhold())
    return await prepare_post(author.client, author.identity, author.people(), new)


async def newest_post(reader: Device, group_id: UUID) -> Post:
    async for post in reader.client.posts(group_id):
        return post
    raise AssertionError


def through(liar: Liar, someone: Device) -> Client:
    return Client(liar.address, someone.client.token)


async def test_a_post_is_sealed_to_all_and_signed(anna: Device, ben: Device) -> None:
    group_id = await anna.found_group(ben)
    posted = await anna.publish(group_id)
    assert (posted.post.status, posted.post.sealed_by, posted.post.signing_key_id) == (
        "sealed",
        "author",
        anna.key.key_id,
    )
    opened = await ben.read(posted.post.id)
    assert (opened.title, opened.signed) == ("The key", Trust.UNVERIFIED)
    assert opened.document is not None
    assert opened.document.content == "is under the mat"
    ben.verify(anna)
    assert (await ben.read(posted.post.id)).signed is Trust.VERIFIED
    assert (await anna.read(posted.post.id)).signed is Trust.VERIFIED


async def test_who_is_met_first_is_pinned_and_told_once(anna: Device, ben: Device) -> None:
    group_id = await anna.found_group(ben)
    posted = await anna.publish(group_id)
    assert posted.recipients.newcomers == {anna.user.id, ben.user.id}
    assert anna.pinned(ben.user.id) == {ben.key.fingerprint: Trust.UNVERIFIED}
    assert {one.fingerprint: one.trust for one in posted.recipients.accepted} == {
        anna.key.fingerprint: Trust.VERIFIED,
        ben.key.fingerprint: Trust.UNVERIFIED,
    }


async def test_a_group_of_a_thousand_needs_one_listing_of_keys(anna: Device, liar: Liar) -> None:
    group_id = await anna.found_group()
    user_ids = await fill(group_id, 1000)
    async with through(liar, anna) as client:
        for known in (frozenset(), frozenset({*user_ids, anna.user.id})):
            liar.calls.clear()
            begun = time.perf_counter()
            new = NewPost(group_id, anna.user.id, "T", "C", known=known)
            posted = await publish(client, anna.identity, anna.people(client), new)
            assert len(posted.recipients.accepted) == 1001
            assert time.perf_counter() - begun < 15
    # By now everybody is known: the keys are asked for once, and nothing else.
    assert [(call.method, call.target) for call in liar.calls] == [
        ("GET", f"/groups/{group_id}/keys"),
        ("POST", "/posts/sealed"),
    ]


async def fill(group_id: UUID, count: int) -> list[UUID]:
    """Members with a key each, put where the server keeps them: a thousand sign-ups would take minutes."""
    user_ids = [uuid7() for _ in range(count)]
    rows = []
    for user_id in user_ids:
        public = sealing_keys.new_encryption_pair().public
        signing = sealing_keys.new_signing_pair()
        rows.append((user_id, public, signing.public, sealing_keys.prove(user_id, public, signing.private)))
    async with database.transaction():
        await database.execute(
            "INSERT INTO users (id, name, issuer, subject) SELECT id, 'Somebody', 'test', id::text"
            " FROM unnest($1::uuid[]) AS u (id)",
            user_ids,
        )
        await database.execute(
            'INSERT INTO user_group_association ("user", "group", role)'
            " SELECT id, $2, 'member' FROM unnest($1::uuid[]) AS u (id)",
            *(user_ids, group_id),
        )
        await database.execute(
            'INSERT INTO user_keys ("user", public_key, verify_key, proof, label)'
            " SELECT k.*, 'laptop' FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bytea[]) AS k",
            *map(list, zip(*rows, strict=True)),
        )
    return user_ids


async def test_a_new_key_that_no_known_one_endorses_stops_it_until_it_is_compared(anna: Device, ben: Device) -> None:
    group_id = await anna.found_group(ben)
    await anna.publish(group_id)
    first = ben.key.fingerprint
    new = await ben.enrol()
    with pytest.raises(UntrustedRecipients) as caught:
        await anna.publish(group_id)
    [told] = caught.value.untrusted
    assert (told.user_id, told.name, told.pinned, told.new) == (ben.user.id, "Ben", (first,), new.fingerprint)
    assert len([post async for post in anna.client.posts(group_id)]) == 1

    said = await anna.fail(5, "post", "new", group_id, "T", "C")
    assert first in said
    assert new.fingerprint in said
    assert f"secureblogs key verify {ben.user.id}" in said
    assert "--withhold" in said
    await anna.do("key", "verify", ben.user.id, new.fingerprint.upper())
    assert new.id in {one.key.id for one in (await anna.publish(group_id)).recipients.accepted}


async def test_all_untrusted_recipients_are_told_at_once(anna: Device, ben: Device, cleo: Device) -> None:
    group_id = await anna.found_group(ben, cleo)
    await anna.publish(group_id)
    new = {(await ben.enrol()).fingerprint, (await cleo.enrol()).fingerprint}
    with pytest.raises(UntrustedRecipients) as caught:
        await anna.publish(group_id)
    assert {one.new for one in caught.value.untrusted} == new
    said = await anna.fail(5, "post", "new", group_id, "T", "C")
    assert all(fingerprint in said for fingerprint in new)


@pytest.mark.parametrize("by", ["user", "key", "untrusted"])
async def test_what_is_withheld_is_withheld_openly(anna: Device, ben: Device, by: str) -> None:
    group_id = await anna.found_group(ben)
    await anna.publish(group_id)
    new = await ben.enrol()
    rule = {"user": ("--withhold", ben.user.id), "key": ("--withhold", new.id), "untrusted": ("--withhold-untrusted",)}
    said = await anna.do("post", "new", group_id, "T", "C", *rule[by])
    assert f"Withheld from Ben, key {new.id}" in said
    assert "sealed here, to " in said
    newest = await newest_post(ben, group_id)
    keys = {sealed.public_key_id for sealed in newest.sealed_keys}
    assert new.id not in keys
    assert newest.access == ("not_granted" if by == "user" else "readable")


async def test_a_new_key_that_a_known_one_endorses_is_taken(anna: Device, ben: Device, liar: Liar) -> None:
    group_id = await anna.found_group(ben)
    anna.verify(ben)
    first = ben.key
    assert first.key_id is not None
    new = await ben.enrol(endorser=ben.identity)
    posted = await anna.publish(group_id)
    assert {one.key.id: one.trust for one in posted.recipients.accepted if one.key.user_id == ben.user.id} == {
        first.key_id: Trust.VERIFIED,
        new.id: Trust.ENDORSED,
    }
    # Its endorser may be revoked by now, and out of the group's keys: then all keys of this one user are read.
    third = await ben.enrol(endorser=ben.identity)
    assert third.endorsed_by is not None
    await ben.client.revoke_key(third.endorsed_by)
    async with through(liar, anna) as client:
        await publish(client, anna.identity, anna.people(client), NewPost(group_id, anna.user.id, "T", "C"))
    assert len(liar.seen("GET", f"/users/{ben.user.id}/keys")) == 1
    assert third.fingerprint in anna.pinned(ben.user.id)


async def test_what_nobody_compared_can_be_left_out(anna: Device, ben: Device, cleo: Device) -> None:
    group_id = await anna.found_group(ben, cleo)
    anna.verify(ben)
    posted = await anna.publish(group_id, withhold=Withhold(unverified=True))
    assert {one.key.user_id for one in posted.recipients.accepted} == {anna.user.id, ben.user.id}
    assert {(one.key.user_id, one.reason) for one in posted.recipients.withheld} == {
        (cleo.user.id, "nobody has compared its fingerprint")
    }


async def test_no_other_key_of_ones_own_is_taken_unless_a_held_one_endorses_it(anna: Device) -> None:
    group_id = await anna.found_group()
    elsewhere = anna.key
    await anna.enrol()
    # Though it is the older one, it is not met first: the key that is held here was known before.
    anna.save_identity(Identity(keys=anna.identity.keys[1:]))
    with pytest.raises(UntrustedKey) as caught:
        await anna.publish(group_id)
    assert (caught.value.user_id, caught.value.new) == (anna.user.id, elsewhere.fingerprint)


async def test_a_post_follows_members_and_keys_that_change_on_the_way(
    anna: Device, ben: Device, cleo: Device, liar: Liar
) -> None:
    group_id = await anna.found_group(ben)
    outgoing = await prepare(anna, group_id)
    await anna.client.add_member(group_id, user_id=cleo.user.id)
    await anna.client.remove_member(group_id, ben.user.id)
    async with through(liar, anna) as client:
        posted = await send_post(client, anna.people(client), outgoing)
    assert {one.key.user_id for one in posted.recipients.accepted} == {anna.user.id, cleo.user.id}
    assert posted.recipients.names[cleo.user.id] == "Cleo"
    assert (await cleo.read(outgoing.ids.post)).title == "The key"
    first, second = (same_in_every_try(call) for call in liar.seen("POST", "/posts/sealed"))
    assert first == second


def same_in_every_try(call: Call) -> dict[str, object]:
    return {name: part for name, part in call.json.items() if name not in ("sealed_keys", "withheld")}


async def test_a_key_that_comes_on_the_way_goes_through_the_same_checks(anna: Device, ben: Device) -> None:
    group_id = await anna.found_group(ben)
    await anna.publish(group_id)
    strict = await prepare(anna, group_id)
    lenient = await prepare(anna, group_id, Withhold(untrusted=True))
    new = await ben.enrol()
    with pytest.raises(UntrustedRecipients) as caught:
        await send_post(anna.client, anna.people(), strict)
    assert caught.value.new == new.fingerprint
    posted = await send_post(anna.client, anna.people(), lenient)
    assert [one.key.id for one in posted.recipients.withheld] == [new.id]
    assert (await newest_post(anna, group_id)).id == lenient.ids.post


async def test_a_group_that_never_stands_still_is_given_up(anna: Device, liar: Liar) -> None:
    group_id = await anna.found_group()
    outgoing = await prepare(anna, group_id)
    own = next(iter(outgoing.sealed_keys))
    missing = next(key for key in await anna.client.group_keys(group_id) if key.id == own)
    async with through(liar, anna) as client:
        # Each time the one key that was sealed to is gone, and another is there.
        liar.answer(
            "POST",
            "/posts/sealed",
            lambda call: problem(
                409,
                "recipients_changed",
                missing=[msgspec.structs.replace(missing, id=uuid7())],
                unknown=[key["public_key_id"] for key in call.json["sealed_keys"]],
            ),
        )
        with pytest.raises(Conflict):
            await send_post(client, anna.people(client), outgoing)
        assert len(liar.seen("POST", "/posts/sealed")) == SENDING_TRIES
        liar.tell_the_truth()
        liar.calls.clear()
        liar.answer("POST", "/posts/sealed", lambda _: problem(409, "recipients_changed", missing=[], unknown=[]))
        with pytest.raises(BadAnswer, match="and not how"):
            await send_post(client, anna.people(client), outgoing)
        assert len(liar.seen("POST", "/posts/sealed")) == 1


async def test_a_lost_answer_makes_no_second_post(anna: Device, ben: Device, liar: Liar) -> None:
    group_id = await anna.found_group()
    async with through(liar, anna) as client:
        liar.answer("POST", "/posts/sealed", HANG_UP, times=2)
        outgoing = await prepare(anna, group_id)
        posted = await send_post(client, anna.people(client), outgoing)
        assert len(liar.seen("POST", "/posts/sealed")) == 3
        assert posted.post.id == outgoing.ids.post
        # Who came since is no reason to seal again what is stored.
        await anna.client.add_member(group_id, user_id=ben.user.id)
        again = await send_post(client, anna.people(client), outgoing)
        assert again.post.sealed_at == posted.post.sealed_at
    assert [post.id async for post in anna.client.posts(group_id)] == [outgoing.ids.post]


async def test_whoever_does_not_know_whether_it_was_stored_is_told_where_to_look(anna: Device, liar: Liar) -> None:
    group_id = await anna.found_group()
    anna.go_through(liar.address)
    liar.answer("POST", "/posts/sealed", HANG_UP)
    said = await anna.fail(3, "post", "new", group_id, "T", "C")
    [stored] = [post async for post in anna.client.posts(group_id)]
    assert str(stored.id) in said


async def test_members_come_and_go_while_posts_are_made(anna: Device, ben: Device, cleo: Device) -> None:
    group_id = await anna.found_group(ben)
    for _ in range(6):
        posted, *_ = await asyncio.gather(
            anna.publish(group_id),
            anna.client.add_member(group_id, user_id=cleo.user.id),
            anna.client.remove_member(group_id, ben.user.id),
        )
        sealed_to = {one.key.user_id for one in posted.recipients.accepted}
        whole = await anna.client.post(posted.post.id)
        assert whole.status == "sealed"
        readable = (await cleo.client.post(posted.post.id)).access == "readable"
        assert (cleo.user.id in sealed_to) == readable
        await anna.client.remove_member(group_id, cleo.user.id)
        await anna.client.add_member(group_id, user_id=ben.user.id)


async def test_it_is_signed_with_this_machines_key_or_not_at_all(anna: Device) -> None:
    group_id = await anna.found_group()
    first = anna.key
    second = await anna.enrol(endorser=anna.identity)
    new = NewPost(group_id, anna.user.id, "T", "C", signing_key_id=first.key_id)
    posted = await publish(anna.client, anna.identity, anna.people(), new)
    assert posted.post.signing_key_id == first.key_id
    assert (await anna.publish(group_id)).post.signing_key_id == second.id
    for key_id in (first.key_id, second.id):
        assert key_id is not None
        await anna.client.revoke_key(key_id)
    with pytest.raises(NoIdentity):
        await anna.publish(group_id)
    assert "secureblogs key new" in await anna.fail(4, "post", "new", group_id, "T", "C")


async def test_what_can_not_be_posted_is_said_before_anything_is_sent(anna: Device, ben: Device) -> None:
    group_id = await anna.found_group(ben)
    for title in ("", "t" * 201, "\ud800"):
        with pytest.raises(BadText):
            await anna.publish(group_id, title)
    with pytest.raises(ClientError, match="nobody is left"):
        await prepare(anna, group_id, Withhold(ids=frozenset({anna.user.id, ben.user.id})))
    with pytest.raises(ClientError, match="nobody in this group has the id"):
        await prepare(anna, group_id, Withhold(ids=frozenset({uuid7()})))
    with pytest.raises(NetworkError):
        async with Client("http://127.0.0.1:9") as nowhere:
            await publish(nowhere, anna.identity, anna.people(), NewPost(group_id, anna.user.id, "T", "C"))
    assert [post async for post in anna.client.posts(group_id)] == []


async def test_a_post_larger_than_a_request_may_be_is_refused_in_words(anna: Device) -> None:
    group_id = await anna.found_group()
    with pytest.raises(ClientError, match="larger than the server takes"):
        await anna.publish(group_id, content="x" * 900_000)


async def test_the_command_line_says_who_sealed_it_and_to_whom(anna: Device, ben: Device) -> None:
    group_id = await anna.found_group(ben)
    first = await anna.run("post", "new", group_id, "T", "C")
    assert "sealed here, to 2 keys of 2 people; the server has not seen the text" in first.stdout
    assert f"first post to Ben: {ben.key.fingerprint} (unverified)" in first.stderr
    assert f"1 of these keys nobody has compared yet: secureblogs key verify {ben.id}" in first.stderr
    second = await anna.run("post", "new", group_id, "T", "C")
    assert "first post to" not in second.stderr
    assert "by the server, which has seen the text" in await anna.do("post", "new", group_id, "T", "C", "--by-server")
    told = await anna.ask_for("post", "new", group_id, "T", "C", "--withhold", ben.user.id)
    assert (told["sealed_by"], [one["user_id"] for one in told["withheld"]]) == ("author", [str(ben.user.id)])
    assert [(one["user_id"], one["trust"]) for one in told["recipients"]] == [(str(anna.user.id), "verified")]
    for wrong in (("--by-server", "--withhold-untrusted"), ("--no-wait",)):
        assert (await anna.run("post", "new", group_id, "T", "C", *wrong)).exit_code == 2
