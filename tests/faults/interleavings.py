"""A member is removed, a key revoked, a user disabled, a group or post deleted while a post is sealed, in every order.

From the commit of that on nothing is sealed to who has gone, and the API serves nothing to them. The domain is called
in this process, so that a sealing can be held up at the right places; what is served is asked over HTTP.
"""

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple
from uuid import UUID

import httpx

from server import administration, database, groups, keys, pending_posts, posts
from server.pending_posts import ToSeal
from server.settings import Settings
from tests.faults.outcomes import Draw, Outcome
from tests.faults.sites import Site
from tests.jwts import ISSUER, token_of
from tests.people import good

INTERLEAVINGS = 1000
AT_ONCE = 3
MAX_PAUSE_S = 0.004


class Stage(NamedTuple):
    """Where scenes are played: the pool of database connections is open, and `client` asks an API."""

    settings: Settings
    client: httpx.AsyncClient


class Someone(NamedTuple):
    """A user of the issuer, who needs no password and no session."""

    id: UUID
    subject: str


class Scene(NamedTuple):
    """A group of an owner and a member, one key each, and a post of the owner's that is yet to be sealed."""

    stage: Stage
    group_id: UUID
    owner: Someone
    member: Someone
    owner_key_id: UUID
    member_key_id: UUID
    post_id: UUID


Act = Callable[[Scene], Awaitable[None]]
Play = Callable[[Scene, random.Random], Awaitable[str]]


async def insert_someone() -> Someone:
    row = await database.fetchrow(
        "INSERT INTO users (name, issuer, subject) VALUES ('Someone', $1, gen_random_uuid()::text)"
        " RETURNING id, subject",
        ISSUER,
    )
    assert row
    return Someone(*row)


async def insert_user() -> UUID:
    return (await insert_someone()).id


async def insert_key(user_id: UUID) -> UUID:
    key_id: UUID = await database.fetchval(
        'INSERT INTO user_keys ("user", public_key, verify_key, proof, label)'
        " VALUES ($1, $2, $3, $4, 'key') RETURNING id",
        *(user_id, os.urandom(32), bytes(32), bytes(64)),
    )
    return key_id


async def set_up(stage: Stage) -> Scene:
    settings = stage.settings
    owner, member = await insert_someone(), await insert_someone()
    group, _, _ = await groups.create(owner.id, "friends", None, bytes(32), settings)
    await groups.add_member(owner.id, group["id"], member.id, None, "member", settings)
    owner_key_id, member_key_id = await insert_key(owner.id), await insert_key(member.id)
    post_id = await insert_post(settings, owner.id, group["id"])
    return Scene(stage, group["id"], owner, member, owner_key_id, member_key_id, post_id)


async def insert_post(settings: Settings, owner_id: UUID, group_id: UUID) -> UUID:
    post_id: UUID = await database.fetchval("SELECT uuidv7()")
    await posts.publish(
        *(owner_id, group_id, "A title", "Some text", [], post_id, settings.worker_public_key or b"", bytes(32))
    )
    # Out of the sweep's reach: it is sealed here.
    await database.execute("UPDATE posts SET created_at = now() + interval '1 hour' WHERE id = $1", post_id)
    return post_id


async def status(post_id: UUID) -> str | None:
    found: str | None = await database.fetchval("SELECT status FROM posts WHERE id = $1", post_id)
    return found


async def keys_of(post_id: UUID) -> set[UUID]:
    return {
        row["public_key"] for row in await database.fetch("SELECT public_key FROM post_keys WHERE post = $1", post_id)
    }


async def seal_slowly(scene: Scene, chance: random.Random, *, late_key: bool = True) -> UUID:
    """Seal the post, as one for a few or as one for many; for many a key is added before the group is locked for good.

    That key, or the owner's if there is none. Without `late_key` none is added: where the group is locked by what waits
    for the sealing, that would go in a circle.
    """
    late_key_ids: list[UUID] = []

    async def pause(to_seal: Sequence[ToSeal]) -> list[bytes | None]:
        await asyncio.sleep(chance.uniform(0, MAX_PAUSE_S))
        return [bytes(80)] * len(to_seal)

    async def add_key(to_seal: Sequence[ToSeal]) -> list[bytes | None]:
        if to_seal and not late_key_ids:
            late_key_ids.append(await insert_elsewhere(scene.owner.id))
        return await pause(to_seal)

    private_keys = scene.stage.settings.worker_private_keys
    if chance.random() < 0.5 and scene.post_id in await pending_posts.seal_few([scene.post_id], private_keys, pause):
        return scene.owner_key_id
    await pending_posts.seal(scene.post_id, private_keys, add_key if late_key else pause)
    return late_key_ids[0] if late_key_ids else scene.owner_key_id


async def insert_elsewhere(user_id: UUID) -> UUID:
    """As an enrolment does, on a connection of its own, not on that of the sealing."""
    assert database.ENGINE.pool
    key_id: UUID = await database.ENGINE.pool.fetchval(
        "WITH changed AS (UPDATE user_groups SET recipients_version = recipients_version + 1"
        ' WHERE id IN (SELECT "group" FROM user_group_association WHERE "user" = $1))'
        ' INSERT INTO user_keys ("user", public_key, verify_key, proof, label)'
        " VALUES ($1, $2, $3, $4, 'key') RETURNING id",
        *(user_id, os.urandom(32), bytes(32), bytes(64)),
    )
    return key_id


# ------------------------------------------------------------------------------------------- who or what goes


async def remove_member(scene: Scene) -> None:
    await groups.remove_member(scene.owner.id, scene.group_id, scene.member.id)


async def revoke_key(scene: Scene) -> None:
    await keys.revoke(scene.member.id, scene.member_key_id)


async def disable_member(scene: Scene) -> None:
    await administration.disable(None, scene.member.id)


async def delete_group(scene: Scene) -> None:
    await groups.delete(scene.owner.id, scene.group_id)


async def delete_post(scene: Scene) -> None:
    await posts.delete(scene.owner.id, scene.post_id)


REMOVALS: tuple[Act, ...] = (remove_member, revoke_key, disable_member)
DELETIONS: tuple[Act, ...] = (delete_group, delete_post)


async def is_served(scene: Scene, someone: Someone) -> bool:
    """Whether the API gives them a key of the post."""
    headers = {"Authorization": f"Bearer {token_of(someone.subject)}"}
    answer = await scene.stage.client.get(f"/posts/{scene.post_id}", headers=headers)
    if answer.status_code in {401, 404}:
        return False
    post = good(answer)
    return bool(post["access"] == "readable" or post.get("sealed_keys"))


# ------------------------------------------------------------------------------------------------- the plays


def removal(remove: Act) -> Play:
    async def play(scene: Scene, chance: random.Random) -> str:
        async def go() -> str | None:
            await asyncio.sleep(chance.uniform(0, 4 * MAX_PAUSE_S))
            await remove(scene)
            at_its_commit = await status(scene.post_id)
            assert not await is_served(scene, scene.member), "it is served to who has gone"
            return at_its_commit

        late_key_id, status_afterwards = await asyncio.gather(seal_slowly(scene, chance), go())
        assert await status(scene.post_id) == "sealed"
        assert not await is_served(scene, scene.member), "it is served to who has gone"
        others = {scene.owner_key_id, late_key_id}
        sealed_to = await keys_of(scene.post_id)
        assert sealed_to in (others, others | {scene.member_key_id})
        if status_afterwards == "pending":
            assert sealed_to == others, "it was sealed after the removal"
            return "removed first"
        return "sealed first" if sealed_to != others else "removed first"

    return play


def deletion(delete: Act) -> Play:
    async def play(scene: Scene, chance: random.Random) -> str:
        async def go() -> None:
            await asyncio.sleep(chance.uniform(0, 4 * MAX_PAUSE_S))
            await delete(scene)
            assert not await is_served(scene, scene.owner), "it is served although it is deleted"

        async def seal() -> bool:
            # Once one has begun the other waits for its end.
            await asyncio.sleep(chance.uniform(0, 4 * MAX_PAUSE_S))
            with contextlib.suppress(pending_posts.SealingElsewhere):
                await seal_slowly(scene, chance, late_key=False)
            return await status(scene.post_id) is not None

        sealed_first, _ = await asyncio.gather(seal(), go())
        assert await status(scene.post_id) is None
        assert await keys_of(scene.post_id) == set()
        return "sealed first" if sealed_first else "removed first"

    return play


async def many_times(stage: Stage, play: Play, times: int, seed: int = 0) -> Counter[str]:
    """What became of so many scenes, AT_ONCE of which are played at a time. Raises AssertionError."""
    room = asyncio.Semaphore(AT_ONCE)

    async def play_one(number: int) -> str:
        async with room:
            return await play(await set_up(stage), random.Random(f"{seed} {number}"))

    return Counter(await asyncio.gather(*(play_one(number) for number in range(times))))


async def run(site: Site, draw: Draw) -> Outcome:
    """A round is one interleaving; as many of each kind."""
    outcome = Outcome("gone-while-sealing")
    api = await site.with_api()
    plays = [*map(removal, REMOVALS), *map(deletion, DELETIONS)]
    names = [act.__name__ for act in (*REMOVALS, *DELETIONS)]
    async with (
        database.open_pool(str(site.settings.database_url), 12),
        httpx.AsyncClient(base_url=api.url, timeout=30, trust_env=False) as client,
    ):
        stage = Stage(site.settings, client)
        for name, play in zip(names, plays, strict=True):
            times = -(-draw.rounds // len(plays))
            try:
                outcomes = await many_times(stage, play, times, draw.chance.randrange(10**6))
            except AssertionError as error:
                outcome.wrong.append(f"{name}: {error}")
                continue
            outcome.rounds += times
            outcome.acknowledged += times
            outcome.check(len(outcomes) == 2, f"{name}: always one order, {dict(outcomes)}")
            outcome.notes.append(f"{name} {outcomes['removed first']}:{outcomes['sealed first']}")
    return outcome
