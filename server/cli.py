"""`secureblogs`, the one command.

Verbs of the server are here. Those of the worker and the client are named by their modules and imported when they are
called, so the server depends on neither, and `--help` waits for nothing. For the same reason each verb imports what it
needs when it runs.
"""

import asyncio
import contextlib
import functools
import importlib
import io
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import rich_click as click
from click.exceptions import Exit

from server.lasting import lasting

if TYPE_CHECKING:
    from server.settings import Settings

Result = TypeVar("Result")

NO_ANSWER = "Postgres does not answer ({}); `secureblogs doctor` looks into it"

# Where each verb of other rooms is, and what its help begins with.
ELSEWHERE = {
    "worker": ("tasks.worker:command", "Seal what is pending, and sweep up."),
    "jobs": ("server.dashboard_commands:list_jobs", "Show the workers' queues, and the jobs of a state."),
    "workers": ("server.dashboard_commands:list_workers", "Show the living workers and what they have done."),
    "dashboard-link": (
        "server.dashboard_commands:print_link",
        "Print an address that opens the dashboard for an administrator: once, and within a minute.",
    ),
    "sign-up": ("client.cli:sign_up", "Make an account and be logged in to it."),
    "login": ("client.cli:login", "Log in."),
    "logout": ("client.cli:logout", "End the session."),
    "whoami": ("client.cli:whoami", "Show who is logged in, where, and until when."),
    "account": ("client.cli:account", "Change your account, see what is stored about you, or delete it."),
    "session": ("client.cli:session", "See where you are logged in, and end what you do not know."),
    "api-key": ("client.cli:api_key", "Make, list and revoke credentials for programs."),
    "ticket": ("client.cli:ticket", "Print a ticket that opens one WebSocket, as a page in a browser needs it."),
    "key": ("client.cli:key", "Make, link, list, verify and revoke keys."),
    "group": ("client.cli:group", "Make groups and say who is in them."),
    "post": ("client.cli:post", "Write, list, read and delete posts."),
    "file": ("client.cli:file", "Send and fetch files, and make links to them for anybody."),
    "ask": ("client.cli:ask", "Ask to read POST, which was made before you joined."),
    "requests": ("client.cli:requests", "See and decide who asks to read."),
    "usage": ("client.cli:usage", "Show what you did today and in the last 30 days, and what you may do a day."),
    "tail": ("client.cli:tail", "Follow what happens: who asks, what is decided, new posts."),
    "demo": (
        "client.cli:demo",
        "Play the whole story against a running server, with three new accounts, and check each step.",
    ),
    "completion": (
        "client.completion:completion",
        "Print what makes SHELL complete verbs and options: bash, zsh or fish.",
    ),
}
PANELS = {
    "Server": ["up", "api", "migrate", "doctor", "admin", "audit", "requeue", "secrets", "dashboard-link"],
    "Worker": ["worker", "jobs", "workers"],
    "Client": [name for name, (place, _) in ELSEWHERE.items() if place.startswith("client.")],
}


class Elsewhere(click.RichCommand):
    """Stands for a verb in lists of verbs; the real one is loaded when it is called."""

    def load(self) -> click.Command:
        module, attribute = ELSEWHERE[self.name or ""][0].split(":")
        with lasting():
            command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


class Verbs(click.RichGroup):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Elsewhere) else command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            if not isinstance(error, foreseen()):
                raise
            sys.exit(f"secureblogs: {error}")


def foreseen() -> tuple[type[Exception], ...]:
    """What is told in one line, because it says all there is to know."""
    from server.embedded import EmbeddedError
    from server.settings import SettingsError
    from server.up import UpError

    return EmbeddedError, SettingsError, UpError


def panels(group: Callable[..., Any]) -> Callable[..., Any]:
    for title, names in reversed(PANELS.items()):
        group = click.command_panel(title, commands=names)(group)
    return group


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="secureblogs", message="%(package)s %(version)s")
@click.option("--lifeline", type=int, hidden=True, help="A pipe that closes when the parent dies.")
@panels
def cli(lifeline: int | None) -> None:
    """Private posts for a group, on a server that can't read them."""
    if lifeline is not None:
        from server.supervisor import follow_parent

        follow_parent(lifeline)


for verb, (_, summary) in ELSEWHERE.items():
    cli.add_command(Elsewhere(name=verb, help=summary))


@cli.command()
@click.option("--reload", is_flag=True, help="Start API and worker anew when their source changes.")
def up(reload: bool) -> None:
    """Run everything: engines, migrations, API, worker.

    Without DATABASE_URL and REDIS_URL it brings its own Postgres and Valkey, which keep their data in DATA_DIR.
    """
    from server import coredumps, logs
    from server.up import up as run

    coredumps.forbid()
    settings = load_settings()
    logs.configure(settings.log_level, settings.log_format)
    run(settings, os.environ, reload)


@cli.command()
@click.option("--host", help="Address to listen on.  [default: HOST]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: PORT]")
def api(host: str | None, port: int | None) -> None:
    """Serve the API. Start as many as you like, on one Postgres and Redis."""
    with lasting():
        import msgspec

        from server import coredumps, logs
        from server.serving import make_server
        from server.up import check_port

    coredumps.forbid()
    settings = load_settings(attached=True)
    # It must not be able to open drafts, even if the environment is shared with a worker.
    settings = msgspec.structs.replace(
        settings, host=host or settings.host, port=port or settings.port, worker_private_keys=()
    )
    logs.configure(settings.log_level, settings.log_format)
    with lasting():
        server = make_server(settings)
    check_port(settings.host, settings.port)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(3)


@cli.command()
def migrate() -> None:
    """Bring the database's tables up to date. Several at once do no harm."""
    with lasting():
        from server import database

    settings = load_settings(attached=True)
    said = io.StringIO()
    try:
        # Piccolo tells of each step in a way of its own; it is of interest only when one fails.
        with contextlib.redirect_stdout(said):
            asyncio.run(database.migrate(settings.database_url or ""))
    except database.UNAVAILABLE as error:
        sys.exit(f"secureblogs: {NO_ANSWER.format(error)}")
    except BaseException:
        click.echo(said.getvalue(), err=True)
        raise
    click.echo("secureblogs: the database is up to date")


@cli.command()
def doctor() -> None:
    """Check settings, Postgres, Redis, migrations and workers, and say what to do."""
    from server.doctor import examine

    findings = asyncio.run(examine(load_settings(attached=True)))
    for finding in findings:
        click.echo(finding)
    if any(finding.advice for finding in findings):
        sys.exit(1)


@cli.group()
def admin() -> None:
    """Administrators of this server, and the accounts that they shut. EMAIL_OR_ID names an account."""


@admin.command()
@click.argument("email_or_id")
def grant(email_or_id: str) -> None:
    """Make an account an administrator."""
    from server import administration

    row = administer(administration.grant, email_or_id)
    click.echo(f"{account_name(row)} is an administrator.")


@admin.command()
@click.argument("email_or_id")
def revoke(email_or_id: str) -> None:
    """Make an administrator an ordinary user. The last one may go too: `admin grant` makes another."""
    from server import administration

    row = administer(administration.revoke, email_or_id)
    click.echo(f"{account_name(row)} is no administrator.")


@admin.command("list")
def list_admins() -> None:
    """List the administrators."""
    from server import administration

    for row in asyncio.run(with_database(administration.list_admins)):
        click.echo(f"{row['id']}  {account_name(row)}{'  (disabled)' if row['disabled_at'] else ''}")


@admin.command()
@click.argument("email_or_id")
def disable(email_or_id: str) -> None:
    """Shut an account: its tokens end for good, its WebSockets within seconds, and nothing is sealed to it any more."""
    from server import administration

    # Whoever sweeps announces what was cancelled.
    row, _ = administer(administration.disable, email_or_id)
    click.echo(f"{account_name(row)} is disabled.")


@admin.command()
@click.argument("email_or_id")
def enable(email_or_id: str) -> None:
    """Open an account again. Its user has to log in anew."""
    from server import administration

    row = administer(administration.enable, email_or_id)
    click.echo(f"{account_name(row)} is enabled.")


def administer(act: Callable[[UUID | None, UUID], Awaitable[Result]], email_or_id: str) -> Result:
    from server import administration
    from server.errors import UserNotFound

    async def find_and_act() -> Result:
        return await act(None, await administration.find(email_or_id))

    try:
        return asyncio.run(with_database(find_and_act))
    except UserNotFound:
        sys.exit(f"secureblogs: no account has the address or id {email_or_id}")


def account_name(row: Any) -> str:
    # A subject is whatever an issuer says, and a terminal obeys more than letters.
    name = row["email"] or f"{row['subject']} of {row['issuer']}"
    return "".join(character if character.isprintable() else "?" for character in name)


@cli.group("audit")
def audit_log() -> None:
    """The log of who did what."""


@audit_log.command()
@click.option("--head", "kept", metavar="POSITION:HASH", help="A head of before, which the log must still contain.")
def verify(kept: str | None) -> None:
    """Check that no entry of the audit log was changed, taken out or put in.

    That the last ones were cut off shows only against a head that was kept elsewhere.
    """
    from server import audit

    try:
        head = audit.read_head(kept) if kept is not None else None
    except ValueError:
        raise click.UsageError("--head is what this verb printed before: POSITION:HASH") from None

    async def place_and_verify() -> audit.Verdict:
        await audit.place()
        return await audit.verify(head)

    verdict = asyncio.run(with_database(place_and_verify))
    click.echo(f"{verdict.head.position} entries are as they were written.")
    click.echo(f"Head: {verdict.head}")
    if verdict.fault:
        sys.exit(f"secureblogs: entry {verdict.fault.position} {verdict.fault.what}")


@cli.command()
@click.argument("post_ids", metavar="[POST_ID]...", nargs=-1, type=click.UUID)
@click.option("--failed", is_flag=True, help="All posts that failed.")
def requeue(post_ids: tuple[UUID, ...], failed: bool) -> None:
    """Have failed posts sealed after all, once what they failed by is mended."""
    from server import posts

    if failed == bool(post_ids):
        raise click.UsageError("name the posts, or say --failed")
    pending = asyncio.run(with_database(functools.partial(posts.requeue_failed, None if failed else post_ids)))
    for post_id in pending:
        click.echo(post_id)
    # Whoever sweeps puts them on the queue; there is nothing that could be lost in between.
    click.echo(f"{len(pending)} posts are pending again and will be sealed within seconds.", err=True)
    if others := len(set(post_ids) - set(pending)):
        sys.exit(f"secureblogs: {others} of them are unknown or have not failed")


@cli.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def secrets(folder: Path) -> None:
    """Make the secrets of a set-up of your own, as files in FOLDER.

    They are for WORKER_PUBLIC_KEY_FILE, WORKER_PRIVATE_KEYS_FILE and REQUEST_MAC_KEY_FILE. What is there stays.
    """
    from server.up import write_all_secrets

    for path in write_all_secrets(folder):
        click.echo(path)


def load_settings(attached: bool = False) -> "Settings":
    """The settings; `attached` to the engines that `up` runs, if no addresses are given."""
    from server.settings import load
    from server.up import attach

    settings = load(os.environ)
    return attach(settings) if attached else settings


async def with_database(act: Callable[[], Awaitable[Result]]) -> Result:
    from server import database

    settings = load_settings(attached=True)
    try:
        async with database.open_pool(settings.database_url or "", 1):
            return await act()
    except database.UNAVAILABLE as error:
        sys.exit(f"secureblogs: {NO_ANSWER.format(error)}")


def main() -> None:
    cli(prog_name="secureblogs")


if __name__ == "__main__":
    main()
