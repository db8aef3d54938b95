import json
from hashlib import blake2b
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_box, crypto_box_seal, crypto_scalarmult_base

from server.sealing import boxes, ciphers, digests, keys, posts, signatures, texts
from server.sealing.errors import (
    BadSignature,
    CannotOpen,
    InvalidKey,
    MalformedText,
    SealingError,
    UnusableKey,
    WrongSize,
)
from server.sealing.posts import Nonces, PostIds

from .tampering import assert_silent, flips
from .test_texts import FILE, padded, strings, unique_attachments
from .wire_vectors import Case, each, raw, uuid

IDS = PostIds(UUID(int=1), UUID(int=2), UUID(int=3))
KEY = bytes(range(32))
SEED = bytes(range(32, 64))
VERIFY_KEY = keys.signing_pair(SEED).public
NONCES = Nonces(bytes(24), bytes([1]) * 24)
PARTS = ("heading", "content_hash", "commitment", "signature", "verify_key")


def ids_of(case: Case) -> PostIds:
    return PostIds(uuid(case, "post"), uuid(case, "group"), uuid(case, "author"))


def sealed_by(case: Case) -> str:
    return "server" if raw(case, "signature") is None and raw(case, "verify_key") is None else "author"


def opened(case: Case) -> tuple[str, texts.Document]:
    parts: dict[str, Any] = {name: raw(case, name) for name in (*PARTS, "content")}
    return posts.open_post(ids_of(case), raw(case, "post_key"), **parts, sealed_by=sealed_by(case))


@each("post")
def test_vector(case: Case) -> None:
    if not case["valid"]:
        with pytest.raises(CannotOpen) as caught:
            opened(case)
        assert_silent(caught.value)
        assert failing(case) == case["fails"]
        return
    title, document = opened(case)
    nonces = Nonces(raw(case, "heading")[:24], raw(case, "content")[:24])
    if "heading_nonce_hex" in case:
        assert nonces == (raw(case, "heading_nonce"), raw(case, "content_nonce"))
    heading_text, document_text = texts_of(case)
    assert title == json.loads(heading_text)["title"]
    assert json.loads(texts.write_document(document)) == json.loads(document_text)
    seed = raw(case, "signing_seed") if sealed_by(case) == "author" else None
    sealed = posts.seal_texts(
        ids_of(case), heading_text, document_text, raw(case, "post_key"), signing_seed=seed, nonces=nonces
    )
    assert sealed == posts.SealedPost(
        raw(case, "heading"),
        raw(case, "content"),
        raw(case, "content_hash"),
        raw(case, "commitment"),
        raw(case, "signature"),
    )
    posts.check_sizes(sealed.heading, sealed.content, sealed.commitment, sealed.signature)


def texts_of(case: Case) -> tuple[bytes, bytes]:
    """Both padded texts; that of a long document is given by its length and digest."""
    if "document_json" in case:
        document = case["document_json"].encode()
    else:
        label = posts.CONTENT_LABEL + ids_of(case).joined
        document = (ciphers.decrypt(raw(case, "content"), label, raw(case, "post_key")) or b"").rstrip(b" ")
        assert len(document) == case["document_length"]
        assert blake2b(document, digest_size=32).digest() == raw(case, "document_blake2b_256")
    heading_text, document_text = padded(case["heading_json"].encode()), padded(document)
    assert len(heading_text) == case["heading_padded_length"]
    assert len(document_text) == case["content_padded_length"]
    return heading_text, document_text


def failing(case: Case) -> list[str]:
    """The checks that fail, each made by itself."""
    ids, key = ids_of(case), raw(case, "post_key")
    heading, content = raw(case, "heading"), raw(case, "content")
    content_hash, commitment = raw(case, "content_hash"), raw(case, "commitment")
    heading_hash = digests.blake2b_256(heading)
    message = posts._signed(ids, heading_hash, content_hash, commitment)
    heading_text = ciphers.decrypt(heading, posts.HEADING_LABEL + ids.joined, key)
    content_text = ciphers.decrypt(content, posts.CONTENT_LABEL + ids.joined, key)
    checks = {
        "content_hash": content_hash == digests.blake2b_256(content),
        "commitment": commitment == digests.keyed_blake2b_256(key, posts._committed(ids, heading_hash, content_hash)),
        "signature": signatures.is_signed(message, raw(case, "signature"), raw(case, "verify_key")),
        "heading_aead": heading_text is not None,
        "heading_text": heading_text is None or reads(texts.read_heading, heading_text),
        "content_aead": content_text is not None,
        "content_text": content_text is None or reads(texts.read_document, content_text),
    }
    return [name for name, holds in checks.items() if not holds]


def reads(read: Any, text: bytes) -> bool:
    try:
        read(text)
    except MalformedText:
        return False
    return True


@each("sealed_key")
def test_vector_of_a_sealed_key(case: Case) -> None:
    assert keys.encryption_pair(raw(case, "secret_key")).public == raw(case, "public_key")
    if not case["valid"]:
        with pytest.raises(CannotOpen):
            posts.open_key(raw(case, "sealed_key"), raw(case, "secret_key"))
        return
    assert posts.open_key(raw(case, "sealed_key"), raw(case, "secret_key")) == raw(case, "post_key")
    if raw(case, "ephemeral_secret_key") is not None:
        again = seal_with(raw(case, "ephemeral_secret_key"), raw(case, "post_key"), raw(case, "public_key"))
        assert again == raw(case, "sealed_key")
    sealed = posts.seal_key(raw(case, "post_key"), raw(case, "public_key"))
    assert posts.open_key(sealed, raw(case, "secret_key")) == raw(case, "post_key")


def seal_with(ephemeral: bytes, message: bytes, public_key: bytes) -> bytes:
    """crypto_box_seal, spelled out."""
    ephemeral_public = crypto_scalarmult_base(ephemeral)
    nonce = blake2b(ephemeral_public + public_key, digest_size=24).digest()
    return ephemeral_public + crypto_box(message, nonce, public_key, ephemeral)


@each("opened_post")
def test_vector_of_an_opened_post(case: Case) -> None:
    def show() -> tuple[str, texts.Document | None]:
        parts: dict[str, Any] = {name: raw(case, name) for name in PARTS} | {"sealed_by": case["sealed_by"]}
        post_key = posts.open_key(raw(case, "sealed_key"), raw(case, "secret_key"))
        if raw(case, "content") is None:
            return posts.open_heading(ids_of(case), post_key, **parts), None
        return posts.open_post(ids_of(case), post_key, content=raw(case, "content"), **parts)

    assert keys.encryption_pair(raw(case, "secret_key")).public == raw(case, "public_key")
    if not case["valid"]:
        with pytest.raises(CannotOpen) as caught:
            show()
        assert_silent(caught.value)
        return
    title, document = show()
    assert title == json.loads(case["heading_json"])["title"]
    if case["document_json"] is None:
        assert document is None
    else:
        assert document is not None
        assert json.loads(texts.write_document(document)) == json.loads(case["document_json"])


def test_literal() -> None:
    sealed = posts.seal_post(IDS, "Title", "Content", (), KEY, signing_seed=SEED, nonces=NONCES)
    assert (
        sealed.heading[:40].hex() == "000000000000000000000000000000000000000000000000ee24fae5d6b9c93b62e70b55893404c8"
    )
    assert sealed.content[-16:].hex() == "3120c046697a23a5daa12dffc2069429"
    assert sealed.content_hash.hex() == "b25ee50b95a84829f4a75b8cee950343d4ca0f65d181171bed752253c629628a"
    assert sealed.commitment.hex() == "1adf0f6ecd07d006e0f873af9b3bc0fd0cb5e55d6f8e68dcade928150bdeeab1"
    assert sealed.signature is not None
    assert sealed.signature.hex() == (
        "2ea3506d297e23d73f61ec983a2c780e6e522d6ef962aba19b805c001256974767ecdb89a2b538e2a3b272e858b2eafb"
        "bcfc4526414fed16adb0aa9ba7e4f202"
    )


def sealed_parts(*, signed: bool = True) -> dict[str, Any]:
    sealed = posts.seal_post(IDS, "Title", "Content", (FILE,), KEY, signing_seed=SEED if signed else None)
    parts = {name: getattr(sealed, name) for name in sealed.__struct_fields__}
    return parts | {"verify_key": VERIFY_KEY if signed else None, "sealed_by": "author" if signed else "server"}


@pytest.mark.parametrize("signed", [True, False])
def test_every_flipped_byte_is_refused(signed: bool) -> None:
    parts = sealed_parts(signed=signed) | {"post_key": KEY, "ids": IDS.joined}
    fields = [name for name, value in parts.items() if isinstance(value, bytes)]
    assert len(fields) == (8 if signed else 6)
    for name in fields:
        for flipped in flips(parts[name]):
            changed = parts | {name: flipped}
            refuse(changed)
            if name != "content":
                refuse({part: value for part, value in changed.items() if part != "content"})


def refuse(parts: dict[str, Any]) -> None:
    ids, key = parts["ids"], parts["post_key"]
    rest = {name: value for name, value in parts.items() if name not in {"ids", "post_key"}}
    with pytest.raises(CannotOpen):
        open_any(PostIds(*(UUID(bytes=ids[at : at + 16]) for at in (0, 16, 32))), key, rest)


def open_any(ids: PostIds, key: bytes, parts: dict[str, Any]) -> Any:
    return posts.open_post(ids, key, **parts) if "content" in parts else posts.open_heading(ids, key, **parts)


@pytest.mark.parametrize("name", ["heading", "content", "content_hash", "commitment", "signature", "verify_key"])
@pytest.mark.parametrize("change", ["empty", "cut", "longer", "absent"])
def test_every_wrong_length_is_refused(name: str, change: str) -> None:
    parts = sealed_parts()
    value = parts[name]
    changed = {"empty": b"", "cut": value[:-1], "longer": value + b"\0", "absent": None}[change]
    with pytest.raises(CannotOpen):
        posts.open_post(IDS, KEY, **parts | {name: changed})
    if name != "content":
        del parts["content"]
        with pytest.raises(CannotOpen):
            posts.open_heading(IDS, KEY, **parts | {name: changed})


@pytest.mark.parametrize("key", [b"", KEY[:-1], KEY + b"\0"])
def test_post_keys_of_another_length_are_refused(key: bytes) -> None:
    with pytest.raises(CannotOpen):
        posts.open_post(IDS, key, **sealed_parts())
    with pytest.raises(InvalidKey):
        posts.seal_post(IDS, "", "", (), key)
    with pytest.raises(InvalidKey):
        posts.seal_key(key, keys.new_encryption_pair().public)


def test_what_is_signed_says_so() -> None:
    signed, unsigned = sealed_parts(), sealed_parts(signed=False)
    for parts in (
        signed | {"sealed_by": "server"},
        signed | {"sealed_by": "anyone"},
        unsigned | {"sealed_by": "author"},
        unsigned | {"sealed_by": "author", "verify_key": VERIFY_KEY},
    ):
        with pytest.raises(CannotOpen):
            posts.open_post(IDS, KEY, **parts)


def test_content_is_not_needed_for_a_heading() -> None:
    parts = sealed_parts()
    del parts["content"]
    assert posts.open_heading(IDS, KEY, **parts) == "Title"


def test_every_flipped_byte_breaks_the_signature() -> None:
    parts = sealed_parts()
    checked = {name: parts[name] for name in PARTS}
    posts.verify_signature(IDS, **checked)
    for name, value in checked.items():
        for flipped in flips(value):
            with pytest.raises(BadSignature):
                posts.verify_signature(IDS, **checked | {name: flipped})
        for changed in (None, b"", value[:-1], value + b"\0"):
            if name != "heading" or changed is not None:
                with pytest.raises(BadSignature):
                    posts.verify_signature(IDS, **checked | {name: changed})
    for place in range(3):
        other = PostIds(*(UUID(int=9) if at == place else id for at, id in enumerate(IDS)))
        with pytest.raises(BadSignature):
            posts.verify_signature(other, **checked)


def test_bytes_do_not_move_between_hash_and_commitment() -> None:
    sealed = sealed_parts()
    parts = {name: sealed[name] for name in PARTS}
    moved = parts["content_hash"] + parts["commitment"]
    message = posts._signed(IDS, digests.blake2b_256(parts["heading"]), moved[:31], moved[31:])
    assert signatures.is_signed(message, parts["signature"], parts["verify_key"]), "the joined bytes are the same"
    with pytest.raises(BadSignature):
        posts.verify_signature(IDS, **parts | {"content_hash": moved[:31], "commitment": moved[31:]})


def test_sealings_share_nothing() -> None:
    first, second = sealed_parts(), sealed_parts()
    assert first["heading"][:24] != first["content"][:24]
    for name in ("heading", "content", "content_hash", "commitment", "signature"):
        assert first[name] != second[name]
    assert posts.new_post_key() != posts.new_post_key()
    assert len(posts.new_post_key()) == 32
    with pytest.raises(InvalidKey):
        posts.seal_post(IDS, "", "", (), KEY, nonces=Nonces(bytes(24), bytes(24)))
    with pytest.raises(InvalidKey):
        posts.seal_post(IDS, "", "", (), KEY, nonces=Nonces(bytes(24), bytes(23)))


def test_signing_seeds_of_another_length_are_refused() -> None:
    for seed in (b"", SEED[:-1], SEED + b"\0"):
        with pytest.raises(InvalidKey):
            posts.seal_post(IDS, "", "", (), KEY, signing_seed=seed)


def test_what_no_reader_takes_is_not_sealed() -> None:
    for title, content, files in (("\ud800", "", ()), ("", "private \udfff", ()), ("", "", (FILE, FILE))):
        with pytest.raises(MalformedText) as caught:
            posts.seal_post(IDS, title, content, files, KEY)
        assert_silent(caught.value)


@pytest.mark.parametrize(
    ("field", "sizes"),
    [
        ("heading", (295, 296, 32, 64)),
        ("heading", (0, 296, 32, 64)),
        ("heading", (40, 296, 32, 64)),
        ("heading", (256, 296, 32, 64)),
        ("content", (296, 297, 32, 64)),
        ("content", (296, 40, 32, 64)),
        ("content", (296, 39, 32, 64)),
        ("commitment", (296, 552, 31, 64)),
        ("commitment", (296, 552, 64, 64)),
        ("signature", (296, 552, 32, 63)),
        ("signature", (296, 552, 32, 0)),
    ],
)
def test_sizes_are_checked(field: str, sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(WrongSize) as caught:
        posts.check_sizes(*(bytes(size) for size in sizes))
    assert caught.value.field == field


def test_good_sizes_pass() -> None:
    posts.check_sizes(bytes(296), bytes(40 + 256 * 1025), bytes(32), bytes(64))
    posts.check_sizes(bytes(552), bytes(296), bytes(32), None)


@settings(deadline=None)
@given(strings, strings, unique_attachments, st.booleans())
def test_posts_come_back(title: str, content: str, files: tuple[texts.Attachment, ...], signed: bool) -> None:
    pair, post_key = keys.new_encryption_pair(), posts.new_post_key()
    sealed = posts.seal_post(IDS, title, content, files, post_key, signing_seed=SEED if signed else None)
    parts: dict[str, Any] = {name: getattr(sealed, name) for name in sealed.__struct_fields__}
    by, verify_key = ("author", VERIFY_KEY) if signed else ("server", None)
    read = posts.open_key(posts.seal_key(post_key, pair.public), pair.private)
    opened = posts.open_post(IDS, read, **parts, verify_key=verify_key, sealed_by=by)
    assert opened == (title, texts.Document(content, files))


@given(st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=70), st.binary(max_size=70))
def test_any_bytes_are_refused_by_name(heading: bytes, content: bytes, short: bytes, other: bytes) -> None:
    with pytest.raises(CannotOpen):
        posts.open_post(
            IDS,
            KEY,
            heading=heading,
            content=content,
            content_hash=short,
            commitment=other,
            signature=short,
            verify_key=other,
            sealed_by="author",
        )
    with pytest.raises(CannotOpen):
        posts.open_key(heading, KEY)
    with pytest.raises(CannotOpen):
        posts.open_key(heading[:80].ljust(80, b"\0"), short)
    with pytest.raises(SealingError):
        posts.seal_key(short, other + bytes(71))


def test_every_flipped_byte_of_a_sealed_key_is_refused() -> None:
    pair = keys.new_encryption_pair()
    sealed = posts.seal_key(KEY, pair.public)
    for flipped in flips(sealed):
        with pytest.raises(CannotOpen):
            posts.open_key(flipped, pair.private)


def test_libsodium_too_refuses_to_seal_to_low_order() -> None:
    for u in boxes._LOW_ORDER:
        with pytest.raises(UnusableKey):
            posts.seal_key(KEY, u.to_bytes(32, "little"))
        with pytest.raises(RuntimeError):
            crypto_box_seal(KEY, u.to_bytes(32, "little"))
