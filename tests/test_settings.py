import base64
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import settings as settings_module
from server.settings import CLIENT_VARIABLES, FIELDS, Settings, SettingsError, load, table

ROOT = Path(__file__).parent.parent
KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(range(1, 33))).decode()
SECRETS = [field.variable for field in FIELDS if field.secret]


def refusal(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(environ)
    return str(caught.value)


def test_nothing_has_to_be_set() -> None:
    settings = load({"PATH": "/bin", "HOME": "/root", "HOSTNAME": "box", "XDG_DATA_DIRS": "/usr/share"})
    assert settings.database_url is None
    assert settings.redis_url is None
    assert (settings.host, settings.port, settings.public_url) == ("127.0.0.1", 8000, "http://127.0.0.1:8000")
    assert settings.rate_limits
    assert not settings.allow_query_token


def test_every_kind_of_value_is_read() -> None:
    settings = load(
        {
            "DATABASE_URL": "postgresql://u:p@db/secureblogs",
            "REDIS_URL": "rediss://cache",
            "DATA_DIR": "/srv/data",
            "PORT": "9000",
            "PUBLIC_URL": "https://Posts.Example:443/",
            "ALLOWED_ORIGINS": "https://a.example, http://b.example:8080",
            "ALLOW_QUERY_TOKEN": "true",
            "TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1",
            "WORKER_PUBLIC_KEY": KEY,
            "WORKER_PRIVATE_KEYS": f"{KEY},{OTHER_KEY}",
            "REQUEST_MAC_KEY": OTHER_KEY,
            "RATE_LIMITS": "off",
            "LOG_LEVEL": "WARNING",
        }
    )
    assert settings == Settings(
        database_url="postgresql://u:p@db/secureblogs",
        redis_url="rediss://cache",
        data_dir=Path("/srv/data"),
        port=9000,
        public_url="https://posts.example",
        allowed_origins=("https://a.example", "http://b.example:8080"),
        allow_query_token=True,
        trusted_proxies=("10.0.0.0/8", "127.0.0.1/32"),
        worker_public_key=bytes(range(32)),
        worker_private_keys=(bytes(range(32)), bytes(range(1, 33))),
        request_mac_key=bytes(range(1, 33)),
        rate_limits=False,
        log_level="warning",
    )


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000"), ("posts.lan", "http://posts.lan:8000")],
)
def test_public_url_follows_from_host_and_port(host: str, url: str) -> None:
    assert load({"HOST": host}).public_url == url


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("PORT", "0", "must be a whole number from 1 to 65535, got '0'"),
        ("PORT", "65536", "must be a whole number from 1 to 65535, got '65536'"),
        ("PORT", "8_000", "must be a whole number from 1 to 65535, got '8_000'"),
        ("PORT", "-1", "must be a whole number from 1 to 65535, got '-1'"),
        ("PORT", "٨٠", "must be a whole number from 1 to 65535, got '٨٠'"),
        ("MAX_KEYS_PER_USER", "none", "must be a whole number from 1 up, got 'none'"),
        ("RATE_LIMITS", "maybe", "must be on or off, got 'maybe'"),
        ("LOG_LEVEL", "loud", "must be one of debug, info, warning, error, got 'loud'"),
        ("PUBLIC_URL", "posts.example", "must look like https://host"),
        ("PUBLIC_URL", "https://posts.example/path", "must look like https://host"),
        ("PUBLIC_URL", "https://posts.example:port", "must look like https://host"),
        ("PUBLIC_URL", "https://[::1", "must look like https://host"),
        ("ALLOWED_ORIGINS", "https://a.example,*", "must look like https://host"),
        ("TRUSTED_PROXIES", "proxy", "must be IP addresses or networks such as 10.0.0.0/8, got 'proxy'"),
    ],
)
def test_bad_value_is_refused_with_name_and_reason(variable: str, text: str, reason: str) -> None:
    assert refusal(**{variable: text}).startswith(f"{variable}: {reason}")


@pytest.mark.parametrize("variable", SECRETS)
@pytest.mark.parametrize("text", ["hunter2", "hunter2,hunter2", "mysql://me:hunter2@db", "hunter2 hunter2"])
def test_bad_secret_is_refused_without_telling_it(variable: str, text: str) -> None:
    said = refusal(**{variable: text})
    assert said.startswith(f"{variable}: must ")
    assert "hunter2" not in said


@pytest.mark.parametrize("text", [KEY[:-1], KEY + "=", KEY.rstrip("="), f" {KEY}", KEY[:-2] + "9=", "", "AAAA"])
def test_key_is_32_bytes_in_canonical_base64(text: str) -> None:
    if text:
        assert refusal(REQUEST_MAC_KEY=text) == "REQUEST_MAC_KEY: must be 32 bytes in base64"
    else:
        assert load({"REQUEST_MAC_KEY": text}).request_mac_key is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DATABASE_URI", "DATABASE_URL"),
        ("REDIS_URI", "REDIS_URL"),
        ("WORKER_PRIVATE_KEY", "WORKER_PRIVATE_KEYS"),
        ("WORKER_PUBLIC_KEYS", "WORKER_PUBLIC_KEY"),
        ("RATE_LIMIT", "RATE_LIMITS"),
        ("REQUEST_MAC_KEY_FIL", "REQUEST_MAC_KEY_FILE"),
        ("MAX_GROUP_PER_USER", "MAX_GROUPS_PER_USER"),
    ],
)
def test_misspelt_name_is_refused(name: str, meant: str) -> None:
    assert refusal(**{name: "x"}) == f"{name}: no such setting; {meant} is meant?"


def test_unknown_name_of_our_own_is_refused() -> None:
    assert refusal(SECUREBLOGS_PORT="8000") == "SECUREBLOGS_PORT: no such setting"


def test_variables_of_the_client_are_let_be() -> None:
    used = {
        name
        for path in (ROOT / "client").glob("*.py")
        for name in re.findall(r"\bSECUREBLOGS_[A-Z_]+", path.read_text(encoding="utf-8"))
    }
    assert used == CLIENT_VARIABLES
    load(dict.fromkeys(used, "x"))


def test_variables_of_others_are_let_be() -> None:
    load({"HOSTS": "x", "PORTS": "x", "DATABASE_URL_REPLICA": "x", "PGPORT": "x", "LOGLEVEL_X": "x"})


def test_addresses_are_set_both_or_neither() -> None:
    assert refusal(DATABASE_URL="postgresql://db/x").startswith("REDIS_URL: not set, but DATABASE_URL is")
    assert refusal(REDIS_URL="redis://cache").startswith("DATABASE_URL: not set, but REDIS_URL is")


def test_secret_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert load({"REQUEST_MAC_KEY_FILE": str(file)}).request_mac_key == bytes(range(32))


@pytest.mark.parametrize("variable", SECRETS)
def test_bad_file_of_a_secret_is_refused(variable: str, tmp_path: Path) -> None:
    missing, empty, binary = tmp_path / "missing", tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    name = f"{variable}_FILE"
    assert refusal(**{name: str(missing)}) == f"{name}: can't read {missing}: No such file or directory"
    assert refusal(**{name: str(tmp_path)}) == f"{name}: can't read {tmp_path}: Is a directory"
    assert refusal(**{name: str(empty)}) == f"{name}: {empty} is empty"
    assert refusal(**{name: str(binary)}) == f"{name}: can't read {binary}: not UTF-8"
    assert refusal(**{name: str(empty), variable: "x"}) == f"{variable}: given twice, by value and by {name}"


def test_plain_setting_comes_from_no_file() -> None:
    assert load({"PORT_FILE": "/nonexistent"}).port == 8000


def test_variable_that_is_set_to_nothing_is_not_set() -> None:
    environ = {field.variable: "" for field in FIELDS} | {f"{name}_FILE": "" for name in SECRETS}
    assert load(environ) == load({})


@given(st.sampled_from(FIELDS), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_is_read_or_refused(field: settings_module.Field, text: str) -> None:
    try:
        load({field.variable: text})
    except SettingsError as error:
        told = str(error)
    else:
        told = f"{field.variable}: "
    assert told.startswith((f"{field.variable}: ", "REDIS_URL: ", "DATABASE_URL: "))


ISSUER = "https://project.supabase.co/auth/v1"


@pytest.mark.parametrize("text", ["x" * 31, "ü" * 15 + "x", "\udcff" * 32])
def test_secret_of_an_issuer_is_no_shorter_than_its_hash(text: str) -> None:
    assert refusal(JWT_SECRET_KEY=text, JWT_ISSUER=ISSUER).startswith("JWT_SECRET_KEY: must be ")


def test_secret_of_an_issuer_is_its_text_in_bytes(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("ü" * 16 + "\n", encoding="utf-8")
    settings = load({"JWT_SECRET_KEY_FILE": str(file), "JWT_ISSUER": ISSUER})
    assert settings.jwt_secret_key == ("ü" * 16).encode()
    assert (settings.jwt_issuer, settings.jwt_audience) == (ISSUER, "authenticated")


def test_secrets_are_not_shown() -> None:
    shown = repr(
        load({"REQUEST_MAC_KEY": KEY, "DATABASE_URL": "postgresql://u:hunter2@db/x", "REDIS_URL": "redis://r"})
    )
    assert "port=8000" in shown
    assert "hunter2" not in shown
    assert "request_mac_key" not in shown


def test_table_tells_of_every_setting() -> None:
    rows = table().splitlines()[2:]
    assert len(rows) == len(FIELDS) == len(msgspec.structs.fields(Settings))
    for field, row in zip(FIELDS, rows, strict=True):
        assert row.startswith(f"| `{field.variable}`")
        assert field.description
        assert row.endswith(f" | {field.description} |")


def test_readme_shows_the_table() -> None:
    assert table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_has_an_effect() -> None:
    sources = [path for room in ("server", "tasks") for path in (ROOT / room).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources if path.name != "settings.py")
    without = [field.attribute for field in FIELDS if not re.search(rf"\bsettings\.{field.attribute}\b", code)]
    assert without == []
