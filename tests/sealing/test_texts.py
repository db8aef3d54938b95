import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.sealing import texts
from server.sealing.errors import MalformedText
from server.sealing.texts import Attachment, Document, Draft

from .tampering import assert_silent
from .wire_vectors import Case, each, raw

FILE = Attachment(
    id=UUID("0197c5a4-0e68-7d17-ab9c-2b8801896876"),
    name="a.txt",
    media_type="text/plain",
    size=16,
    key=bytes(range(32)),
    hash=bytes(32),
)
FILE_TEXT = (
    '{"id":"0197c5a4-0e68-7d17-ab9c-2b8801896876","name":"a.txt","media_type":"text/plain","size":16,'
    '"key":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}'
)

strings = st.text(st.characters(exclude_categories=["Cs"]))
attachments = st.builds(
    Attachment,
    id=st.uuids(),
    name=strings,
    media_type=strings,
    size=st.integers(0, 2**53 - 1),
    key=st.binary(min_size=32, max_size=32),
    hash=st.binary(min_size=32, max_size=32),
)
unique_attachments = st.lists(attachments, max_size=4, unique_by=lambda file: file.id).map(tuple)


@each("text")
def test_vector(case: Case) -> None:
    text = raw(case, "text") + b" " * case["spaces"]
    if not case["valid"]:
        with pytest.raises(MalformedText) as caught:
            texts.read_heading(text) if case["part"] == "heading" else texts.read_document(text)
        assert_silent(caught.value)
    elif case["part"] == "heading":
        assert texts.read_heading(text) == json.loads(text)["title"]
    else:
        assert plain(texts.read_document(text)) == json.loads(text)


def plain(document: Document) -> dict[str, Any]:
    return dict(json.loads(texts.write_document(document)))


def test_literals() -> None:
    assert texts.write_heading("Grüße") == '{"v":1,"title":"Grüße"}'.encode().ljust(256)
    text = f'{{"v":1,"content":"\\u0000 \\"","attachments":[{FILE_TEXT}]}}'
    assert texts.write_document(Document('\0 "', (FILE,))) == text.encode().ljust(256)
    assert texts.read_document(text.encode().ljust(256)) == Document('\0 "', (FILE,))
    draft = '{"title":"a","content":"b","attachments":["0197c5a4-0e68-7d17-ab9c-2b8801896876"]}'
    assert texts.write_draft(Draft("a", "b", (FILE.id,))) == draft.encode()
    assert texts.read_draft(draft.encode()) == Draft("a", "b", (FILE.id,))
    file_draft = "{" + FILE_TEXT.partition(",")[2]
    assert texts.write_file_draft(FILE) == file_draft.encode()
    assert texts.read_file_draft(FILE.id, file_draft.encode()) == FILE


@pytest.mark.parametrize(("length", "padded"), [(255, 256), (256, 256), (257, 512), (511, 512), (512, 512)])
def test_padding_ends_at_the_next_multiple(length: int, padded: int) -> None:
    title = "x" * (length - len('{"v":1,"title":""}'))
    assert len(texts.write_heading(title)) == padded
    assert texts.read_heading(texts.write_heading(title)) == title


@pytest.mark.parametrize(
    "text",
    [
        '{"title":"a","content":"b","attachments":[],"v":1}',
        '{"title":"a","title":"a","content":"b","attachments":[]}',
        '{"title":"a","content":"b"}',
        '{"title":"a","content":"b","attachments":[""]}',
        '{"title":"a","content":"b","attachments":["0197C5A4-0e68-7d17-ab9c-2b8801896876"]}',
        '{"title":"a","content":"b","attachments":["0197c5a40e687d17ab9c2b8801896876"]}',
        '{"title":"a","content":"b","attachments":["0197c5a4-0e68-7d17-ab9c-2b8801896876\\n"]}',
        '{"title":"a","content":"b","attachments":["0197c5a4-0e68-7d17-ab9c-2b880189687\u0666"]}',
        '{"title":"a","content":"b","attachments":[1]}',
        '{"title":"a","content":"\\ud800","attachments":[]}',
        '{"title":1,"content":"b","attachments":[]}',
        '["a","b",[]]',
        "",
    ],
)
def test_drafts_are_read_strictly(text: str) -> None:
    with pytest.raises(MalformedText) as caught:
        texts.read_draft(text.encode())
    assert_silent(caught.value)


def test_no_attachment_comes_twice() -> None:
    text = f'{{"v":1,"content":"","attachments":[{FILE_TEXT},{FILE_TEXT}]}}'.encode()
    with pytest.raises(MalformedText):
        texts.read_document(padded(text))
    with pytest.raises(MalformedText):
        texts.write_document(Document("", (FILE, FILE)))
    with pytest.raises(MalformedText):
        texts.write_draft(Draft("", "", (FILE.id, FILE.id)))


def test_what_no_reader_takes_is_not_written() -> None:
    private = "private \ud800"
    writes: list[Callable[[], bytes]] = [
        lambda: texts.write_heading(private),
        lambda: texts.write_document(Document(private)),
        lambda: texts.write_draft(Draft("", private)),
        lambda: texts.write_file_draft(replaced(name=private)),
        lambda: texts.write_document(Document("", (replaced(size=-1),))),
        lambda: texts.write_document(Document("", (replaced(size=2**53),))),
        lambda: texts.write_document(Document("", (replaced(size=2**64),))),
        lambda: texts.write_document(Document("", (replaced(key=bytes(31)),))),
        lambda: texts.write_file_draft(replaced(hash=bytes(33))),
    ]
    for write in writes:
        with pytest.raises(MalformedText) as caught:
            write()
        assert_silent(caught.value)


def padded(text: bytes) -> bytes:
    return text.ljust(-(-len(text) // 256) * 256)


def replaced(**changes: Any) -> Attachment:
    values = {name: getattr(FILE, name) for name in FILE.__struct_fields__}
    return Attachment(**values | changes)


@given(strings)
def test_headings_come_back(title: str) -> None:
    text = texts.write_heading(title)
    assert len(text) % 256 == 0
    assert texts.read_heading(text) == title


@settings(deadline=None)
@given(strings, unique_attachments)
def test_documents_come_back(content: str, files: tuple[Attachment, ...]) -> None:
    text = texts.write_document(Document(content, files))
    assert len(text) % 256 == 0
    assert texts.read_document(text) == Document(content, files)


@settings(deadline=None)
@given(strings, strings, st.lists(st.uuids(), unique=True).map(tuple), attachments)
def test_texts_of_drafts_come_back(title: str, content: str, ids: tuple[UUID, ...], file: Attachment) -> None:
    assert texts.read_draft(texts.write_draft(Draft(title, content, ids))) == Draft(title, content, ids)
    assert texts.read_file_draft(file.id, texts.write_file_draft(file)) == file


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_name(some: bytes) -> None:
    for text in (some, padded(some), padded(b'{"v":1,"title":"' + some + b'"}')):
        for read in (texts.read_heading, texts.read_document, texts.read_draft):
            try:
                read(text)
            except MalformedText as error:
                assert_silent(error)
