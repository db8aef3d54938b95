"""HEAD: what GET would say of itself, and nothing else of it."""

from pathlib import Path
from uuid import UUID

import httpx
import pytest

from server import administration, dashboard_access, database, jobs
from server.settings import Settings
from tests.people import Person, person
from tests.processes import environ_of, running_api_process
from tests.test_attachments import link, put_sealed

# These say when they were made.
OF_THE_MOMENT = {"date", "x-request-id"}


async def same_head(client: httpx.AsyncClient, path: str, **headers: str) -> httpx.Response:
    """The answer to HEAD, if it is that to GET without its body. A stream's chunks are of the body."""
    asked, got = await client.head(path, headers=headers), await client.get(path, headers=headers)
    ignored = OF_THE_MOMENT | {"transfer-encoding"}
    heads = [[(name, value) for name, value in one.headers.items() if name not in ignored] for one in (asked, got)]
    assert (asked.status_code, heads[0], asked.content) == (got.status_code, heads[1], b"")
    return asked


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health/live", 200),
        ("/me", 200),
        ("/posts/", 200),
        ("/me/export", 200),
        ("/schema", 200),
        ("/schema/openapi.json", 200),
        ("/posts?nothing=x", 422),
        ("/posts/none", 404),
        ("/nowhere", 404),
        ("/login", 405),
        ("/dashboard/api/overview", 403),
    ],
)
async def test_head_is_that_of_get(alice: Person, path: str, status: int) -> None:
    assert (await same_head(alice.client, path)).status_code == status


async def test_nobody_hears_401(server: str) -> None:
    async with httpx.AsyncClient(base_url=server) as nobody:
        assert (await same_head(nobody, "/me")).status_code == 401


async def test_what_may_be_got_may_be_asked_for_its_head(alice: Person) -> None:
    for path, methods in (("/me", {"OPTIONS", "GET", "HEAD", "PATCH"}), ("/login", {"OPTIONS", "POST"})):
        assert set((await alice.client.put(path)).headers["Allow"].split(", ")) == methods


async def test_stream_without_an_end_ends(alice: Person, database_pool: None) -> None:
    await administration.grant(None, alice.id)
    answer = await alice.client.head("/dashboard/events")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


async def test_file_tells_its_size_and_is_not_read(alice: Person, settings: Settings, database_pool: None) -> None:
    attachment_id, *_, stream = await put_sealed(alice, b"text" * 50_000)
    path = f"/attachments/{attachment_id}"
    answer = await same_head(alice.client, path)
    assert int(answer.headers["content-length"]) == len(stream)
    # A part is asked for by GET alone.
    assert (await alice.client.head(path, headers={"Range": "bytes=0-9"})).status_code == 200
    await same_head(alice.client, path, **{"If-None-Match": answer.headers["etag"]})
    place = await database.fetchval("SELECT object_key FROM attachments WHERE id = $1", UUID(attachment_id))
    (settings.data_dir / "objects" / place).unlink()
    assert (await alice.client.head(path)).status_code == 200


async def test_link_is_asked_for_its_head_without_being_used(server: str, alice: Person) -> None:
    attachment_id, *_, stream = await put_sealed(alice, b"text")
    made = await link(alice, attachment_id, max_downloads=1)
    async with httpx.AsyncClient(base_url=server) as nobody:
        for _ in range(3):
            answer = await nobody.head(made["path"])
            assert (answer.status_code, int(answer.headers["content-length"])) == (200, len(stream))
        assert (await nobody.get(made["path"])).content == stream
        assert (await nobody.head(made["path"])).status_code == 410


async def test_link_to_the_dashboard_is_not_used_up(alice: Person, settings: Settings, database_pool: None) -> None:
    redis = await jobs.create_pool(str(settings.redis_url))
    link_to_it = (await dashboard_access.make_link(redis, settings, alice.id)).removeprefix(settings.public_url)
    await redis.aclose(close_connection_pool=True)
    assert "set-cookie" not in (await alice.client.head(link_to_it)).headers
    assert "set-cookie" in (await alice.client.get(link_to_it)).headers


async def test_it_counts_as_a_request(settings: Settings, server: str, tmp_path: Path) -> None:
    token = "m" * 32
    environ = environ_of(settings, QUOTA_REQUESTS="3", METRICS_TOKEN=token)
    async with running_api_process(environ, tmp_path / "log") as api, person(api.url, keys=0) as someone:
        assert [(await someone.client.head("/me")).status_code for _ in range(4)] == [200, 200, 200, 429]
        told = await someone.get("/metrics", headers={"Authorization": f"Bearer {token}"})
    counted = 'secureblogs_http_requests_total{method="HEAD",path="/me",status_code="200"} 3.0'
    assert counted in told.text.splitlines(), told.text
    assert '"method":"HEAD","path":"/me"' in (tmp_path / "log").read_text()
