from typing import Annotated
from uuid import UUID

import msgspec
from litestar import get, patch, post
from litestar.params import JSONBody

from server import accounts, auth, credentials
from server.bodies import Body, Request
from server.credentials import Caller, NewToken
from server.events import timestamp
from server.quotas import NEVER_REFUSED

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100, examples=["Alice"])]
Email = Annotated[str, msgspec.Meta(max_length=254, examples=["alice@example.org"])]
NewPassword = Annotated[str, msgspec.Meta(min_length=8, max_length=1024, examples=["correct horse battery staple"])]
Password = Annotated[str, msgspec.Meta(max_length=1024)]


class SignUpIn(msgspec.Struct, forbid_unknown_fields=True):
    name: Name
    email: Email
    password: NewPassword


class LoginIn(msgspec.Struct, forbid_unknown_fields=True):
    email: Email
    password: Password


class UserPatch(msgspec.Struct, forbid_unknown_fields=True):
    """Email and password need `current_password`."""

    name: Name | None = None
    email: Email | None = None
    password: NewPassword | None = None
    current_password: Password | None = None


class UserOut(msgspec.Struct):
    id: UUID
    name: str
    email: str | None
    created_at: str
    is_admin: bool


class TokenOut(msgspec.Struct):
    token: str
    """Shown once; the server keeps only its hash."""
    expires: str


class SignUpOut(UserOut):
    token: TokenOut


class LoginOut(msgspec.Struct):
    token: TokenOut
    user: UserOut


def show_user(caller: Caller) -> UserOut:
    return UserOut(caller.user_id, caller.name, caller.email, timestamp(caller.created_at), caller.is_admin)


def show_token(token: NewToken) -> TokenOut:
    return TokenOut(token.token, timestamp(token.expires))


def client_address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


@post("/sign-up", operation_id="signUp", tags=["Accounts"], summary="Create an account and a session", security=[{}])
async def sign_up(request: Request, data: JSONBody[Body[SignUpIn]]) -> SignUpOut:
    """Email addresses are not verified, and 409 `email_taken` tells that an address has an account."""
    sign_up = await data.read(request)
    await request.limiter.login(client_address(request), sign_up.email)
    caller, token = await accounts.sign_up(sign_up.name, sign_up.email, sign_up.password, request.settings)
    return SignUpOut(**msgspec.structs.asdict(show_user(caller)), token=show_token(token))


@post("/login", operation_id="logIn", tags=["Accounts"], summary="Open a session", status_code=200, security=[{}])
async def log_in(request: Request, data: JSONBody[Body[LoginIn]]) -> LoginOut:
    """The same work and the same 401 for an unknown address and a wrong password."""
    login = await data.read(request)
    await request.limiter.login(client_address(request), login.email)
    caller, token = await accounts.log_in(login.email, login.password, request.settings)
    return LoginOut(show_token(token), show_user(caller))


@post(
    "/logout",
    operation_id="logOut",
    security=auth.SESSION,
    tags=["Accounts"],
    summary="End the presented session",
    status_code=204,
    opt=NEVER_REFUSED,
)
async def log_out(request: Request) -> None:
    """Its WebSockets end within five seconds."""
    credentials.check_session(request.user)
    await credentials.log_out(request.user)


@get("/me", operation_id="getMe", tags=["Accounts"], summary="Who am I")
async def get_me(request: Request) -> UserOut:
    """The user whom the presented credential stands for."""
    return show_user(request.user)


@patch(
    "/me", operation_id="updateMe", security=auth.SESSION, tags=["Accounts"], summary="Change name, email or password"
)
async def update_me(request: Request, data: JSONBody[Body[UserPatch]]) -> UserOut:
    """A new password ends all other sessions and API keys, and their WebSockets."""
    credentials.check_session(request.user)
    changes = await data.read(request)
    if changes.current_password is not None:
        await request.limiter.login(client_address(request), request.user.email or "")
    caller = await accounts.update(request.user, request.settings, **msgspec.structs.asdict(changes))
    return show_user(caller)


PUBLIC = [sign_up, log_in]
AUTHENTICATED = [log_out, get_me, update_me]
