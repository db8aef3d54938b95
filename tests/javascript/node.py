"""The code of docs/javascript.md in a Node process of its own, called from here."""

import asyncio
import base64
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "javascript.md"
OLDEST_NODE = (20, 10)
WAIT_S = 60


class JavaScriptError(Exception):
    """What the page's code threw."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


class Kept(NamedTuple):
    """What an earlier call gave, and Node has kept under a name."""

    name: str


class Hear(NamedTuple):
    """A callback; the frames that it is called with are read by `Node.hear` under this name."""

    name: str


class Expect(NamedTuple):
    """A callback that approves of this fingerprint alone."""

    fingerprint: str


class Node:
    """A process that runs `driver.mjs` beside the page's code."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._heard: dict[str, asyncio.Queue[dict[str, Any]]] = {}

    async def call(self, function: str, *given: Any, keep: str | None = None) -> Any:
        """What the function gives, or None if it is kept; JavaScriptError if it throws."""
        assert self._process.stdin
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "call": function, "with": to_json(given), "keep": keep}
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(WAIT_S):
            return await answer

    async def hear(self, name: str, kind: str) -> dict[str, Any]:
        """The next frame of this kind."""
        frames = self._heard.setdefault(name, asyncio.Queue())
        async with asyncio.timeout(WAIT_S):
            while (frame := await frames.get())["type"] != kind:
                pass
        return frame

    async def read_answers(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            message = json.loads(line, object_hook=from_json)
            if "heard" in message:
                self._heard.setdefault(message["heard"], asyncio.Queue()).put_nowait(message["frame"])
            elif "error" in message:
                self._answers.pop(message["id"]).set_exception(JavaScriptError(**message["error"]))
            else:
                self._answers.pop(message["id"]).set_result(message["answer"])
        for answer in self._answers.values():
            answer.set_exception(JavaScriptError("Exit", "Node has ended; what it wrote is above"))


def to_json(value: Any) -> Any:
    special = {bytes: "$bytes", Kept: "$kept", Hear: "$hear", Expect: "$expect"}.get(type(value))
    if special:
        return {special: base64.b64encode(value).decode() if isinstance(value, bytes) else value[0]}
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else value


def from_json(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["$bytes"]) if value.keys() == {"$bytes"} else value


@asynccontextmanager
async def running_node(folder: Path, *flags: str) -> AsyncIterator[Node]:
    process = await asyncio.create_subprocess_exec(
        *("node", *flags, "driver.mjs"),
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    node = Node(process)
    reading = asyncio.create_task(node.read_answers())
    try:
        yield node
    finally:
        assert process.stdin
        process.stdin.close()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(process.wait(), reading)


def check_version() -> None:
    """Skip where Node or npm is absent, or too old; on CI that is a failure."""
    give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    if shutil.which("node") is None or shutil.which("npm") is None:
        give_up("node and npm are needed to run the code of docs/javascript.md")
    shown = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    version = tuple(int(number) for number in re.findall(r"\d+", shown)[:3])
    if version < OLDEST_NODE:
        give_up(f"Node {'.'.join(map(str, OLDEST_NODE))} or later is needed; this is {shown.strip()}")


def install_packages(make_folder: Callable[[str], Path]) -> Path:
    """`node_modules` with what `package-lock.json` names, installed when it is first needed."""
    wanted = [HERE / "package.json", HERE / "package-lock.json"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in wanted)).hexdigest()[:16]
    folder = make_folder(f"javascript-{digest}")
    modules, complete = folder / "node_modules", folder / "complete"
    # Other processes of the same run come here at the same time.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            for file in wanted:
                shutil.copy(file, folder)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"npm ci failed:\n{done.stderr}"
            complete.touch()
    return modules


def write_page(folder: Path, modules: Path) -> None:
    """Each block of the page becomes the file that its first line names."""
    blocks = re.findall(r"^```js\n(// (\S+)\n.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert [name for _, name in blocks] == ["secureblogs.mjs", "story.mjs"]
    for code, name in blocks:
        (folder / name).write_text(code, "utf-8")
    shutil.copy(HERE / "driver.mjs", folder)
    (folder / "node_modules").symlink_to(modules)
