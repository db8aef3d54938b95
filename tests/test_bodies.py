"""What is hostile or malformed is refused, in an order that clients can rely on, and every error is a problem.

The routes come from the OpenAPI document, so that a new one is tried as well.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
from litestar import Litestar, get
from litestar.testing import TestClient

from server import database, problems
from tests.people import Person, code, good, new_email, person, random_id

MAX_BODY_BYTES = 1024 * 1024

HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class Call(NamedTuple):
    method: str
    path: str
    """With an id that nobody has in each place."""
    is_open: bool
    """Needs no credential."""
    takes_body: bool
    queries: frozenset[str]

    def __str__(self) -> str:
        return f"{self.method} {re.sub('[0-9a-f-]{36}', '{id}', self.path)}"


@pytest.fixture(scope="module")
async def alice(server: str) -> AsyncIterator[Person]:
    async with person(server, "Alice") as someone:
        yield someone


@pytest.fixture(scope="module")
async def bob(server: str) -> AsyncIterator[Person]:
    async with person(server, "Bob", keys=0) as someone:
        yield someone


@pytest.fixture
async def http(server: str) -> AsyncIterator[httpx.AsyncClient]:
    """Nobody."""
    async with httpx.AsyncClient(base_url=server, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
async def calls(alice: Person) -> list[Call]:
    document = good(await alice.get("/schema/openapi.json"))
    found = [
        Call(
            method.upper(),
            re.sub(r"\{\w+\}", random_id(), path),
            {} in operation.get("security", []),
            "application/json" in operation.get("requestBody", {}).get("content", {}),
            frozenset(field["name"] for field in operation.get("parameters", []) if field["in"] == "query"),
        )
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        # These have credentials of their own and are there for no user.
        if path != "/metrics" and not path.startswith("/dashboard")
    ]
    assert len(found) > 25
    return found


def with_json(content: bytes, **headers: str) -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": "application/json"} | headers}


def is_fine(answer: httpx.Response) -> bool:
    """No defect of ours, and in the shape that every answer has."""
    if answer.is_error:
        code(answer)
    named = re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])
    return answer.status_code < 500 and named is not None and answer.headers["cache-control"] == "no-store"


# ------------------------------------------------------------------------------------------ malformed JSON

MALFORMED = {
    "nothing": b"",
    "white space": b" \n",
    "no JSON": b"name=x",
    "half an object": b'{"name": "x"',
    "something after it": b'{"name": "x"} {}',
    "NUL after it": b'{"name": "x"}\0',
    "single quotes": b"{'name': 'x'}",
    "comma at the end": b'{"name": "x",}',
    "comment": b'{"name": "x"} // x',
    "name without quotes": b'{name: "x"}',
    "byte order mark": b'\xef\xbb\xbf{"name": "x"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"name": "x"}'.encode("utf-16-le"),
    "UTF-32": '{"name": "x"}'.encode("utf-32"),
    "Latin-1": '{"name": "ü"}'.encode("latin-1"),
    "overlong UTF-8": b'{"name": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"name": "\xed\xa0\x80"}',
    "beyond Unicode": b'{"name": "\xf4\x90\x80\x80"}',
    "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": Infinity}',
    "-Infinity": b'{"name": -Infinity}',
    "out of range": b'{"name": 1e999}',
    "leading zero": b'{"name": 01}',
    "hexadecimal": b'{"name": 0x1}',
    "plus": b'{"name": +1}',
    "name twice": b'{"name": "x", "name": "x"}',
    "name twice, once escaped": b'{"name": "x", "\\u006eame": "y"}',
    "name twice further in": b'{"name": "x", "more": [{"a": 1, "a": 1}]}',
    "NUL in a string": b'{"name": "a\\u0000b"}',
    "NUL in a name": b'{"name": "x", "a\\u0000": 1}',
    "bare NUL in a string": b'{"name": "a\0b"}',
    "bare control character": b'{"name": "a\nb"}',
    "high surrogate": b'{"name": "\\ud800"}',
    "low surrogate": b'{"name": "\\udc00x"}',
    "surrogates the wrong way round": b'{"name": "\\udc00\\ud800"}',
    "surrogate in a name": b'{"\\ud800": "x"}',
    "unknown escape": b'{"name": "\\x41"}',
    "nesting of 65": b'{"name":' + b"[" * 64 + b"]" * 64 + b"}",
    "nesting of 65 in objects": b'{"name":' * 65 + b"1" + b"}" * 65,
    "nesting of 100,000": b"[" * 100_000,
    "nesting of 100,000 in objects": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_json_is_400(alice: Person, what: str) -> None:
    for method, path in (("POST", "/groups"), ("POST", "/sign-up")):
        answer = await alice.client.request(method, path, **with_json(MALFORMED[what]))
        assert code(answer) == (400, "malformed_json")
        assert answer.json()["detail"] == "The body is not one well-formed JSON text."
        assert is_fine(answer)


WELL_FORMED = {
    "null": b"null",
    "list": b"[]",
    "string": b'"name"',
    "number": b"1",
    "40 digits": b'{"name": 1234567890123456789012345678901234567890}',
    "minus zero": b'{"name": -0.0}',
    "nesting of 64": b'{"name":' + b"[" * 63 + b"]" * 63 + b"}",
    "empty name": b'{"": 1, "name": "x"}',
    "name of a Python attribute": b'{"name": "x", "__class__": "y"}',
    "many names": json.dumps({f"n{n}": n for n in range(10_000)}).encode(),
}


@pytest.mark.parametrize("what", WELL_FORMED)
async def test_well_formed_json_that_does_not_fit_is_422(alice: Person, what: str) -> None:
    for path in ("/groups", "/sign-up"):
        answer = await alice.client.post(path, **with_json(WELL_FORMED[what]))
        assert code(answer) == (422, "invalid")
        [error] = answer.json()["errors"]
        assert error.keys() == {"pointer", "detail"}
        assert error["pointer"] == "" or error["pointer"].startswith("/")


async def test_pointers_are_json_pointers(alice: Person) -> None:
    for name, pointer in (
        ("a/b", "/a~1b"),
        ("a~b", "/a~0b"),
        ("~1", "/~01"),
        ("", "/"),
        ("ü", "/ü"),
        ("a`b\n", "/a`b\n"),
    ):
        [error] = (await alice.post("/groups", {"name": "x", name: 1})).json()["errors"]
        assert error["pointer"] == pointer
    body = {"sealed_keys": [{"public_key_id": random_id(), "sealed_key": "AA=="}, {"public_key_id": 5}]}
    group_id = await alice.found_group()
    post = good(await alice.post("/posts", {"group_id": group_id, "title": "t", "content": "c"}), 201)
    [error] = (await alice.post(f"/posts/{post['id']}/keys", body)).json()["errors"]
    assert error["pointer"] == "/sealed_keys/1/public_key_id"


async def test_good_json_is_taken_however_it_is_written(alice: Person) -> None:
    for content in (
        b' \t\r\n{"name": "x"}\n ',
        b'{"\\u006e\\u0061me": "\\ud83d\\udd11\\u0001"}',
        '{"name": "🔑\u2028"}'.encode(),
    ):
        good(await alice.client.post("/groups", **with_json(content)), 201)


# ---------------------------------------------------------------------------------------------- 413 and 415


async def test_body_over_the_limit_is_413_and_the_connection_stays_sane(server: str, alice: Person) -> None:
    """With its length announced and in chunks alike; the next request on the same connection is answered."""
    largest = b'{"name": "x"}'.ljust(MAX_BODY_BYTES)

    async def chunks(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    one_connection = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(
        base_url=server, headers=alice.client.headers, limits=one_connection, timeout=30
    ) as client:
        for size, status in ((MAX_BODY_BYTES, 201), (MAX_BODY_BYTES + 1, 413), (5 * MAX_BODY_BYTES, 413)):
            for content in (largest.ljust(size), chunks(largest.ljust(size))):
                answer = await client.post("/groups", content=content)
                assert answer.status_code == status
                assert is_fine(answer)
                if status == 413:
                    assert code(answer) == (413, "too_large")
                assert good(await client.get("/me"))["id"] == str(alice.id)


async def test_announced_length_is_enough_to_refuse(server: str, alice: Person) -> None:
    """Nobody waits for the body of which it is known that it is too large."""
    head = f"POST /groups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.token}\r\n"
    answer = await raw(server, f"{head}Content-Length: 10000000000\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"too_large"' in answer


@pytest.mark.parametrize(
    "media_type",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=x"),
        *(
            "application/msgpack",
            "application/vnd.api+json",
            "text/json",
            "*/*",
            ";",
            "x",
            "application/json, text/plain",
        ),
        *("application/json; charset=utf-16", "application/json;charset=latin-1"),
    ],
)
async def test_other_media_types_are_415(alice: Person, media_type: str) -> None:
    answer = await alice.client.post("/groups", content=b'{"name": "x"}', headers={"Content-Type": media_type})
    assert code(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "media_type",
    [
        *(
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            'application/json;charset="UTF-8"',
        ),
        *("application/json;", "application/json; x=y"),
    ],
)
async def test_json_is_recognised(alice: Person, media_type: str) -> None:
    good(
        await alice.client.post("/groups", content=b'{"name": "x"}', headers={"Content-Type": media_type}),
        201,
    )


async def test_body_without_a_media_type_is_taken_for_json(alice: Person) -> None:
    request = alice.client.build_request("POST", "/groups", content=b'{"name": "x"}')
    assert "content-type" not in request.headers
    good(await alice.client.send(request), 201)


async def test_encoded_bodies_are_415(alice: Person) -> None:
    for encoding in ("gzip", "br", "deflate", "zstd", "x"):
        answer = await alice.client.post("/groups", **with_json(b'{"name": "x"}', **{"Content-Encoding": encoding}))
        assert code(answer) == (415, "unsupported_media_type")
    good(await alice.client.post("/groups", **with_json(b'{"name": "x"}', **{"Content-Encoding": "identity"})), 201)


# --------------------------------------------------------------------------------------- the order of checks


async def test_401_goes_first_on_every_route(http: httpx.AsyncClient, calls: list[Call]) -> None:
    for call in calls:
        if call.is_open:
            continue
        for options in (
            {},
            with_json(b"{"),
            with_json(b"x", **{"Content-Type": "text/plain"}),
            with_json(b" " * (MAX_BODY_BYTES + 1)),
            {"params": {"unknown": "1"}},
        ):
            answer = await http.request(call.method, call.path, **options)
            assert code(answer) == (401, "unauthenticated"), call
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert is_fine(answer)


async def test_413_and_415_go_before_400_and_400_before_404_and_422(alice: Person, calls: list[Call]) -> None:
    for call in calls:
        if not call.takes_body:
            continue
        too_large = await alice.client.request(call.method, call.path, **with_json(b"{" * (MAX_BODY_BYTES + 1)))
        assert code(too_large) == (413, "too_large"), call
        text = await alice.client.request(call.method, call.path, **with_json(b"{", **{"Content-Type": "text/plain"}))
        assert code(text) == (415, "unsupported_media_type"), call
        malformed = await alice.client.request(call.method, call.path, **with_json(b'{"unknown": NaN}'))
        assert code(malformed) == (400, "malformed_json"), call


async def test_404_goes_before_422_wherever_an_id_is_in_the_path(alice: Person, calls: list[Call]) -> None:
    tried = 0
    for call in calls:
        # Who is no administrator is told so, whatever the id.
        if re.search("[0-9a-f-]{36}", call.path) and not call.path.startswith("/admin/"):
            for content in (b"[]", b"{}", b'{"unknown": 1}') if call.takes_body else (b"",):
                answer = await alice.client.request(call.method, call.path, **with_json(content))
                assert code(answer)[0] == 404, call
                assert code(answer)[1].endswith("_not_found"), call
                tried += 1
    assert tried > 20


async def test_404_of_an_id_is_the_same_for_what_is_no_uuid(alice: Person, calls: list[Call]) -> None:
    for call in calls:
        # Who is no administrator is told so, whatever the id.
        if re.search("[0-9a-f-]{36}", call.path) and not call.path.startswith("/admin/"):
            body = with_json(b"{}") if call.takes_body else {}
            absent = await alice.client.request(call.method, call.path, **body)
            for text in ("x", "0", "%00", "%ff%fe", "..;", "%F0%9F%94%91", "a" * 5000, "null", "{}", "%25"):
                path = re.sub("[0-9a-f-]{36}", lambda _, text=text: text, call.path)  # type: ignore[misc]  # bound at once
                answer = await alice.client.request(call.method, path, **body)
                assert (answer.status_code, answer.content) == (404, absent.content), (call, text)


async def test_403_goes_between_400_and_422(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    for method, path in (("PATCH", ""), ("POST", "/members"), ("PATCH", f"/members/{alice.id}")):
        for content, expected in (
            (b"{", (400, "malformed_json")),
            (b"{}", (403, "not_owner")),
            (b'{"role": "king"}', (403, "not_owner")),
        ):
            answer = await bob.client.request(method, f"/groups/{group_id}{path}", **with_json(content))
            assert code(answer) == expected


async def test_422_goes_before_409(http: httpx.AsyncClient, alice: Person) -> None:
    body = {"name": "", "email": alice.user["email"], "password": "12345678"}
    assert code(await http.post("/sign-up", json=body)) == (422, "invalid")
    assert code(await http.post("/sign-up", json=body | {"name": "x"})) == (409, "email_taken")
    key = alice.devices[0].body()
    assert code(await alice.post("/keys", key | {"label": ""})) == (422, "invalid")
    assert code(await alice.post("/keys", key)) == (409, "key_taken")


async def test_unknown_or_repeated_query_parameters_are_422_on_every_route(alice: Person, calls: list[Call]) -> None:
    for call in calls:
        # A link works with whatever those who pass it on append to it.
        if call.path.startswith(("/health", "/download/")):
            continue
        for query in ("unknown=1", "request=1", "data=1", "group_ids=", "=", "%00", "%ff=%ff", "limit=1&limit=1"):
            answer = await alice.client.request(call.method, f"{call.path}?{query}", **with_json(b"{}"))
            assert code(answer) == (422, "invalid"), (call, query)
            assert all(error["pointer"].startswith("?") for error in answer.json()["errors"])
    [error] = (await alice.get("/groups?limit=1&limit=2")).json()["errors"]
    assert error == {"pointer": "?limit", "detail": "is given more than once"}


# ------------------------------------------------------------------------------------ routes and methods


@pytest.mark.parametrize(
    "path",
    ["/", "/nope", "/me/nope", "/posts/x/y/z", "/.env", "/me;x", "/ME", "/%6de/x", "/schema/nope", "/schema/a/b"],
)
async def test_unknown_routes_are_problems(http: httpx.AsyncClient, alice: Person, path: str) -> None:
    for client in (http, alice.client):
        for method in ("GET", "POST", "DELETE"):
            answer = await client.request(method, path)
            assert answer.status_code in ({404, 405} if path.startswith("/schema") else {404})
            assert is_fine(answer)
        assert code(await client.get(path)) == (404, "route_not_found")


async def test_other_methods_are_405_and_say_which_are_allowed(http: httpx.AsyncClient, calls: list[Call]) -> None:
    known: dict[str, set[str]] = {}
    for call in calls:
        known.setdefault(str(call).split()[1], set()).add(call.method)
    for path, methods in known.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - methods:
            answer = await http.request(method, path.replace("{id}", random_id()))
            if answer.status_code == 404:
                # `/posts/sealed` is no post, and is found by its neighbour's methods.
                assert path == "/posts/sealed"
                continue
            assert code(answer) in {(405, "method_not_allowed"), (401, "unauthenticated")}, (method, path)
            if answer.status_code == 405:
                assert {name.strip() for name in answer.headers["Allow"].split(",")} >= methods
    assert (await http.head("/login")).status_code == 405


async def test_slash_at_the_end_makes_no_difference(http: httpx.AsyncClient, alice: Person, calls: list[Call]) -> None:
    for call in calls:
        for client in (http, alice.client):
            if client is alice.client and call.path in {"/logout", "/ws-tickets"}:
                continue
            plain, slashed = [
                await client.request(call.method, call.path + end, **with_json(b"[]")) for end in ("", "/")
            ]
            assert (slashed.status_code, slashed.headers["content-type"]) == (
                *(plain.status_code, plain.headers["content-type"]),
            ), call
            # These tell of what has just happened.
            if not call.path.startswith(("/health", "/me/usage", "/me/export")):
                assert slashed.content == plain.content, call


async def test_every_answer_has_its_headers(http: httpx.AsyncClient, alice: Person) -> None:
    answers = [
        await http.get("/health/live"),
        await http.get("/me"),
        await http.get("/nope"),
        await http.put("/me"),
        await http.options("/me"),
        await http.post("/sign-up", content=b"{"),
        await http.post("/login", content=b" " * (MAX_BODY_BYTES + 1)),
        await alice.get("/me"),
        await alice.get("/groups/x"),
        await alice.post("/groups", {"name": ""}),
        await alice.delete(f"/groups/{await alice.found_group()}"),
    ]
    for answer in answers:
        assert is_fine(answer)
        assert "server" not in answer.headers
        for name, value in HEADERS.items():
            assert answer.headers.get_list(name) == [value]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


async def test_id_of_a_request_is_the_servers_own(http: httpx.AsyncClient) -> None:
    answer = await http.get("/health/live", headers={"X-Request-Id": "mine"})
    assert answer.headers["x-request-id"] != "mine"


# ------------------------------------------------------------------------------------------ never a 5xx


async def test_hostile_bodies_are_never_our_fault(alice: Person, calls: list[Call]) -> None:
    values: list[Any] = [
        *(None, True, 1.5, 10**40, "", "\u0001\u202e", "💣" * 2000, [], [None], {"": [[]]}, "AA=="),
    ]
    document = good(await alice.get("/schema/openapi.json"))
    examples = {
        name.removeprefix("#/components/schemas/"): document["components"]["schemas"][name.rpartition("/")[2]][
            "examples"
        ][0]
        for name in set(
            re.findall(r"#/components/schemas/\w+In\b|#/components/schemas/\w+Patch\b", json.dumps(document))
        )
    }
    assert len(examples) > 8
    for call in calls:
        if not call.takes_body or call.path == "/login":
            continue
        for example in examples.values():
            answer = await alice.client.request(call.method, call.path, json=example)
            assert is_fine(answer), (call, example)
        fields = {name for example in examples.values() for name in example}
        for field in fields & _fields_of(document, call):
            example = next(example for example in examples.values() if field in example)
            for value in values:
                answer = await alice.client.request(call.method, call.path, json=example | {field: value})
                assert is_fine(answer), (call, field, value)


def _fields_of(document: dict[str, Any], call: Call) -> set[str]:
    path = next(
        path for path in document["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[0-9a-f-]{36}", path), call.path)
    )
    schema = json.dumps(document["paths"][path][call.method.lower()]["requestBody"])
    [name] = re.findall(r"#/components/schemas/(\w+)", schema)
    return set(document["components"]["schemas"][name]["properties"])


async def test_mangled_bodies_are_never_our_fault(alice: Person, calls: list[Call]) -> None:
    """A good body with some bytes changed, cut out or doubled."""
    chance = random.Random(20260131)
    group_id = await alice.found_group()
    bodies = [
        json.dumps(body).encode()
        for body in (
            {"name": "🔑", "id": random_id()},
            {"group_id": group_id, "title": "t", "content": "c\\ud83d", "attachments": [random_id()]},
            {"name": "x", "email": new_email(), "password": ["12345678"]},
            alice.devices[0].body(),
            {"sealed_keys": [{"public_key_id": random_id(), "sealed_key": "AA=="}]},
            {"user_id": random_id(), "role": "member"},
        )
    ]
    writes = [call for call in calls if call.takes_body and call.path != "/login"]
    for _ in range(250):
        body = bytearray(chance.choice(bodies))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(body))
            body[at : at + chance.randint(0, 3)] = chance.choice(
                [b"", b"\xff", b"\0", b'"', b"{", b"[", b"\\u", b"\\ud800", b"1e9", b"\xed\xa0\x80", body[:at], b"null"]
            )
        call = chance.choice(writes)
        answer = await alice.client.request(call.method, call.path, **with_json(bytes(body)))
        assert is_fine(answer), (call, bytes(body))


async def test_hostile_paths_and_queries_are_never_our_fault(alice: Person, calls: list[Call]) -> None:
    texts = ["%00", "%ff", "%ED%A0%80", "%", "..%2f..", "+", "\\", "%F0%9F%92%A3", "a" * 9000]
    for call in calls:
        if call.method == "GET":
            for text in texts:
                for name in call.queries | {text}:
                    answer = await alice.client.get(f"{call.path}?{name}={text}")
                    assert is_fine(answer) or call.path == "/health/ready", (call, name, text)
        for text in texts:
            answer = await alice.client.request(call.method, f"{call.path}/{text}")
            assert is_fine(answer), (call, text)


async def raw(server: str, request: bytes, within_s: float = 10) -> bytes:
    """All that the server says to these bytes."""
    address = urlsplit(server)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request)
        async with asyncio.timeout(within_s):
            answer = await reader.readuntil(b"\r\n\r\n")
            if answer.startswith(b"HTTP/1.1 100 "):
                answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
            return answer + (await reader.readexactly(int(length[1])) if length else await reader.read())
    finally:
        writer.close()


def hostile_heads() -> Iterator[bytes]:
    for header in (
        b"Authorization: Bearer " + b"x" * 1_000_000,
        b"Authorization: Bearer \xff\xfe",
        b"Authorization: " + "Bearer sbs_ü".encode(),
        b"Authorization: Bearer sbs_\xfc",
        b"Authorization:",
        b"Authorization: Bearer a\r\nAuthorization: Bearer b",
        b"Cookie: " + b"a=b; " * 20_000,
        b"Content-Type: \xff",
        b"Content-Type: ; ; ;=; charset",
        b'Content-Type: application/json; charset="',
        b"Content-Length: 0",
        b"Accept: \xff;q=x",
        b"Accept: text/html",
        b"Expect: 100-continue",
        b"Range: bytes=-1",
        b"X-Forwarded-For: \xff, 127.0.0.1",
        b"Upgrade: websocket\r\nConnection: Upgrade",
        b"Upgrade: h2c\r\nConnection: Upgrade",
        b"Host: \xff",
        b"Host: a b",
        b"Host:",
        b"\r\n".join(b"X-%d: y" % n for n in range(2000)),
    ):
        for line in (b"GET /me HTTP/1.1", b"POST /login HTTP/1.1"):
            yield line + b"\r\n" + (b"" if header.startswith(b"Host") else b"Host: x\r\n") + header + b"\r\n\r\n"


async def test_hostile_headers_are_never_our_fault(server: str) -> None:
    for head in hostile_heads():
        answer = await raw(server, head)
        status = re.match(rb"HTTP/1\.1 (\d+) ", answer)
        assert status, (head[:200], answer[:200])
        assert 400 <= int(status[1]) < 500, (head[:200], answer[:500])
        assert b"traceback" not in answer.lower()
        if b"application/problem+json" in answer:
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == int(status[1])


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"FOO /me HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /me HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /me HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /me HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"GET /me HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_request_get_the_bare_400(server: str, request_: bytes) -> None:
    assert (await raw(server, request_)).startswith(b"HTTP/1.1 400 ")


async def test_client_that_goes_away_in_mid_body_is_no_defect(
    server: str, alice: Person, caplog: pytest.LogCaptureFixture
) -> None:
    address = urlsplit(server)
    for _ in range(3):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"POST /groups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.token}\r\nContent-Length: 100\r\n\r\n"
        writer.write(head.encode() + b'{"name":')
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    good(await alice.get("/me"))
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]


# ------------------------------------------------------------------------------- defects, and Postgres away


def broken_app(error: BaseException) -> Litestar:
    @get("/")
    async def fail() -> None:
        raise error

    return Litestar([fail], exception_handlers=problems.HANDLERS, openapi_config=None, logging_config=None)


def test_defect_of_ours_is_a_problem_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(broken_app(RuntimeError("secret words")), raise_server_exceptions=False) as client:
        answer = client.get("/")
    assert code(answer) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    [record] = [record for record in caplog.records if record.name == "server.problems"]
    assert record.__dict__["error"] == "RuntimeError"
    assert "test_bodies.py" in record.__dict__["frames"]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("kind", [kind for kind in database.UNAVAILABLE if issubclass(kind, Exception)])
def test_postgres_away_is_503_and_says_when_to_try_again(kind: type[Exception]) -> None:
    with TestClient(broken_app(kind("secret words")), raise_server_exceptions=False) as client:
        answer = client.get("/")
    assert code(answer) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert "secret" not in answer.text


async def test_body_that_stops_coming_is_given_up(server: str, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.bodies.BODY_TIMEOUT_S", 0.3)
    head = f"POST /groups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.token}\r\nContent-Length: 100\r\n\r\n"
    reader, writer = await asyncio.open_connection(*server.removeprefix("http://").split(":"))
    writer.write(head.encode() + b'{"name": ')
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert b" 408 " in answer.splitlines()[0]
    writer.close()


async def test_nobody_waits_long_for_a_refusal(alice: Person) -> None:
    """A megabyte of brackets, names, digits or escapes costs no more than reading it."""
    for content in (
        b"[" * MAX_BODY_BYTES,
        b'{"a":' * (MAX_BODY_BYTES // 5),
        b"9" * MAX_BODY_BYTES,
        b'{"name": "' + b"\\u0000" * (MAX_BODY_BYTES // 6 - 10) + b'"}',
        b'{"name": "' + b"\\ud83d\\udd11" * (MAX_BODY_BYTES // 12 - 10) + b'"}',
        b"[" + b"{}," * (MAX_BODY_BYTES // 3 - 10) + b"{}]",
    ):
        # The API runs in this very thread, and of others the machine may have many.
        start = time.thread_time()
        answer = await alice.client.post("/groups", **with_json(content))
        assert answer.status_code in {400, 422}
        assert time.thread_time() - start < 3
