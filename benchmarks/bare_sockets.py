"""WebSockets without anything around them: `python -m benchmarks.bare_sockets broadcast PORT`, or `… uvicorn PORT`.

`broadcast` is the websockets library alone: `GET /go?30` sends 30 frames to all who are connected. `uvicorn` accepts
and reads, and pings as often as we do.
"""

import asyncio
import http
import sys
from typing import Any

import uvicorn
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

PING_EVERY_S = 25.0
READY_PATH, GO = "/live", "/go"

# As long as `post.sealed` is.
FRAME = '{"type":"post.sealed","event_id":"%s","post_id":"%s","group_id":"%s","author_id":"%s"}' % (("x" * 36,) * 4)


async def broadcasting(port: int) -> None:
    connections: set[ServerConnection] = set()

    def answer(_: ServerConnection, request: Request) -> Response | None:
        path, _, count = request.path.partition("?")
        if path not in {READY_PATH, GO}:
            return None
        for _ in range(int(count or 0)):
            broadcast(connections, FRAME)
        return Response(http.HTTPStatus.OK, "OK", Headers({"Content-Length": "0", "Connection": "close"}), b"")

    async def stay(connection: ServerConnection) -> None:
        connections.add(connection)
        await connection.wait_closed()

    async with serve(stay, "127.0.0.1", port, process_request=answer, compression=None, ping_interval=None):
        await asyncio.get_running_loop().create_future()


async def bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


if __name__ == "__main__":
    if sys.argv[1] == "broadcast":
        uvloop.run(broadcasting(int(sys.argv[2])))
    else:
        uvicorn.run(
            bare,
            port=int(sys.argv[2]),
            loop="uvloop",
            http="httptools",
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_ping_interval=PING_EVERY_S,
            lifespan="off",
            access_log=False,
            log_level="warning",
        )
