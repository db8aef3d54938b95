"""The client: one method for each call of the interface, and nothing that needs a private key.

    async with Client("https://posts.example.org", token) as client:
        async for post in client.posts():
            ...

Sealing and opening posts and files, making keys and granting take private keys as well: see `client.posting`,
`client.reading`, `client.uploads`, `client.downloads`, `client.enrolling`, `client.linking` and `client.granting`.
Lists are async iterators that fetch the next page when it is needed. Each call raises what `client.errors` names.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid7

from client.errors import BadAnswer, Substituted
from client.events import Event, event_of
from client.follow import Follower, Renew
from client.models import (
    ApiKey,
    AuditEntry,
    DownloadLink,
    Group,
    Key,
    LoggedIn,
    Member,
    NewApiKey,
    NewDownloadLink,
    OpenSession,
    Page,
    Post,
    ReadRequest,
    SealedKey,
    SignedUp,
    StoredFile,
    Ticket,
    Usage,
    User,
    UserKeys,
)
from client.streams import SealedStream
from client.transport import Content, Retries, Transport
from server.sealing.posts import PostIds, SealedPost

Item = TypeVar("Item")

PAGE_SIZE = 100
# As the server widens it: clocks differ, and transactions commit late.
REPLAY_MARGIN = timedelta(seconds=60)


class _ExportEnd(msgspec.Struct, tag_field="type", tag="end"):
    lines: int


class Client:
    """One user on one server. `token` is the credential of every call; `sign_up` and `login` set it.

    `address` is the server's URL, with a path prefix if it has one. `timeout` is in seconds.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        retries: Retries | None = None,
        timeout: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._transport = Transport(address, token, retries=retries, timeout=timeout, sleep=sleep)

    @property
    def address(self) -> str:
        return self._transport.address

    @property
    def token(self) -> str | None:
        return self._transport.token

    @token.setter
    def token(self, token: str | None) -> None:
        self._transport.token = token

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the pooled connections."""
        await self._transport.aclose()

    # Accounts

    async def sign_up(self, name: str, email: str, password: str) -> SignedUp:
        """Make an account and be logged in to it. Conflict `email_taken`."""
        body = {"name": name, "email": email, "password": password}
        answer = await self._transport.fetch("POST", "/sign-up", SignedUp, body=body)
        self.token = answer.token.token
        return answer

    async def login(self, email: str, password: str) -> LoggedIn:
        """Start a session. Unauthenticated where email and password don't belong together."""
        body = {"email": email, "password": password}
        answer = await self._transport.fetch("POST", "/login", LoggedIn, body=body)
        self.token = answer.token.token
        return answer

    async def logout(self) -> None:
        """End this session: the token is dead."""
        await self._transport.send("POST", "/logout")
        self.token = None

    async def me(self) -> User:
        return await self._transport.fetch("GET", "/me", User)

    async def update_me(
        self,
        *,
        name: str | None = None,
        email: str | None = None,
        password: str | None = None,
        current_password: str | None = None,
    ) -> User:
        """Change one's own name, email or password; the latter two need the current password.

        A new password ends all other sessions and API keys. Forbidden `wrong_password`, Conflict `email_taken`.
        """
        body = {"name": name, "email": email, "password": password, "current_password": current_password}
        return await self._transport.fetch("PATCH", "/me", User, body=body)

    async def buy_ticket(self) -> Ticket:
        """A single-use credential for one WebSocket, for where no header can be set."""
        return await self._transport.fetch("POST", "/ws-tickets", Ticket)

    async def delete_account(self, password: str | None = None, *, confirm: UUID | None = None) -> None:
        """Delete one's own account, for good, with all its posts. Conflict `last_owner`, with the `group_ids`.

        It takes the password; a user of an issuer has none, and gives the own id as `confirm`.
        """
        await self._transport.send("POST", "/me/delete", body={"password": password, "confirm": confirm})
        self.token = None

    async def export(self) -> AsyncIterator[bytes]:
        """All that the server stores about the caller, a line of JSON each. Raises BadAnswer if it was cut off."""
        count = 0
        last = b""
        async for line in self._transport.stream_lines("/me/export"):
            count += 1
            last = line
            yield line
        try:
            end = msgspec.json.decode(last, type=_ExportEnd)
        except (msgspec.DecodeError, UnicodeDecodeError):
            end = None
        if end is None or end.lines != count - 1:
            raise BadAnswer("the export was cut off: it is not whole")

    async def usage(self) -> Usage:
        """What the caller did and may do, by day of UTC."""
        return await self._transport.fetch("GET", "/me/usage", Usage)

    def audit(self, group_id: UUID | None = None) -> AsyncIterator[AuditEntry]:
        """What the caller did and what was done to it, newest first; or all in a group, for its owners."""
        path = "/me/audit" if group_id is None else f"/groups/{group_id}/audit"
        return self._list(path, Page[AuditEntry])

    # Credentials

    def sessions(self) -> AsyncIterator[OpenSession]:
        """Where the caller is logged in, newest first."""
        return self._list("/sessions", Page[OpenSession])

    async def end_session(self, session_id: UUID) -> None:
        """End a session of the caller's own, and its WebSockets."""
        await self._transport.send("DELETE", f"/sessions/{session_id}")

    async def create_api_key(
        self, label: str, *, scopes: Sequence[str] | None = None, expires: datetime | None = None
    ) -> NewApiKey:
        """A token for programs, shown this once. `scopes` are `read` and `write`, both if left out."""
        body = {"label": label, "scopes": scopes, "expires": expires}
        return await self._transport.fetch("POST", "/api-keys", NewApiKey, body=body)

    def api_keys(self) -> AsyncIterator[ApiKey]:
        """The caller's own, newest first; those that are over, too, for a while."""
        return self._list("/api-keys", Page[ApiKey])

    async def revoke_api_key(self, api_key_id: UUID) -> None:
        await self._transport.send("DELETE", f"/api-keys/{api_key_id}")

    # Keys

    async def enrol_key(
        self,
        public_key: bytes,
        verify_key: bytes,
        proof: bytes,
        label: str,
        *,
        endorsed_by: UUID | None = None,
        endorsement: bytes | None = None,
    ) -> Key:
        """Enrol 32 + 32 bytes of public keys under a 64-byte proof. Conflict `key_taken` if it was enrolled before."""
        body = {
            "public_key": public_key,
            "verify_key": verify_key,
            "proof": proof,
            "label": label,
            "endorsed_by": endorsed_by,
            "endorsement": endorsement,
        }
        return await self._transport.fetch("POST", "/keys", Key, body=body)

    def own_keys(self) -> AsyncIterator[Key]:
        """The caller's own keys, newest first, revoked ones too."""
        return self._list("/keys", Page[Key])

    async def revoke_key(self, key_id: UUID) -> None:
        await self._transport.send("DELETE", f"/keys/{key_id}")

    async def user_keys(self, user_id: UUID) -> UserKeys:
        """The name and every key of a user that the caller has to do with."""
        answer = await self._transport.fetch("GET", f"/users/{user_id}/keys", UserKeys)
        if answer.id != user_id or any(key.user_id != user_id for key in answer.keys):
            raise Substituted("the server answered with another user's keys")
        return answer

    # Groups

    async def create_group(self, name: str, *, group_id: UUID | None = None) -> Group:
        body = {"name": name, "id": group_id or uuid7()}
        return await self._transport.fetch("POST", "/groups", Group, body=body, repeatable=True)

    def groups(self) -> AsyncIterator[Group]:
        return self._list("/groups", Page[Group])

    async def group(self, group_id: UUID) -> Group:
        return await self._transport.fetch("GET", f"/groups/{group_id}", Group)

    async def rename_group(self, group_id: UUID, name: str) -> Group:
        return await self._transport.fetch("PATCH", f"/groups/{group_id}", Group, body={"name": name})

    async def delete_group(self, group_id: UUID) -> None:
        """Delete a group with all its posts."""
        await self._transport.send("DELETE", f"/groups/{group_id}")

    def members(self, group_id: UUID) -> AsyncIterator[Member]:
        """The members, those who joined last first."""
        return self._list(f"/groups/{group_id}/members", Page[Member])

    async def add_member(
        self, group_id: UUID, *, user_id: UUID | None = None, email: str | None = None, role: str | None = None
    ) -> Member:
        """Add somebody by id or by email. NotFound `user_not_found`, Conflict `already_member`."""
        body = {"user_id": user_id, "email": email, "role": role}
        return await self._transport.fetch("POST", f"/groups/{group_id}/members", Member, body=body)

    async def change_role(self, group_id: UUID, user_id: UUID, role: str) -> Member:
        path = f"/groups/{group_id}/members/{user_id}"
        return await self._transport.fetch("PATCH", path, Member, body={"role": role})

    async def remove_member(self, group_id: UUID, user_id: UUID) -> None:
        """Remove somebody, or leave. Conflict `last_owner`."""
        await self._transport.send("DELETE", f"/groups/{group_id}/members/{user_id}")

    async def group_keys(self, group_id: UUID) -> list[Key]:
        """The active keys of all members, whole, from one moment."""
        return (await self._transport.fetch("GET", f"/groups/{group_id}/keys", Page[Key])).items

    # Posts

    async def create_post(
        self,
        group_id: UUID,
        title: str,
        content: str,
        *,
        attachment_ids: Sequence[UUID] = (),
        post_id: UUID | None = None,
    ) -> Post:
        """Have the server, which then sees the text, seal a post; `client.posting.publish` seals it here.

        It is `pending` until a worker has sealed it; see `wait_until_sealed`. Attachments are files that the server
        has sealed as well.
        """
        body = {
            "id": post_id or uuid7(),
            "group_id": group_id,
            "title": title,
            "content": content,
            "attachments": attachment_ids or None,
        }
        return await self._transport.fetch("POST", "/posts", Post, body=body, repeatable=True)

    async def create_sealed_post(
        self,
        ids: PostIds,
        sealed: SealedPost,
        signing_key_id: UUID,
        sealed_keys: Sequence[SealedKey],
        withheld: Sequence[UUID] = (),
        attachment_ids: Sequence[UUID] = (),
    ) -> Post:
        """Store a post that was sealed here, by `client.posting`: to exactly the group's active keys, or openly not.

        Conflict `recipients_changed`, with the `missing` keys and `unknown` ids in its problem.
        """
        body = {
            "id": ids.post,
            "group_id": ids.group,
            "heading": sealed.heading,
            "content": sealed.content,
            "commitment": sealed.commitment,
            "signature": sealed.signature,
            "signing_key_id": signing_key_id,
            "sealed_keys": sealed_keys,
            "withheld": withheld,
            "attachments": attachment_ids or None,
        }
        return await self._transport.fetch("POST", "/posts/sealed", Post, body=body, repeatable=True)

    async def posts(self, group_id: UUID | None = None) -> AsyncIterator[Post]:
        """Posts without content, newest first, of one group or of all the caller's groups."""
        async for post in self._list("/posts", Page[Post], {"group_id": group_id}):
            if group_id not in (None, post.group_id):
                raise Substituted("the server answered with another group's posts")
            yield post

    async def post(self, post_id: UUID) -> Post:
        answer = await self._transport.fetch("GET", f"/posts/{post_id}", Post)
        if answer.id != post_id:
            raise Substituted("the server answered with another post")
        return answer

    async def wait_until_sealed(self, post_id: UUID, seconds: float) -> Post:
        """The post once it is no longer `pending`, or as it stands when the seconds have passed."""
        until = asyncio.get_running_loop().time() + seconds
        pause = 0.05
        while True:
            post = await self.post(post_id)
            left = until - asyncio.get_running_loop().time()
            if post.status != "pending" or left <= 0:
                return post
            await asyncio.sleep(min(pause, left))
            pause = min(1.0, pause * 1.5)

    async def requeue_post(self, post_id: UUID) -> None:
        """Have a failed post sealed again."""
        await self._transport.send("POST", f"/posts/{post_id}/requeue", repeatable=True)

    async def delete_post(self, post_id: UUID) -> None:
        await self._transport.send("DELETE", f"/posts/{post_id}")

    async def add_post_keys(self, post_id: UUID, sealed_keys: Sequence[SealedKey]) -> Post:
        """Add a post's key for further active keys of the caller's own."""
        body = {"sealed_keys": sealed_keys}
        return await self._transport.fetch("POST", f"/posts/{post_id}/keys", Post, body=body, repeatable=True)

    # Attachments

    async def upload_sealed_file(self, file_id: UUID, stream: Content) -> StoredFile:
        """Store the stream of a file that was sealed here, by `client.uploads`, with this id in it.

        Conflict `id_taken`, Invalid `too_large`, RateLimited `quota_exceeded`.
        """
        query = {"id": file_id, "sealed": "true"}
        headers = {"Content-Type": "application/octet-stream"}
        return await self._transport.upload("/attachments", StoredFile, stream, query=query, headers=headers)

    async def upload_file(self, file_id: UUID, name: str, media_type: str, content: Content) -> StoredFile:
        """Have the server, which then sees the file, seal it as it comes."""
        headers = {"Content-Type": media_type, "X-Filename": f"UTF-8''{quote(name, safe='')}"}
        return await self._transport.upload("/attachments", StoredFile, content, query={"id": file_id}, headers=headers)

    def file_stream(self, file_id: UUID) -> SealedStream:
        """The sealed stream of a file; `client.downloads` opens it."""
        return SealedStream(self._transport, f"/attachments/{file_id}")

    async def create_download_link(
        self, file_id: UUID, expires_in: timedelta, max_downloads: int | None = None
    ) -> NewDownloadLink:
        """A link that needs no credential, for 60 s to 30 days; `client.download_links` adds what opens the file."""
        body = {"expires_in": int(expires_in.total_seconds()), "max_downloads": max_downloads}
        return await self._transport.fetch("POST", f"/attachments/{file_id}/links", NewDownloadLink, body=body)

    def download_links(self, file_id: UUID) -> AsyncIterator[DownloadLink]:
        """The caller's own links to a file, newest first; ended ones too, for a while."""
        return self._list(f"/attachments/{file_id}/links", Page[DownloadLink])

    async def revoke_download_link(self, link_id: UUID) -> None:
        await self._transport.send("DELETE", f"/links/{link_id}")

    # Read requests

    async def request_read(self, post_id: UUID, *, public_key_id: UUID | None = None) -> ReadRequest:
        """Ask to read a post, for the named key or the newest active one. Asking twice gives the one pending request.

        Conflict `already_readable`, `already_requested`, `not_sealed`, `no_key`, `recently_denied` (with `retry_at`).
        """
        body = {"public_key_id": public_key_id}
        path = f"/posts/{post_id}/request_read"
        return await self._transport.fetch("POST", path, ReadRequest, body=body, repeatable=True)

    def read_requests(self, role: str = "decider", status: str | None = None) -> AsyncIterator[ReadRequest]:
        """Requests that the caller may decide (`decider`) or made (`requester`), newest first."""
        return self._list("/read-requests", Page[ReadRequest], {"role": role, "status": status})

    async def read_request(self, request_id: UUID) -> ReadRequest:
        answer = await self._transport.fetch("GET", f"/read-requests/{request_id}", ReadRequest)
        if answer.id != request_id:
            raise Substituted("the server answered with another request")
        return answer

    async def approve(self, request_id: UUID, sealed_key: bytes) -> ReadRequest:
        """Grant with the post key sealed to the requester's key, 80 bytes. Make it with `client.granting`."""
        path = f"/read-requests/{request_id}/approve"
        return await self._transport.fetch("POST", path, ReadRequest, body={"sealed_key": sealed_key})

    async def deny(self, request_id: UUID) -> ReadRequest:
        return await self._transport.fetch("POST", f"/read-requests/{request_id}/deny", ReadRequest)

    async def withdraw(self, request_id: UUID) -> None:
        """Take a pending request back, or give back an approved one that does not open the post."""
        await self._transport.send("DELETE", f"/read-requests/{request_id}")

    # Events

    def follow(self, since: str | None = None, *, renew: Renew | None = None) -> Follower:
        """Follow the WebSocket, through lost connections. `since` is the `at` of an earlier `CaughtUp`."""
        return Follower(self.address, lambda: self.token, since=since, renew=renew, rest=self._requests_as_events)

    async def _requests_as_events(self, since: str | None) -> AsyncIterator[Event]:
        """All that a replay would tell if it were not cut short: requests to decide, and decisions on own ones."""
        async for request in self.read_requests("decider", "pending"):
            if event := event_of(request):
                yield event
        if since is not None:
            after = datetime.fromisoformat(since) - REPLAY_MARGIN
            async for request in self.read_requests("requester"):
                if request.decided_at is not None and request.decided_at >= after and (event := event_of(request)):
                    yield event

    async def _list(
        self, path: str, page: type[Page[Item]], query: Mapping[str, object] | None = None
    ) -> AsyncIterator[Item]:
        cursor: str | None = None
        while True:
            whole_query = {**(query or {}), "limit": PAGE_SIZE, "cursor": cursor}
            answer = await self._transport.fetch("GET", path, page, query=whole_query)
            for item in answer.items:
                yield item
            if answer.next_cursor is not None and answer.next_cursor == cursor:
                raise BadAnswer(f"GET {path} answered the same page twice")
            cursor = answer.next_cursor
            if cursor is None:
                return
