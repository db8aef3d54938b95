"""A profile: one user's server and session, keys and pins, in files of that user alone.

    <config>/secureblogs/<profile>/session.json     server, user, and the token or its place in the keyring
    <data>/secureblogs/<profile>/identity           private keys, wrapped by a passphrase
    <data>/secureblogs/<profile>/pins.json          fingerprints that were accepted
    <data>/secureblogs/<profile>/recipients.json    whom the last post to each group was sealed to
    <data>/secureblogs/<profile>/returns.json       how often a grant was given back
    <data>/secureblogs/<profile>/uploads.json       what opens files that were uploaded and have no post yet
    <data>/secureblogs/<profile>/decisions.jsonl    what `requests serve` decided

The folders are those of the XDG specification (or what the system has in their place), of mode 0700, the files 0600.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec
import platformdirs
from msgspec import Struct

from client import files, terminal
from client.credentials import Keyring, open_keyring
from client.errors import ClientError, NotLoggedIn, StorageError
from client.models import User
from client.transport import parse_address

DEFAULT_PROFILE = "default"
DEFAULT_SERVER = "http://127.0.0.1:8000"

SESSION_PREFIX, API_KEY_PREFIX = "sbs_", "sbk_"
Credential = Literal["session", "api_key", "jwt"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Session(Struct, frozen=True, kw_only=True):
    """Who is logged in where. Without a token it remembers the last user, for the next login.

    `key_id` and `fingerprint` are those of this machine's key that was enrolled last: what its person tells others must
    not be the server's word. `since` is where following the socket goes on. `keyring_entry` is where the system's
    keyring has the token, which then is not in the file.
    """

    server: str
    user_id: UUID
    email: str
    name: str
    v: Literal[1] = 1
    token: str | None = None
    keyring_entry: str | None = None
    token_expires: datetime | None = None
    key_id: UUID | None = None
    fingerprint: str | None = None
    since: str | None = None

    def __repr__(self) -> str:
        # The token is as good as the password: not into tracebacks.
        return f"Session(server={self.server!r}, user_id={self.user_id!s})"


class Profile:
    """The files of a profile. `server` is the address that was given for this call, or None.

    Without a `keyring` the token is kept in the session's file. A `given_token` is used in the place of a session, and
    is written nowhere.
    """

    def __init__(
        self,
        name: str,
        config_folder: Path,
        data_folder: Path,
        server: str | None = None,
        keyring: Keyring | None = None,
        given_token: str | None = None,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ClientError(f"{name!r} is no name of a profile: letters, digits, dot, dash and underscore")
        self.name = name
        self.session_path = config_folder / name / "session.json"
        self.identity_path = data_folder / name / "identity"
        self.pins_path = data_folder / name / "pins.json"
        self.recipients_path = data_folder / name / "recipients.json"
        self.returns_path = data_folder / name / "returns.json"
        self.uploads_path = data_folder / name / "uploads.json"
        self.decisions_path = data_folder / name / "decisions.jsonl"
        self._given_server = None if server is None else parse_address(server)
        self._keyring = keyring
        self.given_token = given_token
        self._token_user_id: UUID | None = None
        # By the name of its entry, which no other token ever has: asking the keyring once is enough.
        self._tokens: dict[str, str | None] = {}

    def session(self) -> Session | None:
        """The session with its token, as far as that can be had."""
        written = self._written_session()
        if written is None or written.keyring_entry is None:
            return written
        return msgspec.structs.replace(written, token=self._token_of(written.keyring_entry))

    def save_session(self, session: Session) -> None:
        """Write a session. A token that is not in the keyring yet is put there, if it can be."""
        with files.locked(self.session_path):
            self._replace(self._written_session(), session)

    def change_session(self, **changes: object) -> None:
        """Set single fields of the session as it is now: another process may have changed the others."""
        with files.locked(self.session_path):
            written = self._written_session()
            if written is None:
                return
            if self.given_token is not None:
                # What is learnt of another user, or of another credential, is not this session's.
                changes = {name: value for name, value in changes.items() if not name.startswith("token")}
                if written.user_id != self._token_user_id or not changes:
                    return
            if "token" in changes:
                changes = {"keyring_entry": None, **changes}
            self._replace(written, msgspec.structs.replace(written, **changes))

    def _written_session(self) -> Session | None:
        content = files.read(self.session_path)
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=Session)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise StorageError(f"{self.session_path} is damaged: remove it and log in again") from None

    def _replace(self, before: Session | None, session: Session) -> None:
        is_new = session.token is not None and (before is None or before.token != session.token)
        if is_new and session.token is not None and session.keyring_entry is None and self._keyring is not None:
            entry = self._keyring.put(self.name, session.token)
            if entry is not None:
                self._tokens[entry] = session.token
                session = msgspec.structs.replace(session, keyring_entry=entry)
        if session.keyring_entry is not None:
            session = msgspec.structs.replace(session, token=None)
        files.write(self.session_path, msgspec.json.format(msgspec.json.encode(session), indent=2))
        # Only now: a crash in between leaves a token too many, never a file that names one that is gone.
        left = before.keyring_entry if before is not None else None
        if left is not None and left != session.keyring_entry and self._keyring is not None:
            self._keyring.remove(left)

    def _token_of(self, entry: str) -> str | None:
        if entry not in self._tokens:
            if self._keyring is None:
                terminal.warn("the session's token is in the system's keyring, which SECUREBLOGS_KEYRING turns off")
            self._tokens[entry] = self._keyring.get(entry) if self._keyring is not None else None
        return self._tokens[entry]

    @property
    def credential(self) -> Credential:
        """What proves to the server who this is. Of what is given, its looks tell: the server's own are marked."""
        if self.given_token is None or self.given_token.startswith(SESSION_PREFIX):
            return "session"
        return "api_key" if self.given_token.startswith(API_KEY_PREFIX) else "jwt"

    def server(self) -> str:
        """The address to talk to: the given one, else the one logged in to, else this machine's."""
        session = self._written_session()
        return self._given_server or (session.server if session else DEFAULT_SERVER)

    def session_of_token(self, server: str, user: User) -> Session:
        """What stands in for a session while a given token is used: with what this machine remembers of its user."""
        self._token_user_id = user.id
        session = Session(server=server, user_id=user.id, email=user.email or "", name=user.name)
        written = self._written_session()
        if written is None or (written.server, written.user_id) != (server, user.id):
            return session
        remembered = {name: getattr(written, name) for name in ("key_id", "fingerprint", "since")}
        return msgspec.structs.replace(session, **remembered)

    def live_session(self) -> Session:
        """The session to use now; else NotLoggedIn. A token is never sent to another server than gave it."""
        session = self.session()
        if session is None or session.token is None:
            raise NotLoggedIn("you are not logged in")
        if self._given_server not in (None, session.server):
            raise NotLoggedIn(f"this profile is logged in to {session.server}, not to {self._given_server}")
        return session


def open_profile(name: str | None, server: str | None, environ: Mapping[str, str]) -> Profile:
    """The profile of the options or the environment. An empty variable counts as none."""
    return Profile(
        name or environ.get("SECUREBLOGS_PROFILE") or DEFAULT_PROFILE,
        platformdirs.user_config_path("secureblogs", appauthor=False),
        platformdirs.user_data_path("secureblogs", appauthor=False),
        server or environ.get("SECUREBLOGS_SERVER") or None,
        open_keyring(environ),
        environ.get("SECUREBLOGS_TOKEN") or None,
    )
