"""Where the session's token is: in the system's keyring if there is a good one, else in a file of mode 0600."""

import asyncio
import json
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import fail, null
from keyring.errors import KeyringLocked, PasswordDeleteError

from client import credentials
from client.credentials import Keyring, find_backend, open_keyring
from client.errors import NotLoggedIn
from client.profile import Profile, Session, open_profile
from tests.client.test_client_cli import User

TOKEN = "sbs_a-token-that-is-secret"


class Desktop(KeyringBackend):
    """A keyring as desktops have it, in memory."""

    priority = 5

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library has no types for it
        self.kept: dict[tuple[str, str], str] = {}

    def opened(self) -> dict[tuple[str, str], str]:
        return self.kept

    def get_password(self, service: str, username: str) -> str | None:
        return self.opened().get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.opened()[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        if self.opened().pop((service, username), None) is None:
            raise PasswordDeleteError("not found")


class Plaintext(Desktop):
    priority = 0.5  # type: ignore[assignment]  # a number in all back ends, a property by its type


class Locked(Desktop):
    def opened(self) -> dict[tuple[str, str], str]:
        raise KeyringLocked("the collection is locked\x1b[2J")


class Silent(Desktop):
    """Waits for a person who is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.end = threading.Event()

    def opened(self) -> dict[tuple[str, str], str]:
        self.end.wait()
        return self.kept


class Forgetful(Desktop):
    def opened(self) -> dict[tuple[str, str], str]:
        return {}


@pytest.fixture(autouse=True)
def chosen_before() -> Iterator[None]:
    before = keyring.get_keyring()
    yield
    keyring.set_keyring(before)


@pytest.fixture
def desktop() -> Desktop:
    backend = Desktop()
    keyring.set_keyring(backend)
    return backend


def session(token: str | None = TOKEN) -> Session:
    return Session(
        server="http://127.0.0.1:8000",
        user_id=uuid4(),
        email="alice@example.org",
        name="Alice",
        token=token,
        token_expires=datetime(2030, 1, 1, tzinfo=UTC),
    )


def profile(home: Path, *, seconds: float = 20.0, name: str = "default", is_on: bool = True) -> Profile:
    return Profile(name, home / "config", home / "data", keyring=Keyring(seconds=seconds) if is_on else None)


def test_a_token_is_kept_in_the_keyring_and_not_in_the_file(desktop: Desktop, tmp_path: Path) -> None:
    one = profile(tmp_path)
    one.save_session(session())
    assert list(desktop.kept.values()) == [TOKEN]
    assert TOKEN not in one.session_path.read_text()
    assert profile(tmp_path).live_session().token == TOKEN


def test_changes_leave_the_token_where_it_is(desktop: Desktop, tmp_path: Path) -> None:
    profile(tmp_path).save_session(session())
    before = dict(desktop.kept)
    one = profile(tmp_path)
    one.change_session(since="2026-01-01T00:00:00Z")
    whole = one.session()
    assert whole is not None
    one.save_session(whole)
    assert desktop.kept == before
    assert TOKEN not in one.session_path.read_text()
    assert profile(tmp_path).live_session().token == TOKEN


def test_a_new_token_takes_the_place_of_the_old_one(desktop: Desktop, tmp_path: Path) -> None:
    one = profile(tmp_path)
    one.save_session(session())
    one.save_session(session("another"))
    assert list(desktop.kept.values()) == ["another"]
    assert one.live_session().token == profile(tmp_path).live_session().token == "another"


def test_logging_out_removes_it_from_both(desktop: Desktop, tmp_path: Path) -> None:
    one = profile(tmp_path)
    one.save_session(session())
    one.change_session(token=None, token_expires=None)
    assert desktop.kept == {}
    assert TOKEN not in one.session_path.read_text()
    with pytest.raises(NotLoggedIn):
        profile(tmp_path).live_session()


def test_profiles_of_one_name_in_two_homes_keep_apart(desktop: Desktop, tmp_path: Path) -> None:
    profile(tmp_path / "a").save_session(session("first"))
    profile(tmp_path / "b").save_session(session("second"))
    assert profile(tmp_path / "a").live_session().token == "first"
    assert profile(tmp_path / "b").live_session().token == "second"


@pytest.mark.parametrize("kind", [fail.Keyring, null.Keyring, Plaintext])
def test_back_ends_that_do_not_encrypt_count_as_none(
    kind: type[KeyringBackend], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keyring.set_keyring(kind())
    assert find_backend() is None
    one = profile(tmp_path)
    one.save_session(session())
    assert json.loads(one.session_path.read_text())["token"] == TOKEN
    assert stat.S_IMODE(one.session_path.stat().st_mode) == 0o600
    assert profile(tmp_path).live_session().token == TOKEN
    one.change_session(token=None)
    assert TOKEN not in one.session_path.read_text()
    assert capsys.readouterr().err == ""


def test_of_a_chain_only_those_that_encrypt_are_taken(desktop: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
    from keyring.backends.chainer import ChainerBackend  # noqa: PLC0415 - patched here alone

    plaintext = Plaintext()
    monkeypatch.setattr(ChainerBackend, "backends", [plaintext, desktop])
    keyring.set_keyring(ChainerBackend())  # type: ignore[no-untyped-call]  # the library has no types for it
    assert find_backend() is desktop


@pytest.mark.parametrize("kind", [Locked, Forgetful])
def test_what_can_not_keep_it_leaves_it_to_the_file(
    kind: type[Desktop], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keyring.set_keyring(kind())
    one = profile(tmp_path)
    one.save_session(session())
    assert json.loads(one.session_path.read_text())["token"] == TOKEN
    assert one.live_session().token == TOKEN
    one.change_session(token=None)
    warnings = capsys.readouterr().err
    assert "\x1b" not in warnings
    assert warnings.count("warning: ") == 1
    assert warnings.count("\n") == 1


def test_a_keyring_that_never_answers_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = Silent()
    keyring.set_keyring(silent)
    try:
        one = profile(tmp_path, seconds=0.05)
        one.save_session(session())
        assert one.live_session().token == TOKEN
        one.save_session(session("another"))
        assert json.loads(one.session_path.read_text())["token"] == "another"
    finally:
        silent.end.set()
    assert capsys.readouterr().err.count("warning: the system's keyring does not answer") == 1


def test_a_token_in_a_keyring_that_is_locked_now_is_told_once(
    desktop: Desktop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile(tmp_path).save_session(session())
    keyring.set_keyring(Locked())
    one = profile(tmp_path)
    for _ in range(2):
        with pytest.raises(NotLoggedIn):
            one.live_session()
    one.save_session(session("another"))
    assert profile(tmp_path).live_session().token == "another"
    assert capsys.readouterr().err.count("warning: ") == 1


@pytest.mark.parametrize("is_on", [True, False])
def test_a_token_whose_keyring_is_gone_is_told_once(
    desktop: Desktop, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_on: bool
) -> None:
    profile(tmp_path).save_session(session())
    keyring.set_keyring(fail.Keyring())  # type: ignore[no-untyped-call]  # the library has no types for it
    one = profile(tmp_path, is_on=is_on)
    for _ in range(2):
        with pytest.raises(NotLoggedIn):
            one.live_session()
    assert capsys.readouterr().err.count("warning: ") == 1


def test_the_variable_turns_it_off(desktop: Desktop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    off = open_profile(None, None, {"SECUREBLOGS_KEYRING": "OFF"})
    off.save_session(session())
    assert desktop.kept == {}
    assert json.loads(off.session_path.read_text())["token"] == TOKEN
    assert open_keyring({}) is not None
    assert open_keyring({"SECUREBLOGS_KEYRING": ""}) is not None


async def test_logging_in_and_out_at_the_keyboard(server: str, desktop: Desktop, tmp_path: Path) -> None:
    alice = User("Alice", server, tmp_path)
    alice.environment["SECUREBLOGS_KEYRING"] = "on"
    await alice.sign_up()
    (token,) = desktop.kept.values()
    assert alice.session()["token"] is None
    assert (await alice.ask_for("whoami"))["id"] == alice.id
    await alice.do("logout")
    assert desktop.kept == {}
    assert "not logged in" in await alice.fail(4, "whoami")
    await alice.do("login")
    (new_token,) = desktop.kept.values()
    assert new_token != token
    assert (await alice.ask_for("whoami"))["id"] == alice.id


async def test_help_does_not_wait_for_the_library() -> None:
    code = "import sys, client.cli, server.cli; sys.exit('keyring' in sys.modules)"
    assert (await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False)).returncode == 0


def test_a_person_has_time_to_unlock_it() -> None:
    assert 10 <= credentials.ANSWER_SECONDS <= 30
