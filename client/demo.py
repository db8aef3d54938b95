"""The story of Alice, Bob and Carol, played against a running server through its real interface.

Every step uses what any client uses, checks what it was told, and waits no longer than it says. Accounts are new and
random, and their keys live in the memory of this process only.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar
from uuid import UUID

import rich_click as click

from client.api import Client
from client.commands import verb
from client.enrolling import new_key
from client.errors import CannotOpen, ClientError
from client.events import CaughtUp, Event, PostSealed, ReadRequestApproved, ReadRequestCreated
from client.follow import Follower
from client.granting import prepare_grant
from client.identity import HeldKey, Identity
from client.models import Post, User
from client.people import People
from client.pins import Pins
from client.post_commands import content_of, describe_seal
from client.posting import NewPost, publish
from client.profile import Profile
from client.reading import OpenedPost, open_post, read_post
from client.terminal import line, say
from client.transport import Retries, parse_address

Heard = TypeVar("Heard", bound=Event)

WAIT_SECONDS = 30.0
TITLE = "The lighthouse at Skagen"
CONTENT = "We meet on Thursday at eight, where the two seas meet. Bring a lantern, and tell nobody.\n"


class DemoFailed(ClientError):
    """A step did not go as the story says."""


class Person(NamedTuple):
    name: str
    client: Client
    user: User
    identity: Identity
    people: People

    @property
    def key(self) -> HeldKey:
        return self.identity.keys[0]


@click.command()
@click.option("--second-server", metavar="URL", help="Another API of the same installation, for Carol's calls.")
@verb
async def demo(profile: Profile, second_server: str | None) -> None:
    """Play the whole story against a running server, with three new accounts, and check each step.

    \b
    secureblogs demo
    secureblogs demo --server https://posts.example.org
    """
    first = profile.server()
    second = parse_address(second_server) if second_server else first
    say(f"Alice and Bob on {line(first)}, Carol on {line(second)}")
    await play(first, second, say)


async def play(first_server: str, second_server: str, tell: Callable[[str], None]) -> None:
    """Play the story, one line for each step. Raises DemoFailed, or whatever a step raised."""
    step = _Steps(tell)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(_arrive("Alice", first_server))
        bob = await stack.enter_async_context(_arrive("Bob", first_server))
        carol = await stack.enter_async_context(_arrive("Carol", second_server))
        for person in (alice, bob, carol):
            step(f"{person.name} signs up and makes a key: {person.key.fingerprint}")

        group = await alice.client.create_group(f"Skagen {secrets.token_hex(3)}")
        await alice.client.add_member(group.id, user_id=bob.user.id)
        step(f"Alice makes the group {line(group.name)} and adds Bob")

        alices_ear = await stack.enter_async_context(_listening(alice))
        by_server = await _post_and_wait(step, alice, alices_ear, group.id)
        await _read_and_compare(step, bob, by_server)
        by_author = await _seal_and_post(step, alice, alices_ear, group.id)
        await _read_and_compare(step, bob, by_author)

        await alice.client.add_member(group.id, user_id=carol.user.id)
        step("Carol joins the group, later than the posts")
        carols_ear = await stack.enter_async_context(_listening(carol))
        for post_id in (by_server, by_author):
            await _fail_to_read(step, carol, post_id)
            request = await _ask(step, carol, alices_ear, post_id)
            await _approve(step, alice, carol, carols_ear, request)
            await _read_and_compare(step, carol, post_id)
        step.end()


async def _post_and_wait(step: "_Steps", alice: Person, ear: "_Ear", group_id: UUID) -> UUID:
    begun = time.perf_counter()
    post = await alice.client.create_post(group_id, TITLE, CONTENT)
    accepted = time.perf_counter()
    _check(post.status in ("pending", "sealed"), f"the post was accepted as {post.status}")
    sealed_at, _ = await ear.hear(PostSealed, lambda event: event.post_id == post.id)
    step(
        f"Alice posts {TITLE!r} ({post.id}) for the server to seal: accepted in {_ms(accepted - begun)},"
        f" and her socket hears after {_ms(sealed_at - begun)} that it is sealed"
    )
    return post.id


async def _seal_and_post(step: "_Steps", alice: Person, ear: "_Ear", group_id: UUID) -> UUID:
    begun = time.perf_counter()
    new = NewPost(group_id, alice.user.id, TITLE, CONTENT)
    posted = await publish(alice.client, alice.identity, alice.people, new)
    stored = time.perf_counter()
    post, keys = posted.post, len(posted.recipients.accepted)
    _check(post.status == "sealed" and post.sealed_by == "author", f"it was {post.status} by the {post.sealed_by}")
    _check(keys == 2, f"it was sealed to {keys} keys")
    _check_ciphertext(post)
    sealed_at, _ = await ear.hear(PostSealed, lambda event: event.post_id == post.id)
    step(
        f"Alice seals it once more, herself, to {keys} keys ({post.id}): stored in {_ms(stored - begun)},"
        f" and her socket hears of it after {_ms(sealed_at - begun)}; the server never saw the text"
    )
    return post.id


async def _read_and_compare(step: "_Steps", reader: Person, post_id: UUID) -> None:
    opened = await read_post(reader.client, reader.identity, reader.people, post_id)
    _check_text(opened)
    _check_ciphertext(opened.post)
    _check((opened.signed is not None) == (opened.post.sealed_by == "author"), "the signature is not as it should be")
    step(f"{reader.name} reads: {content_of(opened).strip()} [{describe_seal(opened.signed)}]")


async def _fail_to_read(step: "_Steps", carol: Person, post_id: UUID) -> None:
    post = await carol.client.post(post_id)
    _check(post.access == "not_granted", f"Carol's access is {post.access}")
    _check(not post.sealed_keys, "Carol was served a key")
    try:
        await open_post(carol.identity, carol.people, post)
    except CannotOpen:
        step(f"Carol can't read it: {post.access}, and what she is served opens with no key of hers")
    else:
        raise DemoFailed("Carol opened a post that she was not granted")


async def _ask(step: "_Steps", carol: Person, ear: "_Ear", post_id: UUID) -> ReadRequestCreated:
    begun = time.perf_counter()
    made = await carol.client.request_read(post_id, public_key_id=carol.key.key_id)
    heard_at, heard = await ear.hear(ReadRequestCreated, lambda event: event.request_id == made.id)
    _check(heard.post_id == post_id and heard.requested_user_id == carol.user.id, "Alice heard of something else")
    step(f"Carol asks; Alice's socket hears of it after {_ms(heard_at - begun)}: {line(heard.requester_name)} asks")
    return heard


async def _approve(step: "_Steps", alice: Person, carol: Person, ear: "_Ear", asked: ReadRequestCreated) -> None:
    grant = await prepare_grant(alice.client, alice.identity, alice.people, asked.request_id)
    _check_text(grant.opened)
    # What Carol reads out to Alice is computed from Carol's own private keys, and came by no server.
    _check(grant.recipient.fingerprint == carol.key.fingerprint, "the key that asks is not Carol's")
    step(f"Alice opens the post and compares the fingerprint with Carol's: {grant.recipient.fingerprint}")
    begun = time.perf_counter()
    decided = await alice.client.approve(grant.request.id, grant.sealed_key)
    _check(decided.status == "approved", f"the request is {decided.status}")
    heard_at, _ = await ear.hear(ReadRequestApproved, lambda event: event.request_id == grant.request.id)
    step(f"Alice approves; Carol's socket hears of it after {_ms(heard_at - begun)}")


@asynccontextmanager
async def _arrive(name: str, server: str) -> AsyncIterator[Person]:
    """Somebody with a new account and one enrolled key; logged out in the end."""
    # Signing up is rate-limited, and a demonstration that is played often must wait its turn.
    async with Client(server, retries=Retries(tries=5, longest_wait=65.0)) as client:
        email = f"{name.lower()}-{secrets.token_hex(8)}@example.org"
        user = await client.sign_up(name, email, secrets.token_urlsafe(24))
        enrolled = await new_key(
            client, user.id, "demonstration", Identity(), save=lambda _: None, now=datetime.now(UTC)
        )
        people = People(client, enrolled.identity, Pins(), lambda _changed: None)
        yield Person(name, client, user, enrolled.identity, people)
        await client.logout()


class _Ear:
    """What a person's socket hears, with the moment in which it did."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[float, Event | Exception]] = asyncio.Queue()

    async def listen(self, events: Follower) -> None:
        try:
            async for event in events:
                self.heard.put_nowait((time.perf_counter(), event))
        except Exception as error:
            # Whatever ends the listening ends the story, which waits on this queue.
            self.heard.put_nowait((time.perf_counter(), error))

    async def hear(self, kind: type[Heard], is_meant: Callable[[Heard], bool]) -> tuple[float, Heard]:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    at, event = await self.heard.get()
                    if isinstance(event, Exception):
                        raise event
                    if isinstance(event, kind) and is_meant(event):
                        return at, event
        except TimeoutError:
            raise DemoFailed(f"nothing of a {kind.__name__} was heard within {WAIT_SECONDS:.0f} s") from None


@asynccontextmanager
async def _listening(person: Person) -> AsyncIterator[_Ear]:
    ear = _Ear()
    async with person.client.follow() as events:
        listening = asyncio.create_task(ear.listen(events))
        try:
            await ear.hear(CaughtUp, lambda _event: True)
            yield ear
        finally:
            listening.cancel()
            await asyncio.wait([listening])


class _Steps:
    """Numbers the lines, and keeps the time."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._number = 0
        self._begun = time.perf_counter()

    def __call__(self, text: str) -> None:
        self._number += 1
        self._tell(f"{self._number:>3}  {text}")

    def end(self) -> None:
        self._tell(f"All {self._number} steps went as they should, in {time.perf_counter() - self._begun:.1f} s.")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DemoFailed(otherwise)


def _check_text(opened: OpenedPost) -> None:
    _check(opened.title == TITLE and content_of(opened) == CONTENT, "the post does not say what Alice wrote")


def _check_ciphertext(post: Post) -> None:
    """Nothing that the server sent may hold a word of the post in the clear."""
    served = (post.heading or b"") + (post.content or b"")
    for word in {*TITLE.split(), *CONTENT.split()}:
        _check(len(word) < 5 or word.encode() not in served, f"the server sent the word {word!r} in the clear")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
