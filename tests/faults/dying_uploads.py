"""Files on their way up and down while the API or the worker is killed, or the object store can't be reached.

The store is an S3 server in a process of its own, behind a balancer that cuts its connections.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import NamedTuple

import asyncpg
import httpx
import obstore
import uuid_utils.compat

from server import objects
from server.sealing import files
from server.sealing.texts import Document
from server.settings import Settings
from tests.faults.balancer import Balancer
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import SEALED_WITHIN_S, Site
from tests.people import Person, good, person, until
from tests.test_objects import S3, s3_environment

AT_ONCE = 4
MAX_BYTES = 20_000_000
TRIED_FOR_S = 60
URL = "s3://bucket/files"

Fault = Callable[[], Awaitable[None]]


class File(NamedTuple):
    id: str
    content: bytes
    is_kept_on: bool
    """Whether its client tries again; of the others nothing may be left if they were not answered."""


async def run(site: Site, draw: Draw) -> Outcome:
    outcome = Outcome("files-under-faults")
    async with AsyncExitStack() as stack:
        s3 = S3(site.logs / "s3.log")
        stack.callback(s3.process.wait)
        stack.callback(s3.process.kill)
        await s3.ready()
        balancer = await stack.enter_async_context(Balancer([s3.port]))
        with s3_environment(balancer.url):
            stack.enter_context(with_store(site))
            api = await site.whole()
            alice = await stack.enter_async_context(person(api.url))
            bob = await stack.enter_async_context(person(api.url, "Bob"))
            postgres = await site.postgres()
            group_id = await alice.found_group(bob)
            for _ in range(draw.rounds):
                for fault in faults(site, balancer, draw):
                    outcome.rounds += 1
                    await play(outcome, alice, bob, group_id, fault, draw)
            await check_orphans(outcome, postgres)
            await postgres.close()
    return outcome


@contextmanager
def with_store(site: Site) -> Iterator[None]:
    """Its processes, which are all started anew, use the store."""
    site.stop()
    site.more_environ["OBJECT_STORE_URL"] = URL
    try:
        yield
    finally:
        del site.more_environ["OBJECT_STORE_URL"]
        site.stop()


def faults(site: Site, balancer: Balancer, draw: Draw) -> list[Fault]:
    """What strikes in a round, one after the other."""

    async def kill_api() -> None:
        assert site.api
        site.api.kill()
        await asyncio.sleep(draw.chance.uniform(0, 0.5))
        await site.with_api()

    async def kill_worker() -> None:
        site.without_worker()
        await asyncio.sleep(draw.chance.uniform(0, 0.5))
        await site.with_worker()

    async def cut_store() -> None:
        balancer.cut()
        await asyncio.sleep(draw.chance.uniform(0.1, 2))
        balancer.mend()

    return draw.chance.sample([kill_api, kill_worker, cut_store], draw.of(3))


async def play(outcome: Outcome, alice: Person, bob: Person, group_id: str, fault: Fault, draw: Draw) -> None:
    """The fault strikes once while files go up, and once while they come down."""
    sent = [
        File(str(uuid_utils.compat.uuid7()), draw.chance.randbytes(draw.of(draw.chance.randrange(MAX_BYTES))), kept)
        for kept in [True] * (AT_ONCE - 1) + [False]
    ]
    sending = [asyncio.create_task(upload(alice, file)) for file in sent]
    await asyncio.sleep(draw.chance.uniform(0, 0.3))
    await fault()
    struck_at = time.monotonic()
    found = dict(zip(sent, await asyncio.gather(*sending), strict=True))
    outcome.lost += [f"file {file.id} could not be sent" for file in sent if file.is_kept_on and not found[file]]
    outcome.healed(time.monotonic() - struck_at, TRIED_FOR_S)
    there = [file for file in sent if found[file]]
    outcome.acknowledged += len(there)
    outcome.wrong += [f"file {file.id} is there in part" for file in sent if not await is_whole_or_absent(alice, file)]
    post_id = await post_with(alice, group_id, there)
    reading = [asyncio.create_task(download(bob, post_id, file)) for file in there]
    await asyncio.sleep(draw.chance.uniform(0, 0.1))
    await fault()
    outcome.lost += [
        f"file {file.id} came down {what}"
        for file, what in zip(there, await asyncio.gather(*reading), strict=True)
        if what
    ]


async def upload(alice: Person, file: File) -> bool:
    """Again and again under its id, for a minute, if it is kept on."""
    deadline = time.monotonic() + (TRIED_FOR_S if file.is_kept_on else 0)
    while True:
        try:
            answer = await alice.client.post(
                f"/attachments?id={file.id}", content=file.content, headers={"X-Filename": "UTF-8''plan"}, timeout=60
            )
            if answer.status_code in {200, 201}:
                return True
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.2)


async def is_whole_or_absent(alice: Person, file: File) -> bool:
    path, first_byte = f"/attachments/{file.id}", {"Range": "bytes=0-0"}
    async with asyncio.timeout(TRIED_FOR_S):
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await alice.get(path, headers=first_byte)
                if answer.status_code == 404:
                    return True
                if answer.status_code == 206:
                    whole = files.sealed_size(len(file.content))
                    return answer.headers["content-range"] == f"bytes 0-0/{whole}"
            await asyncio.sleep(0.1)


async def post_with(alice: Person, group_id: str, there: list[File]) -> str:
    post_id = str(uuid_utils.compat.uuid7())
    body = {
        "id": post_id,
        "group_id": group_id,
        "title": "Files",
        "content": "See there",
        "attachments": [file.id for file in there],
    }
    good(await alice.post("/posts", body), 201)
    await alice.wait_until_sealed(post_id, SEALED_WITHIN_S)
    return post_id


async def download(bob: Person, post_id: str, file: File) -> str:
    """What is wrong with it; nothing, if it opens as it was sent. What breaks off is asked for from there on."""
    stream = b""
    deadline = time.monotonic() + TRIED_FOR_S
    size = files.sealed_size(len(file.content))
    while len(stream) < size:
        if time.monotonic() > deadline:
            return f"as {len(stream)} bytes of {size}"
        try:
            headers = {"Range": f"bytes={len(stream)}-"} if stream else {}
            async with bob.client.stream("GET", f"/attachments/{file.id}", headers=headers, timeout=60) as answer:
                if answer.status_code in {200, 206}:
                    async for block in answer.aiter_bytes():
                        stream += block
        except httpx.TransportError:
            await asyncio.sleep(0.2)
    document = await document_of(bob, post_id)
    [attached] = [one for one in document.attachments if str(one.id) == file.id]
    opener = files.FileOpener(attached.key, attached.id, attached.hash, attached.size)
    return "" if opener.update(stream) + opener.finish() == file.content else "as another"


async def document_of(bob: Person, post_id: str) -> Document:
    async with asyncio.timeout(TRIED_FOR_S):
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await bob.get(f"/posts/{post_id}")
                if answer.status_code == 200:
                    return bob.open_document(answer.json())[1]
            await asyncio.sleep(0.1)


async def check_orphans(outcome: Outcome, postgres: asyncpg.Connection) -> None:
    """What is due in a day is due now: after that there is an object for each attachment, and no other."""
    store = objects.open_store(Settings(object_store_url=URL))
    await postgres.execute("UPDATE object_deletions SET due_at = now()")

    async def are_gone() -> bool:
        return not await postgres.fetchval("SELECT count(*) FROM object_deletions")

    await until(are_gone, SEALED_WITHIN_S)
    rows = await postgres.fetch("SELECT object_key, size FROM attachments")
    expected = {row["object_key"]: files.sealed_size(row["size"]) for row in rows}
    found = {one["path"]: one["size"] for one in await obstore.list(store).collect_async()}
    outcome.lost += [f"object {key} is not there" for key in expected.keys() - found.keys()]
    outcome.wrong += [f"object {key} is an orphan" for key in found.keys() - expected.keys()]
    outcome.wrong += [f"object {key} is cut short" for key in expected.keys() & found if expected[key] != found[key]]
    outcome.notes.append(f"{len(found)} objects, none without its file")
