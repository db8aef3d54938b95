"""B10: a file of 1 GiB up and down, sealed by the server and by its author.

The limit is bare secretstream and one copy of the file on the disk where the server keeps it, one after the other.
"""

import os
import secrets
import time
from pathlib import Path

import httpx

from benchmarks import files
from benchmarks.measuring import Peak, Result, parts_of, result
from benchmarks.running import Running, running_server, sign_up

MEBIBYTES = 1024
ROUNDS = 2
BLOCK_BYTES = 1 << 20


async def main() -> list[Result]:
    block = secrets.token_bytes(BLOCK_BYTES)
    rates: dict[str, list[float]] = {}
    limits: list[float] = []
    async with running_server() as running, httpx.AsyncClient(base_url=running.url, timeout=600) as client:
        await sign_up(client)
        (await client.get("/me")).raise_for_status()
        [api] = [process for kind, process in parts_of(running) if kind == "API"]
        idle = api.memory_info().rss / 2**20
        with Peak(api) as peak:
            for _ in range(ROUNDS):
                limits.append(MEBIBYTES / (files.seal_bare(block, MEBIBYTES) + write_bare(running, block)))
                for name, up, down in (
                    await files.by_server(client, block, MEBIBYTES),
                    await files.by_author(client, block, MEBIBYTES),
                ):
                    rates.setdefault(f"up, sealed by the {name}", []).append(MEBIBYTES / up)
                    rates.setdefault(f"down, sealed by the {name}", []).append(MEBIBYTES / down)
    return [
        *(result("B10", f"1 GiB {name}", "MiB/s", found, limits, ">= 0.6") for name, found in rates.items()),
        result("B10", "memory over idle", "MiB", [peak.mebibytes - idle], target="<= 64"),
    ]


def write_bare(running: Running, block: bytes) -> float:
    """Seconds to write as much to a file, to the disk and not to memory alone."""
    path = Path(running.data_dir) / "bare"
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(MEBIBYTES):
            file.write(block)
        os.fsync(file.fileno())
    taken = time.perf_counter() - began
    path.unlink()
    return taken
