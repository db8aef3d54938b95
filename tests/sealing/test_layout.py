"""Joined bytes, spelled out: associated data, and what is signed, committed to and hashed."""

import hashlib
from uuid import UUID

from nacl.signing import VerifyKey

from server.sealing import boxes, ciphers, drafts, files, keys, posts, texts

from .wire_vectors import Case, each, raw, uuid

WORKER = keys.encryption_pair(bytes(range(32)))


@each("layout")
def test_vector(case: Case) -> None:
    assert joined(case) == raw(case, "joined")


def joined(case: Case) -> bytes:
    label = str(case["label"]).encode("ascii")
    if "user_id" in case:
        assert label in {keys.PROOF_LABEL, keys.ENDORSEMENT_LABEL, keys.FINGERPRINT_LABEL}
        return keys._bound(label, uuid(case, "user"), raw(case, "public_key"), raw(case, "verify_key"))
    if "attachment_id" in case:
        return joined_for_file(label, case)
    return joined_for_post(label, case)


def joined_for_file(label: bytes, case: Case) -> bytes:
    if label == files.FILE_LABEL:
        return files._associated(uuid(case, "attachment"), case["chunk"])
    assert label == drafts.FILE_DRAFT_LABEL
    return label + uuid(case, "attachment").bytes + uuid(case, "owner").bytes + str(case["draft_json"]).encode()


def joined_for_post(label: bytes, case: Case) -> bytes:
    ids = posts.PostIds(uuid(case, "post"), uuid(case, "group"), uuid(case, "author"))
    if label == posts.COMMITMENT_LABEL:
        return posts._committed(ids, raw(case, "heading_hash"), raw(case, "content_hash"))
    if label == posts.SIGNATURE_LABEL:
        return posts._signed(ids, raw(case, "heading_hash"), raw(case, "content_hash"), raw(case, "commitment"))
    if label == drafts.DRAFT_LABEL:
        return label + ids.joined + str(case["draft_json"]).encode()
    assert label in {b"", posts.HEADING_LABEL, posts.CONTENT_LABEL}
    return label + ids.joined


def test_proof_and_endorsement_sign_what_is_laid_out() -> None:
    user, signing, other = UUID(int=1), keys.signing_pair(bytes(32)), keys.signing_pair(bytes([1]) * 32)
    message = user.bytes + WORKER.public + other.public
    endorsement = keys.endorse(user, WORKER.public, other.public, signing.private)
    assert is_signed(b"secureblogs endorse v1" + message, endorsement, signing.public)
    proof = keys.prove(user, WORKER.public, other.private)
    assert is_signed(b"secureblogs key v1" + message, proof, other.public)


def test_fingerprint_hashes_what_is_laid_out() -> None:
    message = b"secureblogs fingerprint v1" + UUID(int=1).bytes + WORKER.public + bytes(32)
    shown = keys.fingerprint(UUID(int=1), WORKER.public, bytes(32))
    assert shown.replace(" ", "") == hashlib.blake2b(message, digest_size=20).hexdigest()


def test_post_is_made_of_what_is_laid_out() -> None:
    ids, key, signing = posts.PostIds(UUID(int=1), UUID(int=2), UUID(int=3)), bytes(range(32)), bytes(32)
    sealed = posts.seal_post(ids, "title", "content", (), key, signing_seed=signing)
    joined = bytes(15) + b"\1" + bytes(15) + b"\2" + bytes(15) + b"\3"
    heading = ciphers.decrypt(sealed.heading, b"secureblogs head v1" + joined, key)
    content = ciphers.decrypt(sealed.content, b"secureblogs body v1" + joined, key)
    assert heading == b'{"v":1,"title":"title"}'.ljust(256)
    assert content == b'{"v":1,"content":"content","attachments":[]}'.ljust(256)
    assert sealed.content_hash == blake2b(sealed.content)
    hashes = blake2b(sealed.heading) + sealed.content_hash
    assert sealed.commitment == blake2b(b"secureblogs commit v1" + joined + hashes, key)
    message = b"secureblogs sign v1" + joined + hashes + sealed.commitment
    assert is_signed(message, sealed.signature, keys.signing_pair(signing).public)


def test_drafts_hold_what_is_laid_out() -> None:
    ids = posts.PostIds(UUID(int=1), UUID(int=2), UUID(int=3))
    draft = drafts.seal_draft(ids, "é", "", [UUID(int=4)], WORKER.public)
    text = '{"title":"é","content":"","attachments":["00000000-0000-0000-0000-000000000004"]}'.encode()
    assert draft[:8] == blake2b(WORKER.public)[:8]
    assert boxes.unseal(draft[8:], WORKER.private) == b"secureblogs draft v1" + ids.joined + text

    file = texts.Attachment(id=UUID(int=5), name="n", media_type="m", size=6, key=bytes(32), hash=bytes(32))
    draft = drafts.seal_file_draft(file, UUID(int=7), WORKER.public)
    message = boxes.unseal(draft[8:], WORKER.private)
    zeros = b"A" * 43 + b"="
    assert message == b"secureblogs draft file v1" + UUID(int=5).bytes + UUID(int=7).bytes + (
        b'{"name":"n","media_type":"m","size":6,"key":"' + zeros + b'","hash":"' + zeros + b'"}'
    )


def blake2b(message: bytes, key: bytes = b"") -> bytes:
    return hashlib.blake2b(message, digest_size=32, key=key).digest()


def is_signed(message: bytes, signature: bytes | None, verify_key: bytes) -> bool:
    VerifyKey(verify_key).verify(message, signature)
    return True
