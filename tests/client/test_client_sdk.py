"""The client against a running server: every call, and what it raises."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

import pytest
from uuid_utils.compat import uuid7

from client import Client
from client.enrolling import new_key
from client.errors import (
    Conflict,
    CredentialEnded,
    Forbidden,
    Invalid,
    NotFound,
    NotReadable,
    Unauthenticated,
)
from client.events import CaughtUp, Event, MemberAdded, PostSealed, ReadRequestApproved, ReadRequestCreated
from client.follow import Follower
from client.granting import prepare_grant
from client.identity import Identity
from client.models import SealedKey, User
from client.people import People
from client.pins import Pins
from client.reading import read_post
from server.sealing import posts as sealing_posts
from tests.people import PASSWORD, new_email


class Account(NamedTuple):
    client: Client
    user: User
    identity: Identity
    people: People


@asynccontextmanager
async def account(server: str, name: str) -> AsyncIterator[Account]:
    async with Client(server) as client:
        user = await client.sign_up(name, new_email(), PASSWORD)
        enrolled = await new_key(client, user.id, "laptop", Identity(), save=lambda _: None, now=datetime.now(UTC))
        people = People(client, enrolled.identity, Pins(), lambda _changed: None)
        yield Account(client, user, enrolled.identity, people)


@pytest.fixture
async def alice(server: str) -> AsyncIterator[Account]:
    async with account(server, "Alice") as someone:
        yield someone


@pytest.fixture
async def carol(server: str) -> AsyncIterator[Account]:
    async with account(server, "Carol") as someone:
        yield someone


async def hear(follower: Follower, kind: type[Event]) -> Event:
    async with asyncio.timeout(20):
        async for event in follower:
            if isinstance(event, kind):
                return event
    raise AssertionError


async def test_a_session_begins_and_ends(server: str) -> None:
    email = new_email()
    async with Client(server) as client:
        with pytest.raises(Unauthenticated):
            await client.me()
        signed_up = await client.sign_up("Alice", email, PASSWORD)
        assert (await client.me()).id == signed_up.id
        assert signed_up.token.expires > datetime.now(UTC) + timedelta(days=13)
        await client.logout()
        assert client.token is None
        with pytest.raises(Unauthenticated):
            await client.login(email, PASSWORD + "!")
        assert (await client.login(email, PASSWORD)).user.email == email
        with pytest.raises(Conflict) as caught:
            await client.sign_up("Alice", email, PASSWORD)
        assert caught.value.code == "email_taken"
        assert (await client.buy_ticket()).expires_in == 30


async def test_lists_follow_their_cursors_to_the_end(alice: Account) -> None:
    made = [await alice.client.create_group(f"group {number}") for number in range(103)]
    listed = [group.id async for group in alice.client.groups()]
    assert listed == [group.id for group in reversed(made)]


async def test_a_list_is_read_no_further_than_it_is_wanted(alice: Account) -> None:
    for number in range(3):
        await alice.client.create_group(f"group {number}")
    async for group in alice.client.groups():
        assert group.name == "group 2"
        break


async def test_a_group_lives_and_changes_hands(alice: Account, carol: Account) -> None:
    group = await alice.client.create_group("Book club")
    assert (await alice.client.group(group.id)).name == "Book club"
    assert (await alice.client.rename_group(group.id, "Reading circle")).name == "Reading circle"
    added = await alice.client.add_member(group.id, email=carol.user.email, role="member")
    assert added.user_id == carol.user.id
    with pytest.raises(Conflict) as caught:
        await alice.client.add_member(group.id, user_id=carol.user.id)
    assert caught.value.code == "already_member"
    with pytest.raises(NotFound):
        await alice.client.add_member(group.id, user_id=uuid4())
    with pytest.raises(Forbidden) as refused:
        await carol.client.rename_group(group.id, "Mine")
    assert refused.value.code == "not_owner"
    assert {key.user_id for key in await carol.client.group_keys(group.id)} == {alice.user.id, carol.user.id}
    assert (await alice.client.change_role(group.id, carol.user.id, "owner")).role == "owner"
    await carol.client.remove_member(group.id, alice.user.id)
    with pytest.raises(NotFound):
        await alice.client.group(group.id)
    assert [member.user_id async for member in carol.client.members(group.id)] == [carol.user.id]
    await carol.client.delete_group(group.id)
    assert [group async for group in carol.client.groups()] == []


async def test_the_same_post_twice_is_one_post(alice: Account) -> None:
    group = await alice.client.create_group("G")
    post_id = uuid7()
    first = await alice.client.create_post(group.id, "T", "C", post_id=post_id)
    again = await alice.client.create_post(group.id, "T", "C", post_id=post_id)
    assert first.id == again.id == post_id
    with pytest.raises(Conflict) as caught:
        await alice.client.create_post(group.id, "T", "other", post_id=post_id)
    assert caught.value.code == "id_taken"
    assert [post.id async for post in alice.client.posts(group.id)] == [post_id]
    await alice.client.delete_post(post_id)
    with pytest.raises(Conflict):
        await alice.client.create_post(group.id, "T", "C", post_id=post_id)


async def test_a_post_is_read_whole_and_by_its_heading(alice: Account, carol: Account) -> None:
    group = await alice.client.create_group("G")
    await alice.client.add_member(group.id, user_id=carol.user.id)
    made = await alice.client.create_post(group.id, "Títle", "Content\n🙂")
    assert (await alice.client.wait_until_sealed(made.id, 20)).status == "sealed"
    opened = await read_post(carol.client, carol.identity, carol.people, made.id)
    assert opened.title == "Títle"
    assert opened.document is not None
    assert opened.document.content == "Content\n🙂"
    listed = [post async for post in carol.client.posts()]
    assert [(post.id, post.content, post.access) for post in listed] == [(made.id, None, "readable")]


async def test_what_is_wrong_with_a_request_is_said_field_by_field(alice: Account) -> None:
    group = await alice.client.create_group("G")
    with pytest.raises(Invalid) as caught:
        await alice.client.create_post(group.id, "", "C")
    assert [field.pointer for field in caught.value.problem.errors] == ["/title"]
    with pytest.raises(Invalid):
        await alice.client.enrol_key(bytes(32), bytes(32), bytes(64), "label")


async def test_a_request_is_heard_granted_and_heard_of(alice: Account, carol: Account) -> None:
    group = await alice.client.create_group("G")
    made = await alice.client.create_post(group.id, "T", "C")
    async with alice.client.follow() as alices, carol.client.follow() as carols:
        assert await hear(alices, CaughtUp)
        assert await hear(carols, CaughtUp)
        await alice.client.wait_until_sealed(made.id, 20)
        await alice.client.add_member(group.id, user_id=carol.user.id)
        joined = await hear(carols, MemberAdded)
        assert isinstance(joined, MemberAdded)
        assert joined.user_id == carol.user.id
        with pytest.raises(NotReadable):
            await read_post(carol.client, carol.identity, carol.people, made.id)
        asked = await carol.client.request_read(made.id, public_key_id=carol.identity.keys[0].key_id)
        assert (await carol.client.request_read(made.id)).id == asked.id
        heard = await hear(alices, ReadRequestCreated)
        assert isinstance(heard, ReadRequestCreated)
        assert (heard.request_id, heard.post_id, heard.fingerprint) == (asked.id, made.id, asked.fingerprint)
        grant = await prepare_grant(alice.client, alice.identity, alice.people, asked.id)
        await alice.client.approve(asked.id, grant.sealed_key)
        decided = await hear(carols, ReadRequestApproved)
        assert isinstance(decided, ReadRequestApproved)
        assert decided.request_id == asked.id
    assert (await read_post(carol.client, carol.identity, carol.people, made.id)).title == "T"
    with pytest.raises(Conflict) as caught:
        await carol.client.request_read(made.id)
    assert caught.value.code == "already_readable"


async def test_requests_are_denied_withdrawn_and_listed(alice: Account, carol: Account) -> None:
    group = await alice.client.create_group("G")
    made = await alice.client.create_post(group.id, "T", "C")
    await alice.client.wait_until_sealed(made.id, 20)
    await alice.client.add_member(group.id, user_id=carol.user.id)
    first = await carol.client.request_read(made.id)
    await carol.client.withdraw(first.id)
    second = await carol.client.request_read(made.id)
    assert [one.id async for one in alice.client.read_requests(status="pending")] == [second.id]
    await alice.client.deny(second.id)
    with pytest.raises(Conflict) as caught:
        await carol.client.request_read(made.id)
    assert caught.value.code == "recently_denied"
    assert caught.value.problem.retry_at is not None
    assert caught.value.problem.retry_at > datetime.now(UTC) + timedelta(hours=23)
    statuses = {one.id: one.status async for one in carol.client.read_requests("requester")}
    assert statuses == {first.id: "cancelled", second.id: "denied"}
    with pytest.raises(Conflict) as late:
        await alice.client.approve(second.id, bytes(80))
    assert late.value.code == "already_decided"


async def test_what_was_decided_meanwhile_is_told_with_since(alice: Account, carol: Account) -> None:
    group = await alice.client.create_group("G")
    made = await alice.client.create_post(group.id, "T", "C")
    await alice.client.wait_until_sealed(made.id, 20)
    await alice.client.add_member(group.id, user_id=carol.user.id)
    async with carol.client.follow() as before:
        await hear(before, CaughtUp)
    asked = await carol.client.request_read(made.id)
    async with alice.client.follow() as deciders:
        caught_up = await hear(deciders, CaughtUp)
        assert isinstance(caught_up, CaughtUp)
        assert caught_up.pending == {asked.id}
    grant = await prepare_grant(alice.client, alice.identity, alice.people, asked.id)
    await alice.client.approve(asked.id, grant.sealed_key)
    async with carol.client.follow(before.since) as after:
        decided = await hear(after, ReadRequestApproved)
    assert decided.replayed


async def test_a_second_key_of_ones_own_is_given_the_post_key(alice: Account) -> None:
    group = await alice.client.create_group("G")
    made = await alice.client.create_post(group.id, "T", "C")
    await alice.client.wait_until_sealed(made.id, 20)
    opened = await read_post(alice.client, alice.identity, alice.people, made.id)
    second = await new_key(
        alice.client, alice.user.id, "phone", alice.identity, save=lambda _: None, now=datetime.now(UTC)
    )
    sealed_key = sealing_posts.seal_key(opened.post_key, second.key.public_key)
    after = await alice.client.add_post_keys(made.id, [SealedKey(public_key_id=second.key.id, sealed_key=sealed_key)])
    assert {one.public_key_id for one in after.sealed_keys} == {key.key_id for key in second.identity.keys}
    phone_only = Identity(keys=second.identity.keys[1:])
    assert (await read_post(alice.client, phone_only, alice.people, made.id)).title == "T"
    await alice.client.revoke_key(second.key.id)
    assert [key.revoked_at is None async for key in alice.client.own_keys()] == [False, True]


async def test_following_ends_with_its_session_and_goes_on_after_a_login(alice: Account, server: str) -> None:
    assert alice.user.email is not None
    email = alice.user.email
    async with Client(server) as elsewhere, alice.client.follow() as without:
        elsewhere.token = alice.client.token
        await hear(without, CaughtUp)
        async with alice.client.follow(renew=lambda: alice.client.login(email, PASSWORD)) as renewing:
            await hear(renewing, CaughtUp)
            await elsewhere.logout()
            with pytest.raises(CredentialEnded):
                await hear(without, PostSealed)
            await hear(renewing, CaughtUp)
    assert (await alice.client.me()).email == email


async def test_a_wrong_credential_opens_no_socket(server: str) -> None:
    for token, code in ((None, 1008), ("sbs_wrong", 4401)):
        async with Client(server, token) as client, client.follow() as events:
            with pytest.raises(CredentialEnded) as caught:
                await hear(events, CaughtUp)
            assert caught.value.code == code
