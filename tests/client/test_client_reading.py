"""What a reader believes, and what it refuses from a server that lies."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from client import Client
from client.errors import AlreadyDecided, BadAnswer, CannotGrant, CannotOpen, NotReadable, UntrustedKey
from client.granting import Grant, prepare_grant
from client.identity import Identity
from client.models import Post
from client.people import People
from client.pins import Pin, Pins, Trust
from client.reading import OpenedPost, open_post, read_post
from server.sealing import posts as sealing_posts
from tests.client.lying_server import NOW, World, held_key, public
from tests.client.scripted_server import serving

Change = Callable[[World], object]


class Reader:
    def __init__(self, client: Client, world: World, pins: Pins) -> None:
        self.client = client
        self.world = world
        self.pins = pins
        self.saved: dict[UUID, tuple[Pin, ...]] = {}
        self.people = People(client, world.identity, pins, self.saved.update)

    async def read(self) -> OpenedPost:
        return await read_post(self.client, self.world.identity, self.people, self.world.post_id)

    async def grant(self) -> Grant:
        return await prepare_grant(self.client, self.world.identity, self.people, self.world.request_id)


@asynccontextmanager
async def reading(world: World, pins: Pins | None = None) -> AsyncIterator[Reader]:
    async with serving(world) as server, Client(server.address, "sbs_token") as client:
        yield Reader(client, world, pins or Pins())


async def test_a_post_of_the_server_is_opened_and_shown_as_unsigned() -> None:
    async with reading(World()) as reader:
        opened = await reader.read()
    assert opened.title == "The key"
    assert opened.document is not None
    assert opened.document.content == "is under the mat"
    assert opened.signed is None
    assert "mat" not in repr(opened)


async def test_a_post_of_its_author_is_opened_by_a_key_whose_proof_holds() -> None:
    world = World("author")
    async with reading(world) as reader:
        assert (await reader.read()).signed is Trust.VERIFIED  # Alice reads her own
    # To somebody else it is signed by whoever the server says is Alice, until the fingerprint is compared.
    reader_key = held_key(uuid7())
    world.identity = Identity(keys=(reader_key,))
    sealed_key = sealing_posts.seal_key(world.post_key, reader_key.public_key)
    world.post["sealed_keys"] = [{"public_key_id": reader_key.key_id, "sealed_key": sealed_key}]
    async with reading(world) as reader:
        assert (await reader.read()).signed is Trust.UNVERIFIED
        assert reader.saved == {
            world.alice.user_id: (Pin(fingerprint=world.alice.fingerprint, trust=Trust.UNVERIFIED),)
        }


async def test_a_list_gives_the_title_without_the_content() -> None:
    world = World()
    async with reading(world) as reader:
        whole = await reader.client.post(world.post_id)
        listed = await open_post(world.identity, reader.people, without_content(whole))
    assert (listed.title, listed.document) == ("The key", None)


def without_content(post: Post) -> Post:
    return Post(**{name: getattr(post, name) for name in post.__struct_fields__ if name != "content"})


def set_post(**fields: Any) -> Change:
    return lambda world: world.post.update(fields)


def flip(field: str) -> Change:
    def change(world: World) -> None:
        raw = bytearray(world.post[field])
        raw[len(raw) // 2] ^= 1
        world.post[field] = bytes(raw)

    return change


def seal_another_text_with_the_same_key(world: World) -> None:
    other = world.seal(world.post_id, "The key", "is in the oven", "server")
    world.post["content"] = other["content"]


def move_another_post_here(world: World) -> None:
    other = world.seal(uuid7(), "The key", "is in the oven", "server")
    world.post = {**other, "id": world.post_id}


LIES: dict[str, Change] = {
    "heading": flip("heading"),
    "content": flip("content"),
    "content_hash": flip("content_hash"),
    "commitment": flip("commitment"),
    "another text": seal_another_text_with_the_same_key,
    "another post": move_another_post_here,
    "another group": set_post(group_id=uuid7()),
    "another author": set_post(author_id=uuid7()),
    "no content": set_post(content=None),
    "no commitment": set_post(commitment=None),
    "a signature on what the server sealed": set_post(signature=bytes(64)),
    "an unknown sealer": set_post(sealed_by="nobody"),
    "a key for somebody else": lambda world: world.post["sealed_keys"][0].update(public_key_id=uuid7()),
    "a key that does not open": lambda world: world.post["sealed_keys"][0].update(sealed_key=bytes(80)),
    "a key of another length": lambda world: world.post["sealed_keys"][0].update(sealed_key=b""),
    "no key": set_post(sealed_keys=[]),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_post_that_was_tampered_with_is_refused(lie: Change) -> None:
    world = World()
    lie(world)
    async with reading(world) as reader:
        with pytest.raises(CannotOpen):
            await reader.read()


def revoke_alice(days: float) -> Change:
    return lambda world: world.keys[world.alice.user_id]["keys"][0].update(revoked_at=NOW + timedelta(days=days))


AUTHOR_LIES: dict[str, Change] = {
    "signature": flip("signature"),
    "no signature": set_post(signature=None),
    "no key named": set_post(signing_key_id=None),
    "a key of nobody": set_post(signing_key_id=uuid7()),
    "said to be the server's": set_post(sealed_by="server"),
    "revoked before it was made": revoke_alice(0.5),
    "enrolled after it was made": set_post(created_at=NOW - timedelta(days=1)),
    "another key under that id": lambda world: world.keys[world.alice.user_id].update(
        keys=[public(held_key(world.alice.user_id), id=world.alice.key_id)]
    ),
    "a key without a proof": lambda world: world.keys[world.alice.user_id]["keys"][0].update(proof=bytes(64)),
}


@pytest.mark.parametrize("lie", AUTHOR_LIES.values(), ids=AUTHOR_LIES)
async def test_a_post_that_its_author_did_not_sign_is_refused(lie: Change) -> None:
    world = World("author")
    lie(world)
    async with reading(world) as reader:
        with pytest.raises(CannotOpen):
            await reader.read()


async def test_a_signature_made_before_the_key_was_revoked_counts() -> None:
    world = World("author")
    revoke_alice(1.5)(world)
    async with reading(world) as reader:
        assert (await reader.read()).title == "The key"


async def test_a_seen_revocation_counts_even_if_the_server_denies_it() -> None:
    world = World("author")
    seen = Pin(fingerprint=world.alice.fingerprint, trust=Trust.VERIFIED, revoked_at=NOW + timedelta(hours=1))
    async with reading(world, Pins(users={world.alice.user_id: (seen,)})) as reader:
        with pytest.raises(CannotOpen, match="not active"):
            await reader.read()


async def test_an_author_with_a_new_key_that_nobody_endorses_is_not_believed() -> None:
    world = World("author")
    reader_key = held_key(uuid7())
    world.identity = Identity(keys=(reader_key,))
    known = Pin(fingerprint="0000", trust=Trust.VERIFIED)
    async with reading(world, Pins(users={world.alice.user_id: (known,)})) as reader:
        with pytest.raises(UntrustedKey) as caught:
            await reader.read()
    assert caught.value.pinned == ("0000",)
    assert caught.value.new == world.alice.fingerprint


@pytest.mark.parametrize("access", ["failed", "sealing", "requested", "denied", "no_key", "key_revoked", "not_granted"])
async def test_a_post_without_a_key_says_why(access: str) -> None:
    world = World()
    world.post["access"] = access
    async with reading(world) as reader:
        with pytest.raises(NotReadable) as caught:
            await reader.read()
    assert caught.value.access == access


async def test_granting_seals_the_key_that_opened_the_post_to_the_key_that_is_shown() -> None:
    world = World()
    async with reading(world) as reader:
        grant = await reader.grant()
        await reader.client.approve(world.request_id, grant.sealed_key)
    assert grant.recipient.fingerprint == world.carol.fingerprint
    assert grant.recipient.trust is Trust.UNVERIFIED
    assert grant.opened.title == "The key"
    assert sealing_posts.open_key(grant.sealed_key, world.carol.private_key) == world.post_key
    assert [list(body) for body in world.approved] == [["sealed_key"]]


def set_request(**fields: Any) -> Change:
    return lambda world: world.request.update(fields)


def set_carols_key(**fields: Any) -> Change:
    return lambda world: world.keys[world.carol.user_id]["keys"][0].update(fields)


MALLORY = held_key(uuid7())

FALSE_REQUESTS: dict[str, tuple[Change, type[Exception]]] = {
    "another post": (move_another_post_here, CannotOpen),
    "a post of another group": (set_request(group_id=uuid7()), CannotGrant),
    "another public key": (set_request(public_key=MALLORY.public_key), CannotGrant),
    "another verify key": (set_request(verify_key=MALLORY.verify_key), CannotGrant),
    "an unknown key": (set_request(public_key_id=uuid7()), CannotOpen),
    "a revoked key": (set_carols_key(revoked_at=NOW), CannotGrant),
    "a key without a proof": (set_carols_key(proof=bytes(64)), CannotOpen),
    "another key and its proof": (
        set_carols_key(public_key=MALLORY.public_key, verify_key=MALLORY.verify_key),
        CannotOpen,
    ),
    "a false fingerprint": (set_carols_key(fingerprint=MALLORY.fingerprint), CannotOpen),
    "another user's keys": (
        lambda world: world.keys[world.carol.user_id].update(keys=[public(MALLORY, id=world.carol.key_id)]),
        BadAnswer,
    ),
    "no member": (lambda world: world.members.remove(world.carol.user_id), CannotGrant),
    "decided already": (set_request(status="denied"), AlreadyDecided),
}


@pytest.mark.parametrize(("lie", "kind"), FALSE_REQUESTS.values(), ids=FALSE_REQUESTS)
async def test_nothing_is_granted_to_a_false_request(lie: Change, kind: type[Exception]) -> None:
    world = World()
    lie(world)
    async with reading(world) as reader:
        with pytest.raises(kind):
            await reader.grant()


async def test_nothing_is_granted_to_a_new_key_of_a_known_user() -> None:
    world = World()
    known = Pin(fingerprint="0000", trust=Trust.VERIFIED)
    async with reading(world, Pins(users={world.carol.user_id: (known,)})) as reader:
        with pytest.raises(UntrustedKey):
            await reader.grant()
        assert reader.saved == {}


async def test_a_name_that_is_no_ones_business_is_the_id() -> None:
    stranger = uuid7()
    async with reading(World()) as reader:
        assert await reader.people.name(stranger) == str(stranger)
