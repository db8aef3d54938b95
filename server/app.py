"""Wiring: what is served, with what, and how errors are answered."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus

from litestar import Litestar, Router
from litestar.routes import HTTPRoute
from litestar.types import Message, Scope

from server import after_commit, auth, bodies, dashboard_access, database, jobs, objects, openapi, problems
from server import settings as settings_module
from server.breaker import Breaker
from server.channels import Hub
from server.controllers import (
    accounts,
    administration,
    attachments,
    audit,
    credentials,
    groups,
    keys,
    metrics,
    operations,
    own_data,
    posts,
    requests,
    sealed_posts,
    sockets,
    usage,
)
from server.issuer import open_issuer
from server.limits import Limiter
from server.quotas import Quotas
from server.sealing import files
from server.settings import Settings, SettingsError
from server.sockets import Sockets

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}

POLICY = "default-src 'none'; frame-ancestors 'none'"


def encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


# Where an answer has one of these of its own, as the dashboard's pages do, it keeps it.
SAFE = encoded(HEADERS | {"Content-Security-Policy": POLICY})
SAFE_PAGES = encoded(HEADERS | {"Content-Security-Policy": openapi.POLICY})


def create_app(settings: Settings | None = None) -> Litestar:
    """The API. Raises SettingsError where a setting that it needs is missing."""
    settings = settings or settings_module.load(os.environ)
    for name in ("database_url", "redis_url", "worker_public_key", "request_mac_key"):
        if getattr(settings, name) is None:
            raise SettingsError(f"{name.upper()}: the API needs it")
    app = Litestar(
        route_handlers=[
            Router("/", before_request=bodies.check_query, route_handlers=accounts.PUBLIC),
            *operations.PUBLIC,
            *metrics.PUBLIC,
            *attachments.PUBLIC,
            *sockets.SOCKETS,
            dashboard_access.router(settings),
            Router(
                "/",
                # No guard, which would be given a copy of its handler each time.
                before_request=auth.enter,
                route_handlers=[
                    *accounts.AUTHENTICATED,
                    *credentials.AUTHENTICATED,
                    *keys.AUTHENTICATED,
                    *groups.AUTHENTICATED,
                    *posts.AUTHENTICATED,
                    *sealed_posts.AUTHENTICATED,
                    *requests.AUTHENTICATED,
                    *attachments.AUTHENTICATED,
                    Router(
                        "/",
                        request_max_body_size=files.sealed_size(settings.max_attachment_bytes),
                        route_handlers=attachments.UPLOADS,
                    ),
                    *audit.AUTHENTICATED,
                    *own_data.AUTHENTICATED,
                    *administration.AUTHENTICATED,
                    *usage.AUTHENTICATED,
                ],
            ),
        ],
        request_class=bodies.Request,
        request_max_body_size=settings.max_body_bytes,
        type_decoders=[(bodies.is_body, bodies.make_body)],
        plugins=[bodies.BodySchema()],
        openapi_config=openapi.config(settings),
        exception_handlers=problems.HANDLERS,
        before_send=[add_headers],
        lifespan=[run],
        logging_config=None,
    )
    app.state.settings = settings
    app.state.methods = {
        route.path_format: sorted(route.methods) for route in app.routes if isinstance(route, HTTPRoute)
    }
    app.state.known = auth.Known()
    app.state.store = objects.open_store(settings)
    app.state.issuer = open_issuer(settings)
    return app


@asynccontextmanager
async def run(app: Litestar) -> AsyncIterator[None]:
    """What the process holds while it runs: Postgres' pool, Redis' pool, the hub, the open sockets."""
    settings: Settings = app.state.settings
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(database.open_pool(str(settings.database_url), settings.database_pool_size))
        app.state.redis = await jobs.create_pool(str(settings.redis_url))
        stack.push_async_callback(app.state.redis.aclose, close_connection_pool=True)
        await stack.enter_async_context(after_commit.settling(app.state.redis))
        breaker = Breaker()
        app.state.limiter = Limiter(str(settings.redis_url), app.state.redis.connection_pool, settings, breaker)
        app.state.quotas = await stack.enter_async_context(Quotas(app.state.redis, breaker, settings))
        app.state.hub = await stack.enter_async_context(Hub(app.state.redis))
        app.state.sockets = await stack.enter_async_context(Sockets(app.state.hub))
        yield


async def add_headers(message: Message, scope: Scope) -> None:
    if message["type"] != "http.response.start":
        return
    wanted = SAFE_PAGES if scope["path"].startswith(openapi.PATH) else SAFE
    given = message["headers"] = list(message["headers"])
    if scope.get("method") == "OPTIONS" and message["status"] == HTTPStatus.NO_CONTENT:
        # Litestar's own leaves out what was registered for the path after its first handler.
        given[:] = [header for header in given if header[0].lower() != b"allow"]
        given.append((b"allow", ", ".join(scope["litestar_app"].state.methods[scope["path_template"]]).encode()))
    names = {name.lower() for name, _ in given}
    given += [header for header in wanted if header[0] not in names]
