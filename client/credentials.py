"""Where the session's token is kept: in the system's keyring, if it has one that is good for it.

Good are the keyrings of desktops, macOS and Windows, which encrypt what they keep. The `keyring` library also has back
ends that keep nothing, or keep it as text in a file: those count as none, and so does a machine without a desktop.
`SECUREBLOGS_KEYRING=off` turns it off. The library takes a while to import, so that waits until a token is wanted.

A keyring may be locked, broken, or wait for a person who is not there. So it is asked in a thread and given up after
some seconds, with one warning for all of it.
"""

import contextlib
import secrets
import threading
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from client import terminal
from client.errors import StorageError

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

Answer = TypeVar("Answer")

SERVICE = "secureblogs"
# Long enough to type the password that unlocks it.
ANSWER_SECONDS = 20.0
# As the library itself draws the line: what it does not recommend keeps text, or nothing.
LEAST_PRIORITY = 1


class Keyring:
    """The system's keyring. After its first failure, and where there is none, it takes and gives nothing any more."""

    def __init__(self, *, seconds: float = ANSWER_SECONDS) -> None:
        self._seconds = seconds
        self._has_failed = False

    def put(self, profile_name: str, token: str) -> str | None:
        """Keep a token; the name of its new entry, or None if it must be kept elsewhere.

        Each token gets an entry of its own: so what a file says of it can't come to be true of another token.
        """
        entry = f"{profile_name}-{secrets.token_hex(8)}"

        def keep(backend: "KeyringBackend") -> str:
            backend.set_password(SERVICE, entry, token)
            if backend.get_password(SERVICE, entry) != token:
                raise StorageError("it does not keep what it is given")
            return entry

        return self._ask(keep, "the session's token is kept in a file of mode 0600 instead")

    def get(self, entry: str) -> str | None:
        """The token of an entry, or None, with a warning, if it can't be had."""
        token = self._ask(lambda backend: backend.get_password(SERVICE, entry), "the session's token is in there")
        if token is None and not self._has_failed:
            self._fail("the session's token should be in the system's keyring, and is not to be had")
        return token

    def remove(self, entry: str) -> None:
        def delete(backend: "KeyringBackend") -> None:
            from keyring.errors import PasswordDeleteError  # noqa: PLC0415 - imported when it is needed, see above

            # Gone already, by a hand other than ours.
            with contextlib.suppress(PasswordDeleteError):
                backend.delete_password(SERVICE, entry)

        self._ask(delete, "an old token may be left in there")

    def _ask(self, act: Callable[["KeyringBackend"], Answer], consequence: str) -> Answer | None:
        if self._has_failed:
            return None
        answers: SimpleQueue[Answer | Exception | None] = SimpleQueue()

        def run() -> None:
            try:
                backend = find_backend()
                answers.put(None if backend is None else act(backend))
            # Whatever a back end raises is its own affair: errors of the library, of D-Bus, of the system.
            except Exception as error:
                answers.put(error)

        # A daemon: one that never answers does not keep the program from ending.
        threading.Thread(target=run, name="keyring", daemon=True).start()
        try:
            answer = answers.get(timeout=self._seconds)
        except Empty:
            self._fail(f"the system's keyring does not answer: {consequence}")
            return None
        if isinstance(answer, Exception):
            reason = terminal.line(answer) or type(answer).__name__
            self._fail(f"the system's keyring can't be used ({reason}): {consequence}")
            return None
        return answer

    def _fail(self, text: str) -> None:
        self._has_failed = True
        terminal.warn(text)


def find_backend() -> "KeyringBackend | None":
    """The first of the back ends that encrypts what it keeps."""
    import keyring  # noqa: PLC0415 - imported when it is needed, see above
    from keyring.backends.chainer import ChainerBackend  # noqa: PLC0415 - the same

    chosen = keyring.get_keyring()
    # A chain would read from, and delete in, back ends that don't count.
    candidates = list(chosen.backends) if isinstance(chosen, ChainerBackend) else [chosen]
    return next((one for one in candidates if one.priority >= LEAST_PRIORITY), None)


def open_keyring(environ: Mapping[str, str]) -> Keyring | None:
    """The keyring that the environment leaves on."""
    return None if environ.get("SECUREBLOGS_KEYRING", "").strip().lower() == "off" else Keyring()
