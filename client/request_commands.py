"""ask, and requests list, approve, deny, withdraw, serve."""

from uuid import UUID

import msgspec
import rich_click as click

from client import prompts
from client.commands import OTHERS_DECIDE, connected, json_option, limit_option, take, unlock, verb, yes_option
from client.deciding_commands import approve_many, requests_serve
from client.errors import CannotGrant, CannotOpen, ClientError
from client.granting import Grant, fetch_pending, prepare_grant
from client.models import ReadRequest
from client.pins import Pin, Trust, is_same_fingerprint, read_pins, standing
from client.post_commands import describe_seal
from client.profile import Profile
from client.terminal import count, line, note, say, show_fields, show_json, show_table, warn, when
from server.sealing import keys as sealing_keys
from server.sealing.errors import SealingError

_STATUSES = ["pending", "approved", "denied", "cancelled", "returned", "all"]


@click.command()
@click.argument("post_id", metavar="POST", type=click.UUID)
@click.option("--key", "key_id", type=click.UUID, help="Ask for this key. [default: this machine's]")
@json_option
@verb
async def ask(profile: Profile, post_id: UUID, key_id: UUID | None, as_json: bool) -> None:
    """Ask to read POST, which was made before you joined. Its author, or an owner of the group, decides.

    \b
    secureblogs ask 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    """
    async with connected(profile) as (client, session):
        made = await client.request_read(post_id, public_key_id=key_id or session.key_id)
        is_ours = made.public_key_id == session.key_id
        if is_ours and made.fingerprint != session.fingerprint:
            await client.withdraw(made.id)
            raise CannotOpen("the server took this for another key than this machine's: nothing is asked")
        if session.since is None:
            # The first `tail`, whenever it comes, is to tell what was decided.
            profile.change_session(since=msgspec.to_builtins(made.created_at))
    if as_json:
        show_json(made)
        return
    say(f"Asked: request {made.id} is {made.status}.")
    if is_ours:
        say(f"Tell them your key's fingerprint, so that they can compare it: {session.fingerprint}")
    else:
        note("It was asked for a key of another machine of yours: tell them the fingerprint that is shown there.")


@click.group()
def requests() -> None:
    """See and decide who asks to read."""


@requests.command("list")
@click.option(
    "--role",
    type=click.Choice(["decider", "requester"]),
    default="decider",
    show_default=True,
    help="Requests that you may decide, or that you made.",
)
@click.option(
    "--status", type=click.Choice(_STATUSES), help="Only these. [default: pending; all of those that you made]"
)
@limit_option
@json_option
@verb
async def requests_list(profile: Profile, role: str, status: str | None, limit: int, as_json: bool) -> None:
    """List requests, newest first, and whether the key that asks is known here.

    \b
    secureblogs requests list
    secureblogs requests list --role requester --status approved
    """
    wanted = status or ("pending" if role == "decider" else "all")
    async with connected(profile) as (client, _):
        found = await take(client.read_requests(role, None if wanted == "all" else wanted), limit)
        own_pending = 0
        if role == "decider" and not found and not as_json:
            own_pending = len(await take(client.read_requests("requester", "pending"), limit))
    pins = read_pins(profile.pins_path).users
    standings = [_standing(pins.get(one.requester_id, ()), one) if role == "decider" else None for one in found]
    if as_json:
        show_json(
            [{**msgspec.structs.asdict(one), "key": key} for one, key in zip(found, standings, strict=True)]
            if role == "decider"
            else found
        )
        return
    asks = [[one.requester_name, one.id, f"post {one.post_id}", one.status, when(one.created_at)] for one in found]
    headings = ["who asks", "request", "for", "status", "since"]
    if role == "requester":
        show_table(headings, asks)
    else:
        known = [[f"user {one.requester_id}", f"key {key}"] for one, key in zip(found, standings, strict=True)]
        show_table([*headings, "as", "with"], (one + two for one, two in zip(asks, known, strict=True)))
    if not found:
        note("Nobody asks you." if role == "decider" else "You have asked for nothing.")
    if own_pending:
        note(f"You yourself wait for {count(own_pending, 'post')}: secureblogs requests list --role requester")


@requests.command("approve")
@click.argument("request_id", metavar="REQUEST", type=click.UUID, required=False)
@click.option("--all", "is_all", is_flag=True, help="All requests that wait for you; asks once for each key.")
@click.option("--from", "whose", metavar="USER", help="With --all: only those of this user, an id or a name.")
@click.option("--fingerprint", help="What the one who asks told you: approve only this very key.")
@yes_option
@json_option
@verb
async def requests_approve(
    profile: Profile,
    *,
    request_id: UUID | None,
    is_all: bool,
    whose: str | None,
    fingerprint: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Let somebody read a post: its key is sealed again, here, to the key that they asked for.

    \b
    secureblogs requests approve 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    secureblogs requests approve --all --from Carol
    """
    if is_all is (request_id is not None) or (whose is not None and not is_all):
        raise click.UsageError("Give REQUEST, or --all, and --from with --all only.")
    if request_id is None:
        await approve_many(profile, whose, fingerprint, yes=yes, as_json=as_json)
        return
    async with connected(profile) as (client, session):
        # First of all whether there is anything to decide: no passphrase is typed for nothing.
        asked = await fetch_pending(client, request_id)
        if asked.requester_id == session.user_id:
            raise ClientError(f"this is your own request: {OTHERS_DECIDE}")
        identity, people = unlock(profile, client)
        grant = await prepare_grant(client, identity, people, request_id)
        group = await client.group(grant.request.group_id)
        _require_fingerprint(grant, fingerprint)
        if not as_json:
            _show_grant(grant, group.name, is_compared=fingerprint is not None)
        is_compared = fingerprint is not None
        if not prompts.confirm("Let them read it?", yes=yes or is_compared):
            note("Nothing was granted.")
            return
        decided = await client.approve(request_id, grant.sealed_key)
    _report(decided, as_json)


@requests.command("deny")
@click.argument("request_id", metavar="REQUEST", type=click.UUID)
@json_option
@verb
async def requests_deny(profile: Profile, request_id: UUID, as_json: bool) -> None:
    """Say no. The same person may ask again a day later.

    \b
    secureblogs requests deny 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    """
    async with connected(profile) as (client, _):
        decided = await client.deny(request_id)
    _report(decided, as_json)


@requests.command("withdraw")
@click.argument("request_id", metavar="REQUEST", type=click.UUID)
@yes_option
@verb
async def requests_withdraw(profile: Profile, request_id: UUID, yes: bool) -> None:
    """Take your own request back, or give back a grant that does not open the post, and be free to ask again.

    \b
    secureblogs requests withdraw 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    """
    async with connected(profile) as (client, _):
        found = await client.read_request(request_id)
        if found.status == "approved" and not prompts.confirm(
            "This was granted: give it back, as if it did not open the post?", yes=yes
        ):
            return
        await client.withdraw(request_id)
    say(f"Withdrew {request_id}.")


requests.add_command(requests_serve)


def _standing(pinned: tuple[Pin, ...], request: ReadRequest) -> str:
    """What is known here of the very key that asks: its fingerprint is computed from its bytes."""
    try:
        shown = sealing_keys.fingerprint(request.requester_id, request.public_key, request.verify_key)
    except SealingError:
        return "unusable"
    return standing(pinned, shown)


def _require_fingerprint(grant: Grant, told: str | None) -> None:
    if told is not None and not is_same_fingerprint(told, grant.recipient.fingerprint):
        raise CannotGrant(f"the key that was asked for has another fingerprint: {grant.recipient.fingerprint}")


def _show_grant(grant: Grant, group_name: str, *, is_compared: bool) -> None:
    show_fields(
        [
            ("who asks", f"{grant.request.requester_name} ({grant.request.requester_id})"),
            ("for", grant.opened.title),
            ("group", group_name),
            ("seal", describe_seal(grant.opened.signed)),
            (
                "fingerprint",
                f"{grant.recipient.fingerprint} ({'compared' if is_compared else grant.recipient.trust.value})",
            ),
        ]
    )
    if grant.recipient.trust is Trust.UNVERIFIED and not is_compared:
        warn("nobody has compared this fingerprint yet: ask them for it by another way than this server")


def _report(decided: ReadRequest, as_json: bool) -> None:
    if as_json:
        show_json(decided)
    else:
        say(f"{line(decided.requester_name)}: {decided.status}.")
