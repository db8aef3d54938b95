from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.javascript.node import Node, check_version, install_packages, running_node, write_page
from tests.javascript.scripted import Scripted, arrive


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder with the code of the page, what it imports, and the driver beside it."""
    check_version()
    # pytest's cache outlives the run; it can be switched off.
    cache = getattr(pytestconfig, "cache", None)
    modules = install_packages(cache.mkdir if cache else tmp_path_factory.mktemp)
    folder = tmp_path_factory.mktemp("javascript")
    write_page(folder, modules)
    return folder


@pytest.fixture(scope="session")
async def node(page: Path) -> AsyncIterator[Node]:
    async with running_node(page) as running:
        yield running


@pytest.fixture
async def bo(node: Node, server: str) -> AsyncIterator[Scripted]:
    """Somebody new whose client is the page's; the server is honest again in the end."""
    yield await arrive(node, server, "Bo")
    await node.call("reset")
