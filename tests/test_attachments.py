"""Files: up, into a post, down again; who may see them, and what a broken upload leaves."""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import uuid_utils.compat

from server import attachments, database
from server.sealing import files
from server.settings import Settings
from tests.people import Person, code, good, person, until
from tests.processes import environ_of, running_api_process
from tests.test_hostile_connections import raw

NAME = {"X-Filename": "UTF-8''na%C3%AFve%20plan.txt", "Content-Type": "text/plain; charset=utf-8"}
CHUNK = files.CHUNK_BYTES


def new_id() -> str:
    return str(uuid_utils.compat.uuid7())


async def put(
    someone: Person, content: bytes | AsyncIterator[bytes], query: str = "", **headers: str
) -> httpx.Response:
    return await someone.client.post(f"/attachments{query}", content=content, headers=NAME | headers)


async def put_sealed(someone: Person, content: bytes) -> tuple[str, files.FileSealer, bytes, bytes]:
    """Id, sealer, key and stream of a file that its author has sealed."""
    attachment_id, key = new_id(), files.new_file_key()
    sealer = files.FileSealer(key, UUID(attachment_id))
    stream = sealer.update(content) + sealer.finish()
    answer = await someone.client.post(f"/attachments?sealed=true&id={attachment_id}", content=stream)
    assert good(answer, 201) == {
        "id": attachment_id,
        "sealed_by": "author",
        "size": len(content),
        "sealed_size": len(stream),
    }
    return attachment_id, sealer, key, stream


async def post_with(someone: Person, group_id: str, *attachment_ids: str) -> dict[str, Any]:
    body = {"group_id": group_id, "title": "Files", "content": "See there", "attachments": list(attachment_ids)}
    return await someone.wait_until_sealed(good(await someone.post("/posts", body), 201)["id"])


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 9_000_001])
async def test_file_goes_up_and_every_member_opens_it(alice: Person, bob: Person, size: int) -> None:
    content = secrets.token_bytes(size)
    uploaded = good(await put(alice, content), 201)
    assert uploaded == {
        "id": uploaded["id"],
        "sealed_by": "server",
        "size": size,
        "sealed_size": files.sealed_size(size),
    }
    group_id = await alice.found_group(bob)
    post = await post_with(alice, group_id, uploaded["id"])
    [file] = bob.open_document(await got(bob, post["id"]))[1].attachments
    assert (file.name, file.media_type, file.size) == ("naïve plan.txt", "text/plain", size)
    stream = (await bob.get(f"/attachments/{uploaded['id']}")).content
    opener = files.FileOpener(file.key, file.id, file.hash, file.size)
    assert opener.update(stream) + opener.finish() == content


async def got(someone: Person, post_id: str) -> dict[str, Any]:
    return dict(good(await someone.get(f"/posts/{post_id}")))


async def test_nothing_of_a_file_lies_in_clear(alice: Person, settings: Settings) -> None:
    content = b"the quick brown fox" * 10_000
    uploaded = good(await put(alice, content), 201)
    row = await database.fetchrow("SELECT * FROM attachments WHERE id = $1", UUID(uploaded["id"]))
    assert row is not None
    assert not any(b"plan" in bytes(value) for value in row.values() if isinstance(value, bytes))
    stored = (settings.data_dir / "objects" / row["object_key"]).read_bytes()
    assert len(stored) == uploaded["sealed_size"]
    assert b"quick" not in stored


async def test_sealing_erases_the_draft_of_a_file(alice: Person) -> None:
    uploaded = good(await put(alice, b"text"), 201)
    query = "SELECT draft_key FROM attachments WHERE id = $1"
    assert await database.fetchval(query, UUID(uploaded["id"])) is not None
    await post_with(alice, await alice.found_group(), uploaded["id"])
    assert await database.fetchval(query, UUID(uploaded["id"])) is None


async def test_author_seals_the_file_too(alice: Person) -> None:
    attachment_id, *_, stream = await put_sealed(alice, b"text")
    assert (await alice.get(f"/attachments/{attachment_id}")).content == stream


@pytest.mark.parametrize("size", [0, 23, 24, 40, 24 + 65_553 + 16, 24 + 65_553 + 17])
async def test_what_is_no_stream_is_refused_and_leaves_nothing(alice: Person, size: int) -> None:
    answer = await alice.client.post(f"/attachments?sealed=true&id={new_id()}", content=bytes(size))
    assert code(answer) == (422, "invalid")
    assert await left_behind(alice) == 0


async def left_behind(owner: Person) -> int:
    count: int = await database.fetchval("SELECT count(*) FROM attachments WHERE owner = $1", owner.id)
    return count


@pytest.mark.parametrize(
    ("query", "headers", "pointer"),
    [
        ("", {"X-Filename": ""}, "X-Filename"),
        ("", {"X-Filename": "plan.txt"}, "X-Filename"),
        ("", {"X-Filename": "UTF-8''a%2Fb"}, "X-Filename"),
        ("", {"X-Filename": "UTF-8''a%00b"}, "X-Filename"),
        ("", {"X-Filename": "UTF-8''a%0Ab"}, "X-Filename"),
        ("", {"X-Filename": "UTF-8''a%C2%85b"}, "X-Filename"),
        ("", {"X-Filename": "UTF-8''%ff"}, "X-Filename"),
        ("", {"X-Filename": "ISO-8859-1''a"}, "X-Filename"),
        ("", {"X-Filename": "UTF-8''" + "a" * 256}, "X-Filename"),
        ("", {"Content-Type": "nothing"}, "Content-Type"),
        ("", {"Content-Type": "a/" + "b" * 200}, "Content-Type"),
        ("?id=7", {}, "?id"),
        ("?id=b2bc1f72-5347-4670-8801-95d522fd4568", {}, "?id"),
        ("?sealed=yes", {}, "?sealed"),
        ("?sealed=true", {}, "?id"),
        ("?name=x", {}, "?name"),
    ],
)
async def test_what_is_wrong_is_told(alice: Person, query: str, headers: dict[str, str], pointer: str) -> None:
    answer = await put(alice, b"text", query, **headers)
    assert code(answer) == (422, "invalid")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_repeated_upload_is_the_same_file_and_another_is_refused(alice: Person, bob: Person) -> None:
    query = f"?id={new_id()}"
    first = good(await put(alice, b"text", query), 201)
    assert good(await put(alice, b"text", query), 200) == first
    for other in (
        await put(alice, b"texT", query),
        await put(alice, b"text", query, **{"X-Filename": "UTF-8''other"}),
        await put(alice, b"text", query, **{"Content-Type": "image/png"}),
        await put(bob, b"text", query),
    ):
        assert code(other) == (409, "id_taken")
    # The stream of the first one is whole, and of the others nothing stays.
    assert len((await alice.get(f"/attachments/{first['id']}")).content) == first["sealed_size"]


async def test_fifty_uploads_of_one_id_make_one_file(alice: Person) -> None:
    query = f"?id={new_id()}"
    answers = await asyncio.gather(*(put(alice, b"text", query) for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert await left_behind(alice) == 1


async def test_deleted_id_is_not_revived(alice: Person) -> None:
    query = f"?id={new_id()}"
    uploaded = good(await put(alice, b"text", query), 201)
    post = await post_with(alice, await alice.found_group(), uploaded["id"])
    assert (await alice.delete(f"/posts/{post['id']}")).status_code == 204
    assert code(await put(alice, b"text", query)) == (409, "id_taken")


async def test_who_may_see_a_file(alice: Person, bob: Person, carol: Person) -> None:
    uploaded = good(await put(alice, b"text"), 201)
    path = f"/attachments/{uploaded['id']}"
    assert (await alice.get(path)).status_code == 200
    for stranger in (bob, carol):
        assert code(await stranger.get(path)) == (404, "attachment_not_found")
    assert (await bob.get(path)).json() == (await bob.get(f"/attachments/{new_id()}")).json()
    group_id = await alice.found_group(bob)
    await post_with(alice, group_id, uploaded["id"])
    assert (await bob.get(path)).status_code == 200
    assert code(await carol.get(path)) == (404, "attachment_not_found")
    # Who joined later sees the stream, though it can't open it, and who left sees nothing any more.
    await alice.add(group_id, carol)
    assert (await carol.get(path)).status_code == 200
    assert (await alice.delete(f"/groups/{group_id}/members/{bob.id}")).status_code == 204
    assert code(await bob.get(path)) == (404, "attachment_not_found")
    await alice.client.patch(f"/groups/{group_id}/members/{carol.id}", json={"role": "owner"})
    assert (await alice.delete(f"/groups/{group_id}/members/{alice.id}")).status_code == 204
    assert code(await alice.get(path)) == (404, "attachment_not_found")


async def test_post_takes_only_files_that_fit(alice: Person, bob: Person) -> None:
    group_id = await alice.found_group(bob)
    own, others = good(await put(alice, b"1"), 201)["id"], good(await put(bob, b"2"), 201)["id"]
    by_author, *_ = await put_sealed(alice, b"3")
    body = {"group_id": group_id, "title": "Files", "content": "See there"}

    async def refusal(*ids: str) -> tuple[int, str]:
        return code(await alice.post("/posts", body | {"attachments": list(ids)}))

    assert await refusal(own, others) == (404, "attachment_not_found")
    assert await refusal(own, new_id()) == (404, "attachment_not_found")
    assert await refusal(own, own) == (422, "invalid")
    assert await refusal(own, by_author) == (422, "invalid")
    await post_with(alice, group_id, own)
    assert await refusal(own) == (409, "attachment_in_use")


async def test_of_twenty_posts_one_gets_the_file(alice: Person) -> None:
    group_id = await alice.found_group()
    uploaded = good(await put(alice, b"text"), 201)
    body = {"group_id": group_id, "title": "Files", "content": "See there", "attachments": [uploaded["id"]]}
    answers = await asyncio.gather(*(alice.post("/posts", body) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 19


RANGES = [
    ("bytes=0-0", slice(0, 1)),
    ("bytes=0-", slice(0, None)),
    ("bytes=10-19", slice(10, 20)),
    ("bytes=65577-", slice(65577, None)),
    ("bytes=-5", slice(-5, None)),
    ("bytes=-999999999", slice(0, None)),
    ("bytes=5-999999999999", slice(5, None)),
]


@pytest.mark.parametrize(("header", "part"), RANGES)
async def test_part_of_a_stream(alice: Person, header: str, part: slice) -> None:
    attachment_id, *_, stream = await put_sealed(alice, secrets.token_bytes(200_000))
    answer = await alice.get(f"/attachments/{attachment_id}", headers={"Range": header})
    assert answer.status_code == 206
    assert answer.content == stream[part]
    start, stop, _ = part.indices(len(stream))
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(stream)}"
    assert answer.headers["Content-Length"] == str(stop - start)


async def test_heads_of_a_stream(alice: Person) -> None:
    attachment_id, *_, stream = await put_sealed(alice, b"text")
    path = f"/attachments/{attachment_id}"
    whole = await alice.get(path)
    tag = whole.headers["ETag"]
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["Content-Type"] == "application/octet-stream"
    assert whole.headers["Content-Disposition"] == "attachment"
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    for names in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        known = await alice.get(path, headers={"If-None-Match": names})
        assert (known.status_code, known.content, known.headers["ETag"]) == (304, b"", tag)
    assert (await alice.get(path, headers={"If-None-Match": '"other"'})).content == stream
    assert (await alice.get(path, headers={"Range": "bytes=0-0", "If-Range": tag})).status_code == 206
    for ignored in ({"Range": "bytes=0-0", "If-Range": '"other"'}, {"Range": "bytes=0-0,2-3"}, {"Range": "lines=1-2"}):
        assert (await alice.get(path, headers=ignored)).content == stream
    for beyond in (f"bytes={len(stream)}-", "bytes=-0"):
        refused = await alice.get(path, headers={"Range": beyond})
        assert code(refused) == (416, "range_not_satisfiable")
        assert refused.headers["Content-Range"] == f"bytes */{len(stream)}"


async def test_upload_that_breaks_off_leaves_nothing(alice: Person, settings: Settings) -> None:
    attachment_id = new_id()
    reached = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 20)
        reached.set()
        await asyncio.Event().wait()

    sending = asyncio.create_task(put(alice, half(), f"?id={attachment_id}"))
    await asyncio.wait_for(reached.wait(), 20)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)

    async def nothing_is_left() -> bool:
        due = await database.fetchval("SELECT count(*) FROM object_deletions WHERE due_at > now() + interval '1 hour'")
        return bool(due == 0)

    await until(nothing_is_left)
    assert code(await alice.get(f"/attachments/{attachment_id}")) == (404, "attachment_not_found")
    good(await put(alice, b"text", f"?id={attachment_id}"), 201)


async def test_upload_that_stops_coming_is_given_up(
    server: str, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.controllers.attachments.PIECE_TIMEOUT_S", 0.3)
    head = "\r\n".join(
        [
            "POST /attachments HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {alice.token}",
            "X-Filename: UTF-8''x",
            "Content-Length: 1000000",
        ]
    )
    reader, writer = await asyncio.open_connection(*server.removeprefix("http://").split(":"))
    writer.write(f"{head}\r\n\r\nthe beginning".encode())
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert b" 408 " in answer.splitlines()[0]
    writer.close()
    assert await left_behind(alice) == 0


async def test_file_that_is_too_large_is_refused_before_and_while_it_comes(
    settings: Settings, server: str, tmp_path: Path
) -> None:
    limit = 3_000_000
    environ = environ_of(settings, MAX_ATTACHMENT_BYTES=str(limit))
    async with running_api_process(environ, tmp_path / "log") as api, person(api.url) as someone:
        good(await put(someone, bytes(limit)), 201)
        sealed = files.sealed_size(limit)
        refused = [await put(someone, bytes(limit + 1)), await put(someone, bytes(10 * limit))]

        async def unannounced() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield bytes(100_000)

        refused += [
            await put(someone, unannounced()),
            await put(someone, bytes(sealed + 1), f"?sealed=true&id={new_id()}"),
        ]
        assert {code(answer) for answer in refused} == {(413, "too_large")}
        assert await left_behind(someone) == 1


async def test_api_killed_in_the_middle_of_an_upload_leaves_what_the_sweep_takes_away(
    settings: Settings, server: str, tmp_path: Path
) -> None:
    before = set(objects_of(settings))
    async with running_api_process(environ_of(settings), tmp_path / "log") as api, person(api.url) as someone:
        attachment_id = new_id()

        async def half() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield bytes(1 << 20)
            await asyncio.Event().wait()

        sending = asyncio.create_task(put(someone, half(), f"?id={attachment_id}"))

        async def has_begun() -> bool:
            return bool(set(objects_of(settings)) - before)

        await until(has_begun)
        api.kill()
        await asyncio.gather(sending, return_exceptions=True)
    [part] = set(objects_of(settings)) - before
    assert "#" in part.name, "it is not there under its own name"
    place = f"{part.parent.name}/{part.name.partition('#')[0]}"
    # What is due in a day is due now.
    assert (
        await database.execute("UPDATE object_deletions SET due_at = now() WHERE object_key = $1", place) == "UPDATE 1"
    )
    await until(gone(part))
    assert await left_behind(someone) == 0


def objects_of(settings: Settings) -> list[Path]:
    return [path for path in (settings.data_dir / "objects").rglob("*") if path.is_file()]


@pytest.mark.thorough
async def test_large_file_goes_through_little_memory(settings: Settings, server: str, tmp_path: Path) -> None:
    block, count = secrets.token_bytes(1 << 20), 256

    async def body() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield block

    environ = environ_of(settings, MAX_ATTACHMENT_BYTES=str(count << 20))
    async with running_api_process(environ, tmp_path / "log") as api, person(api.url) as someone:
        # The first one brings the libraries in.
        good(await put(someone, block), 201)
        idle = most_memory(api.process.pid)
        uploaded = good(await put(someone, body()), 201)
        received = 0
        async with someone.client.stream("GET", f"/attachments/{uploaded['id']}") as answer:
            async for piece in answer.aiter_raw():
                received += len(piece)
        assert received == uploaded["sealed_size"] == files.sealed_size(count << 20)
        assert most_memory(api.process.pid) - idle < 64
        assert most_memory(api.process.pid) < 200


def most_memory(pid: int) -> int:
    """MiB that were resident at most, ever."""
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(peak) >> 10


async def test_what_no_post_takes_goes_with_its_object(alice: Person, settings: Settings) -> None:
    uploaded = good(await put(alice, b"text"), 201)
    place = await database.fetchval("SELECT object_key FROM attachments WHERE id = $1", UUID(uploaded["id"]))
    path = settings.data_dir / "objects" / place
    assert path.exists()
    await database.execute(
        "UPDATE attachments SET created_at = now() - interval '25 hours' WHERE id = $1", UUID(uploaded["id"])
    )
    await until(gone(path))
    assert code(await alice.get(f"/attachments/{uploaded['id']}")) == (404, "attachment_not_found")


async def test_deleted_post_takes_its_files_along(alice: Person, settings: Settings) -> None:
    uploaded = good(await put(alice, b"text"), 201)
    post = await post_with(alice, await alice.found_group(), uploaded["id"])
    place = await database.fetchval("SELECT object_key FROM attachments WHERE id = $1", UUID(uploaded["id"]))
    assert (await alice.delete(f"/posts/{post['id']}")).status_code == 204
    await until(gone(settings.data_dir / "objects" / place))


def gone(path: Path) -> Callable[[], Any]:
    async def is_gone() -> bool:
        return not path.exists()  # noqa: ASYNC240 - in memory

    return is_gone


async def test_objects_are_taken_up_once_and_again_later(alice: Person) -> None:
    first = await attachments.begin_upload()
    assert first not in await attachments.objects_to_delete(1000)
    await attachments.give_up(first)
    both = await asyncio.gather(attachments.objects_to_delete(1000), attachments.objects_to_delete(1000))
    assert [first in one for one in both].count(True) <= 1
    await attachments.objects_deleted([first])


async def test_object_that_can_not_be_deleted_keeps_no_other_from_it(server: str, settings: Settings) -> None:
    stuck, free = f"aa/{secrets.token_hex(16)}", f"aa/{secrets.token_hex(16)}"
    # A folder in the place of a file is what the store can't delete, as root too.
    (settings.data_dir / "objects" / stuck / "full").mkdir(parents=True)
    path = settings.data_dir / "objects" / free
    path.write_bytes(b"sealed")
    await database.execute(
        "INSERT INTO object_deletions (object_key, due_at) VALUES ($1, now() - interval '2 hours'),"
        " ($2, now() - interval '1 hour')",
        *(stuck, free),
    )
    await until(gone(path))
    count = "SELECT count(*) FROM object_deletions WHERE object_key = $1"

    async def is_done_with() -> bool:
        return bool(await database.fetchval(count, free) == 0)

    await until(is_done_with)
    assert await database.fetchval(count, stuck) == 1
    await database.execute("DELETE FROM object_deletions WHERE object_key = $1", stuck)


async def test_bytes_are_counted_if_they_are_kept(settings: Settings, server: str, tmp_path: Path) -> None:
    environ = environ_of(settings, QUOTA_UPLOAD_BYTES="1000")
    async with running_api_process(environ, tmp_path / "log") as api, person(api.url) as someone:

        async def used() -> int:
            return int(good(await someone.get("/me/usage"))["today"]["upload_bytes"])

        query = f"?id={new_id()}"
        good(await put(someone, bytes(600), query), 201)
        good(await put(someone, bytes(600 - 200)), 201)
        assert await used() == 1000
        refused = await put(someone, b"1")
        assert code(refused) == (429, "quota_exceeded")
        assert int(refused.headers["Retry-After"]) > 0
        assert await used() == 1000
        assert code(await someone.client.post(f"/attachments?sealed=true&id={new_id()}", content=bytes(41))) == (
            429,
            "quota_exceeded",
        )
        assert "quota of 1,000 uploaded bytes is used up" in refused.json()["detail"]


async def test_what_is_left_of_a_quota_and_too_little_is_told(settings: Settings, server: str, tmp_path: Path) -> None:
    environ = environ_of(settings, QUOTA_UPLOAD_BYTES="1000")
    async with running_api_process(environ, tmp_path / "log") as api, person(api.url, keys=0) as someone:
        good(await put(someone, bytes(600)), 201)
        told = (await put(someone, bytes(600))).json()["detail"]
        assert told.startswith("Of the day's quota of 1,000 uploaded bytes 400 are left, which is too few;")


async def test_file_that_is_too_large_is_refused_before_it_is_sent(
    settings: Settings, server: str, tmp_path: Path
) -> None:
    environ = environ_of(settings, MAX_ATTACHMENT_BYTES="100000")
    async with running_api_process(environ, tmp_path / "log") as api, person(api.url, keys=0) as someone:
        for query, limit in (("", 100_000), (f"?sealed=true&id={new_id()}", files.sealed_size(100_000))):
            for expectation in (b"", b"Expect: 100-continue\r\n"):
                async with raw(api.url) as connection:
                    await connection.send(head(query, someone.token, limit + 1) + expectation + b"\r\n")
                    answer = await connection.answer()
                assert answer.startswith(b"HTTP/1.1 413 ")
                assert b"\r\nconnection: close\r\n" in answer.lower()
                problem = json.loads(answer.partition(b"\r\n\r\n")[2])
                assert (problem["code"], problem["max_bytes"]) == ("too_large", 100_000)
                assert "100,000 bytes at most" in problem["detail"]
            async with raw(api.url) as connection:
                await connection.send(head(query, someone.token, limit) + b"Expect: 100-continue\r\n\r\n")
                assert await connection.answer() == b"HTTP/1.1 100 Continue\r\n\r\n"
        async with raw(api.url) as connection:
            await connection.send(head("", someone.token, 10**9) + b"\r\n" + bytes(100_000))
            assert (await connection.answer()).startswith(b"HTTP/1.1 413 ")
            # To one that goes on the connection is closed, once there was time to read that.
            await connection.send(*[bytes(100_000)] * 50)
            assert await connection.all() == b""
        async with raw(api.url) as connection:
            await connection.send(head("", "sbs_x", 100_001) + b"\r\n")
            assert (await connection.answer()).startswith(b"HTTP/1.1 401 ")


def head(query: str, token: str, length: int) -> bytes:
    """All lines but the last, empty one."""
    lines = [
        f"POST /attachments{query} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {token}",
        f"Content-Length: {length}",
        "X-Filename: UTF-8''x",
    ]
    return "".join(f"{line}\r\n" for line in lines).encode()


async def test_client_that_leaves_is_no_fault_of_ours(settings: Settings, server: str, tmp_path: Path) -> None:
    token = "m" * 32
    environ = environ_of(settings, METRICS_TOKEN=token)
    async with running_api_process(environ, tmp_path / "log") as api, person(api.url, keys=0) as someone:
        upload = head("", someone.token, 1_000_000)
        for started in (upload, upload.replace(b"/attachments", b"/groups")):
            async with raw(api.url) as connection:
                await connection.send(started + b"\r\n" + bytes(10_000))
                # It is read: somebody else is answered meanwhile.
                good(await someone.get("/me"))

        async def is_logged() -> bool:
            return (tmp_path / "log").read_text().count('"status":499') == 2

        await until(is_logged)
        told = (await someone.get("/metrics", headers={"Authorization": f"Bearer {token}"})).text
    assert 'status_code="499"' in told
    assert 'status_code="5' not in told
    assert '"level":"error"' not in (tmp_path / "log").read_text()


async def test_of_fifty_uploads_the_quota_takes_what_fits(settings: Settings, server: str, tmp_path: Path) -> None:
    environ = environ_of(settings, QUOTA_UPLOAD_BYTES="1000")
    async with running_api_process(environ, tmp_path / "log") as api, person(api.url) as someone:
        answers = await asyncio.gather(*(put(someone, bytes(300)) for _ in range(50)))
        assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 47
        assert await left_behind(someone) == 3


async def test_none_reads_without_a_credential(server: str, alice: Person) -> None:
    uploaded = good(await put(alice, b"text"), 201)
    async with httpx.AsyncClient(base_url=server) as nobody:
        assert code(await nobody.get(f"/attachments/{uploaded['id']}")) == (401, "unauthenticated")
        assert code(await nobody.post("/attachments", content=b"text", headers=NAME)) == (401, "unauthenticated")


# ------------------------------------------------------------------------------------------------- links


async def link(someone: Person, attachment_id: str, **limits: int) -> dict[str, Any]:
    made = good(await someone.post(f"/attachments/{attachment_id}/links", {"expires_in": 3600} | limits), 201)
    assert made.keys() == {"id", "url", "expires"}
    assert made["url"].startswith("https://posts.example/download/")
    return dict(made) | {"path": made["url"].removeprefix("https://posts.example")}


@pytest.fixture
async def nobody(server: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server) as client:
        yield client


async def test_whoever_has_the_link_gets_the_stream(alice: Person, nobody: httpx.AsyncClient) -> None:
    attachment_id, *_, stream = await put_sealed(alice, b"text" * 50_000)
    made = await link(alice, attachment_id)
    for _ in range(3):
        assert (await nobody.get(made["path"])).content == stream
    part = await nobody.get(made["path"], headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, stream[100:200])
    assert code(await nobody.get("/download/nothing")) == (404, "link_not_found")
    assert code(await nobody.get(made["path"] + "x")) == (404, "link_not_found")


async def test_token_of_a_link_is_not_stored(alice: Person) -> None:
    attachment_id, *_ = await put_sealed(alice, b"text")
    token = (await link(alice, attachment_id))["path"].removeprefix("/download/")
    row = await database.fetchrow("SELECT * FROM download_links WHERE created_by = $1", alice.id)
    assert row is not None
    assert token not in str(dict(row))


async def test_last_download_goes_to_one_of_a_hundred(alice: Person, nobody: httpx.AsyncClient) -> None:
    attachment_id, *_, stream = await put_sealed(alice, b"text")
    made = await link(alice, attachment_id, max_downloads=3)
    headers = {"Range": "bytes=0-0"}
    answers = await asyncio.gather(*(nobody.get(made["path"], headers=headers) for _ in range(100)))
    assert [answer.content for answer in answers if answer.status_code == 200] == [stream] * 3
    assert {code(answer) for answer in answers if answer.status_code != 200} == {(410, "link_gone")}
    [listed] = good(await alice.get(f"/attachments/{attachment_id}/links"))["items"]
    assert listed["downloads_left"] == 0


async def test_link_ends(alice: Person, bob: Person, nobody: httpx.AsyncClient) -> None:
    group_id = await bob.found_group(alice)
    uploaded = good(await put(alice, b"text"), 201)
    post = await post_with(alice, group_id, uploaded["id"])
    revoked, expired, left, deleted = [await link(alice, uploaded["id"]) for _ in range(4)]

    async def is_gone(made: dict[str, Any]) -> bool:
        return code(await nobody.get(made["path"])) == (410, "link_gone")

    for _ in range(2):
        assert (await alice.delete(f"/links/{revoked['id']}")).status_code == 204
    assert await is_gone(revoked)
    await database.execute("UPDATE download_links SET expires = now() WHERE id = $1", UUID(expired["id"]))
    assert await is_gone(expired)
    assert (await nobody.get(left["path"])).status_code == 200
    assert (await bob.delete(f"/groups/{group_id}/members/{alice.id}")).status_code == 204
    assert await is_gone(left)
    await bob.add(group_id, alice)
    assert (await nobody.get(deleted["path"])).status_code == 200
    assert (await alice.delete(f"/posts/{post['id']}")).status_code == 204
    assert await is_gone(deleted)


async def test_links_are_their_makers_alone(alice: Person, bob: Person, carol: Person) -> None:
    group_id = await alice.found_group(bob)
    uploaded = good(await put(alice, b"text"), 201)
    await post_with(alice, group_id, uploaded["id"])
    path = f"/attachments/{uploaded['id']}/links"
    made = await link(alice, uploaded["id"])
    assert good(await bob.get(path)) == {"items": [], "next_cursor": None}
    assert code(await bob.delete(f"/links/{made['id']}")) == (404, "link_not_found")
    assert code(await bob.delete("/links/nothing")) == (404, "link_not_found")
    for call in (carol.get(path), carol.post(path, {"expires_in": 60}), carol.post(path, {"expires_in": 1})):
        assert code(await call) == (404, "attachment_not_found")
    await link(bob, uploaded["id"])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"expires_in": 59},
        {"expires_in": 2_592_001},
        {"expires_in": "60"},
        {"expires_in": 60, "max_downloads": 0},
        {"expires_in": 60, "max_downloads": 1001},
        {"expires_in": 60, "name": "x"},
    ],
)
async def test_link_has_limits(alice: Person, body: dict[str, Any]) -> None:
    attachment_id, *_ = await put_sealed(alice, b"text")
    assert code(await alice.post(f"/attachments/{attachment_id}/links", body)) == (422, "invalid")


async def test_link_dies_with_its_maker(server: str, nobody: httpx.AsyncClient) -> None:
    async with person(server) as someone:
        attachment_id, *_ = await put_sealed(someone, b"text")
        made = await link(someone, attachment_id)
        await database.execute("UPDATE users SET disabled_at = now() WHERE id = $1", someone.id)
    assert code(await nobody.get(made["path"])) == (410, "link_gone")
