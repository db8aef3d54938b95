"""The JSON texts inside a post and its drafts: written in one way, read strictly.

A heading is `{"v":1,"title"}`, a document `{"v":1,"content","attachments"}`; both are padded with spaces to a multiple
of 256 bytes, so that a ciphertext tells no more of a length. The texts of drafts have no `v` and no padding.

What a reader refuses is refused before it is sealed: each text is read again by the strict reader once it is written.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar
from uuid import UUID

import msgspec

from server.sealing.digests import HASH_BYTES
from server.sealing.encoding import decode_base64, encode_base64
from server.sealing.errors import MalformedJSON, MalformedText, NotCanonical
from server.sealing.strict_json import loads

BLOCK_BYTES = 256
FILE_KEY_BYTES = 32

_T = TypeVar("_T")

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader needs to fetch, open and show a file.

    `size` is that of the plaintext, 0 to 2^53 - 1 bytes; `key` and `hash` (of the whole stream) have 32 bytes. `name`
    and `media_type` are any text from a stranger: to be shown, never to be used as a path.
    """

    id: UUID
    name: str
    media_type: str
    size: int
    key: bytes
    hash: bytes


class Document(msgspec.Struct, frozen=True):
    """What `content` holds; no two attachments have one id."""

    content: str
    attachments: tuple[Attachment, ...] = ()


class Draft(msgspec.Struct, frozen=True):
    """What a post waiting to be sealed by the server holds; `attachments` are ids, none twice."""

    title: str
    content: str
    attachments: tuple[UUID, ...] = ()


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _HeadingText(_Strict):
    v: Literal[1]
    title: str


class _FileText(_Strict):
    name: str
    media_type: str
    size: int
    key: str
    hash: str


class _AttachmentText(_Strict):
    id: str
    name: str
    media_type: str
    size: int
    key: str
    hash: str


class _DocumentText(_Strict):
    v: Literal[1]
    content: str
    attachments: list[_AttachmentText]


class _DraftText(_Strict):
    title: str
    content: str
    attachments: list[str]


def write_heading(title: str) -> bytes:
    """A padded heading, 256·n bytes; MalformedText where a reader would refuse it."""
    return _written(_HeadingText(1, title), read_heading, pad=True)


def read_heading(text: bytes) -> str:
    """The title in a padded heading; else MalformedText."""
    return _convert(_unpadded(text), _HeadingText).title


def write_document(document: Document) -> bytes:
    """A padded document, 256·n bytes; MalformedText where a reader would refuse it."""
    attachments = [
        _AttachmentText(str(file.id), file.name, file.media_type, file.size, *_secrets(file))
        for file in document.attachments
    ]
    return _written(_DocumentText(1, document.content, attachments), read_document, pad=True)


def read_document(text: bytes) -> Document:
    """What a padded document holds; else MalformedText."""
    document = _convert(_unpadded(text), _DocumentText)
    attachments = tuple(_attachment(_read_id(file.id), file) for file in document.attachments)
    _check_unique([file.id for file in attachments])
    return Document(document.content, attachments)


def write_draft(draft: Draft) -> bytes:
    """The text of a draft, not padded; MalformedText where a worker would refuse it."""
    text = _DraftText(draft.title, draft.content, [str(id) for id in draft.attachments])
    return _written(text, read_draft, pad=False)


def read_draft(text: bytes) -> Draft:
    """What the text of a draft holds; else MalformedText."""
    draft = _convert(text, _DraftText)
    attachments = tuple(_read_id(id) for id in draft.attachments)
    _check_unique(attachments)
    return Draft(draft.title, draft.content, attachments)


def write_file_draft(file: Attachment) -> bytes:
    """The text of an attachment draft, not padded; MalformedText where a worker would refuse it."""
    text = _FileText(file.name, file.media_type, file.size, *_secrets(file))
    return _written(text, lambda text: read_file_draft(file.id, text), pad=False)


def read_file_draft(attachment_id: UUID, text: bytes) -> Attachment:
    """What the text of an attachment draft holds; else MalformedText."""
    return _attachment(attachment_id, _convert(text, _FileText))


def _written(struct: _Strict, read: Callable[[bytes], object], *, pad: bool) -> bytes:
    try:
        text = msgspec.json.encode(struct)
    except (UnicodeEncodeError, OverflowError):
        # UnicodeEncodeError holds the text: see below for why it must not hang behind ours.
        text = b""
    if pad:
        text += b" " * (-len(text) % BLOCK_BYTES)
    read(text)
    return text


def _unpadded(text: bytes) -> bytes:
    if len(text) % BLOCK_BYTES:
        raise MalformedText
    text = text.rstrip(b" ")
    # JSON allows other white space after the object; padding is 0x20 alone.
    if not text.endswith(b"}"):
        raise MalformedText
    return text


def _convert(text: bytes, kind: type[_T]) -> _T:
    # The errors of a decoder name and quote what they read. Ours is raised when theirs is gone, not from within
    # `except`: a private text must not hang behind an error that is logged.
    try:
        return msgspec.convert(loads(text, allow_nul=True, digits_alone=True), kind)
    except (MalformedJSON, msgspec.ValidationError):
        pass
    raise MalformedText


def _attachment(attachment_id: UUID, text: _FileText | _AttachmentText) -> Attachment:
    return Attachment(
        id=attachment_id,
        name=text.name,
        media_type=text.media_type,
        size=text.size,
        key=_read_bytes(text.key, FILE_KEY_BYTES),
        hash=_read_bytes(text.hash, HASH_BYTES),
    )


def _secrets(file: Attachment) -> tuple[str, str]:
    return encode_base64(file.key), encode_base64(file.hash)


def _read_bytes(text: str, length: int) -> bytes:
    try:
        raw = decode_base64(text)
    except NotCanonical:
        raise MalformedText from None
    if len(raw) != length:
        raise MalformedText
    return raw


def _read_id(text: str) -> UUID:
    # UUID() takes braces, upper case and texts without hyphens: one id must have one text.
    if not _ID.fullmatch(text):
        raise MalformedText
    return UUID(text)


def _check_unique(ids: Sequence[UUID]) -> None:
    if len(set(ids)) != len(ids):
        raise MalformedText
