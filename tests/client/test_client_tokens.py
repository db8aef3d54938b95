"""The command line with a credential out of the environment: an API key, or a JWT of the server's issuer."""

import json
from pathlib import Path

from client import Client
from tests.client.test_client_cli import User
from tests.jwts import new_subject, token_of
from tests.people import PASSWORD


async def test_program_without_a_home_works_with_an_api_key(server: str, tmp_path: Path) -> None:
    dora = await User("Dora", server, tmp_path / "dora").sign_up()
    reader = (await dora.ask_for("api-key", "new", "watcher", "--scope", "read"))["token"]
    writer = (await dora.ask_for("api-key", "new", "poster"))["token"]
    program = User("program", server, tmp_path / "empty")

    me = json.loads(await program.do("whoami", "--json", SECUREBLOGS_TOKEN=reader))
    assert (me["id"], me["credential"], me["session_ends"]) == (dora.id, "api_key", None)
    assert "an API key, from SECUREBLOGS_TOKEN" in await program.do("whoami", SECUREBLOGS_TOKEN=reader)
    told = await program.fail(1, "group", "new", "G", SECUREBLOGS_TOKEN=reader)
    assert told.startswith("This API key has not the scope that this needs.")
    made = json.loads(await program.do("group", "new", "G", "--json", SECUREBLOGS_TOKEN=writer))
    assert made["id"] in await program.do("group", "list", SECUREBLOGS_TOKEN=reader)
    await program.do("tail", "--once", SECUREBLOGS_TOKEN=reader)
    assert not list(program.home.rglob("*.json")), "nothing of it is written down"

    [watcher] = [key for key in await dora.ask_for("api-key", "list") if key["label"] == "watcher"]
    await dora.do("api-key", "revoke", watcher["id"], "--yes")
    told = await program.fail(4, "whoami", SECUREBLOGS_TOKEN=reader)
    assert "SECUREBLOGS_TOKEN" in told
    assert reader not in told
    assert "secureblogs login" in await program.fail(4, "whoami", SECUREBLOGS_TOKEN="")


async def test_guest_of_the_issuer_has_keys_and_posts(server: str, tmp_path: Path) -> None:
    gina = User("Gina", server, tmp_path / "gina")
    gina.environment["SECUREBLOGS_TOKEN"] = token_of(new_subject(), name="Gina")
    shown = await gina.ask_for("whoami")
    assert (shown["name"], shown["credential"]) == ("Gina", "jwt")
    assert "session until" not in await gina.do("whoami")
    await gina.do("key", "new")
    await gina.do("group", "new", "G")
    posted = await gina.ask_for("post", "new", "G", "A title", "Some text")
    assert "Some text" in await gina.do("post", "read", posted["id"])
    await gina.do("api-key", "new", "script")
    assert "log in" in await gina.fail(1, "session", "list")


async def test_guest_of_the_issuer_leaves_without_a_password(server: str, tmp_path: Path) -> None:
    gina = User("Gina", server, tmp_path / "gina")
    gina.environment |= {"SECUREBLOGS_TOKEN": token_of(new_subject(), name="Gina"), "SECUREBLOGS_PASSWORD": ""}
    user_id = (await gina.ask_for("whoami"))["id"]
    assert user_id in await gina.do("account", "delete", "--yes")
    await gina.fail(4, "whoami")


async def test_session_of_the_profile_is_left_as_it_is(server: str, tmp_path: Path) -> None:
    dora = await User("Dora", server, tmp_path / "dora").sign_up()
    eve = await User("Eve", server, tmp_path / "eve").sign_up()
    before = dora.session()
    async with Client(server) as elsewhere:
        second = (await elsewhere.login(dora.email, PASSWORD)).token.token
    key = (await eve.ask_for("api-key", "new", "x"))["token"]

    assert json.loads(await dora.do("whoami", "--json", SECUREBLOGS_TOKEN=key))["id"] == eve.id
    await dora.do("tail", "--once", SECUREBLOGS_TOKEN=key)
    assert dora.session() == before, "what Eve has seen, Dora has not"
    await dora.do("logout", SECUREBLOGS_TOKEN=second)
    assert dora.session() == before
    assert (await dora.ask_for("whoami"))["id"] == dora.id

    await dora.do("tail", "--once", SECUREBLOGS_TOKEN=before["token"])
    assert dora.session()["since"] is not None, "her own token is as good as her session"
