"""B9: logins a second while others read a page of 50 posts, and what those notice of it.

The limit is Argon2id on all cores, as the server takes it. Reading goes on at a steady pace, one page every 20 ms.
"""

import asyncio
import json
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.calling import Caller
from benchmarks.filling import fill_group, make_group
from benchmarks.load import Load, load
from benchmarks.measuring import Cores, Result, in_turns, percentile, result
from benchmarks.running import running_server
from server.sealing.passwords import hash_password

SECONDS = 3
HASHES = 40
AT_ONCE = 4
PAGE_EVERY_S = 0.02


async def main() -> list[Result]:
    async with running_server() as running, httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        group = await make_group(running, client, 10)
        await fill_group(running, group, 1000, 10)
        login = {"email": f"{secrets.token_hex(8)}@example.org", "password": secrets.token_urlsafe()}
        (await client.post("/sign-up", json={"name": "Bench", **login})).raise_for_status()
        reader = Caller(running.url, client.headers["Authorization"])
        page = f"/posts?group_id={group.id}"
        quiet: list[float] = []
        busy: list[float] = []
        used: dict[str, float] = {}

        async def read_for(seconds: float) -> None:
            quiet.extend(await read_pages(reader, page, asyncio.create_task(asyncio.sleep(seconds))))

        async def log_in() -> Load:
            nonlocal used
            await read_for(1)
            cores = Cores(running)
            headers = {"Content-Type": "application/json"}
            logging_in = asyncio.create_task(
                load(f"{running.url}/login", AT_ONCE, SECONDS, method="POST", headers=headers, body=json.dumps(login))
            )
            busy.extend(await read_pages(reader, page, logging_in))
            used = cores.used()
            return await logging_in

        async def hashes_a_second() -> float:
            return await asyncio.to_thread(hash_on_all_cores)

        await reader.call("GET", page)
        figures, limits = await in_turns(log_in, hashes_a_second)
        reader.close()
    rates = [one.rate for one in figures]
    return [
        result("B9", "logins while pages are read", "logins/s", rates, limits, ">= 0.8", used),
        result("B9", "p99 of a page meanwhile", "ms", [percentile(busy, 99)], percentile(quiet, 99), "<= 3"),
    ]


async def read_pages(caller: Caller, path: str, meanwhile: asyncio.Task[object]) -> list[float]:
    """Milliseconds of each."""
    taken = []
    while not meanwhile.done():
        began = time.perf_counter()
        await caller.call("GET", path)
        seconds = time.perf_counter() - began
        taken.append(seconds * 1000)
        await asyncio.sleep(max(0.0, PAGE_EVERY_S - seconds))
    return taken


def hash_on_all_cores() -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(lambda _: hash_password("correct horse battery staple"), range(HASHES)))
    return HASHES / (time.perf_counter() - began)
