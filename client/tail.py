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
Decided = ReadRequestApproved | ReadRequestDenied | ReadRequestCancelled | ReadRequestReturned


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
        teller = Teller(session.user_id)
        async with client.follow(since or session.since, renew=renew) as events:
            async for event in events:
                if as_json:
                    show_json(event, on_one_line=True)
                elif not tell_connection(event) and (said := teller.describe(event)) is not None:
                    say(said)
                if isinstance(event, ReadRequestApproved) and identity is not None:
                    await _check(profile, client, identity, session.user_id, event)
                if isinstance(event, CaughtUp):
                    profile.change_session(since=event.at)
                    if once:
                        return


def tell_connection(event: Event) -> bool:
    """Say on standard error how the connection does; whether this is what the event was about."""
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
            return False
    return True


class Teller:
    """Tells one user what happens: each event is a line that is safe to print.

    Decisions are told to the one who asked and to all who might decide. Whoever might was told of the request before,
    and so what nobody told is one's own.
    """

    def __init__(self, user_id: UUID) -> None:
        self._user_id = user_id
        self._names: dict[UUID, str] = {}
        self._requesters: dict[UUID, UUID] = {}

    def describe(self, event: Event) -> str | None:  # noqa: PLR0911 - one sentence for each kind of event
        match event:
            case ReadRequestCreated():
                self._names[event.requested_user_id] = event.requester_name
                self._requesters[event.request_id] = event.requested_user_id
                # Without the fingerprint: what this frame says is not checked yet, and approving shows what is.
                name = line(event.requester_name)
                return f"{name} asks to read post {event.post_id}: secureblogs requests approve {event.request_id}"
            case ReadRequestApproved() | ReadRequestDenied() | ReadRequestCancelled() | ReadRequestReturned():
                is_own = event.request_id not in self._requesters and event.decided_by != self._user_id
                return _describe_own(event) if is_own else self._describe_others(event)
            case PostSealed() if event.author_id == self._user_id:
                return f"your post {event.post_id} is in group {event.group_id}"
            case PostSealed():
                who = self._name(event.author_id)
                return f"new post by {who} in group {event.group_id}: secureblogs post read {event.post_id}"
            case PostDeleted():
                whose = "your post" if event.author_id == self._user_id else "post"
                return f"{whose} {event.post_id} is deleted"
            case PostFailed():
                return (
                    f"your post {event.post_id} could not be sealed ({line(event.failure)}):"
                    f" secureblogs post requeue {event.post_id}"
                )
            case MemberAdded():
                return f"{self._name(event.user_id)} joined group {event.group_id}"
            case MemberRemoved():
                return f"{self._name(event.user_id)} left group {event.group_id}"
        return None

    def _describe_others(self, event: Decided) -> str:
        """To whom might decide it."""
        requester_id = self._requesters.get(event.request_id)
        request = f"request {event.request_id}"
        if requester_id is not None:
            request += f" of {self._name(requester_id)}"
        by = "you" if event.decided_by == self._user_id else "another who may decide"
        match event:
            case ReadRequestApproved():
                return f"{request} for post {event.post_id} is approved, by {by}"
            case ReadRequestDenied():
                return f"{request} for post {event.post_id} is denied, by {by}"
            case ReadRequestCancelled():
                return f"{request} for post {event.post_id} is cancelled: nothing is left to decide"
            case ReadRequestReturned():
                return f"{request} for post {event.post_id}: what was granted did not open it, and was given back"

    def _name(self, user_id: UUID) -> str:
        if user_id == self._user_id:
            return "you"
        name = self._names.get(user_id)
        return f"user {user_id}" if name is None else f"{line(name)} ({user_id})"


def _describe_own(event: Decided) -> str:
    """To the one who asked."""
    request = f"your request {event.request_id}"
    match event:
        case ReadRequestApproved():
            return f"{request} is approved: secureblogs post read {event.post_id}"
        case ReadRequestDenied():
            return f"{request} for post {event.post_id} is denied"
        case ReadRequestCancelled():
            return f"{request} for post {event.post_id} is cancelled"
        case ReadRequestReturned():
            return f"{request} for post {event.post_id}: what was granted did not open it, and was given back"


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
