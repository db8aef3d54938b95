"""sign-up, login, logout, whoami."""

import contextlib

import rich_click as click

from client import prompts
from client.api import Client
from client.commands import connected, json_option, verb
from client.errors import ClientError, NoCredential, Unauthenticated
from client.models import Token, User
from client.profile import Profile, Session
from client.terminal import line, say, show_fields, show_json, when

password_stdin_option = click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")


@click.command("sign-up")
@click.argument("email", required=False)
@click.option("--name", help="The name that others see.")
@password_stdin_option
@json_option
@verb
async def sign_up(profile: Profile, email: str | None, name: str | None, password_stdin: bool, as_json: bool) -> None:
    """Make an account and be logged in to it. What is not given is asked for: EMAIL, name and password.

    The password may also come from SECUREBLOGS_PASSWORD or standard input.

    \b
    secureblogs sign-up alice@example.org --name Alice
    secureblogs sign-up alice@example.org --password-stdin < password.txt
    """
    email = email or prompts.address()
    _refuse_other_user(profile, email)
    name = name or prompts.name()
    password = prompts.password(email, from_stdin=password_stdin, is_new=True)
    async with Client(profile.server()) as client:
        user = await client.sign_up(name, email, password)
        remember(profile, client, user, user.token, email)
    if as_json:
        show_json({"id": user.id, "name": user.name, "email": user.email, "server": client.address})
        return
    say(f"Welcome, {line(user.name)}. Your id is {user.id}.")
    say("Next, make the key that posts are sealed to: secureblogs key new")


@click.command()
@click.argument("email", required=False)
@password_stdin_option
@json_option
@verb
async def login(profile: Profile, email: str | None, password_stdin: bool, as_json: bool) -> None:
    """Log in. Without EMAIL, as the last user of this profile.

    \b
    secureblogs login alice@example.org
    secureblogs login alice@example.org --profile work --server https://posts.example.org
    """
    session = profile.session()
    email = email or (session.email if session else None)
    if email is None:
        raise click.UsageError("Nobody has logged in with this profile yet: give EMAIL.")
    _refuse_other_user(profile, email)
    password = prompts.password(email, from_stdin=password_stdin)
    async with Client(profile.server()) as client:
        try:
            user = await log_in(profile, client, email, password)
        except Unauthenticated:
            raise NoCredential("no account has this address and this password") from None
    if as_json:
        show_json({"id": user.id, "name": user.name, "email": user.email, "server": client.address})
        return
    say(f"Logged in to {line(client.address)} as {line(user.name)}.")


@click.command()
@verb
async def logout(profile: Profile) -> None:
    """End the session. Keys stay where they are.

    \b
    secureblogs logout
    secureblogs logout --profile work
    """
    async with connected(profile) as (client, _):
        # A session that has ended already is only left to be forgotten here.
        with contextlib.suppress(Unauthenticated):
            await client.logout()
    profile.change_session(token=None, token_expires=None)
    say("Logged out.")


@click.command()
@json_option
@verb
async def whoami(profile: Profile, as_json: bool) -> None:
    """Show who is logged in, where, and until when.

    \b
    secureblogs whoami
    secureblogs whoami --json
    """
    async with connected(profile) as (client, session):
        user = await client.me()
    if as_json:
        show_json(
            {
                "id": user.id,
                "name": user.name,
                "email": user.email,
                "created_at": user.created_at,
                "is_admin": user.is_admin,
                "server": session.server,
                "profile": profile.name,
                "credential": profile.credential,
                "session_ends": session.token_expires,
                "key_id": session.key_id,
                "fingerprint": session.fingerprint,
            }
        )
        return
    show_fields(
        [
            ("name", user.name),
            ("email", user.email),
            ("id", user.id),
            ("server", session.server),
            ("profile", profile.name),
            _until(profile, session),
            ("key", session.key_id or "none on this machine: secureblogs key new"),
            ("fingerprint", session.fingerprint),
        ]
    )


def _until(profile: Profile, session: Session) -> tuple[str, str]:
    """How long this lasts, as far as it is known here."""
    if profile.given_token is None:
        return "session until", when(session.token_expires)
    kinds = {"session": "a session", "api_key": "an API key", "jwt": "a JWT"}
    return "credential", f"{kinds[profile.credential]}, from SECUREBLOGS_TOKEN"


async def log_in(profile: Profile, client: Client, email: str, password: str) -> User:
    """Log in and remember the session in the profile."""
    answer = await client.login(email, password)
    remember(profile, client, answer.user, answer.token, email)
    return answer.user


def remember(profile: Profile, client: Client, user: User, token: Token, email: str) -> None:
    before = profile.session()
    is_same = before is not None and before.user_id == user.id
    profile.save_session(
        Session(
            server=client.address,
            user_id=user.id,
            email=user.email or email,
            name=user.name,
            token=token.token,
            token_expires=token.expires,
            key_id=before.key_id if before and is_same else None,
            fingerprint=before.fingerprint if before and is_same else None,
            since=before.since if before and is_same else None,
        )
    )


def _refuse_other_user(profile: Profile, email: str) -> None:
    session = profile.session()
    if session and session.token and session.email.casefold() != email.strip().casefold():
        raise ClientError(
            f"profile {profile.name} is logged in as {session.email}: log out first, or take another one (--profile)"
        )
