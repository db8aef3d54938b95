"""`/ws/post_request` over real sockets: who may listen, what is heard and by whom, what is replayed, how it ends."""

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote

import pytest
from arq.connections import ArqRedis
from websockets.exceptions import ConnectionClosed

from server import channels, database, jobs
from server import sockets as open_sockets
from server.connections import SocketConnection
from server.controllers import sockets
from server.events import group_channel, timestamp, user_channel
from server.settings import Settings
from server.sockets import CHECK_EVERY_S
from tests.conftest import lasting
from tests.people import PATIENCE_S, Listener, Person, all_pages, good, open_socket, person, until
from tests.processes import Api, environ_of, running_api_process
from tests.test_requests import ask_often, begin

# What the contract gives the server to notice that a credential or a membership has ended.
NOTICED_WITHIN_S = 5
MAX_FRAME_BYTES = 65_536

Thing = TypeVar("Thing")

alice = lasting("Alice")
bob = lasting("Bob")
carol = lasting("Carol")


@pytest.fixture(scope="module")
async def other_api(settings: Settings, server: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """A second API on the same engines, in a process of its own and with settings of its own."""
    environ = environ_of(
        settings,
        ALLOW_QUERY_TOKEN="on",
        ALLOWED_ORIGINS="https://other.example, http://localhost:3000",
        MAX_SOCKETS_PER_USER="3",
    )
    async with running_api_process(environ, tmp_path_factory.mktemp("api") / "log") as api:
        yield api


@pytest.fixture
async def redis(settings: Settings, server: str) -> AsyncIterator[ArqRedis]:
    pool = await jobs.create_pool(str(settings.redis_url))
    yield pool
    await pool.aclose(close_connection_pool=True)


async def close_code(
    server: str, query: str = "", headers: dict[str, str] | None = None, path: str = "/ws/post_request"
) -> int:
    """What becomes of a connection that is refused; nothing may be heard on it."""
    async with open_socket(server, query, headers, path) as listener:
        closed_with = await listener.closed()
        assert listener.frames == []
        return closed_with


def bearer(someone: Person) -> dict[str, str]:
    return {"Authorization": f"Bearer {someone.token}"}


async def buy_ticket(someone: Person) -> str:
    bought = good(await someone.post("/ws-tickets"), 201)
    assert bought.keys() == {"ticket", "expires_in"}
    assert bought["expires_in"] == 30
    return str(bought["ticket"])


async def listeners_of(redis: ArqRedis, channel: str) -> int:
    """API processes that have somebody on this channel."""
    [(_, count)] = await redis.pubsub_numsub(channels.wire_name(channel, channels.PREFIX))
    return int(count)


# ------------------------------------------------------------------------------------------------- credentials


async def test_first_frame_says_who_is_connected(server: str, alice: Person) -> None:
    async with open_socket(server, headers=bearer(alice)) as listener:
        first, second = await listener.next(), await listener.next()
    assert first == {
        "type": "connection.accepted",
        "event_id": first["event_id"],
        "message": "connection accepted",
        "user_id": str(alice.id),
    }
    assert second.keys() == {"type", "event_id", "at"}
    assert second["type"] == "caught_up"
    assert abs(datetime.fromisoformat(second["at"]) - datetime.now(UTC)) < timedelta(seconds=PATIENCE_S)
    assert len(second["at"]) == len("2026-01-31T12:00:00.123456Z")


async def test_trailing_slash_makes_no_difference(server: str, alice: Person) -> None:
    async with open_socket(server, headers=bearer(alice), path="/ws/post_request/") as listener:
        assert (await listener.next())["type"] == "connection.accepted"


async def test_without_a_credential_it_is_closed_with_1008(server: str, alice: Person) -> None:
    assert await close_code(server) == 1008
    # Off, a token in the address is no credential at all.
    assert await close_code(server, f"?token={alice.token}") == 1008


async def test_with_a_bad_credential_it_is_closed_with_4401(server: str, alice: Person, other_api: Api) -> None:
    for header in ("Bearer sbs_nobody", "Bearer ", "Bearer", "", "Basic YTpi", "Bearer é", f"Bearer {alice.token}x"):
        assert await close_code(server, headers={"Authorization": header}) == 4401, header
    for query in ("?ticket=nobody", "?ticket=", "?ticket=%FF", "?ticket=" + "x" * 5000):
        assert await close_code(server, query) == 4401, query[:20]
    for query in ("?token=sbs_nobody", "?token=", "?token=%C3%A9"):
        assert await close_code(other_api.url, query) == 4401, query


async def test_ended_credential_opens_nothing(server: str, database_pool: None) -> None:
    async with person(server, keys=0) as alice:
        late_ticket = await buy_ticket(alice)
        assert (await alice.post("/logout")).status_code == 204
        assert await close_code(server, headers=bearer(alice)) == 4401
        assert await close_code(server, f"?ticket={late_ticket}") == 4401


async def test_ticket_opens_one_socket(server: str, alice: Person, redis: ArqRedis) -> None:
    ticket = await buy_ticket(alice)
    assert not [key for key in await redis.keys() if ticket.encode() in key]
    async with open_socket(server, f"?ticket={ticket}") as listener:
        assert (await listener.next())["user_id"] == str(alice.id)
    assert await close_code(server, f"?ticket={ticket}") == 4401


async def test_ticket_lives_for_thirty_seconds(alice: Person, redis: ArqRedis) -> None:
    before = set(await redis.keys("secureblogs:ticket:*"))
    await buy_ticket(alice)
    [key] = set(await redis.keys("secureblogs:ticket:*")) - before
    assert 25 < await redis.ttl(key) <= 30


async def test_ticket_of_one_api_is_good_at_another(alice: Person, other_api: Api) -> None:
    async with open_socket(other_api.url, f"?ticket={await buy_ticket(alice)}") as listener:
        assert (await listener.next())["user_id"] == str(alice.id)


async def test_token_in_the_address_is_taken_where_that_is_allowed(alice: Person, other_api: Api) -> None:
    async with open_socket(other_api.url, f"?token={alice.token}") as listener:
        assert (await listener.next())["user_id"] == str(alice.id)


async def test_header_wins(server: str, alice: Person, bob: Person, other_api: Api) -> None:
    ticket = await buy_ticket(bob)
    async with open_socket(other_api.url, f"?ticket={ticket}&token={bob.token}", bearer(alice)) as listener:
        assert (await listener.next())["user_id"] == str(alice.id)
    bad = {"Authorization": "Bearer sbs_nobody"}
    assert await close_code(other_api.url, f"?ticket={ticket}&token={bob.token}", bad) == 4401
    async with open_socket(server, f"?ticket={ticket}") as listener:
        assert (await listener.next())["user_id"] == str(bob.id), "nobody has used it"


async def test_foreign_origin_is_closed_with_4403_before_anything_else_is_looked_at(
    server: str, alice: Person, other_api: Api
) -> None:
    for origin in ("https://evil.example", "null", "http://posts.example", "https://posts.example:444", "https://x"):
        for headers in (bearer(alice), {"Authorization": "Bearer sbs_nobody"}, {}):
            assert await close_code(server, "?since=x", headers | {"Origin": origin}) == 4403, origin
    assert await close_code(server, headers=bearer(alice) | {"Origin": "https://other.example"}) == 4403
    ours = ("https://posts.example", "HTTPS://Posts.example")
    for url, origins in ((server, ours), (other_api.url, (*ours, "https://other.example", "http://localhost:3000"))):
        for origin in origins:
            async with open_socket(url, headers=bearer(alice) | {"Origin": origin}) as listener:
                assert (await listener.next())["type"] == "connection.accepted", origin


async def test_since_that_is_no_time_is_closed_with_4400(server: str, alice: Person) -> None:
    for since in (
        *("", "x", "2026-01-31", "2026-01-31T12:00:00", "2026-02-30T12:00:00Z", "2026-01-31T25:00:00Z", "1767225600"),
        *("2026-01-31T12:00:00.1234567Z", "2026-01-31T12:00:00Z ", "2026-01-31 12:00:00Z", "9" * 5000),
        *(
            "9999-12-31T23:59:59-23:59",
            "٢٠٢٦-01-31T12:00:00Z",
            "2026-01-31T12:00:00Z\n",
            "\0",
            "\ud800".encode("utf-8", "surrogatepass"),
        ),
    ):
        assert await close_code(server, f"?since={quote(since)}", bearer(alice)) == 4400, since
    assert await close_code(server, "?since=x") == 1008
    assert await close_code(server, "?since=x", {"Authorization": "Bearer sbs_nobody"}) == 4401


# ------------------------------------------------------------------------------------------- how a socket ends


async def test_socket_ends_with_its_credential(server: str, alice: Person, database_pool: None) -> None:
    """However that ends: all at once here, so that nobody has to wait five times."""

    async def listen_until_it_ends(end: Callable[[Person], Awaitable[Any]], by_ticket: bool = False) -> float:
        async with person(server, keys=0) as someone:
            query = f"?ticket={await buy_ticket(someone)}" if by_ticket else ""
            async with open_socket(server, query, {} if by_ticket else bearer(someone)) as listener:
                await listener.catch_up()
                await end(someone)
                ended_at = time.monotonic()
                assert await listener.closed() == 4408
                return time.monotonic() - ended_at

    def log_out(someone: Person) -> Awaitable[Any]:
        return someone.post("/logout")

    def by_sql(sql: str) -> Callable[[Person], Awaitable[Any]]:
        return lambda someone: database.execute(sql, someone.id)

    took_s = await asyncio.gather(
        listen_until_it_ends(log_out),
        listen_until_it_ends(log_out, by_ticket=True),
        listen_until_it_ends(by_sql('UPDATE user_tokens SET expires = now() WHERE "user" = $1')),
        listen_until_it_ends(by_sql('DELETE FROM user_tokens WHERE "user" = $1')),
        listen_until_it_ends(by_sql("UPDATE users SET disabled_at = now() WHERE id = $1")),
        listen_until_it_ends(by_sql("DELETE FROM users WHERE id = $1")),
    )
    assert max(took_s) < NOTICED_WITHIN_S


async def test_socket_of_another_session_goes_on(server: str) -> None:
    async with person(server, keys=0) as alice:
        login = {"email": alice.user["email"], "password": "correct horse battery staple"}
        second = good(await alice.post("/login", login))["token"]["token"]
        async with alice.listen() as kept, open_socket(server, headers={"Authorization": f"Bearer {second}"}) as ended:
            await ended.catch_up()
            answer = await alice.client.post("/logout", headers={"Authorization": f"Bearer {second}"})
            assert answer.status_code == 204
            assert await ended.closed() == 4408
            group_id = await alice.found_group()
            await kept.hear("group.member_added", group_id=group_id)


async def test_too_many_sockets_of_one_user_are_closed_with_4429(alice: Person, bob: Person, other_api: Api) -> None:
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(alice.listen(at=other_api.url)) for _ in range(3)]
        assert await close_code(other_api.url, headers=bearer(alice)) == 4429
        async with bob.listen(at=other_api.url):
            pass
        await held[0].connection.close()
        await until(lambda: is_open_again(other_api.url, alice))
        group_id = await alice.found_group()
        for listener in held[1:]:
            await listener.hear("group.member_added", group_id=group_id)


async def is_open_again(server: str, someone: Person) -> bool:
    async with open_socket(server, headers=bearer(someone)) as listener:
        with contextlib.suppress(Exception):
            return bool((await listener.next())["type"] == "connection.accepted")
        return False


async def test_what_a_client_sends_is_ignored(alice: Person) -> None:
    async with alice.listen() as listener:
        for text in ("", "x", '{"type":"ping"}', "é" * (MAX_FRAME_BYTES // 2), ["in ", "two"]):
            await listener.connection.send(text)
        await (await listener.connection.ping())
        group_id = await alice.found_group()
        await listener.hear("group.member_added", group_id=group_id)
        assert listener.kinds()[-2:] == ["caught_up", "group.member_added"]


async def test_what_a_client_must_not_send_closes_the_socket(alice: Person) -> None:
    for expected, sent, as_text in (
        (1003, b"binary", None),
        (1003, [b"binary", b" in parts"], None),
        (1007, b"\xff\xfe", True),
        (1009, "x" * (MAX_FRAME_BYTES + 1), None),
        (1009, ["x" * (MAX_FRAME_BYTES // 2), "é" * (MAX_FRAME_BYTES // 4), "x"], None),
    ):
        async with alice.listen() as listener:
            with contextlib.suppress(ConnectionClosed):  # it may be closed before all is sent
                await listener.connection.send(sent, text=as_text)
            assert await listener.closed() == expected


async def test_client_that_reads_nothing_is_closed_with_1013(
    alice: Person, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SEND_TIMEOUT_S", 2)
    async with person(str(alice.client.base_url), keys=0) as lazy, lazy.listen() as listener:
        await flood(redis, lazy)
        # From then on the server only waits to say goodbye.
        await until(lambda: is_alone(redis, lazy))
        assert await listener.closed() == 1013


async def is_alone(redis: ArqRedis, someone: Person) -> bool:
    return await listeners_of(redis, user_channel(someone.id)) == 0


async def flood(redis: ArqRedis, someone: Person, frames: int = 200) -> None:
    """More than fits in all buffers on the way."""
    for number in range(frames):
        await channels.publish(redis, [user_channel(someone.id)], f'{{"type":"{number}","x":"{"x" * 60_000}"}}')


async def test_client_that_falls_too_far_behind_is_closed_with_1013(server: str, redis: ArqRedis) -> None:
    async with (
        person(server, keys=0) as slow,
        person(server, keys=0) as quick,
        slow.listen() as behind,
        quick.listen() as listener,
    ):
        await flood(redis, slow)
        for number in range(channels.MAX_BACKLOG + 1):
            both = [user_channel(slow.id), user_channel(quick.id)]
            await channels.publish(redis, both, f'{{"type":"small","number":{number}}}')
            await listener.hear("small", number=number)
        assert await behind.closed() == 1013
        assert behind.frames[-1]["type"] != "small"


async def test_what_had_to_wait_and_what_comes_meanwhile_is_heard_in_order(server: str, redis: ArqRedis) -> None:
    async with person(server, keys=0) as slow, slow.listen() as listener:
        await flood(redis, slow)
        small = [f"small {number}" for number in range(500)]

        async def go_on() -> None:
            for kind in small:
                await channels.publish(redis, [user_channel(slow.id)], f'{{"type":"{kind}"}}')

        going_on = asyncio.create_task(go_on())
        expected = [str(number) for number in range(200)] + small
        assert [(await listener.next())["type"] for _ in expected] == expected
        await going_on
        [socket] = [one for one in found_in_memory(open_sockets.Socket) if one.caller.user_id == slow.id]

        async def is_written_to_at_once() -> bool:
            return socket._backlog is None and socket._connection.write(b"")

        await until(is_written_to_at_once)


async def test_garbage_on_a_channel_is_no_membership(
    alice: Person, redis: ArqRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async with alice.listen() as listener:
        for garbage in ("", "}", '","user_id":1}', f'","group_id":"x","user_id":"{alice.id}"}}'):
            await channels.publish(redis, [user_channel(alice.id)], f'{{"type":"group.member_{garbage}')
        group_id = await alice.found_group()
        while (frame := json.loads(await skip_garbage(listener)))["type"] != "group.member_added":
            pass
        assert frame["group_id"] == group_id
        post = await alice.publish(group_id)
        await listener.hear("post.sealed", post_id=post["id"])
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


async def skip_garbage(listener: Listener) -> str:
    """The next that is JSON."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            text = str(await listener.connection.recv())
            with contextlib.suppress(ValueError):
                json.loads(text)
                return text


async def test_open_socket_holds_no_credential(alice: Person) -> None:
    ticket = await buy_ticket(alice)
    url = str(alice.client.base_url)
    async with alice.listen(), open_socket(url, f"?ticket={ticket}") as by_ticket:
        await by_ticket.catch_up()
        held = [one for one in found_in_memory(SocketConnection) if not one.disconnected]
        assert len(held) >= 2
        for one in held:
            parser: Any = one.conn.parser
            found = repr((vars(one), vars(one.conn), parser.gi_frame.f_locals, one.scope))
            assert alice.token not in found
            assert ticket not in found


def found_in_memory(kind: type[Thing]) -> list[Thing]:
    """Of this process, in which the API runs as well."""
    return [one for one in gc.get_objects() if type(one) is kind]


async def test_client_that_vanishes_is_forgotten_and_is_no_news(
    server: str, redis: ArqRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async with person(server, keys=0) as alice:
        async with contextlib.AsyncExitStack() as stack:
            held = [await stack.enter_async_context(alice.listen()) for _ in range(5)]
            # Some go while they are written to, the others while nothing happens.
            await flood(redis, alice)
            for listener in held[:3]:
                listener.connection.transport.abort()
            for listener in held[3:]:
                await listener.hear("199")
                listener.connection.transport.abort()
            await until(lambda: is_alone(redis, alice))
        async with alice.listen():
            pass
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


async def test_ping_comes_every_so_often(alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_sockets.PING_EVERY_S == 25
    monkeypatch.setattr(open_sockets, "PING_EVERY_S", 0.05)
    async with alice.listen() as listener:
        assert [await listener.next() for _ in range(3)] == [{"type": "ping"}] * 3


# ------------------------------------------------------------------------------------------ who hears of what


async def test_each_event_is_heard_by_those_it_concerns_and_by_no_one_else(server: str, database_pool: None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        names = ("author", "owner", "member", "latecomer", "stranger")
        author, owner, member, latecomer, stranger = [await enter(person(server, name)) for name in names]
        everyone = [author, owner, member, latecomer, stranger]
        group_id = await owner.found_group(author, member)
        old = [await author.publish(group_id, f"Old {number}") for number in range(4)]
        ears = {someone: await enter(someone.listen()) for someone in everyone}
        for ear in ears.values():
            ear.frames.clear()
        expected: dict[Person, list[str]] = {someone: [] for someone in everyone}

        async def heard(kind: str, *by: Person, **fields: Any) -> dict[str, Any]:
            """The next thing that each of them hears, the same for all."""
            frames = [await ears[someone].next() for someone in by]
            assert [frame["type"] for frame in frames] == [kind] * len(by)
            assert {frame["event_id"] for frame in frames} == {frames[0]["event_id"]}
            assert frames[0].items() >= fields.items()
            for someone in by:
                expected[someone].append(kind)
            return frames[0]

        members, deciders = [author, owner, member], [author, owner]
        await owner.add(group_id, latecomer)
        added = await heard("group.member_added", *members, latecomer, group_id=group_id, user_id=str(latecomer.id))
        assert added.keys() == {"type", "event_id", "group_id", "user_id"}

        post = await author.publish(group_id, "New")
        about = {"post_id": post["id"], "group_id": group_id, "author_id": str(author.id)}
        sealed = await heard("post.sealed", *members, latecomer, **about)
        assert sealed.keys() == {"type", "event_id", *about}

        request = await latecomer.ask(old[0]["id"])
        created = await heard("read_request.created", *deciders)
        assert created == {
            "type": "read_request.created",
            "event_id": created["event_id"],
            "request_id": request["id"],
            "post_id": old[0]["id"],
            "requested_user_id": str(latecomer.id),
            "user_public_key": request["public_key"],
            "public_key_id": request["public_key_id"],
            "verify_key": request["verify_key"],
            "fingerprint": request["fingerprint"],
            "requester_name": "latecomer",
            "group_id": group_id,
            "created_at": request["created_at"],
        }

        async def decided(kind: str, request: dict[str, Any], by: Person | None) -> None:
            frame = await heard(kind, *deciders, latecomer, request_id=request["id"], post_id=request["post_id"])
            assert frame.keys() == {"type", "event_id", "request_id", "post_id", "decided_by", "decided_at"}
            assert frame["decided_by"] == (str(by.id) if by else None)

        assert (await latecomer.delete(f"/read-requests/{request['id']}")).status_code == 204
        await decided("read_request.cancelled", request, None)

        request = await latecomer.ask(old[0]["id"])
        await heard("read_request.created", *deciders)
        await owner.approve(good(await owner.get(f"/posts/{old[0]['id']}")), request)
        await decided("read_request.approved", request, owner)
        assert (await latecomer.delete(f"/read-requests/{request['id']}")).status_code == 204
        await decided("read_request.returned", request, owner)

        request = await latecomer.ask(old[0]["id"])
        await heard("read_request.created", *deciders)
        good(await author.post(f"/read-requests/{request['id']}/deny"))
        await decided("read_request.denied", request, author)

        request = await latecomer.ask(old[1]["id"])
        await heard("read_request.created", *deciders)
        assert (await author.delete(f"/posts/{old[1]['id']}")).status_code == 204
        await decided("read_request.cancelled", request, None)
        deleted = await heard("post.deleted", *members, latecomer, post_id=old[1]["id"], group_id=group_id)
        assert deleted.keys() == {"type", "event_id", *about}

        request = await latecomer.ask(old[2]["id"])
        await heard("read_request.created", *deciders)
        assert (await latecomer.delete(f"/keys/{latecomer.devices[0].id}")).status_code == 204
        await decided("read_request.cancelled", request, None)
        await latecomer.enrol()

        request = await latecomer.ask(old[3]["id"])
        await heard("read_request.created", *deciders)
        assert (await owner.delete(f"/groups/{group_id}/members/{latecomer.id}")).status_code == 204
        gone = {"group_id": group_id, "user_id": str(latecomer.id)}
        await heard("group.member_removed", *members, latecomer, **gone)
        await decided("read_request.cancelled", request, None)

        await author.publish(group_id, "Newest")
        await heard("post.sealed", *members)

        await database.execute(
            'INSERT INTO posts ("group", author, status, sealed_by, draft, request_mac, created_at)'
            " VALUES ($1, $2, 'pending', 'server', 'x', 'x', now() - interval '10 s')",
            *(group_id, author.id),
        )
        failed = await heard("post.failed", author, failure="draft_unreadable", group_id=group_id)
        assert failed.keys() == {"type", "event_id", "failure", *about}

        # Had anybody heard more than was expected, it would stand before what everybody hears now.
        for someone in everyone:
            own_group_id = await someone.found_group()
            await heard("group.member_added", someone, group_id=own_group_id, user_id=str(someone.id))
        assert {someone: ears[someone].kinds() for someone in everyone} == expected


async def test_all_sockets_of_a_user_hear_the_same_wherever_they_are(
    alice: Person, carol: Person, other_api: Api
) -> None:
    story = await begin(alice, carol)
    async with contextlib.AsyncExitStack() as stack:
        ears = [await stack.enter_async_context(alice.listen()) for _ in range(3)]
        ears += [await stack.enter_async_context(alice.listen(at=other_api.url)) for _ in range(2)]
        request = await carol.ask(story.post_id)
        heard = [await ear.hear("read_request.created", request_id=request["id"]) for ear in ears]
        assert heard == [heard[0]] * 5


async def test_new_members_open_socket_hears_of_the_groups_posts_at_once(
    alice: Person, bob: Person, other_api: Api
) -> None:
    group_id = await alice.found_group()
    async with bob.listen() as here, bob.listen(at=other_api.url) as there:
        await alice.add(group_id, bob)
        for ear in (here, there):
            await ear.hear("group.member_added", group_id=group_id)
        post = await alice.publish(group_id)
        for ear in (here, there):
            await ear.hear("post.sealed", post_id=post["id"])


async def test_membership_that_no_event_told_of_is_noticed(
    alice: Person, bob: Person, carol: Person, redis: ArqRedis, database_pool: None
) -> None:
    joined, left = await alice.found_group(), await alice.found_group(bob)
    async with bob.listen(), carol.listen() as listener:
        await until(lambda: is_heard(redis, left, True))
        # Of two users, so that each is noticed by itself.
        await database.execute('DELETE FROM user_group_association WHERE "group" = $1 AND "user" = $2', *(left, bob.id))
        await database.execute(
            """INSERT INTO user_group_association ("group", "user", role) VALUES ($1, $2, 'member')""",
            *(joined, carol.id),
        )
        await until(lambda: is_heard(redis, left, False), NOTICED_WITHIN_S)
        await until(lambda: is_heard(redis, joined, True), NOTICED_WITHIN_S)
        post = await alice.publish(joined)
        await listener.hear("post.sealed", post_id=post["id"])
    assert CHECK_EVERY_S < NOTICED_WITHIN_S - 1


async def test_sockets_of_one_user_that_disagree_are_set_right(
    alice: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_sockets, "CHECK_EVERY_S", 0.2)
    await alice.found_group(bob)
    async with bob.listen(), bob.listen():
        ours = [one for one in found_in_memory(open_sockets.Socket) if one.caller.user_id == bob.id]
        groups = ours[0].group_ids
        assert groups
        for one in ours:
            one.group_ids = open_sockets.NO_GROUPS

            async def knows(one: open_sockets.Socket = one) -> bool:
                return one.group_ids == groups

            await until(knows, NOTICED_WITHIN_S)


async def is_heard(redis: ArqRedis, group_id: Any, expected: bool) -> bool:
    return bool(await listeners_of(redis, group_channel(group_id))) == expected


# --------------------------------------------------------------------------------------------------------- replay


def replayed(frames: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Type and request of the frames that were replayed, which stand between the first frame and `caught_up`."""
    assert frames[0]["type"] == "connection.accepted"
    assert frames[-1]["type"] == "caught_up"
    assert {frame["replayed"] for frame in frames[1:-1]} <= {True}
    return [(frame["type"].removeprefix("read_request."), frame["request_id"]) for frame in frames[1:-1]]


async def test_decider_finds_all_that_is_pending(server: str, bob: Person, carol: Person) -> None:
    async with person(server, "Alice") as alice:
        stories = [await begin(alice, carol, bob) for _ in range(3)]
        async with alice.listen() as live:
            asked = [await carol.ask(story.post_id) for story in stories]
            heard = [await live.hear("read_request.created", request_id=request["id"]) for request in asked]
        good(await alice.post(f"/read-requests/{asked[1]['id']}/deny"))
        for query in ("", f"?since={quote(timestamp(datetime.now(UTC)))}"):
            async with alice.listen(query) as listener:
                frames = listener.frames
                assert set(replayed(frames)) == {("created", asked[0]["id"]), ("created", asked[2]["id"])}
                again = {frame["request_id"]: frame for frame in frames[1:-1]}
                for frame in (heard[0], heard[2]):
                    assert again[frame["request_id"]] == frame | {"replayed": True}
        async with bob.listen() as listener:
            assert not {request["id"] for request in asked} & {subject for _, subject in replayed(listener.frames)}
        # What was settled meanwhile is no longer in the set.
        assert (await carol.delete(f"/read-requests/{asked[0]['id']}")).status_code == 204
        async with alice.listen() as listener:
            assert replayed(listener.frames) == [("created", asked[2]["id"])]


async def test_requester_finds_what_was_decided_while_it_was_away(server: str, alice: Person) -> None:
    async with person(server, "Carol") as carol:
        stories = [await begin(alice, carol) for _ in range(5)]
        asked = [await carol.ask(story.post_id) for story in stories]
        async with carol.listen() as listener:
            at = listener.frames[-1]["at"]
            await alice.approve(stories[0].post, asked[0])
            live = await listener.hear("read_request.approved", request_id=asked[0]["id"])
        await alice.approve(stories[1].post, asked[1])
        good(await alice.post(f"/read-requests/{asked[2]['id']}/deny"))
        assert (await alice.delete(f"/posts/{stories[3].post_id}")).status_code == 204
        expected = [("approved", asked[0]["id"]), ("approved", asked[1]["id"]), ("denied", asked[2]["id"])]
        # `+` for a space is what becomes of an offset that was not escaped.
        for since in (quote(at), at, at.replace("Z", "%2B00:00"), at.replace("Z", "+00:00")):
            async with carol.listen(f"?since={since}") as listener:
                assert replayed(listener.frames) == expected, since
                assert listener.frames[1] == live | {"replayed": True}
        async with carol.listen() as listener:
            assert replayed(listener.frames) == [], "nobody asked for it"
        async with alice.listen(f"?since={quote(at)}") as listener:
            mine = {request["id"] for request in asked}
            assert not mine & {subject for kind, subject in replayed(listener.frames) if kind != "created"}


async def test_replay_begins_a_minute_before_the_time_that_is_named(server: str, alice: Person) -> None:
    async with person(server, "Carol") as carol:
        stories = [await begin(alice, carol) for _ in range(3)]
        asked = [await carol.ask(story.post_id) for story in stories]
        now: datetime = await database.fetchval("SELECT now()")
        for request, age_s in zip(asked, (61, 60, 0), strict=True):
            await database.execute(
                "UPDATE read_post_request SET status = 'denied', decided_at = $2 WHERE id = $1",
                *(request["id"], now - timedelta(seconds=age_s)),
            )
        first, second, third = ((("denied", request["id"])) for request in asked)
        for since, expected in (
            (timestamp(now), [second, third]),
            (timestamp(now + timedelta(microseconds=1)), [third]),
            (timestamp(now - timedelta(seconds=1)), [first, second, third]),
            (timestamp(now + timedelta(seconds=60)), [third]),
            (timestamp(now + timedelta(days=1)), []),
            ("9999-12-31T23:59:59.999999Z", []),
            ("9999-12-31T23:59:59+23:59", []),
            ("0001-01-01T00:00:00Z", [first, second, third]),
            ("0001-01-01T00:00:00+23:59", [first, second, third]),
            ("1970-01-01T00:00:00-00:01", [first, second, third]),
        ):
            async with carol.listen(f"?since={quote(since)}") as listener:
                assert replayed(listener.frames) == expected, since


async def test_beyond_a_thousand_frames_it_says_where_the_rest_is(server: str) -> None:
    async with person(server, "Alice") as alice, person(server, "Carol") as carol:
        story = await begin(alice, carol)
        newest_first = await ask_often(story, carol, 1005)
        # Of what became of her own requests there is no room to tell either, so that is named too.
        other = await begin(carol, alice)
        own = await alice.ask(other.post_id)
        good(await carol.post(f"/read-requests/{own['id']}/deny"))
        for query, expected in (("", 1), ("?since=2026-01-01T00:00:00Z", 2)):
            async with alice.listen(query) as listener:
                told = [frame for frame in listener.frames[1:-1] if frame["type"] != "more"]
                more = [frame for frame in listener.frames if frame["type"] == "more"]
                assert len(told) == 1000
                assert len(more) == expected
                assert all(frame.keys() == {"type", "event_id", "next"} for frame in more)
                rest = await all_pages(alice, more[0]["next"].split("&cursor=")[0], 100)
                next_page = good(await alice.get(more[0]["next"]))
                seen = [frame["request_id"] for frame in told] + [item["id"] for item in next_page["items"]]
                assert sorted(seen) == sorted(newest_first)
                assert {item["id"] for item in rest} == set(newest_first)
            if query:
                assert own["id"] in {item["id"] for item in good(await alice.get(more[1]["next"]))["items"]}


async def test_decisions_beyond_a_thousand_frames_are_named_too(server: str, alice: Person) -> None:
    async with person(server, "Carol") as carol:
        story = await begin(alice, carol)
        ids = await ask_often(story, carol, 1003)
        await database.execute(
            "UPDATE read_post_request SET status = 'denied', decided_at = now() WHERE id = ANY($1::uuid[])", ids
        )
        async with carol.listen("?since=2026-01-01T00:00:00Z") as listener:
            kinds = listener.kinds()
            assert kinds.count("read_request.denied") == 1000
            assert kinds[-2:] == ["more", "caught_up"]
            assert good(await carol.get(listener.frames[-2]["next"]))["items"]


async def test_nothing_falls_between_replay_and_live(server: str, alice: Person) -> None:
    """Requests that are made while a socket opens are heard on it, once at least."""
    async with contextlib.AsyncExitStack() as stack:
        many = [await stack.enter_async_context(person(server, "Carol")) for _ in range(5)]
        group_id = await alice.found_group()
        posts = [await alice.publish(group_id) for _ in range(4)]
        for someone in many:
            await alice.add(group_id, someone)
        questions = [someone.ask(post["id"]) for post in posts for someone in many]

        async def ask_all() -> set[str]:
            return {request["id"] for request in await asyncio.gather(*questions)}

        asking = asyncio.create_task(ask_all())
        ears = [await stack.enter_async_context(alice.listen()) for _ in range(10)]
        asked = await asking
        for ear in ears:
            while not asked <= {frame.get("request_id") for frame in ear.frames}:
                await ear.next()


async def test_what_comes_during_a_replay_is_heard_after_it(server: str, redis: ArqRedis, database_pool: None) -> None:
    async with person(server, keys=0) as alice, contextlib.AsyncExitStack() as stack:
        async with database.transaction():
            await database.execute("LOCK TABLE read_post_request IN ACCESS EXCLUSIVE MODE")
            listener = await stack.enter_async_context(open_socket(server, headers=bearer(alice)))
            await until(lambda: is_somebody(redis, alice))
            await channels.publish(redis, [user_channel(alice.id)], '{"type":"live"}')
            assert (await listener.next())["type"] == "connection.accepted"
        assert [(await listener.next())["type"] for _ in range(2)] == ["caught_up", "live"]


async def test_who_leaves_while_its_socket_opens_leaves_nothing(
    server: str, redis: ArqRedis, database_pool: None
) -> None:
    async with person(server, keys=0) as alice:
        group_id = await alice.found_group()
        async with database.transaction():
            await database.execute("LOCK TABLE user_group_association IN ACCESS EXCLUSIVE MODE")
            async with open_socket(server, headers=bearer(alice)) as listener:
                await until(lambda: is_somebody(redis, alice))
                listener.connection.transport.abort()
            await until(lambda: is_alone(redis, alice))
        # What was left to do for it would be done by now.
        async with person(server, keys=0) as bob, bob.listen():
            assert await is_heard(redis, group_id, False)


async def is_somebody(redis: ArqRedis, someone: Person) -> bool:
    return not await is_alone(redis, someone)
