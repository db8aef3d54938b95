"""Errors to answers: RFC 9457 problem details on every path. Clients switch on `code`."""

import logging
import re
from http import HTTPStatus
from typing import Any

from litestar import Litestar, Response
from litestar.connection import Request
from litestar.exceptions import HTTPException, InternalServerException, ValidationException

from server import auth, database, logs
from server.errors import (
    Conflict,
    DomainError,
    FileTooLarge,
    Forbidden,
    Invalid,
    LinkGone,
    Malformed,
    NotFound,
    RangeNotSatisfiable,
    RateLimited,
    Unauthenticated,
    Unavailable,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

STATUS: dict[type[DomainError], HTTPStatus] = {
    Malformed: HTTPStatus.BAD_REQUEST,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    Invalid: HTTPStatus.UNPROCESSABLE_ENTITY,
    RateLimited: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    LinkGone: HTTPStatus.GONE,
    FileTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    RangeNotSatisfiable: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
}

# What the framework finds wrong before a handler runs.
CODES = {
    HTTPStatus.NOT_FOUND: "route_not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.NOT_ACCEPTABLE: "not_acceptable",
    HTTPStatus.REQUEST_TIMEOUT: "request_timeout",
    HTTPStatus.LENGTH_REQUIRED: "length_required",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "range_not_satisfiable",
    # This one is answered before there is a request: `server.connections`.
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "head_too_large",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal_error",
}

RETRY_AFTER_S = 1

# Litestar's words where a body ends because nobody is there any more. For logs and metrics, which should not take that
# for a fault of ours, it gets the status that nginx gave it; it is sent to nobody.
CLIENT_LEFT = "client disconnected prematurely"
CLIENT_CLOSED_REQUEST = 499
# And those in which it names a parameter that is not there, which it tells nowhere else.
MISSING = re.compile(r"Missing required query parameter '([^']+)'")


def problem(
    status: HTTPStatus, code: str, detail: str, headers: dict[str, str] | None = None, **facts: Any
) -> Response[Any]:
    content = {
        "type": "about:blank",
        "title": status.phrase,
        "status": int(status),
        "detail": detail,
        "code": code,
    } | facts
    return Problem(content, status_code=status, media_type=MEDIA_TYPE, headers=headers or {})


class Problem(Response[Any]):
    """To a caller who is yet to prove itself it says nothing but 401, unless the credential turns out to stand."""

    def to_asgi_response(self, app: Litestar | None, request: Request[Any, Any, Any], **options: Any) -> Any:
        answer = super().to_asgi_response(app, request, **options)

        async def proven_first(scope: Any, receive: Any, send: Any) -> None:
            told = answer
            try:
                await auth.prove(request)
            except Unauthenticated as error:
                told = answer_domain_error(request, error).to_asgi_response(app, request, **options)
            except database.UNAVAILABLE:
                told = answer_domain_error(request, Unavailable()).to_asgi_response(app, request, **options)
            await told(scope, receive, send)

        return proven_first if "unproven" in request.scope.get("state", {}) else answer


def answer_domain_error(_: Request[Any, Any, Any], error: DomainError) -> Response[Any]:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if isinstance(error, RateLimited):
        return answer_rate_limited(error)
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, FileTooLarge):
        # What else comes of it is of no use.
        headers["Connection"] = "close"
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.facts['size']}"
    return problem(status, error.code, error.detail, headers, **error.facts)


def answer_rate_limited(error: RateLimited) -> Response[Any]:
    name, wait_s = error.facts["name"], error.facts["retry_after_s"]
    headers = {
        "Retry-After": str(wait_s),
        "RateLimit-Policy": f'"{name}";q={error.facts["limit"]};w={error.facts["window_s"]}',
        "RateLimit": f'"{name}";r={error.facts.get("left", 0)};t={wait_s}',
    }
    return problem(HTTPStatus.TOO_MANY_REQUESTS, error.code, error.detail, headers)


def answer_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    if isinstance(error, ValidationException):
        return answer_misfit(request, error)
    status = HTTPStatus(error.status_code)
    given = {name.lower(): value for name, value in (error.headers or {}).items()}
    headers: dict[str, str] = {name: given[name] for name in ("allow", "retry-after") if name in given}
    if "allow" in headers:
        # See `server.head`.
        headers["allow"] = re.sub(r"\bGET\b", "GET, HEAD", headers["allow"])
    return problem(status, CODES.get(status, status.phrase.lower().replace(" ", "_")), status.description, headers)


def answer_internal_error(request: Request[Any, Any, Any], error: InternalServerException) -> Response[Any]:
    if error.detail == CLIENT_LEFT:
        return Response(None, status_code=CLIENT_CLOSED_REQUEST)
    return answer_http_error(request, error)


def answer_misfit(request: Request[Any, Any, Any], error: ValidationException) -> Response[Any]:
    """A query parameter that does not fit, or no body where one is needed."""
    misfits = error.extra if isinstance(error.extra, list) else []
    if missing := MISSING.match(error.detail):
        misfits = [{"key": missing[1], "message": "is needed"}]
    if any(misfit.get("source") == "body" or misfit.get("key") == "data" for misfit in misfits):
        return answer_domain_error(request, Malformed())
    return answer_domain_error(
        request, Invalid(*((f"?{misfit.get('key', '')}", str(misfit.get("message", ""))) for misfit in misfits))
    )


def answer_unavailable(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    logger.warning("Postgres is away", extra={"error": type(error).__name__})
    return answer_domain_error(request, Unavailable())


def answer_unexpected(_: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """A defect of ours. Where it happened is logged; what it said may hold content, and goes nowhere."""
    logger.error("unexpected error", extra={"error": type(error).__name__, "frames": logs.frames(error)})
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return problem(status, CODES[status], "Something went wrong here; it has been logged.")


HANDLERS: dict[type[Exception] | int, Any] = {
    DomainError: answer_domain_error,
    HTTPException: answer_http_error,
    InternalServerException: answer_internal_error,
    Exception: answer_unexpected,
    **dict.fromkeys((kind for kind in database.UNAVAILABLE if issubclass(kind, Exception)), answer_unavailable),
}
