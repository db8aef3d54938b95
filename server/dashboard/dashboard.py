"""The dashboard as one request sees it: what it may read, do and show."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from redis.asyncio import Redis

from server.dashboard.actions import ACTIONS, REPAIR, Actions, OnAction
from server.dashboard.encoded import Deserializer
from server.dashboard.errors import ForeignOrigin, PanelNotFound, ReadOnly, Refused
from server.dashboard.models import Capabilities, Done, Panel, PanelFact
from server.dashboard.page_cache import PageCache
from server.dashboard.reader import Reader

Connection = ASGIConnection[Any, Any, Any, Any]
Asking = Request[Any, Any, Any]

CSRF_HEADER = "x-csrf-token"


class PanelSource(NamedTuple):
    """What the application says beside the jobs, and the repairs that it offers.

    `facts` is asked for each page. It raises what it likes: the panel then shows the type of that. `repairs` are by
    name, called with the connection and who asks.
    """

    name: str
    title: str
    facts: Callable[[Connection], Awaitable[Sequence[PanelFact]]]
    repairs: Mapping[str, Callable[[Connection, str], Awaitable[None]]] = {}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What `dashboard_router` was told."""

    redis: Any
    who: Callable[[Connection], str]
    permissions: Callable[[Connection], Collection[str]]
    panels: Sequence[PanelSource]
    read_only: bool
    on_action: Callable[[Connection, str, str, str], Awaitable[None]] | None
    deserializer: Deserializer | None
    queues: Collection[str]
    csrf_key: bytes
    path: str
    pages: PageCache


class Dashboard:
    def __init__(self, request: Connection, options: Options) -> None:
        redis: Redis = options.redis(request) if callable(options.redis) else options.redis
        self._request = request
        self._options = options
        self.path = options.path
        self.read_only = options.read_only
        self.pages = options.pages
        self.reader = Reader(redis, options.deserializer, options.queues)
        self.actions = Actions(self.reader, self._on_action())

    def _on_action(self) -> OnAction | None:
        told = self._options.on_action
        if told is None:
            return None

        async def tell(who: str, action: str, subject: str) -> None:
            await told(self._request, who, action, subject)

        return tell

    def base(self, request: Connection) -> str:
        """What every address on a page begins with."""
        return str(request.scope.get("root_path", "")).rstrip("/") + self.path

    def may(self, request: Connection) -> list[str]:
        """The actions that are open to whoever asks."""
        if self.read_only:
            return []
        granted = self._options.permissions(request)
        return [action for action in ACTIONS if action in granted and (action != REPAIR or self._options.panels)]

    def capabilities(self, request: Connection) -> Capabilities:
        return Capabilities(
            actions=self.may(request), is_read_only=self.read_only, csrf_token=self._token(self._options.who(request))
        )

    def admit(self, request: Asking, action: str, csrf_token: object) -> str:
        """Who asks for the action. Raises ReadOnly, Refused, ForeignOrigin."""
        if self.read_only:
            raise ReadOnly
        if action not in self.may(request):
            raise Refused
        who = self._options.who(request)
        if not is_same_origin(request) or not isinstance(csrf_token, str):
            raise ForeignOrigin
        if not hmac.compare_digest(csrf_token.encode(), self._token(who).encode()):
            raise ForeignOrigin
        return who

    def _token(self, who: str) -> str:
        """The same for one user as long as the key is: no page can guess it, and none but ours can read it."""
        return hmac.new(self._options.csrf_key, who.encode(), hashlib.sha256).hexdigest()

    async def show_panels(self) -> list[Panel]:
        return [await self._show_panel(source) for source in self._options.panels]

    async def _show_panel(self, source: PanelSource) -> Panel:
        try:
            facts = list(await source.facts(self._request))
        except Exception as error:
            return Panel(name=source.name, title=source.title, facts=[], error=type(error).__name__)
        return Panel(name=source.name, title=source.title, facts=facts)

    async def repair(self, who: str, panel: str, action: str) -> Done:
        """Raises PanelNotFound, and what the repair raises."""
        for source in self._options.panels:
            if source.name == panel and action in source.repairs:
                if self._options.on_action is not None:
                    await self._options.on_action(self._request, who, REPAIR, f"{panel}/{action}")
                await source.repairs[action](self._request, who)
                return Done(action=REPAIR, done=[f"{panel}/{action}"], skipped=[])
        raise PanelNotFound


def is_same_origin(request: Asking) -> bool:
    """By what browsers say of a call; what says nothing is no browser, and has a token to show anyway."""
    site = request.headers.get("sec-fetch-site")
    if site not in {None, "same-origin"}:
        return False
    origin = request.headers.get("origin")
    # The scheme is not compared: behind a proxy that ends TLS it is another here.
    return origin is None or (origin != "null" and urlsplit(origin).netloc == request.headers.get("host"))
