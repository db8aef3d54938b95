"""How uvicorn serves the API: in production, and in the tests."""

from typing import Any

import uvicorn

from server import logs, metrics
from server.app import create_app
from server.connections import HttpConnection, SocketConnection
from server.head import HeadAsGet
from server.settings import Settings

MAX_SOCKET_FRAME_BYTES = 64 * 1024


def make_server(settings: Settings, **options: Any) -> uvicorn.Server:
    """A server that is yet to run; `options` are uvicorn's, over ours."""
    ours: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "loop": "uvloop",
        "http": HttpConnection,
        "ws": SocketConnection,
        "ws_max_size": MAX_SOCKET_FRAME_BYTES,
        # Ciphertext does not compress, and each idle socket would keep 36 KiB for trying.
        "ws_per_message_deflate": False,
        # Every open socket is pinged along with all others: `server.sockets`.
        "ws_ping_interval": None,
        "lifespan": "on",
        # Its access log shows query strings; `server.logs` has one that doesn't.
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": list(settings.trusted_proxies),
        "timeout_graceful_shutdown": 5,
    }
    app = WithoutPrefix(logs.AccessLog(HeadAsGet(create_app(settings)), metrics.requests.note), settings.root_path)
    return uvicorn.Server(uvicorn.Config(app, **ours | options))


class WithoutPrefix:
    """ASGI middleware: `/prefix/me` is `/me`, whether or not the proxy in front takes the prefix away itself."""

    def __init__(self, app: logs.App, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: logs.Message, receive: logs.Receive, send: logs.Send) -> None:
        if scope["type"] != "lifespan" and self.prefix and f"{scope['path']}/".startswith(f"{self.prefix}/"):
            raw_path: bytes = scope.get("raw_path") or b""
            scope["path"] = scope["path"].removeprefix(self.prefix) or "/"
            scope["raw_path"] = raw_path.removeprefix(self.prefix.encode()) or b"/"
        await self.app(scope, receive, send)
