"""One run of Schemathesis, in a process of its own."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from tests.people import Person, good

HERE = Path(__file__).parent

# These end the credential that the run lives by, or do not end; and there are no metrics where no token is set.
LEFT_OUT = (
    *("POST /logout", "DELETE /sessions/{session_id}", "DELETE /api-keys/{api_key_id}"),
    *("GET /dashboard/events", "GET /metrics"),
)


class Run(NamedTuple):
    """What came of it."""

    status: int
    said: str

    @property
    def cases(self) -> int:
        found = re.search(r"([\d,]+) generated", self.said)
        return int(found[1].replace(",", "")) if found else 0

    @property
    def operations(self) -> int:
        found = re.search(r"Tested: (\d+)", self.said)
        return int(found[1]) if found else 0


async def run(url: str, people: list[Person], seed: int, *options: str, folder: Path) -> Run:
    """All checks, with these people's tokens and a key that only reads; `options` say in which phases and how much."""
    label = {"label": "fuzz", "scopes": ["read"]}
    tokens = [someone.token for someone in people]
    tokens.append(good(await people[0].post("/api-keys", label), 201)["token"])
    names = [part for path in LEFT_OUT for part in ("--exclude-name", path)]
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(HERE / "schemathesis.toml")),
        *("--no-color", "run", f"{url}/schema/openapi.json", "--url", url),
        *("--header", f"Authorization: Bearer {tokens[0]}", "--checks", "all", "--seed", str(seed)),
        *("--warnings", "off", *names, *options),
    ]
    environ = {"SCHEMATHESIS_HOOKS": "tests.fuzzing.hooks", "TOKENS": " ".join(tokens), "SEED": str(seed)}
    process = await asyncio.create_subprocess_exec(
        *command,
        # Where it leaves what it found; the modules are found all the same.
        cwd=folder,
        env=os.environ | environ | {"PYTHONPATH": str(HERE.parent.parent)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return Run(process.returncode or 0, said.decode(errors="replace"))
