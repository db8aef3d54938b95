"""Deciding many requests at once, approving by rule, and giving back what does not open."""

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid7

from client import Client
from client.errors import CannotOpen, GrantReturned, WrongPostKey
from client.events import ReadRequestCreated, event_of
from client.models import ReadRequest, SealedKey
from client.pins import Trust
from client.returning import MOST_RETURNS, check_grant, give_back
from client.serving import Allowance, Decision, consider, read_approvals, write_decision
from server.sealing import posts as sealing_posts
from tests.client.devices import Device
from tests.client.rewriting_server import Liar, lying
from tests.client.scripted_server import Reply, problem

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


async def ask_for_all(asker: Device, group_id: UUID) -> list[ReadRequest]:
    return [await asker.client.request_read(post.id) async for post in asker.client.posts(group_id)]


async def group_with_posts(author: Device, *latecomers: Device, posts: int = 3) -> UUID:
    group_id = await author.found_group()
    for number in range(posts):
        await author.publish(group_id, f"post {number}")
    for latecomer in latecomers:
        await author.client.add_member(group_id, user_id=latecomer.user.id)
    return group_id


async def test_all_requests_are_decided_at_once_and_confirmed_once_for_each_key(
    anna: Device, ben: Device, cleo: Device
) -> None:
    group_id = await group_with_posts(anna, ben, cleo)
    bens, cleos = await ask_for_all(ben, group_id), await ask_for_all(cleo, group_id)
    listed = await anna.ask_for("requests", "list")
    assert {one["key"] for one in listed} == {"never met"}

    # Nobody is there to be asked for a confirmation.
    assert (await anna.run("requests", "approve", "--all")).exit_code == 2
    only_ben = await anna.do("requests", "approve", "--all", "--from", "Ben", "--yes")
    assert only_ben.count(ben.key.fingerprint) == 1
    assert "post 0" in only_ben
    assert "Approved 3, failed 0." in only_ben
    assert {(await ben.read(one.post_id)).title for one in bens} == {"post 0", "post 1", "post 2"}
    assert {one.status for one in [await cleo.client.read_request(one.id) for one in cleos]} == {"pending"}

    anna.verify(cleo)
    assert {one["key"] for one in await anna.ask_for("requests", "list")} == {"verified"}
    rest = await anna.ask_for("requests", "approve", "--all", "--from", cleo.id, "--fingerprint", cleo.key.fingerprint)
    assert {one["id"] for one in rest["approved"]} == {str(one.id) for one in cleos}
    assert "Nobody asks" in (await anna.run("requests", "approve", "--all", "--yes")).stderr


async def test_one_that_fails_does_not_stop_the_others(anna: Device, ben: Device, liar: Liar) -> None:
    group_id = await group_with_posts(anna, ben, posts=4)
    tampered, refused, *good = await ask_for_all(ben, group_id)
    other = await anna.client.post(good[0].post_id)
    anna.go_through(liar.address)
    liar.rewrite("GET", f"/posts/{tampered.post_id}", lambda post: post.update(content=other.content))
    liar.answer("POST", f"/read-requests/{refused.id}/approve", lambda _: problem(409, "already_decided"))
    result = await anna.run("requests", "approve", "--all", "--yes", "--json")
    assert result.exit_code == 5
    told = json.loads(result.stdout)
    assert {one["id"] for one in told["approved"]} == {str(one.id) for one in good}
    assert {one["id"] for one in told["failed"]} == {str(tampered.id), str(refused.id)}
    assert "2 of 4 requests could not be approved" in result.stderr
    assert (await ben.client.read_request(tampered.id)).status == "pending"
    said = await anna.run("requests", "approve", "--all", "--fingerprint", anna.key.fingerprint)
    assert said.exit_code == 5
    assert f"another fingerprint: {ben.key.fingerprint}" in said.stderr


async def test_a_key_that_is_not_trusted_is_passed_over_with_a_reason(anna: Device, ben: Device, cleo: Device) -> None:
    group_id = await anna.found_group(ben)
    await anna.publish(group_id)
    await anna.client.remove_member(group_id, ben.user.id)
    post_id = (await anna.publish(group_id)).post.id
    for latecomer in (ben, cleo):
        await anna.client.add_member(group_id, user_id=latecomer.user.id)
    new = await ben.enrol()
    await ben.client.request_read(post_id, public_key_id=new.id)
    await cleo.client.request_read(post_id)
    listed = await anna.ask_for("requests", "list")
    assert {one["requester_name"]: one["key"] for one in listed} == {
        "Ben": "another key than was met",
        "Cleo": "never met",
    }
    result = await anna.run("requests", "approve", "--all", "--yes")
    assert result.exit_code == 5
    assert "Approved 1, failed 1." in result.stdout
    assert f"secureblogs key verify {ben.id}" in result.stderr
    assert (await cleo.read(post_id)).title == "The key"


async def test_names_that_two_people_have_decide_nothing(anna: Device, ben: Device, cleo: Device) -> None:
    group_id = await group_with_posts(anna, ben, cleo, posts=1)
    for asker in (ben, cleo):
        await ask_for_all(asker, group_id)

    async with liar_about_names(anna):
        said = await anna.run("requests", "approve", "--all", "--from", "Same", "--yes")
        assert said.exit_code == 2
        assert "give the id" in said.stderr
    for wrong in (("--all", uuid7()), (), ("--from", "Ben"), (uuid7(), "--from", "Ben")):
        assert (await anna.run("requests", "approve", *wrong)).exit_code == 2


@asynccontextmanager
async def liar_about_names(someone: Device) -> AsyncIterator[None]:
    def same(page: Any) -> None:
        for one in page["items"]:
            one["requester_name"] = "Same"

    before = someone.client.address
    async with lying(before) as liar:
        liar.rewrite("GET", "/read-requests", same)
        someone.go_through(liar.address)
        yield
        someone.go_through(before)


# By rule


class Rule:
    """What `requests serve` does with one request."""

    def __init__(self, decider: Device, per_hour: int = 20) -> None:
        self.decider = decider
        self.allowance = Allowance(per_hour)
        self.recorded: list[Decision] = []

    async def consider(self, event: ReadRequestCreated, now: datetime = NOW) -> Decision:
        return await consider(
            self.decider.client,
            self.decider.identity,
            self.decider.people(),
            event,
            allowance=self.allowance,
            record=self.recorded.append,
            now=now,
        )


async def created(asker: Device, group_id: UUID) -> list[ReadRequestCreated]:
    events = [event_of(request) for request in await ask_for_all(asker, group_id)]
    return [event for event in events if isinstance(event, ReadRequestCreated)]


async def test_the_rule_approves_for_verified_keys_alone(anna: Device, ben: Device, cleo: Device) -> None:
    group_id = await group_with_posts(anna, ben, cleo, posts=1)
    anna.verify(ben)
    [bens], [cleos] = await created(ben, group_id), await created(cleo, group_id)
    rule = Rule(anna)
    assert (await rule.consider(bens)).decision == "approved"
    assert [one.decision for one in rule.recorded] == ["approving", "approved"]
    assert (await ben.read(bens.post_id)).title == "post 0"
    never_met = await rule.consider(cleos)
    assert (never_met.decision, never_met.reason) == ("left", "its key is never met")
    await anna.people().accepted_key(cleo.user.id, cleos.public_key_id)
    assert anna.pinned(cleo.user.id) == {cleo.key.fingerprint: Trust.UNVERIFIED}
    met = await rule.consider(cleos)
    assert (met.decision, met.reason) == ("left", "its key is unverified")
    endorsed = await ben.enrol(endorser=ben.identity)
    await anna.people().accepted_key(ben.user.id, endorsed.id)
    by_endorsed = msgspec.structs.replace(
        bens, public_key_id=endorsed.id, user_public_key=endorsed.public_key, verify_key=endorsed.verify_key
    )
    assert (await rule.consider(by_endorsed)).reason == "its key is endorsed"
    assert (await cleo.client.read_request(cleos.request_id)).status == "pending"


async def test_the_rule_stops_at_its_limit_and_starts_again_an_hour_later(anna: Device, ben: Device) -> None:
    group_id = await group_with_posts(anna, ben, posts=3)
    anna.verify(ben)
    first, second, third = await created(ben, group_id)
    rule = Rule(anna, per_hour=2)
    assert [(await rule.consider(one)).decision for one in (first, second)] == ["approved", "approved"]
    assert (await rule.consider(third, NOW + timedelta(minutes=59))).reason == "2 were approved within the hour"
    assert (await rule.consider(third, NOW + timedelta(minutes=61))).decision == "approved"


async def test_the_rule_leaves_a_request_that_is_not_what_was_announced(
    anna: Device, ben: Device, cleo: Device
) -> None:
    group_id = await group_with_posts(anna, ben, cleo, posts=2)
    anna.verify(ben)
    one, other = await created(ben, group_id)
    rule = Rule(anna)
    for false in (
        msgspec.structs.replace(one, post_id=other.post_id),
        msgspec.structs.replace(one, group_id=uuid7()),
        msgspec.structs.replace(one, public_key_id=uuid7()),
        msgspec.structs.replace(one, request_id=other.request_id),
    ):
        left = await rule.consider(false)
        assert (left.decision, left.reason) == ("left", "the server shows this request otherwise than it announced it")
    # A verified key in the frame of another user is a stranger's.
    [cleos] = [event for event in await created(cleo, group_id) if event.post_id == one.post_id]
    borrowed = msgspec.structs.replace(
        cleos, user_public_key=one.user_public_key, verify_key=one.verify_key, fingerprint=one.fingerprint
    )
    assert (await rule.consider(borrowed)).reason == "its key is never met"
    assert {request.status async for request in anna.client.read_requests()} == {"pending"}


def test_the_limit_outlasts_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    assert read_approvals(path, NOW) == []
    for decision in decisions():
        write_decision(path, decision)
    with path.open("ab") as file:
        file.write(b'{"at": "2026')
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_approvals(path, NOW - timedelta(hours=1)) == [NOW]


def decisions() -> Iterator[Decision]:
    for at, decision in ((NOW - timedelta(hours=2), "approving"), (NOW, "approving"), (NOW, "approved"), (NOW, "left")):
        yield msgspec.convert(
            {
                "at": at,
                "request_id": uuid7(),
                "post_id": uuid7(),
                "requester_id": uuid7(),
                "requester_name": "Ben",
                "fingerprint": "",
                "standing": "verified",
                "decision": decision,
                "reason": "",
            },
            Decision,
        )


async def test_serving_approves_verified_keys_and_shows_the_others(anna: Device, ben: Device, cleo: Device) -> None:
    group_id = await group_with_posts(anna, ben, cleo, posts=1)
    anna.verify(ben)
    [waiting] = await created(cleo, group_id)
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "client", "requests", "serve", "--auto-approve-verified"],
        env={**os.environ, **anna.environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            said = [(await process.stdout.readline()).decode() for _ in range(2)]
            [asked] = await created(ben, group_id)
            said += [(await process.stdout.readline()).decode() for _ in range(2)]
            process.send_signal(signal.SIGINT)
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 130
    assert f"{cleo.key.fingerprint} (never met)" in said[0]
    assert f"requests approve {waiting.request_id}" in said[1]
    assert f"{ben.key.fingerprint} (verified)" in said[2]
    assert "approved" in said[3]
    assert (await ben.read(asked.post_id)).title == "post 0"
    logged = [
        msgspec.json.decode(line, type=Decision) for line in anna.profile.decisions_path.read_bytes().splitlines()
    ]
    assert [(one.requester_name, one.decision) for one in logged] == [
        ("Cleo", "left"),
        ("Ben", "approving"),
        ("Ben", "approved"),
    ]


# Giving back


async def grant_badly(decider: Device, request: ReadRequest) -> None:
    """With the key of nothing, as a decider's faulty client might."""
    wrong = sealing_posts.seal_key(sealing_posts.new_post_key(), request.public_key)
    await decider.client.approve(request.id, wrong)


async def grant_well(decider: Device, request: ReadRequest) -> None:
    opened = await decider.read(request.post_id)
    await decider.client.approve(request.id, sealing_posts.seal_key(opened.post_key, request.public_key))


async def pending_of(decider: Device) -> ReadRequest:
    [request] = [one async for one in decider.client.read_requests("decider", "pending")]
    return request


async def test_a_grant_that_does_not_open_is_given_back_and_asked_for_again_twice(anna: Device, ben: Device) -> None:
    await group_with_posts(anna, ben, posts=1)
    [post_id] = [post.id async for post in ben.client.posts()]
    request = await ben.client.request_read(post_id)
    for number, verb in ((1, ("post", "read", post_id)), (2, ("post", "list"))):
        await grant_badly(anna, request)
        result = await ben.run(*verb)
        assert result.exit_code == (5 if verb[1] == "read" else 0)
        assert f"given back, and asked for again ({number} of 2)" in result.output
        assert (await ben.client.read_request(request.id)).status == "returned"
        request = await pending_of(anna)
        assert (request.post_id, request.requester_id) == (post_id, ben.user.id)
    await grant_badly(anna, request)
    said = await ben.fail(5, "post", "read", post_id)
    assert f"given back {MOST_RETURNS} times already" in said
    assert (await ben.client.read_request(request.id)).status == "approved"
    # Its person may do it all the same.
    await ben.do("requests", "withdraw", request.id, "--yes")
    await grant_well(anna, await ben.client.request_read(post_id))
    assert await ben.do("post", "read", post_id, "--raw") == "is under the mat"


async def test_tail_opens_what_is_granted(anna: Device, ben: Device, liar: Liar) -> None:
    await group_with_posts(anna, ben, posts=1)
    [post_id] = [post.id async for post in ben.client.posts()]
    asked = await ben.ask_for("ask", post_id)
    await grant_badly(anna, await anna.client.read_request(UUID(asked["id"])))
    unchecked = await ben.run("tail", "--once", "--no-check")
    assert "given back" not in unchecked.output
    since = msgspec.to_builtins(datetime.now(UTC) - timedelta(minutes=1))
    told = await ben.run("tail", "--once", "--since", since)
    assert f"post {post_id}: what was granted does not open this post: it was given back" in told.stderr
    again = await pending_of(anna)
    await grant_well(anna, again)
    told = await ben.run("tail", "--once", "--since", since)
    assert f"request {again.id} is approved" in told.stdout
    assert "given back" not in told.stderr
    # Whoever decided hears of it too, and has nothing to open.
    async with Client(liar.address, anna.client.token) as client:
        await check_grant(client, anna.identity, anna.people(client), anna.profile.returns_path, again.id, anna.user.id)
    assert [call.target for call in liar.calls] == [f"/read-requests/{again.id}"]


async def test_only_what_was_granted_is_given_back(anna: Device, ben: Device, liar: Liar) -> None:
    group_id = await anna.found_group(ben)
    post = (await anna.publish(group_id)).post
    wrong = WrongPostKey(post.id, (ben.key.key_id or uuid7(),))
    assert await give_back(ben.client, ben.profile.returns_path, wrong) is wrong
    assert not ben.profile.returns_path.exists()
    # A post whose key is right and whose text is not, is no fault of a grant.
    await anna.client.remove_member(group_id, ben.user.id)
    post = (await anna.publish(group_id)).post
    await anna.client.add_member(group_id, user_id=ben.user.id)
    request = await ben.client.request_read(post.id)
    await grant_well(anna, request)
    ben.go_through(liar.address)
    liar.rewrite("GET", f"/posts/{post.id}", lambda told: told.update(content=told["heading"]))
    assert "given back" not in await ben.fail(5, "post", "read", post.id)
    # Nor is a grant of this post given back for another one.
    assert await give_back(ben.client, ben.profile.returns_path, wrong) is wrong
    assert (await ben.client.read_request(request.id)).status == "approved"


async def test_a_server_that_grants_badly_for_ever_is_asked_no_more(anna: Device, ben: Device, liar: Liar) -> None:
    await group_with_posts(anna, ben, posts=1)
    [post_id] = [post.id async for post in ben.client.posts()]
    await grant_well(anna, await ben.client.request_read(post_id))
    wrong_key = SealedKey(
        public_key_id=ben.key.key_id or uuid7(),
        sealed_key=sealing_posts.seal_key(sealing_posts.new_post_key(), ben.key.public_key),
    )
    liar.rewrite("GET", f"/posts/{post_id}", lambda post: post.update(access="readable", sealed_keys=[wrong_key]))
    [request] = [one async for one in anna.client.read_requests()]
    liar.answer("DELETE", "/read-requests/.*", lambda _: Reply(204))
    liar.answer("POST", f"/posts/{post_id}/request_read", lambda _: Reply(201, request))
    async with Client(liar.address, ben.client.token) as client:
        for number in range(4):
            wrong = WrongPostKey(post_id, (wrong_key.public_key_id,))
            error = await give_back(client, ben.profile.returns_path, wrong)
            assert isinstance(error, GrantReturned if number < 4 else CannotOpen)
    assert len(liar.seen("DELETE", "/read-requests/.*")) == MOST_RETURNS
