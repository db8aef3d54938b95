"""session list, end; api-key new, list, revoke; ticket."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import rich_click as click

from client import prompts
from client.commands import connected, json_option, limit_option, take, verb, yes_option
from client.models import ApiKey
from client.profile import Profile
from client.terminal import line, note, say, show_fields, show_json, show_table, when

# Ten years. What lives for longer is meant to be revoked.
MAX_DAYS = 3650


@click.group()
def session() -> None:
    """See where you are logged in, and end what you do not know."""


@session.command("list")
@limit_option
@json_option
@verb
async def session_list(profile: Profile, limit: int, as_json: bool) -> None:
    """List your sessions, newest first.

    \b
    secureblogs session list
    """
    async with connected(profile) as (client, _):
        sessions = await take(client.sessions(), limit)
    if as_json:
        show_json(sessions)
        return
    show_table(
        ["session", "id", "since", "until"],
        (
            ["this one" if one.is_current else "another", one.id, when(one.created_at), when(one.expires)]
            for one in sessions
        ),
    )


@session.command("end")
@click.argument("session_id", metavar="SESSION", type=click.UUID)
@verb
async def session_end(profile: Profile, session_id: UUID) -> None:
    """Log out somewhere else, such as on a machine that is lost. For this one there is `secureblogs logout`.

    \b
    secureblogs session end 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    """
    async with connected(profile) as (client, _):
        await client.end_session(session_id)
    say(f"Ended {session_id}.")


@click.group("api-key")
def api_key() -> None:
    """Make, list and revoke credentials for programs."""


@api_key.command("new")
@click.argument("label")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "write"]),
    multiple=True,
    help="What it may do; can be given twice. [default: both]",
)
@click.option("--days", type=click.IntRange(1, MAX_DAYS), help="How long it lives. [default: until it is revoked]")
@json_option
@verb
async def api_key_new(profile: Profile, label: str, scopes: tuple[str, ...], days: int | None, as_json: bool) -> None:
    """Make an API key. Its token is shown this once. No API key can open a post: private keys stay on your devices.

    \b
    secureblogs api-key new "backup script"
    secureblogs api-key new watcher --scope read --days 90
    """
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    async with connected(profile) as (client, _):
        made = await client.create_api_key(label, scopes=list(dict.fromkeys(scopes)) or None, expires=expires)
    if as_json:
        show_json(made)
        return
    show_fields(
        [
            ("token", made.token),
            ("id", made.id),
            ("label", made.label),
            ("scopes", ", ".join(made.scopes)),
            ("until", when(made.expires) or "it is revoked"),
        ]
    )
    note("Keep the token in a safe place: it can't be shown again.")


@api_key.command("list")
@limit_option
@json_option
@verb
async def api_key_list(profile: Profile, limit: int, as_json: bool) -> None:
    """List your API keys, newest first, without their tokens.

    \b
    secureblogs api-key list
    """
    async with connected(profile) as (client, _):
        keys = await take(client.api_keys(), limit)
    if as_json:
        show_json(keys)
        return
    now = datetime.now(UTC)
    show_table(
        ["label", "id", "scopes", "state", "made", "last used"],
        (
            [one.label, one.id, ", ".join(one.scopes), _state(one, now), when(one.created_at), when(one.last_used_at)]
            for one in keys
        ),
    )
    if not keys:
        note("No API keys: secureblogs api-key new LABEL")


@api_key.command("revoke")
@click.argument("api_key_id", metavar="ID", type=click.UUID)
@yes_option
@verb
async def api_key_revoke(profile: Profile, api_key_id: UUID, yes: bool) -> None:
    """Revoke an API key, for good.

    \b
    secureblogs api-key revoke 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    """
    async with connected(profile) as (client, _):
        if not prompts.confirm("Programs that use it are shut out. Revoke it?", yes=yes):
            return
        await client.revoke_api_key(api_key_id)
    say(f"Revoked {api_key_id}.")


@click.command()
@json_option
@verb
async def ticket(profile: Profile, as_json: bool) -> None:
    """Print a ticket that opens one WebSocket, as a page in a browser needs it: ?ticket=… in its address.

    \b
    secureblogs ticket
    secureblogs ticket --json
    """
    async with connected(profile) as (client, _):
        bought = await client.buy_ticket()
    if as_json:
        show_json(bought)
        return
    say(line(bought.ticket))
    note(f"Good once, for {bought.expires_in} s.")


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires is None:
        return "active"
    return f"until {when(key.expires)}" if key.expires > now else "expired"
