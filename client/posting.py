"""Posts that are sealed here, by their author: the server never sees the text.

    choose the recipients ── encrypt, commit, sign ── seal the post key to each ── send ── 409: judge who is missing
                                                                                    ▲                  │
                                                                                    └──── seal ────────┘

Text, commitment and signature are made once, so a post that is sent again, for a lost answer or for members that have
changed meanwhile, is the same post, and the server stores it once. The key of a member who came in between goes through
the very checks of the others before anything is sealed to it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from uuid_utils.compat import uuid7

from client.api import Client
from client.errors import (
    BadAnswer,
    BadText,
    ClientError,
    Conflict,
    Invalid,
    NoIdentity,
    Problem,
    Substituted,
)
from client.identity import HeldKey, Identity
from client.models import Key, Post, SealedKey
from client.people import AcceptedKey, People
from client.recipients import Recipients, Withheld, Withhold, check_withheld, choose_recipients
from server.sealing import posts as sealing_posts
from server.sealing.errors import SealingError
from server.sealing.posts import PostIds, SealedPost
from server.sealing.texts import Attachment

# Members may come and go while a post is on its way; a server that never agrees must not keep us for ever.
SENDING_TRIES = 8
KEYS_AT_ONCE = 256
MAX_TITLE_CHARACTERS = 200


class NewPost(Struct, frozen=True):
    """What is to be posted, by whom, and to which group.

    It is signed with the named key, or the newest of the author's active ones that the identity holds. `known` are
    users that earlier posts to this group were sealed to: the others are checked against its members and told as
    newcomers. The same `id` makes it the same post, however often it is sent. `attachments` are files of the author's
    that `client.uploads` has sealed and sent.
    """

    group_id: UUID
    author_id: UUID
    title: str
    content: str
    withhold: Withhold = Withhold()
    known: frozenset[UUID] = frozenset()
    signing_key_id: UUID | None = None
    attachments: tuple[Attachment, ...] = ()
    id: UUID = msgspec.field(default_factory=uuid7)

    def __repr__(self) -> str:
        # Not a word of the text into a traceback.
        return f"NewPost(id={self.id!s})"


class Outgoing(Struct, frozen=True, kw_only=True):
    """A sealed post that only has to be sent: sending it twice is the same as once."""

    new: NewPost
    sealed: SealedPost
    post_key: bytes
    signing_key_id: UUID
    recipients: Recipients
    sealed_keys: dict[UUID, bytes]
    """80 bytes each, by the id of the key that they are sealed to."""

    @property
    def ids(self) -> PostIds:
        return PostIds(self.new.id, self.new.group_id, self.new.author_id)

    def __repr__(self) -> str:
        # The key opens the post: not into a traceback.
        return f"Outgoing(post={self.new.id!s})"


class Posted(Struct, frozen=True, kw_only=True):
    """What the server stored, and whom it was sealed to in the end."""

    post: Post
    recipients: Recipients


async def publish(client: Client, identity: Identity, people: People, new: NewPost) -> Posted:
    """Seal a post here and send it: `prepare_post` and `send_post` in one."""
    return await send_post(client, people, await prepare_post(client, identity, people, new))


async def prepare_post(client: Client, identity: Identity, people: People, new: NewPost) -> Outgoing:
    """Choose the recipients and seal a post to them. Nothing is sent.

    Raises UntrustedRecipients (and another CannotOpen for keys that are false), NoIdentity, BadText, and ClientError
    where nobody is left to seal to.
    """
    if not 1 <= len(new.title) <= MAX_TITLE_CHARACTERS:
        raise BadText(f"a title has 1 to {MAX_TITLE_CHARACTERS} characters")
    keys = await client.group_keys(new.group_id)
    signing_key_id, signing_key = _choose_signing_key(identity, new.author_id, keys, new.signing_key_id)
    check_withheld(new.withhold, keys)
    recipients = await _choose(client, people, new, keys)
    ids = PostIds(new.id, new.group_id, new.author_id)
    post_key = sealing_posts.new_post_key()
    try:
        sealed = sealing_posts.seal_post(
            ids, new.title, new.content, new.attachments, post_key, signing_seed=signing_key.signing_seed
        )
    except SealingError:
        raise BadText("this text is not valid Unicode") from None
    recipients, sealed_keys = await _seal_to(post_key, recipients)
    return _checked(
        Outgoing(
            new=new,
            sealed=sealed,
            post_key=post_key,
            signing_key_id=signing_key_id,
            recipients=recipients,
            sealed_keys=sealed_keys,
        )
    )


async def send_post(client: Client, people: People, outgoing: Outgoing) -> Posted:
    """Send a sealed post; where members or keys have changed since, seal to the new ones and send it again, bounded.

    Raises what `prepare_post` raises, for keys that have come since; Conflict `recipients_changed` where it never ends.
    After a NetworkError nobody knows whether it was stored: send the same `outgoing` again.
    """
    tried = 0
    while True:
        tried += 1
        try:
            post = await _send(client, outgoing)
        except Conflict as error:
            if error.code != "recipients_changed" or tried == SENDING_TRIES:
                raise
            outgoing = await _follow_change(client, people, outgoing, error.problem)
        else:
            _check_stored(post, outgoing)
            return Posted(post=post, recipients=outgoing.recipients)


async def _send(client: Client, outgoing: Outgoing) -> Post:
    sealed_keys = [
        SealedKey(public_key_id=key_id, sealed_key=sealed_key) for key_id, sealed_key in outgoing.sealed_keys.items()
    ]
    withheld = [one.key.id for one in outgoing.recipients.withheld]
    attachment_ids = [one.id for one in outgoing.new.attachments]
    try:
        return await client.create_sealed_post(
            outgoing.ids, outgoing.sealed, outgoing.signing_key_id, sealed_keys, withheld, attachment_ids
        )
    except Invalid as error:
        if error.code != "too_large":
            raise
        raise ClientError(
            f"this post, sealed to {len(sealed_keys)} keys, is larger than the server takes in one request"
        ) from None


async def _follow_change(client: Client, people: People, outgoing: Outgoing, problem: Problem) -> Outgoing:
    """The same post, for the keys that the group has now."""
    missing, gone = _read_keys(problem.missing), frozenset(problem.unknown)
    named = outgoing.sealed_keys.keys() | {one.key.id for one in outgoing.recipients.withheld}
    if {key.id for key in missing} & named or not (missing or gone & named):
        raise BadAnswer("the server says that the group's keys have changed, and not how")
    added = await _choose(client, people, outgoing.new, missing)
    added, added_keys = await _seal_to(outgoing.post_key, added)
    before = outgoing.recipients
    recipients = Recipients(
        accepted=(*(one for one in before.accepted if one.key.id not in gone), *added.accepted),
        withheld=(*(one for one in before.withheld if one.key.id not in gone), *added.withheld),
        newcomers=before.newcomers | added.newcomers,
        names=before.names | added.names,
    )
    sealed_keys = {key_id: sealed for key_id, sealed in outgoing.sealed_keys.items() if key_id not in gone}
    return _checked(msgspec.structs.replace(outgoing, recipients=recipients, sealed_keys={**sealed_keys, **added_keys}))


async def _choose(client: Client, people: People, new: NewPost, keys: Sequence[Key]) -> Recipients:
    try:
        return await choose_recipients(client, people, new.group_id, keys, new.withhold, new.known)
    except Substituted:
        # Somebody may have left between the two answers, and is then gone from the keys as well.
        listed = {key.id for key in await client.group_keys(new.group_id)}
        still = [key for key in keys if key.id in listed]
        return await choose_recipients(client, people, new.group_id, still, new.withhold, new.known)


def _choose_signing_key(
    identity: Identity, author_id: UUID, keys: Sequence[Key], preferred_id: UUID | None
) -> tuple[UUID, HeldKey]:
    """A key that the group's readers find among the author's active ones, and whose private half is here."""
    held = [
        (key, own)
        for key in sorted(keys, key=lambda one: (one.id == preferred_id, one.created_at), reverse=True)
        if key.user_id == author_id and (own := identity.held(key.id)) is not None
    ]
    if not held:
        raise NoIdentity("no key on this machine is an active key of yours")
    key, own = held[0]
    if (key.public_key, key.verify_key) != (own.public_key, own.verify_key):
        raise Substituted("the server shows another key under the id of yours")
    return key.id, own


async def _seal_to(post_key: bytes, recipients: Recipients) -> tuple[Recipients, dict[UUID, bytes]]:
    """Seal in threads: 50 µs of a core for each key. Whoever turns out not to be sealable to is openly withheld."""

    def seal_some(some: Sequence[AcceptedKey]) -> list[bytes | None]:
        return [_seal(post_key, one.key.public_key) for one in some]

    accepted = recipients.accepted
    portions = [accepted[start : start + KEYS_AT_ONCE] for start in range(0, len(accepted), KEYS_AT_ONCE)]
    done = await asyncio.gather(*(asyncio.to_thread(seal_some, portion) for portion in portions))
    sealed = list(zip(accepted, (one for portion in done for one in portion), strict=True))
    unusable = tuple(
        Withheld(key=one.key, reason="nothing can be sealed to it") for one, sealed_key in sealed if sealed_key is None
    )
    return (
        msgspec.structs.replace(
            recipients,
            accepted=tuple(one for one, sealed_key in sealed if sealed_key is not None),
            withheld=recipients.withheld + unusable,
        ),
        {one.key.id: sealed_key for one, sealed_key in sealed if sealed_key is not None},
    )


def _seal(post_key: bytes, public_key: bytes) -> bytes | None:
    try:
        return sealing_posts.seal_key(post_key, public_key)
    except SealingError:
        return None


def _read_keys(missing: Sequence[Any]) -> list[Key]:
    try:
        return msgspec.convert(missing, list[Key])
    except msgspec.ValidationError as error:
        raise BadAnswer(f"the server named missing keys that are none: {error}") from None


def _checked(outgoing: Outgoing) -> Outgoing:
    if not outgoing.sealed_keys:
        raise ClientError("nobody is left to seal this post to: every key of the group is withheld")
    return outgoing


def _check_stored(post: Post, outgoing: Outgoing) -> None:
    """What is stored must be what was sent: else others would be shown something that the author did not see."""
    stored = (post.id, post.group_id, post.author_id, post.sealed_by, post.signing_key_id)
    parts = (post.heading, post.content, post.commitment, post.signature)
    sealed = outgoing.sealed
    if stored != (*outgoing.ids, "author", outgoing.signing_key_id) or parts != (
        sealed.heading,
        sealed.content,
        sealed.commitment,
        sealed.signature,
    ):
        raise Substituted("the server stored something else than the post that was sent")
