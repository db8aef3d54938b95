"""post new, list, read, delete, requeue."""

import asyncio
import sys
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import rich_click as click

from client import prompts
from client.commands import (
    Unlocked,
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
from client.errors import CannotOpen, ClientError
from client.models import Post
from client.people import People
from client.pins import Trust
from client.profile import Profile
from client.reading import OpenedPost, fetch_readable, open_post
from client.terminal import line, note, passage, say, show_fields, show_json, show_record, when

# A worker takes a post up at once: what is not sealed after this long is waiting for a worker to come back.
SEALING_SECONDS = 10.0


@click.group()
def post() -> None:
    """Write, list, read and delete posts."""


@post.command("new")
@click.argument("group_name", metavar="GROUP")
@click.argument("title")
@click.argument("text", required=False)
@click.option("--file", type=click.Path(path_type=Path), help="Take the text from a file; - for standard input.")
@click.option("--no-wait", is_flag=True, help="Don't wait until it is sealed.")
@json_option
@verb
async def post_new(
    profile: Profile, *, group_name: str, title: str, text: str | None, file: Path | None, no_wait: bool, as_json: bool
) -> None:
    """Write a post to a group: TEXT, a file, or standard input."""
    if text is not None and file is not None:
        raise click.UsageError("Give TEXT or --file, not both.")
    async with connected(profile) as (client, _):
        found = await find_group(client, group_name)
        content = prompts.text(text, file)
        made = await client.create_post(found.id, title, content)
        if not no_wait:
            made = await client.wait_until_sealed(made.id, SEALING_SECONDS)
    if as_json:
        show_json(_as_json(made))
    else:
        say(f"Posted {made.id} to {line(found.name)}: {made.status}.")
    if made.status == "failed":
        raise ClientError(
            f"it could not be sealed ({made.failure}): try again with `secureblogs post requeue {made.id}`"
        )
    if made.status == "pending" and not no_wait:
        note("The server has it and will seal it as soon as a worker is there.")


class Listed(NamedTuple):
    post: Post
    author: str
    title: str | None
    """None where the post can't be read."""
    problem: str | None
    """Why a readable post does not open."""


@post.command("list")
@click.argument("group_name", metavar="GROUP", required=False)
@limit_option
@json_option
@verb
async def post_list(profile: Profile, group_name: str | None, limit: int, as_json: bool) -> None:
    """List posts, newest first, of one group or of all. Titles are opened here, with your key."""
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
        listed = [await _listed(unlocked, people, one) for one in posts]
    if as_json:
        show_json(
            [{**_as_json(one.post), "author": one.author, "title": one.title, "problem": one.problem} for one in listed]
        )
        return
    for one in listed:
        state = one.post.access if one.problem is None else f"does not verify: {one.problem}"
        show_record([one.title or "(sealed)", one.post.id, when(one.post.created_at), one.author, state])
    if not listed:
        note("No posts yet.")


@post.command("read")
@click.argument("post_id", metavar="POST", type=click.UUID)
@click.option("--raw", is_flag=True, help="Write the content alone, byte for byte, into a file or pipe.")
@json_option
@verb
async def post_read(profile: Profile, post_id: UUID, raw: bool, as_json: bool) -> None:
    """Open a post with your key and show it."""
    if raw and as_json:
        raise click.UsageError("Give --raw or --json, not both.")
    if raw and sys.stdout.isatty():
        raise click.UsageError("--raw is for a file or a pipe: what others wrote could steer your terminal.")
    async with connected(profile) as (client, _):
        fetched = await fetch_readable(client, post_id)
        identity, people = unlock(profile, client)
        opened = await open_post(identity, people, fetched)
        if raw:
            sys.stdout.buffer.write(content_of(opened).encode())
            return
        author, found = await asyncio.gather(people.name(fetched.author_id), client.group(fetched.group_id))
    if as_json:
        show_json(
            {
                **_as_json(opened.post),
                "author": author,
                "group": found.name,
                "title": opened.title,
                "content": content_of(opened),
                "attachments": _attachments(opened),
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
            *(("attached", f"{one['name']} ({one['size']} bytes)") for one in _attachments(opened)),
        ]
    )
    say()
    say(passage(content_of(opened)))


@post.command("delete")
@click.argument("post_id", metavar="POST", type=click.UUID)
@yes_option
@verb
async def post_delete(profile: Profile, post_id: UUID, yes: bool) -> None:
    """Delete a post of yours, or one in a group that you own."""
    async with connected(profile) as (client, _):
        if not prompts.confirm(f"Delete the post {post_id} for everyone?", yes=yes):
            return
        await client.delete_post(post_id)
    say(f"Deleted {post_id}.")


@post.command("requeue")
@click.argument("post_id", metavar="POST", type=click.UUID)
@verb
async def post_requeue(profile: Profile, post_id: UUID) -> None:
    """Have a post of yours sealed again after its sealing failed."""
    async with connected(profile) as (client, _):
        await client.requeue_post(post_id)
        now = await client.wait_until_sealed(post_id, SEALING_SECONDS)
    say(f"{post_id}: {now.status}.")
    if now.status == "failed":
        raise ClientError(f"it could not be sealed: {now.failure}")


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


async def _listed(unlocked: Unlocked | None, people: People, one: Post) -> Listed:
    author = await people.name(one.author_id)
    if unlocked is None or one.access != "readable":
        return Listed(one, author, None, None)
    try:
        opened = await open_post(unlocked.identity, people, one)
    except CannotOpen as error:
        return Listed(one, author, None, str(error))
    return Listed(one, author, opened.title, None)


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


def _attachments(opened: OpenedPost) -> list[dict[str, object]]:
    attached = opened.document.attachments if opened.document else ()
    return [{"id": one.id, "name": one.name, "media_type": one.media_type, "size": one.size} for one in attached]
