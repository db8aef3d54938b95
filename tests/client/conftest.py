from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.devices import Device, device
from tests.client.rewriting_server import Liar, lying


@pytest.fixture(autouse=True)
def no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave nothing in the keyring of whoever runs them."""
    monkeypatch.setenv("SECUREBLOGS_KEYRING", "off")


@pytest.fixture
async def anna(server: str, tmp_path: Path) -> AsyncIterator[Device]:
    async with device(server, "Anna", tmp_path / "anna") as someone:
        yield someone


@pytest.fixture
async def ben(server: str, tmp_path: Path) -> AsyncIterator[Device]:
    async with device(server, "Ben", tmp_path / "ben") as someone:
        yield someone


@pytest.fixture
async def cleo(server: str, tmp_path: Path) -> AsyncIterator[Device]:
    async with device(server, "Cleo", tmp_path / "cleo") as someone:
        yield someone


@pytest.fixture
async def liar(server: str) -> AsyncIterator[Liar]:
    async with lying(server) as one:
        yield one
