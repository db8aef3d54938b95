"""docs/client.md says what is so: its first block runs, its errors are those of the code."""

import asyncio
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from client import commands, errors
from client.errors import ClientError
from server.settings import CLIENT_VARIABLES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/client.md").read_text(encoding="utf-8")


async def test_first_block_plays_the_whole_story(server: str) -> None:
    block = re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert block
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", block[1], server, cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    out, err = await asyncio.wait_for(running.communicate(), 90)
    assert running.returncode == 0, err.decode()
    assert out.decode().splitlines() == [
        "Carol can't read it: not_granted",
        "Carol reads: The lighthouse - Thursday at eight.",
        "posts: 1",
    ]


def tree(kind: type[ClientError], depth: int = 0) -> list[str]:
    """As the page shows it. What has two parents stands under its first."""
    here = [
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, ClientError) and one.__bases__[0] is kind
    ]
    return ["  " * depth + kind.__name__, *(name for one in here for name in tree(one, depth + 1))]


def test_errors_are_those_of_the_code() -> None:
    shown = re.search(r"^```text\n(ClientError\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown
    names = [re.match(r" *\w+", one) for one in shown[1].splitlines()]
    assert [name[0] for name in names if name] == tree(ClientError)


def test_exit_codes_are_those_of_the_code() -> None:
    table = re.search(r"### Exit codes\n(.*?)\n### ", PAGE, re.DOTALL)
    assert table
    used = {0, 1, commands.USAGE, commands.NETWORK, commands.CREDENTIALS, commands.UNVERIFIED, commands.INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table[1], re.MULTILINE)} == used


def test_variables_are_all_of_the_client() -> None:
    assert set(re.findall(r"^\| `(SECUREBLOGS_\w+)` \|", PAGE, re.MULTILINE)) == CLIENT_VARIABLES
