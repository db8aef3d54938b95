"""The least that a server of this stack can do for a call: Litestar, one pool of asyncpg, no check of anything.

`python -m benchmarks.bare PORT`, with what it needs in the environment, answers the calls that ours are held against.
Everything around the handlers is as `server.serving` has it.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import uuid_utils.compat
import uvicorn
from litestar import Litestar, Response, WebSocket, get, post, websocket
from litestar.exceptions import WebSocketDisconnect
from redis.asyncio import Redis

from benchmarks.running import PROJECT, Running, free_port, process_of

# The same rows as `GET /posts` and `GET /posts/{id}` show, for one caller with one key.
COLUMNS = (
    'p.id, p."group", p.author, p.status, p.sealed_by, p.heading, p.content_hash, p.commitment, p.signature,'
    " p.signing_key, p.failure, p.created_at, p.sealed_at, k.public_key, k.encrypted_key"
)
KEY = "LEFT JOIN post_keys k ON k.public_key = $1 AND k.post = p.id"
PAGE = f'SELECT {COLUMNS} FROM posts p {KEY} WHERE p."group" = $2 ORDER BY p.created_at DESC, p.id DESC LIMIT 51'  # noqa: S608 - constants
ONE = f"SELECT {COLUMNS}, p.content FROM posts p {KEY} WHERE p.id = $2"  # noqa: S608 - constants
# The same rows that `POST /posts` leaves behind.
POST = (
    'INSERT INTO posts (id, "group", author, status, sealed_by, draft, request_mac)'
    " VALUES ($1, $2, $3, 'pending', 'server', $4, $5)"
)
AUDIT = "INSERT INTO audit_log (actor, action, \"group\", ids) VALUES ($1, 'post.created', $2, $3)"

CHANNEL = "bare:frames"
DRAFT, MAC = os.urandom(700), os.urandom(32)


@asynccontextmanager
async def running_bare(running: Running, pages: dict[str, bytes], **ids: str) -> AsyncIterator[str]:
    """The URL of a bare API on the engines of `running`; `pages` are the bodies that it answers with."""
    port = free_port()
    folder = running.data_dir.parent
    for name, body in pages.items():
        (folder / f"bare-{name}").write_bytes(body)
    environ = os.environ | {
        "BARE_FOLDER": str(folder),
        "BARE_DATABASE_URL": running.database_url,
        "BARE_REDIS_URL": running.redis_url,
        **{f"BARE_{name.upper()}": one for name, one in ids.items()},
    }
    url = f"http://127.0.0.1:{port}"
    async with process_of([sys.executable, "-m", "benchmarks.bare", str(port)], environ, PROJECT, f"{url}/live"):
        yield url


async def keep_session(_: Any) -> None:
    """asyncpg's pool as it comes runs one more statement after each query, which nothing here needs."""


def make_app() -> Litestar:
    key_id, group_id, post_id, user_id = (
        UUID(os.environ.get(f"BARE_{name}", "00000000-0000-0000-0000-000000000000"))
        for name in ("KEY", "GROUP", "POST", "USER")
    )
    folder = Path(os.environ["BARE_FOLDER"])
    page, one = ((folder / f"bare-{name}").read_bytes() for name in ("page", "one"))
    held: dict[str, Any] = {}
    sockets: set[WebSocket[Any, Any, Any]] = set()

    async def tell() -> None:
        async with held["redis"].pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(CHANNEL)
            async for message in pubsub.listen():
                for socket in list(sockets):
                    await socket.send_text(message["data"].decode())

    @asynccontextmanager
    async def run(_: Litestar) -> AsyncIterator[None]:
        redis = Redis.from_url(os.environ["BARE_REDIS_URL"])
        async with asyncpg.create_pool(
            os.environ["BARE_DATABASE_URL"],
            min_size=10,
            max_size=10,
            server_settings={"jit": "off"},
            reset=keep_session,
        ) as pool:
            held.update(pool=pool, redis=redis)
            telling = asyncio.create_task(tell())
            yield
            telling.cancel()
        await redis.aclose()

    @get("/live")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @get("/page")
    async def get_page() -> Response[bytes]:
        await held["pool"].fetch(PAGE, key_id, group_id)
        return Response(page, media_type="application/json")

    @get("/one")
    async def get_one() -> Response[bytes]:
        await held["pool"].fetchrow(ONE, key_id, post_id)
        return Response(one, media_type="application/json")

    @post("/insert")
    async def insert(data: dict[str, Any]) -> Response[bytes]:
        new_id = uuid_utils.compat.uuid7()
        async with held["pool"].acquire() as connection, connection.transaction():
            await connection.execute(POST, new_id, group_id, user_id, DRAFT, MAC)
            await connection.execute(AUDIT, user_id, group_id, f'{{"post_id":"{new_id}","sealed_by":"server"}}')
        await held["redis"].zadd("bare:queue", {str(new_id): len(data)})
        return Response(one, media_type="application/json", status_code=201)

    @websocket("/ws")
    async def listen(socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        sockets.add(socket)
        try:
            with contextlib.suppress(WebSocketDisconnect):
                while True:
                    await socket.receive_text()
        finally:
            sockets.discard(socket)

    return Litestar([live, get_page, get_one, insert, listen], lifespan=[run], openapi_config=None, logging_config=None)


if __name__ == "__main__":
    uvicorn.run(
        make_app(),
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        access_log=False,
        log_level="warning",
        server_header=False,
    )
