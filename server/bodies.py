"""Request bodies: read strictly, and judged in the order that clients rely on.

A handler declares `data: Body[PostIn]`. Well-formed JSON is checked before it runs (400). Whether the
content fits `PostIn` is checked by `await data.read(…)`, inside the handler, because a caller who may not
even know of the thing addressed must hear that first (404 or 403 before 422): on a misfit, and only then,
`read` asks the check that it was given.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, Generic, TypeVar, cast, get_args, get_origin
from uuid import UUID

import litestar
import msgspec
from arq import ArqRedis
from litestar.background_tasks import BackgroundTask
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.openapi.spec import Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition
from obstore.store import ObjectStore

from server import credentials
from server.after_commit import announce
from server.channels import Hub
from server.credentials import READ, WRITE, Caller
from server.errors import Invalid, Malformed, NotFound, ScopeRequired
from server.events import Event
from server.limits import Limiter
from server.quotas import Quotas
from server.sealing import encoding, strict_json
from server.sealing import errors as sealing_errors
from server.settings import Settings

# At most a megabyte: whoever needs longer for it only holds a connection.
BODY_TIMEOUT_S = 60


class Base64(bytes):
    """Bytes that travel as canonical standard base64."""


class Request(litestar.Request[Caller, None, State]):
    """`user` is the Caller that `server.auth` found."""

    @property
    def settings(self) -> Settings:
        return cast("Settings", self.app.state.settings)

    @property
    def redis(self) -> ArqRedis:
        return cast("ArqRedis", self.app.state.redis)

    @property
    def hub(self) -> Hub:
        return cast("Hub", self.app.state.hub)

    @property
    def limiter(self) -> Limiter:
        return cast("Limiter", self.app.state.limiter)

    @property
    def quotas(self) -> Quotas:
        return cast("Quotas", self.app.state.quotas)

    @property
    def store(self) -> ObjectStore:
        return cast("ObjectStore", self.app.state.store)

    @property
    def unproven(self) -> UUID | None:
        """The caller's credential, where it is for the handler's own statements to ask whether it still stands."""
        return cast("UUID | None", self.scope["state"].get("unproven"))

    @property
    def mac_key(self) -> bytes:
        """The secret that tells a repeated request from another."""
        return cast("bytes", self.settings.request_mac_key)

    @property
    def worker_public_key(self) -> bytes:
        return cast("bytes", self.settings.worker_public_key)

    def announcing(self, events: Sequence[Event]) -> BackgroundTask:
        """Tell the sockets of this process what was committed; those of the others hear of it after the answer."""
        self.hub.deliver(events)
        return BackgroundTask(announce, self.redis, events)

    async def json(self) -> Any:
        """Raises Malformed for anything but one well-formed JSON text, whatever its bytes."""
        if not self._is_json():
            raise HTTPException("The body must be application/json.", status_code=415)
        body = await self.body()
        try:
            value = strict_json.loads(body)
        except sealing_errors.MalformedJSON:
            raise Malformed from None
        check_scope(self, self.route_handler)
        return value

    async def body(self) -> bytes:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await super().body()
        except TimeoutError:
            raise HTTPException("The body did not come in time.", status_code=408) from None
        if not body and not needs_body(self.route_handler):
            check_scope(self, self.route_handler)
        return body

    def _is_json(self) -> bool:
        """So says the head of the request, or it says nothing."""
        media_type, options = self.content_type
        is_json = media_type == "application/json" and options.get("charset", "utf-8").lower() == "utf-8"
        is_plain = self.headers.get("content-encoding", "identity").lower() == "identity"
        return is_plain and (is_json or not self.headers.get("content-type"))


def needs_body(handler: BaseRouteHandler) -> bool:
    data = handler.parsed_fn_signature.parameters.get("data")
    return data is not None and not data.has_default


def takes_body(handler: BaseRouteHandler) -> bool:
    return "data" in handler.parsed_fn_signature.parameters


def needed_scope(handler: BaseRouteHandler) -> str:
    """What an API key must be good for to make this call."""
    reads = isinstance(handler, HTTPRouteHandler) and handler.http_methods <= {"GET", "HEAD", "OPTIONS"}
    return str(handler.opt.get("scope", READ if reads else WRITE))


def check_scope(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Raises ScopeRequired. Where there is a body, this is asked once that is read: what is wrong with its form goes
    before what one may not do."""
    caller = connection.scope.get("user")
    if caller is None:
        return
    try:
        credentials.check_scope(caller, needed_scope(handler))
    except ScopeRequired:
        # Of a call that no API key may make, whatever its scopes, the handler says so itself.
        if is_for_api_keys(handler):
            raise


def is_for_api_keys(handler: BaseRouteHandler) -> bool:
    named = handler.resolve_security() if isinstance(handler, HTTPRouteHandler) else []
    return not named or any("api_key" in schemes for schemes in named)


T = TypeVar("T")


class Body(Generic[T]):
    """A well-formed JSON text that is still to be held against the struct T."""

    def __init__(self, struct: type[T], value: Any) -> None:
        self._struct = struct
        self._value = value

    async def read(self, request: Request, but_first: Coroutine[Any, Any, None] | None = None) -> T:
        """The body as T. If it is none, await `but_first`, which may raise a reason that goes first; then Invalid."""
        try:
            found = msgspec.convert(self._value, self._struct, dec_hook=_decode)
            check_limits(found, request.settings)
        except msgspec.ValidationError as misfit:
            error = _describe(str(misfit))
        except Invalid as invalid:
            error = invalid
        else:
            if but_first:
                but_first.close()
            return found
        if but_first:
            await but_first
        raise error

    def peek_id(self, name: str) -> UUID | None:
        """The id that the body names, though the rest of it may not fit."""
        try:
            return msgspec.convert(self._value[name], UUID)
        except (msgspec.ValidationError, TypeError, KeyError):
            return None


def check_limits(found: Any, settings: Settings) -> None:
    """Settings may be stricter than the schema, by the names of fields. Raises Invalid."""
    characters = {
        "name": settings.max_name_characters,
        "label": settings.max_name_characters,
        "title": settings.max_title_characters,
        "password": settings.max_password_characters,
    }
    for name, limit in characters.items():
        text = getattr(found, name, None)
        if isinstance(text, str) and len(text) > limit:
            raise Invalid((f"/{name}", f"is over {limit} characters"))
    content = getattr(found, "content", None)
    if isinstance(content, str) and len(content.encode()) > settings.max_content_bytes:
        raise Invalid(("/content", f"is over {settings.max_content_bytes} bytes"))
    if len(getattr(found, "attachments", ())) > settings.max_attachments:
        raise Invalid(("/attachments", f"are more than {settings.max_attachments}"))
    client_id = getattr(found, "id", None)
    if isinstance(client_id, UUID) and client_id.version != 7:
        raise Invalid(("/id", "is not a UUID of version 7"))


def _decode(wanted: type, value: Any) -> Any:
    if wanted is not Base64:
        raise NotImplementedError(f"{wanted} is not known here")
    if not isinstance(value, str):
        raise ValueError("Expected base64")
    try:
        return Base64(encoding.decode_base64(value))
    except sealing_errors.NotCanonical:
        raise ValueError("Expected canonical base64") from None


_AT = re.compile(r" - at `\$(?P<path>[^`]*)`\Z")
_NAMED = re.compile(r"(?:required|unknown) field `(?P<name>.*)`\Z", re.DOTALL)


def _describe(message: str) -> Invalid:
    """msgspec's words and path (`$.sealed_keys[0].sealed_key`) as a pointer (`/sealed_keys/0/sealed_key`)."""
    at, words = _AT.search(message), _AT.sub("", message)
    path = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", at["path"]).replace(".", "/") if at else ""
    if named := _NAMED.search(words):
        path += "/" + named["name"].replace("~", "~0").replace("/", "~1")
    return Invalid((path, words))


def is_body(annotation: Any) -> bool:
    return get_origin(annotation) is Body


def make_body(annotation: Any, value: Any) -> Body[Any]:
    return Body(get_args(annotation)[0], value)


class BodySchema(OpenAPISchemaPlugin):
    """In the OpenAPI document a `Body[PostIn]` is a PostIn, and bytes are a string that says so."""

    @staticmethod
    def is_plugin_supported_type(value: Any) -> bool:
        return is_body(value) or value is Base64 or value is bytes

    @staticmethod
    def to_openapi_schema(field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        if not is_body(field_definition.annotation):
            return Schema(type="string", content_encoding="base64")  # type: ignore[arg-type]  # Litestar's own enum or its value
        struct = get_args(field_definition.annotation)[0]
        return cast("Schema", schema_creator.for_field_definition(FieldDefinition.from_annotation(struct)))


def path_id(text: str, absent: type[NotFound]) -> UUID:
    """An id out of the path; one that is no UUID is as absent as any other."""
    try:
        return msgspec.convert(text, UUID)
    except msgspec.ValidationError:
        raise absent from None


async def check_query(request: litestar.Request[Any, Any, Any]) -> None:
    """A filter with a slip in its name must not silently widen a list, nor one of two values win.

    This is judged before anything is looked up: what the answer says depends on the query alone.
    """
    if not request.scope["query_string"]:
        return
    known = known_filters(request)
    given = [name for name, _ in request.query_params.multi_items()]
    if known.issuperset(given) and len(set(given)) == len(given):
        return
    names = Counter(given)
    errors = [(f"?{name}", "is not known here") for name in names if name not in known]
    errors += [(f"?{name}", "is given more than once") for name in names if name in known and names[name] > 1]
    raise Invalid(*errors)


def known_filters(request: litestar.Request[Any, Any, Any]) -> frozenset[str]:
    handler = request.route_handler
    known: frozenset[str] | None = handler.opt.get("filters")
    if known is None:
        parameters = handler.parsed_fn_signature.parameters.keys()
        known = handler.opt["filters"] = frozenset(parameters - request.path_params.keys() - {"request", "data"})
    return known
