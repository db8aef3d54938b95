from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Stream

from server import auth, credentials, erasure, export
from server.bodies import Body, Request
from server.controllers.accounts import Password, client_address
from server.errors import Invalid
from server.quotas import NEVER_REFUSED

NDJSON = "application/x-ndjson"


class ExportLine(msgspec.Struct):
    """A line of its own each; what else is in it depends on `type`, bytes in base64.

    The last one is `{"type": "end", "lines": …}`, with the number of lines before it: without it the export is cut off.
    """

    type: str


class DeletionIn(msgspec.Struct, forbid_unknown_fields=True):
    """The `password`; or, with a JWT, one's own user id in `confirm`."""

    password: Password | None = None
    confirm: UUID | None = None


@get(
    "/me/export",
    operation_id="exportMyData",
    security=auth.SESSION_OR_JWT,
    opt=NEVER_REFUSED,
    tags=["Accounts"],
    summary="All that is stored about the caller",
    responses={200: ResponseSpec(ExportLine, description="One JSON object a line", media_type=NDJSON)},
)
async def export_my_data(request: Request) -> Stream:
    """User, sessions, API keys, keys, memberships, posts as they are stored, keys to posts, requests, decisions, usage
    and audit entries. Hashes of the password, of tokens and of requests are not in it. It is no snapshot.
    """
    credentials.check_session_or_jwt(request.user)
    headers = {"Content-Disposition": 'attachment; filename="secureblogs.ndjson"'}
    return Stream(export.lines(request.user), media_type=NDJSON, headers=headers)


@post(
    "/me/delete",
    operation_id="deleteMe",
    security=auth.SESSION_OR_JWT,
    opt=NEVER_REFUSED,
    tags=["Accounts"],
    summary="Delete one's own account",
    status_code=204,
)
async def delete_me(request: Request, data: JSONBody[Body[DeletionIn]]) -> Response[None]:
    """Posts, keys, tokens and requests go with it, and groups that nobody else is in. 409 `last_owner`, with
    `group_ids`, where others would be left without an owner. It can't be undone.
    """
    credentials.check_session_or_jwt(request.user)
    deletion = await data.read(request)
    if request.user.kind == "jwt":
        if deletion.confirm != request.user.user_id or deletion.password is not None:
            raise Invalid(("/confirm", "must be your own user id, and alone"))
    elif deletion.password is None or deletion.confirm is not None:
        raise Invalid(("/password", "is needed, and alone"))
    else:
        await request.limiter.login(client_address(request), request.user.email or "")
    events = await erasure.erase(request.user, deletion.password)
    return Response(None, status_code=204, background=request.announcing(events))


AUTHENTICATED = [export_my_data, delete_me]
