"""Opening posts: what the server sends is believed only as far as it verifies.

The post key is opened with a private key of this identity; the commitment is checked before anything is decrypted, the
signature too where the author sealed the post. All of it is bound to the id that was asked for. A post that the server
sealed bears no signature: it is *unsigned, vouched for by the server*.
"""

from typing import TypedDict
from uuid import UUID

from msgspec import Struct

from client.api import Client
from client.errors import CannotOpen, HeldElsewhere, KeyRevoked, NotFound, NotReadable, WrongPostKey
from client.identity import Identity
from client.models import Post
from client.people import People
from client.pins import Trust
from server.sealing import posts as sealing_posts
from server.sealing.errors import SealingError
from server.sealing.posts import Document, PostIds


class Proofs(TypedDict):
    heading: bytes
    content_hash: bytes
    commitment: bytes
    signature: bytes | None
    verify_key: bytes | None
    sealed_by: str


class OpenedPost(Struct, frozen=True, kw_only=True):
    """A post that verified. `document` is None where it was opened from a list, by its heading.

    `signed` is None where the server vouches for the author, else how far the signing key is trusted.
    """

    post: Post
    title: str
    document: Document | None
    signed: Trust | None
    post_key: bytes

    def __repr__(self) -> str:
        # Neither the key nor the text belongs into a traceback.
        return f"OpenedPost(post={self.post.id!s})"


async def read_post(client: Client, identity: Identity, people: People, post_id: UUID) -> OpenedPost:
    """Fetch a post and open it whole. Raises NotReadable, CannotOpen, UntrustedKey."""
    return await open_post(identity, people, await fetch_readable(client, post_id))


async def fetch_readable(client: Client, post_id: UUID) -> Post:
    """A whole post that the server has a key for; else NotReadable, with the reason. It needs no private key."""
    post = await client.post(post_id)
    if post.access != "readable":
        raise NotReadable(post.id, post.access, post.failure)
    if post.content is None:
        raise CannotOpen("the server sent this post without its content")
    return post


async def open_post(identity: Identity, people: People, post: Post) -> OpenedPost:
    """Open what the server sent of a post: all of it, or the heading of one from a list.

    Raises CannotOpen, and of its kinds UntrustedKey, HeldElsewhere, KeyRevoked, and WrongPostKey where no key that the
    server sent for this identity fits the post (`client.returning` gives such a grant back).
    """
    if post.heading is None or post.content_hash is None or post.commitment is None or post.sealed_by is None:
        raise CannotOpen("the server sent only a part of this post")
    verify_key, signed = await _author_key(people, post)
    ids = PostIds(post.id, post.group_id, post.author_id)
    held = [(identity.held(sealed.public_key_id), sealed) for sealed in post.sealed_keys]
    mine = [(key.private_key, sealed) for key, sealed in held if key is not None]
    if not mine:
        raise await _why_not_here(identity, people)
    proofs: Proofs = {
        "heading": post.heading,
        "content_hash": post.content_hash,
        "commitment": post.commitment,
        "signature": post.signature,
        "verify_key": verify_key,
        "sealed_by": post.sealed_by,
    }
    for private_key, sealed in mine:
        post_key = _fitting_key(ids, private_key, sealed.sealed_key, proofs)
        if post_key is not None:
            break
    else:
        raise WrongPostKey(post.id, tuple(sealed.public_key_id for _, sealed in mine))
    try:
        title, document = _open(ids, post_key, post.content, proofs)
    except SealingError:
        raise CannotOpen("cannot open this post") from None
    return OpenedPost(post=post, title=title, document=document, signed=signed, post_key=post_key)


async def _why_not_here(identity: Identity, people: People) -> CannotOpen:
    """The post is sealed to other keys of the reader: this device's are revoked, or were not given this post."""
    enrolled = [(key, key.key_id) for key in identity.keys if key.key_id is not None]
    if not enrolled:
        return HeldElsewhere(None)
    newest, newest_id = enrolled[-1]
    try:
        own = (await people.user(newest.user_id)).keys
    except NotFound:
        own = []
    revoked = {key.id for key in own if key.revoked_at is not None}
    active = [key_id for key, key_id in enrolled if key.user_id == newest.user_id and key_id not in revoked]
    return HeldElsewhere(active[-1]) if active else KeyRevoked(newest_id)


def _fitting_key(ids: PostIds, private_key: bytes, sealed_key: bytes, proofs: Proofs) -> bytes | None:
    """The post key in a sealed key, if the post is committed to it; whoever signed it or not does not matter here."""
    unsigned: Proofs = {**proofs, "signature": None, "verify_key": None, "sealed_by": "server"}
    try:
        post_key = sealing_posts.open_key(sealed_key, private_key)
        sealing_posts.open_heading(ids, post_key, **unsigned)
    except SealingError:
        return None
    return post_key


def _open(ids: PostIds, post_key: bytes, content: bytes | None, proofs: Proofs) -> tuple[str, Document | None]:
    if content is None:
        return sealing_posts.open_heading(ids, post_key, **proofs), None
    return sealing_posts.open_post(ids, post_key, content=content, **proofs)


async def _author_key(people: People, post: Post) -> tuple[bytes | None, Trust | None]:
    if post.sealed_by != "author":
        return None, None
    if post.signing_key_id is None:
        raise CannotOpen("this post claims to be sealed by its author, and names no key of theirs")
    accepted = await people.signing_key(post.author_id, post.signing_key_id, post.created_at)
    return accepted.key.verify_key, accepted.trust
