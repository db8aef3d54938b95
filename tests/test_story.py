"""The main story, from end to end, over real sockets: post, read, join later, ask, hear, approve, read."""

from tests.people import Person, code, good


async def test_latecomer_reads_after_the_author_approved(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob)
    post = await alice.publish(group_id, "The key", "is under the mat")
    assert bob.open(good(await bob.get(f"/posts/{post['id']}"))) == ("The key", "is under the mat")

    await alice.add(group_id, carol)
    closed = good(await carol.get(f"/posts/{post['id']}"))
    assert (closed["access"], closed["sealed_keys"]) == ("not_granted", [])
    asked = good(await carol.post(f"/posts/{post['id']}/request_read"), 201)
    assert good(await carol.get(f"/posts/{post['id']}"))["access"] == "requested"

    assert code(await bob.post(f"/read-requests/{asked['id']}/approve", {"sealed_key": "AA=="})) == (403, "not_decider")
    approved = good(await alice.post(f"/read-requests/{asked['id']}/approve", alice.reseal(post, asked)))
    assert (approved["status"], approved["decided_by"]) == ("approved", str(alice.id))
    assert carol.open(good(await carol.get(f"/posts/{post['id']}"))) == ("The key", "is under the mat")
