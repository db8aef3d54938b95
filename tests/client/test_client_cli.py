"""The command line as its user meets it, against a running server."""

import asyncio
import json
import os
import signal
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result

from client import Client
from client.__main__ import main
from client.enrolling import new_key
from client.identity import Identity, read_identity
from client.profile import Profile, Session
from tests.client.lying_server import World
from tests.client.scripted_server import Reply, one_after_the_other, serving
from tests.people import PASSWORD, new_email

HOSTILE = "Ca\x1b[31mrol\x9b [bold]x[/]\u202e"


class User:
    """Somebody at a keyboard, with a home of their own. Nobody answers prompts: what is missing is an error."""

    def __init__(self, name: str, server: str, home: Path) -> None:
        self.name = name
        self.email = new_email()
        self.home = home
        self.environment = {
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_DATA_HOME": str(home / "data"),
            "SECUREBLOGS_SERVER": server,
            "SECUREBLOGS_PASSWORD": PASSWORD,
            "SECUREBLOGS_PASSPHRASE": "wrapping words",
            "SECUREBLOGS_PROFILE": "",
        }

    async def run(self, *arguments: object, typed: str | bytes | None = None, **environment: str | None) -> Result:
        """In a thread, since the server runs in this very event loop."""
        return await asyncio.to_thread(
            CliRunner().invoke, main, [str(one) for one in arguments], typed, {**self.environment, **environment}
        )

    async def do(self, *arguments: object, typed: str | bytes | None = None, **environment: str | None) -> str:
        """Its output, where it went well."""
        result = await self.run(*arguments, typed=typed, **environment)
        assert result.exit_code == 0, result.output
        return result.stdout

    async def ask_for(self, *arguments: object) -> Any:
        return json.loads(await self.do(*arguments, "--json"))

    async def fail(self, code: int, *arguments: object, **environment: str | None) -> str:
        """Its one line of error, where it ended with this code."""
        result = await self.run(*arguments, **environment)
        assert result.exit_code == code, (result.exit_code, result.output, result.exception)
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("error: ").strip()

    async def sign_up(self) -> "User":
        self.id: str = (await self.ask_for("sign-up", self.email, "--name", self.name))["id"]
        return self

    def session(self) -> Any:
        return json.loads((self.home / "config/secureblogs/default/session.json").read_text())

    async def enrol_elsewhere(self) -> None:
        """Have a key whose private half is on no disk here: enough for who never opens a post, and quicker."""
        async with Client(self.environment["SECUREBLOGS_SERVER"], self.session()["token"]) as client:
            await new_key(client, UUID(self.id), "elsewhere", Identity(), save=lambda _: None, now=datetime.now(UTC))


@pytest.fixture
async def alice(server: str, tmp_path: Path) -> User:
    return await User("Alice", server, tmp_path / "alice").sign_up()


@pytest.fixture
async def carol(server: str, tmp_path: Path) -> User:
    return await User(HOSTILE, server, tmp_path / "carol").sign_up()


async def test_the_whole_story_at_the_keyboard(alice: User, carol: User) -> None:
    await alice.do("key", "new")
    await carol.do("key", "new")
    await alice.do("group", "new", "Book club")
    group = (await alice.ask_for("group", "list"))[0]
    assert (group["name"], group["role"]) == ("Book club", "owner")
    post = await alice.ask_for("post", "new", "Book club", "The \x1b[2Jkey", "is under the mat", "--by-server")
    assert post["status"] == "sealed"
    assert "The \\x1b[2Jkey" in await alice.do("post", "list", "Book club")

    added = await alice.do("group", "add", group["id"], carol.id)
    assert "\x1b" not in added
    assert "unverified" in added
    assert [one["name"] for one in await alice.ask_for("group", "members", "Book club")] == [HOSTILE, "Alice"]
    listed = await carol.ask_for("post", "list")
    assert [(one["access"], one["title"]) for one in listed] == [("not_granted", None)]
    assert f"secureblogs ask {post['id']}" in await carol.fail(5, "post", "read", post["id"])

    asked = await carol.ask_for("ask", post["id"])
    assert "tail" in await carol.fail(5, "post", "read", post["id"])
    told = await alice.do("tail", "--once")
    assert f"requests approve {asked['id']}" in told
    assert "\x1b" not in told
    waiting = await alice.ask_for("requests", "list")
    assert [one["id"] for one in waiting] == [asked["id"]]

    assert asked["fingerprint"] in await alice.fail(5, "requests", "approve", asked["id"], "--fingerprint", "1234")
    shown = await alice.do("requests", "approve", asked["id"], "--fingerprint", asked["fingerprint"].upper())
    assert asked["fingerprint"] in shown
    assert "The \\x1b[2Jkey" in shown
    assert "already approved" in await alice.fail(1, "requests", "approve", asked["id"], "--yes")

    assert f"your request {asked['id']} is approved: secureblogs post read" in await carol.do("tail", "--once")
    read = await carol.do("post", "read", post["id"])
    assert "\x1b" not in read
    assert read.endswith("\n\nis under the mat\n")
    assert "unsigned, vouched for by the server" in read
    assert (await carol.ask_for("post", "read", post["id"]))["title"] == "The \x1b[2Jkey"

    check_files(alice.home)

    await carol.fail(1, "post", "delete", post["id"], "--yes")
    await alice.do("post", "delete", post["id"], "--yes")
    await carol.fail(1, "post", "read", post["id"])
    await alice.do("group", "remove", "Book club", carol.email, "--yes")
    assert await carol.ask_for("group", "list") == []


async def test_a_denial_is_told_and_can_be_asked_about_later(alice: User, carol: User) -> None:
    await alice.enrol_elsewhere()
    await carol.enrol_elsewhere()
    group = await alice.ask_for("group", "new", "Book club")
    post = await alice.ask_for("post", "new", group["id"], "T", "C", "--by-server")
    await alice.do("group", "add", group["id"], carol.email)
    asked = await carol.ask_for("ask", post["id"])
    assert (await alice.ask_for("requests", "deny", asked["id"]))["status"] == "denied"
    assert f"your request {asked['id']} for post {post['id']} is denied" in await carol.do("tail", "--once")
    assert "denied" in await carol.fail(5, "post", "read", post["id"])
    assert "ask again after 20" in await carol.fail(1, "ask", post["id"])


async def test_a_post_comes_from_a_file_or_standard_input_byte_for_byte(alice: User) -> None:
    text = "first\r\nsecond\ttab\n\nÜ🙂\n"
    await alice.do("key", "new")
    await alice.do("group", "new", "G")
    (alice.home / "text").write_bytes(text.encode())
    await alice.do("post", "new", "G", "from a file", "--file", alice.home / "text")
    await alice.do("post", "new", "G", "from a pipe", "--file", "-", typed=text.encode())
    for post in await alice.ask_for("post", "list"):
        assert (await alice.run("post", "read", post["id"], "--raw")).stdout_bytes == text.encode(), post["title"]


async def test_a_post_of_nothing_is_written_on_purpose_alone(alice: User) -> None:
    await alice.enrol_elsewhere()
    await alice.do("group", "new", "G")
    for from_stdin in ((), ("--file", "-"), ("-",)):
        assert "--file" in await alice.fail(2, "post", "new", "G", "T", *from_stdin, "--by-server")
    assert await alice.ask_for("post", "list") == []
    await alice.do("post", "new", "G", "T", "", "--by-server")
    assert len(await alice.ask_for("post", "list")) == 1


async def test_who_asks_is_told_that_others_decide(alice: User, carol: User) -> None:
    await alice.enrol_elsewhere()
    await carol.do("key", "new")
    await alice.do("group", "new", "G")
    post = await alice.ask_for("post", "new", "G", "T", "C", "--by-server")
    await alice.do("group", "add", "G", carol.id)
    listed = await carol.run("requests", "list")
    assert (listed.stdout, listed.stderr) == ("", "Nobody asks you.\n")
    asked = await carol.ask_for("ask", post["id"])
    listed = await carol.run("requests", "list")
    assert "You yourself wait for 1 post: secureblogs requests list --role requester" in listed.stderr
    for verb in ("approve", "deny"):
        complaint = await carol.fail(1, "requests", verb, asked["id"])
        assert "the post's author, or an owner of the group, decides" in complaint


def check_files(home: Path) -> None:
    """All that is kept is its owner's alone, and neither secret is in it."""
    files = files_under(home)
    assert {path.name for path in files} >= {"identity", "session.json", "pins.json"}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert PASSWORD.encode() not in path.read_bytes()
        assert b"wrapping words" not in path.read_bytes()


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_key_is_made_listed_trusted_and_revoked(alice: User, carol: User) -> None:
    await carol.do("key", "new")
    await alice.do("group", "new", "G")
    await alice.do("group", "add", "G", carol.id)
    assert [one["state"] for one in await alice.ask_for("key", "list", "--user", carol.id)] == ["unverified"]
    await alice.do("key", "verify", carol.id, "--yes")
    assert [one["state"] for one in await alice.ask_for("key", "list", "--user", carol.id)] == ["verified"]

    second = json.loads(await carol.do("key", "new", "--label", "second", "--json"))
    assert second["endorsed_by"] is not None
    states = [one["state"] for one in await alice.ask_for("key", "list", "--user", carol.id)]
    assert states == ["endorsed", "verified"]

    await carol.do("key", "revoke", second["id"], "--yes")
    assert [one["state"] for one in await carol.ask_for("key", "list")] == ["revoked", "active"]


async def test_a_new_key_that_nobody_endorses_stops_an_approval_until_it_is_trusted(alice: User, carol: User) -> None:
    await alice.do("key", "new")
    await carol.enrol_elsewhere()
    await alice.do("group", "new", "G")
    post = await alice.ask_for("post", "new", "G", "T", "C")
    await alice.do("group", "add", "G", carol.id)
    # On this machine of Carol's nothing is known of the other one, and so its key endorses nothing.
    await carol.do("key", "new", "--alone")
    asked = await carol.ask_for("ask", post["id"])
    complaint = await alice.fail(5, "requests", "approve", asked["id"], "--yes")
    assert f"secureblogs key verify {carol.id}" in complaint
    assert asked["fingerprint"] in complaint
    await alice.do("key", "verify", carol.id, "--yes")
    await alice.do("requests", "approve", asked["id"], "--yes")
    assert await carol.do("post", "read", post["id"], "--raw") == "C"


async def test_credentials_that_are_missing_or_wrong_end_with_4(alice: User, carol: User) -> None:
    await alice.do("key", "new")
    await alice.do("group", "new", "G")
    post = await alice.ask_for("post", "new", "G", "T", "C")
    assert "passphrase" in await alice.fail(4, "post", "read", post["id"], SECUREBLOGS_PASSPHRASE="wrong")
    assert "SECUREBLOGS_PASSPHRASE" in await alice.fail(4, "post", "read", post["id"], SECUREBLOGS_PASSPHRASE=None)
    assert "address" in await alice.fail(4, "login", alice.email, SECUREBLOGS_PASSWORD="wrong password")
    assert "--password-stdin" in await alice.fail(4, "login", alice.email, SECUREBLOGS_PASSWORD=None)
    await alice.do("logout")
    assert "secureblogs login" in await alice.fail(4, "whoami")

    assert "--no-passphrase" in await carol.fail(4, "key", "new", SECUREBLOGS_PASSPHRASE=None)
    assert "--no-passphrase" in await carol.fail(4, "key", "new", SECUREBLOGS_PASSPHRASE="")
    await carol.do("key", "new", "--no-passphrase", SECUREBLOGS_PASSPHRASE=None)
    assert read_identity(carol.home / "data/secureblogs/default/identity", "").keys


async def test_password_and_passphrase_come_from_where_they_are_kept(server: str, tmp_path: Path) -> None:
    someone = User("Dora", server, tmp_path)
    someone.environment |= {"SECUREBLOGS_PASSWORD": "", "SECUREBLOGS_PASSPHRASE_FILE": str(tmp_path / "passphrase")}
    del someone.environment["SECUREBLOGS_PASSPHRASE"]
    (tmp_path / "passphrase").write_text("from a file\n")
    await someone.do("sign-up", someone.email, "--name", "Dora", "--password-stdin", typed="from standard input\n")
    await someone.do("login", "--password-stdin", typed="from standard input")
    await someone.do("key", "new")
    assert read_identity(tmp_path / "data/secureblogs/default/identity", "from a file").keys


async def test_an_ended_session_is_forgotten_by_logging_out(alice: User, server: str) -> None:
    async with Client(server, alice.session()["token"]) as elsewhere:
        await elsewhere.logout()
    assert "secureblogs login" in await alice.fail(4, "whoami")
    await alice.do("logout")
    assert alice.session()["token"] is None
    await alice.do("login")
    assert (await alice.ask_for("whoami"))["email"] == alice.email


async def test_a_token_is_never_sent_to_another_server(alice: User) -> None:
    async with serving(one_after_the_other()) as stranger:
        complaint = await alice.fail(4, "whoami", "--server", stranger.address)
        assert "not to" in complaint
        assert stranger.calls == []


async def test_a_profile_is_one_users(alice: User, carol: User) -> None:
    assert "log out first" in await alice.fail(1, "login", carol.email)
    assert "log out first" in await alice.fail(1, "sign-up", new_email(), "--name", "Second")
    await alice.do("sign-up", new_email(), "--name", "Second", "--profile", "second")
    assert (await alice.ask_for("whoami", "--profile", "second"))["name"] == "Second"
    assert (await alice.ask_for("whoami"))["name"] == "Alice"
    assert "no name of a profile" in await alice.fail(1, "whoami", "--profile", "../alice")


async def test_a_server_that_is_not_there_ends_with_3(tmp_path: Path) -> None:
    someone = User("Dora", "http://127.0.0.1:9", tmp_path)
    assert "is the server running" in await someone.fail(3, "sign-up", someone.email, "--name", "Dora")
    await someone.fail(3, "demo")


async def test_what_is_no_server_is_told_at_once(tmp_path: Path) -> None:
    async with serving(one_after_the_other(*[Reply(200, b"<html>hello</html>")] * 3)) as stranger:
        someone = User("Dora", stranger.address, tmp_path)
        assert "unexpected" in await someone.fail(1, "demo")


async def test_a_fingerprint_to_tell_others_is_never_the_servers_word(tmp_path: Path) -> None:
    """A server that shows a user somebody else's fingerprint would have it read out to who is to compare it."""
    world = World()
    someone = User("Carol", "", tmp_path)
    async with serving(world) as liar:
        profile = Profile("default", tmp_path / "config/secureblogs", tmp_path / "data/secureblogs")
        session = Session(
            server=liar.address,
            user_id=world.carol.user_id,
            email="carol@example.org",
            name="Carol",
            token="sbs_token",
            key_id=world.carol.key_id,
            fingerprint=world.carol.fingerprint,
        )
        profile.save_session(session)
        told = await someone.do("ask", world.post_id, SECUREBLOGS_SERVER=liar.address)
        assert world.carol.fingerprint in told
        world.request["fingerprint"] = world.alice.fingerprint
        complaint = await someone.fail(5, "ask", world.post_id, SECUREBLOGS_SERVER=liar.address)
        assert world.alice.fingerprint not in complaint
        assert liar.calls[-1].method == "DELETE"
        someone.environment["SECUREBLOGS_SERVER"] = liar.address
        profile.change_session(key_id=None)
        told = await someone.do("ask", world.post_id)
        assert world.alice.fingerprint not in told
        assert world.carol.fingerprint not in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["post", "new", "G", "T", "C", "--file", "x"],
        ["post", "read", "not-an-id"],
        ["post", "read", str(uuid4()), "--raw", "--json"],
        ["post", "delete", str(uuid4())],
        ["group", "members", "no such group"],
        ["login", "--server", "ftp://example.org"],
        ["group", "new", "\udc80"],
    ],
)
async def test_wrong_usage_ends_with_2(alice: User, arguments: list[str]) -> None:
    result = await alice.run(*arguments)
    assert result.exit_code == 2, result.output


async def test_clear_text_to_another_machine_is_warned_of(tmp_path: Path) -> None:
    someone = User("Dora", "http://posts.invalid", tmp_path)
    result = await someone.run("whoami")
    assert "warning: http://posts.invalid is not encrypted" in result.stderr


async def test_following_tells_what_happens_until_it_is_interrupted(alice: User, carol: User) -> None:
    await alice.enrol_elsewhere()
    await alice.do("group", "new", "G")
    await alice.do("group", "add", "G", carol.id)
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "client", "tail", "--json"],
        env={**os.environ, **carol.environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while json.loads(await process.stdout.readline())["type"] != "caught_up":
                pass
            post = await alice.ask_for("post", "new", "G", "T", "C", "--by-server")
            event = json.loads(await process.stdout.readline())
            process.send_signal(signal.SIGINT)
            _, complaints = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert (event["type"], event["post_id"]) == ("post.sealed", post["id"])
    assert process.returncode == 130
    assert complaints == b""


async def test_the_demonstration_tells_each_step(server: str, tmp_path: Path) -> None:
    someone = User("Dora", server, tmp_path)
    told = await someone.do("demo")
    assert told.count("Carol can't read it: not_granted") == 2
    assert told.count("We meet on Thursday") == 4
    assert told.count("unsigned, vouched for by the server") == told.count("signed by the author") == 2
    assert "All 19 steps went as they should" in told
    # Its accounts and keys were of the moment: nothing of them is left on this machine.
    assert files_under(tmp_path) == []


async def test_the_demonstration_fails_loudly(server: str, tmp_path: Path) -> None:
    async with serving(one_after_the_other(Reply(500, b""))) as broken:
        someone = User("Dora", server, tmp_path)
        result = await someone.run("demo", "--second-server", broken.address)
    assert result.exit_code == 3
    assert "All" not in result.stdout
