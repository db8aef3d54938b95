"""Somebody else's project: the worker and the application of docs/dashboard.md, word for word."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from arq.connections import ArqRedis

from tests.dashboard.browsing import ROOT, ended, free_port
from tests.dashboard.conftest import until
from tests.redis_server import RedisServer

BLOCKS = re.compile(r"`(\w+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)


def start(folder: Path, redis: RedisServer, *words: str) -> "subprocess.Popen[bytes]":
    surroundings = os.environ | {"REDIS_URL": redis.url, "OPERATOR": "ada", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *words], cwd=folder, env=surroundings)


@pytest.mark.thorough
async def test_documented_worker_and_application_work(
    foreign: ArqRedis, own_redis: RedisServer, tmp_path: Path
) -> None:
    written = dict(BLOCKS.findall((ROOT / "docs" / "dashboard.md").read_text(encoding="utf-8")))
    assert written.keys() == {"worker.py", "app.py"}
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    port = str(free_port())
    await foreign.enqueue_job("send_mail", "ada@example.org", _queue_name="arq:queue")
    with (
        ended(start(tmp_path, own_redis, "worker.py")),
        ended(start(tmp_path, own_redis, "-m", "uvicorn", "app:app", "--port", port, "--log-level", "warning")),
    ):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/dashboard") as client:

            async def is_refused() -> bool:
                try:
                    return (await client.get("/")).status_code == 401
                except httpx.TransportError:
                    return False

            await until(is_refused)
            client.headers["X-Operator"] = "ada"

            async def is_done() -> bool:
                found = await client.get("/api/jobs", params={"state": "done", "queue": "arq:queue"})
                return [job["function"] for job in found.json()["items"]] == ["send_mail"]

            await until(is_done)
            page = await client.get("/jobs", params={"state": "done"})
            assert "send_mail" in page.text
            assert "ada@example.org" not in page.text
