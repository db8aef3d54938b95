"""Who a post is sealed to: the keys that the server lists for a group, each of them judged before anything is made.

    a key of the group ── withheld, as the author said
                       ── its proof does not hold, or it was seen revoked   stops
                       ── nothing can be sealed to it                       withheld
                       ── known, endorsed by a known one, or the first that is met of a user   sealed to
                       ── any other                                         stops, or withheld where the author said so

What is withheld is named to the server and to the author: nobody is left out unseen. In the ordinary case one listing
of the group's keys is all that is asked for. The whole list of a user's keys is read only for one whose new key names
an endorser beyond that listing (a revoked one), and the members only where somebody is sealed to for the first time in
this group, or where something must be said about somebody. A server that makes up a member *and* a key can't be told
from one to which somebody was added: that newcomer is what the author is shown.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct

from client import files
from client.api import Client
from client.errors import (
    CannotOpen,
    ClientError,
    NotFound,
    StorageError,
    Substituted,
    UntrustedKey,
    UntrustedRecipients,
)
from client.models import Key, UserKeys
from client.people import AcceptedKey, People, accepted_key
from client.pins import Pin, Trust, accept
from server.sealing import keys as sealing_keys
from server.sealing.errors import SealingError

# Some 10 ms of a core: enough work to be worth a thread of its own.
USERS_AT_ONCE = 64
REQUESTS_AT_ONCE = 8


class Withhold(Struct, frozen=True, kw_only=True):
    """What the author leaves out: users or keys by id, every key that is not trusted, every one nobody compared."""

    ids: frozenset[UUID] = frozenset()
    untrusted: bool = False
    unverified: bool = False


class Withheld(Struct, frozen=True, kw_only=True):
    """A key that a post is openly not sealed to; `reason` follows on "withheld, because"."""

    key: Key
    reason: str


class Recipients(Struct, frozen=True, kw_only=True):
    """Every key that was listed, in one of two places. `newcomers` are users who were not known as recipients before;

    `names` are those of the members, as far as there was something to be said about anyone.
    """

    accepted: tuple[AcceptedKey, ...] = ()
    withheld: tuple[Withheld, ...] = ()
    newcomers: frozenset[UUID] = frozenset()
    names: dict[UUID, str] = {}


class Doubt(NamedTuple):
    key: Key
    error: CannotOpen


class Judged(NamedTuple):
    """The keys of one user after the pins have been asked, and those pins."""

    pinned: tuple[Pin, ...]
    accepted: list[AcceptedKey]
    unusable: list[Key]
    doubts: list[Doubt]


async def choose_recipients(
    client: Client,
    people: People,
    group_id: UUID,
    keys: Sequence[Key],
    withhold: Withhold,
    known: Collection[UUID],
) -> Recipients:
    """Judge keys that the server lists for a group. `known` are users that were recipients here before.

    Raises CannotOpen, of its kinds UntrustedRecipients and Substituted; pins are saved only if it does not.
    """
    by_user = _by_user(keys)
    left_out = [key for key in keys if {key.id, key.user_id} & withhold.ids]
    left_out_ids = {key.id for key in left_out}
    judged = await _judge_all(client, people, by_user, left_out_ids)
    doubts = [doubt for one in judged.values() for doubt in one.doubts]
    taken = [key for one in judged.values() for key in one.accepted]
    unverified = [one for one in taken if one.trust is Trust.UNVERIFIED] if withhold.unverified else []
    accepted = [one for one in taken if one.trust is not Trust.UNVERIFIED] if withhold.unverified else taken
    newcomers = {one.key.user_id for one in accepted} - set(known)
    unusable = [key for one in judged.values() for key in one.unusable]
    withheld = [
        *(Withheld(key=key, reason="you left it out") for key in left_out),
        *(Withheld(key=one.key, reason="nobody has compared its fingerprint") for one in unverified),
        *(Withheld(key=key, reason="nothing can be sealed to it") for key in unusable),
    ]
    names: dict[UUID, str] = {}
    if doubts or withheld or newcomers:
        names = {member.user_id: member.name async for member in client.members(group_id)}
    if withhold.untrusted:
        withheld += [Withheld(key=doubt.key, reason=str(doubt.error)) for doubt in doubts]
    elif doubts:
        raise _stop(doubts, names)
    _check_members(newcomers, names)
    people.keep({user_id: one.pinned for user_id, one in judged.items() if one.pinned})
    return Recipients(accepted=tuple(accepted), withheld=tuple(withheld), newcomers=frozenset(newcomers), names=names)


def judge(pinned: tuple[Pin, ...], user: UserKeys, wanted: Iterable[Key]) -> Judged:
    """Ask the pins about some keys of a user; `user` holds the keys among which an endorser may be."""
    judged = Judged(pinned, [], [], [])
    # Of a user who is met first, the oldest key counts as the one that was met: others must be endorsed by it.
    for key in sorted(wanted, key=lambda one: (one.created_at, one.id)):
        try:
            if _is_unusable(key):
                judged.unusable.append(key)
                continue
            pinned, trust = accept(judged.pinned, user, key)
            accepted = accepted_key(pinned, key, trust)
            if accepted.revoked_at is not None:
                raise CannotOpen(f"the key {accepted.fingerprint} is shown as active, and was seen revoked")
        except CannotOpen as error:
            judged.doubts.append(Doubt(key, error))
        else:
            judged.accepted.append(accepted)
            judged = judged._replace(pinned=pinned)
    return judged


def _is_unusable(key: Key) -> bool:
    """Whether its owner vouches for a key that nothing can be sealed to. Without a proof it is not their key at all."""
    try:
        sealing_keys.check_public_key(key.public_key)
    except SealingError:
        try:
            sealing_keys.check_proof(key.user_id, key.public_key, key.verify_key, key.proof)
        except SealingError:
            return False
        return True
    return False


async def _judge_all(
    client: Client, people: People, by_user: dict[UUID, list[Key]], left_out: Collection[UUID]
) -> dict[UUID, Judged]:
    users = [UserKeys(id=user_id, name=str(user_id), keys=keys) for user_id, keys in by_user.items()]
    judged = await _judge_in_threads(people, users, by_user, left_out)
    looked_up = await _fetch_endorsers(client, judged, by_user)
    return judged | await _judge_in_threads(people, looked_up, by_user, left_out)


async def _judge_in_threads(
    people: People, users: list[UserKeys], by_user: dict[UUID, list[Key]], left_out: Collection[UUID]
) -> dict[UUID, Judged]:
    def judge_some(some: list[UserKeys]) -> dict[UUID, Judged]:
        return {
            user.id: judge(people.pinned(user.id), user, (key for key in by_user[user.id] if key.id not in left_out))
            for user in some
        }

    portions = [users[start : start + USERS_AT_ONCE] for start in range(0, len(users), USERS_AT_ONCE)]
    done = await asyncio.gather(*(asyncio.to_thread(judge_some, portion) for portion in portions))
    return {user_id: one for portion in done for user_id, one in portion.items()}


async def _fetch_endorsers(
    client: Client, judged: dict[UUID, Judged], by_user: dict[UUID, list[Key]]
) -> list[UserKeys]:
    """All keys of those users whose untrusted key names an endorser that the group's list does not show."""
    wanted = [
        user_id
        for user_id, one in judged.items()
        if any(
            isinstance(doubt.error, UntrustedKey)
            and doubt.key.endorsed_by is not None
            and doubt.key.endorsed_by not in {key.id for key in by_user[user_id]}
            for doubt in one.doubts
        )
    ]
    room = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def fetch(user_id: UUID) -> UserKeys | None:
        async with room:
            try:
                return await client.user_keys(user_id)
            except NotFound:
                return None

    return [user for user in await asyncio.gather(*map(fetch, wanted)) if user is not None]


def _by_user(keys: Sequence[Key]) -> dict[UUID, list[Key]]:
    if len({key.id for key in keys}) != len(keys):
        raise Substituted("the server lists a key of this group twice")
    by_user: dict[UUID, list[Key]] = {}
    for key in keys:
        by_user.setdefault(key.user_id, []).append(key)
    return by_user


def _stop(doubts: list[Doubt], names: dict[UUID, str]) -> CannotOpen:
    """The error of a key that is false comes first; keys that are only unknown can be confirmed, all at once."""
    untrusted = []
    for key, error in doubts:
        name = names.get(key.user_id, str(key.user_id))
        if not isinstance(error, UntrustedKey):
            return CannotOpen(f"{name} ({key.user_id}): {error}")
        untrusted.append(UntrustedKey(key.user_id, name, error.pinned, error.new))
    return UntrustedRecipients(tuple(untrusted))


def _check_members(newcomers: Collection[UUID], names: dict[UUID, str]) -> None:
    strangers = sorted(set(newcomers) - names.keys())
    if strangers:
        raise Substituted(f"the server lists a key of {strangers[0]} for this group, who is none of its members")


def check_withheld(withhold: Withhold, keys: Sequence[Key]) -> None:
    """Whoever leaves somebody out wants to be sure that they are: an id that fits nobody is a slip."""
    unmet = withhold.ids - {key.id for key in keys} - {key.user_id for key in keys}
    if unmet:
        raise ClientError(f"nobody in this group has the id {min(unmet)}, as a user or a key: nothing was posted")


class _Remembered(Struct, kw_only=True):
    v: int = 1
    groups: dict[UUID, list[UUID]] = {}


def read_recipients(path: Path, group_id: UUID) -> frozenset[UUID]:
    """The users that posts to a group were sealed to from here."""
    return frozenset(_read(path).groups.get(group_id, ()))


def save_recipients(path: Path, group_id: UUID, user_ids: Iterable[UUID]) -> None:
    """Remember whom the last post to a group was sealed to. Who is gone since is a newcomer when they come back."""
    with files.locked(path):
        remembered = _read(path)
        remembered.groups[group_id] = sorted(user_ids)
        files.write(path, msgspec.json.encode(remembered))


def _read(path: Path) -> _Remembered:
    content = files.read(path)
    try:
        return _Remembered() if content is None else msgspec.json.decode(content, type=_Remembered)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StorageError(f"{path} is damaged: remove it, and everybody is shown as new once") from None
