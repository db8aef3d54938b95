"""Tokens of an issuer for tests, put together by hand: no library would write most of them."""

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx

from tests.people import Person, good

ISSUER = "https://project.supabase.co/auth/v1"
SECRET = b"an issuer's secret of forty-two characters"

Signer = Callable[[bytes], bytes]


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def write(value: Any) -> bytes:
    """JSON, or bytes as they are."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def hs256(secret: bytes = SECRET) -> Signer:
    return lambda message: hmac.new(secret, message, hashlib.sha256).digest()


def compact(header: Any, claims: Any, sign: Signer | None = None) -> str:
    """header.payload.signature, each of the first two a value or the very bytes."""
    message = f"{encode(write(header))}.{encode(write(claims))}"
    return f"{message}.{encode((sign or hs256())(message.encode()))}"


HEADER = {"alg": "HS256", "typ": "JWT"}


def claims_of(subject: str, **changes: Any) -> dict[str, Any]:
    """Good claims, the like of Supabase's; a change to None leaves one out."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "sub": subject,
        "aud": "authenticated",
        "exp": now + 3600,
        "iat": now,
        "email": "eve@example.org",
        "role": "authenticated",
        "app_metadata": {"provider": "email"},
        "user_metadata": {},
    } | changes
    return {name: value for name, value in claims.items() if value is not None}


def new_subject() -> str:
    return str(uuid.uuid4())


def token_of(subject: str, **changes: Any) -> str:
    return compact(HEADER, claims_of(subject, **changes))


class Guest(Person):
    """A user of the issuer, with a JWT in the place of a session."""

    def __init__(self, client: httpx.AsyncClient, user: dict[str, Any], token: str, subject: str) -> None:
        super().__init__(client, user | {"token": {"token": token}})
        self.subject = subject


@asynccontextmanager
async def guest(server: str, name: str = "Gina", **changes: Any) -> AsyncIterator[Guest]:
    subject = new_subject()
    token = token_of(subject, name=name, **changes)
    async with httpx.AsyncClient(
        base_url=server, timeout=30, headers={"Authorization": f"Bearer {token}"}, verify=False
    ) as client:
        user = good(await client.get("/me"))
        assert UUID(user["id"]).version == 7
        yield Guest(client, user, token, subject)
