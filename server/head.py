"""HEAD, for every route that answers GET: the same status and headers, and no body.

The application is asked for GET, marked in `scope["state"]`, and what it says after its head goes nowhere. A handler
whose GET costs something, such as a read of a large object or one of a link's downloads, asks `is_head` and leaves that
out.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

MARK = "is_head"


def is_head(connection: Any) -> bool:
    """Whether nobody will see the body of what is answered."""
    return MARK in connection.scope["state"]


class HeadAsGet:
    """ASGI middleware."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        is_told = False

        async def receive_until_told() -> Message:
            # A stream without an end is given up as if its reader had left.
            return {"type": "http.disconnect"} if is_told else await receive()

        async def send_head(message: Message) -> None:
            nonlocal is_told
            if message["type"] == "http.response.start":
                await send(message)
                is_told = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        asked = dict(scope)
        asked["method"] = "GET"
        asked["state"] = {**scope.get("state", {}), MARK: True}
        # A part may be asked for by GET alone.
        asked["headers"] = [header for header in scope["headers"] if header[0].lower() != b"range"]
        try:
            await self.app(asked, receive_until_told, send_head)
        finally:
            # What counts requests looks for it here.
            if "path_template" in asked:
                scope["path_template"] = asked["path_template"]
