"""What the server says, as structs. Unknown fields are passed over, so that a newer server can add some.

Bytes travel as base64 and arrive here as bytes; times carry their zone. States (`status`, `access`, `role`,
`sealed_by`) stay strings: a word that this version does not know is no reason to fail.
"""

import datetime as dt
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


class OpenSession(Struct, frozen=True, kw_only=True):
    """Where the caller is logged in. `is_current` is the session that asked."""

    id: UUID
    created_at: datetime
    expires: datetime
    is_current: bool


class ApiKey(Struct, frozen=True, kw_only=True):
    """A credential for programs. `scopes` are `read` and `write`; without `expires` it never ends by itself."""

    id: UUID
    label: str
    scopes: list[str]
    created_at: datetime
    expires: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


class NewApiKey(ApiKey, frozen=True, kw_only=True):
    token: str
    """`sbk_…`. It is shown once and can't be asked for again."""

    def __repr__(self) -> str:
        # The token is as good as the password: not into tracebacks.
        return f"NewApiKey(id={self.id!s})"


class Counts(Struct, frozen=True, kw_only=True):
    requests: int
    posts: int
    upload_bytes: int


class Day(Counts, frozen=True, kw_only=True):
    date: dt.date


class Usage(Struct, frozen=True, kw_only=True):
    """What the caller did today, may do a day (0 is any number), and did on each of the last days, newest first."""

    today: Counts
    limits: Counts
    days: list[Day]


class AuditEntry(Struct, frozen=True, kw_only=True):
    """Who did what, to whom. `ids` has further ids and fixed words, never a text that somebody wrote."""

    id: UUID
    at: datetime
    action: str
    actor_id: UUID | None = None
    group_id: UUID | None = None
    user_id: UUID | None = None
    ids: dict[str, str | list[str]] = {}


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


class StoredFile(Struct, frozen=True, kw_only=True):
    """A file that was uploaded: its `size` and that of its sealed stream, in bytes."""

    id: UUID
    sealed_by: str
    size: int
    sealed_size: int


class DownloadLink(Struct, frozen=True, kw_only=True):
    """Who has its address downloads a sealed stream until it `expires`; `downloads_left` is None for any number."""

    id: UUID
    created_at: datetime
    expires: datetime
    downloads_left: int | None = None
    revoked_at: datetime | None = None


class NewDownloadLink(Struct, frozen=True, kw_only=True):
    id: UUID
    url: str
    """It is shown once and can't be asked for again."""
    expires: datetime

    def __repr__(self) -> str:
        # Who has the address has the stream: not into tracebacks.
        return f"NewDownloadLink(id={self.id!s})"
