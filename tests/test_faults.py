"""What is heard and told when something dies. What is kept then, the experiments of tests/faults show."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis

from server import events
from server.channels import Hub, Subscriber
from server.sealing import files
from tests.faults.sites import Site, is_ready, readiness, running_site, started
from tests.people import PATIENCE_S, code, good, person, until
from tests.test_requests import begin

pytestmark = pytest.mark.thorough

# Within which all that was acknowledged is sealed once everything is up again.
WHOLE_WITHIN_S = 30
# Within which the sweep tells what a dead process could not tell any more.
ANNOUNCED_WITHIN_S = 15


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site() as running:
        yield running


@pytest.fixture
async def postgres(site: Site) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(site.settings.database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def redis(site: Site) -> AsyncIterator[Redis]:
    async with Redis.from_url(str(site.settings.redis_url)) as client:
        yield client


def text(group_id: str) -> dict[str, str]:
    return {"group_id": group_id, "title": "A title", "content": "is under the mat"}


async def test_what_an_api_acknowledged_just_before_it_died_is_sealed_and_announced(
    site: Site, postgres: asyncpg.Connection, redis: Redis
) -> None:
    api = await site.whole()
    async with Hub(redis) as hub, person(api.url) as alice, person(api.url, "Carol") as carol:
        story = await begin(alice, carol)
        ear = Subscriber()
        await hub.join(ear, [events.user_channel(alice.id)])
        # Redis does not answer, so the API can neither enqueue nor publish before it is killed.
        valkey = site.engines.valkey.process
        assert valkey
        valkey.send_signal(signal.SIGSTOP)
        try:
            asked = await carol.ask(story.post_id)
            post = good(await alice.post("/posts", text(story.group_id)), 201)
            api.kill()
        finally:
            valkey.send_signal(signal.SIGCONT)
        told_of = await postgres.fetchval("SELECT count(*) FROM outbox WHERE frame LIKE $1", f"%{asked['id']}%")
        assert told_of == 1, "it was not announced"

        async with asyncio.timeout(ANNOUNCED_WITHIN_S):
            while asked["id"] not in str(await ear.get()):
                pass
        await site.whole()
        assert alice.open(await alice.wait_until_sealed(post["id"], WHOLE_WITHIN_S))[1] == "is under the mat"
        await until(lambda: is_announced(postgres))


async def is_announced(postgres: asyncpg.Connection) -> bool:
    return not await postgres.fetchval("SELECT EXISTS (SELECT 1 FROM outbox)")


async def test_open_sockets_hear_what_happened_while_redis_was_dead(site: Site) -> None:
    api = await site.whole()
    async with person(api.url) as alice, person(api.url, "Carol") as carol:
        story, other, third_id = await begin(alice, carol), await begin(alice, carol), await alice.found_group()
        async with alice.listen() as author, carol.listen() as requester:
            site.engines.valkey.kill()
            # Nobody waits for it, or is refused anything but a ticket.
            asked = await carol.ask(story.post_id)
            await alice.add(third_id, carol)
            assert_unavailable(await alice.post("/ws-tickets"))
            post = good(await alice.post("/posts", text(story.group_id)), 201)
            said = await readiness(api.url)
            assert (said["status"], said["postgres"], said["redis"]) == ("unready", "ok", "away")
            await started(site.engines.valkey)

            await author.hear("read_request.created", request_id=asked["id"])
            await alice.approve(story.post, asked)
            await requester.has_heard("read_request.approved", request_id=asked["id"])
            # What is not replayed is told by the sweep.
            await requester.has_heard("group.member_added", group_id=third_id)
            assert carol.open(await carol.wait_until_sealed(post["id"], WHOLE_WITHIN_S))[1] == "is under the mat"
            await requester.has_heard("post.sealed", post_id=post["id"])
            later = await carol.ask(other.post_id)
            heard = await author.hear("read_request.created", request_id=later["id"])
            assert "replayed" not in heard
        await until(lambda: is_ready(api.url))


NAME = {"X-Filename": "UTF-8''mat"}


async def test_big_group_and_its_file_are_sealed_once_though_the_worker_died_in_the_middle(
    site: Site, postgres: asyncpg.Connection
) -> None:
    api = await site.whole()
    async with person(api.url) as alice:
        group_id = await alice.found_group()
        public_keys = [os.urandom(31) + b"\x01" for _ in range(2999)]
        await postgres.execute(
            'INSERT INTO user_keys ("user", public_key, verify_key, proof, label)'
            " SELECT $1, k, $3, $4, 'key' FROM unnest($2::bytea[]) k",
            *(alice.id, public_keys, bytes(32), bytes(64)),
        )
        uploaded = good(await alice.client.post("/attachments", content=b"below the mat", headers=NAME), 201)
        worker = await site.with_worker()
        body = text(group_id) | {"attachments": [uploaded["id"]]}
        post_id = good(await alice.post("/posts", body), 201)["id"]
        await until(lambda: is_being_sealed(postgres, post_id))
        worker.kill()
        assert await alice.access(post_id) == "sealing", "the worker was quicker"

        await site.whole()
        begun = time.monotonic()
        post = await alice.wait_until_sealed(post_id, WHOLE_WITHIN_S)
        assert time.monotonic() - begun < WHOLE_WITHIN_S
        assert await postgres.fetchval("SELECT count(*) FROM post_keys WHERE post = $1", UUID(post_id)) == 3000
        [file] = alice.open_document(post)[1].attachments
        stream = (await alice.get(f"/attachments/{uploaded['id']}")).content
        opener = files.FileOpener(file.key, file.id, file.hash, file.size)
        assert opener.update(stream) + opener.finish() == b"below the mat"
        assert await postgres.fetchval("SELECT draft_key FROM attachments WHERE id = $1", file.id) is None


async def is_being_sealed(postgres: asyncpg.Connection, post_id: str) -> bool:
    """Whether somebody has locked the post."""
    return bool(await postgres.fetchval("SELECT xmax <> '0'::xid FROM posts WHERE id = $1", UUID(post_id)))


def assert_unavailable(answer: httpx.Response) -> None:
    assert code(answer) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1


async def test_api_that_is_told_to_stop_says_so_to_its_sockets_and_stops(site: Site) -> None:
    api = await site.whole()
    async with person(api.url) as alice, alice.listen() as first, alice.listen() as second:
        api.send(signal.SIGTERM)
        assert await first.closed() == 1012
        assert await second.closed() == 1012
        assert await api.wait(PATIENCE_S) in {0, -signal.SIGTERM}
