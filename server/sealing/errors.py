"""What can be wrong with keys, bytes and texts: one small tree.

No error carries, in its message or behind it, a byte of what was being opened: errors end up in logs.
"""


class SealingError(Exception):
    """Base of all that `server.sealing` raises."""

    message = "sealing failed"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(self.message if message is None else message)


class NotCanonical(SealingError, ValueError):
    """A text is not canonical standard base64."""

    message = "not canonical base64: the standard alphabet, padded, no white space, unused bits zero"


class MalformedJSON(SealingError, ValueError):
    """Bytes are not the JSON that `strict_json` takes. The message says where or why, and quotes nothing."""

    message = "not JSON"


class MalformedText(SealingError):
    """A heading, document or draft that a reader refuses, when it is read or before it is sealed."""

    message = "the text is not what the wire format allows"


class InvalidKey(SealingError):
    """A key of the wrong length, not canonical, or of low order."""

    message = "not a usable key"


class UnusableKey(InvalidKey):
    """Nothing can be sealed to this public key."""

    message = "nothing can be sealed to this public key"


class BadProof(SealingError):
    """A proof or an endorsement does not hold."""

    message = "the proof does not hold for this user and these keys"


class BadSignature(SealingError):
    """The signature of a post does not hold."""

    message = "the signature does not hold for this post"


class WrongSize(SealingError):
    """A part of a sealed post has a length that no sealing gives. `field` names the part."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} {rule}")
        self.field = field
        self.rule = rule


class CannotOpen(SealingError):
    """A post, or a post key, does not open. There is one message, so that it tells an attacker nothing."""

    message = "cannot open this post"

    def __init__(self) -> None:
        super().__init__()


class DraftUnreadable(SealingError):
    """A draft does not open with the worker's keys, or does not parse strictly."""

    message = "the draft can not be read with the keys at hand"


class DraftMismatch(SealingError):
    """A draft opens, and was sealed for other ids than those of its row."""

    message = "the draft was sealed for other ids"


class CannotOpenFile(SealingError):
    """An attachment's stream is not the whole, untouched file."""

    message = "cannot open this file"


class StreamEnded(SealingError):
    """A stream was written to after its end: a mistake of the caller."""

    message = "the stream has ended"


class IdentityUnreadable(SealingError):
    """Bytes are no wrapped identity, or ask for more work than is allowed."""

    message = "not an identity file of this version"


class WrongPassphrase(SealingError):
    """The passphrase does not open the identity, or its bytes were changed: the two can't be told apart."""

    message = "wrong passphrase, or the identity file was changed"


class NoMemory(SealingError):
    """Argon2id did not get the memory it needs."""

    message = "not enough memory to work on a password"
