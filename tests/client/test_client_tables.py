"""Lists on a terminal are tables; in a pipe they are lines with tabs."""

import os
import pty
import subprocess
import sys

import pytest

ID = "0198f2c4-1d2e-7a3b-8c4d-5e6f708192a3"
LIST = f"""
from client import terminal
rows = [["Short \\x1b[2J", "{ID}", "Alice"], ["[bold]A much longer title[/]", "{ID}", None]]
terminal.show_table(["title", "id", "author"], rows)
"""


def run_on_a_terminal(code: str, **environment: str) -> str:
    """What a real terminal is sent by a program of its own."""
    outer, inner = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=inner,
        env={**plain, "TERM": "xterm-256color", "LINES": "24", **environment},
    )
    os.close(inner)
    sent = b""
    try:
        while chunk := os.read(outer, 4096):
            sent += chunk
    except OSError:
        # Linux tells that the other end is closed in this way.
        pass
    finally:
        os.close(outer)
    assert running.wait(60) == 0
    return sent.decode().replace("\r\n", "\n")


def test_rows_stand_in_columns() -> None:
    headings, first, second = run_on_a_terminal(LIST, COLUMNS="120", TERM="dumb").splitlines()
    assert headings.split() == ["title", "id", "author"]
    assert headings.index("id") == first.index(ID)
    assert headings.index("author") == first.index("Alice")
    assert first.index(ID) == second.index(ID) == len("[bold]A much longer title[/]") + 2
    assert first.startswith("Short \\x1b[2J ")
    assert first.rstrip().endswith(f"{ID}  Alice")


def test_titles_are_set_off_and_nothing_of_others_is_obeyed() -> None:
    sent = run_on_a_terminal(LIST, COLUMNS="120")
    assert "\x1b[1m" in sent
    assert "\x1b[2J" not in sent
    assert "[bold]A much longer title[/]" in sent


def test_who_wants_no_colour_gets_none() -> None:
    code = 'from client import terminal\nterminal.show_table(["x", "y"], [["a", "b"]])\nterminal.say("said", "red")'
    assert "\x1b[31m" in run_on_a_terminal(code)
    sent = run_on_a_terminal(code, NO_COLOR="1")
    assert not any(f"\x1b[{number}m" in sent for number in range(30, 50))
    assert sent.splitlines()[-1] == "said"


@pytest.mark.parametrize("columns", [12, 40, 60, 80])
def test_ids_stay_whole_however_narrow_the_terminal(columns: int) -> None:
    sent = run_on_a_terminal(LIST, COLUMNS=str(columns), TERM="dumb")
    assert sent.count(ID) == 2


FINGERPRINT = "21b9 a9ff 4d10 7c2e 9f35 0b6d 8e1a c447 5d02 e6f1 b398 aa07"
TIME = "2026-11-22 16:05"
LISTS = {
    "key list": (["label", "id", "state", "made", "fingerprint"], ["laptop", ID, "not compared", TIME, FINGERPRINT]),
    "file links": (["state", "id", "made", "until", "downloads left"], ["used up", ID, TIME, TIME, "any number"]),
    "post list": (["title", "id", "written", "author", "access"], ["The plan", ID, TIME, "Al B", "key_revoked or so"]),
    "session list": (["session", "id", "since", "until"], ["this one", ID, TIME, TIME]),
    "api-key list": (
        ["label", "id", "scopes", "state", "made", "last used"],
        ["nightly report", ID, "read, write", f"until {TIME}", TIME, TIME],
    ),
    "audit": (
        ["what", "when", "by", "to", "group", "further"],
        ["read_request.approved", TIME, ID, ID, ID, f"key_id={ID} request_id={ID}"],
    ),
}


@pytest.mark.parametrize("columns", [60, 80, 100, 130, 200])
@pytest.mark.parametrize("shown", LISTS)
def test_nothing_of_a_list_is_cut(shown: str, columns: int) -> None:
    headings, row = LISTS[shown]
    code = f"from client import terminal\nterminal.show_table({headings!r}, [{row!r}] * 2)"
    sent = run_on_a_terminal(code, COLUMNS=str(columns), TERM="dumb")
    assert "…" not in sent
    first, *others = row
    assert "".join(sent.split()).count(first.replace(" ", "")) == 2
    for value in others:
        assert sent.count(value) >= 2, (value, sent)


def test_long_titles_take_several_lines() -> None:
    code = (
        f'from client import terminal\nterminal.show_table(["about", "id", "by"], [["title " * 30, "{ID}", "Alice"]])'
    )
    lines = run_on_a_terminal(code, COLUMNS="80", TERM="dumb").splitlines()
    assert len(lines) > 3
    assert f"{ID}  Alice" in lines[1]
    assert max(len(line) for line in lines) <= 80
    assert "".join(lines).count("title") == 30


def test_a_list_of_nothing_has_no_headings() -> None:
    code = 'from client import terminal\nterminal.show_table(["x", "y"], [])\nterminal.say("nothing")'
    assert run_on_a_terminal(code, TERM="dumb") == "nothing\n"


def test_in_a_pipe_they_are_lines_with_tabs() -> None:
    printed = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True).stdout
    assert printed == f"Short \\x1b[2J\t{ID}\tAlice\n[bold]A much longer title[/]\t{ID}\t\n"
