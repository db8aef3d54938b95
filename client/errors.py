"""Everything that can go wrong for a client, in one small tree under `ClientError`.

Each error is one fact, and its text is one line that a person can read. Text that came from a server is kept as it
came: whoever prints it to a terminal cleans it first (`client.terminal`).
"""

import re
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec


class ClientError(Exception):
    """The root: all that this package raises on purpose."""


class BadAddress(ClientError):
    """The server's address is no http or https URL."""


class BadText(ClientError):
    """A text can't be sent: it is no valid Unicode."""


class BadLinkCode(ClientError):
    """What was given as the code of a new device is none, or not all of it."""


class BadFileLink(ClientError):
    """What was given as a link to a file is none, or not all of it."""


class NetworkError(ClientError):
    """The server was not reached, or the connection broke before its answer was whole."""


class BadAnswer(ClientError):
    """Something answered, but not what the contract of the interface says."""


class FieldProblem(msgspec.Struct, frozen=True):
    """One wrong place in a request: a JSON pointer, and what is wrong there."""

    pointer: str = ""
    detail: str = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457 problem details as the server sends them; members that only some codes have are None elsewhere."""

    status: int
    code: str = ""
    title: str = ""
    detail: str = ""
    errors: tuple[FieldProblem, ...] = ()
    request_id: UUID | None = None
    retry_at: datetime | None = None
    group_ids: tuple[UUID, ...] = ()
    max_bytes: int | None = None
    missing: tuple[Any, ...] = ()
    unknown: tuple[UUID, ...] = ()


class Refused(ClientError):
    """The server understood and said no: `problem.code` says why. `retry_after` is in seconds, if it was given."""

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        self.problem = problem
        self.retry_after = retry_after
        super().__init__(describe(problem))

    @property
    def code(self) -> str:
        return self.problem.code

    @property
    def status(self) -> int:
        return self.problem.status


class Unauthenticated(Refused):
    """401: no credential, a wrong one, or one that has ended."""


class Forbidden(Refused):
    """403: this member, or this credential, lacks the right."""


class NotFound(Refused):
    """404: absent, or not the caller's to know."""


class Conflict(Refused):
    """409: it can't be done as things stand."""


class Invalid(Refused):
    """400, 413, 415 or 422: the request is wrong and will be wrong again."""


class RateLimited(Refused):
    """429: too many requests, or a quota is used up."""


class Unavailable(Refused):
    """5xx: the server, or what it needs, is away."""


class SocketClosed(ClientError):
    """The server closed the WebSocket with a code after which connecting again is no use."""

    def __init__(self, code: int, meaning: str) -> None:
        self.code = code
        super().__init__(f"the server closed the connection: {meaning} ({code})")


class CredentialEnded(SocketClosed):
    """The WebSocket was closed because its credential is missing, wrong, or ended."""


class NotLoggedIn(ClientError):
    """A call needs a session, and there is none."""


class NoCredential(ClientError):
    """A password or passphrase is needed, and nobody is there to type it."""


class StorageError(ClientError):
    """A file can't be read or written, or one of this program's own is open to others."""


class IdentityError(ClientError):
    """The private keys can't be had."""


class NoIdentity(IdentityError):
    """There is no identity file yet."""


class WrongPassphrase(IdentityError):
    """The passphrase does not open the identity file, or the file was changed."""


class CannotOpen(ClientError):
    """A post, or an answer about a key, can't be opened or does not verify. Nothing of it is to be believed."""


class NotReadable(CannotOpen):
    """The server holds no key of this post for the reader; `access` says why, in the words of the interface."""

    def __init__(self, post_id: UUID, access: str, failure: str | None = None) -> None:
        self.post_id = post_id
        self.access = access
        self.failure = failure
        super().__init__(f"this post can't be read: {access}")


class HeldElsewhere(CannotOpen):
    """A post is sealed to other keys of the reader, whose private halves are on other devices."""

    def __init__(self, key_id: UUID | None) -> None:
        self.key_id = key_id
        """The newest key of this device, which another one can hand the post to."""
        super().__init__("this post is readable with a key of yours that is not on this device")


class KeyRevoked(CannotOpen):
    """A post is sealed to other keys of the reader, and those of this device are revoked."""

    def __init__(self, key_id: UUID) -> None:
        self.key_id = key_id
        super().__init__("this device's key was revoked: no post is served to it any more")


class WrongPostKey(CannotOpen):
    """None of the post keys that the reader was given fits what the post is committed to."""

    def __init__(self, post_id: UUID, key_ids: tuple[UUID, ...]) -> None:
        self.post_id = post_id
        self.key_ids = key_ids
        super().__init__("cannot open this post: the key that came with it is not the one that it was sealed with")


class GrantReturned(CannotOpen):
    """What was granted does not open the post, and was given back."""

    def __init__(self, post_id: UUID, asked_again: UUID | None, text: str) -> None:
        self.post_id = post_id
        self.asked_again = asked_again
        super().__init__(text)


class Substituted(BadAnswer, CannotOpen):
    """The server answered with something else than what was asked for, or kept something else than what was sent."""


class AlreadyDecided(ClientError):
    """A read request is not pending any more."""


class CannotGrant(CannotOpen):
    """A read request is not to be approved as it stands."""


class UntrustedKey(CannotOpen):
    """A user shows a key that is neither pinned nor endorsed by a pinned one: a new device, or somebody else."""

    def __init__(self, user_id: UUID, name: str, pinned: tuple[str, ...], new: str) -> None:
        self.user_id = user_id
        self.name = name
        self.pinned = pinned
        self.new = new
        super().__init__("a key of this user is neither known here nor endorsed by a known one")


class UntrustedRecipients(UntrustedKey):
    """A post would be sealed to such keys: all of them, of which this error is about the first."""

    def __init__(self, untrusted: tuple[UntrustedKey, ...]) -> None:
        first = untrusted[0]
        super().__init__(first.user_id, first.name, first.pinned, first.new)
        self.untrusted = untrusted


_LENGTH = re.compile(r"Expected `(?P<kind>str|array)` of length (?P<bound>[<>]=) (?P<length>\d+)")

_BY_STATUS: dict[int, type[Refused]] = {
    400: Invalid,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: RateLimited,
}


def refusal(problem: Problem, retry_after: float | None = None) -> Refused:
    """The error of the tree that fits a problem's status."""
    kind = _BY_STATUS.get(problem.status, Unavailable if problem.status >= 500 else Refused)
    return kind(problem, retry_after)


def describe(problem: Problem) -> str:
    """One line: what is wrong, and where."""
    said = problem.detail or problem.title or f"the server answered {problem.status}"
    places = "; ".join(f"{field.pointer.lstrip('/') or 'the request'}: {_phrase(field)}" for field in problem.errors)
    if not places:
        return said
    # Of what is merely invalid the places say all there is to know.
    return places if problem.code == "invalid" else f"{said} ({places})"


def _phrase(field: FieldProblem) -> str:
    """What is wrong with one field. Of its length the server speaks as programs do."""
    found = _LENGTH.fullmatch(field.detail)
    if found is None:
        return field.detail
    is_text, bound, length = found["kind"] == "str", found["bound"], int(found["length"])
    if (bound, length) == (">=", 1):
        return "is empty"
    thing = "character" if is_text else "item"
    counted = f"{length} {thing}" if length == 1 else f"{length} {thing}s"
    return f"is shorter than {counted}" if bound == ">=" else f"is longer than {counted}"
