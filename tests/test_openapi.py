"""The OpenAPI document and its page."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.people import Person, code, good, new_email, person

# Their ids are those of jobs and workers, which are whatever arq was told.
DASHBOARD = {"Job", "RunningJob", "WorkerInfo"}

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}

# What the contract has by now.
PROMISED = """
POST /sign-up, POST /login, POST /logout, GET /me, PATCH /me, GET /me/usage, POST /ws-tickets,
GET /me/export, POST /me/delete, GET /me/audit, GET /groups/{group_id}/audit, GET /admin/audit,
GET /admin/users, POST /admin/users/{user_id}/disable, POST /admin/users/{user_id}/enable,
POST /keys, GET /keys, DELETE /keys/{key_id}, GET /users/{user_id}/keys,
POST /groups, GET /groups, GET /groups/{group_id}, PATCH /groups/{group_id}, DELETE /groups/{group_id},
GET /groups/{group_id}/members, POST /groups/{group_id}/members, GET /groups/{group_id}/keys,
PATCH /groups/{group_id}/members/{user_id}, DELETE /groups/{group_id}/members/{user_id},
POST /posts, POST /posts/sealed, GET /posts, GET /posts/{post_id}, DELETE /posts/{post_id},
POST /posts/{post_id}/requeue, POST /posts/{post_id}/keys, POST /posts/{post_id}/request_read,
GET /read-requests, GET /read-requests/{request_id}, DELETE /read-requests/{request_id},
POST /read-requests/{request_id}/approve, POST /read-requests/{request_id}/deny,
GET /health/live, GET /health/ready
"""


@pytest.fixture(scope="module")
async def http(server: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
async def document(http: httpx.AsyncClient) -> dict[str, Any]:
    return dict(good(await http.get("/schema/openapi.json")))


@pytest.fixture(scope="module")
async def alice(server: str) -> AsyncIterator[Person]:
    async with person(server) as someone:
        yield someone


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in item.keys() & METHODS:
            yield f"{method.upper()} {path}", item[method]


def schema_of(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    whole = schema | {"components": document["components"]}
    return Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)


async def test_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d", document["openapi"])
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_files_have_their_media_types_and_say_the_same(http: httpx.AsyncClient, document: dict[str, Any]) -> None:
    in_json, in_yaml = await http.get("/schema/openapi.json"), await http.get("/schema/openapi.yaml")
    assert in_json.headers["content-type"] == "application/json"
    assert in_yaml.headers["content-type"] == "application/yaml"
    assert yaml.safe_load(in_yaml.text) == document == json.loads(in_json.text)
    assert (await http.get("/schema/openapi.yaml")).content == in_yaml.content


async def test_every_call_of_the_contract_is_there(document: dict[str, Any]) -> None:
    promised = {call.strip() for call in PROMISED.replace("\n", " ").split(",")}
    assert promised - {call for call, _ in operations(document)} == set()


async def test_every_operation_is_named_described_and_sorted(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names)
    tags = {tag["name"] for tag in document["tags"] if tag["description"]}
    for call, operation in operations(document):
        assert re.fullmatch(r"[a-z]+([A-Z][a-z]+)+", operation["operationId"]), call
        assert operation["summary"], call
        assert operation["description"], call
        assert set(operation["tags"]) <= tags, call
        assert len(operation["tags"]) == 1, call


async def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for call, operation in operations(document):
        content = operation["responses"]["default"]["content"]
        assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}, call
        # None of Litestar's own errors is left.
        assert not {status for status in operation["responses"] if status.startswith("4")}, call
    problem = document["components"]["schemas"]["Problem"]
    assert problem["required"] == ["type", "title", "status", "detail", "code"]


async def test_what_needs_a_credential_says_so(document: dict[str, Any], http: httpx.AsyncClient) -> None:
    schemes = document["components"]["securitySchemes"]
    assert {(scheme["type"], scheme["scheme"]) for scheme in schemes.values()} == {("http", "bearer")}
    assert document["security"] == [{"session": []}, {"api_key": []}, {"jwt": []}]
    for call, operation in operations(document):
        method, path = call.split()
        answer = await http.request(method, path, content=b"{")
        named = {name for scheme in operation.get("security", document["security"]) for name in scheme}
        assert named <= schemes.keys(), call
        assert (answer.status_code == 401) == bool(named - {"metrics"}), call


async def test_every_reference_is_defined(document: dict[str, Any]) -> None:
    names = re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', json.dumps(document))
    assert names
    assert set(names) <= document["components"]["schemas"].keys()


async def test_every_schema_has_an_example_that_fits_it(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        [example] = schema["examples"]
        assert "enum" in schema or example.keys() == schema["properties"].keys(), name
        assert [error.message for error in schema_of(document, schema).iter_errors(example)] == [], name


async def test_every_body_and_answer_has_a_schema_with_an_example(document: dict[str, Any]) -> None:
    for call, operation in operations(document):
        contents = [answer["content"] for answer in operation["responses"].values() if "content" in answer]
        if "requestBody" in operation:
            contents.append(operation["requestBody"]["content"])
        for content in contents:
            for media_type, media in content.items():
                names = re.findall(r"#/components/schemas/(\w+)", json.dumps(media["schema"]))
                if media_type != "application/json" and not names:
                    # A file, or text of somebody else's format.
                    assert media["schema"]["type"] == "string", call
                    continue
                assert names, call
                assert all(document["components"]["schemas"][name]["examples"] for name in names), call


async def test_examples_of_bodies_are_taken(document: dict[str, Any], alice: Person) -> None:
    """What then comes of them depends on who asks; they are never called unfit."""
    tried = 0
    for call, operation in operations(document):
        method, path = call.split()
        if "application/json" not in operation.get("requestBody", {}).get("content", {}) or "{" in path:
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        [example] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["examples"]
        answer = await alice.client.request(method, path, json=example)
        assert answer.is_success or code(answer)[1] not in {"invalid", "malformed_json"}, (call, answer.text)
        tried += 1
    assert tried >= 7


async def test_bytes_times_and_ids_are_told(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["KeyOut"]["properties"]["public_key"] == {"type": "string", "contentEncoding": "base64"}
    assert schemas["KeyIn"]["properties"]["public_key"] == {"type": "string", "contentEncoding": "base64"}
    assert schemas["KeyOut"]["properties"]["created_at"] == {"type": "string", "format": "date-time"}
    assert schemas["KeyOut"]["properties"]["revoked_at"] == {
        "oneOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]
    }
    assert schemas["KeyOut"]["properties"]["id"] == {"type": "string", "format": "uuid"}
    for name, schema in schemas.items():
        for field, kind in schema.get("properties", {}).items():
            if field.endswith(("_at", "expires")):
                assert "date-time" in json.dumps(kind), (name, field)
            if (field == "id" or field.endswith("_id")) and name not in DASHBOARD:
                assert "uuid" in json.dumps(kind), (name, field)


async def test_answers_are_as_the_document_says(
    document: dict[str, Any], alice: Person, http: httpx.AsyncClient
) -> None:
    """Whatever is answered fits the schema of its status, and no field comes that is not in it."""

    def check(answer: httpx.Response, call: str) -> Any:
        method, path = call.split()
        responses = document["paths"][path][method.lower()]["responses"]
        described = responses.get(str(answer.status_code), responses["default"])
        content = described["content"][answer.headers["content-type"]]
        errors = schema_of(document, content["schema"]).iter_errors(answer.json())
        assert [error.message for error in errors] == [], call
        known = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]["properties"].keys()
        assert answer.json().keys() <= known or answer.is_error, call
        return answer.json()

    body = {"name": "Dora", "email": new_email(), "password": "12345678"}
    check(await http.post("/sign-up", json=body), "POST /sign-up")
    check(await http.post("/sign-up", json=body), "POST /sign-up")
    check(await http.post("/sign-up", json={}), "POST /sign-up")
    check(await http.post("/login", json={name: body[name] for name in ("email", "password")}), "POST /login")
    check(await http.get("/health/live"), "GET /health/live")
    check(await http.get("/health/ready"), "GET /health/ready")
    check(await http.get("/me"), "GET /me")
    check(await alice.get("/me"), "GET /me")
    check(await alice.get("/me/usage"), "GET /me/usage")
    check(await alice.patch("/me", {"name": "Alicia"}), "PATCH /me")
    check(await alice.post("/ws-tickets"), "POST /ws-tickets")
    check(await alice.get("/keys"), "GET /keys")
    check(await alice.get(f"/users/{alice.id}/keys"), "GET /users/{user_id}/keys")
    group_id = check(await alice.post("/groups", {"name": "Friends"}), "POST /groups")["id"]
    check(await alice.get("/groups"), "GET /groups")
    check(await alice.get(f"/groups/{group_id}"), "GET /groups/{group_id}")
    check(await alice.get("/groups/x"), "GET /groups/{group_id}")
    check(await alice.get(f"/groups/{group_id}/members"), "GET /groups/{group_id}/members")
    check(await alice.get(f"/groups/{group_id}/keys"), "GET /groups/{group_id}/keys")
    post = {"group_id": group_id, "title": "t", "content": "c"}
    post_id = check(await alice.post("/posts", post), "POST /posts")["id"]
    await alice.wait_until_sealed(post_id)
    check(await alice.get(f"/posts/{post_id}"), "GET /posts/{post_id}")
    check(await alice.get("/posts"), "GET /posts")
    check(await alice.get("/read-requests?role=requester"), "GET /read-requests")


# ----------------------------------------------------------------------------------------------- the page


class Links(HTMLParser):
    """What a page loads, and what it says in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.found += [value for name, value in attrs if name in {"src", "href"} and value]


@pytest.mark.parametrize("path", ["/schema", "/schema/"])
async def test_page_loads_nothing_from_elsewhere(http: httpx.AsyncClient, path: str) -> None:
    page = await http.get(path)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "//" not in page.text, "no address of another host"
    links = Links()
    links.feed(page.text)
    assert len(links.found) == 4
    types = {"js": "text/javascript", "css": "text/css", "png": "image/png"}
    for link in links.found:
        found = await http.get(link)
        assert found.status_code == 200, link
        assert found.headers["content-type"].split(";")[0] == types[link.rpartition(".")[2]], link
        assert found.content
    # Its policy allows no script but those of files.
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert "script-src" not in policy
    assert not [attrs for tag, attrs in links.tags if tag == "script" and "src" not in attrs]
    assert not [name for _, attrs in links.tags for name in attrs if name.startswith("on")]


async def test_page_shows_the_document(http: httpx.AsyncClient) -> None:
    script = (await http.get("/schema/page.js")).text
    assert re.findall(r'url: "([^"]+)"', script) == ["/schema/openapi.json"]
    assert "//" not in script
    [dom_id] = re.findall(r'dom_id: "#(\w+)"', script)
    assert f'id="{dom_id}"' in (await http.get("/schema")).text


@pytest.mark.parametrize(
    "path", ["nope", "nope.json", "oauth2-redirect.html", "..%2fpyproject.toml", "%00", "%ff", "x" * 9000]
)
async def test_what_is_not_there_is_a_problem(http: httpx.AsyncClient, path: str) -> None:
    assert code(await http.get(f"/schema/{path}")) == (404, "route_not_found")
