"""Every route, for every kind of caller, of what is there, of what was deleted and of what never was.

The table is written by hand and says what has to be; a route that is not in it fails a test. In the columns:

    nobody      no credential                       author    wrote the post and uploaded the file; a member
    ended       a session that was ended            owner     owns the group
    stranger    is in no group                      admin     an administrator, and in no group
    former      was a member, and wrote, too        reader    the author's API key that reads
    member      of the group, holding its keys      writer    the author's API key that writes
    asker       a member who came later and asks    guest     a member who comes with a JWT
"""

import base64
import re
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import httpx
import pytest
from litestar.routes import HTTPRoute, WebSocketRoute

from server import administration, database
from server.app import create_app
from server.settings import Settings
from tests.jwts import guest
from tests.people import PASSWORD, Device, Person, code, good, new_email, open_socket, person, random_id
from tests.test_sealed_posts import seal

COLUMNS = (
    *("nobody", "ended", "stranger", "former", "member", "asker", "author", "owner", "admin"),
    *("reader", "writer", "guest"),
)

EVERYBODY = "ok ok ok ok ok ok ok ok ok ok ok ok"
NOT_THERE = "404 404 404 404 404 404 404 404 404 404 404 404"
READS = "401 401 ok ok ok ok ok ok ok ok scope ok"
WRITES = "401 401 ok ok ok ok ok ok ok scope ok ok"
MEMBERS_READ = "401 401 404 404 ok ok ok ok 404 ok scope ok"
ADMINS = "401 401 not_admin not_admin not_admin not_admin not_admin not_admin ok session session not_admin"
ADMINS_WRITE = "401 401 not_admin not_admin not_admin not_admin not_admin not_admin ok session session not_admin"

# What is there: `ok` is 2xx, `404` any of its codes; other words are codes, `scope` and `session` are short.
TABLE = {
    # ----------------------------------------------------------------------- nobody has to be anybody
    "POST /sign-up": EVERYBODY,
    "POST /login": EVERYBODY,
    "GET /health/live": EVERYBODY,
    "GET /health/ready": EVERYBODY,
    "GET /metrics": NOT_THERE,  # no METRICS_TOKEN is set
    "GET /download/{token}": EVERYBODY,
    # ----------------------------------------------------------------------- oneself
    "POST /logout": "401 401 ok ok ok ok ok ok ok session session session",
    "GET /me": READS,
    "PATCH /me": "401 401 ok ok ok ok ok ok ok session session session",
    "POST /me/delete": (
        "401 401 wrong_password wrong_password wrong_password wrong_password wrong_password wrong_password"
        " wrong_password session session invalid"
    ),
    "GET /me/export": "401 401 ok ok ok ok ok ok ok session session ok",
    "GET /me/usage": READS,
    "GET /me/audit": READS,
    "POST /ws-tickets": READS,
    "GET /sessions": "401 401 ok ok ok ok ok ok ok session session session",
    "DELETE /sessions/{session_id}": "401 401 404 404 404 404 ok 404 404 session session session",
    "GET /api-keys": "401 401 ok ok ok ok ok ok ok session session ok",
    "POST /api-keys": "401 401 ok ok ok ok ok ok ok session session ok",
    "DELETE /api-keys/{api_key_id}": "401 401 404 404 404 404 ok 404 404 session session 404",
    "GET /keys": READS,
    "POST /keys": WRITES,
    "DELETE /keys/{key_id}": "401 401 404 404 404 404 ok 404 404 scope ok 404",
    # ----------------------------------------------------------------------- the author's keys, to those who may know
    "GET /users/{user_id}/keys": MEMBERS_READ,
    # ----------------------------------------------------------------------- groups
    "GET /groups": READS,
    "POST /groups": WRITES,
    "GET /groups/{group_id}": MEMBERS_READ,
    "PATCH /groups/{group_id}": ("401 401 404 404 not_owner not_owner not_owner ok 404 scope not_owner not_owner"),
    "DELETE /groups/{group_id}": ("401 401 404 404 not_owner not_owner not_owner ok 404 scope not_owner not_owner"),
    "GET /groups/{group_id}/members": MEMBERS_READ,
    "POST /groups/{group_id}/members": (
        "401 401 404 404 not_owner not_owner not_owner ok 404 scope not_owner not_owner"
    ),
    # Of another member's.
    "PATCH /groups/{group_id}/members/{user_id}": (
        "401 401 404 404 not_owner not_owner not_owner ok 404 scope not_owner not_owner"
    ),
    "DELETE /groups/{group_id}/members/{user_id}": (
        "401 401 404 404 not_owner not_owner not_owner ok 404 scope not_owner not_owner"
    ),
    "GET /groups/{group_id}/keys": MEMBERS_READ,
    "GET /groups/{group_id}/audit": "401 401 404 404 not_owner not_owner not_owner ok 404 not_owner scope not_owner",
    # ----------------------------------------------------------------------- posts
    "GET /posts": READS,
    "POST /posts": "401 401 404 404 ok ok ok ok 404 scope ok ok",
    "POST /posts/sealed": "401 401 404 404 ok ok ok ok 404 scope ok ok",
    "GET /posts/{post_id}": MEMBERS_READ,
    "DELETE /posts/{post_id}": "401 401 404 404 not_author not_author ok ok 404 scope ok not_author",
    "POST /posts/{post_id}/requeue": ("401 401 404 404 not_author not_author ok not_author 404 scope ok not_author"),
    "POST /posts/{post_id}/keys": "401 401 404 404 ok not_decider ok ok 404 scope ok ok",
    "POST /posts/{post_id}/request_read": (
        "401 401 404 404 already_readable ok already_readable already_readable 404 scope already_readable"
        " already_readable"
    ),
    # ----------------------------------------------------------------------- read requests
    "GET /read-requests": READS,
    "GET /read-requests/{request_id}": "401 401 404 404 404 ok ok ok 404 ok scope 404",
    "DELETE /read-requests/{request_id}": "401 401 404 404 404 ok 404 404 404 scope 404 404",
    "POST /read-requests/{request_id}/approve": (
        "401 401 404 404 not_decider own_request ok ok 404 scope ok not_decider"
    ),
    "POST /read-requests/{request_id}/deny": ("401 401 404 404 not_decider own_request ok ok 404 scope ok not_decider"),
    # ----------------------------------------------------------------------- files
    "POST /attachments": WRITES,
    "GET /attachments/{attachment_id}": MEMBERS_READ,
    "GET /attachments/{attachment_id}/links": MEMBERS_READ,
    "POST /attachments/{attachment_id}/links": "401 401 404 404 ok ok ok ok 404 scope ok ok",
    "DELETE /links/{link_id}": "401 401 404 404 404 404 ok 404 404 scope ok 404",
    # ----------------------------------------------------------------------- administration
    "GET /admin/audit": ADMINS,
    "GET /admin/users": ADMINS,
    "POST /admin/users/{user_id}/disable": ADMINS_WRITE,
    "POST /admin/users/{user_id}/enable": ADMINS_WRITE,
    # ----------------------------------------------------------------------- the dashboard, to administrators
    **dict.fromkeys(
        [
            *("GET /dashboard", "GET /dashboard/jobs", "GET /dashboard/functions", "GET /dashboard/workers"),
            *("GET /dashboard/cron", "GET /dashboard/events", "GET /dashboard/api/overview", "GET /dashboard/api/jobs"),
            *("GET /dashboard/api/workers", "GET /dashboard/api/cron", "GET /dashboard/api/history"),
            *("GET /dashboard/api/panels", "GET /dashboard/api/capabilities"),
        ],
        ADMINS,
    ),
    **dict.fromkeys(["GET /dashboard/jobs/{ref}", "GET /dashboard/api/jobs/{ref}"], ADMINS.replace("ok", "404")),
    # What is asked for is nothing that there is, but for that one has to be let in.
    **dict.fromkeys(
        [
            *("POST /dashboard/api/jobs/{ref}/{action}", "POST /dashboard/api/queues/{name}/{action}"),
            "POST /dashboard/api/panels/{panel}/{action}",
        ],
        ADMINS_WRITE.replace("ok", "refused"),
    ),
    # What has a body is for no API key in the first place, whatever its scope.
    **dict.fromkeys(
        [
            *("POST /dashboard/jobs/preview", "POST /dashboard/jobs/bulk", "POST /dashboard/jobs/{ref}/{action}"),
            *("POST /dashboard/queues/{name}/{action}", "POST /dashboard/panels/{panel}/{action}"),
            *("POST /dashboard/api/bulk/preview", "POST /dashboard/api/bulk"),
        ],
        ADMINS_WRITE.replace("ok", "refused"),
    ),
    "GET /dashboard/static/{digest}/{name}": NOT_THERE,
    # The link is the credential, and there is none.
    "GET /dashboard/open": "401 401 401 401 401 401 401 401 401 401 401 401",
    # ----------------------------------------------------------------------- the document
    **dict.fromkeys(
        [
            *("GET /schema", "GET /schema/page.js", "GET /schema/swagger-ui-bundle.js", "GET /schema/swagger-ui.css"),
            *("GET /schema/favicon-32x32.png", "GET /schema/openapi.json", "GET /schema/openapi.yaml"),
        ],
        EVERYBODY,
    ),
    "GET /schema/{path}": NOT_THERE,
}

# `hears`, or the code that the socket is closed with.
SOCKET = "1008 4401 hears hears hears hears hears hears hears hears 4401 hears"

SHORT = {"scope_required": "scope", "session_required": "session"}
# What is deleted, or never was, is so for all alike. But only those hear that whose credential does for the call, and
# administrators' calls say first whom they are for.
STANDS = {"401", "scope", "session", "not_admin"}


def test_every_route_is_in_the_table(settings: Settings) -> None:
    routes = create_app(settings).routes
    found = {
        f"{method} {route.path_format}"
        for route in routes
        if isinstance(route, HTTPRoute)
        for method in route.methods - {"OPTIONS"}
    }
    assert found == TABLE.keys()
    assert [route.path_format for route in routes if isinstance(route, WebSocketRoute)] == ["/ws/post_request"]
    assert {len(line.split()) for line in (*TABLE.values(), SOCKET)} == {len(COLUMNS)}


# ------------------------------------------------------------------------------------------------- the world


class World:
    """A group with one of each kind, and makers of the things in it."""

    def __init__(self, people: dict[str, Person], tokens: dict[str, str | None], group_id: str) -> None:
        self.people = people
        self.tokens = tokens
        self.group_id = group_id
        self.client = httpx.AsyncClient(base_url=people["author"].client.base_url, timeout=30, verify=False)
        self.author, self.owner, self.asker = people["author"], people["owner"], people["asker"]

    def user(self, caller: str) -> Person:
        """Whom a caller stands for; the author's for those who are nobody."""
        return self.people.get(caller, self.author)

    async def group(self) -> str:
        group_id = await self.owner.found_group()
        for name in ("former", "member", "asker", "author", "guest"):
            await self.owner.add(group_id, self.people[name])
        assert (await self.owner.delete(f"/groups/{group_id}/members/{self.people['former'].id}")).status_code == 204
        return group_id

    async def deleted_group(self) -> str:
        group_id = await self.group()
        assert (await self.owner.delete(f"/groups/{group_id}")).status_code == 204
        return group_id

    async def outsider(self) -> str:
        """Of whom it is known that they are no member, for they are taken out."""
        other = self.people["other"]
        await self.owner.delete(f"/groups/{self.group_id}/members/{other.id}")
        return str(other.id)

    async def other_member(self) -> str:
        other = self.people["other"]
        if (await self.owner.get(f"/groups/{self.group_id}/members")).text.find(str(other.id)) < 0:
            await self.owner.add(self.group_id, other)
        return str(other.id)

    async def post(self) -> str:
        """By the author, who is a member; not readable for the asker."""
        await self.owner.delete(f"/groups/{self.group_id}/members/{self.asker.id}")
        post = await self.author.publish(self.group_id)
        await self.owner.add(self.group_id, self.asker)
        return str(post["id"])

    async def failed_post(self) -> str:
        post_id = await self.post()
        # As a draft that nobody can open leaves it.
        await database.execute(
            "UPDATE posts SET status = 'failed', failure = 'draft_unreadable', draft = $2, heading = NULL,"
            " content = NULL, content_hash = NULL, commitment = NULL, sealed_at = NULL, sealed_by = 'server'"
            " WHERE id = $1",
            UUID(post_id),
            bytes(200),
        )
        return post_id

    async def deleted_post(self) -> str:
        post_id = await self.post()
        assert (await self.author.delete(f"/posts/{post_id}")).status_code == 204
        return post_id

    async def request(self) -> str:
        return str((await self.asker.ask(await self.post()))["id"])

    async def deleted_request(self) -> str:
        post_id = await self.post()
        request = await self.asker.ask(post_id)
        assert (await self.author.delete(f"/posts/{post_id}")).status_code == 204
        return str(request["id"])

    async def attachment(self) -> str:
        headers = {"X-Filename": "UTF-8''x", "Content-Type": "text/plain"}
        uploaded = good(await self.author.client.post("/attachments", content=b"file", headers=headers), 201)
        body = {"group_id": self.group_id, "title": "t", "content": "c", "attachments": [uploaded["id"]]}
        self.file_post = good(await self.author.post("/posts", body), 201)["id"]
        await self.author.wait_until_sealed(self.file_post)
        return str(uploaded["id"])

    async def deleted_attachment(self) -> str:
        attachment_id = await self.attachment()
        assert (await self.author.delete(f"/posts/{self.file_post}")).status_code == 204
        return attachment_id

    async def link(self) -> dict[str, Any]:
        made = await self.author.post(f"/attachments/{await self.attachment()}/links", {"expires_in": 3600})
        return dict(good(made, 201))

    async def session(self) -> str:
        body = {"email": self.author.user["email"], "password": PASSWORD}
        token = good(await self.client.post("/login", json=body))["token"]["token"]
        headers = {"Authorization": f"Bearer {token}"}
        [own] = [one for one in good(await self.client.get("/sessions", headers=headers))["items"] if one["is_current"]]
        return str(own["id"])

    async def key(self) -> str:
        device = Device(self.author.id)
        return str(good(await self.author.post("/keys", device.body("another")), 201)["id"])

    async def close(self) -> None:
        await self.client.aclose()


@pytest.fixture(scope="module")
async def world(server: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        people: dict[str, Person] = {}
        for name in ("stranger", "former", "member", "asker", "author", "owner", "admin", "other"):
            people[name] = await stack.enter_async_context(person(server, name))
        people["guest"] = await stack.enter_async_context(guest(server))
        await people["guest"].enrol()
        await administration.grant(None, people["admin"].id)
        tokens: dict[str, str | None] = {name: someone.token for name, someone in people.items()}
        for name, scope in (("reader", "read"), ("writer", "write")):
            made = await people["author"].post("/api-keys", {"label": name, "scopes": [scope]})
            tokens[name] = good(made, 201)["token"]
        async with person(server, keys=0) as gone:
            assert (await gone.post("/logout")).status_code == 204
            tokens |= {"ended": gone.token, "nobody": None}
        group_id = await people["owner"].found_group(
            *(people[name] for name in ("former", "member", "author", "guest"))
        )
        # The former member was not only there: there is a post of its own, and a file.
        await people["former"].publish(group_id)
        assert (await people["owner"].delete(f"/groups/{group_id}/members/{people['former'].id}")).status_code == 204
        await people["owner"].add(group_id, people["asker"])
        world = World(people, tokens, group_id)
        yield world
        await world.close()


Maker = Callable[[World], Awaitable[str]]


async def link_id(world: World) -> str:
    return str((await world.link())["id"])


async def link_token(world: World) -> str:
    return str((await world.link())["url"].rpartition("/")[2])


async def api_key(world: World) -> str:
    return str(good(await world.author.post("/api-keys", {"label": "another"}), 201)["id"])


async def author_id(world: World) -> str:
    return str(world.author.id)


async def other_id(world: World) -> str:
    return str(world.people["other"].id)


async def never(_: World) -> str:
    return random_id()


# How the thing that a path names is made; and how one that was deleted, where it does not simply end.
THINGS: dict[str, tuple[Maker, Maker | None]] = {
    "group_id": (World.group, World.deleted_group),
    "post_id": (World.post, World.deleted_post),
    "request_id": (World.request, World.deleted_request),
    "attachment_id": (World.attachment, World.deleted_attachment),
    "link_id": (link_id, None),
    "token": (link_token, None),
    "session_id": (World.session, None),
    "api_key_id": (api_key, None),
    "key_id": (World.key, None),
    "user_id": (author_id, None),
}
OTHERS: dict[str, tuple[Maker, Maker | None]] = {
    "POST /posts": THINGS["group_id"],
    "POST /posts/sealed": THINGS["group_id"],
    "POST /posts/{post_id}/requeue": (World.failed_post, World.deleted_post),
    "POST /admin/users/{user_id}/disable": (other_id, None),
    "POST /admin/users/{user_id}/enable": (other_id, None),
}
# Their thing is the group, in which somebody is added, changed or removed.
OF_MEMBERS = {
    "POST /groups/{group_id}/members": World.outsider,
    "PATCH /groups/{group_id}/members/{user_id}": World.other_member,
    "DELETE /groups/{group_id}/members/{user_id}": World.other_member,
}


def thing_of(route: str) -> tuple[Maker, Maker | None] | None:
    if route in OTHERS or "{" not in route or route.startswith(("GET /dashboard", "POST /dashboard", "GET /schema")):
        return OTHERS.get(route)
    return THINGS[re.findall(r"\{(\w+)\}", route)[0]]


async def body_of(  # noqa: PLR0911, PLR0912 - a table, of which some lines have to be made
    route: str, world: World, caller: str, thing: str
) -> dict[str, Any]:
    """What is sent along: good, as far as whoever calls can know."""
    user = world.user(caller)
    sealed_key = base64.b64encode(secrets.token_bytes(80)).decode()
    match route:
        case "POST /sign-up":
            return {"name": "x", "email": new_email(), "password": PASSWORD}
        case "POST /login":
            return {"email": world.author.user["email"], "password": PASSWORD}
        case "PATCH /me" | "POST /groups" | "PATCH /groups/{group_id}":
            return {"name": "x"}
        case "POST /me/delete":
            return {"password": "not the one"}
        case "POST /api-keys":
            return {"label": "x"}
        case "POST /keys":
            return Device(user.id).body()
        case "POST /groups/{group_id}/members":
            return {"user_id": str(world.people["other"].id)}
        case "PATCH /groups/{group_id}/members/{user_id}":
            return {"role": "member"}
        case "POST /posts":
            return {"group_id": thing, "title": "t", "content": "c"}
        case "POST /posts/sealed":
            return await sealed_body(world, user, thing)
        case "POST /posts/{post_id}/keys":
            device = user.devices[0] if user.devices else world.author.devices[0]
            return {"sealed_keys": [{"public_key_id": device.id, "sealed_key": sealed_key}]}
        case "POST /read-requests/{request_id}/approve":
            return {"sealed_key": sealed_key}
        case "POST /attachments/{attachment_id}/links":
            return {"expires_in": 60}
    return {}


async def sealed_body(world: World, user: Person, group_id: str) -> dict[str, Any]:
    """By this user, to the keys of a group that may be any."""
    keys = await world.owner.get(f"/groups/{group_id}/keys")
    known = group_id if keys.is_success else world.group_id
    is_member = user in [world.people[name] for name in ("member", "asker", "author", "owner", "guest")]
    return await seal(user if is_member else world.owner, known) | {"group_id": group_id}


async def call(world: World, route: str, caller: str, thing: str) -> httpx.Response:
    method, path = route.split()
    if route in OF_MEMBERS:
        user_id = await OF_MEMBERS[route](world)
        path = path.replace("{group_id}", thing).replace("{user_id}", user_id)
    elif thing_of(route):
        path = re.sub(r"\{\w+\}", thing, path)
    else:
        path = re.sub(r"\{\w+\}", "made-up", path)
    token = world.tokens[caller]
    if route == "POST /logout" and caller in {"stranger", "former", "member", "asker", "author", "owner", "admin"}:
        body = {"email": world.people[caller].user["email"], "password": PASSWORD}
        token = good(await world.client.post("/login", json=body))["token"]["token"]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if route == "POST /attachments":
        headers |= {"X-Filename": "UTF-8''x", "Content-Type": "text/plain"}
        return await world.client.post(path, content=b"file", headers=headers)
    if route == "GET /dashboard/events":
        async with world.client.stream(method, path, headers=headers) as answer:
            if answer.is_error:
                await answer.aread()
            return answer
    if route == "GET /dashboard/api/jobs":
        path += "?state=queued&queue=arq:queue"
    if route == "GET /read-requests":
        path += "?role=decider"
    content = None if method in {"GET", "DELETE"} else await body_of(route, world, caller, thing)
    return await world.client.request(method, path, json=content, headers=headers)


def word_for(answer: httpx.Response, route: str) -> str:
    """What came of it, as the table has it."""
    if answer.is_success:
        return "ok"
    assert answer.status_code < 500, (route, answer.text)
    status = answer.status_code
    if status in {401, 404}:
        return str(status)
    said = "refused" if "text/html" in answer.headers["content-type"] else code(answer)[1]
    if route.startswith("POST /dashboard") and said not in {"not_admin", "session_required", "scope_required"}:
        return "refused"
    return SHORT.get(said, said)


ROUTES = list(TABLE)


@pytest.mark.parametrize("route", ROUTES)
async def test_route_is_for_those_of_its_line(world: World, route: str) -> None:
    thing, shared = thing_of(route), ""
    found = []
    for caller, expected in zip(COLUMNS, TABLE[route].split(), strict=True):
        if thing and (not shared or (expected == "ok" and not route.startswith("GET "))):
            shared = await thing[0](world) if route not in OF_MEMBERS else world.group_id
        found.append(word_for(await call(world, route, caller, shared), route))
        if found[-1] == "ok" and not route.startswith("GET "):
            shared = ""
    assert " ".join(found) == TABLE[route]


@pytest.mark.parametrize("route", [route for route in ROUTES if thing_of(route)])
async def test_what_is_not_there_is_so_for_all_alike(world: World, route: str) -> None:
    """Never was, was deleted, or is there but not for those: one answer, to the letter."""
    thing = thing_of(route)
    assert thing
    absent, deleted = random_id(), await thing[1](world) if thing[1] else None
    there = world.group_id if route in OF_MEMBERS else await thing[0](world)
    bodies = set()
    for caller, expected in zip(COLUMNS, TABLE[route].split(), strict=True):
        alike = [await call(world, route, caller, absent)]
        if deleted:
            alike.append(await call(world, route, caller, deleted))
        if expected == "404":
            alike.append(await call(world, route, caller, there))
        for answer in alike:
            assert word_for(answer, route) == (expected if expected in STANDS else "404"), caller
            if answer.status_code == 404:
                bodies.add((answer.content, told_by(answer)))
    assert len(bodies) == 1, bodies


def told_by(answer: httpx.Response) -> tuple[tuple[str, str], ...]:
    own = {"date", "x-request-id"}
    return tuple((name, value) for name, value in answer.headers.items() if name not in own)


@pytest.mark.parametrize("caller", COLUMNS)
async def test_socket_is_for_those_of_its_line(server: str, world: World, caller: str) -> None:
    expected = SOCKET.split()[COLUMNS.index(caller)]
    token = world.tokens[caller]
    async with open_socket(server, headers={"Authorization": f"Bearer {token}"} if token else {}) as listener:
        if expected == "hears":
            await listener.catch_up()
        else:
            assert str(await listener.closed()) == expected


@pytest.mark.parametrize(
    "route",
    [
        *("GET /groups/{group_id}", "GET /posts/{post_id}", "GET /attachments/{attachment_id}"),
        *("DELETE /posts/{post_id}", "POST /read-requests/{request_id}/deny"),
    ],
)
async def test_time_does_not_tell_whether_something_is_there(world: World, route: str) -> None:
    thing = thing_of(route)
    assert thing
    there, took = await thing[0](world), {"there": [0.0], "absent": [0.0]}
    for _ in range(60):
        # In turns, so that whatever else the machine does happens to both.
        for kind, name in (("there", there), ("absent", random_id())):
            begun = time.perf_counter()
            assert (await call(world, route, "stranger", name)).status_code == 404
            took[kind].append(time.perf_counter() - begun)
    medians = [statistics.median(times) for times in took.values()]
    assert max(medians) < 1.5 * min(medians) + 0.0005, medians


async def test_options_names_all_methods_of_a_path(world: World, settings: Settings) -> None:
    """And says nothing to foreign pages: they may read nothing here."""
    methods: dict[str, set[str]] = {}
    for method, path in (route.split() for route in TABLE):
        methods.setdefault(path, {"OPTIONS"}).add(method)
    for path, allowed in methods.items():
        headers = {"Authorization": f"Bearer {world.tokens['admin']}", "Origin": "https://evil.example"}
        headers |= {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for method in allowed:
            if method in {"GET", "OPTIONS"} and path != "/dashboard/events":
                answer = await world.client.request(method, re.sub(r"\{\w+\}", "x", path), headers=headers)
                assert not [name for name in answer.headers if name.lower().startswith("access-control-")], path
                assert method == "GET" or {*answer.headers["Allow"].split(", ")} == allowed, path
