"""What can be done from the dashboard, in an application and with a worker that are not this project's."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from arq import cron
from arq.connections import ArqRedis
from litestar import Litestar

from server.dashboard.actions import ABORT, ACTIONS, DELETE, MAX_BULK, PAUSE, RETRY, Actions
from server.dashboard.dashboard import Connection, PanelSource
from server.dashboard.events import Glance, stream
from server.dashboard.keys import make_ref
from server.dashboard.models import Outcome, PanelFact, Selection, Span, State
from server.dashboard.reader import Reader
from server.dashboard.recorder import record
from server.dashboard.router import dashboard_router
from tests.dashboard.conftest import (
    QUEUE,
    foreign_worker,
    job_of,
    list_all,
    queue_of,
    serving,
    until,
    working,
)
from tests.dashboard.foreign_worker import make_worker, tick
from tests.redis_server import RedisServer

ME = "somebody"


async def until_state(reader: Reader, job_id: str, state: State) -> None:
    async def is_there() -> bool:
        return job_id in [job.id for job in await list_all(reader, state)]

    await until(is_there)


async def test_failed_job_is_retried_as_a_new_one(foreign: ArqRedis, reader: Reader, actions: Actions) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    await foreign.enqueue_job("fail_openly", "a word", _job_id="old")
    async with working(worker):
        await until_state(reader, "old", State.FAILED)
        done = await actions.retry(ME, [make_ref("old")])
        [new] = done.done

        async def has_failed_too() -> bool:
            return len(await list_all(reader, State.FAILED)) == 2

        await until(has_failed_too)
    detail = await reader.job(new)
    assert detail.job.retried_from == make_ref("old")
    assert detail.arguments is not None
    assert detail.arguments[0].value == "a word"
    assert (await job_of(reader, "old")).job.state is State.FAILED


async def test_second_click_retries_nothing(foreign: ArqRedis, reader: Reader, actions: Actions) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    await foreign.enqueue_job("fail", "x", _job_id="old")
    async with working(worker):
        await until_state(reader, "old", State.FAILED)
    clicks = await asyncio.gather(*(actions.retry(ME, [make_ref("old")]) for _ in range(5)))
    assert sum(len(done.done) for done in clicks) == 1
    assert await foreign.zcard(QUEUE) == 1


async def test_running_job_is_aborted(foreign: ArqRedis, reader: Reader, actions: Actions) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    await foreign.enqueue_job("sleep", 60, _job_id="long")
    async with working(worker):

        async def can_be_aborted() -> bool:
            detail = await job_of(reader, "long")
            return detail.job.state is State.RUNNING and "abort" in detail.actions

        await until(can_be_aborted)
        assert (await actions.abort(ME, [make_ref("long")])).done == [make_ref("long")]
        await until_state(reader, "long", State.ABORTED)
    assert await foreign.zcard(QUEUE) == 0
    assert (await job_of(reader, "long")).tries[-1].outcome is Outcome.ABORTED


@pytest.mark.parametrize("defer_s", [None, 100])
async def test_waiting_job_is_aborted_and_never_begun(
    foreign: ArqRedis, reader: Reader, actions: Actions, defer_s: int | None
) -> None:
    worker = make_worker(foreign, handle_signals=False)
    recorder = record(worker)
    await recorder._beat()
    await foreign.enqueue_job("add", 1, _job_id="waits", _defer_by=defer_s)
    assert (await actions.abort(ME, [make_ref("waits")])).done
    assert (await job_of(reader, "waits")).job.state is State.ABORTED
    assert await foreign.exists("arq:job:waits", "arq:in-progress:waits", QUEUE) == 0
    # It is kept as it was, and can be done after all.
    [new] = (await actions.retry(ME, [make_ref("waits")])).done
    async with working(worker):

        async def is_done() -> bool:
            return (await reader.job(new)).job.state is State.DONE

        await until(is_done)


async def test_deleted_job_is_gone_from_everywhere(foreign: ArqRedis, reader: Reader, actions: Actions) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    await foreign.enqueue_job("fail", "x", _job_id="failed job")
    await foreign.enqueue_job("add", 1, _job_id="done job")
    await foreign.enqueue_job("add", 1, _job_id="deferred job", _defer_by=100)
    async with working(worker):
        await until_state(reader, "failed job", State.FAILED)
        await until_state(reader, "done job", State.DONE)
    refs = [make_ref(name) for name in ("failed job", "done job", "deferred job", "no job")]
    deleted = await actions.delete(ME, refs)
    assert (deleted.done, deleted.skipped) == (refs[:3], refs[3:])
    assert [key for key in await foreign.keys("*") if b" job" in key] == []
    assert await foreign.zcard(QUEUE) == 0
    assert (await queue_of(reader)).done == 0


async def test_paused_queue_begins_nothing_until_it_is_resumed(
    foreign: ArqRedis, reader: Reader, actions: Actions, own_redis: RedisServer
) -> None:
    with foreign_worker(own_redis):

        async def has_worker() -> bool:
            return len(await reader.workers()) == 1

        await until(has_worker)
        await actions.pause(ME, QUEUE)

        # It asks once a second, and what it has begun by then ends.
        await asyncio.sleep(1.5)
        begun = (await reader.history(Span.HOUR)).total.total
        for number in range(5):
            await foreign.enqueue_job("add", number)
        await asyncio.sleep(1.5)
        queue = await queue_of(reader)
        assert queue.queued in {5, 6}  # one tick of its cron may have been enqueued before
        assert (queue.is_paused, queue.paused_by, queue.is_alarming) == (True, ME, True)
        assert (await reader.history(Span.HOUR)).total.total == begun
        await actions.resume(ME, QUEUE)

        async def is_through() -> bool:
            queued: Any = await foreign.hget("ledger", "done")  # type: ignore[misc]  # typed for both clients
            return int(queued or 0) == 5

        await until(is_through)
        assert not (await queue_of(reader)).is_paused


async def test_cron_that_is_never_paused_goes_on(foreign: ArqRedis, reader: Reader, actions: Actions) -> None:
    crons = [cron(tick, name=name, month=1, run_at_startup=True) for name in ("mend", "rest")]
    worker = make_worker(foreign, handle_signals=False, cron_jobs=crons)
    record(worker, never_paused=["mend"])
    await foreign.zadd("arq:dashboard:queues", {QUEUE: 1})
    await actions.pause(ME, QUEUE)
    await foreign.enqueue_job("add", 1, _job_id="waits")
    async with working(worker):

        async def has_mended() -> bool:
            return [job.function for job in await list_all(reader, State.DONE)] == ["mend"]

        await until(has_mended)
        queue = await queue_of(reader)
        assert (queue.never_paused, queue.queued) == (["mend"], 1)
        assert [entry.name for entry in await reader.cron()] == ["mend", "rest"]
        await actions.resume(ME, QUEUE)

        async def is_done() -> bool:
            return (await job_of(reader, "waits")).job.state is State.DONE

        await until(is_done)


async def test_queue_without_a_worker_is_alarming(foreign: ArqRedis, reader: Reader) -> None:
    await foreign.zadd("arq:dashboard:queues", {QUEUE: 1})
    assert (await queue_of(reader)).alarm == "No worker is alive: what is enqueued will wait."
    await foreign.enqueue_job("add", 1)

    async def is_due() -> bool:
        return (await queue_of(reader)).alarm == "Work is due, and no worker is alive."

    await until(is_due)


async def test_what_cannot_be_done_is_not_offered(foreign: ArqRedis, reader: Reader, app: httpx.AsyncClient) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    await foreign.enqueue_job("add", 1, _job_id="good")
    async with working(worker):
        await until_state(reader, "good", State.DONE)
    page = await app.get("/dashboard/jobs", params={"state": "done", "queue": QUEUE})
    assert 'value="delete"' in page.text
    assert 'value="retry"' not in page.text
    assert (await job_of(reader, "good")).actions == ["delete"]


async def test_bulk_does_what_its_preview_showed(foreign: ArqRedis, reader: Reader, actions: Actions) -> None:
    worker = make_worker(foreign, handle_signals=False)
    record(worker)
    for number in range(MAX_BULK + 30):
        await foreign.enqueue_job("fail", "x", _job_id=f"bad {number}")
    await foreign.enqueue_job("add", "x", _job_id="bad type")
    async with working(worker):

        async def have_failed() -> bool:
            return (await queue_of(reader)).failed == MAX_BULK + 31

        await until(have_failed)
    preview = await actions.preview(RETRY, Selection(state=State.FAILED, queue=QUEUE, function="fail"))
    assert (preview.count, len(preview.refs), preview.is_capped) == (MAX_BULK, MAX_BULK, True)
    assert len(preview.items) == 20
    done = await actions.bulk(ME, RETRY, preview.refs)
    assert len(done.done) == MAX_BULK
    assert await foreign.zcard(QUEUE) == MAX_BULK
    few = await actions.preview(DELETE, Selection(state=State.FAILED, queue=QUEUE, text="TYPE"))
    assert (few.count, few.is_capped, few.items[0].id) == (1, False, "bad type")


# --------------------------------------------------------------------------------------------- who may do what


async def post(client: httpx.AsyncClient, path: str, body: Any = None) -> httpx.Response:
    token = (await client.get("/dashboard/api/capabilities")).json()["csrf_token"]
    headers = {"X-CSRF-Token": token, "Content-Type": "application/json"}
    content = json.dumps(body) if body is not None else None
    return await client.post(f"/dashboard/api/{path}", headers=headers, content=content)


CALLS: list[tuple[str, str, Any]] = [
    (RETRY, "jobs/am9i/retry", None),
    (ABORT, "jobs/am9i/abort", None),
    (DELETE, "jobs/am9i/delete", None),
    (RETRY, "bulk", {"action": "retry", "refs": ["am9i"]}),
    (ABORT, "bulk", {"action": "abort", "refs": ["am9i"]}),
    (DELETE, "bulk", {"action": "delete", "refs": ["am9i"]}),
    (PAUSE, f"queues/{QUEUE}/pause", None),
    ("resume", f"queues/{QUEUE}/resume", None),
    ("repair", "panels/stock/refill", None),
]


async def tell_of_stock(_: Connection) -> list[PanelFact]:
    return [PanelFact(name="In stock", value="0", is_alarming=True, action="refill")]


def make_app(redis: ArqRedis, done: list[Any], permissions: set[str], **options: Any) -> Litestar:
    async def refill(_: Connection, who: str) -> None:
        done.append(("refilled", who))

    async def note(_: Connection, who: str, action: str, subject: str) -> None:
        done.append((who, action, subject))

    panel = PanelSource("stock", "Stock", tell_of_stock, {"refill": refill})
    router = dashboard_router(
        redis=redis,
        guards=[],
        who=lambda _: ME,
        permissions=lambda _: permissions,
        panels=[panel],
        on_action=note,
        **options,
    )
    return Litestar([router])


@pytest.mark.parametrize(("action", "path", "body"), CALLS)
async def test_each_action_has_its_own_permission(foreign: ArqRedis, action: str, path: str, body: Any) -> None:
    await foreign.zadd("arq:dashboard:queues", {QUEUE: 1})
    await foreign.enqueue_job("add", 1, _job_id="job")
    done: list[Any] = []
    async with serving(make_app(foreign, done, set(ACTIONS) - {action})) as client:
        answer = await post(client, path, body)
        assert (answer.status_code, answer.json()["code"]) == (403, "refused")
    async with serving(make_app(foreign, done, set(ACTIONS), read_only=True)) as client:
        answer = await post(client, path, body)
        assert (answer.status_code, answer.json()["code"]) == (403, "read_only")
        assert (await client.get("/dashboard/api/capabilities")).json()["actions"] == []
    assert done == []
    async with serving(make_app(foreign, done, {action})) as client:
        answer = await post(client, path, body)
        assert answer.status_code == 200, answer.text
    # What can't be done with the job as it stands is not told either.
    assert [entry[1] for entry in done if entry[0] == ME] == ([] if action == RETRY else [action])


async def test_what_cannot_be_told_is_not_done(foreign: ArqRedis) -> None:
    async def refuse(*_: Any) -> None:
        raise PermissionError

    await foreign.enqueue_job("add", 1, _job_id="job")
    actions = Actions(Reader(foreign, queues=[QUEUE]), refuse)
    with pytest.raises(PermissionError):
        await actions.delete(ME, [make_ref("job")])
    assert await foreign.exists("arq:job:job")


async def test_panel_that_fails_says_so_and_spares_the_rest(foreign: ArqRedis) -> None:
    async def fail(_: Connection) -> list[PanelFact]:
        raise ZeroDivisionError("a secret")

    router = dashboard_router(redis=foreign, guards=[], panels=[PanelSource("bad", "Bad", fail)])
    async with serving(Litestar([router])) as client:
        overview = (await client.get("/dashboard/api/overview")).json()
    assert overview["panels"][0]["error"] == "ZeroDivisionError"
    assert overview["is_alarming"]
    assert "secret" not in json.dumps(overview)


async def test_redis_that_is_away_is_503(own_redis: RedisServer) -> None:
    away = ArqRedis.from_url("unix:///nowhere")
    async with serving(Litestar([dashboard_router(redis=away, guards=[])])) as client:
        for path in ("overview", "workers", "history", "jobs/am9i", "cron"):
            answer = await client.get(f"/dashboard/api/{path}")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


@pytest.mark.parametrize(
    "query", [{"state": "no"}, {"cursor": "x"}, {"limit": "0"}, {"limit": "101"}, {"since": "2026-01-01T00:00:00"}]
)
async def test_query_that_makes_no_sense_is_400(app: httpx.AsyncClient, query: dict[str, str]) -> None:
    answer = await app.get("/dashboard/api/jobs", params={"state": "failed", "queue": QUEUE} | query)
    assert answer.status_code == 400


# ----------------------------------------------------------------------------------------------------------- events


async def take(lines: Any, count: int) -> list[tuple[str, list[str]]]:
    """Ids and what has changed."""
    found: list[tuple[str, list[str]]] = []
    number = ""
    async with asyncio.timeout(15):
        async for line in lines:
            if line.startswith("id: "):
                number = line.removeprefix("id: ")
            if line.startswith("data: "):
                found.append((number, json.loads(line.removeprefix("data: "))["changed"]))
                if len(found) == count:
                    break
    return found


async def test_events_resume_where_they_stopped(foreign: ArqRedis, reader: Reader) -> None:
    async def lines(last: str | None) -> Any:
        async for part in stream(reader, Glance(), last):
            for line in part.decode().splitlines():
                yield line

    await foreign.zadd("arq:dashboard:queues", {QUEUE: 1})
    [(first, kinds)] = await take(lines(None), 1)
    assert kinds == ["jobs", "queues", "workers"]
    await foreign.enqueue_job("add", 1)
    # Whoever was away is told at once, of what has changed and nothing else.
    [(second, kinds)] = await take(lines(first), 1)
    assert kinds == ["queues"]
    await foreign.incr("arq:dashboard:revision")
    [(_, kinds)] = await take(lines(second), 1)
    assert kinds == ["jobs"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await take(lines((await take(lines(None), 1))[0][0]), 1)
