"""tail: what happens, as it happens."""

from collections.abc import Awaitable, Callable
from uuid import UUID

import rich_click as click

from client import prompts
from client.account_commands import log_in
from client.api import Client
from client.commands import connected, json_option, open_people, unlock, verb
from client.errors import ClientError, NotFound
from client.events import (
    CaughtUp,
    ConnectionAccepted,
    Disconnected,
    Event,
    MemberAdded,
    MemberRemoved,
    More,
    PostDeleted,
    PostFailed,
    PostSealed,
    ReadRequestApproved,
    ReadRequestCancelled,
    ReadRequestCreated,
    ReadRequestDenied,
    ReadRequestReturned,
)
from client.identity import Identity
from client.profile import Profile, Session
from client.returning import check_grant
from client.terminal import line, note, say, show_json, warn

Renew = Callable[[], Awaitable[object]]


@click.command()
@click.option("--since", metavar="TIME", help="Tell what was decided since then. [default: the last time]")
@click.option("--once", is_flag=True, help="Stop when all that was missed has been told.")
@click.option(
    "--check/--no-check",
    "is_checking",
    default=None,
    help="Open what is granted to you; what does not open its post is given back and asked for again. "
    "[default: where the passphrase is given by the environment]",
)
@json_option
@verb
async def tail(profile: Profile, since: str | None, once: bool, is_checking: bool | None, as_json: bool) -> None:
    """Follow what happens: who asks, what is decided, new posts. Ctrl-C ends it.

    A lost connection is made again, and what was missed is told.

    \b
    secureblogs tail
    secureblogs tail --once --json
    """
    async with connected(profile) as (client, session):
        renew = renewal(profile, client, session)
        if is_checking is None:
            is_checking = profile.identity_path.exists() and prompts.has_passphrase()
        identity = unlock(profile, client).identity if is_checking else None
        async with client.follow(since or session.since, renew=renew) as events:
            async for event in events:
                if as_json:
                    show_json(event, on_one_line=True)
                else:
                    tell(event)
                if isinstance(event, ReadRequestApproved) and identity is not None:
                    await _check(profile, client, identity, session.user_id, event)
                if isinstance(event, CaughtUp):
                    profile.change_session(since=event.at)
                    if once:
                        return


def tell(event: Event) -> None:
    """One line for an event: news on standard output, the state of the connection beside it."""
    match event:
        case ConnectionAccepted():
            note("connected")
        case CaughtUp():
            note(f"up to date; {len(event.pending)} waiting for you")
        case More():
            note("there was much to tell; the lists have the rest: secureblogs requests list")
        case Disconnected():
            note(f"connection lost ({event.code} {line(event.reason)}), again in {event.retry_in:.1f} s")
        case _:
            said = describe(event)
            if said is not None:
                say(said)


def describe(event: Event) -> str | None:  # noqa: PLR0911 - one sentence for each kind of event
    """What happened, in one line that is safe to print."""
    match event:
        case ReadRequestCreated():
            # Without the fingerprint: what this frame says is not checked yet, and approving shows what is.
            name = line(event.requester_name)
            return f"{name} asks to read post {event.post_id}: secureblogs requests approve {event.request_id}"
        case ReadRequestApproved():
            return f"request {event.request_id} is approved: secureblogs post read {event.post_id}"
        case ReadRequestDenied():
            return f"request {event.request_id} for post {event.post_id} is denied"
        case ReadRequestCancelled():
            return f"request {event.request_id} for post {event.post_id} is cancelled"
        case ReadRequestReturned():
            return f"request {event.request_id} for post {event.post_id}: what was granted did not open it"
        case PostSealed():
            return f"new post {event.post_id} in group {event.group_id}"
        case PostDeleted():
            return f"post {event.post_id} is deleted"
        case PostFailed():
            return f"your post {event.post_id} could not be sealed ({line(event.failure)})"
        case MemberAdded():
            return f"user {event.user_id} joined group {event.group_id}"
        case MemberRemoved():
            return f"user {event.user_id} left group {event.group_id}"
    return None


async def _check(
    profile: Profile, client: Client, identity: Identity, user_id: UUID, event: ReadRequestApproved
) -> None:
    """Open the post that was granted; what goes wrong is told, and never ends the following."""
    people = open_people(profile, client, identity)
    try:
        await check_grant(client, identity, people, profile.returns_path, event.request_id, user_id)
    except NotFound:
        # The post or the membership is gone: other events tell.
        return
    except ClientError as error:
        warn(f"post {event.post_id}: {line(error)}")


def renewal(profile: Profile, client: Client, session: Session) -> Renew | None:
    """How to log in again when the session ends, if there is a way to a password."""
    if not prompts.has_password():
        return None

    async def renew() -> object:
        note("the session has ended")
        return await log_in(profile, client, session.email, prompts.password(session.email, from_stdin=False))

    return renew
