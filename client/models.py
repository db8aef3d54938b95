"""What the server says, as structs. Unknown fields are passed over, so that a newer server can add some.

Bytes travel as base64 and arrive here as bytes; times carry their zone. States (`status`, `access`, `role`,
`sealed_by`) stay strings: a word that this version does not know is no reason to fail.
"""

from datetime import datetime
from typing import Generic, TypeVar
from uuid import UUID

from msgspec import Struct

Item = TypeVar("Item")


class Page(Struct, Generic[Item], frozen=True, kw_only=True):
    """One answer of a list; `next_cursor` is None on the last page."""

    items: list[Item]
    next_cursor: str | None = None


class Token(Struct, frozen=True, kw_only=True):
    """A session's token (`sbs_…`) and when it ends. It is shown once and can't be asked for again."""

    token: str
    expires: datetime


class User(Struct, frozen=True, kw_only=True):
    id: UUID
    name: str
    created_at: datetime
    email: str | None = None
    is_admin: bool = False


class SignedUp(User, frozen=True, kw_only=True):
    token: Token


class LoggedIn(Struct, frozen=True, kw_only=True):
    token: Token
    user: User


class Key(Struct, frozen=True, kw_only=True):
    """The public halves of a user's keys. `fingerprint` is the server's word: compute it before comparing it."""

    id: UUID
    user_id: UUID
    public_key: bytes
    verify_key: bytes
    proof: bytes
    fingerprint: str
    label: str
    created_at: datetime
    endorsed_by: UUID | None = None
    endorsement: bytes | None = None
    revoked_at: datetime | None = None


class UserKeys(Struct, frozen=True, kw_only=True):
    """A user as others see it: the name, and every key it ever enrolled."""

    id: UUID
    name: str
    keys: list[Key]


class Group(Struct, frozen=True, kw_only=True):
    """A group; `role` is the caller's own."""

    id: UUID
    name: str
    role: str
    created_at: datetime
    created_by: UUID | None = None


class Member(Struct, frozen=True, kw_only=True):
    """`email` is there for owners, and for oneself."""

    user_id: UUID
    name: str
    role: str
    created_at: datetime
    email: str | None = None


class SealedKey(Struct, frozen=True, kw_only=True):
    """A post key sealed to one public key: 80 bytes."""

    public_key_id: UUID
    sealed_key: bytes


class Post(Struct, frozen=True, kw_only=True):
    """A post as the server keeps it. `content` is None in lists; all that is sealed is None until it is sealed."""

    id: UUID
    group_id: UUID
    author_id: UUID
    status: str
    access: str
    created_at: datetime
    sealed_by: str | None = None
    heading: bytes | None = None
    content: bytes | None = None
    content_hash: bytes | None = None
    commitment: bytes | None = None
    signature: bytes | None = None
    signing_key_id: UUID | None = None
    failure: str | None = None
    sealed_keys: list[SealedKey] = []
    sealed_at: datetime | None = None


class ReadRequest(Struct, frozen=True, kw_only=True):
    """Somebody asks to read a post. The key and its fingerprint are the server's word until they are checked."""

    id: UUID
    post_id: UUID
    group_id: UUID
    requester_id: UUID
    requester_name: str
    public_key_id: UUID
    public_key: bytes
    verify_key: bytes
    fingerprint: str
    status: str
    created_at: datetime
    decided_at: datetime | None = None
    decided_by: UUID | None = None


class Ticket(Struct, frozen=True, kw_only=True):
    """Opens one WebSocket, within `expires_in` seconds, where no header can be set."""

    ticket: str
    expires_in: int
