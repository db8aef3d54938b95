"""The test vectors of the wire format, by the code of docs/javascript.md."""

import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any
from uuid import UUID, uuid4

from server.sealing.digests import blake2b_256, keyed_blake2b_256
from server.sealing.encoding import encode_base64
from server.sealing.posts import PostIds, new_post_key, seal_post
from tests.javascript.node import Node
from tests.sealing.wire_vectors import Case, cases, raw

PARTS = ("heading", "content", "content_hash", "commitment", "signature")

Given = Callable[[Case], list[Any]]
IsRight = Callable[[Any, Case], bool]


async def wrong(
    node: Node, function: str, group: list[Case], given: Given, is_right: IsRight | None = None
) -> list[str]:
    """The names of cases that a function refuses though they are valid, takes though not, or answers wrongly."""
    answers = await node.call("tryAll", function, [given(case) for case in group])
    return [
        case["name"]
        for case, answer in zip(group, answers, strict=True)
        if (answer not in (None, False)) != case["valid"]
        or (case["valid"] and is_right is not None and not is_right(answer, case))
    ]


async def test_base64(node: Node) -> None:
    def given(case: Case) -> list[Any]:
        return [case["base64"]]

    def is_right(read: Any, case: Case) -> bool:
        return bool(read == raw(case, "bytes"))

    assert await wrong(node, "fromBase64", cases("base64"), given, is_right) == []


async def test_fingerprints(node: Node) -> None:
    group = cases("fingerprint")
    shown = await node.call("tryAll", "fingerprint", [[case["user_id"], pair(case)] for case in group])
    assert [one == case["shown"] for one, case in zip(shown, group, strict=True)] == [case["valid"] for case in group]


async def test_proofs(node: Node) -> None:
    def given(case: Case) -> list[Any]:
        return [served(case) | {"proof": as_base64(case, "proof")}]

    assert await wrong(node, "checkKey", cases("enrolment_proof"), given) == []


async def test_endorsements(node: Node) -> None:
    def given(case: Case) -> list[Any]:
        key = served(case) | pair(case) | {"endorsement": as_base64(case, "endorsement")}
        return [key, served(case, "endorser_") | pair(case, "endorser_")]

    assert await wrong(node, "isEndorsed", cases("endorsement"), given) == []


async def test_public_keys(node: Node) -> None:
    assert await wrong(node, "sealKey", cases("public_key"), lambda case: [bytes(32), raw(case, "public_key")]) == []


async def test_sealed_keys(node: Node) -> None:
    def given(case: Case) -> list[Any]:
        return [as_base64(case, "sealed_key"), encryption_pair(case)]

    def is_right(post_key: Any, case: Case) -> bool:
        return bool(post_key == raw(case, "post_key"))

    assert await wrong(node, "openKey", cases("sealed_key"), given, is_right) == []


async def test_texts(node: Node) -> None:
    def given(case: Case) -> list[Any]:
        return [raw(case, "text") + b" " * case["spaces"]]

    def is_right(read: Any, case: Case) -> bool:
        return bool(read == json.loads(raw(case, "text")))

    for part, function in (("heading", "readHeading"), ("content", "readDocument")):
        group = [case for case in cases("text") if case["part"] == part]
        assert await wrong(node, function, group, given, is_right) == []


async def test_two_attachments_of_one_id(node: Node) -> None:
    def file(file_id: str) -> dict[str, Any]:
        key = encode_base64(bytes(32))
        return {"id": file_id, "name": "", "media_type": "", "size": 0, "key": key, "hash": key}

    def text(*ids: str) -> bytes:
        document = compact({"v": 1, "content": "", "attachments": [file(one) for one in ids]}).encode()
        return document.ljust(-(-len(document) // 256) * 256)

    ids = [str(UUID(int=number)) for number in range(2)]
    taken, refused = await node.call("tryAll", "readDocument", [[text(*ids)], [text(ids[0], ids[0])]])
    assert [one["id"] for one in taken["attachments"]] == ids
    assert refused is None


async def test_a_content_hash_of_another_length(node: Node) -> None:
    ids, post_key = PostIds(uuid4(), uuid4(), uuid4()), new_post_key()
    sealed = seal_post(ids, "Listed", "", (), post_key)
    posts = []
    for content_hash in (sealed.content_hash, sealed.content_hash + b"\0"):
        committed = b"secureblogs commit v1" + ids.joined + blake2b_256(sealed.heading) + content_hash
        parts = {
            "heading": sealed.heading,
            "content_hash": content_hash,
            "commitment": keyed_blake2b_256(post_key, committed),
        }
        posts.append(
            {"id": str(ids.post), "group_id": str(ids.group), "author_id": str(ids.author), "sealed_by": "server"}
            | {name: encode_base64(part) for name, part in parts.items()}
            | {"signature": None}
        )
    answers = await node.call("tryAll", "openPost", [[post, post_key, None] for post in posts])
    assert answers == [{"title": "Listed"}, None]


async def test_posts(node: Node) -> None:
    def given(case: Case) -> list[Any]:
        return [shown(case), raw(case, "post_key"), raw(case, "verify_key")]

    assert await wrong(node, "openPost", cases("post"), given, is_the_post) == []


async def test_posts_with_their_sealed_keys(node: Node) -> None:
    def given(case: Case) -> list[Any]:
        return [shown(case), as_base64(case, "sealed_key"), encryption_pair(case), raw(case, "verify_key")]

    assert await wrong(node, "openAnswered", cases("opened_post"), given, is_the_post) == []


async def test_sealing_gives_the_same_bytes(node: Node) -> None:
    made = 0
    for case in cases("post"):
        heading, document = (json.loads(case.get(name, "null")) for name in ("heading_json", "document_json"))
        # Not those of the server, with attachments, or in which another library wrote the JSON.
        if not case["valid"] or document is None or document["attachments"] or raw(case, "signature") is None:
            continue
        if (compact(heading), compact(document)) != (case["heading_json"], case["document_json"]):
            continue
        ids = b"".join(UUID(case[f"{name}_id"]).bytes for name in ("post", "group", "author"))
        drawn = [raw(case, name) for name in ("post_key", "heading_nonce", "content_nonce")]
        await node.call("setRandom", *drawn)
        signing_key = raw(case, "signing_seed") + raw(case, "verify_key")
        sealed = await node.call("sealPost", ids, heading["title"], document["content"], signing_key)
        names = ("heading", "content", "commitment", "signature")
        assert sealed == {"postKey": drawn[0]} | {name: raw(case, name) for name in names}, case["name"]
        made += 1
    assert made >= 6


def is_the_post(opened: Any, case: Case) -> bool:
    if opened["title"] != json.loads(case["heading_json"])["title"]:
        return False
    if raw(case, "content") is None:
        return "content" not in opened
    document = {name: opened[name] for name in ("v", "content", "attachments")}
    if "document_json" in case:
        return bool(document == json.loads(case["document_json"]))
    return bool(blake2b(compact(document).encode(), digest_size=32).digest() == raw(case, "document_blake2b_256"))


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def as_base64(case: Case, name: str) -> str | None:
    found = raw(case, name)
    return None if found is None else encode_base64(found)


def served(case: Case, whose: str = "") -> dict[str, Any]:
    """A key of a case, as a server shows it."""
    key = {name: as_base64(case, whose + name) for name in ("public_key", "verify_key")}
    return key | {"id": "", "user_id": case[f"{whose}user_id"]}


def pair(case: Case, whose: str = "") -> dict[str, bytes]:
    """The public halves of a key of a case, as the page holds them."""
    return {"publicKey": raw(case, f"{whose}public_key"), "verifyKey": raw(case, f"{whose}verify_key")}


def encryption_pair(case: Case) -> dict[str, bytes]:
    return {"publicKey": raw(case, "public_key"), "privateKey": raw(case, "secret_key")}


def shown(case: Case) -> dict[str, Any]:
    """A post of a case, as a server answers it."""
    by_server = raw(case, "signature") is None and raw(case, "verify_key") is None
    return {
        "id": case["post_id"],
        "group_id": case["group_id"],
        "author_id": case["author_id"],
        "sealed_by": case.get("sealed_by", "server" if by_server else "author"),
        **{part: as_base64(case, part) for part in PARTS},
    }
