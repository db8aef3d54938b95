"""Secrets, texts and confirmations: from the environment, a file, standard input, or the person at the terminal.

Nothing secret is ever an argument: arguments show in process lists and shell histories.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rich_click as click

from client.errors import BadText, NoCredential, StorageError
from client.terminal import note


def address() -> str:
    """The email address of a new user."""
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody is there to be asked for an address: give EMAIL.")
    with interruptible():
        return str(click.prompt("Your email address", err=True))


def name() -> str:
    """What a new user is to be called."""
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody is there to be asked for a name: use --name.")
    with interruptible():
        return str(click.prompt("Your name", err=True))


def password(email: str, *, from_stdin: bool, is_new: bool = False) -> str:
    """The account's password: standard input, SECUREBLOGS_PASSWORD, or typed unseen (twice for a new one)."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if given := os.environ.get("SECUREBLOGS_PASSWORD"):
        return given
    require_person("no password was given: set SECUREBLOGS_PASSWORD, or use --password-stdin")
    return _typed(f"{'New password' if is_new else 'Password'} for {email}", twice=is_new)


def new_password(email: str, *, from_stdin: bool) -> str:
    """What is to be the account's password: the next line of standard input, or typed unseen, twice."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    require_person("nobody is there to type the new password: use --password-stdin")
    return _typed(f"New password for {email}", twice=True)


def has_password() -> bool:
    """Whether `password` would get one without reading standard input."""
    return bool(os.environ.get("SECUREBLOGS_PASSWORD")) or sys.stdin.isatty()


def has_passphrase() -> bool:
    """Whether `passphrase` would get one without asking anybody."""
    return _given_passphrase() is not None


def passphrase() -> str:
    """What opens the identity; it may be empty."""
    given = _given_passphrase()
    if given is not None:
        return given
    require_person("no passphrase was given: set SECUREBLOGS_PASSPHRASE or SECUREBLOGS_PASSPHRASE_FILE")
    return _typed("Passphrase of your keys (Enter if they have none)", may_be_empty=True)


def new_passphrase(*, may_be_empty: bool) -> str:
    """What is to wrap a new identity. An empty one must have been asked for."""
    given = _given_passphrase()
    if given or may_be_empty:
        return given or ""
    require_person("no passphrase was given for the new key: set SECUREBLOGS_PASSPHRASE, or use --no-passphrase")
    note("Your private keys are wrapped by a passphrase. Nobody can restore it for you.")
    return _typed("New passphrase", twice=True)


def text(argument: str | None, file: Path | None) -> str:
    """The text of a post: the argument, a file, or standard input (also for `-`)."""
    if file is not None and str(file) != "-":
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise StorageError(f"{file} can't be read: {error.strerror}") from None
    elif argument is not None and argument != "-":
        return argument
    else:
        if sys.stdin.isatty():
            note("Write the post; Ctrl-D on a line of its own ends it.")
        with interruptible():
            raw = sys.stdin.buffer.read()
        if not raw:
            # Where nothing was piped in by mistake, an empty post would be sent to all.
            raise BadText('nothing came from standard input: give TEXT, or --file; "" is a post without text')
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadText("the text of the post is not UTF-8") from None


def line_of_stdin(prompt: str) -> str:
    """One line that is too secret for an argument: piped in, or typed by the person at the terminal."""
    if sys.stdin.isatty():
        with interruptible():
            return str(click.prompt(prompt, err=True))
    return sys.stdin.readline().strip()


def confirm(question: str, *, yes: bool) -> bool:
    """Whether the person agrees. Without a terminal only `--yes` does."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody is there to confirm this: use --yes.")
    with interruptible():
        return click.confirm(question, err=True)


def has_person() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()


def require_person(complaint: str) -> None:
    if not has_person():
        raise NoCredential(complaint)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a prompt. The event loop would only note the first one, and the prompt would go on waiting."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _typed(prompt: str, *, twice: bool = False, may_be_empty: bool = False) -> str:
    with interruptible():
        default = "" if may_be_empty else None
        typed = click.prompt(
            prompt, hide_input=True, err=True, confirmation_prompt=twice, default=default, show_default=False
        )
    return str(typed)


def _given_passphrase() -> str | None:
    given = os.environ.get("SECUREBLOGS_PASSPHRASE")
    if given is not None:
        return given
    path = os.environ.get("SECUREBLOGS_PASSPHRASE_FILE")
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"SECUREBLOGS_PASSPHRASE_FILE: {path} can't be read: {error}") from None
