"""What all verbs of the command line share: their options, the files behind them, and how they end.

Exit codes: 0 done, 1 the server refused or something is wrong, 2 usage, 3 network, 4 credentials (not logged in, no
key, wrong passphrase), 5 can't be opened or verified, 130 interrupted.
"""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar
from uuid import UUID

import rich_click as click

from client import prompts, terminal
from client.api import Client
from client.errors import (
    BadAddress,
    BadFileLink,
    BadLinkCode,
    BadText,
    CannotOpen,
    ClientError,
    CredentialEnded,
    GrantReturned,
    HeldElsewhere,
    IdentityError,
    KeyRevoked,
    NetworkError,
    NoCredential,
    NoIdentity,
    NotLoggedIn,
    NotReadable,
    Refused,
    Unauthenticated,
    Unavailable,
    UntrustedKey,
    UntrustedRecipients,
    WrongPassphrase,
    WrongPostKey,
)
from client.identity import Identity, read_identity
from client.models import Group, Member
from client.people import People
from client.pins import read_pins, save_pins
from client.profile import Profile, Session, open_profile
from client.transport import Retries, is_loopback

Options = ParamSpec("Options")
Item = TypeVar("Item")
Verb = Callable[Concatenate[Profile, Options], Awaitable[None]]

USAGE, NETWORK, CREDENTIALS, UNVERIFIED, INTERRUPTED = 2, 3, 4, 5, 130

_EXIT_CODES: tuple[tuple[tuple[type[ClientError], ...], int], ...] = (
    ((BadAddress, BadFileLink, BadLinkCode, BadText), USAGE),
    ((NetworkError, Unavailable), NETWORK),
    ((Unauthenticated, NotLoggedIn, NoCredential, IdentityError, CredentialEnded), CREDENTIALS),
    ((CannotOpen,), UNVERIFIED),
)

_LOG_IN = "log in with `secureblogs login`"
OTHERS_DECIDE = "the post's author, or an owner of the group, decides; `secureblogs tail` tells when"
_NEW_KEY = "make one with `secureblogs key new`"
_NEW_KEY_AGAIN = "make another one with `secureblogs key new`"

_ADVICE_BY_CODE = {
    "unauthenticated": _LOG_IN,
    "token_expired": _LOG_IN,
    "email_taken": "log in with `secureblogs login`, or use another address",
    "no_key": _NEW_KEY,
    "not_sealed": "it is still being sealed; try again in a moment",
    "already_readable": "read it with `secureblogs post read`",
    "last_owner": "make somebody else an owner first",
    "not_owner": "ask an owner of the group",
    "own_request": OTHERS_DECIDE,
    "no_recipients": "nobody in the group has a key yet; begin with `secureblogs key new`",
    "already_requested": "it was asked for another key; see `secureblogs requests list --role requester`",
    "already_decided": "see `secureblogs requests list --status all`",
    "key_taken": "it was enrolled before",
    "recipients_changed": "the group's members or keys keep changing: try again",
}

_ADVICE_BY_ACCESS = {
    "failed": "its sealing failed; its author can try again with `secureblogs post requeue {post}`",
    "sealing": "it is still being sealed; try again in a moment",
    "requested": "you have asked already; `secureblogs tail` tells when it is decided",
    "denied": "you asked and were denied; ask again a day later with `secureblogs ask {post}`",
    "no_key": "you have no active key; make one with `secureblogs key new`, then `secureblogs ask {post}`",
    "key_revoked": "only a revoked key of yours opened it; ask with a new one: `secureblogs ask {post}`",
    "not_granted": "you joined later or were left out; ask for it with `secureblogs ask {post}`",
}

json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON instead of text.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do it without asking.")
limit_option = click.option(
    "--limit", type=click.IntRange(min=0), default=50, show_default=True, help="How many at most; 0 for all."
)


def verb(function: Verb[Options]) -> Callable[Options, None]:
    """Give a verb its profile, run it, and end with one line and the exit code of what went wrong."""

    @click.option("--profile", "profile_name", metavar="NAME", help="Whose session and keys. [SECUREBLOGS_PROFILE]")
    @click.option("--server", metavar="URL", help="The server's address. [SECUREBLOGS_SERVER]")
    @functools.wraps(function)
    def run(*args: Options.args, **options: Options.kwargs) -> None:
        profile_name: Any = options.pop("profile_name")
        server: Any = options.pop("server")
        try:
            profile = open_profile(profile_name, server, os.environ)
            _warn_of_clear_text(profile)
            asyncio.run(_awaited(function(profile, *args, **options)))
        except ClientError as error:
            terminal.complain(terminal.line(error), advise(error))
            raise SystemExit(exit_code(error)) from None
        except (KeyboardInterrupt, click.Abort):
            raise SystemExit(INTERRUPTED) from None

    return run


async def _awaited(verb_running: Awaitable[None]) -> None:
    await verb_running


def exit_code(error: ClientError) -> int:
    return next((code for kinds, code in _EXIT_CODES if isinstance(error, kinds)), 1)


def advise(error: ClientError) -> str | None:  # noqa: PLR0911, PLR0912 - a table in all but form
    """What to do about an error, as far as there is something."""
    match error:
        case NotReadable():
            advice = _ADVICE_BY_ACCESS.get(error.access)
            return advice and advice.format(post=error.post_id)
        case HeldElsewhere() if error.key_id is None:
            return _NEW_KEY
        case HeldElsewhere():
            return f"have it handed on by the device that can read it: `secureblogs key link {error.key_id}`"
        case KeyRevoked():
            return _NEW_KEY_AGAIN
        case WrongPostKey():
            return "tell its author, who can post it again"
        case GrantReturned() if error.asked_again is not None:
            return "`secureblogs tail` tells when it is decided"
        case UntrustedRecipients():
            user_ids = sorted({one.user_id for one in error.untrusted})
            return (
                f"{'; '.join(_unknown_key(one) for one in error.untrusted)}; compare them, then "
                f"{' and '.join(f'`secureblogs key verify {one}`' for one in user_ids)}, "
                f"or leave them out: {' '.join(f'--withhold {one}' for one in user_ids)}, or --withhold-untrusted"
            )
        case UntrustedKey():
            return f"{_unknown_key(error)}; compare it with them, then `secureblogs key verify {error.user_id}`"
        case Refused() if error.code == "recently_denied":
            return f"ask again after {terminal.when(error.problem.retry_at)}"
        case Refused() if error.code == "last_owner" and error.problem.group_ids:
            groups = " and ".join(str(one) for one in error.problem.group_ids)
            return f"make somebody else an owner of {groups} first, or delete what nobody needs"
        case Refused() if error.code == "quota_exceeded" and error.retry_after is not None:
            begins = datetime.now(UTC) + timedelta(seconds=error.retry_after)
            return f"that is {terminal.when(begins)} here; `secureblogs usage` shows what you did"
        case Unauthenticated() if os.environ.get("SECUREBLOGS_TOKEN"):
            return "SECUREBLOGS_TOKEN is set, and that is the credential which is refused"
        case Refused() if error.retry_after is not None:
            return f"try again in {error.retry_after:.0f} s"
        case Refused():
            return _ADVICE_BY_CODE.get(error.code)
        case NotLoggedIn() | CredentialEnded():
            return _LOG_IN
        case NoIdentity():
            return _NEW_KEY
        case WrongPassphrase():
            return "try again; without it the keys are lost, and posts must be asked for with a new one"
        case NetworkError():
            return "is the server running, and the address right (--server)?"
    return None


def _unknown_key(error: UntrustedKey) -> str:
    known = ", ".join(error.pinned) or "none"
    return f"{terminal.line(error.name)} ({error.user_id}) shows {error.new}, known so far: {known}"


def _warn_of_clear_text(profile: Profile) -> None:
    address = profile.server()
    if address.startswith("http://") and not is_loopback(address):
        terminal.warn(f"{terminal.line(address)} is not encrypted: passwords and tokens can be read on the way")


@asynccontextmanager
async def connected(profile: Profile, retries: Retries | None = None) -> AsyncIterator[tuple[Client, Session]]:
    """A client with the credential of SECUREBLOGS_TOKEN, if that is set, or else of the profile's session."""
    if profile.given_token is not None:
        async with Client(profile.server(), profile.given_token, retries=retries) as client:
            yield client, profile.session_of_token(client.address, await client.me())
        return
    session = profile.live_session()
    async with Client(session.server, session.token, retries=retries) as client:
        yield client, session


# For what makes many calls: to have used up those of a minute is no reason to stop. All that are under way at once wait
# for the same place, so one of them may be sent back many times.
PATIENT = Retries(tries=5, longest_wait=65.0, told_tries=100)


class Unlocked(NamedTuple):
    identity: Identity
    people: People


def unlock(profile: Profile, client: Client) -> Unlocked:
    """Open the identity; asks for the passphrase."""
    if not profile.identity_path.exists():
        raise NoIdentity("this profile has no key on this machine")
    identity = read_identity(profile.identity_path, prompts.passphrase())
    return Unlocked(identity, open_people(profile, client, identity))


def open_people(profile: Profile, client: Client, identity: Identity | None = None) -> People:
    """Names and pins, which need no passphrase."""
    path = profile.pins_path
    return People(client, identity or Identity(), read_pins(path), functools.partial(save_pins, path))


async def take(items: AsyncIterator[Item], limit: int) -> list[Item]:
    """The first items of a list, all of them for 0."""
    taken: list[Item] = []
    async for item in items:
        taken.append(item)
        if len(taken) == limit:
            break
    return taken


async def find_group(client: Client, name_or_id: str) -> Group:
    """The group of an id, or the only one of that name among the caller's."""
    if (group_id := as_id(name_or_id)) is not None:
        return await client.group(group_id)
    named = [group async for group in client.groups() if group.name == name_or_id]
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(str(group.id) for group in named)
        raise click.UsageError(f"{len(named)} of your groups have this name: give the id, one of {ids}.")
    raise click.UsageError("You are in no group of this name: see `secureblogs group list`.")


async def find_member(client: Client, group: Group, user: str) -> UUID:
    """The id of USER: itself, or that of a member with this address, as far as it may be seen, or this name."""
    user_id = as_id(user)
    return user_id or _only_one([one async for one in client.members(group.id)], user, f"in {group.name}")


async def find_user(client: Client, user: str) -> UUID:
    """The like, among the members of all groups of the caller."""
    if (user_id := as_id(user)) is not None:
        return user_id
    members = [member async for group in client.groups() async for member in client.members(group.id)]
    return _only_one(members, user, "in your groups")


def as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _only_one(members: Iterable[Member], user: str, where: str) -> UUID:
    wanted = user.strip().casefold()
    # Everybody chooses a name as they like: one that looks like an address is not taken for it.
    is_address = "@" in wanted
    found = {one.user_id for one in members if ((one.email or "") if is_address else one.name).casefold() == wanted}
    if len(found) == 1:
        return found.pop()
    what = "address" if is_address else "name"
    if found:
        ids = ", ".join(str(one) for one in sorted(found))
        raise ClientError(f"{len(found)} people {where} have the {what} {user}: give the id, one of {ids}")
    raise ClientError(f"nobody {where} has the {what} {user}, as far as you may know: give the user's id")
