"""group new, list, rename, delete, members, add, role, audit, remove."""

import rich_click as click

from client import prompts
from client.commands import (
    as_id,
    connected,
    find_group,
    find_member,
    json_option,
    limit_option,
    open_people,
    take,
    verb,
    yes_option,
)
from client.key_commands import show_fingerprints
from client.own_account_commands import show_entries
from client.profile import Profile
from client.terminal import line, note, say, show_json, show_table, when


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
    show_table(
        ["name", "id", "your role", "since"], ([one.name, one.id, one.role, when(one.created_at)] for one in groups)
    )
    if not groups:
        note("No groups yet: secureblogs group new NAME")


@group.command("rename")
@click.argument("group_name", metavar="GROUP")
@click.argument("name")
@json_option
@verb
async def group_rename(profile: Profile, group_name: str, name: str, as_json: bool) -> None:
    """Give a group that you own another name.

    \b
    secureblogs group rename "Book club" "Film club"
    """
    async with connected(profile) as (client, _):
        found = await find_group(client, group_name)
        renamed = await client.rename_group(found.id, name)
    if as_json:
        show_json(renamed)
    else:
        say(f"{line(found.name)} is {line(renamed.name)} now, {renamed.id}.")


@group.command("delete")
@click.argument("group_name", metavar="GROUP")
@yes_option
@verb
async def group_delete(profile: Profile, group_name: str, yes: bool) -> None:
    """Delete a group that you own, with all its posts, for everyone and for good.

    \b
    secureblogs group delete "Book club"
    """
    async with connected(profile) as (client, _):
        found = await find_group(client, group_name)
        if not prompts.confirm(f"Delete {line(found.name)} ({found.id}) and all its posts, for everyone?", yes=yes):
            note("Nothing was deleted.")
            return
        await client.delete_group(found.id)
    say(f"Deleted {line(found.name)}, {found.id}.")


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
    show_table(
        ["name", "id", "role", "email", "since"],
        ([one.name, one.user_id, one.role, one.email, when(one.created_at)] for one in members),
    )


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
        user_id = as_id(user)
        member = await client.add_member(found.id, user_id=user_id, email=None if user_id else user, role=role)
        if as_json:
            show_json(member)
            return
        say(f"{line(member.name)} ({member.user_id}) is now {member.role} of {line(found.name)}.")
        await show_fingerprints(open_people(profile, client), member.user_id)


@group.command("role")
@click.argument("group_name", metavar="GROUP")
@click.argument("user")
@click.argument("role", type=click.Choice(["owner", "member"]))
@json_option
@verb
async def group_role(profile: Profile, group_name: str, user: str, role: str, as_json: bool) -> None:
    """Make USER, an id or an email address, an owner of the group, or a member as others are.

    \b
    secureblogs group role "Book club" bob@example.org owner
    """
    # Not by name: everybody chooses their own, and an owner may do everything.
    if as_id(user) is None and "@" not in user:
        raise click.UsageError("USER is an id or an email address: see `secureblogs group members`.")
    async with connected(profile) as (client, _):
        found = await find_group(client, group_name)
        member = await client.change_role(found.id, await find_member(client, found, user), role)
    if as_json:
        show_json(member)
    else:
        say(f"{line(member.name)} ({member.user_id}) is now {member.role} of {line(found.name)}.")


@group.command("audit")
@click.argument("group_name", metavar="GROUP")
@limit_option
@json_option
@verb
async def group_audit(profile: Profile, group_name: str, limit: int, as_json: bool) -> None:
    """List who did what in a group that you own, newest first, as the server remembers it.

    \b
    secureblogs group audit "Book club" --limit 10
    """
    async with connected(profile) as (client, _):
        found = await find_group(client, group_name)
        entries = await take(client.audit(found.id), limit)
    if as_json:
        show_json(entries)
    else:
        show_entries(entries)


@group.command("remove")
@click.argument("group_name", metavar="GROUP")
@click.argument("user")
@yes_option
@verb
async def group_remove(profile: Profile, group_name: str, user: str, yes: bool) -> None:
    """Remove USER, an id, an email address or a name, from a group; yourself to leave it.

    \b
    secureblogs group remove "Book club" bob@example.org
    """
    async with connected(profile) as (client, session):
        found = await find_group(client, group_name)
        user_id = await find_member(client, found, user)
        who = "you" if user_id == session.user_id else user if as_id(user) else f"{user} ({user_id})"
        if not prompts.confirm(f"Remove {line(who)} from {line(found.name)}?", yes=yes):
            return
        await client.remove_member(found.id, user_id)
    say(f"Removed {line(who)} from {line(found.name)}. What they have read or copied they keep.")
