import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, serve

from client import events
from client.errors import BadAnswer, CredentialEnded, NetworkError, SocketClosed
from client.events import (
    CaughtUp,
    ConnectionAccepted,
    Disconnected,
    Event,
    More,
    PostSealed,
    ReadRequestApproved,
    decode_event,
    event_of,
)
from client.follow import Follower, backoff
from client.models import ReadRequest

POST, GROUP, USER = uuid4(), uuid4(), uuid4()


def frame(kind: str, **fields: Any) -> str:
    return msgspec.json.encode({"type": kind, "event_id": uuid4(), **fields}).decode()


def accepted() -> str:
    return frame("connection.accepted", message="connection accepted", user_id=USER)


def caught_up(at: str = "2026-01-02T03:04:05.000006Z") -> str:
    return frame("caught_up", at=at)


def sealed(**fields: Any) -> str:
    return frame("post.sealed", post_id=POST, group_id=GROUP, author_id=USER, **fields)


def created(request_id: UUID, **fields: Any) -> str:
    return frame(
        "read_request.created",
        request_id=request_id,
        post_id=POST,
        requested_user_id=USER,
        user_public_key=bytes(32),
        public_key_id=uuid4(),
        verify_key=bytes(32),
        fingerprint="aaaa bbbb",
        requester_name="Carol",
        group_id=GROUP,
        created_at="2026-01-02T03:04:05.000006Z",
        **fields,
    )


class Script:
    """What the server says on one connection after the other; `None` breaks the connection, a number closes it."""

    def __init__(self, *connections: list[str | int | None]) -> None:
        self.connections = list(connections)
        self.handshakes: list[tuple[str, str | None]] = []

    async def __call__(self, connection: ServerConnection) -> None:
        request = connection.request
        assert request is not None
        self.handshakes.append((request.path, request.headers.get("Authorization")))
        for said in self.connections.pop(0) if self.connections else []:
            if said is None:
                connection.transport.abort()
            elif isinstance(said, int):
                await connection.close(said)
            else:
                await connection.send(said)
        await connection.wait_closed()


@asynccontextmanager
async def following(script: Script, **options: Any) -> AsyncIterator[Follower]:
    async with serve(script, "127.0.0.1", 0) as server:
        host, port = next(iter(server.sockets)).getsockname()
        async with Follower(f"http://{host}:{port}", lambda: "sbs_token", **options) as follower:
            yield follower


async def until(follower: Follower, kind: type[Event], times: int = 1) -> list[Event]:
    heard: list[Event] = []
    async with asyncio.timeout(10):
        async for event in follower:
            heard.append(event)
            if sum(isinstance(one, kind) for one in heard) == times:
                break
    return heard


def kinds(heard: list[Event]) -> list[str]:
    return [event.type for event in heard]


async def test_frames_come_out_typed_and_pings_do_not() -> None:
    script = Script([accepted(), caught_up(), '{"type":"ping"}', sealed()])
    async with following(script) as follower:
        heard = await until(follower, PostSealed)
    assert kinds(heard) == ["connection.accepted", "caught_up", "post.sealed"]
    assert isinstance(heard[0], ConnectionAccepted)
    assert isinstance(heard[2], PostSealed)
    assert heard[2].post_id == POST
    assert script.handshakes == [("/ws/post_request", "Bearer sbs_token")]


async def test_a_frame_of_a_later_version_is_passed_over() -> None:
    async with following(Script([frame("comment.added", what="ever"), sealed(colour="red")])) as follower:
        assert kinds(await until(follower, PostSealed)) == ["post.sealed"]


@pytest.mark.parametrize("bad", ["{}", "[]", "nonsense", '{"type":"caught_up"}', '{"type":"post.sealed","post_id":1}'])
async def test_a_frame_that_breaks_the_contract_is_one_error(bad: str) -> None:
    async with following(Script([bad])) as follower:
        with pytest.raises(BadAnswer):
            await until(follower, PostSealed)


@pytest.mark.parametrize(("end", "code"), [(None, 1006), (1001, 1001), (1012, 1012), (1013, 1013)])
async def test_a_lost_connection_is_made_again_where_it_had_caught_up(end: int | None, code: int) -> None:
    script = Script([accepted(), caught_up("2026-01-02T00:00:00.000001Z"), end], [accepted(), sealed()])
    async with following(script) as follower:
        heard = await until(follower, PostSealed)
    assert kinds(heard) == ["connection.accepted", "caught_up", "disconnected", "connection.accepted", "post.sealed"]
    lost = heard[2]
    assert isinstance(lost, Disconnected)
    assert lost.code == code
    assert 0.25 <= lost.retry_in <= 0.5
    first, second = (parse_qs(urlsplit(path).query) for path, _ in script.handshakes)
    assert first == {}
    assert second == {"since": ["2026-01-02T00:00:00.000001Z"]}


async def test_a_given_since_is_sent_at_once() -> None:
    script = Script([sealed()])
    async with following(script, since="2026-01-01T00:00:00+01:00") as follower:
        await until(follower, PostSealed)
    assert parse_qs(urlsplit(script.handshakes[0][0]).query) == {"since": ["2026-01-01T00:00:00+01:00"]}


@pytest.mark.parametrize("code", [1003, 1007, 1009, 4400, 4403, 4429, 4999, 1000])
async def test_other_close_codes_are_final(code: int) -> None:
    script = Script([accepted(), caught_up(), code])
    async with following(script) as follower:
        with pytest.raises(SocketClosed) as caught:
            await until(follower, PostSealed)
    assert caught.value.code == code
    assert not isinstance(caught.value, CredentialEnded)
    assert len(script.handshakes) == 1


@pytest.mark.parametrize("code", [1008, 4401, 4408])
async def test_a_credential_that_does_not_hold_is_told_apart(code: int) -> None:
    async with following(Script([accepted(), code])) as follower:
        with pytest.raises(CredentialEnded):
            await until(follower, PostSealed)


async def test_an_ended_credential_is_renewed_if_there_is_a_way() -> None:
    renewed = 0

    async def renew() -> None:
        nonlocal renewed
        renewed += 1

    script = Script([accepted(), caught_up(), 4408], [accepted(), sealed()])
    async with following(script, renew=renew) as follower:
        assert "disconnected" in kinds(await until(follower, PostSealed))
    assert renewed == 1


async def test_a_wrong_credential_is_not_renewed() -> None:
    async def renew() -> None:
        raise AssertionError

    async with following(Script([4401]), renew=renew) as follower:
        with pytest.raises(CredentialEnded):
            await until(follower, PostSealed)


async def test_a_renewal_that_does_not_reach_the_server_is_tried_again() -> None:
    answers: list[Exception | None] = [NetworkError("away"), None]

    async def renew() -> None:
        if answer := answers.pop(0):
            raise answer

    async with following(Script([accepted(), caught_up(), 4408], [sealed()]), renew=renew) as follower:
        assert kinds(await until(follower, PostSealed)).count("disconnected") == 2


async def test_what_was_told_is_not_told_again() -> None:
    again, request_id = sealed(), uuid4()
    script = Script(
        [created(request_id), again, again, caught_up(), None],
        # The same request under another event id is the same request.
        [created(request_id, replayed=True), again, frame_of_end()],
    )
    async with following(script) as follower:
        heard = await until(follower, ReadRequestApproved)
    assert kinds(heard).count("read_request.created") == 1
    assert kinds(heard).count("post.sealed") == 1


def frame_of_end() -> str:
    return frame("read_request.approved", request_id=uuid4(), post_id=POST, decided_by=USER, decided_at=None)


async def test_the_requests_that_still_wait_are_told_even_if_each_was_told_before() -> None:
    settled, waiting = uuid4(), uuid4()
    script = Script(
        [created(settled, replayed=True), created(waiting, replayed=True), caught_up(), None],
        [created(waiting, replayed=True), caught_up(), created(uuid4()), caught_up()],
    )
    async with following(script) as follower:
        heard = await until(follower, CaughtUp, 3)
    assert [one.pending for one in heard if isinstance(one, CaughtUp)] == [
        {settled, waiting},
        {waiting},
        # A second replay on one connection begins anew, and what came live is no part of it.
        frozenset(),
    ]


async def test_a_replay_that_broke_off_leaves_nothing_in_the_next_one() -> None:
    settled, waiting = uuid4(), uuid4()
    script = Script(
        [caught_up(), created(settled, replayed=True), None], [created(waiting, replayed=True), caught_up()]
    )
    async with following(script) as follower:
        heard = await until(follower, CaughtUp, 2)
    assert isinstance(heard[-1], CaughtUp)
    assert heard[-1].pending == {waiting}


async def test_what_a_replay_leaves_out_is_read_from_the_lists_before_it_is_caught_up() -> None:
    replayed, listed = uuid4(), uuid4()
    asked: list[str | None] = []

    async def rest(since: str | None) -> AsyncIterator[Event]:
        asked.append(since)
        for request_id in (listed, replayed):
            yield decode_event(created(request_id, replayed=True)) or Event()

    more = frame("more", next="/read-requests?role=decider&cursor=x")
    script = Script([created(replayed, replayed=True), more, caught_up()])
    async with following(script, rest=rest, since="2026-01-01T00:00:00Z") as follower:
        heard = await until(follower, CaughtUp)
    assert kinds(heard) == ["read_request.created", "more", "read_request.created", "caught_up"]
    assert isinstance(heard[1], More)
    assert isinstance(heard[-1], CaughtUp)
    assert heard[-1].pending == {replayed, listed}
    assert asked == ["2026-01-01T00:00:00Z"]


async def test_lists_that_can_not_be_read_are_read_again_after_reconnecting() -> None:
    answers: list[Exception | None] = [NetworkError("away"), None]

    async def rest(since: str | None) -> AsyncIterator[Event]:
        if answer := answers.pop(0):
            raise answer
        yield decode_event(created(uuid4(), replayed=True)) or Event()

    script = Script([frame("more"), caught_up()], [frame("more"), caught_up()])
    async with following(script, rest=rest) as follower:
        heard = await until(follower, CaughtUp)
    assert kinds(heard) == ["more", "disconnected", "more", "read_request.created", "caught_up"]


async def test_a_cancelled_wait_loses_nothing() -> None:
    may_go_on = asyncio.Event()

    async def say(connection: ServerConnection) -> None:
        await connection.send(accepted())
        await may_go_on.wait()
        await connection.send(sealed())
        await connection.wait_closed()

    async with serve(say, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with Follower(f"http://127.0.0.1:{port}", lambda: None) as follower:
            await until(follower, ConnectionAccepted)
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(follower), 0.02)
            may_go_on.set()
            assert kinds(await until(follower, PostSealed)) == ["post.sealed"]


async def test_a_connection_that_falls_silent_is_given_up() -> None:
    async with following(Script([accepted()], [sealed()]), silence=0.1) as follower:
        heard = await until(follower, PostSealed)
    assert kinds(heard) == ["connection.accepted", "disconnected", "post.sealed"]


async def test_a_first_connection_that_fails_is_raised() -> None:
    follower = Follower("http://127.0.0.1:9", lambda: None)
    with pytest.raises(NetworkError, match="can't be reached"):
        await anext(follower)


async def refusing(status: int) -> tuple[asyncio.Server, str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(("status", "kind"), [(404, BadAnswer), (403, BadAnswer), (503, NetworkError)])
async def test_an_answer_that_opens_no_socket_is_raised(status: int, kind: type[Exception]) -> None:
    server, address = await refusing(status)
    async with server, Follower(address, lambda: None) as follower:
        with pytest.raises(kind):
            await anext(follower)


def test_waits_double_up_to_ten_seconds() -> None:
    assert [backoff(tried, 0.9999999) for tried in (1, 2, 3, 9, 500)] == pytest.approx([0.5, 1, 2, 10, 10], rel=1e-3)
    assert [backoff(tried, 0.0) for tried in (1, 2, 3, 9, 500)] == pytest.approx([0.25, 0.5, 1, 5, 5])


async def test_the_wait_starts_anew_only_after_it_has_caught_up() -> None:
    script = Script([accepted(), 1012], [accepted(), 1012], [accepted(), caught_up(), 1012], [sealed()])
    async with following(script) as follower:
        heard = await until(follower, PostSealed)
    waits = [one.retry_in for one in heard if isinstance(one, Disconnected)]
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0
    assert 0.25 <= waits[2] <= 0.5


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("pending", "read_request.created"),
        ("approved", "read_request.approved"),
        ("denied", "read_request.denied"),
        ("cancelled", "read_request.cancelled"),
        ("returned", "read_request.returned"),
    ],
)
def test_a_listed_request_is_the_event_that_a_replay_would_have_told(status: str, kind: str) -> None:
    request = msgspec.json.decode(
        msgspec.json.encode(
            {
                "id": uuid4(),
                "post_id": POST,
                "group_id": GROUP,
                "requester_id": USER,
                "requester_name": "Carol",
                "public_key_id": uuid4(),
                "public_key": bytes(32),
                "verify_key": bytes(32),
                "fingerprint": "aaaa",
                "status": status,
                "created_at": "2026-01-02T03:04:05.000006Z",
            }
        ),
        type=ReadRequest,
    )
    event = event_of(request)
    assert event is not None
    assert (event.type, event.request_id, event.replayed) == (kind, request.id, True)
    assert event_of(msgspec.structs.replace(request, status="considered")) is None


@pytest.mark.parametrize("kind", [kind for kind in events._KINDS if kind != "read_request.created"])
def test_every_kind_of_frame_can_be_read(kind: str) -> None:
    fields = ["user_id", "request_id", "post_id", "group_id", "author_id", "failure", "at"]
    event = decode_event(frame(kind, **{name: uuid4() for name in fields}))
    assert event is not None
    assert event.type == kind
