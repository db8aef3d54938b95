"""A second device: its key is vouched for by the first, which hands it all that it can read."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from uuid_utils.compat import uuid7

from client import Client, linking
from client.errors import BadLinkCode, CannotOpen, HeldElsewhere, KeyRevoked, NetworkError, Substituted
from client.identity import HeldKey, Identity, make_key
from client.linking import find_voucher, hand_posts, posts_to_hand, read_link_code, wait_until_enrolled, write_link_code
from client.models import Key
from client.pins import Trust, save_pins
from server.sealing import keys as sealing_keys
from tests.client.devices import Device
from tests.client.lying_server import NOW
from tests.client.rewriting_server import Liar
from tests.client.scripted_server import problem
from tests.people import PASSWORD


@pytest.fixture
async def phone(anna: Device, tmp_path: Path) -> AsyncIterator[Device]:
    """Another device of Anna's, logged in and without a key."""
    async with Client(anna.client.address) as client:
        await client.login(anna.email, PASSWORD)
        phone = Device("Anna", tmp_path / "phone", client, anna.user)
        session = anna.profile.session()
        assert session is not None
        phone.profile.save_session(msgspec.structs.replace(session, token=client.token, key_id=None, fingerprint=None))
        phone.save_identity(Identity())
        yield phone


def new_key_of(user_id: UUID) -> HeldKey:
    return make_key(user_id, "", "phone", NOW)


def test_a_link_code_holds_the_key_and_its_label() -> None:
    held = new_key_of(uuid7())
    code = write_link_code(held, "Täschle")
    read = read_link_code(f"  {code[:50]}\n{code[50:]}\t", held.user_id)
    assert (read.public_key, read.verify_key, read.label) == (held.public_key, held.verify_key, "Täschle")
    sealing_keys.check_proof(held.user_id, read.public_key, read.verify_key, read.proof)
    assert len(code) < 200
    assert code[0].isalnum()


def test_a_link_code_that_was_damaged_or_cut_short_is_none() -> None:
    held = new_key_of(uuid7())
    code = write_link_code(held, "phone")
    for position in range(len(code)):
        other = "A" if code[position] != "A" else "B"
        with pytest.raises(BadLinkCode):
            read_link_code(code[:position] + other + code[position + 1 :], held.user_id)
    for damaged in ("", "A", code[:-1], code[1:], code + "A", code + "=", "ü" + code, "$" * 190):
        with pytest.raises(BadLinkCode):
            read_link_code(damaged, held.user_id)


def test_a_link_code_is_for_one_account_and_proven() -> None:
    held = new_key_of(uuid7())
    with pytest.raises(CannotOpen, match="another account"):
        read_link_code(write_link_code(held, "phone"), uuid7())
    false = msgspec.structs.replace(held, user_id=uuid7())
    with pytest.raises(CannotOpen):
        read_link_code(write_link_code(false, "phone"), held.user_id)


async def test_a_phone_is_linked_and_reads_what_the_laptop_can(anna: Device, ben: Device, phone: Device) -> None:
    group_id = await anna.found_group(ben)
    by_author = (await anna.publish(group_id)).post.id
    by_server = (await anna.client.create_post(group_id, "T", "C")).id
    await anna.client.wait_until_sealed(by_server, 20)
    ben.verify(anna)

    waiting = await phone.ask_for("key", "new", "--no-wait", "--label", "phone")
    assert waiting["state"] == "waiting"
    # Before it is linked only this disk knows of it, and not the server.
    assert phone.key.fingerprint == waiting["fingerprint"]
    assert [key.id async for key in phone.client.own_keys()] == [anna.key.key_id]

    linked = await anna.run("key", "link", waiting["link_code"], "--fingerprint", waiting["fingerprint"].upper())
    assert linked.exit_code == 0, linked.output
    assert waiting["fingerprint"] in linked.stdout
    assert "Linked phone: 2 posts handed on." in linked.stdout
    assert anna.key.fingerprint in linked.stderr
    # It was linked meanwhile, and so there is no code to be shown.
    made = await phone.run("key", "new", "--json")
    assert "key link" not in made.output
    key = json.loads(made.stdout)
    assert (key["fingerprint"], key["endorsed_by"]) == (waiting["fingerprint"], str(anna.key.key_id))
    assert anna.key.fingerprint in made.stderr
    session = phone.profile.session()
    assert session is not None
    assert (str(session.key_id), session.fingerprint) == (key["id"], key["fingerprint"])

    # What the phone takes from the laptop counts as met first, until its person has compared it.
    assert (await phone.read(by_author)).signed is Trust.UNVERIFIED
    assert (await phone.read(by_server)).title == "T"
    await phone.do("key", "verify", anna.id, anna.key.fingerprint)
    assert (await phone.read(by_author)).signed is Trust.VERIFIED
    # New posts are sealed to it, by those who had verified the laptop without a question.
    posted = await ben.publish(group_id)
    assert {one.trust for one in posted.recipients.accepted if one.key.user_id == anna.user.id} == {
        Trust.VERIFIED,
        Trust.ENDORSED,
    }
    assert (await phone.read(posted.post.id)).title == "The key"
    assert (await phone.publish(group_id)).post.signing_key_id == UUID(key["id"])


async def link(laptop: Device, phone: Device) -> Key:
    """Linked without posts, through the SDK."""
    held = new_key_of(laptop.user.id)
    code = read_link_code(write_link_code(held, "phone"), laptop.user.id)
    own = [key async for key in laptop.client.own_keys()]
    key = await linking.enrol_linked(laptop.client, laptop.identity, own, laptop.user.id, code)
    phone.save_identity(Identity(keys=(msgspec.structs.replace(held, key_id=key.id),)))
    linking.trust_own_key(laptop.people(), key, [*own, key])
    save_pins(phone.profile.pins_path, {laptop.user.id: linking.own_pins((), key, own, own)})
    return key


async def test_an_interrupted_linking_goes_on_where_it_was(anna: Device, liar: Liar) -> None:
    group_id = await anna.found_group()
    oldest, *_ = [(await anna.publish(group_id, f"post {number}")).post.id for number in range(5)]
    code = write_link_code(new_key_of(anna.user.id), "phone")
    anna.go_through(liar.address)
    liar.answer("POST", f"/posts/{oldest}/keys", lambda _: problem(500, "internal_error"))
    broken = await anna.run("key", "link", code, "--yes")
    assert broken.exit_code == 3
    [key_id] = [key.id async for key in anna.client.own_keys() if key.id != anna.key.key_id]
    assert f"go on with: secureblogs key link {key_id}" in broken.stderr
    liar.tell_the_truth()
    # By the id of the key as well, and without a question: its fingerprint was compared.
    went_on = await anna.ask_for("key", "link", key_id)
    assert str(oldest) in went_on["granted"]
    assert went_on["had"] + len(went_on["granted"]) == 5
    again = await anna.ask_for("key", "link", code)
    assert (again["granted"], again["had"], again["failed"]) == ([], 5, {})


async def test_a_crash_in_the_middle_loses_nothing(anna: Device, phone: Device, liar: Liar) -> None:
    group_id = await anna.found_group()
    for number in range(10):
        await anna.publish(group_id, f"post {number}")
    key = await link(anna, phone)
    async with Client(liar.address, anna.client.token) as client:
        to_hand = await posts_to_hand(client, anna.identity, key)
        assert (len(to_hand.post_ids), to_hand.had, to_hand.elsewhere) == (10, 0, 0)
        done = 0

        def crash_after_three() -> None:
            nonlocal done
            done += 1
            if done == 3:
                raise NetworkError("crash")

        with pytest.raises(NetworkError):
            await hand_posts(client, anna.identity, anna.people(client), key, to_hand.post_ids, crash_after_three)
        rest = await posts_to_hand(client, anna.identity, key)
        assert 3 <= rest.had < 10
        handed = await hand_posts(client, anna.identity, anna.people(client), key, rest.post_ids, lambda: None)
    assert len(handed.granted) == 10 - rest.had
    assert (await posts_to_hand(anna.client, anna.identity, key)).had == 10


async def test_what_does_not_verify_is_not_handed_on(anna: Device, phone: Device, liar: Liar) -> None:
    group_id = await anna.found_group()
    good, bad = [(await anna.publish(group_id, title)).post for title in ("good", "bad")]
    key = await link(anna, phone)
    anna.go_through(liar.address)
    liar.rewrite("GET", f"/posts/{bad.id}", lambda post: post.update(content=good.content))
    said = await anna.run("key", "link", key.id, "--json")
    assert said.exit_code == 5
    told = json.loads(said.stdout)
    assert (told["granted"], list(told["failed"])) == ([str(good.id)], [str(bad.id)])
    assert len((await anna.client.post(bad.id)).sealed_keys) == 1


async def test_linking_wants_the_fingerprint_of_the_new_device(anna: Device, ben: Device) -> None:
    held = new_key_of(anna.user.id)
    code, shown = write_link_code(held, "phone"), held.fingerprint
    refusals = [
        (5, shown, anna, (code, "--fingerprint", anna.key.fingerprint)),
        (2, "Nobody is there to confirm this", anna, (code,)),
        (2, "copy it again", anna, (code[:-2], "--yes")),
        (5, "another account", ben, (code, "--yes")),
        (1, "this very device", anna, (anna.key.key_id, "--yes")),
        (1, "no key of yours", anna, (uuid7(), "--yes")),
    ]
    for status, reason, who, arguments in refusals:
        result = await who.run("key", "link", *arguments)
        assert result.exit_code == status, result.output
        assert reason in result.stderr
    assert len([key async for key in anna.client.own_keys()]) == 1


async def test_waiting_is_ended_by_the_link_or_by_an_interrupt(anna: Device, phone: Device) -> None:
    async def wait() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "client", "key", "new", "--label", "phone"],
            env={**os.environ, **phone.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )

    async def hear_code(process: asyncio.subprocess.Process) -> str:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            command = (await process.stdout.readline()).decode()
            await process.stdout.readline()
        return command.split()[-1]

    first = await wait()
    code = await hear_code(first)
    first.send_signal(signal.SIGINT)
    _, complaints = await first.communicate()
    assert first.returncode == 130
    assert b"Traceback" not in complaints
    # What was made is on the disk, and not enrolled.
    assert phone.key.key_id is None
    second = await wait()
    assert await hear_code(second) == code
    await anna.do("key", "link", code, "--yes")
    async with asyncio.timeout(30):
        said, _ = await second.communicate()
    assert second.returncode == 0
    assert phone.key.fingerprint.encode() in said
    assert phone.key.key_id is not None


async def test_alone_it_is_enrolled_without_anybody_vouching_for_it(anna: Device, phone: Device) -> None:
    group_id = await anna.found_group()
    post = (await anna.publish(group_id)).post
    said = await phone.run("key", "new", "--alone", "--json")
    key = json.loads(said.stdout)
    assert key["endorsed_by"] is None
    assert f"secureblogs key verify {anna.id}" in said.stderr
    # The laptop holds the post, and can hand it on all the same.
    assert f"secureblogs key link {key['id']}" in await phone.fail(5, "post", "read", post.id)
    with pytest.raises(HeldElsewhere):
        await phone.read(post.id)
    listed = await phone.run("post", "list")
    assert "\ton another device of yours\n" in listed.stdout
    assert f"secureblogs key link {key['id']}" in listed.stderr
    await anna.do("key", "link", key["id"], "--fingerprint", phone.key.fingerprint)
    assert (await phone.read(post.id)).title == "The key"


async def test_a_lost_device_gets_nothing_any_more(anna: Device, ben: Device, phone: Device) -> None:
    group_id = await anna.found_group(ben)
    before = (await anna.publish(group_id)).post.id
    key = await link(anna, phone)
    await anna.do("key", "link", key.id)
    assert (await phone.read(before)).title == "The key"

    await anna.do("key", "revoke", key.id, "--yes")
    served = await phone.client.post(before)
    assert key.id not in {sealed.public_key_id for sealed in served.sealed_keys}
    with pytest.raises(KeyRevoked):
        await phone.read(before)
    complaint = await phone.fail(5, "post", "read", before)
    assert "this device's key was revoked" in complaint
    assert "secureblogs key new" in complaint
    listed = await phone.run("post", "list")
    assert "this device's key was revoked\n" in listed.stdout
    assert "secureblogs key new" in listed.stderr
    assert listed.stderr.count("\n") == 1
    after = await anna.publish(group_id)
    assert key.id not in {one.key.id for one in after.recipients.accepted}
    with pytest.raises(KeyRevoked):
        await phone.read(after.post.id)
    # Not even the owner of the account brings it back.
    brought_back = await anna.run("key", "link", key.id, "--yes")
    assert brought_back.exit_code == 5
    assert "revoked" in brought_back.stderr
    # With no key left but a revoked one, this is what is said.
    await anna.client.revoke_key(anna.identity.keys[0].key_id or uuid7())
    assert (await phone.client.post(before)).access == "no_key"


async def test_the_new_device_takes_no_other_key_for_its_own(anna: Device, phone: Device, liar: Liar) -> None:
    key = await link(anna, phone)
    held = phone.key
    other = sealing_keys.new_signing_pair().public

    def swap(page: dict[str, list[dict[str, str]]]) -> None:
        for one in page["items"]:
            if one["id"] == str(key.id):
                one["verify_key"] = msgspec.to_builtins(other)

    async with Client(liar.address, anna.client.token) as client:
        liar.rewrite("GET", "/keys", swap)
        with pytest.raises(Substituted):
            await wait_until_enrolled(client, held)


async def test_only_an_endorsement_that_holds_counts(anna: Device, phone: Device) -> None:
    key = await link(anna, phone)
    own = [one async for one in anna.client.own_keys()]
    voucher = find_voucher(key, own)
    assert voucher is not None
    assert voucher.id == anna.key.key_id
    assert find_voucher(msgspec.structs.replace(key, endorsement=bytes(64)), own) is None
    assert find_voucher(msgspec.structs.replace(key, endorsed_by=uuid7()), own) is None
    assert find_voucher(msgspec.structs.replace(key, endorsed_by=None), own) is None
