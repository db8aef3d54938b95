import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from server import channels, events
from server.channels import RECONNECTED, Hub, Overflowed, Subscriber
from tests.redis_server import RedisServer, running_redis


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


def connect(server: RedisServer) -> Redis:
    client: Redis = Redis.from_url(server.url, socket_timeout=2, socket_connect_timeout=1)
    return client


@pytest.fixture
async def redis(shared_server: RedisServer) -> AsyncIterator[Redis]:
    async with connect(shared_server) as client:
        yield client


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex}:"


@pytest.fixture
async def hub(redis: Redis, prefix: str) -> AsyncIterator[Hub]:
    async with Hub(redis, prefix=prefix) as running:
        assert running.connected
        yield running


@asynccontextmanager
async def hub_on(server: RedisServer, silence_s: float = 1.0) -> AsyncIterator[tuple[Hub, Redis]]:
    async with connect(server) as client, Hub(client, silence_s=silence_s) as running:
        yield running, client


async def next_item(subscriber: Subscriber, within_s: float = 2.0) -> str | channels.Reconnected:
    async with asyncio.timeout(within_s):
        return await subscriber.get()


async def frames_until(subscriber: Subscriber, last: str) -> list[str | channels.Reconnected]:
    items: list[str | channels.Reconnected] = []
    while not items or items[-1] != last:
        items.append(await next_item(subscriber))
    return items


async def test_all_subscribers_of_a_channel_get_the_very_same_frame(hub: Hub, redis: Redis, prefix: str) -> None:
    subscribers = [Subscriber() for _ in range(5)]
    for subscriber in subscribers:
        assert await hub.join(subscriber, ["group:1"])

    await channels.publish(redis, ["group:1"], '{"type":"ä"}', prefix=prefix)

    frames = [await next_item(subscriber) for subscriber in subscribers]
    assert frames == ['{"type":"ä"}'] * 5
    assert len({id(frame) for frame in frames}) == 1


async def test_event_on_two_channels_comes_once_to_who_is_on_both(hub: Hub, redis: Redis, prefix: str) -> None:
    both, one = Subscriber(), Subscriber()
    await hub.join(both, ["user:1", "group:1"])
    await hub.join(one, ["group:1"])
    event = events.event("post.sealed", ["user:1", "group:1", "user:2"], post_id=uuid.uuid4())
    other = events.event("post.sealed", ["group:1", "user:1"], post_id=uuid.uuid4())

    await channels.publish_many(redis, [event, other], prefix=prefix)
    await channels.publish(redis, ["group:1"], "last", prefix=prefix)

    assert await frames_until(both, "last") == [event.frame, other.frame, "last"]
    assert await frames_until(one, "last") == [event.frame, other.frame, "last"]


async def test_event_of_this_process_is_there_at_once_and_comes_from_redis_to_newcomers_alone(
    hub: Hub, redis: Redis, prefix: str
) -> None:
    here, newcomer = Subscriber(), Subscriber()
    await hub.join(here, ["user:1", "group:1"])
    event = events.event("post.deleted", ["user:1", "group:1", "user:2"], post_id=uuid.uuid4())

    hub.deliver([event])
    assert here.take() == event.frame
    assert here.take() is None

    await hub.join(newcomer, ["group:1"])
    await channels.publish_many(redis, [event], prefix=prefix)
    await channels.publish(redis, ["group:1"], "last", prefix=prefix)
    assert await frames_until(here, "last") == ["last"]
    assert await frames_until(newcomer, "last") == [event.frame, "last"]


async def test_events_that_redis_lost_are_not_kept_for_ever(hub: Hub) -> None:
    subscriber = Subscriber()
    await hub.join(subscriber, ["group:1"])
    for number in range(channels.MAX_HAD + 50):
        hub.deliver([events.event("post.deleted", ["group:1"], number=number)])
    assert len(hub._had) == channels.MAX_HAD


async def test_frames_of_other_prefixes_are_not_heard(hub: Hub, redis: Redis, prefix: str) -> None:
    subscriber = Subscriber()
    await hub.join(subscriber, ["group:1"])
    await channels.publish(redis, ["group:1"], "other", prefix="other:")
    await channels.publish(redis, ["group:1"], "own", prefix=prefix)
    assert await next_item(subscriber) == "own"


async def test_more_than_one_transaction_of_events_arrives_whole_and_in_order(
    hub: Hub, redis: Redis, prefix: str
) -> None:
    subscriber = Subscriber(max_backlog=5000)
    await hub.join(subscriber, ["group:1"])
    many = [events.event("post.sealed", ["group:1", "user:9"], number=number) for number in range(2500)]
    await channels.publish_many(redis, many, prefix=prefix)
    assert await frames_until(subscriber, many[-1].frame) == [event.frame for event in many]


async def test_concurrent_first_joins_all_hear_what_is_published_after_them(
    hub: Hub, redis: Redis, prefix: str
) -> None:
    async def join_and_hear(number: int) -> None:
        subscriber = Subscriber()
        assert await hub.join(subscriber, [f"user:{number}"])
        await channels.publish(redis, [f"user:{number}"], f"hello {number}", prefix=prefix)
        assert await next_item(subscriber) == f"hello {number}"

    await asyncio.gather(*(join_and_hear(number) for number in range(20)))


async def test_newcomer_hears_although_the_last_one_leaves_meanwhile(hub: Hub, redis: Redis, prefix: str) -> None:
    for number in range(50):
        old, new = Subscriber(), Subscriber()
        await hub.join(old, ["group:1"])
        hub.leave(old)
        # Let the hub come to different points of the unsubscribing before the join.
        for _ in range(number % 5):
            await asyncio.sleep(0)
        assert await hub.join(new, ["group:1"])
        await channels.publish(redis, ["group:1"], f"hello {number}", prefix=prefix)
        assert await next_item(new) == f"hello {number}"
        hub.leave(new)


async def test_who_left_a_channel_hears_no_more_of_it_at_once(hub: Hub, redis: Redis, prefix: str) -> None:
    gone, there = Subscriber(), Subscriber()
    await hub.join(gone, ["group:1", "group:2"])
    await hub.join(there, ["group:1"])
    await channels.publish(redis, ["group:1"], "first", prefix=prefix)
    assert await next_item(gone) == "first"

    hub.leave(gone, ["group:1"])
    hub.leave(gone, ["group:1"])
    await channels.publish(redis, ["group:1"], "second", prefix=prefix)
    await channels.publish(redis, ["group:2"], "third", prefix=prefix)

    assert await next_item(gone) == "third"
    assert await frames_until(there, "second") == ["first", "second"]


async def test_cancelled_join_can_be_left_and_nothing_stays(own_server: RedisServer) -> None:
    async with hub_on(own_server, silence_s=30) as (hub, redis):
        own_server.send(signal.SIGSTOP)
        subscriber = Subscriber()
        joining = asyncio.create_task(hub.join(subscriber, ["group:1"], timeout_s=30))
        await asyncio.sleep(0)
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        hub.leave(subscriber)
        own_server.send(signal.SIGCONT)

        other = Subscriber()
        assert await hub.join(other, ["group:2"])
        assert await redis.pubsub_channels() == [b"secureblogs:group:2"]


async def test_table_and_subscriptions_shrink_to_nothing(hub: Hub, redis: Redis, prefix: str) -> None:
    subscribers = [Subscriber() for _ in range(1000)]
    names = [[f"user:{number}", f"group:{number % 100}"] for number in range(1000)]
    await asyncio.gather(*(hub.join(subscriber, on) for subscriber, on in zip(subscribers, names, strict=True)))
    assert len(await redis.pubsub_channels(f"{prefix}*")) == 1100
    await channels.publish(redis, ["group:1"], "hello", prefix=prefix)
    await next_item(subscribers[1])

    for subscriber in subscribers:
        hub.leave(subscriber)

    await until_no_channels(redis, prefix)
    assert not any((hub._members, hub._joined, hub._subscribed, hub._joins, hub._changed, hub._reached))


async def until_no_channels(redis: Redis, prefix: str) -> None:
    async with asyncio.timeout(2):
        while await redis.pubsub_channels(f"{prefix}*"):  # noqa: ASYNC110 - Redis has no event for it
            await asyncio.sleep(0.01)


async def test_slow_reader_overflows_alone_and_is_told(hub: Hub, redis: Redis, prefix: str) -> None:
    slow, quick = Subscriber(max_backlog=100), Subscriber(max_backlog=100)
    await hub.join(slow, ["group:1"])
    await hub.join(quick, ["group:1"])
    waiting = asyncio.create_task(frames_until(quick, "100"))

    for number in range(101):
        await channels.publish(redis, ["group:1"], str(number), prefix=prefix)

    assert await waiting == [str(number) for number in range(101)]
    assert slow.overflowed
    with pytest.raises(Overflowed):
        await next_item(slow)
    assert not slow._items


async def test_waiting_reader_is_woken_by_its_overflow() -> None:
    subscriber = Subscriber(max_backlog=1)
    reading = asyncio.create_task(subscriber.get())
    await asyncio.sleep(0)
    subscriber.put("first")
    subscriber.put("second")
    with pytest.raises(Overflowed):
        await reading


async def test_full_backlog_still_takes_the_news_of_a_reconnection() -> None:
    subscriber = Subscriber(max_backlog=1)
    subscriber.put("first")
    subscriber.put(RECONNECTED)
    subscriber.put(RECONNECTED)
    assert [await next_item(subscriber), await next_item(subscriber)] == ["first", RECONNECTED]
    assert not subscriber.overflowed
    assert not subscriber._items


async def test_burst_does_not_overflow_who_reads(hub: Hub, redis: Redis, prefix: str) -> None:
    subscriber = Subscriber(max_backlog=1000)
    await hub.join(subscriber, ["group:1"])
    reading = asyncio.create_task(frames_until(subscriber, "9999"))
    async with redis.pipeline(transaction=False) as pipeline:
        for number in range(10_000):
            envelope = channels.write_envelope(os.urandom(16), str(number))
            pipeline.publish(channels.wire_name("group:1", prefix), envelope)
        await pipeline.execute()
    assert len(await reading) == 10_000


async def test_burst_for_many_leaves_the_loop_to_others(
    hub: Hub, redis: Redis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "REACH_AT_ONCE", 20)
    reached_at_once = [0]

    class Counting:
        def put(self, _item: str | channels.Reconnected) -> None:
            if not reached_at_once[-1]:
                asyncio.get_running_loop().call_soon(reached_at_once.append, 0)
            reached_at_once[-1] += 1

    for _ in range(10):
        await hub.join(Counting(), ["group:1"])
    subscriber = Subscriber()
    await hub.join(subscriber, ["group:2"])
    many = [events.event("post.sealed", ["group:1"], number=number) for number in range(50)]
    last = events.event("post.sealed", ["group:2"])
    await channels.publish_many(redis, [*many, last], prefix=prefix)
    await frames_until(subscriber, last.frame)
    assert sum(reached_at_once) == 500
    assert max(reached_at_once) <= 40


async def test_garbage_on_a_channel_harms_nobody(hub: Hub, redis: Redis, prefix: str) -> None:
    subscriber = Subscriber()
    await hub.join(subscriber, ["group:1"])
    for garbage in (b"", b"short", b"x" * 16 + b"\xff\xfe"):
        await redis.publish(channels.wire_name("group:1", prefix), garbage)
    await channels.publish(redis, ["group:1"], "hello", prefix=prefix)
    assert (await frames_until(subscriber, "hello"))[-1] == "hello"
    assert hub.connected


async def test_all_subscribers_hear_again_after_redis_was_killed(own_server: RedisServer) -> None:
    async with hub_on(own_server) as (hub, redis):
        subscribers = [Subscriber() for _ in range(200)]
        await asyncio.gather(*(hub.join(one, [f"user:{n}", "group:1"]) for n, one in enumerate(subscribers)))
        own_server.kill()
        with pytest.raises(channels.UNAVAILABLE):
            await channels.publish(redis, ["group:1"], "lost")
        own_server.start()

        assert {await next_item(one, within_s=5) for one in subscribers} == {RECONNECTED}
        events_ = [events.event("post.sealed", [f"user:{n}", "group:1"]) for n in range(200)]
        await channels.publish_many(redis, events_)
        for number, one in enumerate(subscribers):
            frames = await frames_until(one, events_[-1].frame)
            assert frames == [event.frame for event in events_], number


async def test_killed_connection_is_made_again_and_told(hub: Hub, redis: Redis, prefix: str) -> None:
    subscriber = Subscriber()
    await hub.join(subscriber, ["group:1"])
    own = [one["id"] for one in await redis.client_list(_type="pubsub") if one["name"] == "secureblogs-hub"]
    for client_id in own:
        await redis.client_kill_filter(_id=client_id)
    assert await next_item(subscriber) is RECONNECTED
    await channels.publish(redis, ["group:1"], "hello", prefix=prefix)
    assert await next_item(subscriber) == "hello"


async def test_connection_that_died_without_a_word_is_found_and_told(own_server: RedisServer) -> None:
    async with hub_on(own_server, silence_s=1.0) as (hub, redis):
        subscriber = Subscriber()
        await hub.join(subscriber, ["group:1"])
        own_server.send(signal.SIGSTOP)
        begun = time.monotonic()
        async with asyncio.timeout(3):
            while hub.connected:  # noqa: ASYNC110 - the hub tells its subscribers of the return alone
                await asyncio.sleep(0.01)
        assert time.monotonic() - begun < 2
        assert not await hub.check(0.2)
        own_server.send(signal.SIGCONT)
        assert await next_item(subscriber, within_s=6) is RECONNECTED
        await channels.publish(redis, ["group:1"], "hello")
        assert await next_item(subscriber) == "hello"


async def test_idle_connection_stays(own_server: RedisServer) -> None:
    async with hub_on(own_server, silence_s=0.3) as (hub, redis):
        subscriber = Subscriber()
        await hub.join(subscriber, ["group:1"])
        await asyncio.sleep(1)
        await channels.publish(redis, ["group:1"], "hello")
        assert await next_item(subscriber) == "hello", "it was lost and made again"


async def test_late_confirmation_of_a_join_is_told(own_server: RedisServer) -> None:
    async with hub_on(own_server, silence_s=30) as (hub, redis):
        own_server.send(signal.SIGSTOP)
        subscriber = Subscriber()
        assert not await hub.join(subscriber, ["group:1"], timeout_s=0.1)
        own_server.send(signal.SIGCONT)
        assert await next_item(subscriber) is RECONNECTED
        await channels.publish(redis, ["group:1"], "hello")
        assert await next_item(subscriber) == "hello"


async def test_join_outlasts_a_lost_connection(own_server: RedisServer) -> None:
    async with hub_on(own_server, silence_s=30) as (hub, redis):
        own_server.send(signal.SIGSTOP)
        subscriber = Subscriber()
        joining = asyncio.create_task(hub.join(subscriber, ["group:1"], timeout_s=10))
        await until_asked(hub)
        own_server.kill()
        own_server.start()
        assert await joining
        await channels.publish(redis, ["group:1"], "hello")
        assert (await frames_until(subscriber, "hello"))[-1] == "hello"


async def until_asked(hub: Hub) -> None:
    async with asyncio.timeout(2):
        while not any(hub._pings.values()):  # noqa: ASYNC110 - nobody else needs to know
            await asyncio.sleep(0.01)


async def test_hub_starts_without_redis_and_catches_up(own_server: RedisServer) -> None:
    own_server.kill()
    async with hub_on(own_server) as (hub, redis):
        assert not hub.connected
        assert not await hub.check(0.2)
        subscriber = Subscriber()
        assert not await hub.join(subscriber, ["group:1"], timeout_s=0.1)
        own_server.start()
        assert await next_item(subscriber, within_s=5) is RECONNECTED
        assert await hub.check()
        await channels.publish(redis, ["group:1"], "hello")
        assert await next_item(subscriber) == "hello"


async def test_loop_survives_an_unexpected_error(
    hub: Hub, redis: Redis, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    reached = asyncio.Event()

    class Broken:
        def put(self, _item: str | channels.Reconnected) -> None:
            reached.set()
            raise ValueError("broken receiver")

    broken, subscriber = Broken(), Subscriber()
    await hub.join(subscriber, ["group:2"])
    await hub.join(broken, ["group:1"])
    await channels.publish(redis, ["group:1"], "hello", prefix=prefix)
    await asyncio.wait_for(reached.wait(), 2)
    hub.leave(broken)
    assert await next_item(subscriber) is RECONNECTED
    assert "unexpected error" in caplog.text


async def test_check_sees_its_own_message_and_leaves_nothing(hub: Hub, redis: Redis, prefix: str) -> None:
    assert await asyncio.gather(*(hub.check() for _ in range(5))) == [True] * 5
    await until_no_channels(redis, prefix)


async def test_hub_ends_at_once_also_without_redis(own_server: RedisServer) -> None:
    async with hub_on(own_server) as (hub, _):
        await hub.join(Subscriber(), ["group:1"])
        own_server.send(signal.SIGSTOP)
        begun = time.monotonic()
    assert time.monotonic() - begun < 1
    assert not hub.connected
