"""The OpenAPI 3.1 document, and its page, which loads nothing from another host.

Litestar derives operations and schemas from the handlers. What it can't know is added to the finished document:
that every error is a problem, what strings of a certain name look like, and an example of each object.
"""

import base64
from http import HTTPStatus
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme, Server, Tag
from litestar.router import Router

from server.settings import Settings

PATH = "/schema"

# Swagger UI, out of the installed package `swagger-ui-py`.
ASSETS_DIRECTORY = Path(str(files("swagger_ui"))) / "static"
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}

# Swagger UI sets styles of its own; scripts come from files alone.
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)

DESCRIPTION = """
Encrypted posts for groups. A post has a key of its own, sealed to every member's public key; whoever joined
later asks, and the author decides.

* Bodies are JSON, UTF-8; bytes are canonical standard base64; times are `YYYY-MM-DDTHH:MM:SS.ffffffZ`; ids are UUIDs.
* Lists are `{items, next_cursor}`, newest first; `?limit=` is 1 to 100, `?cursor=` is opaque.
* Errors are RFC 9457 problem details; switch on `code`.
* What is not yours to know answers 404, the same as what is not there.
* `POST /posts` and `/groups` take an `id` (UUIDv7) of your own, which makes them safe to repeat.
* Send a session's token, an API key or a JWT of the configured issuer as `Authorization: Bearer …`. An API key makes
  calls that read only with the scope `read`, others only with `write`.
* Events come over the WebSocket `/ws/post_request`, with the `Authorization` header or `?ticket=`.
"""

TAGS = [
    Tag("Accounts", "Sign up, log in, log out."),
    Tag("Credentials", "Sessions, which people have, and API keys, which programs have."),
    Tag("Keys", "The public keys that posts are sealed to. Private keys never leave their owner."),
    Tag("Groups", "Groups and their members."),
    Tag("Posts", "Encrypted posts, and the keys to them."),
    Tag("Attachments", "Sealed files, and links to them."),
    Tag("Read requests", "Asking for a post that was sealed before one joined, and deciding."),
    Tag("Audit", "Who did what: ids and fixed words, in a log that is only ever added to."),
    Tag("Administration", "For administrators: accounts, and the whole audit log. They read no posts by it."),
    Tag("Dashboard", "For administrators: the workers' queues and jobs. Browsers come in by a link; see the README."),
    Tag("WebSocket", "Hearing of things at once."),
    Tag("Operations", "For those who run the server."),
]


# Bearer tokens all of them. A call without a list of its own takes any of these.
SCHEMES = {
    "session": ("sbs_…", "A session's token, from `POST /login` or `POST /sign-up`."),
    "api_key": (
        "sbk_…",
        "An API key, from `POST /api-keys`. With the scope `read` it makes calls of GET and HEAD, buys tickets and"
        " opens WebSockets; with `write` it makes all other calls.",
    ),
    "jwt": (
        "JWT",
        "A JWT of the issuer that `JWT_ISSUER` names, such as Supabase. Its first one makes the user; nothing in it but"
        " `iss`, `sub`, and at first sight the name and `email`, is used.",
    ),
}
OTHER_SCHEMES = {"metrics": ("METRICS_TOKEN", "The token of the setting `METRICS_TOKEN`.")}


class FieldProblem(msgspec.Struct):
    pointer: str
    """A JSON pointer into the body; `?name` for a query parameter."""
    detail: str


class Problem(msgspec.Struct, omit_defaults=True):
    """RFC 9457. Some codes bring fields of their own, such as `request_id` or `retry_at`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] | None = None


# The body of an upload is read as it comes, so Litestar does not know of it.
FILES = {"application/octet-stream"}
FILE: dict[str, Any] = {
    "required": True,
    "description": "The file itself, or with `sealed=true` the stream that the client has sealed",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
FILE_NAME = {
    "name": "X-Filename",
    "in": "header",
    "description": "The name of the file as RFC 8187 has it; needed unless `sealed=true`",
    "schema": {"type": "string", "examples": ["UTF-8''na%C3%AFve.txt"]},
}


def sample(size: int) -> str:
    return base64.b64encode(bytes(position % 256 for position in range(size))).decode()


PARAMETERS: dict[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 50},
    "group_id": {"type": "string", "format": "uuid"},
    "user_id": {"type": "string", "format": "uuid"},
    "id": {"type": "string", "format": "uuid"},
    "role": {"type": "string", "enum": ["decider", "requester"]},
    "sealed": {"type": "string", "enum": ["true", "false"], "default": "false"},
}

TIMES = {"created_at", "sealed_at", "decided_at", "revoked_at", "last_used_at", "disabled_at", "at", "expires"}

USER_ID = "019c14a5-1f00-7c3d-8e21-6b9f0d4c2a11"

# What a field of this name may hold, where its type does not say enough.
EXAMPLES: dict[str, Any] = {
    **dict.fromkeys(TIMES, "2026-01-31T12:00:00.123456Z"),
    **dict.fromkeys(("user_id", "author_id", "created_by", "decided_by"), USER_ID),
    **dict.fromkeys(("endorsed_by", "endorsement", "failure", "next_cursor"), None),
    "id": "019c14a5-2b3f-7b1e-9d5a-3f0c52a1b7e4",
    "group_id": "019c14a5-2000-7a4b-9c8d-7e6f5a4b3c22",
    "post_id": "019c14a5-2100-7d5e-8f90-1a2b3c4d5e33",
    "requester_id": "019c14a5-2200-7f6a-a1b2-c3d4e5f60744",
    "requester_name": "Carol",
    "name": "Alice",
    "email": "alice@example.org",
    "current_password": "correct horse battery staple",
    "token": "sbs_6yK0Xw3mVb8uQfR1sT5aZcD9eGhJ2kLnP4oIqWrYxM7",
    "ticket": "h2Vt5N0cLq8sXyB1rKf7uZa3dGj9mPwE4oQiT6vRkC0",
    "expires_in": 30,
    "scopes": ["read", "write"],
    "date": "2026-01-31",
    "label": "laptop",
    "fingerprint": "21b9 a9ff 0c3e 5d71 88aa 4be2 90f6 13c7 d05e 6a2b",
    "proof": sample(64),
    "sealed_key": sample(80),
    "heading": sample(24 + 16 + 256),
    "content": sample(24 + 16 + 256),
    "signature": sample(64),
}
SEALED = {"status": "sealed", "access": "readable", "signature": None, "signing_key_id": None}
API_KEY = {"expires": None, "revoked_at": None}
# By schema, where a name alone does not tell.
OWN_EXAMPLES: dict[str, dict[str, Any]] = {
    "GroupIn": {"name": "Friends"},
    "GroupOut": {"name": "Friends"},
    "GroupPatch": {"name": "Friends"},
    "MemberIn": {"email": None, "role": "member"},
    "PostHeadOut": SEALED,
    "PostOut": SEALED,
    "ReadRequestOut": {"decided_at": None, "decided_by": None},
    "KeyOut": {"revoked_at": None},
    "ApiKeyIn": {"expires": None},
    "ApiKeyOut": API_KEY,
    "NewApiKeyOut": API_KEY | {"last_used_at": None, "token": "sbk_6yK0Xw3mVb8uQfR1sT5aZcD9eGhJ2kLnP4oIqWrYxM7"},
    "SessionOut": {"is_current": True},
    "AuditEntryOut": {"ids": {"role": "member"}},
    "UserAccountOut": dict.fromkeys(("issuer", "subject", "claimed_email", "disabled_at")),
    "DeletionIn": {"password": "what only I know", "confirm": None},
    "ExportLine": {"type": "user"},
    "Live": {"status": "live"},
    "Readiness": {"status": "ready"} | dict.fromkeys(("postgres", "migrations", "redis", "channels", "worker"), "ok"),
    "Problem": {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "The request is not valid.",
        "code": "invalid",
    },
    "FieldProblem": {"pointer": "/name", "detail": "Expected `str` of length <= 100"},
}


def config(settings: Settings) -> OpenAPIConfig:
    return OpenAPIConfig(
        title="secureblogs",
        version=version("secureblogs"),
        description=DESCRIPTION.strip(),
        use_handler_docstrings=True,
        servers=[Server(url=settings.public_url + settings.root_path)],
        tags=TAGS,
        security=[{name: []} for name in SCHEMES],
        components=Components(
            security_schemes={
                name: SecurityScheme(type="http", scheme="bearer", bearer_format=form, description=text)
                for name, (form, text) in (SCHEMES | OTHER_SCHEMES).items()
            }
        ),
        openapi_router=Router(PATH, route_handlers=[], include_in_schema=False, after_request=refuse_absent),
        render_plugins=[
            File("/", "text/html", page(settings.root_path).encode()),
            File("/page.js", "text/javascript", script(settings.root_path).encode()),
            *(File(f"/{name}", kind, (ASSETS_DIRECTORY / name).read_bytes()) for name, kind in ASSETS.items()),
            Json(path="/openapi.json", media_type="application/json"),  # type: ignore[arg-type]  # one may name any
            Yaml(path="/openapi.yaml", media_type="application/yaml"),  # type: ignore[arg-type]  # as above
        ],
    )


async def refuse_absent(response: Response[Any]) -> Response[Any]:
    """Litestar answers an unknown address below its own pages with a page; here every error is a problem."""
    if response.status_code == HTTPStatus.NOT_FOUND:
        raise NotFoundException
    return response


class Json(JsonRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return super().render(request, complete(openapi_schema))


class Yaml(YamlRenderPlugin):
    _rendered = b""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        # Anybody may ask, and writing YAML holds up all others for a tenth of a second: once is enough.
        self._rendered = self._rendered or super().render(request, complete(openapi_schema))
        return self._rendered


class File(OpenAPIRenderPlugin):
    """A file of the page."""

    def __init__(self, path: str, media_type: str, content: bytes) -> None:
        super().__init__(path=path, media_type=media_type)  # type: ignore[arg-type]  # one may name any
        self._content = content

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002 - the plugin's signature
        return self._content


def page(root_path: str) -> str:
    path = root_path + PATH
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>secureblogs</title>
<link rel="icon" href="{path}/favicon-32x32.png">
<link rel="stylesheet" href="{path}/swagger-ui.css">
<script src="{path}/swagger-ui-bundle.js" defer></script>
<script src="{path}/page.js" defer></script>
</head>
<body><div id="page"></div></body>
</html>
"""


def script(root_path: str) -> str:
    url = f"{root_path}{PATH}/openapi.json"
    return f'SwaggerUIBundle({{dom_id: "#page", url: "{url}", deepLinking: true, validatorUrl: null}})\n'


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Litestar's document with what only we know."""
    _, problems = msgspec.json.schema_components([Problem], ref_template="#/components/schemas/{name}")
    schemas = {name: describe_fields(schema) for name, schema in document["components"]["schemas"].items()} | problems
    with_examples = {name: schema | {"examples": [example(name, schemas)]} for name, schema in schemas.items()}
    return document | {
        "components": document["components"] | {"schemas": with_examples},
        "paths": {
            path: {method: describe(operation) for method, operation in operations.items()}
            for path, operations in document["paths"].items()
        },
    }


def describe(operation: dict[str, Any]) -> dict[str, Any]:
    """Every operation is described, and its errors are problems."""
    responses = {
        status: describe_answer(status, answer) for status, answer in operation["responses"].items() if status != "400"
    }
    if operation["operationId"] == "uploadAttachment":
        operation = operation | {"requestBody": FILE, "parameters": [*operation["parameters"], FILE_NAME]}
    if "204" in responses:
        responses["204"] = {"description": "Done"}
    responses["default"] = {
        "description": "Anything else: problem details",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if "parameters" in operation:
        operation = operation | {"parameters": [describe_parameter(field) for field in operation["parameters"]]}
    return {"description": f"{operation['summary']}."} | operation | {"responses": responses}


def describe_parameter(field: dict[str, Any]) -> dict[str, Any]:
    """What handlers read as text, to say themselves what is wrong with it."""
    is_text = "oneOf" in field["schema"]
    return field | {"schema": PARAMETERS[field["name"]]} if is_text and field["name"] in PARAMETERS else field


def describe_answer(status: str, answer: dict[str, Any]) -> dict[str, Any]:
    if FILES & answer.get("content", {}).keys():
        answer = answer | {"content": FILE["content"]}
    if answer["description"] == HTTPStatus(int(status)).description:
        answer = answer | {"description": HTTPStatus(int(status)).phrase}
    return answer


def describe_fields(schema: dict[str, Any]) -> dict[str, Any]:
    if "enum" in schema:
        return {name: value for name, value in schema.items() if name != "default"}  # of one parameter, not of all
    fields = schema["properties"]
    # What is sent has to have these fields and no others; what is answered may have more in later versions.
    closed = {"additionalProperties": False} if schema["title"].endswith(("In", "Patch")) else {}
    return (
        schema
        | closed
        | {"properties": fields | {name: with_format(fields[name], "date-time") for name in fields.keys() & TIMES}}
    )


def with_format(field: dict[str, Any], text_format: str) -> dict[str, Any]:
    if "oneOf" in field:
        return field | {"oneOf": [with_format(kind, text_format) for kind in field["oneOf"]]}
    return field | {"format": text_format} if field.get("type") == "string" else field


def example(name: str, schemas: dict[str, Any]) -> Any:
    """An object as the schema of this name has it, or one of its words."""
    if "enum" in schemas[name]:
        return schemas[name]["enum"][0]
    own = OWN_EXAMPLES.get(name, {})
    fields = schemas[name]["properties"].items()
    return {field: own[field] if field in own else value(field, schema, schemas) for field, schema in fields}


def value(field: str, schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    found: Any
    match schema:
        case {"$ref": name}:
            found = example(name.rpartition("/")[2], schemas)
        case {"examples": [found, *_]} | {"enum": [found, *_]}:
            pass
        case _ if field in EXAMPLES:
            found = EXAMPLES[field]
        case {"oneOf": [kind, *_]} | {"anyOf": [kind, *_]}:
            found = value(field, kind, schemas)
        case {"type": "array", "items": kind}:
            found = [value(field, kind, schemas)] if "$ref" in kind else []
        case {"type": "string", "format": "date-time"}:
            found = EXAMPLES["at"]
        case {"type": "string"}:
            found = sample(32) if "contentEncoding" in schema else EXAMPLES["id"] if "format" in schema else "text"
        case _:
            found = {"boolean": False, "integer": 1, "number": 1.5}[schema["type"]]
    return found
