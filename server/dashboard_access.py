"""The arq dashboard in this server: who is let in, what is told to the audit log, and what posts have to say beside it.

Administrators come with the token of their session, as to any call, or with a browser: `secureblogs dashboard-link`
prints an address that opens a session of the dashboard alone, once. Whether somebody still is an administrator is
asked at each call.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

from litestar import Request, Response, Router, get
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import FromQuery

from server import administration, after_commit, audit, auth, database, jobs, posts
from server.dashboard import access, pages
from server.dashboard.actions import ABORT, DELETE, PAUSE, REPAIR, RESUME, RETRY
from server.dashboard.dashboard import PanelSource
from server.dashboard.errors import NoSession
from server.dashboard.models import PanelFact
from server.dashboard.router import dashboard_router
from server.head import is_head
from server.sealing import digests
from server.settings import Settings

PATH = "/dashboard"

Connection = ASGIConnection[Any, Any, Any, Any]

# A repair is told by what it does, for each post.
AUDITED = {
    RETRY: "job.retried",
    ABORT: "job.aborted",
    DELETE: "job.deleted",
    PAUSE: "queue.paused",
    RESUME: "queue.resumed",
}

ALARMING_PENDING_S = 30.0
MAX_SUBJECT_CHARACTERS = 200

CSRF_LABEL = b"secureblogs dashboard csrf 1\n"


def router(settings: Settings) -> Router:
    return dashboard_router(
        redis=lambda connection: connection.app.state.redis,
        guards=[require_administrator],
        who=lambda connection: str(connection.scope["state"]["administrator"]),
        panels=[POSTS],
        read_only=settings.dashboard_read_only,
        on_action=note,
        deserializer=jobs.deserialize,
        queues=[jobs.QUEUE_NAME],
        csrf_key=digests.request_mac(settings.request_mac_key or b"", CSRF_LABEL),
        path=PATH,
        public=[open_dashboard],
        security=auth.SESSION_OR_JWT,
    )


async def require_administrator(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard. Raises NoSession, or what the API raises for a bearer token."""
    if connection.headers.get("authorization") is not None:
        await auth.require_caller(connection, handler)
        administration.check_admin(connection.user)
        connection.scope["state"]["administrator"] = connection.user.user_id
        return
    who = await access.read_session(connection.app.state.redis, connection.cookies.get(access.COOKIE))
    if who is None or not await administration.is_admin(UUID(who)):
        raise NoSession("Only administrators come in here: `secureblogs dashboard-link EMAIL` prints them a way.")
    connection.scope["state"]["administrator"] = UUID(who)


async def make_link(redis: Any, settings: Settings, administrator_id: UUID) -> str:
    """An address that lets the administrator in, once, within a minute."""
    token = await access.make_link(redis, str(administrator_id))
    return f"{settings.public_url}{settings.root_path}{PATH}/open?token={token}"


@get("/open", include_in_schema=False)
async def open_dashboard(request: Request[Any, Any, Any], token: FromQuery[str] = "") -> Response[bytes]:
    if is_head(request):
        # Whoever only looks at addresses, as those do who show what is behind one, must not use this one up.
        return Response(b"", media_type="text/html", headers=pages.PAGE_HEADERS)
    opened = await access.open_session(request.app.state.redis, token)
    if opened is None:
        raise NoSession(
            "This link was used, or is more than a minute old: `secureblogs dashboard-link` prints another."
        )
    base = request.scope.get("root_path", "").rstrip("/") + PATH
    # Not a redirect: one that another site has led to would not bring a cookie of SameSite=Strict along.
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Dashboard</title>'
        f'<meta http-equiv="refresh" content="0; url={base}/"></head>'
        f'<body><p><a href="{base}/">To the dashboard</a></p></body></html>'
    )
    return Response(
        page.encode(),
        media_type="text/html",
        headers={**pages.PAGE_HEADERS, "Referrer-Policy": "no-referrer"},
        cookies=[access.cookie(opened[1])],
    )


async def note(_: Connection, who: str, action: str, subject: str) -> None:
    """Before it is done: what can't be told is not done."""
    if action == REPAIR:
        return
    name = subject[:MAX_SUBJECT_CHARACTERS]
    async with database.transaction():
        if action in {PAUSE, RESUME}:
            await audit.record(AUDITED[action], actor=UUID(who), queue=name)
        else:
            await audit.record(AUDITED[action], actor=UUID(who), job=name)


# ------------------------------------------------------------------------------------------------------ the panel


async def tell_of_posts(_: Connection) -> list[PanelFact]:
    statistics = await posts.statistics()
    work = await posts.work()
    waits = statistics.pending > 0
    return [
        PanelFact(name="Posts pending", value=f"{statistics.pending:,}"),
        PanelFact(
            name="Oldest pending",
            value=str(timedelta(seconds=round(statistics.oldest_pending_s))) if waits else "–",
            is_alarming=waits and statistics.oldest_pending_s > ALARMING_PENDING_S,
        ),
        PanelFact(
            name="Posts failed",
            value=f"{statistics.failed:,}",
            is_alarming=statistics.failed > 0,
            action="requeue" if statistics.failed else None,
            action_label="Seal them after all" if statistics.failed else None,
        ),
        PanelFact(
            name="Keys sealed, of those due for posts of the last hour",
            value=f"{work.keys_sealed:,} of {work.keys_due:,}",
        ),
        PanelFact(name="Read requests waiting", value=f"{work.requests_waiting:,}"),
    ]


async def requeue_failed(connection: Connection, who: str) -> None:
    """Failed posts are pending again. What can't be enqueued now the sweep enqueues."""
    pending = await posts.requeue_failed(None, actor=UUID(who))
    for post_id in pending[: jobs.ENQUEUE_AT_ONCE]:
        await after_commit.enqueue_seal(connection.app.state.redis, post_id)


POSTS = PanelSource("posts", "Posts", tell_of_posts, {"requeue": requeue_failed})
