"""post new, list, read, delete, requeue."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import msgspec
import rich_click as click

from client import prompts
from client.api import Client
from client.commands import (
    Unlocked,
    advise,
    connected,
    find_group,
    json_option,
    limit_option,
    open_people,
    take,
    unlock,
    verb,
    yes_option,
)
from client.errors import (
    CannotOpen,
    ClientError,
    GrantReturned,
    HeldElsewhere,
    KeyRevoked,
    NetworkError,
    UntrustedKey,
    WrongPostKey,
)
from client.kept_files import check_unused, forget_files, kept_files
from client.models import Post
from client.people import People
from client.pins import Trust
from client.posting import NewPost, Posted, prepare_post, send_post
from client.profile import Profile, Session
from client.reading import OpenedPost, fetch_readable, open_post
from client.recipients import Withhold, read_recipients, save_recipients
from client.returning import give_back
from client.terminal import count, line, note, passage, say, show_fields, show_json, show_table, warn, when
from client.transfers import receive_all, send, send_in_clear, size_text
from client.uploads import MAX_ATTACHMENTS, Source, source_of_path
from server.sealing.texts import Attachment

# A worker takes a post up at once: what is not sealed after this long is waiting for a worker to come back.
SEALING_SECONDS = 10.0
SHOWN_NEWCOMERS = 10
SHOWN_UNVERIFIED = 3


@click.group()
def post() -> None:
    """Write, list, read and delete posts."""


@post.command("new")
@click.argument("group_name", metavar="GROUP")
@click.argument("title")
@click.argument("text", required=False)
@click.option("--file", type=click.Path(path_type=Path), help="Take the text from a file; - for standard input.")
@click.option(
    "--withhold", "withheld_ids", metavar="USER|KEY", type=click.UUID, multiple=True, help="Openly leave somebody out."
)
@click.option("--withhold-untrusted", is_flag=True, help="Openly leave out new keys that nobody known vouches for.")
@click.option("--withhold-unverified", is_flag=True, help="Openly leave out all keys that you have not compared.")
@click.option("--by-server", is_flag=True, help="Let the server seal it, which then sees title and text.")
@click.option("--no-wait", is_flag=True, help="With --by-server: don't wait until it is sealed.")
@click.option(
    "--attach",
    "paths",
    metavar="FILE",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Send a file along; it can be given several times.",
)
@click.option(
    "--uploaded",
    "uploaded_ids",
    metavar="ID",
    type=click.UUID,
    multiple=True,
    help="Attach what `secureblogs file put` has uploaded.",
)
@json_option
@verb
async def post_new(
    profile: Profile,
    *,
    group_name: str,
    title: str,
    text: str | None,
    file: Path | None,
    withheld_ids: tuple[UUID, ...],
    withhold_untrusted: bool,
    withhold_unverified: bool,
    by_server: bool,
    no_wait: bool,
    paths: tuple[Path, ...],
    uploaded_ids: tuple[UUID, ...],
    as_json: bool,
) -> None:
    """Write a post to a group: TEXT, a file, or standard input.

    It is encrypted, signed and sealed to every member here, its files too: the server never sees what is in them. A new
    key of somebody whose other keys you know stops it, unless one of those vouches for it: compare it (`secureblogs key
    verify`), or leave it out.

    \b
    secureblogs post new "Book club" "The key" "is under the mat"
    secureblogs post new "Book club" Minutes --file minutes.txt --attach plan.pdf
    """
    if text is not None and file is not None:
        raise click.UsageError("Give TEXT or --file, not both.")
    withhold = Withhold(ids=frozenset(withheld_ids), untrusted=withhold_untrusted, unverified=withhold_unverified)
    if by_server and withhold != Withhold():
        raise click.UsageError("The server seals to everybody: --withhold and --by-server don't go together.")
    if no_wait and not by_server:
        raise click.UsageError("Nothing has to be waited for without --by-server.")
    if len(paths) + len(uploaded_ids) > MAX_ATTACHMENTS:
        raise click.UsageError(f"A post has at most {MAX_ATTACHMENTS} files.")
    sources = [source_of_path(one) for one in paths]
    async with connected(profile) as (client, session):
        found = await find_group(client, group_name)
        content = prompts.text(text, file)
        if not by_server:
            new = NewPost(found.id, session.user_id, title, content, withhold=withhold)
            posted = await _post_sealed(profile, client, session, new, sources, uploaded_ids)
            if as_json:
                show_json(posted_as_json(posted))
            else:
                report_posted(posted, found.name)
            return
        check_unused(profile.uploads_path, session.server, uploaded_ids, datetime.now(UTC), by_server=True)
        attachment_ids = [*uploaded_ids, *[(await send_in_clear(client, one)).id for one in sources]]
        made = await client.create_post(found.id, title, content, attachment_ids=attachment_ids)
        forget_files(profile.uploads_path, session.server, uploaded_ids, made.id, datetime.now(UTC))
        if not no_wait:
            made = await client.wait_until_sealed(made.id, SEALING_SECONDS)
    if as_json:
        show_json(_as_json(made))
    else:
        say(f"Posted {made.id} to {line(found.name)}: {made.status}, by the server, which has seen the text.")
    if made.status == "failed":
        raise ClientError(
            f"it could not be sealed ({made.failure}): try again with `secureblogs post requeue {made.id}`"
        )
    if made.status == "pending" and not no_wait:
        note("The server has it and will seal it as soon as a worker is there.")


async def _post_sealed(
    profile: Profile,
    client: Client,
    session: Session,
    new: NewPost,
    sources: Sequence[Source],
    uploaded_ids: Sequence[UUID],
) -> Posted:
    now = datetime.now(UTC)
    check_unused(profile.uploads_path, session.server, uploaded_ids, now, by_server=False)
    kept = kept_files(profile.uploads_path, session.server, now)
    uploaded = [kept[one] for one in dict.fromkeys(uploaded_ids)]
    identity, people = unlock(profile, client)
    known = read_recipients(profile.recipients_path, new.group_id)
    new = msgspec.structs.replace(new, known=known, signing_key_id=session.key_id)
    if sources:
        # Nobody sends a gigabyte to hear then that a key is not known.
        await prepare_post(client, identity, people, new)
    sent = [await send(client, one) for one in sources]
    new = msgspec.structs.replace(new, attachments=(*uploaded, *sent))
    outgoing = await prepare_post(client, identity, people, new)
    try:
        posted = await send_post(client, people, outgoing)
    except NetworkError as error:
        raise NetworkError(f"{error}. Look for {outgoing.new.id} before you post again: it may be stored") from None
    user_ids = {one.key.user_id for one in posted.recipients.accepted}
    save_recipients(profile.recipients_path, new.group_id, user_ids)
    forget_files(profile.uploads_path, session.server, uploaded_ids, posted.post.id, datetime.now(UTC))
    return posted


def report_posted(posted: Posted, group_name: str) -> None:
    """How it was sealed, to whom, and from whom it was withheld."""
    accepted, names = posted.recipients.accepted, posted.recipients.names
    people = len({one.key.user_id for one in accepted})
    say(
        f"Posted {posted.post.id} to {line(group_name)}: sealed here, to {count(len(accepted), 'key')} of"
        f" {count(people, 'person', 'people')}; the server has not seen the text."
    )
    for withheld in posted.recipients.withheld:
        name = names.get(withheld.key.user_id, str(withheld.key.user_id))
        say(f"Withheld from {line(name)}, key {withheld.key.id}: {line(withheld.reason)}.")
    new = [
        one
        for one in accepted
        if one.key.user_id in posted.recipients.newcomers and one.key.user_id != posted.post.author_id
    ]
    for one in new[:SHOWN_NEWCOMERS]:
        note(f"first post to {line(names[one.key.user_id])}: {one.fingerprint} ({one.trust.value})")
    if len(new) > SHOWN_NEWCOMERS:
        note(f"and to {len(new) - SHOWN_NEWCOMERS} other keys for the first time")
    unverified = [one.key.user_id for one in accepted if one.trust is Trust.UNVERIFIED]
    if unverified:
        how = _how_to_verify(unverified, posted.post.group_id)
        note(f"{len(unverified)} of these keys nobody has compared yet: {how}")


def _how_to_verify(user_ids: Sequence[UUID], group_id: UUID) -> str:
    each = list(dict.fromkeys(user_ids))
    said = "; ".join(f"secureblogs key verify {one}" for one in each[:SHOWN_UNVERIFIED])
    more = len(each) - SHOWN_UNVERIFIED
    return said if more <= 0 else f"{said}; and {more} more: secureblogs group members {group_id}"


def posted_as_json(posted: Posted) -> dict[str, object]:
    recipients = posted.recipients
    return {
        **_as_json(posted.post),
        "recipients": [
            {
                "user_id": one.key.user_id,
                "key_id": one.key.id,
                "fingerprint": one.fingerprint,
                "trust": one.trust,
                "is_new": one.key.user_id in recipients.newcomers,
            }
            for one in recipients.accepted
        ],
        "withheld": [
            {"user_id": one.key.user_id, "key_id": one.key.id, "reason": one.reason} for one in recipients.withheld
        ],
    }


class Listed(NamedTuple):
    post: Post
    author: str
    title: str | None
    """None where the post can't be read."""
    problem: CannotOpen | None
    """Why a readable post does not open."""


# A post that is whole, and opens elsewhere.
_OF_THIS_DEVICE = (HeldElsewhere, KeyRevoked)


@post.command("list")
@click.argument("group_name", metavar="GROUP", required=False)
@limit_option
@json_option
@verb
async def post_list(profile: Profile, group_name: str | None, limit: int, as_json: bool) -> None:
    """List posts, newest first, of one group or of all. Titles are opened here, with your key.

    \b
    secureblogs post list
    secureblogs post list "Book club" --limit 10
    """
    async with connected(profile) as (client, _):
        found = await find_group(client, group_name) if group_name else None
        posts = await take(client.posts(found.id if found else None), limit)
        unlocked = None
        if any(one.access == "readable" for one in posts):
            if profile.identity_path.exists():
                unlocked = unlock(profile, client)
            else:
                note("Titles stay sealed: the keys that open them are not on this machine.")
        people = unlocked.people if unlocked else open_people(profile, client)
        listed = [await _listed(profile, client, unlocked, people, one) for one in posts]
    if as_json:
        show_json(
            [
                {**_as_json(one.post), "author": one.author, "title": one.title, "problem": _text(one.problem)}
                for one in listed
            ]
        )
        return
    show_table(
        ["title", "id", "written", "author", "access"],
        ([one.title or "(sealed)", one.post.id, when(one.post.created_at), one.author, _state(one)] for one in listed),
    )
    if not listed:
        note("No posts yet.")
    # Once for all of them, and with what to do about it.
    for told in {str(one.problem): one.problem for one in listed if isinstance(one.problem, _OF_THIS_DEVICE)}.values():
        warn(f"{line(told)}: {advise(told)}")


@post.command("read")
@click.argument("post_id", metavar="POST", type=click.UUID)
@click.option("--raw", is_flag=True, help="Write the content alone, byte for byte, into a file or pipe.")
@click.option(
    "--save-to",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Fetch its files into a folder.",
)
@json_option
@verb
async def post_read(profile: Profile, post_id: UUID, raw: bool, folder: Path | None, as_json: bool) -> None:
    """Open a post with your key and show it, with a list of its files.

    With --save-to its files are fetched and opened, too. A name that is taken in that folder gets a number.

    \b
    secureblogs post read 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3 --raw > minutes.txt
    secureblogs post read 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3 --save-to ~/Downloads
    """
    if raw and as_json:
        raise click.UsageError("Give --raw or --json, not both.")
    if raw and sys.stdout.isatty():
        raise click.UsageError("--raw is for a file or a pipe: what others wrote could steer your terminal.")
    async with connected(profile) as (client, _):
        opened, people = await open_whole(profile, client, post_id)
        attached = opened.document.attachments if opened.document else ()
        saved = await receive_all(client, attached, folder) if folder else []
        if raw:
            for path in saved:
                note(f"Saved {line(path)}.")
            sys.stdout.buffer.write(content_of(opened).encode())
            return
        author, found = await asyncio.gather(people.name(opened.post.author_id), client.group(opened.post.group_id))
    if as_json:
        show_json(
            {
                **_as_json(opened.post),
                "author": author,
                "group": found.name,
                "title": opened.title,
                "content": content_of(opened),
                "attachments": _attachments_as_json(attached, saved),
                "signature": opened.signed,
            }
        )
        return
    show_fields(
        [
            ("title", opened.title),
            ("author", author),
            ("group", found.name),
            ("date", when(opened.post.created_at)),
            ("seal", describe_seal(opened.signed)),
            *(("attached", f"{one.name} ({size_text(one.size)}, {one.media_type}) {one.id}") for one in attached),
            *(("saved", path) for path in saved),
        ]
    )
    say()
    say(passage(content_of(opened)))


@post.command("delete")
@click.argument("post_id", metavar="POST", type=click.UUID)
@yes_option
@verb
async def post_delete(profile: Profile, post_id: UUID, yes: bool) -> None:
    """Delete a post of yours, or one in a group that you own.

    \b
    secureblogs post delete 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    """
    async with connected(profile) as (client, _):
        if not prompts.confirm(f"Delete the post {post_id} for everyone?", yes=yes):
            return
        await client.delete_post(post_id)
    say(f"Deleted {post_id}.")


@post.command("requeue")
@click.argument("post_id", metavar="POST", type=click.UUID)
@verb
async def post_requeue(profile: Profile, post_id: UUID) -> None:
    """Have a post of yours sealed again after its sealing failed.

    \b
    secureblogs post requeue 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    """
    async with connected(profile) as (client, _):
        await client.requeue_post(post_id)
        now = await client.wait_until_sealed(post_id, SEALING_SECONDS)
    say(f"{post_id}: {now.status}.")
    if now.status == "failed":
        raise ClientError(f"it could not be sealed: {now.failure}")


async def open_whole(profile: Profile, client: Client, post_id: UUID) -> tuple[OpenedPost, People]:
    """A post with its document. A grant that does not open it is given back."""
    fetched = await fetch_readable(client, post_id)
    identity, people = unlock(profile, client)
    try:
        return await open_post(identity, people, fetched), people
    except WrongPostKey as wrong:
        raise await give_back(client, profile.returns_path, wrong) from None


def describe_seal(signed: Trust | None) -> str:
    """Who says that the author wrote it."""
    match signed:
        case None:
            return "unsigned, vouched for by the server"
        case Trust.VERIFIED:
            return "signed by the author, with a key that you verified"
        case Trust.ENDORSED:
            return "signed by the author, with a key that a verified one endorses"
        case Trust.UNVERIFIED:
            return "signed by the author, with a key that is unverified: compare its fingerprint"


def content_of(opened: OpenedPost) -> str:
    return opened.document.content if opened.document else ""


async def _listed(profile: Profile, client: Client, unlocked: Unlocked | None, people: People, one: Post) -> Listed:
    author = await people.name(one.author_id)
    if unlocked is None or one.access != "readable":
        return Listed(one, author, None, None)
    try:
        opened = await open_post(unlocked.identity, people, one)
    except WrongPostKey as wrong:
        return Listed(one, author, None, await give_back(client, profile.returns_path, wrong))
    except CannotOpen as error:
        return Listed(one, author, None, error)
    return Listed(one, author, opened.title, None)


def _state(one: Listed) -> str:
    match one.problem:
        case None:
            return one.post.access
        case HeldElsewhere():
            return "on another device of yours"
        case KeyRevoked():
            return "this device's key was revoked"
        case UntrustedKey() as error:
            return f"signed with a key that is not known: secureblogs key verify {error.user_id}"
        case GrantReturned() as error:
            return str(error)
        case error:
            return f"does not verify: {error}"


def _text(error: CannotOpen | None) -> str | None:
    return None if error is None else str(error)


def _as_json(one: Post) -> dict[str, object]:
    return {
        "id": one.id,
        "group_id": one.group_id,
        "author_id": one.author_id,
        "status": one.status,
        "access": one.access,
        "sealed_by": one.sealed_by,
        "failure": one.failure,
        "created_at": one.created_at,
        "sealed_at": one.sealed_at,
    }


def _attachments_as_json(attachments: Sequence[Attachment], saved: Sequence[Path]) -> list[dict[str, object]]:
    return [
        {
            "id": one.id,
            "name": one.name,
            "media_type": one.media_type,
            "size": one.size,
            **({"path": str(path)} if path else {}),
        }
        for one, path in zip_longest(attachments, saved)
    ]
