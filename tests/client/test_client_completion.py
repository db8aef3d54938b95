"""Completion as shells ask for it, and the examples in the help of each verb."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rich_click as click
from click.testing import CliRunner

from client import cli
from server.cli import cli as whole

# What stands in its own script, so that shells find it by its name.
PROGRAM = Path(sys.executable).with_name("secureblogs")
ASKS = {"bash": "bash_complete", "zsh": "zsh_complete", "fish": "fish_complete"}


def complete(shell: str, *words: str) -> list[str]:
    """What click answers to a shell in which these words stand, the last of them unfinished."""
    typed = {"COMP_WORDS": shlex.join(["secureblogs", *words]), "COMP_CWORD": str(len(words))}
    if shell == "fish":
        typed = {"COMP_WORDS": shlex.join(["secureblogs", *words[:-1]]), "COMP_CWORD": words[-1]}
    elif not words[-1]:
        typed["COMP_WORDS"] = shlex.join(["secureblogs", *words[:-1]]) + " "
    answer = subprocess.run(
        [sys.executable, "-c", "from server.cli import main; main()"],
        env={**os.environ, **typed, "_SECUREBLOGS_COMPLETE": ASKS[shell]},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = answer.stdout.splitlines()
    if shell == "zsh":
        return lines[1::3]
    return [line.split(",", 1)[1].split("\t")[0] for line in lines if "," in line] or lines


@pytest.mark.parametrize("shell", ASKS)
def test_verbs_of_a_group_that_is_loaded_late_are_completed(shell: str) -> None:
    assert complete(shell, "post", "") == ["delete", "list", "new", "read", "requeue"]


def test_verbs_options_and_choices_are_completed() -> None:
    assert complete("bash", "log") == ["login", "logout"]
    assert "--withhold-untrusted" in complete("bash", "post", "new", "--with")
    assert complete("bash", "requests", "list", "--role", "") == ["decider", "requester"]
    assert complete("bash", "completion", "") == ["bash", "zsh", "fish"]


def test_only_the_verb_that_is_typed_is_loaded() -> None:
    code = "import sys; from server.cli import main\ntry: main()\nfinally: print('client' in sys.modules)"
    typed = {"COMP_WORDS": "secureblogs wh", "COMP_CWORD": "1", "_SECUREBLOGS_COMPLETE": "bash_complete"}
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **typed}, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["plain,whoami", "False"]


@pytest.mark.parametrize("shell", ASKS)
def test_scripts_ask_the_command_by_its_own_variable(shell: str) -> None:
    printed = CliRunner().invoke(whole, ["completion", shell], prog_name="secureblogs")
    assert printed.exit_code == 0, printed.output
    assert f"_SECUREBLOGS_COMPLETE={ASKS[shell]}" in printed.stdout
    assert CliRunner().invoke(whole, ["completion", "cmd"]).exit_code == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(CliRunner().invoke(whole, ["completion", "bash"]).stdout)
    typed = """source "$1"
COMP_WORDS=(secureblogs requests ''); COMP_CWORD=2
"$(complete -p secureblogs | sed 's/.*-F \\([^ ]*\\).*/\\1/')" "$2"
printf '%s\\n' "${COMPREPLY[@]}"
"""
    answer = subprocess.run(
        ["bash", "-c", typed, "bash", str(script), str(PROGRAM)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert answer.stdout.split() == ["approve", "deny", "list", "serve", "withdraw"]


def walk(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name, one in command.commands.items():
        yield from walk((*words, name), one)


VERBS = {
    " ".join(words): command
    for one in (getattr(cli, name) for name in cli.__all__)
    for words, command in walk((one.name or "",), one)
}


def examples(command: click.Command) -> list[str]:
    return [line.strip() for line in (command.help or "").splitlines() if line.strip().startswith("secureblogs ")]


def parse(example: str) -> str:
    """The verb that an example calls. Raises a UsageError where it can't be called so."""
    lexer = shlex.shlex(example, posix=True, punctuation_chars="<>")
    lexer.whitespace_split = True
    words = list(lexer)[1:]
    redirected = next((at for at, word in enumerate(words) if word in {"<", ">"}), len(words))
    words = words[:redirected]
    for name, command in VERBS.items():
        verb = name.split()
        if words[: len(verb)] == verb:
            command.make_context(name, words[len(verb) :])
            return name
    raise click.UsageError(f"no such verb: {example}")


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_has_examples_of_itself_that_can_be_called(name: str) -> None:
    assert 1 <= len(examples(VERBS[name])) <= 2
    assert {parse(example) for example in examples(VERBS[name])} == {name}


@pytest.mark.parametrize(
    "example",
    ["secureblogs fly", "secureblogs whoami --nonsense", "secureblogs post read", "secureblogs post read not-an-id"],
)
def test_an_example_that_can_not_be_called_is_noticed(example: str) -> None:
    with pytest.raises(click.UsageError):
        parse(example)


@pytest.mark.parametrize("name", VERBS)
def test_help_shows_each_example_on_a_line_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = CliRunner().invoke(whole, [*name.split(), "--help"], prog_name="secureblogs")
    assert shown.exit_code == 0, shown.output
    assert set(examples(VERBS[name])) <= {line.strip() for line in shown.stdout.splitlines()}
