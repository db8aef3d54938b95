"""What the documentation says is there is there, under the names that it gives."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rich_click as click

from server import errors, problems
from server.app import create_app
from server.cli import Elsewhere, cli
from server.controllers import sockets
from server.settings import CLIENT_VARIABLES, FIELDS, Settings, table

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
API = ROOT / "docs" / "api.md"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


@cache
def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    return FENCE.sub("", read(page))


def code(page: Path) -> list[str]:
    """What stands in fences, line by line, and in spans."""
    lines = [line for _, block in FENCE.findall(read(page)) for line in block.splitlines()]
    return lines + re.findall(r"`([^`]+)`", prose(page).replace("\n", " "))


def anchors(page: Path) -> set[str]:
    """The ids that headings get, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(prose(page)):
        path = (page.parent / target).resolve() if target else page
        assert path.is_relative_to(ROOT)
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def find_verb(words: list[str]) -> click.Command:
    """The command that these words call, as far as they are verbs. KeyError names the word that is none."""
    command: click.Command = cli
    for word in words:
        if not isinstance(command, click.Group):
            break
        command = command.commands[word]
        if isinstance(command, Elsewhere):
            command = command.load()
    return command


@every_page
def test_verbs_are_those_of_the_command(page: Path) -> None:
    for text in code(page):
        for words in re.findall(r"(?:^|[\s/])secureblogs((?: [a-z][a-z-]*)+)(?![\w/.@])", text):
            find_verb(words.split())


def test_a_verb_that_does_not_exist_is_noticed() -> None:
    assert find_verb(["post", "new"]).name == "new"
    for words in (["fly"], ["post", "burn"]):
        with pytest.raises(KeyError):
            find_verb(words)


@every_page
def test_targets_are_those_of_the_makefile(page: Path) -> None:
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets
    named = {match for text in code(page) for match in re.findall(r"^make ([a-z]+)", text)}
    assert named <= set(targets[1].split())


@every_page
def test_variables_are_settings(page: Path) -> None:
    known = {field.variable + suffix for field in FIELDS for suffix in ("", "_FILE") if field.secret or not suffix}
    known |= CLIENT_VARIABLES | {"DOMAIN", "PATH"}  # compose.yaml's own, and everybody's
    known |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"}  # Amazon's
    named = {text for text in re.findall(r"`([A-Z][A-Z_]{3,})`", prose(page)) if not text.endswith("_")}
    assert named <= known


def test_table_of_settings_is_that_of_the_code() -> None:
    assert table() in read(ROOT / "README.md")


def test_readme_names_both_commands() -> None:
    blocks = [block for language, block in FENCE.findall(read(ROOT / "README.md")) if language == "sh"]
    assert blocks[:2] == ["make run\n", "make test\n"]


def test_first_version_is_that_of_the_package() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    assert f"## [{version[1]}]" in read(ROOT / "CHANGELOG.md")


# ------------------------------------------------------------------------------------------------------- docs/api.md


def served() -> set[tuple[str, str]]:
    settings = Settings(
        database_url="postgresql://",
        redis_url="redis://",
        public_url="https://posts.example.org",
        worker_public_key=bytes(32),
        request_mac_key=bytes(32),
    )
    paths: dict[str, Any] = create_app(settings).openapi_schema.paths or {}
    methods = ("get", "post", "patch", "put", "delete")
    return {(method.upper(), path) for path, item in paths.items() for method in methods if getattr(item, method)}


def test_every_call_is_told_and_no_other() -> None:
    told = set(re.findall(r"^\| `(GET|POST|PATCH|PUT|DELETE) (/[^` ?]*)`", read(API), re.MULTILINE))
    assert told == served()


@every_page
def test_calls_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"`(GET|POST|PATCH|PUT|DELETE) (/[^`\s?…]*)[^`…]*`", prose(page)))
    assert named <= served()


def known_codes() -> set[str]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DomainError)]
    return {kind.code for kind in kinds if hasattr(kind, "code")} | set(problems.CODES.values())


def test_codes_of_errors_are_those_of_the_server() -> None:
    table_of_codes = re.search(r"^\| status \| `code` \|\n(.+?)\n\n", read(API), re.MULTILINE | re.DOTALL)
    assert table_of_codes
    fields = {"missing", "unknown", "request_id", "retry_at", "Retry-After", "RateLimit", "RateLimit-Policy"}
    told = set(re.findall(r"`([\w-]+)`", table_of_codes[1])) - fields
    assert told <= known_codes()
    # What these stand for is not asked for by any call as yet.
    assert known_codes() - told == {"not_acceptable", "length_required"}


def test_close_codes_are_those_of_the_server() -> None:
    numbers = {value for name, value in vars(sockets).items() if name.isupper() and isinstance(value, int)}
    own = {number for number in numbers if 4000 <= number < 5000}
    told = {int(number) for number in re.findall(r"\b4\d{3}\b", read(API))}
    assert told == own
