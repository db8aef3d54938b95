"""The identity: a user's private keys. They are here, in this user's own file, and nowhere else.

The file is JSON wrapped by a passphrase (`server.sealing.identity`: Argon2id, XChaCha20-Poly1305), mode 0600 in a
folder of mode 0700. A key is written here before the server hears of its public half, so that a crash between the two
leaves a key that can still be enrolled, never an enrolled key that nobody holds.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from client import files
from client.errors import IdentityError, NoIdentity, WrongPassphrase
from server.sealing import errors as sealing_errors
from server.sealing import keys as sealing_keys
from server.sealing.argon2id import CHEAPEST
from server.sealing.identity import unwrap_identity, wrap_identity

Private = Annotated[bytes, Meta(min_length=32, max_length=32)]


class HeldKey(Struct, frozen=True, kw_only=True):
    """Two private keys: X25519 to open (32 bytes), the Ed25519 seed to sign (32 bytes). No id: not enrolled yet."""

    user_id: UUID
    server: str
    label: str
    private_key: Private
    signing_seed: Private
    made_at: datetime
    key_id: UUID | None = None

    def __repr__(self) -> str:
        # Tracebacks and logs show structs: not these bytes.
        return f"HeldKey(user_id={self.user_id!s}, key_id={self.key_id!s})"

    @property
    def public_key(self) -> bytes:
        return sealing_keys.encryption_pair(self.private_key).public

    @property
    def verify_key(self) -> bytes:
        return sealing_keys.signing_pair(self.signing_seed).public

    @property
    def fingerprint(self) -> str:
        return sealing_keys.fingerprint(self.user_id, self.public_key, self.verify_key)


def make_key(user_id: UUID, server: str, label: str, made_at: datetime) -> HeldKey:
    """Two new, independent pairs."""
    return HeldKey(
        user_id=user_id,
        server=server,
        label=label,
        private_key=sealing_keys.new_encryption_pair().private,
        signing_seed=sealing_keys.new_signing_pair().private,
        made_at=made_at,
    )


class Identity(Struct, frozen=True, kw_only=True):
    """All the keys of one identity file, oldest first."""

    v: Literal[1] = 1
    keys: tuple[HeldKey, ...] = ()

    def held(self, key_id: UUID) -> HeldKey | None:
        return next((key for key in self.keys if key.key_id == key_id), None)

    def not_enrolled(self, user_id: UUID) -> list[HeldKey]:
        return [key for key in self.keys if key.user_id == user_id and key.key_id is None]

    def with_key(self, key: HeldKey) -> "Identity":
        return msgspec.structs.replace(self, keys=(*self.keys, key))

    def with_id(self, key: HeldKey, key_id: UUID) -> "Identity":
        """The same, with the id that the server gave to a key."""
        enrolled = msgspec.structs.replace(key, key_id=key_id)
        return msgspec.structs.replace(self, keys=tuple(enrolled if one == key else one for one in self.keys))


def read_identity(path: Path, passphrase: str) -> Identity:
    """Open an identity file. Raises NoIdentity, WrongPassphrase, IdentityError or StorageError."""
    wrapped = files.read(path)
    if wrapped is None:
        raise NoIdentity(f"there is no identity at {path}")
    try:
        return msgspec.json.decode(unwrap_identity(wrapped, passphrase), type=Identity)
    except sealing_errors.WrongPassphrase:
        raise WrongPassphrase("this passphrase does not open the identity, or the file was changed") from None
    except sealing_errors.SealingError as error:
        raise IdentityError(f"{path}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Nothing of the decoder's message: it may quote what was in the file.
        raise IdentityError(f"{path} opens, but holds no identity of this version") from None


def write_identity(path: Path, passphrase: str, identity: Identity) -> None:
    """Wrap an identity and put it in the place of the old one."""
    plaintext = msgspec.json.encode(identity)
    try:
        # What an empty passphrase protects from nobody needs no work either: each command would pay for it.
        wrapped = wrap_identity(plaintext, passphrase) if passphrase else wrap_identity(plaintext, "", CHEAPEST)
    except sealing_errors.SealingError as error:
        raise IdentityError(f"the identity can't be wrapped: {error}") from None
    files.write(path, wrapped)
