import json
import os
import pty
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import terminal

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202eevil\u2066\u200b\ufeff\u2028\r[bold red]x[/] :smile:"


def test_a_line_shows_controls_and_obeys_none() -> None:
    assert terminal.line("a\x1b[31mb\nc\td\x9b\u202e") == "a\\x1b[31mb\\x0ac\\x09d\\x9b\\u202e"


def test_a_passage_keeps_its_lines_and_tabs() -> None:
    assert terminal.passage("one\r\ntwo\tthree\rfour\x1b[0m") == "one\ntwo\tthree\\x0dfour\\x1b[0m"


@pytest.mark.parametrize("text", ["", "Ünïcödé 漢字 🙂", "[bold]markup[/]", "a\\b", "combining e\u0301"])
def test_what_harms_nobody_stays_as_it_is(text: str) -> None:
    assert terminal.line(text) == text
    assert terminal.passage(text) == text


@given(st.text(alphabet=st.characters(codec=None, exclude_categories=())))
def test_no_control_character_survives(text: str) -> None:
    for clean in (terminal.line(text), terminal.passage(text).replace("\n", "").replace("\t", "")):
        assert clean.isprintable() or not any(ord(one) < 32 or 0x7F <= ord(one) <= 0x9F for one in clean)
        clean.encode()


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_json_says_the_same_and_holds_no_control_character(text: str) -> None:
    read, write = os.pipe()
    before = sys.stdout
    with open(write, "w", encoding="utf-8") as out, open(read, encoding="utf-8") as written:
        try:
            sys.stdout = out
            terminal.show_json({"text": text}, on_one_line=True)
        finally:
            sys.stdout = before
        out.close()
        line = written.read()
    assert json.loads(line) == {"text": text}
    assert not any(ord(one) < 32 or 0x7F <= ord(one) <= 0x9F or one in "\u202e\u2066" for one in line.rstrip("\n"))


def printed_on_a_terminal(text: str, style: str = "bold") -> str:
    """What a real terminal is sent."""
    outer, inner = pty.openpty()
    before = sys.stdout
    with open(inner, "w", encoding="utf-8") as terminal_file:
        try:
            sys.stdout = terminal_file
            terminal.say(text, style)
        finally:
            sys.stdout = before
    sent = b""
    try:
        while chunk := os.read(outer, 4096):
            sent += chunk
    except OSError:
        # Linux tells that the other end is closed in this way.
        pass
    finally:
        os.close(outer)
    return sent.decode().replace("\r\n", "\n")


def test_a_terminal_is_sent_no_control_of_others_and_no_markup_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    sent = printed_on_a_terminal(terminal.line(HOSTILE))
    assert sent.startswith("\x1b[1m")
    assert sent.endswith("\x1b[0m\n")
    own = sent.removeprefix("\x1b[1m").removesuffix("\x1b[0m\n")
    assert own == terminal.line(HOSTILE)
    assert "[bold red]x[/] :smile:" in own
    assert own.isprintable()


def test_who_wants_no_colour_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert printed_on_a_terminal("text", "red") == "\x1b[31mtext\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed_on_a_terminal("text", "red") == "text\n"


def test_a_long_line_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "40")
    assert printed_on_a_terminal("x" * 200) == "x" * 200 + "\n"


def test_items_in_a_pipe_are_one_line_each_with_tabs_and_without_headings(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_table(["x", "y", "z"], [["a\tb\nc", None, 3]])
    assert capsys.readouterr().out == "a\\x09b\\x0ac\t\t3\n"


def test_errors_go_beside_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.complain("There is no such post.", "look again")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: There is no such post: look again\n"
