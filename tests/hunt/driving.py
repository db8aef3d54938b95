"""What is done to the server: every route, with what it takes and with much that it refuses, canaries in all of it."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import uuid_utils.compat
from websockets.exceptions import ConnectionClosed

from server import dashboard_access, jobs
from server.dashboard.models import State
from tests.faults.sites import is_ready, started
from tests.hunt.canaries import Canaries, note_secrets
from tests.hunt.grounds import Grounds
from tests.jwts import compact, hs256, new_subject, token_of
from tests.people import Person, code, good, new_email, open_socket, random_id, until
from tests.test_attachments import put_sealed
from tests.test_sealed_posts import seal

# Their good answers hand out what nobody else may see.
HAND_OUT = re.compile(r"/(sign-up|login|api-keys|ws-tickets|attachments/[^/]+/links)/?")
HANDED_OUT_HEADERS = {"set-cookie"}


class Driver:
    """A run over the grounds; `posts` is how many of each kind are written. A short one asks each API half as much."""

    def __init__(self, grounds: Grounds, canaries: Canaries, posts: int, *, is_short: bool) -> None:
        self.grounds = grounds
        self.canaries = canaries
        self.posts = posts
        self.is_short = is_short
        self.calls: set[str] = set()
        self.count = 0

    def say(self, what: str) -> str:
        return self.canaries.text(what)

    async def note(self, answer: httpx.Response) -> None:
        """Keep what was told, but for that which is told to whom it belongs."""
        await answer.aread()
        self.count += 1
        path = answer.request.url.path
        head = [f"{name}: {value}" for name, value in answer.headers.items() if name not in HANDED_OUT_HEADERS]
        whole = "\n".join([str(answer.status_code), *head, ""]).encode() + answer.content
        if answer.is_error:
            self.grounds.errors.append(whole)
        elif HAND_OUT.fullmatch(path):
            note_secrets(self.canaries, path, json.loads(answer.content))
        else:
            self.grounds.answers.append(whole)

    @asynccontextmanager
    async def client(self, token: str | None = None, api: int = 0) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=50, keepalive_expiry=2)
        async with httpx.AsyncClient(
            base_url=self.grounds.urls[api],
            headers=headers,
            timeout=60,
            verify=False,
            limits=limits,
            event_hooks={"response": [self.note]},
        ) as client:
            yield client

    @asynccontextmanager
    async def newcomer(self, name: str, keys: int = 1) -> AsyncIterator[tuple[Person, str]]:
        """Somebody, and their password."""
        password = self.say("password")
        async with self.client() as client:
            body = {"name": name, "email": new_email(), "password": password}
            someone = Person(client, good(await client.post("/sign-up", json=body), 201))
            for _ in range(keys):
                await someone.enrol()
            yield someone, password


async def drive(driver: Driver) -> None:
    """Everything that is done, in this order; the engines are taken away and given back on the way."""
    async with AsyncExitStack() as stack:
        (alice, password), (bob, _), (carol, _) = [
            await stack.enter_async_context(driver.newcomer(name)) for name in ("Alice", "Bob", "Carol")
        ]
        await use_accounts(driver, alice, password)
        await use_credentials(driver, alice)
        group_id = await alice.found_group(bob)
        await write_posts(driver, alice, group_id)
        await use_files(driver, alice, bob, group_id)
        await ask_and_decide(driver, alice, bob, carol, group_id)
        await fail_posts(driver, alice, group_id)
        await administer(driver, alice)
        for api in range(len(driver.grounds.urls)):
            await misuse_all(driver, alice, group_id, api)
        await lose_engines(driver, alice, group_id)
        await leave(driver)
        await wait_until_settled(driver)


async def use_accounts(driver: Driver, alice: Person, password: str) -> None:
    email = alice.user["email"]
    async with driver.client() as nobody:
        good(await nobody.post("/login", json={"email": email, "password": password}))
        for body in (
            {"email": email, "password": driver.say("password")},
            {"email": new_email(), "password": driver.say("password")},
            {"email": email, "password": [driver.say("password")]},
            {"email": driver.say("password"), "password": driver.say("password")},
        ):
            assert (await nobody.post("/login", json=body)).is_error
        taken = {"name": "Mallory", "email": email, "password": driver.say("password")}
        assert code(await nobody.post("/sign-up", json=taken)) == (409, "email_taken")
        long = driver.say("password") * 20
        assert (await nobody.post("/sign-up", json=taken | {"password": long, "email": new_email()})).status_code == 422
    changed = driver.say("password")
    wrong = await alice.patch("/me", {"password": changed, "current_password": driver.say("password")})
    assert code(wrong) == (403, "wrong_password")
    good(await alice.patch("/me", {"password": changed, "current_password": password}))
    assert (await alice.post("/me/delete", {"password": driver.say("password")})).status_code == 403


async def use_credentials(driver: Driver, alice: Person) -> None:
    """Each kind of them, good, ended and in the wrong place."""
    grounds, canaries = driver.grounds, driver.canaries
    made = [
        good(await alice.post("/api-keys", {"label": "script", "scopes": [scope]}), 201) for scope in ("read", "write")
    ]
    for key in made:
        async with driver.client(key["token"]) as program:
            await program.get("/groups")
            await program.get("/sessions")
            await program.post("/groups", json={"name": "x"})
            assert (await alice.delete(f"/api-keys/{key['id']}")).status_code == 204
            assert (await program.get("/groups")).status_code == 401
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    brief = good(await alice.post("/api-keys", {"label": "brief", "expires": soon}), 201)
    tickets = [good(await alice.post("/ws-tickets"), 201)["ticket"] for _ in range(3)]
    jwts = [
        canaries.secret("JWT", token_of(new_subject(), name="Gina", user_metadata={"note": driver.say("claim")})),
        canaries.secret("JWT", token_of(new_subject(), exp=1, note=driver.say("claim"))),
        canaries.secret("JWT", compact({"alg": "HS256"}, {"sub": driver.say("claim")}, hs256(b"x" * 32))),
    ]
    for api, url in enumerate(grounds.urls):
        for ticket in tickets[: 1 + api]:
            await listen(url, f"?ticket={ticket}&since={quote(driver.say('query'))}")
            await listen(url, f"?ticket={ticket}")
        await listen(url, f"?token={alice.token}")
        for token in (brief["token"], *jwts, "sbs_" + canaries.plain):
            await listen(url, headers={"Authorization": f"Bearer {token}"})
            async with driver.client(token, api) as caller:
                await caller.get("/me", headers={"Cookie": f"token={token}", "Referer": f"https://x/?token={token}"})
        async with driver.client(api=api) as nobody:
            for secret in (alice.token, tickets[-1], jwts[0]):
                for path in ("/me", "/groups", "/nope", "/health/live"):
                    await nobody.get(path, params={"token": secret, "ticket": secret})
                await nobody.get("/me", headers={"Authorization": f"Basic {secret}"})
    await asyncio.sleep(1)
    async with driver.client(brief["token"]) as program:
        assert code(await program.get("/me")) == (401, "token_expired")


async def listen(url: str, query: str = "", headers: dict[str, str] | None = None) -> None:
    with contextlib.suppress(ConnectionClosed):
        async with open_socket(url, query, headers) as listener:
            await listener.connection.send('{"type": "x"}')
            await listener.hear("caught_up")


async def write_posts(driver: Driver, alice: Person, group_id: str) -> None:
    bodies = [
        {
            "id": str(uuid_utils.compat.uuid7()),
            "group_id": group_id,
            "title": driver.say("title"),
            "content": driver.say("text") * (1 + number % 30),
        }
        for number in range(driver.posts)
    ]
    made = [good(answer, 201) for answer in await asyncio.gather(*(alice.post("/posts", body) for body in bodies))]
    for body, post in zip(bodies, made, strict=True):
        assert alice.open(await alice.wait_until_sealed(post["id"])) == (body["title"], body["content"])
    good(await alice.post("/posts", bodies[0]), 200)
    assert code(await alice.post("/posts", bodies[0] | {"title": driver.say("title")})) == (409, "id_taken")
    misfits: list[dict[str, Any]] = [
        {"group_id": random_id()},
        {"title": driver.say("title") * 5},
        {"content": driver.say("text") * 5000},
        {"attachments": [driver.say("text")]},
        {"title": {"deep": driver.say("title")}, "id": driver.say("text")},
    ]
    for wrong in misfits:
        body = {"group_id": group_id, "title": driver.say("title"), "content": driver.say("text")} | wrong
        assert (await alice.post("/posts", body)).is_error
    for _ in range(driver.posts):
        sealed = await seal(alice, group_id, driver.say("title"), driver.say("text"))
        good(await alice.post("/posts/sealed", sealed), 201)
    for wrong in ({"signature": "AA=="}, {"heading": driver.say("title")}, {"sealed_keys": []}):
        assert (await alice.post("/posts/sealed", sealed | {"id": str(uuid_utils.compat.uuid7())} | wrong)).is_error


async def use_files(driver: Driver, alice: Person, bob: Person, group_id: str) -> None:
    content = driver.say("file").encode() * 2000
    headers = {"X-Filename": f"UTF-8''{quote(driver.say('file name'), safe='')}", "Content-Type": "text/plain"}
    uploaded = good(await alice.client.post("/attachments", content=content, headers=headers), 201)
    sealed_id, *_ = await put_sealed(alice, driver.say("file").encode() * 2000)
    for wrong in (
        {"X-Filename": f"UTF-8''{quote('/' + driver.say('file name'))}"},
        {"X-Filename": quote(driver.say("file name"))},
        {"Content-Type": quote(driver.say("file name"))},
    ):
        assert (await alice.client.post("/attachments", content=content, headers=headers | wrong)).is_error
    for path in (f"/attachments?id={uploaded['id']}", "/attachments?sealed=true", "/attachments?sealed=x"):
        assert (await alice.client.post(path, content=driver.say("file").encode(), headers=headers)).is_error
    too_large = driver.say("file").encode() * 20_000
    assert code(await alice.client.post("/attachments", content=too_large, headers=headers)) == (413, "too_large")
    await break_off(driver, alice, headers)
    body = {"group_id": group_id, "title": driver.say("title"), "content": driver.say("text")}
    post = good(await alice.post("/posts", body | {"attachments": [uploaded["id"]]}), 201)
    await alice.wait_until_sealed(post["id"])
    by_author = await seal(alice, group_id, driver.say("title"), driver.say("text"))
    good(await alice.post("/posts/sealed", by_author | {"attachments": [sealed_id]}), 201)
    for someone in (alice, bob):
        await someone.get(f"/attachments/{uploaded['id']}")
        await someone.client.get(f"/attachments/{uploaded['id']}", headers={"Range": "bytes=100-200"})
    await use_links(driver, alice, uploaded["id"])


async def break_off(driver: Driver, alice: Person, headers: dict[str, str]) -> None:
    """In the middle of an upload."""

    async def body() -> AsyncIterator[bytes]:
        yield driver.say("file").encode() * 3000
        raise ConnectionError("the client has left")

    with contextlib.suppress(ConnectionError):
        await alice.client.post("/attachments", content=body(), headers=headers)


async def use_links(driver: Driver, alice: Person, attachment_id: str) -> None:
    path = f"/attachments/{attachment_id}/links"
    made = [good(await alice.post(path, {"expires_in": 60, "max_downloads": most}), 201) for most in (None, 1)]
    assert (await alice.post(path, {"expires_in": driver.say("link")})).status_code == 422
    await alice.get(path)
    for api in range(len(driver.grounds.urls)):
        async with driver.client(api=api) as nobody:
            for link in made:
                address = link["url"].removeprefix(driver.grounds.settings.public_url)
                for end in ("", "", "/", "?x=" + quote(driver.say("link")), "/" + quote(driver.say("link"), safe="")):
                    await nobody.get(address + end)
                await nobody.head(address)
                await nobody.post("//" + address)
                await nobody.get(address, headers={"Range": "bytes=5-10"})
            await nobody.get(f"/download/{driver.canaries.plain}")
    for link in made:
        assert (await alice.delete(f"/links/{link['id']}")).status_code == 204


async def ask_and_decide(driver: Driver, alice: Person, bob: Person, carol: Person, group_id: str) -> None:
    posts = [
        good(await alice.post("/posts", {"group_id": group_id, "title": driver.say("title"), "content": "x"}), 201)
        for _ in range(3)
    ]
    for post in posts:
        await alice.wait_until_sealed(post["id"])
    await alice.add(group_id, carol)
    async with alice.listen(), carol.listen() as listener:
        asked = [await carol.ask(post["id"]) for post in posts]
        whole = good(await alice.get(f"/posts/{posts[0]['id']}"))
        await alice.approve(whole, asked[0])
        assert (await alice.post(f"/read-requests/{asked[1]['id']}/deny")).is_success
        assert (await carol.delete(f"/read-requests/{asked[2]['id']}")).status_code == 204
        await listener.hear("read_request.denied")
    wrong = {"sealed_key": driver.say("text")}
    assert (await alice.post(f"/read-requests/{asked[2]['id']}/approve", wrong)).is_error
    another = await carol.enrol("phone")
    post = good(await carol.get(f"/posts/{posts[0]['id']}"))
    added = {"sealed_keys": [{"public_key_id": another.id, **carol.reseal(post, another.key)}]}
    good(await carol.post(f"/posts/{post['id']}/keys", added), 201)
    assert (await alice.delete(f"/groups/{group_id}/members/{bob.id}")).status_code == 204
    assert (await bob.get(f"/posts/{post['id']}")).status_code == 404
    await alice.add(group_id, bob)


async def fail_posts(driver: Driver, alice: Person, group_id: str) -> None:
    """Drafts that do not open; a worker that dies over its work."""
    grounds = driver.grounds
    grounds.stop_worker()
    bodies = [
        {"group_id": group_id, "title": driver.say("title"), "content": driver.say("text") * 100}
        for _ in range(max(2, driver.posts // 2))
    ]
    made = [good(await alice.post("/posts", body), 201)["id"] for body in bodies]
    connection = await grounds.postgres()
    good_draft = await connection.fetchval("SELECT draft FROM posts WHERE id = $1", made[0])
    await connection.execute("UPDATE posts SET draft = set_byte(draft, 60, 1) || '\\x00' WHERE id = $1", made[0])
    await grounds.start_worker()
    failed = await alice.wait_until_not_pending(made[0], 60)
    assert failed["status"] == "failed", failed
    await connection.execute("UPDATE posts SET draft = $2 WHERE id = $1", made[0], good_draft)
    good(await alice.post(f"/posts/{made[0]}/requeue"))
    await grounds.start_worker()
    for post_id in made:
        await alice.wait_until_sealed(post_id, 60)
    await connection.close()
    assert (await alice.delete(f"/posts/{made[0]}")).status_code == 204


async def administer(driver: Driver, alice: Person) -> None:
    grounds = driver.grounds
    connection = await grounds.postgres()
    async with driver.newcomer("Ada", keys=0) as (ada, _), driver.newcomer("Mallory") as (mallory, _):
        await connection.execute("UPDATE users SET is_admin = TRUE WHERE id = $1", ada.id)
        await ada.get("/admin/users")
        await ada.client.get("/admin/users", params={"email": driver.say("query")})
        await ada.get("/admin/audit")
        good(await ada.post(f"/admin/users/{mallory.id}/disable"))
        assert (await mallory.get("/me")).status_code == 401
        good(await ada.post(f"/admin/users/{mallory.id}/enable"))
        for path in ("/me/export", "/me/usage", "/me/audit", "/sessions", "/api-keys"):
            await alice.get(path)
        await look_at_dashboard(driver, ada)
    await connection.close()


STATES = tuple(State)
DASHBOARD = [
    *("/dashboard/", "/dashboard/jobs", "/dashboard/functions", "/dashboard/workers", "/dashboard/cron"),
    *("/dashboard/api/overview", "/dashboard/api/workers", "/dashboard/api/cron", "/dashboard/api/history"),
    *("/dashboard/api/panels", "/dashboard/api/capabilities"),
    *(f"/dashboard/api/jobs?state={state}&queue={quote(jobs.QUEUE_NAME)}" for state in STATES),
    *(f"/dashboard/jobs?state={state}" for state in STATES),
]


async def look_at_dashboard(driver: Driver, ada: Person) -> None:
    grounds, canaries = driver.grounds, driver.canaries
    redis = grounds.redis()
    link = await dashboard_access.make_link(redis, grounds.settings, ada.id)
    canaries.secret("link to the dashboard", link.rpartition("=")[2])
    await redis.aclose()
    address = link.removeprefix(grounds.settings.public_url)
    async with driver.client() as browser:
        cookie = (await browser.get(address)).headers["set-cookie"].partition(";")[0]
        canaries.secret("session of the dashboard", cookie.partition("=")[2])
        assert (await browser.get(address)).status_code == 401
        browser.headers["Cookie"] = cookie
        found = [await browser.get(path) for path in DASHBOARD]
        assert not [(str(answer.url), answer.text) for answer in found if not answer.is_success]
        refs = {ref for answer in found for ref in re.findall(r'href="[^"]*/dashboard/(jobs/[^"?]+)"', answer.text)}
        assert refs
        for ref in list(refs)[:20]:
            await browser.get(f"/dashboard/{ref}")
            await browser.get(f"/dashboard/api/{ref}")
        await browser.post("/dashboard/jobs/bulk", data={"action": driver.say("query")})
        await browser.get("/dashboard/jobs", params={"state": driver.say("query"), "q": driver.say("query")})


async def misuse_all(driver: Driver, alice: Person, group_id: str, api: int) -> None:
    """Every call of the document: by nobody, by a member and by a program, with each kind of wrong body."""
    document = good(await alice.get("/schema/openapi.json"))
    program = good(await alice.post("/api-keys", {"label": "reader", "scopes": ["read"]}), 201)
    for path, methods in document["paths"].items():
        for method in methods:
            if path in {"/logout", "/me/delete", "/dashboard/events"} or (driver.is_short and len(path) % 2 == api):
                continue
            driver.calls.add(f"{method.upper()} {path}")
            for token in (None, alice.token, program["token"], f"sbs_{driver.canaries.plain}"):
                async with driver.client(token, api) as client:
                    await misuse(driver, client, method, path, group_id)


async def misuse(driver: Driver, client: httpx.AsyncClient, method: str, path: str, group_id: str) -> None:
    # The group is to last.
    known = path.replace("{group_id}", group_id) if method != "delete" else path
    filled = re.sub(r"\{\w+\}", random_id(), known)
    said = driver.say("body")
    fields = ("title", "content", "password", "token", "name", "label", "sealed_key", "email", "current_password")
    bodies = [
        json.dumps(dict.fromkeys(fields, said)).encode(),
        json.dumps({field: [said, {"x": said}] for field in fields}).encode(),
        json.dumps([said]).encode(),
        json.dumps({"title": said, "content": said}).encode()[:-3],
        json.dumps({"title": said}).encode() + b"\xff\xfe\0",
        said.encode("utf-16"),
    ]
    # A quarter of a second each is what logins by nobody cost: one will do.
    for body in bodies if method in {"post", "patch", "put"} else bodies[:1]:
        media_type = "text/plain" if body is bodies[2] else "application/json"
        query = {"cursor": driver.say("query"), "limit": said} if body is bodies[1] or method == "get" else {}
        await client.request(method, filled, content=body, headers={"Content-Type": media_type}, params=query)


async def lose_engines(driver: Driver, alice: Person, group_id: str) -> None:
    """Valkey, then Postgres, is away while people go on; then both come back."""
    engines = driver.grounds.engines
    for engine in engines.all:
        await asyncio.to_thread(engine.stop)
        async with driver.client() as nobody:
            body = {"email": alice.user["email"], "password": driver.say("password")}
            await nobody.post("/login", json=body)
            for _ in range(3):
                body = {"group_id": group_id, "title": driver.say("title"), "content": driver.say("text")}
                assert (await alice.post("/posts", body)).status_code == (503 if engine.name == "postgres" else 201)
                await alice.client.post(
                    "/attachments", content=driver.say("file").encode(), headers={"X-Filename": "UTF-8''x"}
                )
            await alice.post("/ws-tickets")
            await listen(driver.grounds.urls[0], headers={"Authorization": f"Bearer {alice.token}"})
            await nobody.get("/health/ready")
        await started(engine)
        await until(lambda: is_ready(driver.grounds.urls[0]))


async def leave(driver: Driver) -> None:
    """An account is deleted, and the session of another is ended and tried again."""
    async with driver.newcomer("Zoe") as (zoe, password):
        group_id = await zoe.found_group()
        good(await zoe.post("/posts", {"group_id": group_id, "title": driver.say("title"), "content": "x"}), 201)
        assert (await zoe.post("/me/delete", {"password": password})).status_code == 204
        assert (await zoe.get("/me")).status_code == 401
    async with driver.newcomer("Yves", keys=0) as (yves, _):
        assert (await yves.post("/logout")).status_code == 204
        assert (await yves.get("/me")).status_code == 401


async def wait_until_settled(driver: Driver) -> None:
    """Nothing pending: what was sealed has had its draft taken away."""
    connection = await driver.grounds.postgres()

    async def is_settled() -> bool:
        return await connection.fetchval("SELECT count(*) = 0 FROM posts WHERE status = 'pending'") is True

    await until(is_settled, 120)
    await connection.close()
    async with driver.client(driver.grounds.metrics_token) as monitor:
        assert good_text(await monitor.get("/metrics"))


def good_text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.text
