"""An API that a proxy shows under a path: every address works with the path and without it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from server.settings import Settings
from tests.people import code, good, open_socket, person, until
from tests.processes import Api, environ_of, running_api_process

PREFIX = "/hidden/posts"


@pytest.fixture(scope="module")
async def shown(settings: Settings, server: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    log = tmp_path_factory.mktemp("shown") / "log"
    environ = environ_of(
        settings, ROOT_PATH=PREFIX + "/", TRUSTED_PROXIES="127.0.0.1", PUBLIC_URL="https://example.org"
    )
    async with running_api_process(environ, log) as api:
        yield api


@pytest.mark.parametrize("prefix", [PREFIX, ""])
async def test_calls_and_sockets_work_with_the_path_and_without_it(shown: Api, prefix: str) -> None:
    async with person(shown.url + prefix) as alice:
        group_id = await alice.found_group()
        body = {"group_id": group_id, "title": "A title", "content": "Some text"}
        answer = await alice.post("/posts", body)
        assert answer.headers["Location"] == f"{PREFIX}/posts/{good(answer, 201)['id']}"
        await alice.wait_until_sealed(answer.json()["id"])
        async with open_socket(shown.url + prefix, "", {"Authorization": f"Bearer {alice.token}"}) as listener:
            assert (await listener.next())["type"] == "connection.accepted"


async def test_what_only_begins_like_the_path_is_not_there(shown: Api) -> None:
    async with httpx.AsyncClient(base_url=shown.url) as client:
        for path in (f"{PREFIX}x/me", f"{PREFIX}{PREFIX}/me", "/hidden/me", f"{PREFIX}/nothing"):
            assert code(await client.get(path)) == (404, "route_not_found")
        assert code(await client.get(f"{PREFIX}/me")) == (401, "unauthenticated")


async def test_page_of_the_api_finds_its_files(shown: Api) -> None:
    async with httpx.AsyncClient(base_url=shown.url) as client:
        page = (await client.get(f"{PREFIX}/schema")).text
        script = (await client.get(f"{PREFIX}/schema/page.js")).text
        assert f'src="{PREFIX}/schema/page.js"' in page
        assert f'"{PREFIX}/schema/openapi.json"' in script
        document = good(await client.get(f"{PREFIX}/schema/openapi.json"))
    assert document["servers"] == [{"url": f"https://example.org{PREFIX}"}]


async def test_only_a_trusted_proxy_says_who_is_asking(shown: Api, settings: Settings, tmp_path: Path) -> None:
    async def client_of(api: Api, forwarded: str) -> str:
        path = f"/{uuid4()}"
        async with httpx.AsyncClient(base_url=api.url) as client:
            await client.get(path, headers={"X-Forwarded-For": forwarded})

        async def is_logged() -> bool:
            return any(line.get("path") == path for line in lines(api))

        await until(is_logged)
        [line] = [line for line in lines(api) if line.get("path") == path]
        return str(line["client"])

    assert await client_of(shown, "203.0.113.7") == "203.0.113.7"
    # What a client itself puts in front of what the proxy adds is not believed.
    assert await client_of(shown, "198.51.100.1, 203.0.113.7") == "203.0.113.7"
    async with running_api_process(environ_of(settings), tmp_path / "log") as alone:
        assert await client_of(alone, "203.0.113.7") == "127.0.0.1"


def lines(api: Api) -> list[dict[str, Any]]:
    return [json.loads(line) for line in api.log.read_text().splitlines()]
