"""The pages, and the forms on them.

A page is made from the same structs as the JSON; its address holds the whole view. Forms answer by
sending the browser to a page that says what was done. Nothing here needs a script in the browser.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import jinja2
import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, URLEncodedBody
from litestar.response import Redirect
from litestar.types import ControllerRouterHandler

from server.dashboard import rendering
from server.dashboard.assets import assets, missing
from server.dashboard.dashboard import Dashboard
from server.dashboard.errors import BadRequest, DashboardError
from server.dashboard.job_detail import possible
from server.dashboard.models import Capabilities, Done, Preview, Selection, Span, State
from server.dashboard.page_cache import TOKEN

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PAGE_HEADERS = {**HEADERS, "Cache-Control": "no-store"}
FOREVER = {**HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}

AGES = {
    "15min": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
}
PREVIEWED = 20
ON_A_PAGE = 30

# What a list is ordered by, as the head of its column.
_WHEN = {
    State.QUEUED: "Due",
    State.DEFERRED: "Due",
    State.RETRYING: "Due",
    State.RUNNING: "Started",
    State.ORPHANED: "Started",
}
_LESSONS = {
    State.QUEUED: "A job that is due stands here until a worker takes it. If jobs stay here, look at the workers.",
    State.DEFERRED: "A job that was enqueued for later stands here until it is due.",
    State.RUNNING: "While a worker runs a job, it stands here, with how long it has been at it.",
    State.RETRYING: "A job that asked to be tried again stands here until its next try.",
    State.ORPHANED: "When a worker dies in the middle of a job, the job stands here within seconds.",
    State.FAILED: "A job that raised stands here, with its traceback, and can be retried.",
    State.ABORTED: "A job that somebody aborted stands here.",
    State.DONE: "A job that ended well stands here for as long as the history keeps it.",
}
_EXPLAINED = {
    "retry": "Each is enqueued again under a new id, with the function and the arguments that it had.",
    "abort": "Those that run are cancelled where they stand; those that wait will not start.",
    "delete": "The jobs, their results and their history are gone for good.",
}
# The only words that an address can make a page say.
_DEEDS = {
    "retry": ("Enqueued again", "job"),
    "abort": ("Told to abort", "job"),
    "delete": ("Deleted", "job"),
    "pause": ("Paused", "queue"),
    "resume": ("Resumed", "queue"),
    "repair": ("Repair done", ""),
}

Asking = Request[Any, Any, Any]
Form = URLEncodedBody[dict[str, Any]]
Page = Response[bytes]
Shown = dict[str, Any]


class Told(NamedTuple):
    """What stands above a page after something was done."""

    kind: str
    title: str
    words: str


def page_handlers() -> list[ControllerRouterHandler]:
    """Every handler of the pages; those of the JSON and of the events are not among them."""
    return [
        overview,
        jobs,
        preview_bulk,
        act_on_bulk,
        job,
        act_on_job,
        functions,
        workers,
        cron,
        act_on_queue,
        act_on_panel,
        static,
    ]


@get("/", include_in_schema=False)
async def overview(request: Asking, dashboard: NamedDependency[Dashboard]) -> Page:
    panels = await dashboard.show_panels()

    async def read() -> Shown:
        shown, history = await dashboard.reader.first_screen(_span(request), panels)
        return {"overview": shown, "history": history, "parameters": _parameters(request, "span")}

    # What the application says may depend on who asks.
    return await _live_page(request, dashboard, "overview.html", read, here="/", beside=repr(panels))


@get("/jobs", include_in_schema=False)
async def jobs(request: Asking, dashboard: NamedDependency[Dashboard]) -> Page:
    async def read() -> Shown:
        queues = await dashboard.reader.queues()
        selection = _selection(request, queues)
        may = dashboard.may(request)
        cursor = request.query_params.get("cursor")
        page, queue, functions = await dashboard.reader.list_screen(selection, cursor, ON_A_PAGE)
        return {
            "jobs": page,
            "selection": selection,
            "counts": {state.value: getattr(queue, state.value) for state in State},
            "states": [state.value for state in State],
            "queues": _with(queues, selection.queue),
            "functions": _with(functions, selection.function),
            "bulk": [action for action in possible(selection.state, True, True) if action in may],
            "when": _WHEN.get(selection.state, "Ended"),
            "lesson": _LESSONS[selection.state],
            "parameters": _list_parameters(request, selection),
        }

    return await _live_page(request, dashboard, "jobs.html", read, here="/jobs")


@post("/jobs/preview", status_code=200, include_in_schema=False)
async def preview_bulk(request: Asking, dashboard: NamedDependency[Dashboard], data: Form) -> Page:
    """What would be done, and to which: the chosen ones, or all that fit. Nothing is done yet."""
    action = _action(data, _EXPLAINED)
    dashboard.admit(request, action, data.get("csrf_token"))
    selection = _selection(request, await dashboard.reader.queues())
    chosen = _texts(data.get("id"))
    preview = await (_preview_of(dashboard, action, chosen) if chosen else dashboard.actions.preview(action, selection))
    return _page(
        request,
        dashboard,
        "preview.html",
        here="/jobs",
        preview=preview,
        selection=selection,
        when=_WHEN.get(selection.state, "Ended"),
        explained=_EXPLAINED[action],
        parameters=_list_parameters(request, selection),
    )


@post("/jobs/bulk", status_code=303, include_in_schema=False)
async def act_on_bulk(request: Asking, dashboard: NamedDependency[Dashboard], data: Form) -> Redirect:
    action = _action(data, _EXPLAINED)
    who = dashboard.admit(request, action, data.get("csrf_token"))
    done = await dashboard.actions.bulk(who, action, str(data.get("refs", "")).split())
    selection = _selection(request, await dashboard.reader.queues())
    return _sent_to(request, dashboard, f"/jobs{rendering.query(_list_parameters(request, selection), **_told(done))}")


@get("/jobs/{ref:str}", include_in_schema=False)
async def job(request: Asking, dashboard: NamedDependency[Dashboard], ref: FromPath[str]) -> Page:
    async def read() -> Shown:
        detail = await dashboard.reader.job(ref)
        return {"detail": detail, "job": detail.job}

    return await _live_page(request, dashboard, "job.html", read, here="/jobs", exactly=False)


@post("/jobs/{ref:str}/{action:str}", status_code=303, include_in_schema=False)
async def act_on_job(
    request: Asking, dashboard: NamedDependency[Dashboard], ref: FromPath[str], action: FromPath[str], data: Form
) -> Redirect:
    if action not in _EXPLAINED:
        raise BadRequest
    who = dashboard.admit(request, action, data.get("csrf_token"))
    done = await getattr(dashboard.actions, action)(who, [ref])
    told = rendering.query(_told(done))
    if action == "delete" and done.done:
        return _sent_to(request, dashboard, f"/jobs{told}")
    shown = done.done[0] if action == "retry" and done.done else ref
    return _sent_to(request, dashboard, f"/jobs/{shown}{told}")


@get("/functions", include_in_schema=False)
async def functions(request: Asking, dashboard: NamedDependency[Dashboard]) -> Page:
    asked = request.query_params
    function = asked.get("function") or None

    async def read() -> Shown:
        return {
            "history": await dashboard.reader.history(_span(request), asked.get("queue") or None, function),
            "queues": await dashboard.reader.queues(),
            "parameters": _parameters(request, "span", "queue", "function"),
        }

    return await _live_page(request, dashboard, "functions.html", read, here="/functions", exactly=function is None)


@get("/workers", include_in_schema=False)
async def workers(request: Asking, dashboard: NamedDependency[Dashboard]) -> Page:
    async def read() -> Shown:
        return {"workers": await dashboard.reader.workers()}

    return await _live_page(request, dashboard, "workers.html", read, here="/workers")


@get("/cron", include_in_schema=False)
async def cron(request: Asking, dashboard: NamedDependency[Dashboard]) -> Page:
    async def read() -> Shown:
        return {"cron": await dashboard.reader.cron()}

    return await _live_page(request, dashboard, "cron.html", read, here="/cron")


@post("/queues/{name:str}/{action:str}", status_code=303, include_in_schema=False)
async def act_on_queue(
    request: Asking, dashboard: NamedDependency[Dashboard], name: FromPath[str], action: FromPath[str], data: Form
) -> Redirect:
    if action not in ("pause", "resume"):
        raise BadRequest
    who = dashboard.admit(request, action, data.get("csrf_token"))
    done = await (dashboard.actions.pause if action == "pause" else dashboard.actions.resume)(who, name)
    return _sent_to(request, dashboard, f"/{rendering.query(_told(done))}")


@post("/panels/{panel:str}/{action:str}", status_code=303, include_in_schema=False)
async def act_on_panel(
    request: Asking, dashboard: NamedDependency[Dashboard], panel: FromPath[str], action: FromPath[str], data: Form
) -> Redirect:
    who = dashboard.admit(request, "repair", data.get("csrf_token"))
    await dashboard.repair(who, panel, action)
    return _sent_to(request, dashboard, f"/{rendering.query({'did': 'repair'})}")


@get("/static/{digest:str}/{name:str}", include_in_schema=False, sync_to_thread=False)
def static(digest: FromPath[str], name: FromPath[str]) -> Page:
    asset = assets().get(name)
    if asset is None or asset.path != f"static/{digest}/{name}":
        return Response(b"", status_code=404, media_type="text/plain", headers=PAGE_HEADERS)
    return Response(asset.content, media_type=asset.media_type, headers=FOREVER)


def answer_error(request: Asking, error: DashboardError, dashboard: Dashboard) -> Page:
    """A page that says what was wrong, with its status."""
    titles = {401: "Not signed in", 403: "Not allowed", 404: "Not there", 503: "Redis is away"}
    return _page(
        request,
        dashboard,
        "trouble.html",
        here="",
        status=error.status,
        title=titles.get(error.status, "Not understood"),
        words=error.detail,
    )


@cache
def _templates() -> jinja2.Environment:
    made = rendering.environment()
    made.filters["total"] = _total
    return made


def _total(group: Any, names: list[str]) -> float | None:
    """One figure of a bucket: a percentile, or the sum of some counts."""
    values: list[float | None] = [getattr(group, name) for name in names]
    return values[0] if len(values) == 1 else sum(value or 0 for value in values)


async def _live_page(
    request: Asking,
    dashboard: Dashboard,
    template: str,
    read: Callable[[], Awaitable[Shown]],
    *,
    here: str,
    exactly: bool = True,
    beside: str = "",
) -> Page:
    """One that follows what happens; made once for all who look at the same within a second."""
    can = dashboard.capabilities(request)
    address = request.url.path + rendering.query(_without_told(request)).rstrip("?")

    async def make() -> str:
        nobodys = msgspec.structs.replace(can, csrf_token=TOKEN)
        return _render(request, dashboard, template, await read(), here=here, exactly=exactly, url=address, can=nobodys)

    # An application may have several Redis, and find one for each connection.
    whose = (dashboard.base(request), id(dashboard.reader.redis), tuple(can.actions), beside)
    name = (request.url.path, request.url.query, *whose)
    text = await dashboard.pages.find(name, request.headers.get("last-event-id"), make)
    return _answer(text.replace(TOKEN, can.csrf_token))


def _page(request: Asking, dashboard: Dashboard, template: str, *, here: str, status: int = 200, **shown: Any) -> Page:
    can = None if status >= 400 else dashboard.capabilities(request)
    shown["status"] = status
    return _answer(_render(request, dashboard, template, shown, here=here, exactly=True, url=None, can=can), status)


def _render(
    request: Asking,
    dashboard: Dashboard,
    template: str,
    shown: Shown,
    *,
    here: str,
    exactly: bool,
    url: str | None,
    can: Capabilities | None,
) -> str:
    around = {
        "base": dashboard.base(request),
        "here": here,
        "here_exactly": exactly,
        "url": url,
        "now": datetime.now(UTC),
        "can": can,
        "told": _what_was_done(request.query_params),
        "assets": list(assets().values()),
        "missing": missing(),
    }
    return _templates().get_template(template).render(shown | around)


def _answer(text: str, status: int = 200) -> Page:
    return Response(text.encode(), status_code=status, media_type="text/html", headers=PAGE_HEADERS)


def _sent_to(request: Asking, dashboard: Dashboard, address: str) -> Redirect:
    dashboard.pages.clear()
    return Redirect(dashboard.base(request) + address, status_code=303, headers=PAGE_HEADERS)


def _span(request: Asking) -> Span:
    try:
        return Span(request.query_params.get("span", Span.HOUR.value))
    except ValueError:
        raise BadRequest("There is no such span: 1h, 24h or 7d.") from None


def _selection(request: Asking, queues: list[str]) -> Selection:
    asked = request.query_params
    try:
        state = State(asked.get("state", State.FAILED.value))
        within = AGES[asked["within"]] if asked.get("within") else None
    except (ValueError, KeyError):
        raise BadRequest("There is no such state or age.") from None
    return Selection(
        state=state,
        queue=asked.get("queue") or (queues[0] if queues else "arq:queue"),
        function=asked.get("function") or None,
        text=asked.get("text") or None,
        since=datetime.now(UTC) - within if within else None,
    )


def _list_parameters(request: Asking, selection: Selection) -> dict[str, Any]:
    """The whole of a list, as it stands in an address."""
    asked = request.query_params
    return {
        "state": selection.state.value,
        "queue": selection.queue,
        "function": selection.function,
        "within": asked.get("within") or None,
        "text": selection.text,
        "cursor": asked.get("cursor") or None,
    }


def _parameters(request: Asking, *names: str) -> dict[str, Any]:
    return {name: request.query_params[name] for name in names if request.query_params.get(name)}


def _without_told(request: Asking) -> dict[str, Any]:
    return {name: value for name, value in request.query_params.items() if name not in ("did", "count", "skipped")}


def _with(names: list[str], chosen: str | None) -> list[str]:
    """The choices of a list, with the one that is chosen even if nothing is known of it."""
    return names if chosen is None or chosen in names else [*names, chosen]


def _action(data: Mapping[str, Any], known: Mapping[str, str]) -> str:
    action = data.get("action")
    if not isinstance(action, str) or action not in known:
        raise BadRequest
    return action


def _texts(value: Any) -> list[str]:
    """A field that may be there once or many times."""
    return [str(one) for one in value] if isinstance(value, list) else [str(value)] if value else []


async def _preview_of(dashboard: Dashboard, action: str, refs: list[str]) -> Preview:
    return Preview(
        action=action,
        count=len(refs),
        is_capped=False,
        refs=refs,
        items=[(await dashboard.reader.job(ref)).job for ref in refs[:PREVIEWED]],
    )


def _told(done: Done) -> dict[str, Any]:
    return {"did": done.action, "count": len(done.done), "skipped": len(done.skipped) or None}


def _what_was_done(asked: Mapping[str, str]) -> Told | None:
    deed = _DEEDS.get(asked.get("did", ""))
    if deed is None:
        return None
    title, noun = deed
    done, skipped = _number(asked.get("count")), _number(asked.get("skipped"))
    if noun == "job":
        title = f"{title}: {done:,} job{'' if done == 1 else 's'}" if done else "Nothing was done"
    words = f"{skipped:,} skipped: in no state for it any more." if skipped else ""
    return Told("good" if done or noun != "job" else "care", title, words)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 7 else 0
