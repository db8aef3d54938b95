"""B1: a page of 50 posts, and one post whole, on one connection and on 32.

The limit is a Litestar handler that runs one prepared statement for the same rows and returns the same bytes, which it
has ready, without asking who is there.
"""

from functools import partial

import httpx

from benchmarks.bare import running_bare
from benchmarks.filling import fill_group, make_group
from benchmarks.load import load
from benchmarks.measuring import Cores, Result, in_turns, result
from benchmarks.running import running_server

SECONDS = 1
POSTS = 1000
MEMBERS = 50


async def main() -> list[Result]:
    async with running_server() as running, httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        group = await make_group(running, client, MEMBERS)
        [newest, *_] = await fill_group(running, group, POSTS, 10)
        paths = {"page": f"/posts?group_id={group.id}", "one": f"/posts/{newest}"}
        bodies = {name: (await client.get(path)).raise_for_status().content for name, path in paths.items()}
        headers = {"Authorization": client.headers["Authorization"]}
        ids = {"key": str(group.owner_key_id), "group": str(group.id), "post": str(newest)}
        results = []
        async with running_bare(running, bodies, **ids) as bare:
            for name, path in paths.items():
                for connections in (1, 32):
                    ours = partial(load, running.url + path, connections, SECONDS, headers=headers)
                    limit = partial(load, f"{bare}/{name}", connections, SECONDS)
                    await ours(), await limit()
                    cores = Cores(running)
                    used = await ours(), cores.used()
                    figures, limits = await in_turns(ours, limit)
                    title = {"page": "a page of 50 posts", "one": "one post"}[name]
                    results.append(
                        result(
                            "B1",
                            f"{title}, {connections} connection{'s' if connections > 1 else ''}",
                            "req/s",
                            [one.rate for one in figures],
                            [one.rate for one in limits],
                            ">= 0.7",
                            used[1],
                        )
                    )
        return results
