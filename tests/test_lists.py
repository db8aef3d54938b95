"""Lists come newest first, in pages, each item once, whatever happens meanwhile."""

import base64
import random
import struct
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from server import database, lists
from tests.people import Person, all_pages, code, good, person

SIZE = 12


class World(NamedTuple):
    """Somebody who has SIZE of all that there are lists of."""

    someone: Person
    group_id: str

    def paths(self) -> list[str]:
        return [
            "/groups",
            "/keys",
            f"/groups/{self.group_id}/members",
            "/posts",
            f"/posts?group_id={self.group_id}",
            "/read-requests?role=requester",
        ]


PATHS = range(6)


@pytest.fixture(scope="module")
async def world(server: str) -> AsyncIterator[World]:
    """Of every three rows that follow one another, all were made in the same microsecond."""
    async with person(server) as someone:
        group_id = await someone.found_group()
        at = datetime(2026, 1, 31, 12, tzinfo=UTC)
        moments = [at + timedelta(microseconds=n // 3) for n in range(SIZE)]
        key_id = uuid.UUID(someone.devices[0].id)
        await database.execute("UPDATE user_keys SET created_at = $2 WHERE id = $1", key_id, moments[0])
        await database.execute("UPDATE user_groups SET created_at = $2 WHERE id = $1", uuid.UUID(group_id), moments[0])
        await database.execute(
            'UPDATE user_group_association SET created_at = $2 WHERE "user" = $1', someone.id, moments[0]
        )
        for n, moment in enumerate(moments):
            await make(someone.id, uuid.UUID(group_id), key_id, n, moment)
        yield World(someone, group_id)


async def make(user_id: uuid.UUID, group_id: uuid.UUID, key_id: uuid.UUID, n: int, at: datetime) -> None:
    if n:
        await database.execute(
            'INSERT INTO user_keys ("user", public_key, verify_key, proof, label, created_at)'
            " VALUES ($1, sha256($2), sha256($2), sha512($2), 'x', $3)",
            *(user_id, str(n).encode(), at),
        )
        await database.execute(
            "WITH g AS (INSERT INTO user_groups (name, request_mac, created_at) VALUES ('x', '', $2) RETURNING id)"
            ' INSERT INTO user_group_association ("user", "group", role) SELECT $1, id, \'member\' FROM g',
            *(user_id, at),
        )
        await database.execute(
            "WITH u AS (INSERT INTO users (name, issuer, subject) VALUES ('x', 'x', $2) RETURNING id)"
            ' INSERT INTO user_group_association ("user", "group", role, created_at)'
            " SELECT id, $1, 'member', $3 FROM u",
            *(group_id, f"{group_id} {n}", at),
        )
    post_id = await database.fetchval(
        'INSERT INTO posts ("group", author, status, sealed_by, draft, request_mac, created_at, failure)'
        " VALUES ($1, $2, 'failed', 'server', '', '', $3, 'draft_unreadable') RETURNING id",
        *(group_id, user_id, at),
    )
    await database.execute(
        'INSERT INTO read_post_request (post, "group", "user", public_key, status, created_at)'
        " VALUES ($1, $2, $3, $4, 'pending', $5)",
        *(post_id, group_id, user_id, key_id, at),
    )


def with_query(path: str, query: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}{query}"


def identity(item: dict[str, Any]) -> str:
    return str(item.get("id") or item["user_id"])


@pytest.mark.parametrize("number", PATHS)
async def test_pages_of_any_size_make_the_same_list(world: World, number: int) -> None:
    path = world.paths()[number]
    whole = good(await world.someone.get(path))
    assert (len(whole["items"]), whole["next_cursor"]) == (SIZE, None)
    times = [item["created_at"] for item in whole["items"]]
    if "groups" not in path or "members" in path:
        assert times == sorted(times, reverse=True)
    assert len({identity(item) for item in whole["items"]}) == SIZE
    for limit in (1, 2, 5, SIZE - 1, SIZE, SIZE + 1, 100):
        assert await all_pages(world.someone, path, limit) == whole["items"]


@pytest.mark.parametrize("number", PATHS)
async def test_rows_of_one_microsecond_come_by_their_ids(world: World, number: int) -> None:
    path = world.paths()[number]
    if "members" in path:
        return  # their order is that of memberships, the ids of which are not shown
    keys = [(item["created_at"], item["id"]) for item in await all_pages(world.someone, path, 2)]
    assert keys == sorted(keys, reverse=True)


@pytest.mark.parametrize("number", PATHS)
async def test_last_page_says_so(world: World, number: int) -> None:
    path = world.paths()[number]
    exact = good(await world.someone.get(with_query(path, f"limit={SIZE}")))
    assert (len(exact["items"]), exact["next_cursor"]) == (SIZE, None)
    short = good(await world.someone.get(with_query(path, f"limit={SIZE - 1}")))
    last = good(await world.someone.get(with_query(path, f"limit={SIZE - 1}&cursor={short['next_cursor']}")))
    assert (len(last["items"]), last["next_cursor"]) == (1, None)


@pytest.mark.parametrize("number", PATHS)
async def test_limit_is_a_number_from_1_to_100(world: World, number: int) -> None:
    for limit in ("0", "101", "-1", "1.0", "1e1", "", " 1", "%2B1", "x", "1000", "0x1", "\u0661", "1_0"):
        answer = await world.someone.get(with_query(world.paths()[number], f"limit={limit}"))
        assert code(answer) == (422, "invalid"), limit
        assert [error["pointer"] for error in answer.json()["errors"]] == ["?limit"]


@pytest.mark.parametrize("number", PATHS)
async def test_cursor_is_one_of_ours(world: World, number: int) -> None:
    path = world.paths()[number]
    ours = good(await world.someone.get(with_query(path, "limit=1")))["next_cursor"]
    for cursor in ("", "x", "null", ours[:-1], ours + "A", ours + "%0A", "%00", "%ff", "🔑", ours[:-4], "A" * 5000):
        answer = await world.someone.get(with_query(path, f"cursor={cursor}"))
        assert code(answer) == (422, "invalid"), cursor
        assert [error["pointer"] for error in answer.json()["errors"]] == ["?cursor"]
    good(await world.someone.get(with_query(path, f"cursor={ours}")))


@pytest.mark.parametrize("number", PATHS)
async def test_cursor_of_any_time_is_no_defect(world: World, number: int) -> None:
    """Whoever makes one up gets an empty page, the whole list, or is told that it is none."""
    chance = random.Random(number)
    numbers = [
        0,
        1,
        -1,
        2**63 - 1,
        -(2**63),
        253402300799999999,
        253402300800000000,
        -62135596800000000,
        -62135596800000001,
    ]
    numbers += [chance.randint(-(2**63), 2**63 - 1) for _ in range(10)]
    for micros in numbers:
        raw = struct.pack(">q", micros) + chance.randbytes(16)
        cursor = base64.urlsafe_b64encode(raw).decode()
        answer = await world.someone.get(with_query(world.paths()[number], f"cursor={cursor}"))
        if answer.is_error:
            assert code(answer) == (422, "invalid")


async def test_fifty_are_a_page_unless_said(world: World) -> None:
    some = [f"{n} {world.group_id}" for n in range(60)]
    await database.execute(
        "WITH u AS (INSERT INTO users (name, issuer, subject) SELECT 'x', 'y', unnest($2::text[]) RETURNING id)"
        ' INSERT INTO user_group_association ("user", "group", role) SELECT id, $1, \'member\' FROM u',
        *(uuid.UUID(world.group_id), some),
    )
    path = f"/groups/{world.group_id}/members"
    first = good(await world.someone.get(path))
    assert len(first["items"]) == 50
    second = good(await world.someone.get(f"{path}?cursor={first['next_cursor']}"))
    assert len(second["items"]) == SIZE + 10
    assert second["next_cursor"] is None
    assert len(good(await world.someone.get(f"{path}?limit=100"))["items"]) == SIZE + 60
    await database.execute("DELETE FROM users WHERE issuer = 'y' AND subject = ANY($1)", some)


async def test_what_comes_or_goes_meanwhile_moves_nothing(alice: Person) -> None:
    groups = [await alice.found_group(name=f"N{n}") for n in range(5)]
    first = good(await alice.get("/groups?limit=2"))
    assert [group["name"] for group in first["items"]] == ["N4", "N3"]
    await alice.found_group(name="later")
    # The very row that the cursor was made of, and one that is still to come.
    for gone in (groups[3], groups[1]):
        assert (await alice.delete(f"/groups/{gone}")).status_code == 204
    second = good(await alice.get(f"/groups?limit=2&cursor={first['next_cursor']}"))
    assert [group["name"] for group in second["items"]] == ["N2", "N0"]
    assert second["next_cursor"] is None


async def test_cursor_of_somebody_else_shows_nothing_more(world: World, alice: Person) -> None:
    own = await alice.found_group()
    for path in ("/groups", "/posts", "/keys", "/read-requests?role=decider"):
        cursor = good(await world.someone.get(with_query(world.paths()[0], "limit=1")))["next_cursor"]
        items = good(await alice.get(with_query(path, f"cursor={cursor}")))["items"]
        assert items == [], path
    # The cursor of a moment before which Alice had nothing; without it she sees what is hers.
    assert [group["id"] for group in good(await alice.get("/groups"))["items"]] == [own]


async def test_empty_list_is_a_list(alice: Person) -> None:
    for path in ("/groups", "/posts", "/read-requests?role=requester", "/read-requests?role=decider"):
        assert good(await alice.get(path)) == {"items": [], "next_cursor": None}


def test_cursor_tells_time_to_the_microsecond() -> None:
    for at in (datetime(2026, 1, 31, 12, 0, 0, 1, UTC), datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)):
        row_id = uuid.uuid4()
        page = lists.read_page(None, lists.write_cursor(at, row_id))
        assert (page.created_before, page.id_before) == (at, row_id)
