"""What `tail` says, to the one who asked and to those who decide."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from client.events import (
    MemberAdded,
    PostDeleted,
    PostSealed,
    ReadRequestApproved,
    ReadRequestCancelled,
    ReadRequestCreated,
    ReadRequestDenied,
    ReadRequestReturned,
)
from client.tail import Decided, Teller

ALICE, BOB, CAROL, POST, GROUP, REQUEST = [uuid4() for _ in range(6)]
CREATED = ReadRequestCreated(
    request_id=REQUEST,
    post_id=POST,
    group_id=GROUP,
    requested_user_id=CAROL,
    requester_name="Ca\x1brol",
    user_public_key=bytes(32),
    public_key_id=uuid4(),
    verify_key=bytes(32),
    fingerprint="",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
DECIDED: list[type[Decided]] = [ReadRequestApproved, ReadRequestDenied, ReadRequestCancelled, ReadRequestReturned]


def decider(user_id: UUID) -> Teller:
    teller = Teller(user_id)
    assert teller.describe(CREATED) == f"Ca\\x1brol asks to read post {POST}: secureblogs requests approve {REQUEST}"
    return teller


def test_an_approval_is_told_to_each_as_it_concerns_them() -> None:
    approved = ReadRequestApproved(request_id=REQUEST, post_id=POST, decided_by=ALICE)
    carols = f"request {REQUEST} of Ca\\x1brol ({CAROL}) for post {POST} is approved, by"
    assert decider(ALICE).describe(approved) == f"{carols} you"
    assert decider(BOB).describe(approved) == f"{carols} another who may decide"
    assert Teller(CAROL).describe(approved) == f"your request {REQUEST} is approved: secureblogs post read {POST}"
    # Decided on this account, before anything was told here.
    assert Teller(ALICE).describe(approved) == f"request {REQUEST} for post {POST} is approved, by you"


@pytest.mark.parametrize("kind", DECIDED)
def test_a_decision_is_ones_own_request_or_anothers(kind: type[Decided]) -> None:
    event = kind(request_id=REQUEST, post_id=POST, decided_by=BOB)
    assert (Teller(CAROL).describe(event) or "").startswith(f"your request {REQUEST}")
    told = decider(ALICE).describe(event) or ""
    assert told.startswith(f"request {REQUEST} of Ca\\x1brol")
    assert "secureblogs post read" not in told


def test_who_asked_is_known_by_name_from_then_on() -> None:
    teller = decider(ALICE)
    joined = f"Ca\\x1brol ({CAROL}) joined group {GROUP}"
    assert teller.describe(MemberAdded(group_id=GROUP, user_id=CAROL)) == joined
    assert teller.describe(MemberAdded(group_id=GROUP, user_id=ALICE)) == f"you joined group {GROUP}"
    assert teller.describe(MemberAdded(group_id=GROUP, user_id=BOB)) == f"user {BOB} joined group {GROUP}"
    by_carol = PostSealed(post_id=POST, group_id=GROUP, author_id=CAROL)
    assert f"new post by Ca\\x1brol ({CAROL})" in (teller.describe(by_carol) or "")
    for event in (PostSealed, PostDeleted):
        own = event(post_id=POST, group_id=GROUP, author_id=ALICE)
        assert (teller.describe(own) or "").startswith(f"your post {POST}")
