"""account rename, email, password, audit, export, delete."""

import sys

import rich_click as click

from client import prompts
from client.account_commands import password_stdin_option
from client.api import Client
from client.commands import connected, json_option, limit_option, take, verb, yes_option
from client.errors import Forbidden, NoCredential
from client.models import AuditEntry, User
from client.profile import Profile
from client.terminal import line, note, say, show_json, show_table, when


@click.group()
def account() -> None:
    """Change your account, see what is stored about you, or delete it."""


@account.command("rename")
@click.argument("name")
@json_option
@verb
async def account_rename(profile: Profile, name: str, as_json: bool) -> None:
    """Change the name that others see.

    \b
    secureblogs account rename "Alice Liddell"
    """
    async with connected(profile) as (client, _):
        user = await client.update_me(name=name)
    _report(profile, user, f"You are {line(user.name)} now.", as_json=as_json)


@account.command("email")
@click.argument("address")
@password_stdin_option
@json_option
@verb
async def account_email(profile: Profile, address: str, password_stdin: bool, as_json: bool) -> None:
    """Change the email address that you log in with. It takes your password.

    \b
    secureblogs account email alice@example.org
    secureblogs account email alice@example.org --password-stdin < password.txt
    """
    async with connected(profile) as (client, session):
        password = prompts.password(session.email, from_stdin=password_stdin)
        user = await _update(client, password, email=address)
    _report(profile, user, f"Your address is {line(user.email)} now: log in with it.", as_json=as_json)


@account.command("password")
@click.option(
    "--password-stdin", is_flag=True, help="Read the present password, and the new one from a second line, from stdin."
)
@json_option
@verb
async def account_password(profile: Profile, password_stdin: bool, as_json: bool) -> None:
    """Change your password, and end all other sessions of yours.

    The present one is prompted for, or taken from SECUREBLOGS_PASSWORD. The passphrase of your keys is another thing,
    and stays as it is.

    \b
    secureblogs account password
    secureblogs account password --password-stdin < both-passwords.txt
    """
    async with connected(profile) as (client, session):
        password = prompts.password(session.email, from_stdin=password_stdin)
        new = prompts.new_password(session.email, from_stdin=password_stdin)
        user = await _update(client, password, password=new)
    _report(profile, user, "The password is changed. All other sessions of yours have ended.", as_json=as_json)


@account.command("audit")
@limit_option
@json_option
@verb
async def account_audit(profile: Profile, limit: int, as_json: bool) -> None:
    """List what you did and what was done to you, newest first, as the server remembers it.

    \b
    secureblogs account audit --limit 10
    """
    async with connected(profile) as (client, _):
        entries = await take(client.audit(), limit)
    if as_json:
        show_json(entries)
    else:
        show_entries(entries)


@account.command("export")
@verb
async def account_export(profile: Profile) -> None:
    """Write all that the server stores about you into a file or pipe, a line of JSON each. Posts are sealed in it.

    \b
    secureblogs account export > my-data.ndjson
    """
    if sys.stdout.isatty():
        raise click.UsageError("This is for a file or a pipe: secureblogs account export > my-data.ndjson")
    async with connected(profile) as (client, _):
        async for one in client.export():
            sys.stdout.buffer.write(one + b"\n")
        sys.stdout.buffer.flush()


@account.command("delete")
@password_stdin_option
@yes_option
@verb
async def account_delete(profile: Profile, password_stdin: bool, yes: bool) -> None:
    """Delete your account for good, with all your posts, and the groups that nobody else is in.

    It takes your password, but where SECUREBLOGS_TOKEN is a JWT, whose user has none. The keys on this machine stay
    where they are. Where you are a group's last owner, make another one first.

    \b
    secureblogs account delete
    """
    async with connected(profile) as (client, session):
        whose = line(session.email or f"of {session.name} ({session.user_id})")
        if not prompts.confirm(f"Delete the account {whose} and all its posts, for good?", yes=yes):
            note("Nothing was deleted.")
            return
        if profile.credential == "jwt":
            await client.delete_account(confirm=session.user_id)
        else:
            password = prompts.password(session.email, from_stdin=password_stdin)
            try:
                await client.delete_account(password)
            except Forbidden as error:
                raise _wrong_password(error) from None
    profile.change_session(token=None, token_expires=None)
    say(f"Deleted the account {whose}.")


def show_entries(entries: list[AuditEntry]) -> None:
    show_table(
        ["what", "when", "by", "to", "group", "further"],
        ([one.action, when(one.at), one.actor_id, one.user_id, one.group_id, _further(one)] for one in entries),
    )
    if not entries:
        note("Nothing is remembered.")


def _further(entry: AuditEntry) -> str:
    return " ".join(
        f"{name}={told if isinstance(told, str) else ','.join(told)}" for name, told in sorted(entry.ids.items())
    )


async def _update(
    client: Client, current_password: str, *, email: str | None = None, password: str | None = None
) -> User:
    try:
        return await client.update_me(email=email, password=password, current_password=current_password)
    except Forbidden as error:
        raise _wrong_password(error) from None


def _wrong_password(error: Forbidden) -> Forbidden | NoCredential:
    return NoCredential("this is not the password of the account") if error.code == "wrong_password" else error


def _report(profile: Profile, user: User, said: str, *, as_json: bool) -> None:
    profile.change_session(name=user.name, **({"email": user.email} if user.email else {}))
    if as_json:
        show_json(user)
    else:
        say(said)
