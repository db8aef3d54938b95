"""Drafts: what a post holds while it waits to be sealed by the server.

`worker key id(8) ‖ crypto_box_seal(label ‖ ids ‖ JSON)`. The API process seals a draft to the workers' public key and
can't open it again. The ids inside are compared with those of the row, so that a draft copied under another post opens
for nobody; the key id alone chooses the private key.
"""

from collections.abc import Iterable, Sequence
from uuid import UUID

from server.sealing import boxes, texts
from server.sealing.digests import blake2b_256, is_bytes
from server.sealing.errors import DraftMismatch, DraftUnreadable, InvalidKey, MalformedText
from server.sealing.posts import PostIds
from server.sealing.texts import Attachment, Draft

__all__ = [
    "WORKER_KEY_ID_BYTES",
    "Draft",
    "open_draft",
    "open_file_draft",
    "seal_draft",
    "seal_file_draft",
    "worker_key_id",
]

DRAFT_LABEL = b"secureblogs draft v1"
FILE_DRAFT_LABEL = b"secureblogs draft file v1"

WORKER_KEY_ID_BYTES = 8


def worker_key_id(public_key: bytes) -> bytes:
    """8 bytes that name a worker key of 32 bytes; else InvalidKey."""
    if not is_bytes(public_key, boxes.PUBLIC_KEY_BYTES):
        raise InvalidKey
    return blake2b_256(public_key)[:WORKER_KEY_ID_BYTES]


def seal_draft(
    ids: PostIds, title: str, content: str, attachment_ids: Iterable[UUID], worker_public_key: bytes
) -> bytes:
    """The draft of a post, 124 bytes more than its JSON.

    Raises MalformedText for what a worker would refuse (a lone surrogate, an attachment named twice), UnusableKey for a
    worker key that can't be sealed to.
    """
    text = texts.write_draft(Draft(title, content, tuple(attachment_ids)))
    return _seal(DRAFT_LABEL + ids.joined + text, worker_public_key)


def open_draft(ids: PostIds, draft: bytes, worker_private_keys: Sequence[bytes]) -> Draft:
    """What the draft of the row with these ids holds.

    Raises DraftMismatch where it was sealed for other ids, DraftUnreadable for all else that is wrong in a draft (no
    key with its key id, a changed byte, another label, a text that does not parse strictly), and InvalidKey where one
    of the workers' own keys is not 32 bytes.
    """
    text = _open(DRAFT_LABEL, ids.joined, draft, worker_private_keys)
    try:
        return texts.read_draft(text)
    except MalformedText:
        raise DraftUnreadable from None


def seal_file_draft(file: Attachment, owner_id: UUID, worker_public_key: bytes) -> bytes:
    """What the workers need to put a server-sealed file into a post, 113 bytes more than its JSON.

    Raises MalformedText for what a worker would refuse, UnusableKey for a worker key that can't be sealed to.
    """
    return _seal(FILE_DRAFT_LABEL + file.id.bytes + owner_id.bytes + texts.write_file_draft(file), worker_public_key)


def open_file_draft(
    attachment_id: UUID, owner_id: UUID, draft: bytes, worker_private_keys: Sequence[bytes]
) -> Attachment:
    """The attachment of the row with these ids; raises as `open_draft` does."""
    text = _open(FILE_DRAFT_LABEL, attachment_id.bytes + owner_id.bytes, draft, worker_private_keys)
    try:
        return texts.read_file_draft(attachment_id, text)
    except MalformedText:
        raise DraftUnreadable from None


def _seal(message: bytes, worker_public_key: bytes) -> bytes:
    sealed = boxes.seal(message, worker_public_key)
    return worker_key_id(worker_public_key) + sealed


def _open(label: bytes, ids: bytes, draft: bytes, worker_private_keys: Sequence[bytes]) -> bytes:
    message = boxes.unseal(draft[WORKER_KEY_ID_BYTES:], _chosen(draft[:WORKER_KEY_ID_BYTES], worker_private_keys))
    # The label comes before the ids: the ids of another kind of draft are not compared with those of this one.
    if message is None or len(message) < len(label) + len(ids) or not message.startswith(label):
        raise DraftUnreadable
    if message[len(label) : len(label) + len(ids)] != ids:
        raise DraftMismatch
    return message[len(label) + len(ids) :]


def _chosen(key_id: bytes, worker_private_keys: Sequence[bytes]) -> bytes:
    for private_key in worker_private_keys:
        if worker_key_id(boxes.public_key_of(private_key)) == key_id:
            return private_key
    raise DraftUnreadable
