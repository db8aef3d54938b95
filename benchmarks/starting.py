"""B11: how long `make run` takes, with an empty data folder and with one that was used, and what it holds in memory."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.filling import make_group
from benchmarks.load import load
from benchmarks.measuring import Result, resident_mebibytes, result
from benchmarks.running import PROJECT, free_port, running_server, wait_until_ready

ROUNDS = 3
LOAD_S = 4


async def main() -> list[Result]:
    cold, warm = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="sb") as folder:
            Path(folder).chmod(0o711)  # noqa: ASYNC240 - nothing else runs
            for found in (cold, warm):
                found.append(await seconds_to_ready(Path(folder) / "data"))
    async with running_server() as running, httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        group = await make_group(running, client, 10)
        await asyncio.sleep(2)
        rest = resident_mebibytes(running, "API", "worker")
        headers = {"Authorization": client.headers["Authorization"], "Content-Type": "application/json"}
        body = json.dumps({"group_id": str(group.id), "title": "A title", "content": "Some lines of text. " * 20})
        await load(f"{running.url}/posts", 16, LOAD_S, method="POST", headers=headers, body=body)
        used = resident_mebibytes(running, "API", "worker")
    return [
        result("B11", "make run to ready, empty folder", "s", cold, target="<= 4"),
        result("B11", "make run to ready, again", "s", warm, target="<= 2.5"),
        result("B11", "memory of API and worker, at rest", "MiB", [rest], target="<= 180"),
        result("B11", "memory of API and worker, sealing", "MiB", [used], target="<= 180"),
    ]


async def seconds_to_ready(data_dir: Path) -> float:
    port = free_port()
    environ = os.environ | {"PORT": str(port), "DATA_DIR": str(data_dir)}
    # No program of its own is in between: make hands over to `secureblogs up`.
    command = ["make", "-s", "run", f"PORT={port}", f"DATA_DIR={data_dir}"]
    began = time.perf_counter()
    process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own command, and nothing else runs
        command, env=environ, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        await wait_until_ready(f"http://127.0.0.1:{port}/health/ready", process)
        return time.perf_counter() - began
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await asyncio.to_thread(process.wait, 30)
