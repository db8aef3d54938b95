"""key new, link, list, revoke, verify."""

import socket
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import rich_click as click

from client import files, prompts
from client.commands import connected, find_user, json_option, open_people, verb, yes_option
from client.enrolling import new_key
from client.errors import CannotOpen, NoCredential, UntrustedKey
from client.identity import Identity, read_identity, write_identity
from client.link_commands import key_link, make_key_to_link, meet_own_keys, show_link_code, wait_until_linked
from client.linking import must_link
from client.models import Key
from client.people import People
from client.pins import check_key, confirm, match_fingerprints, note_revoked, read_pins, save_pins, standing
from client.profile import Profile, Session
from client.terminal import line, note, say, show_fields, show_json, show_table, warn, when


@click.group()
def key() -> None:
    """Make, link, list, verify and revoke keys."""


@key.command("new")
@click.option("--label", default=socket.gethostname, show_default="this machine's name", help="What to call it.")
@click.option("--no-passphrase", is_flag=True, help="Leave the private keys unwrapped by a passphrase.")
@click.option("--alone", is_flag=True, help="Don't wait for another device of yours to vouch for this one.")
@click.option("--no-wait", is_flag=True, help="Show the link code, and go on later.")
@json_option
@verb
async def key_new(
    profile: Profile, *, label: str, no_passphrase: bool, alone: bool, no_wait: bool, as_json: bool
) -> None:
    """Make a key that posts are sealed to, and enrol its public half.

    The private half stays in this machine's identity file, wrapped by a passphrase. If your account has a key on
    another device, this one shows a code for `secureblogs key link` there, and waits until that has vouched for it.

    \b
    secureblogs key new
    secureblogs key new --label laptop
    """
    path = profile.identity_path
    async with connected(profile) as (client, session):
        own = [one async for one in client.own_keys()]
        with files.locked(path):
            if path.exists():
                passphrase = prompts.passphrase()
                identity = read_identity(path, passphrase)
            else:
                passphrase = prompts.new_passphrase(may_be_empty=no_passphrase)
                if not passphrase and not no_passphrase:
                    raise NoCredential("an empty passphrase protects nothing: if that is meant, use --no-passphrase")
                identity = Identity()
            is_second = must_link(identity, own) and not alone
            if is_second:
                waiting = make_key_to_link(profile, session, passphrase, identity, own, label, datetime.now(UTC))
            else:
                enrolled = await new_key(
                    client,
                    session.user_id,
                    label,
                    identity,
                    save=lambda changed: write_identity(path, passphrase, changed),
                    now=datetime.now(UTC),
                )
                made, was_waiting = enrolled.key, enrolled.was_waiting
        if is_second:
            if not any(one.public_key == waiting.public_key for one in own):
                show_link_code(waiting, label, as_json=as_json, to_wait=not no_wait)
                if no_wait:
                    return
            made, own = await wait_until_linked(profile, client, passphrase, waiting)
            was_waiting = False
        fingerprint = check_key(made)
        profile.change_session(key_id=made.id, fingerprint=fingerprint)
        meet_own_keys(profile, made, own, was_linked=is_second, may_ask=not as_json)
    if as_json:
        show_json(_key_as_json(made))
        return
    if was_waiting:
        note("A key that was made earlier had not been enrolled yet: that is done now.")
    show_fields(
        [
            ("key", made.id),
            ("label", made.label),
            ("fingerprint", fingerprint),
            ("in", path),
        ]
    )
    note("Keep a copy of that file and its passphrase: without them nothing that was sealed to this key can be read.")


@key.command("list")
@click.option("--user", "whose", metavar="USER", help="Another user's keys, and how far they are trusted.")
@json_option
@verb
async def key_list(profile: Profile, whose: str | None, as_json: bool) -> None:
    """List your keys, or those of USER: an id, or the name or email address of somebody in your groups.

    \b
    secureblogs key list
    secureblogs key list --user bob@example.org
    """
    async with connected(profile) as (client, session):
        user_id = None if whose is None else await find_user(client, whose)
        if user_id is None or user_id == session.user_id:
            shown = [(one, _own_state(one, session)) async for one in client.own_keys()]
        else:
            people = open_people(profile, client)
            user = await people.user(user_id)
            shown = [(one, await _trust_of(people, one)) for one in user.keys]
    if as_json:
        show_json([{**_key_as_json(one), "state": state} for one, state in shown])
        return
    show_table(
        ["label", "id", "state", "made", "fingerprint"],
        ([one.label, one.id, state, when(one.created_at), check_key(one)] for one, state in shown),
    )
    if not shown:
        note("No keys yet: secureblogs key new")


@key.command("revoke")
@click.argument("key_id", type=click.UUID)
@yes_option
@verb
async def key_revoke(profile: Profile, key_id: UUID, yes: bool) -> None:
    """Revoke one of your keys, for ever. What only it could open must be asked for anew.

    \b
    secureblogs key revoke 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    """
    async with connected(profile) as (client, session):
        if not prompts.confirm("Nothing will be sealed or served to this key any more. Revoke it?", yes=yes):
            return
        await client.revoke_key(key_id)
        if session.key_id == key_id:
            profile.change_session(key_id=None, fingerprint=None)
        # From now on this device believes nobody who says that the key is active.
        revoked = [one async for one in client.own_keys() if one.id == key_id]
        pinned = read_pins(profile.pins_path).users.get(session.user_id, ())
        save_pins(profile.pins_path, {session.user_id: note_revoked(pinned, revoked, datetime.now(UTC))})
    say(f"Revoked {key_id}.")


@key.command("verify")
@click.argument("whose", metavar="USER")
@click.argument("fingerprints", metavar="[FINGERPRINT]...", nargs=-1)
@yes_option
@verb
async def key_verify(profile: Profile, whose: str, fingerprints: tuple[str, ...], yes: bool) -> None:
    """Mark fingerprints of USER as verified, once you have compared them by another way than this server.

    USER is an id, or the name or email address that only one person in your groups has. Type what they read out to
    you, spaces or not: it is compared with the keys that the server shows. Without a FINGERPRINT those of all active
    keys are shown for you to compare.

    \b
    secureblogs key verify Bob
    secureblogs key verify 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3 "21b9 a9ff …"
    """
    async with connected(profile) as (client, _):
        user_id = await find_user(client, whose)
        user = await client.user_keys(user_id)
    pinned = read_pins(profile.pins_path).users.get(user_id, ())
    if fingerprints:
        compared = match_fingerprints(fingerprints, user)
    else:
        compared = {check_key(one) for one in user.keys if one.revoked_at is None}
        if not compared:
            raise CannotOpen("this user has no active key")
        note(f"{line(user.name)} ({user_id}) has these keys.")
        note("Compare them by another way than this server, in person or by phone:")
        for one in user.keys:
            if one.revoked_at is None:
                say(f"{check_key(one)}  {standing(pinned, check_key(one))}  {line(one.label)}")
        if not prompts.confirm("Do they all match?", yes=yes):
            note("Nothing was changed.")
            return
    save_pins(profile.pins_path, {user_id: confirm(pinned, user, compared)})
    say(f"{line(user.name)}: {len(compared)} verified.")


key.add_command(key_link)


async def show_fingerprints(people: People, user_id: UUID) -> None:
    """What to compare with a user who was met, and how far it is trusted."""
    user = await people.user(user_id)
    active = [one for one in user.keys if one.revoked_at is None]
    for one in active:
        state = await _trust_of(people, one)
        say(f"  {check_key(one)}  {state}")
    if not active:
        note(f"{line(user.name)} has no key yet: posts made before there is one must be asked for.")


async def _trust_of(people: People, one: Key) -> str:
    if one.revoked_at is not None:
        return "revoked"
    try:
        return (await people.accepted_key(one.user_id, one.id)).trust.value
    except UntrustedKey:
        warn(f"this key is new and nobody vouches for it: compare it, then secureblogs key verify {one.user_id}")
        return "not trusted"


def _own_state(one: Key, session: Session) -> str:
    is_here = one.id == session.key_id
    if is_here and check_key(one) != session.fingerprint:
        raise CannotOpen("the server shows another key than this machine enrolled")
    if one.revoked_at is not None:
        return "revoked"
    return "active, this machine's" if is_here else "active"


def _key_as_json(one: Key) -> dict[str, object]:
    return {**msgspec.structs.asdict(one), "fingerprint": check_key(one)}
