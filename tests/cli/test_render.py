"""Drawing: blocks are cut where markdown ends them, and a terminal is never commanded."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keifu.cli.render import Markdown, Plain, note, safe, split_blocks
from keifu.cli.table import size, table


@pytest.mark.parametrize(
    ("text", "whole", "rest"),
    [
        ("one", "", "one"),
        ("one\n\n", "", "one\n\n"),
        ("one\n\ntwo", "one\n", "two"),
        ("```\na\n\nb\n", "", "```\na\n\nb\n"),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n", "c"),
        ("````\n```\n\nx\n````\n\ny", "````\n```\n\nx\n````\n", "y"),
        ("- a\n\n  more\n- b", "", "- a\n\n  more\n- b"),
        ("- a\n\n  more\n\nend", "- a\n\n  more\n", "end"),
    ],
)
def test_blocks(text: str, whole: str, rest: str) -> None:
    assert split_blocks(text) == (whole, rest)


@given(st.text("ab`~- \n", max_size=60))
def test_cutting_loses_nothing_and_is_final(text: str) -> None:
    whole, rest = split_blocks(text)
    assert whole + ("\n" if whole else "") + rest == text or (not whole and rest == text)
    # What was cut off stays cut off however the text goes on.
    later, _ = split_blocks(text + "\nx\n\ny")
    assert later.startswith(whole)


def test_controls_are_taken_out_for_a_terminal_and_kept_in_a_pipe() -> None:
    text = "a\x1b[2J\x07b\x9b31m\tc\nשלום🎉"
    assert safe(text) == "a[2Jb31m\tc\nשלום🎉"
    pipe = io.StringIO()
    plain = Plain(pipe)
    plain.write(text)
    plain.end()
    assert pipe.getvalue() == text + "\n"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_on_a_terminal() -> None:
    screen = Screen()
    plain = Plain(screen)
    for piece in ("a\x1b", "[0m\n"):
        plain.write(piece)
    plain.end()
    assert screen.getvalue() == "a[0m\n"


@pytest.mark.parametrize("height", [5, 40])
def test_markdown_draws_every_word_once(height: int, capsys: pytest.CaptureFixture[str]) -> None:
    out = Markdown()
    out.console.width, out.console.height = 40, height
    words = [f"w{number}" for number in range(120)]
    for number, word in enumerate(words):
        out.write(word + ("\n\n" if number % 50 == 49 else " "))
    out.end()
    assert capsys.readouterr().out.split() == words


def test_note_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    note("x")
    assert capsys.readouterr() == ("", "x\n")


def test_tables() -> None:
    drawn = table(["name", "what"], [["a", "one two three four"], ["日本", "x"]], width=16)
    assert drawn.splitlines() == [
        "name  what",
        "----  ----------",
        "a     one two",
        "      three four",
        "日本  x",
    ]
    assert [size(n) for n in (5, 1500, 92.9e6, 1.4e9, 5e12)] == [
        "5 B", "1.5 kB", "92.9 MB", "1.4 GB", "5.0 TB",
    ]  # fmt: skip
