"""`dashboard_router`: the pages, the JSON and the events, for any Litestar application."""

import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from http import HTTPStatus
from typing import Any

from litestar import Request, Response, Router
from litestar.di import Provide
from litestar.types import ControllerRouterHandler, Guard
from redis.asyncio import Redis

from server.dashboard import api, pages
from server.dashboard.actions import ACTIONS
from server.dashboard.dashboard import Asking, Connection, Dashboard, Options, PanelSource
from server.dashboard.encoded import Deserializer
from server.dashboard.errors import DashboardError
from server.dashboard.events import Glance
from server.dashboard.page_cache import PageCache


def dashboard_router(
    *,
    redis: Redis | Callable[[Connection], Redis],
    guards: Sequence[Guard],
    who: Callable[[Connection], str] = lambda connection: str(connection.scope.get("user") or "somebody"),
    permissions: Callable[[Connection], Collection[str]] = lambda _: ACTIONS,
    panels: Sequence[PanelSource] = (),
    read_only: bool = False,
    on_action: Callable[[Connection, str, str, str], Awaitable[None]] | None = None,
    deserializer: Deserializer | None = None,
    queues: Collection[str] = (),
    csrf_key: bytes | None = None,
    path: str = "/dashboard",
    public: Sequence[ControllerRouterHandler] = (),
    security: list[dict[str, list[str]]] | None = None,
    tags: Sequence[str] = ("Dashboard",),
) -> Router:
    """Mount it with the application's guards in front: nothing here asks who may look.

    `redis`: the client of the queues, or what finds it for a connection. Only arq's and our own keys are read.
    `who`: a name of whoever asks, once the guards have let them in, for `on_action` and the pause that they make.
    `permissions`: which of ACTIONS are open to a connection; none are when `read_only`.
    `panels`: what the application says beside the jobs. Names consist of letters, digits and `-`.
    `on_action`: called with the connection, who, the action and its subject, before anything is done; if it raises,
    nothing is.
    `deserializer`: that of the application's jobs, to show arguments of waiting ones. Never pickle's.
    `queues`: names of those that are shown even if no worker has ever spoken of them.
    `csrf_key`: 32 secret bytes, the same in all processes that serve the application; where there is but one, it may be
    left out.
    `public`: handlers that need no guard, such as one that opens a session.
    """
    for panel in panels:
        if not re.fullmatch(r"[A-Za-z0-9-]+", panel.name):
            raise ValueError(f"{panel.name!r} is no name for a panel")
    options = Options(
        redis=redis,
        who=who,
        permissions=permissions,
        panels=tuple(panels),
        read_only=read_only,
        on_action=on_action,
        deserializer=deserializer,
        queues=tuple(queues),
        csrf_key=csrf_key or secrets.token_bytes(32),
        path=path,
        pages=PageCache(),
    )
    glance = Glance()

    def provide(request: Asking) -> Dashboard:
        return Dashboard(request, options)

    def answer(request: Asking, error: DashboardError) -> Response[Any]:
        if request.url.path.startswith((f"{options.path}/api/", f"{options.path}/events")):
            return problem(error)
        return pages.answer_error(request, error, Dashboard(request, options))

    guarded = [one for one in pages.page_handlers() if one is not pages.static]
    return Router(
        path,
        route_handlers=[
            Router("/", guards=list(guards), route_handlers=[*guarded, *api.HANDLERS], security=security),
            Router("/", route_handlers=[pages.static, *public]),
        ],
        dependencies={
            "dashboard": Provide(provide, sync_to_thread=False),
            "glance": Provide(lambda: glance, sync_to_thread=False),
        },
        exception_handlers={DashboardError: answer},
        # Not the application's own, which may read bodies in its own way.
        request_class=Request,
        tags=list(tags),
    )


def problem(error: DashboardError) -> Response[Any]:
    """RFC 9457."""
    status = HTTPStatus(error.status)
    content = {
        "type": "about:blank",
        "title": status.phrase,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
    }
    return Response(
        content,
        status_code=error.status,
        media_type="application/problem+json",
        headers={"Retry-After": "1"} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else {},
    )
