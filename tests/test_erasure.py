"""Deleting one's own account: what goes, what is said of it, what stays, and what happens at the same time."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
import uuid_utils.compat

from server import accounts, credentials, database, erasure
from server.credentials import Caller
from server.errors import Unauthenticated, WrongPassword
from server.sealing.encoding import encode_base64
from server.settings import Settings
from tests.jwts import ISSUER, SECRET, guest
from tests.people import PASSWORD, Device, Person, code, good, person, random_id, until
from tests.processes import environ_of, running_api_process
from tests.test_requests import begin
from tests.test_sealed_posts import seal

pytestmark = pytest.mark.usefixtures("database_pool")

# Here bare ids stay: who did what, and which ids are used up.
KEEP_IDS = {"audit_log", "deleted_ids"}


async def traces(*texts: str) -> list[str]:
    """The columns of all tables in which one of the texts is, however they are written."""
    columns = await database.fetch(
        "SELECT c.table_name, c.column_name, c.data_type FROM information_schema.columns c"
        " JOIN information_schema.tables t USING (table_schema, table_name)"
        " WHERE t.table_type = 'BASE TABLE' AND c.table_schema = 'public' ORDER BY c.table_name, c.column_name"
    )
    assert len(columns) > 50
    # In bytes: the text itself, and an id as 16 bytes.
    raw = [text.encode().hex() for text in texts] + [text.replace("-", "") for text in texts]
    found = []
    for table, column, kind in columns:
        wanted = [f"%{text}%" for text in (raw if kind == "bytea" else texts)]
        shown = f"encode(\"{column}\", 'hex')" if kind == "bytea" else f'lower("{column}"::text)'
        if await database.fetchval(f'SELECT TRUE FROM "{table}" WHERE {shown} LIKE ANY($1) LIMIT 1', wanted):
            found.append(f"{table}.{column}")
    return found


async def erase(someone: Person, status: int = 204) -> None:
    answer = await someone.post("/me/delete", {"password": PASSWORD})
    assert answer.status_code == status, answer.text


async def test_nothing_of_the_user_is_left_in_any_table(server: str, alice: Person, bob: Person) -> None:
    async with person(server, "Zacharias Unmistakable", keys=2) as zack:
        story = await begin(alice, zack, bob)
        await zack.ask(story.post_id)
        own = await begin(zack, bob)
        other = await bob.ask(own.post_id)
        await zack.approve(own.post, other)
        await zack.add(own.group_id, alice, "owner")
        good(await zack.post("/posts/sealed", await seal(zack, story.group_id)), 201)
        await zack.found_group(name="nobody else")
        left = await zack.found_group(alice)
        await zack.publish(left)
        good(await zack.patch(f"/groups/{left}/members/{alice.id}", {"role": "owner"}))
        assert (await zack.delete(f"/groups/{left}/members/{zack.id}")).status_code == 204
        good(await zack.post("/api-keys", {"label": "unmistakable label"}), 201)
        endorsed = await zack.enrol("phone")
        assert (await zack.delete(f"/keys/{endorsed.id}")).status_code == 204
        await database.execute(
            'INSERT INTO user_daily_usage ("user", date, requests) VALUES ($1, current_date, 1)'
            ' ON CONFLICT ("user", date) DO NOTHING',
            zack.id,
        )
        attachment_id = await database.fetchval(
            "INSERT INTO attachments (owner, post, sealed_by, size, object_key, request_mac)"
            " VALUES ($1, $2, 'server', 1, gen_random_uuid()::text, 'x') RETURNING id",
            *(zack.id, own.post_id),
        )
        await database.execute(
            "INSERT INTO download_links (attachment, token_hash, created_by, expires)"
            " VALUES ($1, sha256($2), $3, now() + interval '1 day')",
            *(attachment_id, attachment_id.bytes, zack.id),
        )
        texts = [str(zack.id), zack.user["email"], "unmistakable", *(device.id for device in zack.devices)]
        before = {trace.partition(".")[0] for trace in await traces(*texts)}
        assert before >= {
            *("users", "user_tokens", "user_keys", "user_groups", "user_group_association", "posts", "post_keys"),
            *("read_post_request", "user_daily_usage", "audit_log", "attachments", "download_links"),
        }

        await erase(zack)

        # What is announced names the user until it has been published.
        await until(lambda: has_gone("SELECT 1 FROM outbox WHERE frame LIKE $1", f"%{zack.id}%"))
        assert {trace for trace in await traces(*texts) if trace.partition(".")[0] not in KEEP_IDS} == set()
        assert {trace.partition(".")[0] for trace in await traces(str(zack.id))} == {"audit_log"}
        # Others' requests and the keys that they brought stay as they were, but nobody is named.
        assert good(await bob.get(f"/posts/{story.post_id}"))["id"] == story.post_id
        assert code(await bob.get(f"/posts/{own.post_id}")) == (404, "post_not_found")
        assert good(await alice.get(f"/groups/{own.group_id}"))["created_by"] is None


async def has_gone(sql: str, *args: Any) -> bool:
    return not await database.fetch(sql, *args)


async def test_credentials_end_and_the_address_is_free_again(server: str) -> None:
    async with person(server) as someone:
        login = {"email": someone.user["email"], "password": PASSWORD}
        key = good(await someone.post("/api-keys", {"label": "script"}), 201)["token"]
        await erase(someone)
        assert code(await someone.get("/me")) == (401, "unauthenticated")
        answer = await someone.get("/me", headers={"Authorization": f"Bearer {key}"})
        assert code(answer) == (401, "unauthenticated")
        assert code(await someone.post("/login", login)) == (401, "unauthenticated")
        again = good(await someone.post("/sign-up", {"name": "Somebody else", **login}), 201)
        assert again["id"] != str(someone.id)


async def test_socket_ends(server: str) -> None:
    async with person(server) as someone, someone.listen() as listener:
        await erase(someone)
        assert await listener.closed() == 4408


@pytest.mark.parametrize(
    ("body", "answered"),
    [
        ({"password": "wrong"}, (403, "wrong_password")),
        ({}, (422, "invalid")),
        ({"password": None}, (422, "invalid")),
        ({"password": 7}, (422, "invalid")),
        ({"password": PASSWORD, "really": True}, (422, "invalid")),
        ({"password": PASSWORD, "confirm": "019c14a5-2b3f-7b1e-9d5a-3f0c52a1b7e4"}, (422, "invalid")),
    ],
)
async def test_without_the_password_nothing_happens(
    alice: Person, body: dict[str, Any], answered: tuple[int, str]
) -> None:
    assert code(await alice.post("/me/delete", body)) == answered
    assert good(await alice.get("/me"))["id"] == str(alice.id)


async def test_own_id_is_no_password(alice: Person) -> None:
    answer = await alice.post("/me/delete", {"confirm": str(alice.id)})
    assert code(answer) == (422, "invalid")


async def test_api_key_deletes_nobody(alice: Person) -> None:
    key = good(await alice.post("/api-keys", {"label": "script"}), 201)["token"]
    answer = await alice.client.post(
        "/me/delete", json={"password": PASSWORD}, headers={"Authorization": f"Bearer {key}"}
    )
    assert code(answer) == (403, "session_required")


async def test_last_owner_among_others_stays_and_is_told_which_groups(alice: Person, bob: Person) -> None:
    first, second = await alice.found_group(bob), await alice.found_group(bob)
    owned_by_two = await alice.found_group()
    await alice.add(owned_by_two, bob, "owner")
    answer = await alice.post("/me/delete", {"password": PASSWORD})
    assert code(answer) == (409, "last_owner")
    assert answer.json()["group_ids"] == sorted([first, second])
    assert good(await alice.get(f"/groups/{first}"))["role"] == "owner"
    for group_id in (first, second):
        good(await alice.patch(f"/groups/{group_id}/members/{bob.id}", {"role": "owner"}))
    await erase(alice)
    assert good(await bob.get(f"/groups/{first}"))["role"] == "owner"


async def test_groups_and_deciders_hear_of_it(server: str, alice: Person, bob: Person) -> None:
    async with person(server, "Carol") as carol:
        story = await begin(alice, carol, bob)
        request = await carol.ask(story.post_id)
        post = await carol.publish(story.group_id)
        async with person(server, "Dave") as dave:
            await alice.add(story.group_id, dave)
            other = await dave.ask(post["id"])
            async with alice.listen() as owner, bob.listen() as member, dave.listen() as requester:
                await erase(carol)
                ids = {"post_id": story.post_id, "request_id": request["id"]}
                await owner.hear("read_request.cancelled", **ids)
                for listener in (owner, member):
                    fields = {"post_id": post["id"], "group_id": story.group_id, "author_id": str(carol.id)}
                    await listener.has_heard("post.deleted", **fields)
                    fields = {"group_id": story.group_id, "user_id": str(carol.id)}
                    await listener.has_heard("group.member_removed", **fields)
                await requester.has_heard("read_request.cancelled", request_id=other["id"])
        assert good(await alice.get("/read-requests?role=decider&status=pending"))["items"] == []


async def test_group_of_ones_own_goes_with_all_in_it(server: str, alice: Person) -> None:
    async with person(server, "Bob") as bob:
        group_id = await alice.found_group(bob)
        post = await bob.publish(group_id)
        assert (await bob.delete(f"/groups/{group_id}/members/{bob.id}")).status_code == 204
        await erase(alice)
        assert await has_gone("SELECT 1 FROM user_groups WHERE id = $1", UUID(group_id))
        assert await has_gone("SELECT 1 FROM posts WHERE id = $1", UUID(post["id"]))
        rows = await database.fetch("SELECT id FROM deleted_ids WHERE id = ANY($1)", [group_id, post["id"]])
        assert len(rows) == 2


async def test_user_of_an_issuer_needs_no_password_and_is_remembered_as_gone(settings: Settings) -> None:
    subject = str(uuid_utils.compat.uuid7())
    user_id = await database.fetchval(
        "INSERT INTO users (name, issuer, subject) VALUES ('X', 'https://issuer.example', $1) RETURNING id", subject
    )
    caller = bearer_of(user_id)
    with pytest.raises(WrongPassword):
        await erasure.erase(caller, PASSWORD)
    assert await erasure.erase(caller, None) == []
    assert await has_gone("SELECT 1 FROM users WHERE id = $1", user_id)
    assert await traces(subject) == []
    identity_id = credentials._identity_id("https://issuer.example", subject)
    assert not await has_gone("SELECT 1 FROM deleted_ids WHERE id = $1", identity_id)


def bearer_of(user_id: UUID) -> Caller:
    return Caller(user_id, "X", None, False, datetime.now(UTC), None, "jwt", (), None)


async def test_user_of_an_issuer_takes_its_data_and_goes_by_naming_itself(settings: Settings, tmp_path: Path) -> None:
    environ = environ_of(settings, JWT_SECRET_KEY=SECRET.decode(), JWT_ISSUER=ISSUER)
    async with running_api_process(environ, tmp_path / "log") as api, guest(api.url) as gina:
        group_id = await gina.found_group()
        lines = [json.loads(line) for line in (await gina.get("/me/export")).text.splitlines()]
        assert (lines[0]["issuer"], lines[0]["subject"], lines[0]["email"]) == (ISSUER, gina.subject, None)
        assert lines[-1] == {"type": "end", "lines": len(lines) - 1}
        for body in ({}, {"confirm": random_id()}, {"confirm": "yes"}, {"password": PASSWORD}):
            assert code(await gina.post("/me/delete", body)) == (422, "invalid")
        both = {"confirm": str(gina.id), "password": PASSWORD}
        assert code(await gina.post("/me/delete", both)) == (422, "invalid")
        assert (await gina.post("/me/delete", {"confirm": str(gina.id)})).status_code == 204
        # The same token does not make the account anew.
        assert code(await gina.get("/me")) == (401, "unauthenticated")
        assert await has_gone("SELECT 1 FROM user_groups WHERE id = $1", UUID(group_id))
        assert await traces(gina.subject) == []


async def test_local_user_is_not_deleted_without_the_password(alice: Person) -> None:
    with pytest.raises(WrongPassword):
        await erasure.erase(bearer_of(alice.id), None)


async def test_password_that_was_changed_meanwhile_is_none(alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    matching = accounts.matching_hash

    async def match_then_change(user_id: UUID, password: str) -> str:
        hashed = await matching(user_id, password)
        await database.execute("UPDATE users SET password = 'another' WHERE id = $1", user_id)
        return hashed

    monkeypatch.setattr(accounts, "matching_hash", match_then_change)
    assert code(await alice.post("/me/delete", {"password": PASSWORD})) == (403, "wrong_password")


async def test_who_has_gone_meanwhile_has_no_wrong_password() -> None:
    with pytest.raises(Unauthenticated):
        await accounts.matching_hash(uuid4(), PASSWORD)


async def test_of_ten_deletions_at_once_one_is_made(alice: Person) -> None:
    answers = await asyncio.gather(*(alice.post("/me/delete", {"password": PASSWORD}) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers)[:2] == [204, 401]
    assert {answer.status_code for answer in answers} == {204, 401}
    entries = await database.fetchval(
        "SELECT count(*) FROM audit_log WHERE actor = $1 AND action = 'account.deleted'", alice.id
    )
    assert entries == 1


# ------------------------------------------------------------------------------------------- at the same time


@pytest.fixture
async def postgres(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection of a test's own."""
    connection = await asyncpg.connect(settings.database_url)
    yield connection
    await connection.close()


async def waiting(postgres: asyncpg.Connection, count: int) -> bool:
    found = await postgres.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return bool(found >= count)


async def test_what_the_user_does_meanwhile_is_refused_not_broken(
    server: str, alice: Person, postgres: asyncpg.Connection
) -> None:
    """The deletion has the user's row and waits for a group; each of these waits for the row, and then it is gone."""
    async with person(server, "Bob") as bob:
        story = await begin(alice, bob)
        device = bob.devices[0]
        acts = {
            "enrol": bob.post("/keys", device.body()),
            "revoke": bob.delete(f"/keys/{device.id}"),
            "found": bob.post("/groups", {"name": "late"}),
            "post": bob.post("/posts", {"group_id": story.group_id, "title": "t", "content": "c"}),
            "ask": bob.post(f"/posts/{story.post_id}/request_read"),
            "api key": bob.post("/api-keys", {"label": "late"}),
            "added": alice.post(f"/groups/{await alice.found_group()}/members", {"user_id": str(bob.id)}),
        }
        async with postgres.transaction():
            await postgres.execute("SELECT 1 FROM user_groups WHERE id = $1 FOR SHARE", UUID(story.group_id))
            deletion = asyncio.create_task(bob.post("/me/delete", {"password": PASSWORD}))
            await until(lambda: waiting(postgres, 1))
            tasks = [asyncio.create_task(act) for act in acts.values()]
            await until(lambda: waiting(postgres, 1 + len(acts)))
        assert (await deletion).status_code == 204
        answers = await asyncio.gather(*tasks)
        told = {name: answer.status_code for name, answer in zip(acts, answers, strict=True)}
        assert set(told.values()) <= {401, 404}, told
        assert {trace.partition(".")[0] for trace in await traces(str(bob.id))} <= {"audit_log", "outbox"}


class Crowd:
    """People who do all sorts of things in the same few groups, by chance, and what was answered."""

    def __init__(self, people: list[Person], group_ids: list[str], post_ids: list[str]) -> None:
        self.chance = random.Random(4)
        self.people = people
        self.group_ids = group_ids
        self.post_ids = post_ids
        self.answers: list[tuple[str, int]] = []

    async def act(self, someone: Person, kind: str) -> None:
        group, post = f"/groups/{self.chance.choice(self.group_ids)}", f"/posts/{self.chance.choice(self.post_ids)}"
        other = self.chance.choice(self.people)
        simple = {
            "ask": lambda: someone.post(f"{post}/request_read"),
            "delete post": lambda: someone.delete(post),
            "remove": lambda: someone.delete(f"{group}/members/{other.id}"),
            "add": lambda: someone.post(f"{group}/members", {"user_id": str(other.id)}),
            "revoke": lambda: someone.delete(f"/keys/{self.chance.choice(someone.devices).id}"),
            "enrol": lambda: self.enrol(someone),
            "post": lambda: self.post(someone, group.rpartition("/")[2]),
            "approve": lambda: self.answer(someone, "decider", "pending", "approve"),
            "return": lambda: self.answer(someone, "requester", "approved", None),
            "leave": lambda: someone.post("/me/delete", {"password": PASSWORD}),
        }
        answer = await simple[kind]()
        self.answers.append((kind, answer.status_code))

    async def enrol(self, someone: Person) -> httpx.Response:
        device = Device(someone.id)
        answer = await someone.post("/keys", device.body())
        if answer.is_success:
            device.key = answer.json()
            someone.devices.append(device)
        return answer

    async def post(self, someone: Person, group_id: str) -> httpx.Response:
        answer = await someone.post("/posts", {"group_id": group_id, "title": "t", "content": "c"})
        if answer.is_success:
            self.post_ids.append(answer.json()["id"])
        return answer

    async def answer(self, someone: Person, role: str, status: str, verb: str | None) -> httpx.Response:
        listed = await someone.get(f"/read-requests?role={role}&status={status}")
        if not listed.is_success or not listed.json()["items"]:
            return listed
        path = f"/read-requests/{listed.json()['items'][0]['id']}"
        if verb is None:
            return await someone.delete(path)
        return await someone.post(f"{path}/{verb}", {"sealed_key": encode_base64(bytes(80))})


OFTEN = ("ask", "ask", "approve", "approve", "return", "post", "enrol", "revoke", "remove", "add", "delete post")


@pytest.mark.thorough
async def test_deletions_among_all_else_make_nobody_wait_in_a_circle(server: str) -> None:
    async with AsyncExitStack() as stack:
        people = [await stack.enter_async_context(person(server, f"P{number}")) for number in range(8)]
        owner, *others = people
        group_ids = [await owner.found_group(*others) for _ in range(3)]
        for group_id in group_ids:
            for other in others[:3]:
                good(await owner.patch(f"/groups/{group_id}/members/{other.id}", {"role": "owner"}))
        posts = [await someone.publish(group_id) for someone in people for group_id in group_ids]
        crowd = Crowd(people, group_ids, [post["id"] for post in posts])

        for leaving in reversed(people):
            acts = [crowd.act(someone, crowd.chance.choice(OFTEN)) for someone in people for _ in range(5)]
            acts.insert(crowd.chance.randrange(len(acts)), crowd.act(leaving, "leave"))
            await asyncio.gather(*acts)

        # A deadlock would be answered with 503.
        assert [answer for answer in crowd.answers if answer[1] >= 500] == []
        assert {201, 204, 401, 404} <= {status for _, status in crowd.answers}
        left = [status for kind, status in crowd.answers if kind == "leave"]
        assert set(left) <= {204, 409}
        assert left.count(204) >= 4


async def test_of_two_owners_who_delete_themselves_at_once_one_stays(server: str, alice: Person) -> None:
    async def play() -> list[int]:
        async with person(server, "One", keys=0) as one, person(server, "Two", keys=0) as two:
            group_id = await one.found_group(alice)
            await one.add(group_id, two, "owner")
            answers = await asyncio.gather(*(who.post("/me/delete", {"password": PASSWORD}) for who in (one, two)))
            return sorted(answer.status_code for answer in answers)

    assert await asyncio.gather(*(play() for _ in range(8))) == [[204, 409]] * 8
