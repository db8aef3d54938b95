"""The vectors themselves: that they are the ones that were handed over, and that no group is left out."""

import ast
from collections import Counter
from hashlib import sha256
from pathlib import Path

from .wire_vectors import FILE, groups


def test_vectors_are_untouched() -> None:
    assert sha256(FILE.read_bytes()).hexdigest() == "93ef55592b2a7af57244b2f802cf20d7aaf7399e9df1a789f0381ad59e7511af"


def test_every_group_is_run() -> None:
    run = Counter(
        node.args[0].value
        for file in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "each"
        if isinstance(node.args[0], ast.Constant)
    )
    assert run.keys() == groups().keys()
    assert sum(len(group["cases"]) for group in groups().values()) == 486
