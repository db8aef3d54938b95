"""What an honest server would say of one post, for tests to change: sealed keys, requests and keys included."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid7

from client.identity import HeldKey, Identity, make_key
from server.sealing import keys as sealing_keys
from server.sealing import posts as sealing_posts
from server.sealing.posts import PostIds
from tests.client.scripted_server import Call, Reply, problem

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def held_key(user_id: UUID) -> HeldKey:
    return msgspec.structs.replace(make_key(user_id, "", "", NOW), key_id=uuid7())


def public(held: HeldKey, **changed: Any) -> dict[str, Any]:
    """A key as the server shows it."""
    return {
        "id": held.key_id,
        "user_id": held.user_id,
        "public_key": held.public_key,
        "verify_key": held.verify_key,
        "proof": sealing_keys.prove(held.user_id, held.public_key, held.signing_seed),
        "fingerprint": held.fingerprint,
        "label": "laptop",
        "created_at": NOW,
        "revoked_at": None,
        **changed,
    }


class World:
    """Alice wrote a post, sealed to herself; Carol, a member of the group, asks to read it."""

    def __init__(self, sealed_by: str = "server") -> None:
        self.alice, self.carol = held_key(uuid7()), held_key(uuid7())
        self.identity = Identity(keys=(self.alice,))
        self.post_id, self.group_id, self.request_id = uuid7(), uuid7(), uuid7()
        self.post_key = sealing_posts.new_post_key()
        self.approved: list[Any] = []
        self.post = self.seal(self.post_id, "The key", "is under the mat", sealed_by)
        self.request = {
            "id": self.request_id,
            "post_id": self.post_id,
            "group_id": self.group_id,
            "requester_id": self.carol.user_id,
            "requester_name": "Carol",
            "public_key_id": self.carol.key_id,
            "public_key": self.carol.public_key,
            "verify_key": self.carol.verify_key,
            "fingerprint": self.carol.fingerprint,
            "status": "pending",
            "created_at": NOW,
        }
        self.keys: dict[UUID, dict[str, Any]] = {
            self.alice.user_id: {"id": self.alice.user_id, "name": "Alice", "keys": [public(self.alice)]},
            self.carol.user_id: {"id": self.carol.user_id, "name": "Carol", "keys": [public(self.carol)]},
        }
        self.members = [self.carol.user_id, self.alice.user_id]

    def seal(self, post_id: UUID, title: str, content: str, sealed_by: str) -> dict[str, Any]:
        seed = self.alice.signing_seed if sealed_by == "author" else None
        ids = PostIds(post_id, self.group_id, self.alice.user_id)
        sealed = sealing_posts.seal_post(ids, title, content, (), self.post_key, signing_seed=seed)
        return {
            "id": post_id,
            "group_id": self.group_id,
            "author_id": self.alice.user_id,
            "status": "sealed",
            "access": "readable",
            "sealed_by": sealed_by,
            "created_at": NOW + timedelta(days=1),
            "signing_key_id": self.alice.key_id if seed else None,
            "sealed_keys": [
                {
                    "public_key_id": self.alice.key_id,
                    "sealed_key": sealing_posts.seal_key(self.post_key, self.alice.public_key),
                }
            ],
            **msgspec.structs.asdict(sealed),
        }

    def __call__(self, call: Call) -> Reply:
        path = call.target.split("?")[0]
        if call.method == "POST" and path == f"/read-requests/{self.request_id}/approve":
            self.approved.append(call.json)
            return Reply(200, {**self.request, "status": "approved"})
        if call.method == "DELETE":
            return Reply(204)
        answers: dict[str, Any] = {
            f"/posts/{self.post_id}/request_read": self.request,
            f"/posts/{self.post_id}": self.post,
            f"/read-requests/{self.request_id}": self.request,
            f"/groups/{self.group_id}/members": {
                "items": [{"user_id": one, "name": "", "role": "member", "created_at": NOW} for one in self.members],
                "next_cursor": None,
            },
            **{f"/users/{user_id}/keys": user for user_id, user in self.keys.items()},
        }
        return Reply(200, answers[path]) if path in answers else problem(404, "not_found")
