"""The JSON of what the pages show, and the events that tell when to look again."""

from datetime import datetime
from typing import Annotated

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from server.dashboard.actions import PAUSE, REPAIR, RESUME, check_job_action
from server.dashboard.dashboard import CSRF_HEADER, Asking, Dashboard
from server.dashboard.errors import BadRequest
from server.dashboard.events import Glance, stream
from server.dashboard.lists import MAX_PAGE
from server.dashboard.models import (
    Capabilities,
    CronSchedule,
    Done,
    History,
    JobDetail,
    JobPage,
    Overview,
    Panel,
    Preview,
    Selection,
    Span,
    State,
    Workers,
)


class Panels(msgspec.Struct, frozen=True, kw_only=True):
    items: list[Panel]


class PreviewIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: str
    """`retry`, `abort` or `delete`."""
    selection: Selection


class BulkIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: str
    """`retry`, `abort` or `delete`."""
    refs: list[str]
    """At most 200."""


@get("/api/overview", operation_id="getDashboard", summary="Queues, functions, workers and panels, now")
async def get_overview(dashboard: NamedDependency[Dashboard]) -> Overview:
    """What the first screen shows. `is_alarming` is the one thing to watch: of a queue, it says that work is due that
    nobody does."""
    return await dashboard.reader.overview(await dashboard.show_panels())


@get("/api/jobs", operation_id="listJobs", summary="Jobs of one state")
async def list_jobs(
    dashboard: NamedDependency[Dashboard],
    # `state` is a name that Litestar keeps for itself.
    job_state: Annotated[State, QueryParameter(name="state")],
    queue: FromQuery[str],
    function: FromQuery[str | None] = None,
    since: FromQuery[datetime | None] = None,
    until: FromQuery[datetime | None] = None,
    text: FromQuery[str | None] = None,
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
) -> JobPage:
    """The newest first; of those that wait, the ones that are due first. `since` and `until` are of the time that the
    list is ordered by, `text` is found anywhere in an id. A call looks at so many jobs at most, so go on while there is
    a `next_cursor`, even after an empty page."""
    if not 1 <= limit <= MAX_PAGE:
        raise BadRequest(f"`limit` is 1 to {MAX_PAGE}.")
    if any(at is not None and at.tzinfo is None for at in (since, until)):
        raise BadRequest("`since` and `until` need a time zone.")
    selection = Selection(state=job_state, queue=queue, function=function, since=since, until=until, text=text)
    return await dashboard.reader.jobs(selection, cursor, limit)


@get("/api/jobs/{ref:str}", operation_id="getJob", summary="One job, with its tries")
async def get_job(dashboard: NamedDependency[Dashboard], ref: FromPath[str]) -> JobDetail:
    """`ref` is the job's id in URL-safe base64 without padding."""
    return await dashboard.reader.job(ref)


@get("/api/workers", operation_id="listWorkers", summary="Living workers")
async def list_workers(dashboard: NamedDependency[Dashboard]) -> Workers:
    """Those that gave a sign of life within the last seconds, the oldest first."""
    return Workers(items=await dashboard.reader.workers())


@get("/api/cron", operation_id="listCron", summary="What is done at fixed times")
async def list_cron(dashboard: NamedDependency[Dashboard]) -> CronSchedule:
    """As the living workers have it, with how it went the last time."""
    return CronSchedule(items=await dashboard.reader.cron())


@get("/api/history", operation_id="getHistory", summary="Tries over time")
async def get_history(
    dashboard: NamedDependency[Dashboard],
    span: FromQuery[Span] = Span.HOUR,
    queue: FromQuery[str | None] = None,
    function: FromQuery[str | None] = None,
) -> History:
    """Counts and percentiles, of all queues and functions or of one."""
    return await dashboard.reader.history(span, queue, function)


@get("/api/panels", operation_id="listPanels", summary="What the application says beside the jobs")
async def list_panels(dashboard: NamedDependency[Dashboard]) -> Panels:
    """With the repairs that it offers."""
    return Panels(items=await dashboard.show_panels())


@get("/api/capabilities", operation_id="getCapabilities", summary="What the one who asks may do")
async def get_capabilities(request: Asking, dashboard: NamedDependency[Dashboard]) -> Capabilities:
    """With the token that actions have to bring."""
    return dashboard.capabilities(request)


@post("/api/jobs/{ref:str}/{action:str}", operation_id="changeJob", summary="Retry, abort or delete", status_code=200)
async def change_job(
    request: Asking, dashboard: NamedDependency[Dashboard], ref: FromPath[str], action: FromPath[str]
) -> Done:
    """`action` is `retry`, `abort` or `delete`. Needs the header `X-CSRF-Token`, as all actions do. A job in no state
    for it is in `skipped`."""
    check_job_action(action)
    who = dashboard.admit(request, action, request.headers.get(CSRF_HEADER))
    await dashboard.reader.job(ref)
    return await dashboard.actions.bulk(who, action, [ref])


@post("/api/bulk/preview", operation_id="previewBulk", summary="What a bulk action would be done to", status_code=200)
async def preview_bulk(request: Asking, dashboard: NamedDependency[Dashboard], data: JSONBody[PreviewIn]) -> Preview:
    """Changes nothing. Send `refs` to `POST /dashboard/api/bulk` to have it done to exactly these."""
    check_job_action(data.action)
    dashboard.admit(request, data.action, request.headers.get(CSRF_HEADER))
    return await dashboard.actions.preview(data.action, data.selection)


@post("/api/bulk", operation_id="changeJobs", summary="Retry, abort or delete many", status_code=200)
async def change_jobs(request: Asking, dashboard: NamedDependency[Dashboard], data: JSONBody[BulkIn]) -> Done:
    """At most 200 in one call. Those in no state for it any more are in `skipped`."""
    check_job_action(data.action)
    who = dashboard.admit(request, data.action, request.headers.get(CSRF_HEADER))
    return await dashboard.actions.bulk(who, data.action, data.refs)


@post("/api/queues/{name:str}/{action:str}", operation_id="changeQueue", summary="Pause or resume", status_code=200)
async def change_queue(
    request: Asking, dashboard: NamedDependency[Dashboard], name: FromPath[str], action: FromPath[str]
) -> Done:
    """`action` is `pause` or `resume`. No job of a paused queue is begun, nor its cron jobs enqueued."""
    if action not in {PAUSE, RESUME}:
        raise BadRequest("`action` is one of pause, resume.")
    who = dashboard.admit(request, action, request.headers.get(CSRF_HEADER))
    change = dashboard.actions.pause if action == PAUSE else dashboard.actions.resume
    return await change(who, name)


@post("/api/panels/{panel:str}/{action:str}", operation_id="repairPanel", summary="Make a repair", status_code=200)
async def repair_panel(
    request: Asking, dashboard: NamedDependency[Dashboard], panel: FromPath[str], action: FromPath[str]
) -> Done:
    """One of those that the panel's facts name."""
    who = dashboard.admit(request, REPAIR, request.headers.get(CSRF_HEADER))
    return await dashboard.repair(who, panel, action)


@get(
    "/events",
    operation_id="followDashboard",
    summary="Hear of changes",
    media_type="text/event-stream",
    responses={200: ResponseSpec(str, description="Server-sent events", media_type="text/event-stream")},
)
async def follow(request: Asking, dashboard: NamedDependency[Dashboard], glance: NamedDependency[Glance]) -> Stream:
    """Events `changed`, with `{"changed": […]}` of `jobs`, `queues`, `workers`. An id is the whole state: whoever comes
    back with `Last-Event-ID` hears at once what changed meanwhile."""
    return Stream(
        stream(dashboard.reader, glance, request.headers.get("last-event-id")),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


HANDLERS = [
    get_overview,
    list_jobs,
    get_job,
    list_workers,
    list_cron,
    get_history,
    list_panels,
    get_capabilities,
    change_job,
    preview_bulk,
    change_jobs,
    change_queue,
    repair_panel,
    follow,
]
