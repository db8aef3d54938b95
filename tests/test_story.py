"""The main story, from end to end, over real sockets: post, read, join later, ask, hear, approve, hear, read."""

from uuid import UUID

from server.sealing import keys as sealing_keys
from server.sealing.encoding import decode_base64
from tests.people import Person, code, good


async def test_latecomer_reads_after_the_author_approved(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob)
    async with alice.listen() as author, bob.listen() as member, carol.listen() as latecomer:
        post = await alice.publish(group_id, "The key", "is under the mat")
        await member.hear("post.sealed", post_id=post["id"])
        assert bob.open(good(await bob.get(f"/posts/{post['id']}"))) == ("The key", "is under the mat")

        await alice.add(group_id, carol)
        await latecomer.hear("group.member_added", group_id=group_id, user_id=str(carol.id))
        closed = good(await carol.get(f"/posts/{post['id']}"))
        assert (closed["access"], closed["sealed_keys"]) == ("not_granted", [])
        asked = await carol.ask(post["id"])
        assert await carol.access(post["id"]) == "requested"

        # The author's client knows of the request by what it hears alone, and seals to no key that it has not checked.
        heard = await author.hear("read_request.created", request_id=asked["id"])
        requester = good(await alice.get(f"/users/{heard['requested_user_id']}/keys"))
        [key] = [key for key in requester["keys"] if key["id"] == heard["public_key_id"]]
        public_key, verify_key = decode_base64(key["public_key"]), decode_base64(key["verify_key"])
        sealing_keys.check_proof(UUID(requester["id"]), public_key, verify_key, decode_base64(key["proof"]))
        assert heard["user_public_key"] == key["public_key"]
        assert heard["fingerprint"] == sealing_keys.fingerprint(carol.id, public_key, verify_key)
        path, grant = f"/read-requests/{heard['request_id']}/approve", alice.reseal(post, key)

        assert code(await bob.post(path, grant)) == (403, "not_decider")
        approved = good(await alice.post(path, grant))
        assert (approved["status"], approved["decided_by"]) == ("approved", str(alice.id))
        await latecomer.hear("read_request.approved", request_id=asked["id"], decided_by=str(alice.id))
        assert carol.open(good(await carol.get(f"/posts/{post['id']}"))) == ("The key", "is under the mat")
