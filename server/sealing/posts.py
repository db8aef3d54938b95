"""A post: sealed once, opened by each reader.

    post_key   ── 32 random bytes, for this post only
    heading    ── nonce ‖ XChaCha20-Poly1305(the title, padded)       what lists show
    content    ── nonce ‖ XChaCha20-Poly1305(the document, padded)
    commitment ── BLAKE2b-256 keyed with post_key, over ids, heading and content
    signature  ── by the author's signing key, over ids, heading, content and commitment; where the author sealed it
    sealed_key ── post_key for one reader key

XChaCha20-Poly1305 alone does not bind a ciphertext to one key: it can be made to open to different texts under
different keys. The commitment does, so all who open the same commitment read the same post, and a key that somebody
grants later is proved right by it. Who wrote it is proved by the signature alone.
"""

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

import msgspec

from server.sealing import boxes, ciphers, signatures, texts
from server.sealing.digests import HASH_BYTES, blake2b_256, is_bytes, keyed_blake2b_256, same
from server.sealing.errors import BadSignature, CannotOpen, InvalidKey, MalformedText, WrongSize
from server.sealing.texts import BLOCK_BYTES, Attachment, Document

__all__ = [
    "COMMITMENT_BYTES",
    "POST_KEY_BYTES",
    "SEALED_KEY_BYTES",
    "Attachment",
    "Document",
    "Nonces",
    "PostIds",
    "SealedPost",
    "check_sizes",
    "new_nonces",
    "new_post_key",
    "open_heading",
    "open_key",
    "open_post",
    "seal_key",
    "seal_post",
    "seal_texts",
    "verify_signature",
]

HEADING_LABEL = b"secureblogs head v1"
CONTENT_LABEL = b"secureblogs body v1"
COMMITMENT_LABEL = b"secureblogs commit v1"
SIGNATURE_LABEL = b"secureblogs sign v1"

POST_KEY_BYTES = ciphers.KEY_BYTES
COMMITMENT_BYTES = HASH_BYTES
SEALED_KEY_BYTES = boxes.OVERHEAD_BYTES + POST_KEY_BYTES


class PostIds(NamedTuple):
    """The ids that everything in a post is bound to."""

    post: UUID
    group: UUID
    author: UUID

    @property
    def joined(self) -> bytes:
        """48 bytes: post, group, author."""
        return self.post.bytes + self.group.bytes + self.author.bytes


class Nonces(NamedTuple):
    """24 bytes each, drawn anew for each sealing, and never one for both."""

    heading: bytes
    content: bytes


class SealedPost(msgspec.Struct, frozen=True):
    """What the server stores of a post, beside its sealed keys.

    `heading` and `content` have 40 + 256·n bytes, `content_hash` and `commitment` 32, `signature` 64 or it is None.
    """

    heading: bytes
    content: bytes
    content_hash: bytes
    commitment: bytes
    signature: bytes | None


def new_post_key() -> bytes:
    """32 random bytes, for one post."""
    return ciphers.new_key()


def new_nonces() -> Nonces:
    """Two nonces, for one sealing."""
    return Nonces(ciphers.new_nonce(), ciphers.new_nonce())


def seal_post(
    ids: PostIds,
    title: str,
    content: str,
    attachments: Iterable[Attachment],
    post_key: bytes,
    *,
    signing_seed: bytes | None = None,
    nonces: Nonces | None = None,
) -> SealedPost:
    """Seals a post; signed where the author does it, with `signing_seed` None where the server does.

    `nonces` are given only to reproduce a sealing. Raises MalformedText for what a reader would refuse (a lone
    surrogate, two attachments of one id, keys or hashes that are not 32 bytes), InvalidKey for a key or nonce of a
    wrong length.
    """
    heading_text = texts.write_heading(title)
    document_text = texts.write_document(Document(content, tuple(attachments)))
    return seal_texts(ids, heading_text, document_text, post_key, signing_seed=signing_seed, nonces=nonces)


def seal_texts(
    ids: PostIds,
    heading_text: bytes,
    document_text: bytes,
    post_key: bytes,
    *,
    signing_seed: bytes | None = None,
    nonces: Nonces | None = None,
) -> SealedPost:
    """Seals texts that are written and padded already; raises InvalidKey for a key or nonce of a wrong length."""
    nonces = new_nonces() if nonces is None else nonces
    # One nonce for two texts under one key would give away the exclusive or of both.
    if nonces.heading == nonces.content:
        raise InvalidKey
    heading = ciphers.encrypt(heading_text, HEADING_LABEL + ids.joined, nonces.heading, post_key)
    content = ciphers.encrypt(document_text, CONTENT_LABEL + ids.joined, nonces.content, post_key)
    heading_hash, content_hash = blake2b_256(heading), blake2b_256(content)
    commitment = keyed_blake2b_256(post_key, _committed(ids, heading_hash, content_hash))
    signature = None
    if signing_seed is not None:
        signature = signatures.sign(_signed(ids, heading_hash, content_hash, commitment), signing_seed)
    return SealedPost(heading, content, content_hash, commitment, signature)


def check_sizes(heading: bytes, content: bytes, commitment: bytes, signature: bytes | None) -> None:
    """Raises WrongSize, naming the field, for a length that no sealing gives."""
    for field, ciphertext in (("heading", heading), ("content", content)):
        blocks, rest = divmod(len(ciphertext) - ciphers.OVERHEAD_BYTES, BLOCK_BYTES)
        if blocks < 1 or rest:
            raise WrongSize(field, f"has {ciphers.OVERHEAD_BYTES} + {BLOCK_BYTES}·n bytes")
    if len(commitment) != COMMITMENT_BYTES:
        raise WrongSize("commitment", f"has {COMMITMENT_BYTES} bytes")
    if signature is not None and len(signature) != signatures.SIGNATURE_BYTES:
        raise WrongSize("signature", f"has {signatures.SIGNATURE_BYTES} bytes")


def verify_signature(
    ids: PostIds,
    *,
    heading: bytes,
    content_hash: bytes,
    commitment: bytes,
    signature: bytes | None,
    verify_key: bytes | None,
) -> None:
    """Raises BadSignature unless the author's signature holds; lengths and None included."""
    if not is_bytes(content_hash, HASH_BYTES) or not is_bytes(commitment, COMMITMENT_BYTES):
        raise BadSignature
    message = _signed(ids, blake2b_256(heading), content_hash, commitment)
    if not signatures.is_signed(message, signature, verify_key):
        raise BadSignature


def open_heading(
    ids: PostIds,
    post_key: bytes,
    *,
    heading: bytes,
    content_hash: bytes,
    commitment: bytes,
    signature: bytes | None,
    verify_key: bytes | None,
    sealed_by: str,
) -> str:
    """The title of a post of which the content is not given: every check but those of content; else CannotOpen.

    `ids` are those that the reader asked for. `sealed_by` is "author", and then `signature` must hold by `verify_key`,
    or "server", and then there is none.
    """
    _check(
        ids,
        post_key,
        heading=heading,
        content_hash=content_hash,
        commitment=commitment,
        signature=signature,
        verify_key=verify_key,
        sealed_by=sealed_by,
    )
    return _open_heading_text(ids, post_key, heading)


def open_post(
    ids: PostIds,
    post_key: bytes,
    *,
    heading: bytes,
    content: bytes,
    content_hash: bytes,
    commitment: bytes,
    signature: bytes | None,
    verify_key: bytes | None,
    sealed_by: str,
) -> tuple[str, Document]:
    """Title and document of a whole post; else CannotOpen. Arguments as for `open_heading`."""
    _check(
        ids,
        post_key,
        heading=heading,
        content_hash=content_hash,
        commitment=commitment,
        signature=signature,
        verify_key=verify_key,
        sealed_by=sealed_by,
    )
    if not isinstance(content, bytes) or not same(blake2b_256(content), content_hash):
        raise CannotOpen
    return _open_heading_text(ids, post_key, heading), _open_document(ids, post_key, content)


def seal_key(post_key: bytes, public_key: bytes) -> bytes:
    """The post key for one reader key, 80 bytes.

    Raises UnusableKey for a public key that is not canonical, of low order, or not 32 bytes; InvalidKey unless the post
    key has 32 bytes.
    """
    if not is_bytes(post_key, POST_KEY_BYTES):
        raise InvalidKey
    return boxes.seal(post_key, public_key)


def open_key(sealed_key: bytes, private_key: bytes) -> bytes:
    """The post key, 32 bytes, sealed to the public half of `private_key`; else CannotOpen.

    It is whatever the sealer put there: `open_post` tells whether it is the key of that post.
    """
    # Anything may be sealed to a public key: a box of another length would be a key of another length.
    if not is_bytes(sealed_key, SEALED_KEY_BYTES):
        raise CannotOpen
    post_key = boxes.unseal(sealed_key, private_key)
    if post_key is None:
        raise CannotOpen
    return post_key


def _check(
    ids: PostIds,
    post_key: bytes,
    *,
    heading: bytes,
    content_hash: bytes,
    commitment: bytes,
    signature: bytes | None,
    verify_key: bytes | None,
    sealed_by: str,
) -> None:
    if not is_bytes(post_key, POST_KEY_BYTES) or not isinstance(heading, bytes):
        raise CannotOpen
    if not is_bytes(content_hash, HASH_BYTES) or not is_bytes(commitment, COMMITMENT_BYTES):
        raise CannotOpen
    heading_hash = blake2b_256(heading)
    if not same(keyed_blake2b_256(post_key, _committed(ids, heading_hash, content_hash)), commitment):
        raise CannotOpen
    if sealed_by == "author":
        message = _signed(ids, heading_hash, content_hash, commitment)
        if not signatures.is_signed(message, signature, verify_key):
            raise CannotOpen
    elif sealed_by != "server" or signature is not None:
        raise CannotOpen


def _open_heading_text(ids: PostIds, post_key: bytes, heading: bytes) -> str:
    text = ciphers.decrypt(heading, HEADING_LABEL + ids.joined, post_key)
    if text is None:
        raise CannotOpen
    try:
        return texts.read_heading(text)
    except MalformedText:
        raise CannotOpen from None


def _open_document(ids: PostIds, post_key: bytes, content: bytes) -> Document:
    text = ciphers.decrypt(content, CONTENT_LABEL + ids.joined, post_key)
    if text is None:
        raise CannotOpen
    try:
        return texts.read_document(text)
    except MalformedText:
        raise CannotOpen from None


# The heading enters as its hash, so that every part has a fixed length and the joined bytes have one meaning.


def _committed(ids: PostIds, heading_hash: bytes, content_hash: bytes) -> bytes:
    return COMMITMENT_LABEL + ids.joined + heading_hash + content_hash


def _signed(ids: PostIds, heading_hash: bytes, content_hash: bytes, commitment: bytes) -> bytes:
    return SIGNATURE_LABEL + ids.joined + heading_hash + content_hash + commitment
