"""How uvicorn serves the API: in production, and in the tests."""

from typing import Any

import uvicorn

from server import logs
from server.app import create_app
from server.settings import Settings

MAX_SOCKET_FRAME_BYTES = 64 * 1024


def make_server(settings: Settings, **options: Any) -> uvicorn.Server:
    """A server that is yet to run; `options` are uvicorn's, over ours."""
    ours: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "loop": "uvloop",
        "http": "httptools",
        "ws": "websockets-sansio",
        "ws_max_size": MAX_SOCKET_FRAME_BYTES,
        # Ciphertext does not compress, and each idle socket would keep 36 KiB for trying.
        "ws_per_message_deflate": False,
        "lifespan": "on",
        # Its access log shows query strings; `server.logs` has one that doesn't.
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": list(settings.trusted_proxies),
        "timeout_graceful_shutdown": 5,
    }
    return uvicorn.Server(uvicorn.Config(logs.AccessLog(create_app(settings)), **ours | options))
