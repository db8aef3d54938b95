"""`/metrics`, as Prometheus reads it, of an API in a process of its own."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.settings import Settings
from tests.people import code, good, person, until
from tests.processes import environ_of, running_api_process
from tests.redis_server import running_redis

TOKEN = "m" * 32


@pytest.fixture(scope="module")
async def measured(
    settings: Settings, server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx.AsyncClient]:
    """Another API of the same installation, whose `/metrics` opens with TOKEN."""
    environ = environ_of(settings, METRICS_TOKEN=TOKEN)
    async with (
        running_api_process(environ, tmp_path_factory.mktemp("measured") / "log") as api,
        httpx.AsyncClient(base_url=api.url, trust_env=False) as client,
    ):
        yield client


async def figures(client: httpx.AsyncClient) -> dict[str, float]:
    """Samples by name and labels, such as `secureblogs_posts{status=pending}`."""
    answer = await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


async def test_closed_unless_the_settings_open_it(server: str, measured: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=server) as closed:
        with_token = await closed.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert code(with_token) == (404, "route_not_found")
        assert with_token.json() == (await closed.get("/nothing")).json()
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {TOKEN}m"}, {"Authorization": TOKEN}):
        assert code(await measured.get("/metrics", headers=headers)) == (401, "unauthenticated")


async def test_no_user_reads_them(measured: httpx.AsyncClient) -> None:
    async with person(str(measured.base_url)) as alice:
        assert code(await alice.get("/metrics")) == (401, "unauthenticated")


async def test_posts_queue_and_pool_are_told(measured: httpx.AsyncClient) -> None:
    before = await figures(measured)
    async with person(str(measured.base_url)) as alice:
        group_id = await alice.found_group()
        for _ in range(3):
            await alice.publish(group_id)

    async def counted() -> bool:
        after = await figures(measured)
        return (
            after["secureblogs_posts{status=sealed}"] >= before["secureblogs_posts{status=sealed}"] + 3
            and after["secureblogs_sealing_seconds_count"] >= before["secureblogs_sealing_seconds_count"] + 3
        )

    await until(counted)
    after = await figures(measured)
    assert after["secureblogs_sealing_seconds_sum"] > before["secureblogs_sealing_seconds_sum"]
    assert after["secureblogs_sealing_seconds_bucket{le=+Inf}"] == after["secureblogs_sealing_seconds_count"]
    assert after["secureblogs_workers"] >= 1
    assert after["secureblogs_postgres_up"] == after["secureblogs_redis_up"] == 1
    assert after["secureblogs_database_connections_open"] <= after["secureblogs_database_connections_max"]
    assert {"secureblogs_oldest_pending_seconds", "secureblogs_jobs_queued", "secureblogs_events_unpublished"} <= set(
        after
    )


async def test_sockets_are_counted(measured: httpx.AsyncClient) -> None:
    async with person(str(measured.base_url)) as alice:
        before = (await figures(measured))["secureblogs_websockets"]
        async with alice.listen():
            assert (await figures(measured))["secureblogs_websockets"] == before + 1

        async def gone() -> bool:
            return (await figures(measured))["secureblogs_websockets"] == before

        await until(gone)


async def test_requests_are_counted_by_template_and_never_by_what_somebody_typed(measured: httpx.AsyncClient) -> None:
    async with person(str(measured.base_url)) as alice:
        group_id = await alice.found_group()
        good(await alice.get(f"/groups/{group_id}"))
        for path in ("/nothing/secret-word", f"/groups/{group_id}/secret-word", "/download/secret-word"):
            await alice.get(path)
    text = (await measured.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})).text
    assert "secret-word" not in text
    assert group_id not in text
    assert re.search(r'secureblogs_http_requests_total\{[^}]*path="/groups/\{group_id', text), text


async def test_it_says_that_redis_is_away(settings: Settings, server: str, tmp_path: Path) -> None:
    with running_redis() as redis:
        environ = environ_of(settings, METRICS_TOKEN=TOKEN, REDIS_URL=redis.url)
        async with running_api_process(environ, tmp_path / "log") as api, httpx.AsyncClient(base_url=api.url) as client:
            assert (await figures(client))["secureblogs_redis_up"] == 1
            redis.kill()
            told = await figures(client)
            assert told["secureblogs_redis_up"] == 0
            assert told["secureblogs_postgres_up"] == 1
