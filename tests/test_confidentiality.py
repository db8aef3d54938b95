"""What a thief of the database, of its files or of Redis finds of posts that the server sealed: not one word."""

import asyncio
import base64
import contextlib
import gzip
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from server.embedded import Engines, postgres_binary
from server.settings import Settings
from tests.hunt.forms import WORD, forms_of, found_in, new_odd_word, new_word
from tests.hunt.hunting import hunt, lines
from tests.people import Person, all_pages, good, person

MEMBERS = 20
POSTS = 200


def read_files(folder: Path, since: float) -> list[bytes]:
    """Those that were written to since then, a Unix time in seconds."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # Postgres is at work
            if path.is_file() and path.stat().st_mtime >= since - 1:
                # It makes its log files full of zeros.
                found.append(path.read_bytes().rstrip(b"\0"))
    return found


def dump(settings: Settings) -> list[bytes]:
    """All that pg_dump writes, and the binary values in it once more as they are."""
    command = [str(postgres_binary("pg_dump")), "--dbname", str(settings.database_url)]
    written = subprocess.run(command, check=True, capture_output=True).stdout
    return [written, b" ".join(bytes.fromhex(value.decode()) for value in re.findall(rb"\\\\x([0-9a-f]+)", written))]


async def dump_redis(redis: Redis) -> list[bytes]:
    # DUMP compresses long strings as a snapshot does, and a word that repeats itself would hide in that.
    await redis.config_set("rdbcompression", "no")
    dumped = [(key, await redis.dump(key)) for key in await redis.keys("*")]
    return [part for pair in dumped for part in pair if part is not None]


@pytest.fixture
async def redis(settings: Settings, server: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(str(settings.redis_url)) as client:
        yield client


@pytest.fixture
async def postgres(settings: Settings, server: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(settings.database_url)
    yield connection
    await connection.close()


@pytest.mark.thorough
async def test_every_member_opens_every_post_and_no_word_of_them_is_stored(
    server: str, settings: Settings, engines: Engines, postgres: asyncpg.Connection, redis: Redis
) -> None:
    word, control, begun = new_word(), new_word(), time.time()
    async with AsyncExitStack() as stack:
        members = await asyncio.gather(
            *(stack.enter_async_context(person(server, f"Member {number}")) for number in range(MEMBERS))
        )
        author, *others = members
        group_id = await author.found_group(*others)
        # One word that each of them holds, in the title as in the text, so that one search finds any of them.
        expected = {f"{number} {word}": f"The key {number} is {word} " * 20 for number in range(POSTS)}
        bodies = [{"group_id": group_id, "title": title, "content": text} for title, text in expected.items()]
        made = [good(answer, 201) for answer in await asyncio.gather(*(author.post("/posts", body) for body in bodies))]
        whole = {post["id"]: await author.wait_until_sealed(post["id"]) for post in made}
        for member in members:
            assert await opened_by(member, group_id, whole) == expected

    await plant(postgres, redis, control)
    await postgres.execute("CHECKPOINT")
    places = {
        "dump": await asyncio.to_thread(dump, settings),
        "files of Postgres": read_files(engines.data_dir / "postgres", begun),
        "files of Redis": read_files(engines.data_dir / "valkey", begun),
        "Redis": await dump_redis(redis),
        "logs": [path.read_bytes() for path in engines.data_dir.glob("*.log")],
    }
    for place, haystacks in places.items():
        assert found_in(haystacks, word, compressed=place != "dump") == set(), place
        # That means something only where what is there is found.
        if place != "logs":
            assert found_in(haystacks, control, compressed=place != "dump") == forms_of(control).keys(), place


async def opened_by(member: Person, group_id: str, whole: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Titles and texts, by the member's own keys; the contents are the same for all and so are fetched once."""
    listed = await all_pages(member, f"/posts?group_id={group_id}", 100)
    assert {post["id"] for post in listed} == whole.keys()
    return dict(member.open(post | {"content": whole[post["id"]]["content"]}) for post in listed)


async def plant(postgres: asyncpg.Connection, redis: Redis, word: str) -> None:
    """What is to be found: in all forms, in the middle of texts that are long enough to be compressed."""
    await postgres.execute("CREATE TABLE planted (written bytea)")
    text = b"a text that says little, " * 200
    for number, written in enumerate(forms_of(word).values()):
        await postgres.execute("INSERT INTO planted VALUES ($1)", text + written + text)
        await redis.set(f"planted:{number}", text + written + text)


def test_word_is_found_wherever_it_stands() -> None:
    word = new_word()
    raw = word.encode()
    for offset in range(8):
        before, after = os.urandom(offset), os.urandom(5)
        text = before + raw + after
        assert found_in([text], word) == {"raw"}
        assert found_in([base64.b64encode(text)], word) == {f"base64 at {offset % 3}"}
        assert found_in([text.hex().encode()], word) == {"hex"}
        assert found_in([before + word.encode("utf-16-be")], word) == {"UTF-16-BE"}
        # As pglz leaves it, wherever its groups of eight begin.
        cut = offset + 1
        squeezed = raw[:cut] + b"".join(b"\0" + raw[start : start + 8] for start in range(cut, WORD, 8))
        assert found_in([squeezed], word) == set()
        assert found_in([squeezed], word, compressed=True) == {"raw"}
        digits = raw.hex().encode()
        squeezed = digits[:cut] + b"".join(b"\0" + digits[start : start + 8] for start in range(cut, 2 * WORD, 8))
        assert "hex" in found_in([squeezed], word, compressed=True)
    assert found_in([new_word().encode()], word, compressed=True) == set()


@pytest.mark.parametrize("kind", ["plain", "odd", "secret", "secret with lines"])
def test_word_is_found_however_it_is_written(kind: str) -> None:
    kinds: dict[str, str | bytes] = {
        "plain": new_word(),
        "odd": new_odd_word(),
        "secret": os.urandom(32),
        "secret with lines": b"\n\0" * 3 + os.urandom(26),
    }
    word = kinds[kind]
    others = os.urandom(100_000)
    for form, written in forms_of(word).items():
        for text in (others + written + others, others + gzip.compress(b"a text " * 50 + written + others[:100])):
            assert form in found_in([others, text], word), form
    assert found_in([others], word) == set()
    every = [others[:7] + written for written in forms_of(word).values()]
    assert found_in(every, word) == found_in(every, word, compressed=True) == forms_of(word).keys()


@pytest.mark.thorough
async def test_hunt_finds_what_was_leaked_and_nothing_else() -> None:
    """A short one; `make hunt` is the long one."""
    report = await hunt(posts=2, is_short=True)
    assert report.is_clean, "\n".join(lines(report))
    assert not report.is_void, "\n".join(lines(report))
    assert report.operations > 60
    assert {"title", "text", "password", "session token", "API key", "ticket", "link", "file", "file name", "JWT"} <= (
        report.planted.keys()
    )
