"""What can be wrong, as facts. `code` is what clients switch on. `detail` is the same for every case of it, but where
it says how much there may be.

The bases say of what kind a fact is; how a kind is answered over HTTP is decided in `server.app` alone.
"""

from typing import Any, ClassVar, NamedTuple


class DomainError(Exception):
    code: ClassVar[str]
    detail: str

    def __init__(self, **facts: Any) -> None:
        super().__init__(self.detail)
        self.facts = facts


class Unauthenticated(DomainError):
    code = "unauthenticated"
    detail = "A valid credential is needed."


class TokenExpired(Unauthenticated):
    code = "token_expired"
    detail = "This credential has expired."


class Malformed(DomainError):
    code = "malformed_json"
    detail = "The body is not one well-formed JSON text."


class Forbidden(DomainError):
    """A current member, or the credential, lacks the right."""


class NotOwner(Forbidden):
    code = "not_owner"
    detail = "Only an owner of the group may do this."


class NotAuthor(Forbidden):
    code = "not_author"
    detail = "Only the author, or where it says so an owner of the group, may do this."


class NotDecider(Forbidden):
    code = "not_decider"
    detail = "Only those who hold the post's key and may decide for it may do this."


class OwnRequest(Forbidden):
    code = "own_request"
    detail = "Nobody decides a request of one's own."


class SessionRequired(Forbidden):
    code = "session_required"
    detail = "This credential does not do for it: log in with email and password."


class ScopeRequired(Forbidden):
    code = "scope_required"
    detail = "This API key has not the scope that this needs."


class WrongPassword(Forbidden):
    code = "wrong_password"
    detail = "The current password is not right."


class NotAdmin(Forbidden):
    code = "not_admin"
    detail = "Only an administrator may do this."


class NotFound(DomainError):
    """Absent, or not the caller's to know: nobody can tell which."""

    code = "route_not_found"
    detail = "There is nothing at this address."


class UserNotFound(NotFound):
    code = "user_not_found"
    detail = "There is no such user."


class KeyNotFound(NotFound):
    code = "key_not_found"
    detail = "There is no such key."


class GroupNotFound(NotFound):
    code = "group_not_found"
    detail = "There is no such group."


class MemberNotFound(NotFound):
    code = "member_not_found"
    detail = "There is no such member."


class PostNotFound(NotFound):
    code = "post_not_found"
    detail = "There is no such post."


class ReadRequestNotFound(NotFound):
    code = "read_request_not_found"
    detail = "There is no such read request."


class AttachmentNotFound(NotFound):
    code = "attachment_not_found"
    detail = "There is no such attachment."


class SessionNotFound(NotFound):
    code = "session_not_found"
    detail = "There is no such session."


class ApiKeyNotFound(NotFound):
    code = "api_key_not_found"
    detail = "There is no such API key."


class Conflict(DomainError):
    """The request is good, but not in this state of things."""


class EmailTaken(Conflict):
    code = "email_taken"
    detail = "An account with this email address exists."


class AlreadyMember(Conflict):
    code = "already_member"
    detail = "This user is a member of the group."


class OwnAccount(Conflict):
    code = "own_account"
    detail = "Nobody shuts the own account."


class LastOwner(Conflict):
    """`group_ids`, where several may be meant."""

    code = "last_owner"
    detail = "A group keeps at least one owner."


class KeyTaken(Conflict):
    code = "key_taken"
    detail = "This public key was enrolled before."


class IdTaken(Conflict):
    code = "id_taken"
    detail = "This id belongs to something else."


class AlreadyDecided(Conflict):
    code = "already_decided"
    detail = "This request is decided."


class AlreadyReadable(Conflict):
    code = "already_readable"
    detail = "An active key of yours opens this post."


class AlreadyRequested(Conflict):
    code = "already_requested"
    detail = "You have asked for this post with another key."


class RecentlyDenied(Conflict):
    code = "recently_denied"
    detail = "This was denied less than a day ago."


class NotSealed(Conflict):
    code = "not_sealed"
    detail = "This post is not sealed yet."


class NoKey(Conflict):
    code = "no_key"
    detail = "Enrol a key first."


class NoRecipients(Conflict):
    code = "no_recipients"
    detail = "No member of the group has an active key: nobody could read this."


class RecipientsChanged(Conflict):
    """`missing` are whole keys, as rows; `unknown` are ids."""

    code = "recipients_changed"
    detail = "The keys named are not exactly the group's active ones; seal to what is missing and try again."


class InvalidField(NamedTuple):
    pointer: str
    """JSON pointer into the body, or `?name` for a query parameter."""
    detail: str


class Invalid(DomainError):
    """Something else is wrong in a well-formed request; `errors` says where."""

    code = "invalid"
    detail = "The request is not valid."

    def __init__(self, *errors: InvalidField | tuple[str, str]) -> None:
        super().__init__(errors=[InvalidField(*error)._asdict() for error in errors])


class InvalidKey(Invalid):
    code = "invalid_key"
    detail = "This is no usable public key."


class BadProof(Invalid):
    code = "bad_proof"
    detail = "The proof or the endorsement does not verify."


class BadSignature(Invalid):
    code = "bad_signature"
    detail = "The signature does not verify."


class RateLimited(DomainError):
    code = "rate_limited"
    detail = "Too many requests."


class QuotaExceeded(RateLimited):
    """Of `name` (such as `upload-bytes-per-day`) there are `left` of `limit`, which may be some, but too few."""

    code = "quota_exceeded"
    detail = "The quota of the day is used up."

    def __init__(self, *, name: str, limit: int, left: int, **facts: Any) -> None:
        super().__init__(name=name, limit=limit, left=left, **facts)
        what = QUOTAS[name]
        if left:
            told = f"Of the day's quota of {limit:,} {what} {left:,} are left, which is too few"
        else:
            told = f"The day's quota of {limit:,} {what} is used up"
        self.detail = f"{told}; a new day begins at midnight UTC."


QUOTAS = {"requests-per-day": "requests", "posts-per-day": "posts", "upload-bytes-per-day": "uploaded bytes"}


class Unavailable(DomainError):
    code = "unavailable"
    detail = "The database is away for a moment; try again."


class StoreAway(Unavailable):
    detail = "The store of files is away for a moment; try again."


class AttachmentInUse(Conflict):
    code = "attachment_in_use"
    detail = "This attachment belongs to a post."


class LinkNotFound(NotFound):
    code = "link_not_found"
    detail = "There is no such link."


class LinkGone(DomainError):
    code = "link_gone"
    detail = "This link has ended, or its file is gone."


class FileTooLarge(DomainError):
    """`max_bytes` is the most that a file may have, before it is sealed."""

    code = "too_large"
    detail = "The file is larger than this server takes."

    def __init__(self, *, max_bytes: int) -> None:
        super().__init__(max_bytes=max_bytes)
        self.detail = f"The file is larger than this server takes: {max_bytes:,} bytes at most."


class RangeNotSatisfiable(DomainError):
    """`size`, in bytes, is all there is."""

    code = "range_not_satisfiable"
    detail = "There is nothing in this range."
