"""Which credential may do what; sessions, API keys and tickets."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import pytest
import redis.asyncio
from uuid_utils.compat import uuid7

from server import auth, credentials, database
from server.app import create_app
from server.credentials import Caller
from server.errors import Unauthenticated
from server.events import timestamp
from server.issuer import Issuer
from server.sealing import digests
from server.settings import Settings
from tests.jwts import ISSUER, SECRET, guest, new_subject, token_of
from tests.people import PASSWORD, Person, all_pages, code, good, open_socket, person, random_id, until
from tests.processes import environ_of, running_api_process

# ------------------------------------------------------------------------- who may do what with which credential

# IN: the call is made, and whatever comes of it, it is not the credential that is in its way.
IN, SCOPE, SESSION = "in", "scope_required", "session_required"

COLUMNS = ("session", "read key", "write key", "key of both", "jwt")

READS = (IN, IN, SCOPE, IN, IN)
WRITES = (IN, SCOPE, IN, IN, IN)
# What is one's own: not for programs that were given a key, and partly not for guests of an issuer.
OWN = (IN, SESSION, SESSION, SESSION, SESSION)
GUESTS_TOO = (IN, SESSION, SESSION, SESSION, IN)

TABLE = {
    "POST /logout": OWN,
    "GET /me": READS,
    "PATCH /me": OWN,
    "POST /me/delete": GUESTS_TOO,
    "GET /me/export": GUESTS_TOO,
    "GET /me/usage": READS,
    "GET /me/audit": READS,
    "GET /sessions": OWN,
    "DELETE /sessions/{session_id}": OWN,
    "GET /api-keys": GUESTS_TOO,
    "POST /api-keys": GUESTS_TOO,
    "DELETE /api-keys/{api_key_id}": GUESTS_TOO,
    "POST /ws-tickets": READS,
    "GET /keys": READS,
    "POST /keys": WRITES,
    "DELETE /keys/{key_id}": WRITES,
    "GET /users/{user_id}/keys": READS,
    "GET /groups": READS,
    "POST /groups": WRITES,
    "GET /groups/{group_id}": READS,
    "PATCH /groups/{group_id}": WRITES,
    "DELETE /groups/{group_id}": WRITES,
    "GET /groups/{group_id}/members": READS,
    "POST /groups/{group_id}/members": WRITES,
    "PATCH /groups/{group_id}/members/{user_id}": WRITES,
    "DELETE /groups/{group_id}/members/{user_id}": WRITES,
    "GET /groups/{group_id}/keys": READS,
    "GET /groups/{group_id}/audit": READS,
    "GET /posts": READS,
    "POST /posts": WRITES,
    "POST /posts/sealed": WRITES,
    "GET /posts/{post_id}": READS,
    "DELETE /posts/{post_id}": WRITES,
    "POST /posts/{post_id}/requeue": WRITES,
    "POST /posts/{post_id}/keys": WRITES,
    "POST /posts/{post_id}/request_read": WRITES,
    "GET /read-requests": READS,
    "GET /read-requests/{request_id}": READS,
    "DELETE /read-requests/{request_id}": WRITES,
    "POST /read-requests/{request_id}/approve": WRITES,
    "POST /read-requests/{request_id}/deny": WRITES,
    "POST /attachments": WRITES,
    "GET /attachments/{attachment_id}": READS,
    "GET /attachments/{attachment_id}/links": READS,
    "POST /attachments/{attachment_id}/links": WRITES,
    "DELETE /links/{link_id}": WRITES,
    "GET /admin/users": GUESTS_TOO,
    "POST /admin/users/{user_id}/disable": GUESTS_TOO,
    "POST /admin/users/{user_id}/enable": GUESTS_TOO,
    "GET /admin/audit": GUESTS_TOO,
}
# For everybody; `GET /metrics` has a token of its own.
OPEN = {
    "POST /sign-up",
    "POST /login",
    "GET /health/live",
    "GET /health/ready",
    "GET /metrics",
    "GET /download/{token}",
}


class Holder:
    """A person, a guest of the issuer, both administrators, and a token of each kind."""

    def __init__(self, someone: Person, tokens: dict[str, str]) -> None:
        self.person = someone
        self.tokens = tokens


@pytest.fixture(scope="module")
async def holder(server: str) -> AsyncIterator[Holder]:
    async with person(server, "Hanna", keys=0) as hanna, guest(server) as gina:
        tokens = {"session": hanna.token, "jwt": gina.token}
        for column, scopes in (("read key", ["read"]), ("write key", ["write"]), ("key of both", ["read", "write"])):
            made = good(await hanna.post("/api-keys", {"label": column, "scopes": scopes}), 201)
            tokens[column] = made["token"]
        await database.execute("UPDATE users SET is_admin = TRUE WHERE id = ANY($1)", [hanna.id, gina.id])
        yield Holder(hanna, tokens)


async def call(http: httpx.AsyncClient, what: str, token: str | None) -> httpx.Response:
    """The call, of things that are not there, and with a body that is well-formed and says nothing."""
    method, path = what.split()
    path = re.sub(r"\{\w+\}", lambda _: random_id(), path)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return await http.request(method, path, json=None if method in {"GET", "DELETE"} else {}, headers=headers)


def outcome(answer: httpx.Response) -> str:
    return str(code(answer)[1]) if answer.status_code in {401, 403} else IN


@pytest.fixture(scope="module")
async def document(server: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server) as http:
        return dict(good(await http.get("/schema/openapi.json")))


def operations(document: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        # Administrators come there by a cookie of its own.
        if not path.startswith("/dashboard")
    }


async def test_table_has_a_line_for_every_call(document: dict[str, Any]) -> None:
    assert TABLE.keys() | OPEN == operations(document).keys()


async def test_each_call_is_for_the_credentials_of_its_line(server: str, holder: Holder) -> None:
    found: dict[str, tuple[str, ...]] = {}
    async with httpx.AsyncClient(base_url=server, timeout=30, verify=False) as http:
        for what in TABLE:
            tokens = dict(holder.tokens)
            if what == "POST /logout":
                email = holder.person.user["email"]
                session = good(await http.post("/login", json={"email": email, "password": PASSWORD}))
                tokens["session"] = session["token"]["token"]
            answers = [await call(http, what, tokens[column]) for column in COLUMNS]
            assert max(answer.status_code for answer in answers) < 500, what
            found[what] = tuple(outcome(answer) for answer in answers)
    assert found == TABLE


async def test_document_names_the_credentials_of_each_line(document: dict[str, Any]) -> None:
    for what, operation in operations(document).items():
        if what in TABLE:
            session, *keys, jwt = TABLE[what]
            named = {name for scheme in operation.get("security", document["security"]) for name in scheme}
            assert named == {
                name for name, let in (("session", session == IN), ("api_key", IN in keys), ("jwt", jwt == IN)) if let
            }, what


async def test_without_a_credential_every_call_but_the_open_ones_is_401(server: str, holder: Holder) -> None:
    """A ticket is for one WebSocket, and no bearer."""
    ended = good(await holder.person.post("/api-keys", {"label": "ended"}), 201)
    assert (await holder.person.delete(f"/api-keys/{ended['id']}")).status_code == 204
    ticket = good(await holder.person.post("/ws-tickets"), 201)["ticket"]
    async with httpx.AsyncClient(base_url=server, verify=False) as http:
        for what in TABLE:
            for token in (None, ticket, f"sbk_{ticket}", ended["token"]):
                assert code(await call(http, what, token)) == (401, "unauthenticated"), what
        for what in OPEN - {"POST /login"}:
            assert (await call(http, what, None)).status_code != 401, what


async def test_form_of_the_body_is_judged_before_the_scope(server: str, holder: Holder) -> None:
    headers = {"Authorization": f"Bearer {holder.tokens['read key']}"}
    async with httpx.AsyncClient(base_url=server, headers=headers, verify=False) as http:
        said = {"/groups": "scope_required", "/api-keys": "session_required"}
        for path in (*said, f"/posts/{random_id()}/request_read"):
            assert code(await http.post(path, content=b"{")) == (400, "malformed_json")
            assert code(await http.post(path, content=b"{}", headers={"Content-Type": "text/plain"}))[0] == 415
            assert code(await http.post(path, content=b"x" * 2_000_000)) == (413, "too_large")
            assert code(await http.post(path, json={"no": "such field"})) == (403, said.get(path, "scope_required"))
        # No body is none at all, where one is needed, and as good as another where it is not.
        assert code(await http.post("/groups")) == (400, "malformed_json")
        assert code(await http.post(f"/posts/{random_id()}/request_read")) == (403, "scope_required")
    headers = {"Authorization": f"Bearer {holder.tokens['key of both']}"}
    async with httpx.AsyncClient(base_url=server, headers=headers, verify=False) as http:
        assert code(await http.post("/api-keys", json={"label": 1})) == (403, "session_required")
        assert code(await http.patch("/me", json={"name": 1})) == (403, "session_required")


SOCKETS = {"session": 0, "read key": 0, "write key": 4401, "key of both": 0, "jwt": 0}


@pytest.mark.parametrize("column", COLUMNS)
async def test_socket_is_for_credentials_that_read(server: str, holder: Holder, column: str) -> None:
    headers = {"Authorization": f"Bearer {holder.tokens[column]}"}
    async with open_socket(server, headers=headers) as listener:
        if SOCKETS[column]:
            assert await listener.closed() == SOCKETS[column]
        else:
            await listener.hear("connection.accepted")


@pytest.mark.parametrize("column", [column for column in COLUMNS if not SOCKETS[column]])
async def test_ticket_stands_for_who_bought_it(server: str, holder: Holder, column: str) -> None:
    headers = {"Authorization": f"Bearer {holder.tokens[column]}"}
    async with httpx.AsyncClient(base_url=server, headers=headers, verify=False) as http:
        buyer = good(await http.get("/me"))["id"]
        bought = good(await http.post("/ws-tickets"), 201)
    async with open_socket(server, f"?ticket={bought['ticket']}") as listener:
        assert (await listener.hear("connection.accepted"))["user_id"] == buyer
    async with open_socket(server, f"?ticket={bought['ticket']}") as listener:
        assert await listener.closed() == 4401, "single use"


# --------------------------------------------------------------------------------------------- tickets


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator["redis.asyncio.Redis"]:
    client = redis.asyncio.Redis.from_url(str(settings.redis_url))
    yield client
    await client.aclose()


async def test_of_twenty_takers_one_gets_the_ticket(
    settings: Settings, migrated: None, alice: Person, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """At two processes, all at the same moment."""
    folder = tmp_path_factory.mktemp("apis")
    async with AsyncExitStack() as stack:
        urls = [
            (await stack.enter_async_context(running_api_process(environ_of(settings), folder / name))).url
            for name in ("one", "other")
        ]

        async def take(n: int, ticket: str) -> str:
            async with open_socket(urls[n % 2], f"?ticket={ticket}") as listener:
                try:
                    return str((await listener.next())["type"])
                except Exception:
                    return str(await listener.closed())

        for _ in range(5):
            ticket = good(await alice.post("/ws-tickets"), 201)["ticket"]
            takers = await asyncio.gather(*(take(n, ticket) for n in range(20)))
            assert sorted(takers) == ["4401"] * 19 + ["connection.accepted"]


async def test_ticket_lives_thirty_seconds_and_is_stored_as_a_hash(
    server: str, alice: Person, store: "redis.asyncio.Redis"
) -> None:
    bought = good(await alice.post("/ws-tickets"), 201)
    key = f"secureblogs:ticket:{digests.token_hash(bought['ticket']).hex()}"
    assert 25_000 < await store.pttl(key) <= 30_000 == bought["expires_in"] * 1000
    assert bought["ticket"].encode() not in b" ".join([name async for name in store.scan_iter("*")])
    await store.pexpire(key, 1)

    async def is_gone() -> bool:
        return not await store.exists(key)

    await until(is_gone)
    async with open_socket(server, f"?ticket={bought['ticket']}") as listener:
        assert await listener.closed() == 4401


async def test_who_writes_to_redis_can_write_no_ticket(
    server: str, alice: Person, bob: Person, store: "redis.asyncio.Redis"
) -> None:
    bought, other = [good(await someone.post("/ws-tickets"), 201)["ticket"] for someone in (alice, bob)]
    key, other_key = (f"secureblogs:ticket:{digests.token_hash(ticket).hex()}" for ticket in (bought, other))
    stored, others = await store.get(key), await store.get(other_key)
    in_clear = f'[null,"{alice.id}","2999-01-01T00:00:00Z"]'.encode()
    for forged in (in_clear, bytes(32) + in_clear, others[:32] + in_clear, others[:32] + stored[32:], stored, b""):
        await store.set(other_key, forged, ex=30)
        async with open_socket(server, f"?ticket={other}") as listener:
            assert await listener.closed() == 4401
    await store.set(other_key, others, ex=30)
    async with open_socket(server, f"?ticket={other}") as listener:
        assert (await listener.hear("connection.accepted"))["user_id"] == str(bob.id)


async def test_ticket_is_worth_nothing_once_what_bought_it_has_ended(
    server: str, alice: Person, database_pool: None
) -> None:
    key = good(await alice.post("/api-keys", {"label": "script"}), 201)
    headers = {"Authorization": f"Bearer {key['token']}"}
    async with httpx.AsyncClient(base_url=server, headers=headers, verify=False) as http:
        first, second, third = [good(await http.post("/ws-tickets"), 201)["ticket"] for _ in range(3)]
    async with open_socket(server, f"?ticket={first}") as listener:
        await listener.catch_up()
        assert (await alice.delete(f"/api-keys/{key['id']}")).status_code == 204
        assert await listener.closed(within_s=8) == 4408
    async with open_socket(server, f"?ticket={second}") as listener:
        assert await listener.closed() == 4401
    await database.execute("DELETE FROM user_tokens WHERE id = $1", UUID(key["id"]))
    async with open_socket(server, f"?ticket={third}") as listener:
        assert await listener.closed() == 4401


async def test_socket_of_a_jwt_ends_with_it(server: str) -> None:
    expires = datetime.now(UTC).timestamp() + 2
    async with guest(server, exp=expires) as gina:
        ticket = good(await gina.post("/ws-tickets"), 201)["ticket"]
        later = good(await gina.post("/ws-tickets"), 201)["ticket"]
        async with gina.listen() as listener, open_socket(server, f"?ticket={ticket}") as by_ticket:
            assert await listener.closed(within_s=9) == 4408
            assert await by_ticket.closed(within_s=2) == 4408
        assert expires <= datetime.now(UTC).timestamp() <= expires + 5.5
        async with open_socket(server, f"?ticket={later}") as listener:
            assert await listener.closed() == 4401


async def test_sockets_of_a_deleted_guest_end(server: str, database_pool: None) -> None:
    async with guest(server) as gina, gina.listen() as listener:
        ticket = good(await gina.post("/ws-tickets"), 201)["ticket"]
        await credentials.forget_identity(ISSUER, gina.subject)
        await database.execute("DELETE FROM users WHERE id = $1", gina.id)
        assert await listener.closed(within_s=8) == 4408
        async with open_socket(server, f"?ticket={ticket}") as late:
            assert await late.closed() == 4401


async def test_sockets_are_checked_each_by_its_own_credential(alice: Person, database_pool: None) -> None:
    key = good(await alice.post("/api-keys", {"label": "script"}), 201)
    async with guest(str(alice.client.base_url)) as gina:
        ours = [await credentials.authenticate(token) for token in (alice.token, key["token"])]
        now = datetime.now(UTC)
        theirs = [
            ours[0]._replace(user_id=gina.id, credential_id=None, kind="jwt", expires=now + timedelta(seconds=seconds))
            for seconds in (-1, 60)
        ]
        assert await credentials.ended_credentials({*ours, *theirs}) == {theirs[0]}
        await alice.delete(f"/api-keys/{key['id']}")
        assert await credentials.ended_credentials({*ours, *theirs}) == {ours[1], theirs[0]}
        await database.execute("UPDATE users SET disabled_at = now() WHERE id = $1", gina.id)
        assert await credentials.ended_credentials({*ours, *theirs}) == {ours[1], *theirs}
        assert await credentials.ended_credentials(theirs) == set(theirs)
        assert await credentials.ended_credentials([ours[0]]) == set()


# -------------------------------------------------------------------------------------------- API keys


async def test_api_key_is_shown_once(alice: Person, database_pool: None) -> None:
    made = good(await alice.post("/api-keys", {"label": "backup script"}), 201)
    fields = ["id", "label", "scopes", "created_at", "expires", "last_used_at", "revoked_at"]
    assert list(made) == [*fields, "token"]
    token = made.pop("token")
    assert re.fullmatch(r"sbk_[A-Za-z0-9_-]{43}", token), "256 bits"
    assert made["label"] == "backup script"
    assert made["scopes"] == ["read", "write"]
    assert (made["expires"], made["last_used_at"], made["revoked_at"]) == (None, None, None)
    assert good(await alice.get("/api-keys"))["items"] == [made]
    [row] = await database.fetch("SELECT * FROM user_tokens WHERE id = $1", UUID(made["id"]))
    assert row["token_hash"] == digests.token_hash(token)
    assert token[4:] not in str(row)


async def test_api_keys_are_listed_newest_first_in_pages(alice: Person, bob: Person) -> None:
    made = [good(await alice.post("/api-keys", {"label": f"key {n}"}), 201)["id"] for n in range(5)]
    await bob.post("/api-keys", {"label": "another's"})
    assert [key["id"] for key in await all_pages(alice, "/api-keys", 2)] == made[::-1]


async def test_revoked_api_key_ends_at_once_and_stays_on_the_list(server: str, alice: Person, bob: Person) -> None:
    made = good(await alice.post("/api-keys", {"label": "x"}), 201)
    async with httpx.AsyncClient(
        base_url=server, headers={"Authorization": f"Bearer {made['token']}"}, verify=False
    ) as http:
        assert good(await http.get("/me"))["id"] == str(alice.id)
        for absent in (made["id"], random_id(), "nonsense"):
            assert code(await bob.delete(f"/api-keys/{absent}")) == (404, "api_key_not_found")
        [session] = good(await alice.get("/sessions"))["items"]
        assert code(await alice.delete(f"/api-keys/{session['id']}")) == (404, "api_key_not_found")
        good(await http.get("/me"))
        assert (await alice.delete(f"/api-keys/{made['id']}")).status_code == 204
        assert code(await http.get("/me")) == (401, "unauthenticated")
    [listed] = good(await alice.get("/api-keys"))["items"]
    assert listed["revoked_at"] is not None
    assert (await alice.delete(f"/api-keys/{made['id'].upper()}")).status_code == 204, "again"
    assert good(await alice.get("/api-keys"))["items"] == [listed]


async def test_api_key_ends_when_it_says(server: str, alice: Person, database_pool: None) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=100)
    made = good(await alice.post("/api-keys", {"label": "x", "expires": timestamp(soon)}), 201)
    assert made["expires"] == timestamp(soon)
    headers = {"Authorization": f"Bearer {made['token']}"}
    async with httpx.AsyncClient(base_url=server, headers=headers, verify=False) as http:
        good(await http.get("/me"))
        await database.execute("UPDATE user_tokens SET expires = now() WHERE id = $1", UUID(made["id"]))
        assert code(await http.get("/me")) == (401, "token_expired")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label", ""),
        ("label", "x" * 101),
        ("label", None),
        ("scopes", []),
        ("scopes", ["read", "read"]),
        ("scopes", ["admin"]),
        ("scopes", ["Read"]),
        ("scopes", "read"),
        ("scopes", ["read", "write", "read"]),
        ("scopes", None),
        ("expires", "2020-01-01T00:00:00Z"),
        ("expires", "2999-01-01T00:00:00"),
        ("expires", "2999-01-01"),
        ("expires", 4102444800),
        ("expires", "tomorrow"),
        ("token", "sbk_mine"),
    ],
)
async def test_what_does_not_fit_an_api_key_is_named(alice: Person, field: str, value: Any) -> None:
    answer = await alice.post("/api-keys", {"label": "x"} | {field: value})
    assert code(answer) == (422, "invalid")
    assert answer.json()["errors"][0]["pointer"].startswith(f"/{field}")
    assert good(await alice.get("/api-keys"))["items"] == []


async def test_times_of_other_zones_and_far_years_are_taken(alice: Person) -> None:
    for told, stored in (
        ("2999-01-01T02:00:00+02:00", "2999-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.000000Z"),
    ):
        assert good(await alice.post("/api-keys", {"label": "x", "expires": told}), 201)["expires"] == stored
    # The same moment in Greenwich is one of the year 10000.
    answer = await alice.post("/api-keys", {"label": "x", "expires": "9999-12-31T23:59:59-23:59"})
    assert code(answer) == (422, "invalid")


async def test_use_is_noted_once_a_minute_beside_the_answer(
    server: str, alice: Person, database_pool: None, settings: Settings
) -> None:
    made = good(await alice.post("/api-keys", {"label": "x"}), 201)

    async def last_used() -> Any:
        return await database.fetchval("SELECT last_used_at FROM user_tokens WHERE id = $1", UUID(made["id"]))

    headers = {"Authorization": f"Bearer {made['token']}"}
    async with httpx.AsyncClient(base_url=server, headers=headers, verify=False) as http:
        # Whatever holds the row does not hold up the answer.
        async with database.transaction():
            await database.execute("SELECT 1 FROM user_tokens WHERE id = $1 FOR UPDATE", UUID(made["id"]))
            answers = await asyncio.wait_for(asyncio.gather(*(http.get("/me") for _ in range(20))), 10)
            assert {answer.status_code for answer in answers} == {200}
            assert await last_used() is None
        await until(last_used)
        first = await last_used()
        assert abs(first - datetime.now(UTC)) < timedelta(minutes=1)
        for _ in range(5):
            good(await http.get("/me"))
        assert not (await credentials.authenticate(made["token"])).use_is_old
        await credentials.note_use(UUID(made["id"]))
        assert await last_used() == first
        ago = first - timedelta(seconds=61)
        await database.execute("UPDATE user_tokens SET last_used_at = $2 WHERE id = $1", UUID(made["id"]), ago)
        good(await http.get("/me"))

        async def is_noted() -> bool:
            return bool(await last_used() > ago)

        await until(is_noted)
    [listed] = good(await alice.get("/api-keys"))["items"]
    assert listed["last_used_at"] == timestamp(await last_used())
    assert auth._noting == {}


async def test_use_of_a_session_is_not_noted(alice: Person, database_pool: None) -> None:
    await database.execute('UPDATE user_tokens SET last_used_at = NULL WHERE "user" = $1', alice.id)
    assert not (await credentials.authenticate(alice.token)).use_is_old


async def test_keys_made_at_once_keep_to_the_limit(alice: Person, database_pool: None) -> None:
    """100 live tokens, of which one is the session: of 25 keys at once, the last ten that fit are made."""
    await database.execute(
        'INSERT INTO user_tokens ("user", token_hash, kind, scopes, label)'
        " SELECT $1, sha256(gen_random_uuid()::text::bytea), 'api_key', '{read}', 'x' FROM generate_series(1, 89)",
        alice.id,
    )
    answers = await asyncio.gather(*(alice.post("/api-keys", {"label": f"key {n}"}) for n in range(25)))
    assert sorted(answer.status_code for answer in answers) == [201] * 10 + [422] * 15
    refused = next(answer for answer in answers if answer.status_code == 422)
    [error] = refused.json()["errors"]
    assert error == {"pointer": "", "detail": "is one too many: 100 sessions and API keys may be live"}

    # Revoked and expired ones don't count.
    [made, other] = [good(answer, 201)["id"] for answer in answers if answer.status_code == 201][:2]
    await alice.delete(f"/api-keys/{made}")
    good(await alice.post("/api-keys", {"label": "instead"}), 201)
    assert code(await alice.post("/api-keys", {"label": "x"})) == (422, "invalid")
    await database.execute("UPDATE user_tokens SET expires = now() WHERE id = $1", UUID(other))
    good(await alice.post("/api-keys", {"label": "instead"}), 201)


async def test_login_makes_room_among_sessions_alone(alice: Person, database_pool: None) -> None:
    await database.execute(
        'INSERT INTO user_tokens ("user", token_hash, kind, scopes, label)'
        " SELECT $1, sha256(gen_random_uuid()::text::bytea), 'api_key', '{read}', 'x' FROM generate_series(1, 97)",
        alice.id,
    )
    sessions = []
    for _ in range(4):
        body = {"email": alice.user["email"], "password": PASSWORD}
        sessions.append(good(await alice.client.post("/login", json=body))["token"]["token"])
    assert code(await alice.get("/me")) == (401, "unauthenticated"), "the oldest session made room"
    kinds = 'SELECT kind, count(*) FROM user_tokens WHERE "user" = $1 AND revoked_at IS NULL GROUP BY kind'
    assert {row["kind"]: row["count"] for row in await database.fetch(kinds, alice.id)} == {"api_key": 97, "session": 3}
    alice.client.headers["Authorization"] = f"Bearer {sessions[-1]}"
    good(await alice.get("/me"))


async def test_key_is_not_made_with_a_credential_that_has_ended_meanwhile(
    alice: Person, database_pool: None, settings: Settings
) -> None:
    """A new password ends all other credentials: those too that were just about to be made with them."""
    other = good(await alice.client.post("/login", json={"email": alice.user["email"], "password": PASSWORD}))
    caller = await credentials.authenticate(other["token"]["token"])
    body = {"password": "another password", "current_password": PASSWORD}
    good(await alice.patch("/me", body))
    with pytest.raises(Unauthenticated):
        await credentials.make_api_key(caller, "x", ["read"], None, settings)
    mine = await credentials.authenticate(alice.token)
    for caller in (mine, mine._replace(credential_id=None, kind="jwt")):
        good_one, _ = await credentials.make_api_key(caller, "x", ["read"], None, settings)
        assert good_one["label"] == "x"
    await database.execute("UPDATE users SET disabled_at = now() WHERE id = $1", alice.id)
    for caller in (mine, mine._replace(credential_id=None, kind="jwt")):
        with pytest.raises(Unauthenticated):
            await credentials.make_api_key(caller, "x", ["read"], None, settings)


async def test_new_password_ends_sessions_keys_tickets_and_sockets(server: str, alice: Person) -> None:
    key = good(await alice.post("/api-keys", {"label": "x"}), 201)["token"]
    other = good(await alice.client.post("/login", json={"email": alice.user["email"], "password": PASSWORD}))
    async with AsyncExitStack() as stack:
        sockets = []
        tickets = []
        for token in (key, other["token"]["token"]):
            headers = {"Authorization": f"Bearer {token}"}
            answer = await alice.client.post("/ws-tickets", headers=headers)
            tickets.append(good(answer, 201)["ticket"])
            listener = await stack.enter_async_context(open_socket(server, headers=headers))
            await listener.catch_up()
            sockets.append(listener)
        own = await stack.enter_async_context(alice.listen())
        good(await alice.patch("/me", {"password": "another password", "current_password": PASSWORD}))
        for listener in sockets:
            assert await listener.closed(within_s=8) == 4408
        for ticket in tickets:
            late = await stack.enter_async_context(open_socket(server, f"?ticket={ticket}"))
            assert await late.closed() == 4401
        await alice.found_group()
        await own.has_heard("group.member_added")


async def test_guest_has_api_keys_but_no_sessions(server: str) -> None:
    async with guest(server) as gina:
        made = good(await gina.post("/api-keys", {"label": "x", "scopes": ["write"]}), 201)
        [listed] = good(await gina.get("/api-keys"))["items"]
        assert listed["scopes"] == ["write"]
        headers = {"Authorization": f"Bearer {made['token']}"}
        group = {"id": str(uuid7()), "name": "by key"}
        good(await gina.client.post("/groups", json=group, headers=headers), 201)
        assert good(await gina.get(f"/groups/{group['id']}"))["role"] == "owner"
        assert (await gina.delete(f"/api-keys/{made['id']}")).status_code == 204


# -------------------------------------------------------------------------------------------- sessions


async def test_sessions_are_listed_and_ended_one_by_one(server: str, alice: Person, bob: Person) -> None:
    others = [
        good(await alice.client.post("/login", json={"email": alice.user["email"], "password": PASSWORD}))["token"]
        for _ in range(2)
    ]
    listed = await all_pages(alice, "/sessions", 2)
    assert [list(session) for session in listed] == [["id", "created_at", "expires", "is_current"]] * 3
    assert [session["is_current"] for session in listed] == [False, False, True]
    assert [session["expires"] for session in listed[:2]] == [token["expires"] for token in others[::-1]]
    assert all("sbs_" not in str(session) for session in listed)

    async with open_socket(server, headers={"Authorization": f"Bearer {others[0]['token']}"}) as listener:
        await listener.catch_up()
        ended = listed[1]["id"]
        for absent in (ended, random_id(), "nonsense"):
            assert code(await bob.delete(f"/sessions/{absent}")) == (404, "session_not_found")
        key = good(await alice.post("/api-keys", {"label": "x"}), 201)["id"]
        assert code(await alice.delete(f"/sessions/{key}")) == (404, "session_not_found")
        assert (await alice.delete(f"/sessions/{ended}")).status_code == 204
        assert await listener.closed(within_s=8) == 4408
    assert (await alice.delete(f"/sessions/{ended}")).status_code == 204, "again"
    assert [session["id"] for session in good(await alice.get("/sessions"))["items"]] == [
        listed[0]["id"],
        listed[2]["id"],
    ]
    headers = {"Authorization": f"Bearer {others[1]['token']}"}
    good(await alice.client.get("/me", headers=headers))
    # One's own is as good as another: it is a logout.
    assert (await alice.delete(f"/sessions/{listed[2]['id']}")).status_code == 204
    assert code(await alice.get("/me")) == (401, "unauthenticated")


async def test_expired_sessions_are_not_listed(alice: Person, database_pool: None) -> None:
    other = good(await alice.client.post("/login", json={"email": alice.user["email"], "password": PASSWORD}))
    hashed = digests.token_hash(other["token"]["token"])
    await database.execute("UPDATE user_tokens SET expires = now() WHERE token_hash = $1", hashed)
    [session] = good(await alice.get("/sessions"))["items"]
    assert session["is_current"]


# ----------------------------------------------------------------------------------- what is written down


async def test_audit_log_has_each_credential_that_was_made_or_ended(alice: Person, database_pool: None) -> None:
    key = good(await alice.post("/api-keys", {"label": "x"}), 201)["id"]
    for _ in range(2):
        await alice.delete(f"/api-keys/{key}")
    [session] = good(await alice.get("/sessions"))["items"]
    for _ in range(2):
        await alice.post("/logout")
    rows = await database.fetch(
        "SELECT action, actor, \"user\", ids ->> 'api_key_id' AS key, ids ->> 'session_id' AS session FROM audit_log"
        " WHERE actor = $1 AND (action LIKE 'session.%' OR action LIKE 'api_key.%') ORDER BY id",
        alice.id,
    )
    assert [tuple(row) for row in rows] == [
        ("session.opened", alice.id, alice.id, None, session["id"]),
        ("api_key.created", alice.id, alice.id, key, None),
        ("api_key.revoked", alice.id, alice.id, key, None),
        ("session.ended", alice.id, alice.id, None, session["id"]),
    ]


async def test_a_token_of_ours_is_never_taken_for_a_jwt(server: str, alice: Person) -> None:
    """Nor the other way round: which it is shows in its beginning, and in nothing that could be chosen."""
    token = token_of(new_subject())
    async with httpx.AsyncClient(base_url=server, verify=False) as http:
        for bearer in (f"sbs_{token}", f"sbk_{token}", f"{alice.token}.x.y", token.replace(".", "-"), f"{token}.x"):
            answer = await http.get("/me", headers={"Authorization": f"Bearer {bearer}"})
            assert code(answer) == (401, "unauthenticated"), bearer
        good(await http.get("/me", headers={"Authorization": f"Bearer {token}"}))


async def test_issuer_is_asked_for_no_token_of_ours_and_none_that_is_too_long(
    settings: Settings, database_pool: None
) -> None:
    asked: list[str] = []

    class Asked(Issuer):
        def verify(self, token: str) -> credentials.Claims:
            asked.append(token)
            return super().verify(token)

    issuer = Asked(ISSUER, "authenticated", {"HS256": [SECRET]})
    app: Any = SimpleNamespace(state=SimpleNamespace(issuer=issuer, settings=settings))
    genuine = token_of(new_subject())
    for token in (f"sbs_{genuine}", f"sbk_{genuine}", token_of(new_subject(), x="x" * 8192), "é.é.é", "\ud800.a.b"):
        with pytest.raises(Unauthenticated):
            await auth.authenticate(app, token)
    assert asked == []
    assert (await auth.authenticate(app, genuine)).kind == "jwt"
    assert asked == [genuine]


async def test_query_token_may_be_a_jwt_where_it_is_allowed(
    settings: Settings, migrated: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environ = environ_of(settings, JWT_SECRET_KEY=SECRET.decode(), JWT_ISSUER=ISSUER, ALLOW_QUERY_TOKEN="on")
    folder = tmp_path_factory.mktemp("api")
    async with running_api_process(environ, folder / "log") as api:
        async with open_socket(api.url, f"?token={token_of(new_subject())}") as listener:
            await listener.hear("connection.accepted")
        for bad in (quote("é.é.é"), "%ED%A0%80.a.b", "%00.a.b", token_of("")):
            async with open_socket(api.url, f"?token={bad}") as listener:
                assert await listener.closed() == 4401


# ------------------------------------------------------------ callers whose credential their own statements look at


async def proving_calls(member: Person, other: Person) -> dict[str, tuple[str, dict[str, Any] | None]]:
    """All calls of handlers that prove their caller themselves, good and bad, each as `METHOD path` and body."""
    group_id, empty_id = await member.found_group(), await member.found_group()
    post = await member.publish(group_id)
    others_group_id = await other.found_group()
    unread = await other.publish(others_group_id)
    await other.add(others_group_id, member)
    body = {"group_id": group_id, "title": "A title", "content": "Some text"}
    return {
        "a page": (f"GET /posts?group_id={group_id}", None),
        "an empty page": (f"GET /posts?group_id={empty_id}", None),
        "a page of all groups": ("GET /posts", None),
        "a page of no group": (f"GET /posts?group_id={random_id()}", None),
        "a bad limit": (f"GET /posts?group_id={group_id}&limit=0", None),
        "an unknown filter": ("GET /posts?grop_id=1", None),
        "a post": (f"GET /posts/{post['id']}", None),
        "no post": (f"GET /posts/{random_id()}", None),
        "no id": ("GET /posts/x", None),
        "posting": ("POST /posts", body),
        "posting too little": ("POST /posts", {"group_id": group_id}),
        "posting to no group": ("POST /posts", body | {"group_id": random_id()}),
        "asking": (f"POST /posts/{unread['id']}/request_read", None),
        "asking for what is one's own": (f"POST /posts/{post['id']}/request_read", None),
        "asking for nothing": (f"POST /posts/{random_id()}/request_read", None),
    }


def test_it_is_known_which_handlers_prove_their_caller(settings: Settings) -> None:
    """A new one wants its calls above."""
    handlers = [one for route in create_app(settings).routes for one in getattr(route, "route_handlers", [])]
    proving = {str(handler.operation_id) for handler in handlers if "proves_caller" in handler.opt}
    assert proving == {"listPosts", "getPost", "createPost", "requestRead"}


ENDS = {
    "revoked": ('UPDATE user_tokens SET revoked_at = now() WHERE "user" = $1', "unauthenticated"),
    "expired": ('UPDATE user_tokens SET expires = now() WHERE "user" = $1', "token_expired"),
    "disabled": ("UPDATE users SET disabled_at = now() WHERE id = $1", "unauthenticated"),
    "forgotten": ('DELETE FROM user_tokens WHERE "user" = $1', "unauthenticated"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_known_credential_that_has_ended_hears_401_whatever_it_asks(
    server: str, database_pool: None, end: str
) -> None:
    """The process has just seen it, and takes no other's word for its standing."""
    statement, why = ENDS[end]
    async with person(server) as member, person(server) as other:
        calls = await proving_calls(member, other)
        for what, (line, body) in calls.items():
            method, _, path = line.partition(" ")
            answer = await member.client.request(method, path, json=body)
            assert answer.status_code != 401, what
        posts_before = await database.fetchval("SELECT count(*) FROM posts WHERE author = $1", member.id)
        await database.execute(statement, member.id)
        for what, (line, body) in calls.items():
            method, _, path = line.partition(" ")
            answer = await member.client.request(method, path, json=body)
            assert code(answer) == (401, why), what
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert await database.fetchval("SELECT count(*) FROM posts WHERE author = $1", member.id) == posts_before


async def test_what_is_known_of_credentials_is_forgotten() -> None:
    known = auth.Known()
    caller = Caller(UUID(int=1), "", None, False, datetime.now(UTC), UUID(int=2), "session", (), None)
    known.note("sbs_1", caller)
    assert known.find("sbs_1") == caller
    assert known.find("sbs_2") is None
    known.note("a.b.c", caller._replace(credential_id=None))
    assert known.find("a.b.c") is None
    for number in range(auth.MAX_KNOWN + 1):
        known.note(f"sbs_{number}", caller)
    assert known.find("sbs_1") is None
