"""The OpenAPI 3.1 document, and its page, which loads nothing from another host."""

from importlib.metadata import version
from pathlib import Path

import swagger_ui
from litestar import Litestar
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIMediaType,
    OpenAPIResponse,
    Reference,
    Schema,
    SecurityScheme,
    Server,
    Tag,
)
from litestar.router import Router
from litestar.static_files import create_static_files_router

from server.settings import Settings

ASSETS = "/schema/assets"
ASSETS_DIRECTORY = Path(swagger_ui.__file__).parent / "static"

# Litestar writes the document into a script of the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
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
* Events come over the WebSocket `/ws/post_request`, with the `Authorization` header or `?ticket=`.
"""

TAGS = [
    Tag("Accounts", "Sign up, log in, log out."),
    Tag("Keys", "The public keys that posts are sealed to. Private keys never leave their owner."),
    Tag("Groups", "Groups and their members."),
    Tag("Posts", "Encrypted posts, and the keys to them."),
    Tag("Read requests", "Asking for a post that was sealed before one joined, and deciding."),
    Tag("WebSocket", "Hearing of things at once."),
    Tag("Operations", "For those who run the server."),
]


def config(settings: Settings) -> OpenAPIConfig:
    return OpenAPIConfig(
        title="secureblogs",
        version=version("secureblogs"),
        description=DESCRIPTION.strip(),
        path="/schema",
        use_handler_docstrings=True,
        servers=[Server(url=settings.public_url)],
        tags=TAGS,
        security=[{"bearer": []}],
        components=Components(
            security_schemes={
                "bearer": SecurityScheme(
                    type="http", scheme="bearer", description="A session token (`sbs_…`) from `POST /login`"
                )
            },
            schemas={"Problem": PROBLEM},
        ),
        render_plugins=[
            SwaggerRenderPlugin(
                js_url=f"{ASSETS}/swagger-ui-bundle.js",
                css_url=f"{ASSETS}/swagger-ui.css",
                standalone_preset_js_url=f"{ASSETS}/swagger-ui-standalone-preset.js",
                favicon=f'<link rel="icon" href="{ASSETS}/favicon-32x32.png">',
                path="/",
            ),
            JsonRenderPlugin(path="/openapi.json"),
            YamlRenderPlugin(path="/openapi.yaml"),
        ],
    )


PROBLEM = Schema(
    type="object",  # type: ignore[arg-type]  # Litestar's own enum or its value
    title="Problem",
    description="RFC 9457 problem details. Some codes bring fields of their own, such as `request_id` or `retry_at`.",
    required=["type", "title", "status", "detail", "code"],
    properties={
        "type": Schema(type="string"),  # type: ignore[arg-type]  # as above
        "title": Schema(type="string"),  # type: ignore[arg-type]  # as above
        "status": Schema(type="integer"),  # type: ignore[arg-type]  # as above
        "detail": Schema(type="string"),  # type: ignore[arg-type]  # as above
        "code": Schema(type="string", description="What clients switch on"),  # type: ignore[arg-type]  # as above
        "errors": Schema(
            type="array",  # type: ignore[arg-type]  # as above
            description="What is wrong where, for 422",
            items=Schema(
                type="object",  # type: ignore[arg-type]  # as above
                required=["pointer", "detail"],
                properties={
                    "pointer": Schema(type="string", description="JSON pointer, or `?name` for a query parameter"),  # type: ignore[arg-type]  # as above
                    "detail": Schema(type="string"),  # type: ignore[arg-type]  # as above
                },
            ),
        ),
    },
    examples=[
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "There is no such post.",
            "code": "post_not_found",
        }
    ],
)


def describe_errors(app: Litestar) -> None:
    """Say of every operation that its errors are problem details."""
    answer = OpenAPIResponse(
        description="Anything else: problem details",
        content={"application/problem+json": OpenAPIMediaType(schema=Reference(ref="#/components/schemas/Problem"))},
    )
    for path in (app.openapi_schema.paths or {}).values():
        for method in ("get", "post", "patch", "delete", "put"):
            operation = getattr(path, method)
            if operation is not None:
                responses = operation.responses or {}
                responses.pop("400", None)
                operation.responses = responses | {"default": answer}


def assets_router() -> Router:
    """Swagger UI out of the installed package `swagger-ui-py`."""
    return create_static_files_router(path=ASSETS, directories=[ASSETS_DIRECTORY], include_in_schema=False)
