import json
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.sealing import boxes, drafts, keys, texts
from server.sealing.errors import DraftMismatch, DraftUnreadable, InvalidKey, MalformedText, UnusableKey
from server.sealing.posts import PostIds
from server.sealing.texts import Attachment

from .tampering import assert_silent, flips
from .test_posts import ids_of, seal_with
from .test_texts import FILE, attachments, strings
from .wire_vectors import Case, each, raw, uuid

IDS = PostIds(UUID(int=1), UUID(int=2), UUID(int=3))
OWNER = UUID(int=4)
OLD, CURRENT = keys.new_encryption_pair(), keys.new_encryption_pair()
RING = [CURRENT.private, OLD.private]


def ring(case: Case) -> list[bytes]:
    return [bytes.fromhex(key) for key in case["worker_secret_keys_hex"]]


def refusals(case: Case) -> tuple[type[Exception], ...]:
    if "failure" in case:
        return ({"draft_mismatch": DraftMismatch, "draft_unreadable": DraftUnreadable}[case["failure"]],)
    return DraftMismatch, DraftUnreadable


@each("draft")
def test_vector(case: Case) -> None:
    if not case["valid"]:
        with pytest.raises(refusals(case)) as caught:
            drafts.open_draft(ids_of(case), raw(case, "draft"), ring(case))
        assert_silent(caught.value)
        return
    opened = drafts.open_draft(ids_of(case), raw(case, "draft"), ring(case))
    assert json.loads(texts.write_draft(opened)) == json.loads(case["draft_json"])
    check_box(case, b"secureblogs draft v1" + ids_of(case).joined)


@each("attachment_draft")
def test_vector_of_an_attachment_draft(case: Case) -> None:
    ids = uuid(case, "attachment"), uuid(case, "owner")
    if not case["valid"]:
        with pytest.raises(refusals(case)) as caught:
            drafts.open_file_draft(*ids, raw(case, "draft"), ring(case))
        assert_silent(caught.value)
        return
    opened = drafts.open_file_draft(*ids, raw(case, "draft"), ring(case))
    assert opened.id == ids[0]
    assert json.loads(texts.write_file_draft(opened)) == json.loads(case["draft_json"])
    check_box(case, b"secureblogs draft file v1" + ids[0].bytes + ids[1].bytes)


def check_box(case: Case, laid_out: bytes) -> None:
    key_id = drafts.worker_key_id(raw(case, "worker_public_key"))
    assert key_id == raw(case, "key_id")
    if raw(case, "ephemeral_secret_key") is not None:
        message = laid_out + case["draft_json"].encode()
        box = seal_with(raw(case, "ephemeral_secret_key"), message, raw(case, "worker_public_key"))
        assert key_id + box == raw(case, "draft")


def test_literal() -> None:
    assert drafts.worker_key_id(bytes(32)).hex() == "89eb0d6a8a691dae"


def test_sizes_are_those_of_the_documentation() -> None:
    text = b'{"title":"a","content":"b","attachments":[]}'
    assert len(drafts.seal_draft(IDS, "a", "b", [], CURRENT.public)) == len(text) + 124
    file_draft = drafts.seal_file_draft(FILE, OWNER, CURRENT.public)
    assert len(file_draft) == len(texts.write_file_draft(FILE)) + 113


def test_every_flipped_byte_is_refused() -> None:
    draft = drafts.seal_draft(IDS, "a", "b", [UUID(int=9)], CURRENT.public)
    for changed in flips(draft):
        with pytest.raises(DraftUnreadable):
            drafts.open_draft(IDS, changed, RING)
    file_draft = drafts.seal_file_draft(FILE, OWNER, CURRENT.public)
    for changed in flips(file_draft):
        with pytest.raises(DraftUnreadable):
            drafts.open_file_draft(FILE.id, OWNER, changed, RING)


def test_other_ids_are_a_mismatch() -> None:
    draft = drafts.seal_draft(IDS, "a", "b", [], CURRENT.public)
    for place in range(3):
        other = PostIds(*(UUID(int=9) if at == place else id for at, id in enumerate(IDS)))
        with pytest.raises(DraftMismatch):
            drafts.open_draft(other, draft, RING)
    file_draft = drafts.seal_file_draft(FILE, OWNER, CURRENT.public)
    for ids in ((UUID(int=9), OWNER), (FILE.id, UUID(int=9)), (OWNER, FILE.id)):
        with pytest.raises(DraftMismatch):
            drafts.open_file_draft(*ids, file_draft, RING)


def test_one_kind_is_not_taken_for_the_other() -> None:
    draft = drafts.seal_draft(IDS, "a", "b", [], CURRENT.public)
    with pytest.raises(DraftUnreadable):
        drafts.open_file_draft(FILE.id, OWNER, draft, RING)
    with pytest.raises(DraftUnreadable):
        drafts.open_draft(IDS, drafts.seal_file_draft(FILE, OWNER, CURRENT.public), RING)


def test_old_keys_open_and_destroyed_ones_do_not() -> None:
    draft = drafts.seal_draft(IDS, "a", "b", [], OLD.public)
    assert drafts.open_draft(IDS, draft, RING).title == "a"
    for ring in ([CURRENT.private], []):
        with pytest.raises(DraftUnreadable):
            drafts.open_draft(IDS, draft, ring)


def test_the_key_id_alone_chooses_the_key() -> None:
    draft = drafts.seal_draft(IDS, "a", "b", [], CURRENT.public)
    with pytest.raises(DraftUnreadable):
        drafts.open_draft(IDS, drafts.worker_key_id(OLD.public) + draft[8:], RING)


def test_a_wrong_key_of_the_worker_is_no_fault_of_the_draft() -> None:
    draft = drafts.seal_draft(IDS, "a", "b", [], CURRENT.public)
    with pytest.raises(InvalidKey):
        drafts.open_draft(IDS, draft, [b"short", CURRENT.private])


def test_what_no_worker_takes_is_not_sealed() -> None:
    with pytest.raises(MalformedText) as caught:
        drafts.seal_draft(IDS, "private \ud800", "", [], CURRENT.public)
    assert_silent(caught.value)
    with pytest.raises(MalformedText):
        drafts.seal_draft(IDS, "", "", [OWNER, OWNER], CURRENT.public)
    for public_key in (bytes(32), bytes(31), b"\xff" * 32):
        with pytest.raises(UnusableKey):
            drafts.seal_draft(IDS, "", "", [], public_key)
        with pytest.raises(UnusableKey):
            drafts.seal_file_draft(FILE, OWNER, public_key)
    with pytest.raises(InvalidKey):
        drafts.worker_key_id(bytes(33))


def test_a_draft_cut_in_its_ids_is_unreadable() -> None:
    laid_out = b"secureblogs draft v1" + IDS.joined
    for length in range(len(laid_out)):
        box = boxes.seal(laid_out[:length], CURRENT.public)
        with pytest.raises(DraftUnreadable):
            drafts.open_draft(IDS, drafts.worker_key_id(CURRENT.public) + box, RING)


@settings(deadline=None)
@given(strings, strings, st.lists(st.uuids(), unique=True, max_size=4), st.sampled_from([OLD, CURRENT]))
def test_drafts_come_back(title: str, content: str, ids: list[UUID], key: keys.KeyPair) -> None:
    draft = drafts.seal_draft(IDS, title, content, ids, key.public)
    assert drafts.open_draft(IDS, draft, RING) == drafts.Draft(title, content, tuple(ids))


@settings(deadline=None)
@given(attachments)
def test_file_drafts_come_back(file: Attachment) -> None:
    draft = drafts.seal_file_draft(file, OWNER, CURRENT.public)
    assert drafts.open_file_draft(file.id, OWNER, draft, RING) == file


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(draft: bytes, message: bytes) -> None:
    key_id = drafts.worker_key_id(CURRENT.public)
    box = boxes.seal(message, CURRENT.public)
    labelled = boxes.seal(b"secureblogs draft v1" + message, CURRENT.public)
    for some in (draft, key_id + draft, key_id + box, key_id + labelled):
        with pytest.raises((DraftUnreadable, DraftMismatch)):
            drafts.open_draft(IDS, some, RING)
