"""Changing one's own account, groups that one owns, and who is meant by a name, at the command line."""

import asyncio
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client import Client
from client.errors import BadAnswer, Forbidden, Unauthenticated
from tests.client.devices import Device
from tests.client.scripted_server import Reply, one_after_the_other, serving
from tests.client.test_client_cli import User
from tests.people import PASSWORD, new_email, open_socket

NEW_PASSWORD = "another correct horse"


@pytest.fixture
async def dora(server: str, tmp_path: Path) -> User:
    return await User("Dora", server, tmp_path / "dora").sign_up()


async def test_whoever_signs_up_is_asked_for_what_they_did_not_give(server: str, tmp_path: Path) -> None:
    someone = User("Eve", server, tmp_path / "eve")
    outer, inner = pty.openpty()
    os.write(outer, f"{someone.email}\nEve\n".encode())
    signing_up = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "client", "sign-up", "--json"],
        stdin=inner,
        env=os.environ | someone.environment | {"SECUREBLOGS_KEYRING": "off"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(outer)
    os.close(inner)
    assert signing_up.returncode == 0, signing_up.stderr
    assert json.loads(signing_up.stdout)["email"] == someone.session()["email"] == someone.email
    assert "Your email address: " in signing_up.stderr


async def test_where_nobody_can_be_asked_an_address_has_to_be_given(server: str, tmp_path: Path) -> None:
    result = await User("Eve", server, tmp_path / "eve").run("sign-up")
    assert (result.exit_code, "give EMAIL" in result.stderr) == (2, True)


async def test_a_name_is_changed_for_everybody(dora: User) -> None:
    assert "You are Dora D. now" in await dora.do("account", "rename", "Dora D.")
    assert (await dora.ask_for("whoami"))["name"] == dora.session()["name"] == "Dora D."
    assert (await dora.ask_for("account", "rename", "Dora"))["name"] == "Dora"


async def test_an_address_is_changed_with_the_password(dora: User) -> None:
    address = new_email()
    assert "not the password" in await dora.fail(4, "account", "email", address, SECUREBLOGS_PASSWORD="wrong password")
    assert address in await dora.do("account", "email", address)
    assert dora.session()["email"] == address
    await dora.do("logout")
    await dora.fail(4, "login", dora.email)
    await dora.do("login", address)


async def test_a_new_password_ends_other_sessions_and_not_this_one(dora: User, server: str) -> None:
    async with Client(server) as elsewhere:
        await elsewhere.login(dora.email, PASSWORD)
        assert "--password-stdin" in await dora.fail(4, "account", "password")
        both = f"{PASSWORD}\n{NEW_PASSWORD}\n"
        await dora.do("account", "password", "--password-stdin", typed=both, SECUREBLOGS_PASSWORD="")
        with pytest.raises(Unauthenticated):
            await elsewhere.me()
    await dora.do("whoami")
    await dora.do("logout")
    await dora.fail(4, "login")
    await dora.do("login", SECUREBLOGS_PASSWORD=NEW_PASSWORD)


async def test_what_is_too_short_or_too_long_is_said_in_words(dora: User, server: str, tmp_path: Path) -> None:
    both = f"{PASSWORD}\nshort\n"
    result = await dora.run("account", "password", "--password-stdin", typed=both)
    assert (result.exit_code, result.stderr) == (1, "error: password: is shorter than 8 characters\n")
    assert await dora.fail(1, "account", "rename", "") == "name: is empty"
    assert await dora.fail(1, "group", "new", "n" * 101) == "name: is longer than 100 characters"
    someone = User("Eve", server, tmp_path / "eve")
    complaint = await someone.fail(1, "sign-up", new_email(), "--name", "Eve", SECUREBLOGS_PASSWORD="short")
    assert complaint == "password: is shorter than 8 characters"


async def test_sessions_are_listed_and_ended(dora: User, server: str) -> None:
    async with Client(server) as elsewhere:
        await elsewhere.login(dora.email, PASSWORD)
        listed = await dora.ask_for("session", "list")
        assert [one["is_current"] for one in listed] == [False, True]
        shown = (await dora.do("session", "list")).splitlines()
        assert [one.split("\t")[0] for one in shown] == ["another", "this one"]
        await dora.do("session", "end", listed[0]["id"])
        with pytest.raises(Unauthenticated):
            await elsewhere.me()
    assert len(await dora.ask_for("session", "list")) == 1


async def test_an_api_key_is_made_used_and_revoked(dora: User, server: str) -> None:
    await dora.do("api-key", "new", "for ever")
    made = await dora.ask_for("api-key", "new", "watcher", "--scope", "read", "--days", "2")
    assert (made["label"], made["scopes"]) == ("watcher", ["read"])
    async with Client(server, made["token"]) as program:
        assert str((await program.me()).id) == dora.id
        with pytest.raises(Forbidden):
            await program.create_group("none")
        listed = await dora.do("api-key", "list")
        assert made["token"] not in listed
        assert [row.split("\t")[0] for row in listed.splitlines()] == ["watcher", "for ever"]
        assert (await dora.run("api-key", "revoke", made["id"])).exit_code == 2
        await dora.do("api-key", "revoke", made["id"], "--yes")
        with pytest.raises(Unauthenticated):
            await program.me()
    states = [row.split("\t")[3] for row in (await dora.do("api-key", "list")).splitlines()]
    assert states == ["revoked", "active"]


@pytest.mark.parametrize("days", ["0", "3651", "10000000"])
async def test_an_api_key_lives_for_ten_years_at_most(dora: User, days: str) -> None:
    result = await dora.run("api-key", "new", "x", "--days", days)
    assert (result.exit_code, "1<=x<=3650" in result.output) == (2, True), result.output


async def test_what_the_server_knows_of_oneself_is_shown(dora: User) -> None:
    group = await dora.ask_for("group", "new", "G")
    actions = {one["action"] for one in await dora.ask_for("account", "audit")}
    assert len((await dora.do("account", "audit", "--limit", "0")).splitlines()) >= len(actions) > 0
    assert [one["group_id"] for one in await dora.ask_for("group", "audit", "G", "--limit", "1")] == [group["id"]]
    exported = [json.loads(row) for row in (await dora.do("account", "export")).splitlines()]
    assert exported[-1] == {"type": "end", "lines": len(exported) - 1}
    assert group["id"] in json.dumps(exported)


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"user"}\n{"type":"end","lines":2}\n',
        b'{"type":"user"}\n{"type":"en',
        b'{"type":"user"}\n',
        b"",
    ],
)
async def test_an_export_that_is_cut_off_is_told(body: bytes) -> None:
    async with serving(one_after_the_other(Reply(200, body))) as liar, Client(liar.address, "sbs_x") as client:
        with pytest.raises(BadAnswer, match="cut off"):
            assert [one async for one in client.export()]


async def test_an_export_is_read_line_by_line_however_it_arrives() -> None:
    lines = ['{"type":"group","name":"a\u2028b\x85c"}'.encode(), b"x" * 300_000, *[b"{}"] * 300_000]
    lines.append(b'{"type":"end","lines":%d}' % len(lines))
    for end in (b"\n", b""):
        reply = Reply(200, b"\n".join(lines) + end)
        async with serving(one_after_the_other(reply)) as server, Client(server.address, "sbs_x") as client:
            assert [one async for one in client.export()] == lines


async def test_an_account_is_deleted_with_its_password(anna: Device, ben: Device) -> None:
    group_id = await anna.found_group(ben)
    assert (await anna.run("account", "delete")).exit_code == 2
    wrong = await anna.fail(4, "account", "delete", "--yes", SECUREBLOGS_PASSWORD="wrong password")
    assert "not the password" in wrong
    assert f"make somebody else an owner of {group_id} first" in await anna.fail(1, "account", "delete", "--yes")
    await anna.do("group", "role", group_id, ben.id, "owner")
    assert anna.email in await anna.do("account", "delete", "--yes")
    assert "secureblogs login" in await anna.fail(4, "whoami")
    await anna.fail(4, "login", anna.email)
    assert anna.identity.keys
    assert [one.user_id async for one in ben.client.members(group_id)] == [ben.user.id]


async def test_a_ticket_opens_one_socket(dora: User, server: str) -> None:
    bought = await dora.do("ticket")
    async with open_socket(server, f"?ticket={bought.strip()}") as listener:
        assert (await listener.next())["user_id"] == dora.id
    assert (await dora.ask_for("ticket"))["expires_in"] == 30


async def test_a_group_is_renamed_and_deleted_by_its_owner(anna: Device, ben: Device) -> None:
    group_id = await anna.found_group(ben, name="Book club")
    assert "ask an owner" in await ben.fail(1, "group", "rename", "Book club", "Mine")
    assert str(group_id) in await anna.do("group", "rename", "Book club", "Film club")
    assert (await ben.ask_for("group", "list"))[0]["name"] == "Film club"
    assert "--yes" in (await anna.run("group", "delete", "Film club")).stderr
    assert (await anna.run("group", "delete", "Film club")).exit_code == 2
    assert "ask an owner" in await ben.fail(1, "group", "delete", "Film club", "--yes")
    assert "Deleted Film club" in await anna.do("group", "delete", "Film club", "--yes")
    assert await ben.ask_for("group", "list") == []


async def test_a_role_is_given_and_taken_back(anna: Device, ben: Device) -> None:
    group_id = await anna.found_group(ben)
    # A name is everybody's own choice: nobody becomes an owner by it.
    assert (await anna.run("group", "role", group_id, "Ben", "owner")).exit_code == 2
    assert f"Ben ({ben.id}) is now owner" in await anna.do("group", "role", group_id, ben.email, "owner")
    assert (await ben.ask_for("group", "role", group_id, ben.id, "member"))["role"] == "member"
    assert "make somebody else an owner" in await anna.fail(1, "group", "role", group_id, anna.id, "member")


async def test_somebody_in_ones_groups_is_meant_by_name_or_address(anna: Device, ben: Device) -> None:
    await anna.found_group(ben)
    for who in ("ben", ben.email.upper(), ben.id):
        assert [one["id"] for one in await anna.ask_for("key", "list", "--user", who)] == [str(ben.key.key_id)]
    assert "Ben: 1 verified" in await anna.do("key", "verify", "Ben", ben.key.fingerprint)
    assert "nobody in your groups has the name Cleo" in await anna.fail(1, "key", "verify", "Cleo", "--yes")
    # Only owners see addresses.
    assert "as far as you may know" in await ben.fail(1, "key", "verify", anna.email, "--yes")


async def test_a_name_of_two_means_neither(anna: Device, ben: Device, cleo: Device) -> None:
    group_id = await anna.found_group(ben, cleo)
    await cleo.do("account", "rename", "BEN")
    complaint = await anna.fail(1, "key", "verify", "Ben", "--yes")
    assert ben.id in complaint
    assert cleo.id in complaint
    assert anna.pinned(ben.user.id) == anna.pinned(cleo.user.id) == {}
    await anna.fail(1, "group", "remove", group_id, "Ben", "--yes")
    # A name that looks like another's address is not taken for it.
    await cleo.do("account", "rename", anna.email)
    assert "nobody" in await ben.fail(1, "group", "remove", group_id, anna.email, "--yes")
    assert f"({ben.id})" in await anna.do("group", "remove", group_id, "ben", "--yes")


async def test_no_passphrase_costs_no_time(anna: Device, costly_argon2: None) -> None:
    identity = anna.identity
    begun = time.perf_counter()
    anna.save_identity(identity)
    assert anna.identity == identity
    assert time.perf_counter() - begun < 0.1
