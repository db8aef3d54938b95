"""group new, list, members, add, remove."""

from uuid import UUID

import rich_click as click

from client import prompts
from client.api import Client
from client.commands import connected, find_group, json_option, limit_option, open_people, take, verb, yes_option
from client.errors import ClientError
from client.key_commands import show_fingerprints
from client.models import Group
from client.profile import Profile
from client.terminal import line, note, say, show_json, show_record, when


@click.group()
def group() -> None:
    """Make groups and say who is in them. GROUP is an id, or a name that only one of your groups has."""


@group.command("new")
@click.argument("name")
@json_option
@verb
async def group_new(profile: Profile, name: str, as_json: bool) -> None:
    """Make a group that you own.

    \b
    secureblogs group new "Book club"
    """
    async with connected(profile) as (client, _):
        made = await client.create_group(name)
    if as_json:
        show_json(made)
    else:
        say(f"Made {line(made.name)}, {made.id}.")


@group.command("list")
@limit_option
@json_option
@verb
async def group_list(profile: Profile, limit: int, as_json: bool) -> None:
    """List your groups, newest first.

    \b
    secureblogs group list
    secureblogs group list --limit 0 --json
    """
    async with connected(profile) as (client, _):
        groups = await take(client.groups(), limit)
    if as_json:
        show_json(groups)
        return
    for one in groups:
        show_record([one.name, one.id, one.role, when(one.created_at)])
    if not groups:
        note("No groups yet: secureblogs group new NAME")


@group.command("members")
@click.argument("group_name", metavar="GROUP")
@limit_option
@json_option
@verb
async def group_members(profile: Profile, group_name: str, limit: int, as_json: bool) -> None:
    """List the members of a group, those who joined last first.

    \b
    secureblogs group members "Book club"
    """
    async with connected(profile) as (client, _):
        found = await find_group(client, group_name)
        members = await take(client.members(found.id), limit)
    if as_json:
        show_json(members)
        return
    for one in members:
        show_record([one.name, one.user_id, one.role, one.email, when(one.created_at)])


@group.command("add")
@click.argument("group_name", metavar="GROUP")
@click.argument("user")
@click.option("--role", type=click.Choice(["owner", "member"]), help="What they may do. [default: member]")
@json_option
@verb
async def group_add(profile: Profile, group_name: str, user: str, role: str | None, as_json: bool) -> None:
    """Add USER, an id or an email address, and show their fingerprints to compare.

    They read posts that are made from now on; for earlier ones they ask.

    \b
    secureblogs group add "Book club" bob@example.org
    secureblogs group add "Book club" bob@example.org --role owner
    """
    async with connected(profile) as (client, _):
        found = await find_group(client, group_name)
        user_id = _as_id(user)
        member = await client.add_member(found.id, user_id=user_id, email=None if user_id else user, role=role)
        if as_json:
            show_json(member)
            return
        say(f"{line(member.name)} ({member.user_id}) is now {member.role} of {line(found.name)}.")
        await show_fingerprints(open_people(profile, client), member.user_id)


@group.command("remove")
@click.argument("group_name", metavar="GROUP")
@click.argument("user")
@yes_option
@verb
async def group_remove(profile: Profile, group_name: str, user: str, yes: bool) -> None:
    """Remove USER, an id or an email address, from a group; yourself to leave it.

    \b
    secureblogs group remove "Book club" bob@example.org
    """
    async with connected(profile) as (client, session):
        found = await find_group(client, group_name)
        user_id = _as_id(user) or await _member_of_email(client, found, user)
        who = "you" if user_id == session.user_id else user
        if not prompts.confirm(f"Remove {line(who)} from {line(found.name)}?", yes=yes):
            return
        await client.remove_member(found.id, user_id)
    say(f"Removed {line(who)} from {line(found.name)}. What they have read or copied they keep.")


async def _member_of_email(client: Client, found: Group, email: str) -> UUID:
    async for member in client.members(found.id):
        if member.email is not None and member.email.casefold() == email.strip().casefold():
            return member.user_id
    raise ClientError(f"nobody in {found.name} has the address {email}, as far as you may know: give the user's id")


def _as_id(user: str) -> UUID | None:
    try:
        return UUID(user)
    except ValueError:
        return None
