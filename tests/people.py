"""Users of a running server, for tests: they sign up, enrol keys, post, read and listen, all over real sockets."""

import asyncio
import json
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from server.sealing import keys as sealing_keys
from server.sealing import posts as sealing_posts
from server.sealing.encoding import decode_base64, encode_base64

PASSWORD = "correct horse battery staple"

# Far more than anything here takes, on a busy machine too; only what fails waits for so long.
PATIENCE_S = 20


class Device:
    """A pair of key pairs, and the key that the server made of their public halves."""

    def __init__(self, user_id: UUID) -> None:
        self.user_id = user_id
        self.encryption = sealing_keys.new_encryption_pair()
        self.signing = sealing_keys.new_signing_pair()
        self.key: dict[str, Any] = {}

    def body(self, label: str = "laptop") -> dict[str, str]:
        proof = sealing_keys.prove(self.user_id, self.encryption.public, self.signing.private)
        return {
            "public_key": encode_base64(self.encryption.public),
            "verify_key": encode_base64(self.signing.public),
            "proof": encode_base64(proof),
            "label": label,
        }

    @property
    def id(self) -> str:
        return str(self.key["id"])


class Person:
    """A signed-up user with an HTTP client of its own; calls return the answer, whatever its status."""

    def __init__(self, client: httpx.AsyncClient, user: dict[str, Any]) -> None:
        self.client = client
        self.user = user
        self.id = UUID(user["id"])
        self.token: str = user["token"]["token"]
        self.devices: list[Device] = []
        client.headers["Authorization"] = f"Bearer {self.token}"

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **options) if body is not None else await self.client.post(path)

    async def patch(self, path: str, body: Any) -> httpx.Response:
        return await self.client.patch(path, json=body)

    async def delete(self, path: str) -> httpx.Response:
        return await self.client.delete(path)

    async def enrol(self, label: str = "laptop") -> Device:
        device = Device(self.id)
        device.key = good(await self.post("/keys", device.body(label)), 201)
        self.devices.append(device)
        return device

    async def found_group(self, *members: "Person", name: str = "friends") -> str:
        group = good(await self.post("/groups", {"name": name}), 201)
        for member in members:
            await self.add(str(group["id"]), member)
        return str(group["id"])

    async def add(self, group_id: str, member: "Person", role: str = "member") -> None:
        good(await self.post(f"/groups/{group_id}/members", {"user_id": str(member.id), "role": role}), 201)

    async def publish(self, group_id: str, title: str = "A title", content: str = "Some text") -> dict[str, Any]:
        """A post, once it is sealed."""
        body = {"group_id": group_id, "title": title, "content": content}
        post = good(await self.post("/posts", body), 201)
        return await self.wait_until_sealed(post["id"])

    async def wait_until_sealed(self, post_id: str, within_s: float = PATIENCE_S) -> dict[str, Any]:
        post = await self.wait_until_not_pending(post_id, within_s)
        assert post["status"] == "sealed", post
        return post

    async def wait_until_not_pending(self, post_id: str, within_s: float = PATIENCE_S) -> dict[str, Any]:
        async with asyncio.timeout(within_s):
            while (post := good(await self.get(f"/posts/{post_id}")))["status"] == "pending":  # noqa: ASYNC110 - as a client without a socket does
                await asyncio.sleep(0.02)
        return dict(post)

    async def ask(self, post_id: str, status: int = 201) -> dict[str, Any]:
        return dict(good(await self.post(f"/posts/{post_id}/request_read"), status))

    async def approve(self, post: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        answer = await self.post(f"/read-requests/{request['id']}/approve", self.reseal(post, request))
        return dict(good(answer))

    async def access(self, post_id: str) -> str:
        return str(good(await self.get(f"/posts/{post_id}"))["access"])

    @asynccontextmanager
    async def listen(self, query: str = "", *, at: str | None = None) -> AsyncIterator["Listener"]:
        """An open WebSocket of this user, to its own server or the one `at` an address, with all of its replay read."""
        headers = {"Authorization": f"Bearer {self.token}"}
        async with open_socket(at or str(self.client.base_url), query, headers) as listener:
            await listener.catch_up()
            yield listener

    def post_key(self, post: dict[str, Any]) -> bytes:
        private = {device.id: device.encryption.private for device in self.devices}
        sealed = post["sealed_keys"][0]
        return sealing_posts.open_key(decode_base64(sealed["sealed_key"]), private[sealed["public_key_id"]])

    def open(self, post: dict[str, Any]) -> tuple[str, str]:
        """Title and text of a server-sealed post, every check made."""
        title, document = self.open_document(post)
        return title, document.content

    def open_document(self, post: dict[str, Any]) -> tuple[str, sealing_posts.Document]:
        """Title and document of a server-sealed post, every check made."""
        ids = sealing_posts.PostIds(UUID(post["id"]), UUID(post["group_id"]), UUID(post["author_id"]))
        sealed = {name: decode_base64(post[name]) for name in ("heading", "content", "content_hash", "commitment")}
        return sealing_posts.open_post(
            ids, self.post_key(post), **sealed, signature=None, verify_key=None, sealed_by=post["sealed_by"]
        )

    def reseal(self, post: dict[str, Any], request: dict[str, Any]) -> dict[str, str]:
        """The body that approves `request` for `post`."""
        sealed = sealing_posts.seal_key(self.post_key(post), decode_base64(request["public_key"]))
        return {"sealed_key": encode_base64(sealed)}


def good(answer: httpx.Response, status: int = 200) -> Any:
    """What was answered, if with this status."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    return answer.json()


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and `code` of a problem, the shape of which is checked on the way."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert {"type", "title", "status", "detail", "code"} <= problem.keys()
    assert problem["status"] == answer.status_code
    return answer.status_code, problem["code"]


def new_email() -> str:
    return f"{secrets.token_hex(8)}@example.org"


@asynccontextmanager
async def person(server: str, name: str = "Alice", *, keys: int = 1) -> AsyncIterator[Person]:
    # The server closes what is idle for five seconds, and a request must not meet that halfway.
    limits = httpx.Limits(max_connections=100, keepalive_expiry=2)
    # No certificates: to load them for each client takes longer than to sign up.
    async with httpx.AsyncClient(base_url=server, timeout=30, limits=limits, verify=False) as client:
        body = {"name": name, "email": new_email(), "password": PASSWORD}
        someone = Person(client, good(await client.post("/sign-up", json=body), 201))
        for _ in range(keys):
            await someone.enrol()
        yield someone


async def until(condition: Callable[[], Awaitable[Any]], within_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - the condition is another process'
            await asyncio.sleep(0.01)


def random_id() -> str:
    return str(uuid.uuid4())


class Listener:
    """A WebSocket and what has been heard on it, in order."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.frames: list[dict[str, Any]] = []
        self._event_ids: set[str] = set()

    async def next(self, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next frame. An event is told at least once, so repetitions are skipped, as clients do."""
        async with asyncio.timeout(within_s):
            while True:
                frame = json.loads(await self.connection.recv())
                assert isinstance(frame, dict)
                event_id = frame.get("event_id")
                if event_id is None or event_id not in self._event_ids:
                    break
        if event_id is not None:
            self._event_ids.add(event_id)
        self.frames.append(frame)
        return frame

    async def hear(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next frame of this type and with these fields; others before it are kept in `frames`."""
        while True:
            frame = await self.next()
            if frame["type"] == kind and frame.items() >= fields.items():
                return frame

    async def has_heard(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The like, which may also have come already."""
        for frame in self.frames:
            if frame["type"] == kind and frame.items() >= fields.items():
                return frame
        return await self.hear(kind, **fields)

    async def catch_up(self) -> list[dict[str, Any]]:
        """All frames up to and with `caught_up`."""
        begin = len(self.frames)
        await self.hear("caught_up")
        return self.frames[begin:]

    def kinds(self) -> list[str]:
        return [frame["type"] for frame in self.frames]

    async def closed(self, within_s: float = PATIENCE_S) -> int:
        """The code that the server closes the socket with; frames before that are kept."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    self.frames.append(json.loads(await self.connection.recv()))
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006


@asynccontextmanager
async def open_socket(
    server: str, query: str = "", headers: dict[str, str] | None = None, path: str = "/ws/post_request"
) -> AsyncIterator[Listener]:
    url = server.rstrip("/").replace("http", "ws", 1) + path + query
    async with connect(
        url, additional_headers=headers, compression=None, proxy=None, ping_interval=None, close_timeout=1
    ) as connection:
        yield Listener(connection)


async def all_pages(someone: Person, path: str, limit: int) -> list[dict[str, Any]]:
    """The items of all pages of a list, the sizes of which are checked on the way."""
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        page = good(await someone.get(f"{path}{'&' if '?' in path else '?'}{urlencode(query)}"))
        assert page.keys() == {"items", "next_cursor"}
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            assert len(page["items"]) <= limit
            return items
        assert len(page["items"]) == limit
