"""requests approve --all, and requests serve."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import rich_click as click

from client import prompts
from client.commands import PATIENT, advise, connected, json_option, open_people, unlock, verb
from client.deciding import Failed, Ready, approve_all, by_key, prepare_grants
from client.errors import CannotGrant, CannotOpen, ClientError
from client.events import CaughtUp, ConnectionAccepted, Disconnected, More, ReadRequestCreated
from client.models import ReadRequest
from client.pins import Trust, is_same_fingerprint
from client.profile import Profile
from client.progress import bar
from client.serving import HOUR, Allowance, Decision, consider, describe, read_approvals, write_decision
from client.tail import renewal, tell_connection
from client.terminal import count, line, note, say, show_fields, show_json, warn

SHOWN_TITLES = 10


async def approve_many(
    profile: Profile, whose: str | None, fingerprint: str | None, *, yes: bool, as_json: bool
) -> None:
    """Decide all waiting requests, or those of one user: the fingerprint is shown and confirmed once for each key."""
    async with connected(profile, PATIENT) as (client, _):
        waiting = [one async for one in client.read_requests("decider", "pending")]
        wanted = _of_user(waiting, whose)
        if not wanted:
            note("Nobody asks.")
            if as_json:
                show_json({"approved": [], "failed": []})
            return
        identity, people = unlock(profile, client)
        approved: list[ReadRequest] = []
        failed: list[Failed] = []
        for requests in by_key(wanted).values():
            with bar(f"Opening posts for {line(requests[0].requester_name)}", len(requests)) as tell:
                ready, refused = await prepare_grants(client, identity, people, requests, tell)
            failed += refused
            if not ready:
                continue
            if fingerprint is not None and not is_same_fingerprint(fingerprint, ready[0].recipient.fingerprint):
                error = CannotGrant(f"its key has another fingerprint: {ready[0].recipient.fingerprint}")
                failed += [Failed(one.request, error) for one in ready]
                continue
            if not as_json:
                _show_ready(ready)
            if not prompts.confirm(f"Let them read {_count(ready)}?", yes=yes or fingerprint is not None):
                note("Nothing was granted to this key.")
                continue
            with bar("Approving", len(ready)) as tell:
                done, undone = await approve_all(client, ready, tell)
            approved += done
            failed += undone
    _report(approved, failed, as_json=as_json)


@click.command("serve")
@click.option(
    "--auto-approve-verified", is_flag=True, help="Approve by itself what a key asks that you marked as verified."
)
@click.option(
    "--per-hour", type=click.IntRange(min=1), default=20, show_default=True, help="How many of them within an hour."
)
@json_option
@verb
async def requests_serve(profile: Profile, auto_approve_verified: bool, per_hour: int, as_json: bool) -> None:
    """Wait for requests and show them as they come. Ctrl-C ends it.

    With --auto-approve-verified it lets those read, any post that you may decide about, whose key you have compared and
    marked with `secureblogs key verify`; everything else is only shown. This is a rule of this machine, of which the
    server knows nothing. Each decision is written to decisions.jsonl in this profile's folder.

    \b
    secureblogs requests serve
    secureblogs requests serve --auto-approve-verified --per-hour 10
    """
    async with connected(profile, PATIENT) as (client, session):
        unlocked = unlock(profile, client) if auto_approve_verified else None
        used = read_approvals(profile.decisions_path, datetime.now(UTC) - HOUR) if unlocked else []
        allowance = Allowance(per_hour, used)
        async with client.follow(renew=renewal(profile, client, session)) as events:
            async for event in events:
                match event:
                    case ReadRequestCreated():
                        # The pins as they are now: a key may have been verified, or seen revoked, since.
                        people = open_people(profile, client, unlocked.identity if unlocked else None)
                        now = datetime.now(UTC)
                        if unlocked is None:
                            decision = describe(people, event, now)
                        else:
                            decision = await consider(
                                client,
                                unlocked.identity,
                                people,
                                event,
                                allowance=allowance,
                                record=lambda one: write_decision(profile.decisions_path, one),
                                now=now,
                            )
                        _tell(decision, as_json=as_json)
                    case CaughtUp() | ConnectionAccepted() | Disconnected() | More():
                        if not as_json:
                            tell_connection(event)


def _of_user(waiting: Sequence[ReadRequest], whose: str | None) -> list[ReadRequest]:
    """Those of one user, by id, or by a name that only one of those who ask has."""
    if whose is None:
        return list(waiting)
    try:
        user_id: UUID | None = UUID(whose)
    except ValueError:
        named = {one.requester_id for one in waiting if one.requester_name == whose}
        if len(named) > 1:
            ids = ", ".join(str(one) for one in sorted(named))
            raise click.UsageError(
                f"{len(named)} of those who ask have this name: give the id, one of {ids}."
            ) from None
        user_id = next(iter(named), None)
    return [one for one in waiting if one.requester_id == user_id]


def _show_ready(ready: Sequence[Ready]) -> None:
    request, recipient = ready[0].request, ready[0].recipient
    show_fields(
        [
            ("who asks", f"{request.requester_name} ({request.requester_id})"),
            ("fingerprint", f"{recipient.fingerprint} ({recipient.trust.value})"),
            *(("for", one.title) for one in ready[:SHOWN_TITLES]),
        ]
    )
    if len(ready) > SHOWN_TITLES:
        say(f"and {len(ready) - SHOWN_TITLES} more")
    if recipient.trust is Trust.UNVERIFIED:
        warn("nobody has compared this fingerprint yet: ask them for it by another way than this server")


def _report(approved: Sequence[ReadRequest], failed: Sequence[Failed], *, as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "approved": approved,
                "failed": [
                    {"id": one.request.id, "post_id": one.request.post_id, "reason": str(one.error)} for one in failed
                ],
            }
        )
    else:
        say(f"Approved {len(approved)}, failed {len(failed)}.")
        for request, error in failed:
            advice = advise(error)
            reason = line(error) if advice is None else f"{line(error)}: {advice}"
            warn(f"request {request.id} of {line(request.requester_name)}: {reason}")
    if failed:
        # What does not verify weighs more than what was merely refused.
        kind = CannotGrant if any(isinstance(one.error, CannotOpen) for one in failed) else ClientError
        raise kind(f"{len(failed)} of {count(len(approved) + len(failed), 'request')} could not be approved")


def _tell(decision: Decision, *, as_json: bool) -> None:
    if as_json:
        show_json(decision, on_one_line=True)
        return
    who = f"{line(decision.requester_name)} ({decision.requester_id}) asks to read post {decision.post_id}"
    say(f"{who}, with the key {decision.fingerprint} ({decision.standing})")
    if decision.decision == "approved":
        say("  approved: this key is verified")
    else:
        reason = f" ({line(decision.reason)})" if decision.reason else ""
        say(f"  left to you{reason}: secureblogs requests approve {decision.request_id}")


def _count(ready: Sequence[Ready]) -> str:
    return "this post" if len(ready) == 1 else f"these {len(ready)} posts"
