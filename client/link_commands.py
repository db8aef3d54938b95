"""A second device at the command line: waiting to be linked on the one, key link on the other."""

from datetime import datetime
from uuid import UUID

import rich_click as click

from client import files, linking, prompts
from client.api import Client
from client.commands import PATIENT, connected, json_option, unlock, verb, yes_option
from client.errors import CannotGrant, CannotOpen, ClientError
from client.identity import HeldKey, Identity, make_key, read_identity, write_identity
from client.linking import LinkCode
from client.models import Key
from client.pins import Trust, check_key, is_same_fingerprint, read_pins, save_pins, standing
from client.profile import Profile, Session
from client.progress import bar
from client.terminal import count, line, note, say, show_json, warn
from server.sealing import keys as sealing_keys

SHOWN_FAILURES = 20


def make_key_to_link(
    profile: Profile, session: Session, passphrase: str, identity: Identity, own: list[Key], label: str, now: datetime
) -> HeldKey:
    """The key that waits to be linked, safe in the identity file."""
    waiting = linking.waiting_key(identity, own, session.user_id)
    if waiting is None:
        waiting = make_key(session.user_id, session.server, label, now)
        write_identity(profile.identity_path, passphrase, identity.with_key(waiting))
    return waiting


def show_link_code(waiting: HeldKey, label: str, *, as_json: bool, to_wait: bool) -> None:
    code = linking.write_link_code(waiting, label)
    if as_json and not to_wait:
        show_json({"link_code": code, "fingerprint": waiting.fingerprint, "state": "waiting"})
        return
    tell = note if as_json else say
    note("This account has a key on another device, which can vouch for this one. There, run:")
    tell(f"secureblogs key link {code}")
    note("and see that it shows this fingerprint:")
    tell(waiting.fingerprint)
    if to_wait:
        note("Waiting for it. Ctrl-C ends the waiting, and `secureblogs key new` goes on with it.")
    else:
        note("Then go on here with `secureblogs key new`.")
    note("Without the other device: `secureblogs key new --alone`, and everybody must compare the new fingerprint.")


async def wait_until_linked(
    profile: Profile, client: Client, passphrase: str, waiting: HeldKey
) -> tuple[Key, list[Key]]:
    """The key once the other device has enrolled it, and all keys of the account; the identity then knows its id."""
    key, own = await linking.wait_until_enrolled(client, waiting)
    # Others may have written to the file while nobody held its lock.
    with files.locked(profile.identity_path):
        identity = read_identity(profile.identity_path, passphrase)
        write_identity(profile.identity_path, passphrase, identity.with_id(waiting, key.id))
    return key, own


def meet_own_keys(profile: Profile, key: Key, own: list[Key], *, was_linked: bool, may_ask: bool) -> None:
    """Pin what this device believes of its own account from now on."""
    voucher = linking.find_voucher(key, own) if was_linked else None
    compared = []
    if voucher is not None:
        note(f"Your other device, {line(voucher.label)}, vouches for this key. Its own fingerprint:")
        note(check_key(voucher))
        if may_ask and prompts.has_person() and prompts.confirm("Does the other device show the same?", yes=False):
            compared.append(voucher)
    elif was_linked:
        warn("this key was enrolled, but no other key vouches for it: everybody must compare its fingerprint")
    pinned = linking.own_pins(read_pins(profile.pins_path).users.get(key.user_id, ()), key, own, compared)
    save_pins(profile.pins_path, {key.user_id: pinned})
    believed = {pin.fingerprint for pin in pinned if pin.trust is not Trust.UNVERIFIED}
    doubtful = [one for one in own if one.revoked_at is None and check_key(one) not in believed]
    if doubtful:
        note(f"Not compared on this device yet: {len(doubtful)} of your keys; secureblogs key verify {key.user_id}")


@click.command("link")
@click.argument("new", metavar="CODE|KEY")
@click.option("--fingerprint", help="What the new device shows: link only this very key.")
@yes_option
@json_option
@verb
async def key_link(profile: Profile, new: str, fingerprint: str | None, yes: bool, as_json: bool) -> None:
    """Vouch for the key of another device of yours, and hand it the posts that this one can read.

    CODE is what `secureblogs key new` shows there; the id of a key that is enrolled already does as well. Doing it
    again goes on where it ended: posts that the new key has are passed over.

    \b
    secureblogs key link AQ3k…
    secureblogs key link 0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3
    """
    async with connected(profile, PATIENT) as (client, session):
        own = [one async for one in client.own_keys()]
        code = _read_new(new, own, session.user_id)
        shown = sealing_keys.fingerprint(session.user_id, code.public_key, code.verify_key)
        _compare(session, code, shown, fingerprint, as_json=as_json)
        is_known = standing(read_pins(profile.pins_path).users.get(session.user_id, ()), shown) == Trust.VERIFIED
        if not prompts.confirm("Does the new device show the same?", yes=yes or is_known or fingerprint is not None):
            note("Nothing was linked.")
            return
        identity, people = unlock(profile, client)
        if any(held.public_key == code.public_key for held in identity.keys):
            raise ClientError("this key is on this very device: link it from another one")
        key = await linking.enrol_linked(client, identity, own, session.user_id, code)
        linking.trust_own_key(people, key, own)
        note(f"Enrolled as {key.id}. If this is interrupted, go on with: secureblogs key link {key.id}")
        if session.fingerprint is not None:
            note(f"This device's own fingerprint, for the new one to compare: {session.fingerprint}")
        to_hand = await linking.posts_to_hand(client, identity, key)
        with bar("Handing posts", len(to_hand.post_ids)) as tell:
            handed = await linking.hand_posts(client, identity, people, key, to_hand.post_ids, tell)
    if as_json:
        show_json(
            {
                "key_id": key.id,
                "fingerprint": shown,
                "granted": handed.granted,
                "had": to_hand.had,
                "elsewhere": to_hand.elsewhere,
                "failed": {str(post_id): str(error) for post_id, error in handed.failed.items()},
            }
        )
    else:
        _report(key, to_hand, handed)
    if handed.failed:
        raise CannotOpen(f"{count(len(handed.failed), 'post')} can't be verified, and not handed on")


def _read_new(new: str, own: list[Key], user_id: UUID) -> LinkCode:
    try:
        key_id = UUID(new.strip())
    except ValueError:
        return linking.read_link_code(new, user_id)
    key = next((one for one in own if one.id == key_id), None)
    if key is None:
        raise ClientError(f"no key of yours has the id {key_id}")
    check_key(key)
    return LinkCode(key.public_key, key.verify_key, key.proof, key.label)


def _compare(session: Session, code: LinkCode, shown: str, told: str | None, *, as_json: bool) -> None:
    if told is not None and not is_same_fingerprint(told, shown):
        raise CannotGrant(f"the key to be linked has another fingerprint: {shown}")
    note(f"A new device of {line(session.name)}, {line(code.label)}, has this key:")
    (note if as_json else say)(shown)


def _report(key: Key, to_hand: linking.ToHand, handed: linking.Handed) -> None:
    said = f"Linked {line(key.label)}: {count(len(handed.granted), 'post')} handed on"
    if to_hand.had:
        said += f", {to_hand.had} it had already"
    if to_hand.elsewhere:
        said += f", {to_hand.elsewhere} are on other devices only"
    say(said + ".")
    for post_id, error in list(handed.failed.items())[:SHOWN_FAILURES]:
        warn(f"post {post_id}: {line(error)}")
