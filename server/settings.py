"""All settings, read once from the environment.

Each field of `Settings` is the environment variable of the same name in capitals. Its type, bounds, default and
description stand in one place, here: `load` reads by them, and `table` prints them for the README.
A variable that is set to nothing counts as not set, because that is what compose files hand on.
"""

import base64
import binascii
import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta


class SettingsError(Exception):
    """One line that names the variable and what is wrong with it, never the value of a secret."""


LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]

# Text that came from the outside is read by the kind of its field; plain types need no kind. All keys count as secret,
# the public one too: whoever mixes up the two halves should not find the private one in a log.
PostgresUrl = Annotated[str | None, Meta(extra={"kind": "postgres_url", "secret": True})]
RedisUrl = Annotated[str | None, Meta(extra={"kind": "redis_url", "secret": True})]
Origin = Annotated[str, Meta(extra={"kind": "origin"})]
Origins = Annotated[tuple[str, ...], Meta(extra={"kind": "origins"})]
Networks = Annotated[tuple[str, ...], Meta(extra={"kind": "networks"})]
Key = Annotated[bytes | None, Meta(extra={"kind": "key", "secret": True})]
Keys = Annotated[tuple[bytes, ...], Meta(extra={"kind": "keys", "secret": True})]
TextSecret = Annotated[bytes | None, Meta(extra={"kind": "text_secret", "secret": True})]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process was told. `load` is the way to get one; tests may build theirs with `msgspec.structs.replace`."""

    database_url: Annotated[
        PostgresUrl, Meta(description="`postgresql://…` of your own Postgres 18. Together with `REDIS_URL`, or neither")
    ] = None
    redis_url: Annotated[
        RedisUrl, Meta(description="`redis://…`, `rediss://…` or `unix://…` of your own Valkey or Redis")
    ] = None
    data_dir: Annotated[
        Path, Meta(description="Where the embedded engines and the generated secrets live when no address is given")
    ] = Path(".data")
    host: Annotated[str, Meta(description="Address that the API listens on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535, description="Port that the API listens on")] = 8000
    public_url: Annotated[
        Origin, Meta(description="Where people reach the server: in links, and allowed as a WebSocket `Origin`")
    ] = ""
    allowed_origins: Annotated[
        Origins, Meta(description="Further `Origin`s that may open a WebSocket, separated by commas")
    ] = ()
    allow_query_token: Annotated[
        bool, Meta(description="Accept `?token=` on the WebSocket. Addresses end up in logs of proxies: leave it off")
    ] = False
    trusted_proxies: Annotated[
        Networks,
        Meta(description="Addresses or networks whose `X-Forwarded-For` and `-Proto` are believed, with commas"),
    ] = ()
    worker_public_key: Annotated[
        Key, Meta(description="X25519 public key that drafts are sealed to; for the API. 32 bytes in base64")
    ] = None
    worker_private_keys: Annotated[
        Keys, Meta(description="Private halves, the current one first, with commas; for the workers alone")
    ] = ()
    request_mac_key: Annotated[
        Key, Meta(description="Secret of the API that tells a repeated request from another. 32 bytes in base64")
    ] = None
    jwt_secret_key: Annotated[
        TextSecret, Meta(description="Secret that an external issuer signs its JWTs with, HS256; 32 bytes or more")
    ] = None
    jwt_jwks_file: Annotated[
        Path | None,
        Meta(
            extra={"kind": "path"},
            description="In its place a JWK Set of the issuer's public keys, for RS256 and ES256",
        ),
    ] = None
    jwt_issuer: Annotated[
        str | None,
        Meta(extra={"kind": "text"}, description="The `iss` of its JWTs, such as `https://….supabase.co/auth/v1`"),
    ] = None
    jwt_audience: Annotated[str, Meta(description="The `aud` that its JWTs must have")] = "authenticated"
    rate_limits: Annotated[bool, Meta(description="`off` for tests and benchmarks only")] = True
    login_rate_per_minute: Annotated[
        int, Meta(ge=1, description="Logins and sign-ups a minute, per address and per email")
    ] = 10
    request_read_rate_per_hour: Annotated[int, Meta(ge=1, description="Read requests an hour, per user")] = 60
    rate_per_minute: Annotated[int, Meta(ge=1, description="All other calls a minute, per user")] = 1200
    quota_requests: Annotated[int, Meta(ge=0, description="Calls a day (of UTC), per user; 0 for any number")] = 0
    quota_posts: Annotated[int, Meta(ge=0, description="Posts a day, per user; 0 for any number")] = 0
    quota_upload_bytes: Annotated[
        int, Meta(ge=0, description="Bytes a day that a user may upload; 0 for any number")
    ] = 0
    root_path: Annotated[
        str,
        Meta(description="Path under which a proxy shows the API, such as `/posts`", extra={"kind": "path_prefix"}),
    ] = ""
    metrics_token: Annotated[
        str | None,
        Meta(
            description="Bearer that opens `/metrics`, 32 characters or more; where it is not set, nothing does",
            extra={"kind": "token", "secret": True},
        ),
    ] = None
    log_format: Annotated[
        LogFormat, Meta(description="`json`, `console`, or `auto`: console on a terminal, JSON elsewhere")
    ] = "auto"
    log_level: Annotated[LogLevel, Meta(description="`debug`, `info`, `warning` or `error`")] = "info"
    database_pool_size: Annotated[
        int, Meta(ge=2, le=1000, description="Connections to Postgres that a process may hold")
    ] = 10
    session_days: Annotated[int, Meta(ge=1, le=365, description="How long a login lasts")] = 14
    worker_jobs: Annotated[int, Meta(ge=1, le=1000, description="Jobs that a worker has in hand at once")] = 30
    worker_threads: Annotated[
        int, Meta(ge=0, le=1024, description="Threads that a worker seals keys with; 0 for one a core")
    ] = 0
    dashboard_jobs: Annotated[
        int, Meta(ge=10, le=1_000_000, description="Ended jobs that the dashboard remembers, of each kind of end")
    ] = 10_000
    dashboard_days: Annotated[int, Meta(ge=1, le=365, description="For how many days it remembers them")] = 7
    dashboard_read_only: Annotated[bool, Meta(description="Let the dashboard show, and change nothing")] = False
    object_store_url: Annotated[
        str | None,
        Meta(
            description="Where sealed files lie: `file:///…`, `s3://bucket/path`, `gs://…`, `az://…`, `memory:///`;"
            " not set, the folder `objects` in `DATA_DIR`",
            extra={"kind": "store_url"},
        ),
    ] = None
    max_attachment_bytes: Annotated[int, Meta(ge=1, le=64 * 1024**3, description="Size of a file")] = 1024**3
    max_body_bytes: Annotated[int, Meta(ge=1024, description="Size of a JSON body")] = 1024 * 1024
    max_name_characters: Annotated[int, Meta(ge=1, le=100, description="Length of a name, a label, a group's name")] = (
        100
    )
    max_email_characters: Annotated[int, Meta(ge=3, le=254, description="Length of an email address")] = 254
    min_password_characters: Annotated[int, Meta(ge=8, le=64, description="Least length of a password")] = 8
    max_password_characters: Annotated[int, Meta(ge=64, le=1024, description="Greatest length of a password")] = 1024
    max_title_characters: Annotated[int, Meta(ge=1, le=200, description="Length of a post's title")] = 200
    max_content_bytes: Annotated[int, Meta(ge=1, le=256 * 1024, description="Size of a post's text in UTF-8")] = (
        256 * 1024
    )
    max_attachments: Annotated[int, Meta(ge=0, le=20, description="Attachments of a post")] = 20
    max_keys_per_user: Annotated[int, Meta(ge=1, description="Active keys of a user")] = 16
    max_members_per_group: Annotated[int, Meta(ge=1, description="Members of a group")] = 100_000
    max_groups_per_user: Annotated[int, Meta(ge=1, description="Groups that a user may be in")] = 1000
    max_tokens_per_user: Annotated[int, Meta(ge=1, description="Live sessions and API keys of a user")] = 100
    max_sockets_per_user: Annotated[int, Meta(ge=1, description="Open WebSockets of a user")] = 20

    def __repr__(self) -> str:
        shown = (f"{field.attribute}={getattr(self, field.attribute)!r}" for field in FIELDS if not field.secret)
        return f"Settings({', '.join(shown)})"


# Variables of the command line client, which may well be set where a server starts.
CLIENT_VARIABLES = frozenset(
    f"SECUREBLOGS_{name}"
    for name in ("PROFILE", "SERVER", "TOKEN", "PASSWORD", "PASSPHRASE", "PASSPHRASE_FILE", "KEYRING")
)


class Field(NamedTuple):
    """One setting as `load` and `table` see it."""

    attribute: str
    type: Any
    default: Any
    description: str
    bounds: Meta
    kind: str | None
    secret: bool

    @property
    def variable(self) -> str:
        return self.attribute.upper()


def load(environ: Mapping[str, str]) -> Settings:
    """Read and check all settings.

    Raises SettingsError for a value that is out of bounds or of the wrong form, for a secret that is given twice
    or whose file can't be read, and for a variable that looks like a slip of the pen.
    """
    refuse_misspelt(environ)
    values = {
        field.attribute: parse(field, text) for field in FIELDS if (text := read_text(environ, field)) is not None
    }
    if ("database_url" in values) != ("redis_url" in values):
        given, missing = sorted(("DATABASE_URL", "REDIS_URL"), key=lambda name: name.lower() not in values)
        raise SettingsError(f"{missing}: not set, but {given} is; set both to use your own, or neither to embed them")
    settings = Settings(**values)
    try:
        data_dir = settings.data_dir.expanduser().absolute()
    except RuntimeError:
        raise SettingsError("DATA_DIR: names the home of somebody who has none") from None
    return msgspec.structs.replace(settings, data_dir=data_dir, public_url=settings.public_url or origin(settings))


def origin(settings: Settings) -> str:
    """Where the API answers when nobody said how people reach it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def table() -> str:
    """The settings as a Markdown table, the one that the README shows."""
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    for field in FIELDS:
        name = f"`{field.variable}`" + (f", `{field.variable}_FILE`" if field.secret else "")
        rows.append(f"| {name} | {show_default(field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def show_default(field: Field) -> str:
    if field.attribute == "public_url":
        return "`http://HOST:PORT`"
    if field.default is None or field.default == ():
        return ""
    if isinstance(field.default, bool):
        return "`on`" if field.default else "`off`"
    return f"`{field.default}`"


def refuse_misspelt(environ: Mapping[str, str]) -> None:
    """A misspelt variable would be ignored in silence and its default taken: a quota, or a key, that never was."""
    known = {name for field in FIELDS for name in (field.variable, f"{field.variable}_FILE") if accepts(field, name)}
    for name in environ:
        if name in known or name in CLIENT_VARIABLES:
            continue
        # Short names such as PORT have honest neighbours everywhere, so only long ones are compared.
        near = difflib.get_close_matches(name, [word for word in known if len(word) >= 8], n=1, cutoff=0.85)
        if near and abs(len(near[0]) - len(name)) <= 1:
            raise SettingsError(f"{name}: no such setting; {near[0]} is meant?")
        if name.startswith("SECUREBLOGS_"):
            raise SettingsError(f"{name}: no such setting")


def accepts(field: Field, name: str) -> bool:
    return name == field.variable or field.secret


def read_text(environ: Mapping[str, str], field: Field) -> str | None:
    """The variable's text, or that of the file it names; None if neither is set."""
    text = environ.get(field.variable) or None
    path = environ.get(f"{field.variable}_FILE") if field.secret else None
    if not path:
        return text
    if text is not None:
        raise SettingsError(f"{field.variable}: given twice, by value and by {field.variable}_FILE")
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingsError(f"{field.variable}_FILE: can't read {path}: {reason}") from None
    if not text:
        raise SettingsError(f"{field.variable}_FILE: {path} is empty")
    return text


def parse(field: Field, text: str) -> Any:
    """The value that the text stands for; SettingsError, with the text unless it is a secret, if it stands for none."""
    try:
        return parser(field)(field, text)
    except ValueError as error:
        got = "" if field.secret else f", got {text!r}"
        raise SettingsError(f"{field.variable}: {error}{got}") from None


def parser(field: Field) -> Callable[[Field, str], Any]:
    if field.kind:
        return KINDS[field.kind]
    return parse_choice if get_origin(field.type) is Literal else TYPES[field.type]


def parse_str(_field: Field, text: str) -> str:
    return text


def parse_path(_field: Field, text: str) -> Path:
    return Path(text)


def parse_bool(_field: Field, text: str) -> bool:
    words = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise ValueError("must be on or off")
    return words[text.lower()]


def parse_int(field: Field, text: str) -> int:
    least, greatest = field.bounds.ge, field.bounds.le
    span = f"a whole number from {least} to {greatest}" if greatest is not None else f"a whole number from {least} up"
    # isdecimal and isascii: int() would also take "1_000", "+5" and digits of other scripts.
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ValueError(f"must be {span}")
    number = int(text)
    if (least is not None and number < least) or (greatest is not None and number > greatest):
        raise ValueError(f"must be {span}")
    return number


def parse_choice(field: Field, text: str) -> str:
    if text.lower() not in get_args(field.type):
        raise ValueError(f"must be one of {', '.join(get_args(field.type))}")
    return text.lower()


def parse_postgres_url(_field: Field, text: str) -> str:
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    return text


def parse_redis_url(_field: Field, text: str) -> str:
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return text


def parse_origin(_field: Field, text: str) -> str:
    """`https://host[:port]` as browsers write it in `Origin`: lower case, no default port, no path."""
    form = ValueError("must look like https://host or https://host:port, and no more")
    try:
        parts = urlsplit(text.removesuffix("/"))
        host, port = parts.hostname, parts.port
    except ValueError:  # brackets that don't match, a port that is no number
        raise form from None
    beyond = parts.path or parts.query or parts.fragment or parts.username is not None
    if parts.scheme not in {"http", "https"} or not host or beyond:
        raise form
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")


def parse_origins(field: Field, text: str) -> tuple[str, ...]:
    return tuple(parse_origin(field, item) for item in split(text))


def parse_networks(_field: Field, text: str) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(item, strict=False)) for item in split(text))
    except ValueError:
        raise ValueError("must be IP addresses or networks such as 10.0.0.0/8") from None


def parse_key(_field: Field, text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be 32 bytes in base64") from None
    if len(key) != 32 or base64.b64encode(key).decode() != text:
        raise ValueError("must be 32 bytes in base64")
    return key


def parse_text_secret(_field: Field, text: str) -> bytes:
    """The text itself in UTF-8, base64 or not, as Supabase and others take it."""
    try:
        secret = text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8") from None
    if len(secret) < 32:
        raise ValueError("must be 32 bytes or more")
    return secret


def parse_keys(field: Field, text: str) -> tuple[bytes, ...]:
    return tuple(parse_key(field, item) for item in split(text))


def split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def parse_path_prefix(_field: Field, text: str) -> str:
    """`/posts`, without the slash at its end that some write."""
    prefix = text.rstrip("/")
    if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
        raise ValueError("must look like /posts")
    return prefix


def parse_store_url(_field: Field, text: str) -> str:
    if urlsplit(text).scheme not in {"file", "memory", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss"}:
        raise ValueError("must begin with file://, s3://, gs://, az:// or memory://")
    return text


def parse_token(_field: Field, text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{32,}", text):
        raise ValueError("must be 32 or more printable ASCII characters, without spaces")
    return text


KINDS: dict[str, Callable[[Field, str], Any]] = {
    "postgres_url": parse_postgres_url,
    "redis_url": parse_redis_url,
    "origin": parse_origin,
    "origins": parse_origins,
    "networks": parse_networks,
    "key": parse_key,
    "keys": parse_keys,
    "text": parse_str,
    "path": parse_path,
    "text_secret": parse_text_secret,
    "path_prefix": parse_path_prefix,
    "token": parse_token,
    "store_url": parse_store_url,
}
TYPES: dict[type, Callable[[Field, str], Any]] = {str: parse_str, Path: parse_path, bool: parse_bool, int: parse_int}


def describe(struct: type[Settings]) -> tuple[Field, ...]:
    """The struct's fields with what their annotations say."""
    hints = get_type_hints(struct, include_extras=True)
    defaults = {field.name: field.default for field in msgspec.structs.fields(struct)}
    fields = []
    for attribute, hint in hints.items():
        kind, *metas = get_args(hint)  # nested Annotated is flattened: the alias' Meta comes first, the field's last
        extra = {name: value for meta in metas for name, value in (meta.extra or {}).items()}
        fields.append(
            Field(
                attribute=attribute,
                type=kind,
                default=defaults[attribute],
                description=metas[-1].description or "",
                bounds=metas[-1],
                kind=extra.get("kind"),
                secret=extra.get("secret", False),
            )
        )
    return tuple(fields)


FIELDS = describe(Settings)
