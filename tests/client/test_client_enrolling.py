"""No crash and no lost answer leaves an enrolled key that nobody holds."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from uuid_utils.compat import uuid7

from client import Client
from client.enrolling import Enrolled, new_key
from client.errors import BadAnswer, NetworkError
from client.identity import HeldKey, Identity, make_key
from server.sealing import keys as sealing_keys
from server.sealing.encoding import decode_base64
from tests.client.lying_server import public
from tests.client.scripted_server import HANG_UP, Call, Hang, Reply, problem, serving

ALICE = UUID("01a20321-a5ff-7417-ba1c-afe16fbe8207")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Enroller:
    """The server's part: it knows a key that it has seen. `loses` counts the answers that get lost."""

    def __init__(self, *known: dict[str, Any], loses: int = 0) -> None:
        self.known = list(known)
        self.loses = loses

    def __call__(self, call: Call) -> Reply | Hang:
        if call.method == "GET":
            return Reply(200, {"items": self.known})
        asked = call.json
        if any(decode_base64(asked["public_key"]) == key["public_key"] for key in self.known):
            return problem(409, "key_taken")
        for name in ("public_key", "verify_key", "proof"):
            asked[name] = decode_base64(asked[name])
        sealing_keys.check_proof(ALICE, asked["public_key"], asked["verify_key"], asked["proof"])
        shown = sealing_keys.fingerprint(ALICE, asked["public_key"], asked["verify_key"])
        self.known.insert(0, {**asked, "id": uuid7(), "user_id": ALICE, "created_at": NOW, "fingerprint": shown})
        if self.loses:
            self.loses -= 1
            return HANG_UP
        return Reply(201, self.known[0])


class Disk:
    """What was saved, in the order in which it was."""

    def __init__(self) -> None:
        self.saved: list[Identity] = []

    def __call__(self, identity: Identity) -> None:
        self.saved.append(identity)


def a_key() -> HeldKey:
    return make_key(ALICE, "", "laptop", NOW)


async def make(script: Enroller, identity: Identity, disk: Disk) -> Enrolled:
    async with serving(script) as server, Client(server.address, "sbs_token") as client:
        return await new_key(client, ALICE, "laptop", identity, save=disk, now=NOW)


async def test_a_key_is_saved_before_and_after_the_server_hears_of_it() -> None:
    server, disk = Enroller(), Disk()
    enrolled = await make(server, Identity(), disk)
    before, after = disk.saved
    assert before.keys[0].key_id is None
    assert after.keys[0].key_id == enrolled.key.id == server.known[0]["id"]
    assert before.keys[0].private_key == after.keys[0].private_key
    assert not enrolled.was_waiting


async def test_a_lost_answer_leaves_a_key_that_is_enrolled_the_next_time() -> None:
    server, disk = Enroller(loses=1), Disk()
    with pytest.raises(NetworkError):
        await make(server, Identity(), disk)
    assert len(server.known) == 1
    enrolled = await make(server, disk.saved[-1], disk)
    assert enrolled.was_waiting
    assert len(server.known) == 1
    assert disk.saved[-1].held(server.known[0]["id"]) is not None
    assert disk.saved[-1].not_enrolled(ALICE) == []


async def test_a_crash_before_enrolling_loses_nothing() -> None:
    waiting = a_key()
    server, disk = Enroller(), Disk()
    enrolled = await make(server, Identity(keys=(waiting,)), disk)
    assert enrolled.was_waiting
    assert server.known[0]["public_key"] == waiting.public_key
    assert len(disk.saved[-1].keys) == 1


async def test_a_waiting_key_that_was_revoked_meanwhile_does_not_stand_for_a_new_one() -> None:
    waiting = a_key()
    server, disk = Enroller(public(waiting, id=uuid7(), revoked_at=NOW)), Disk()
    enrolled = await make(server, Identity(keys=(waiting,)), disk)
    assert not enrolled.was_waiting
    assert enrolled.key.public_key != waiting.public_key
    assert all(key.key_id is not None for key in disk.saved[-1].keys)


async def test_a_label_that_was_refused_does_not_stick_to_the_waiting_key() -> None:
    waiting = msgspec.structs.replace(a_key(), label="refused")
    server, disk = Enroller(), Disk()
    await make(server, Identity(keys=(waiting,)), disk)
    assert server.known[0]["label"] == "laptop"


async def test_a_key_of_another_user_in_the_same_file_is_left_alone() -> None:
    other = make_key(uuid7(), "", "", NOW)
    disk = Disk()
    enrolled = await make(Enroller(), Identity(keys=(other,)), disk)
    assert not enrolled.was_waiting
    assert disk.saved[-1].keys[0] == other


async def test_a_second_key_is_endorsed_by_the_first() -> None:
    server, disk = Enroller(), Disk()
    first = await make(server, Identity(), disk)
    await make(server, disk.saved[-1], disk)
    second = server.known[0]
    assert second["endorsed_by"] == str(first.key.id)
    sealing_keys.check_endorsement(
        ALICE,
        second["public_key"],
        second["verify_key"],
        first.key.verify_key,
        decode_base64(second["endorsement"]),
    )


@pytest.mark.parametrize("reason", ["revoked", "held elsewhere"])
async def test_a_key_that_can_not_vouch_endorses_nothing(reason: str) -> None:
    server, disk = Enroller(), Disk()
    await make(server, Identity(), disk)
    if reason == "revoked":
        server.known[0]["revoked_at"] = NOW
    await make(server, disk.saved[-1] if reason == "revoked" else Identity(), disk)
    assert "endorsed_by" not in server.known[0]


async def test_an_answer_about_another_key_is_not_taken() -> None:
    class Liar(Enroller):
        def __call__(self, call: Call) -> Reply | Hang:
            super().__call__(call)
            return Reply(201, public(a_key(), id=uuid7())) if call.method == "POST" else Reply(200, {"items": []})

    disk = Disk()
    with pytest.raises(BadAnswer):
        await make(Liar(), Identity(), disk)
    assert disk.saved[-1].keys[0].key_id is None
