"""file put, get, link, links, unlink."""

import os
import re
import shlex
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import rich_click as click

from client import prompts
from client.api import Client
from client.commands import as_id, connected, json_option, verb
from client.download_links import is_link, linked_stream, read_link, write_link
from client.downloads import FileKey, key_of
from client.errors import ClientError, StorageError
from client.kept_files import keep_file, note_upload
from client.models import DownloadLink
from client.post_commands import open_whole
from client.profile import Profile
from client.saving import make_target_folder, safe_name
from client.streams import SealedStream
from client.terminal import line, note, say, show_json, show_table, when
from client.transfers import Target, receive, send, send_in_clear, size_text, write_into, write_out
from client.uploads import Source, source_of_path, source_of_stream
from server.sealing.texts import Attachment

STDIN_NAME = "stdin"

_DURATION = re.compile(r"([0-9]{1,7})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SHORTEST, _LONGEST = timedelta(minutes=1), timedelta(days=30)


def _duration(_context: click.Context, _option: click.Parameter, value: str) -> timedelta:
    found = _DURATION.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time: write it like 90s, 30m, 12h or 7d.")
    duration = timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
    if not _SHORTEST <= duration <= _LONGEST:
        raise click.BadParameter("a link lives for a minute at least, and for 30 days at most.")
    return duration


@click.group()
def file() -> None:
    """Send and fetch files, and make links to them for anybody."""


@file.command("put")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--name", help="What readers will see it called. [default: the name that it has; stdin for -]")
@click.option("--type", "media_type", metavar="TYPE", help="Its media type. [default: guessed by its name]")
@click.option("--by-server", is_flag=True, help="Let the server seal it, for a post that it seals too.")
@json_option
@verb
async def file_put(
    profile: Profile, path: Path, name: str | None, media_type: str | None, by_server: bool, as_json: bool
) -> None:
    """Upload FILE, or standard input for -, for a post that you write later, within a day.

    It is sealed here: the server never sees it. What opens it stays on this machine until then, and the id that is
    printed is for `secureblogs post new --uploaded`.

    \b
    secureblogs file put holiday.mp4
    secureblogs file put - --name photos.tar < photos.tar
    """
    source = _source(path, name, media_type)
    async with connected(profile) as (client, session):
        if by_server:
            file_id = (stored := await send_in_clear(client, source)).id
            note_upload(profile.uploads_path, session.server, file_id, datetime.now(UTC))
            size = stored.size
        else:
            sealed = await send(client, source)
            keep_file(profile.uploads_path, session.server, sealed, datetime.now(UTC))
            file_id, size = sealed.id, sealed.size
    if as_json:
        show_json({"id": file_id, "name": source.name, "media_type": source.media_type, "size": size})
        return
    say(str(file_id))
    how = " --by-server" if by_server else ""
    note(f"Attach it within a day: secureblogs post new GROUP TITLE TEXT{how} --uploaded {file_id}")


@file.command("get")
@click.argument("what", metavar="POST|URL")
@click.argument("which", metavar="[NAME|ID]", required=False)
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    help="Where to; - for standard output, or a folder, which is made if it ends with / and isn't there."
    " [default: here, under its own name, or for a URL its id]",
)
@click.option("--force", "-f", is_flag=True, help="Write over the file that --output names.")
@json_option
@verb
async def file_get(
    profile: Profile, what: str, which: str | None, output: str | None, force: bool, as_json: bool
) -> None:
    """Fetch a file of a post, or the file that a link leads to, and open it here.

    It gets its name only when it is whole and proved right, and never that of another file. A download of a POST's file
    that was interrupted goes on where it stopped. A link is read from standard input for -, which keeps it out of the
    history of your shell; no account is needed for it. It does not hold the file's name: give one with --output.

    \b
    secureblogs file get 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3 holiday.mp4
    secureblogs file get - --output holiday.mp4
    """
    to_stdout = output == "-"
    if to_stdout and sys.stdout.isatty():
        raise click.UsageError("This is for a file or a pipe: what others wrote could steer your terminal.")
    if to_stdout and as_json:
        raise click.UsageError("Give --output - or --json, not both.")
    if force and (output is None or to_stdout):
        raise click.UsageError("--force is for a file that --output names.")
    if what == "-":
        what = prompts.line_of_stdin("Paste the link")
    if is_link(what):
        if which is not None:
            raise click.UsageError("A link leads to one file: give no name with it.")
        link = read_link(what)
        async with linked_stream(link) as stream:
            await _get(stream, link.key, str(link.key.id), output, overwrite=force, resume=False, as_json=as_json)
        return
    post_id = as_id(what)
    if post_id is None:
        raise click.UsageError("Give the id of a post, or a link that begins with https:// or http://.")
    async with connected(profile) as (client, _):
        found = await _find(profile, client, post_id, which)
        stream = client.file_stream(found.id)
        await _get(stream, key_of(found), found.name, output, overwrite=force, resume=True, as_json=as_json)


@file.command("link")
@click.argument("post_id", metavar="POST", type=click.UUID)
@click.argument("which", metavar="[NAME|ID]", required=False)
@click.option(
    "--expires",
    metavar="TIME",
    callback=_duration,
    default="1d",
    show_default=True,
    help="How long it lives: 30m, 12h, 7d.",
)
@click.option("--downloads", type=click.IntRange(1, 1000), help="How often it can be used. [default: any number]")
@json_option
@verb
async def file_link(
    profile: Profile, post_id: UUID, which: str | None, expires: timedelta, downloads: int | None, as_json: bool
) -> None:
    """Make a link to a file of a post, for anybody, with an account or without.

    Whoever has the whole link can read the file. What stands after its # opens it, and no server ever sees that: send
    the link by a way that you trust. It opens with `secureblogs file get` and with nothing else, no browser either; and
    the file's name is not in it, so tell that too.

    \b
    secureblogs file link 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3 holiday.mp4
    secureblogs file link 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3 holiday.mp4 --expires 2h --downloads 1
    """
    async with connected(profile) as (client, _):
        found = await _find(profile, client, post_id, which)
        made = await client.create_download_link(found.id, expires, downloads)
    url = write_link(made.url, key_of(found))
    if as_json:
        show_json({"id": made.id, "url": url, "expires": made.expires, "downloads": downloads})
        return
    say(url)
    times = "" if downloads is None else f", {downloads} downloads" if downloads > 1 else ", one download"
    note(f"Until {when(made.expires)}{times}; secureblogs file unlink {made.id} ends it.")
    # Where nobody looks it is not repeated: standard error ends up in logs.
    shown = shlex.quote(url) if sys.stdout.isatty() else "LINK"
    note(f"It opens with: secureblogs file get {shown} --output {shlex.quote(safe_name(found.name))}")


@file.command("links")
@click.argument("post_id", metavar="POST", type=click.UUID)
@click.argument("which", metavar="[NAME|ID]", required=False)
@json_option
@verb
async def file_links(profile: Profile, post_id: UUID, which: str | None, as_json: bool) -> None:
    """List your links to a file of a post, newest first. Their addresses are not told again.

    \b
    secureblogs file links 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3 holiday.mp4
    """
    async with connected(profile) as (client, _):
        # An id needs no key to be found.
        file_id = as_id(which or "") or (await _find(profile, client, post_id, which)).id
        links = [one async for one in client.download_links(file_id)]
    if as_json:
        show_json(links)
        return
    now = datetime.now(UTC)
    show_table(
        ["state", "id", "made", "until", "downloads left"],
        ([_state(one, now), one.id, when(one.created_at), when(one.expires), _left(one)] for one in links),
    )
    if not links:
        note("No links yet.")


@file.command("unlink")
@click.argument("link_id", metavar="LINK", type=click.UUID)
@verb
async def file_unlink(profile: Profile, link_id: UUID) -> None:
    """End a link of yours at once. LINK is its id; who downloads already is not stopped.

    \b
    secureblogs file unlink 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    """
    async with connected(profile) as (client, _):
        await client.revoke_download_link(link_id)
    say(f"Ended {link_id}.")


def _source(path: Path, name: str | None, media_type: str | None) -> Source:
    if str(path) != "-":
        return source_of_path(path, name, media_type)
    if sys.stdin.isatty():
        raise click.UsageError("Nothing is piped in: give a FILE, or pipe something into `secureblogs file put -`.")
    return source_of_stream(sys.stdin.buffer, name or STDIN_NAME, media_type)


async def _find(profile: Profile, client: Client, post_id: UUID, which: str | None) -> Attachment:
    """The one attachment of a post that is meant, by its id, or its name as it is or as it is shown."""
    opened, _ = await open_whole(profile, client, post_id)
    attachments = opened.document.attachments if opened.document else ()
    if which is None:
        found = list(attachments)
    else:
        found = [one for one in attachments if which in {one.name, line(one.name), str(one.id)}]
    if len(found) == 1:
        return found[0]
    if not attachments:
        raise ClientError("this post has no files")
    if found:
        named = "; ".join(f"{one.id} ({line(one.name)})" for one in found)
        raise ClientError(f"{len(found)} files of this post are meant: give the id, one of {named}")
    raise ClientError(f"no file of this post is called {which}: see `secureblogs post read {post_id}`")


async def _get(
    stream: SealedStream,
    key: FileKey,
    name: str,
    output: str | None,
    *,
    overwrite: bool,
    resume: bool,
    as_json: bool,
) -> None:
    if output == "-":
        await write_out(stream, key, name)
        return
    path = Path(output or "")
    if _is_stream(path):
        size = await write_into(path, stream, key, name)
    else:
        path = await receive(stream, key, _target(output, name, overwrite=overwrite), resume=resume)
        size = path.stat().st_size
    if as_json:
        show_json({"id": key.id, "name": name, "path": str(path), "size": size})
    else:
        say(f"Saved {line(path)} ({size_text(size)}).")


def _is_stream(path: Path) -> bool:
    """Whether it is a pipe or the like, which is written to and keeps its place. Raises StorageError for a disk."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return False
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return True
    raise StorageError(f"{path} is neither a file nor a pipe: choose another --output")


def _target(output: str | None, name: str, *, overwrite: bool) -> Target:
    path = Path(output or "")
    if output and output.endswith(("/", os.sep)):
        make_target_folder(path)
    if path.is_dir():
        return Target(path, safe_name(name), renumber=True)
    if os.path.lexists(path) and not overwrite:
        raise StorageError(f"{path} is there already: write over it with --force, or choose another --output")
    if path.is_symlink():
        # What it leads to is meant, and the link stays.
        path = Path(os.path.realpath(path))
    return Target(path.parent, path.name, overwrite=overwrite)


def _state(link: DownloadLink, now: datetime) -> str:
    if link.revoked_at is not None:
        return "ended"
    if link.expires <= now:
        return "expired"
    return "used up" if link.downloads_left == 0 else "open"


def _left(link: DownloadLink) -> str:
    return "any number" if link.downloads_left is None else str(link.downloads_left)
