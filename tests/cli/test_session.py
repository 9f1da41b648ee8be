"""The interactive chat in a real terminal: a pty, a screen, keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import Terminal

Start = Callable[..., Terminal]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `keifu chat` in a terminal that shows its prompt; ends them all afterwards."""
    terminals: list[Terminal] = []

    def begin(*args: str, prompt: bool = True, **env: Any) -> Terminal:
        terminals.append(Terminal("chat", *args, **env))
        if prompt:
            terminals[-1].wait(lambda text: text.endswith("\n>"))
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close(0)


def again(text: str) -> bool:
    """Whether the prompt is back."""
    return text.endswith("\n>")


def test_a_conversation(start: Start, home: Path) -> None:
    t = start()
    t.send("hello\r")
    t.wait("HELLO [1]")
    t.wait(again)
    t.send("more\r")
    text = t.wait(lambda text: "MORE [3]" in text and again(text))
    assert "tokens/s" in text
    assert "/4096 (" in text
    t.send("\x04")
    assert "keifu chat --continue" in t.wait("kept:")
    assert t.close() == 0
    (path,) = (home / "conversations").iterdir()
    said = [m["content"] for m in json.loads(path.read_text())["messages"]]
    assert said == ["hello", "HELLO [1]", "more", "MORE [3]"]
    assert (home / "history").stat().st_mode & 0o777 == 0o600

    t = start("--continue")
    assert "4 messages, 'hello'" in t.text()
    t.send("third\r")
    t.wait("THIRD [5]")


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(start: Start) -> None:
    t = start()
    t.send("count 500\r")
    t.wait("12 13 14")
    t.send("\x03")
    text = t.wait(lambda text: "stopped" in text and again(text))
    assert text.count("1 2 3 4") == 1  # the last frame was taken away before the final drawing
    assert "\n500" not in text
    t.send("next\r")
    t.wait("NEXT [3]")
    t.wait(again)
    t.send("\x03")
    t.wait("Ctrl-C again or Ctrl-D leaves")
    t.send("\x03")
    assert t.close() == 0


def test_ctrl_c_on_a_half_typed_line_clears_it(start: Start) -> None:
    t = start()
    t.send("never mind")
    t.wait("> never mind")
    t.send("\x03")
    t.wait(again)
    t.send("hi\r")
    t.wait("HI [1]")


def test_markdown_is_drawn(start: Start) -> None:
    t = start(DRIVER_DELAY="0.002")
    t.send("markdown\r")
    text = t.wait("tokens/s")
    assert "**" not in text
    assert "•" in text
    assert text.count("return x") == 1
    assert text.count("The end.") == 1


def test_plain_where_colours_are_not_wanted(start: Start) -> None:
    t = start(NO_COLOR="1")
    t.send("markdown\r")
    text = t.wait("The end.")
    assert "**bold**" in text
    assert "```python" in text


def test_messages_of_several_lines(start: Start) -> None:
    t = start()
    t.send("one\\\r")
    t.wait("\n.")
    t.send("two\r")
    t.wait("TWO [1]")
    t.wait(again)
    t.send('"""\rthree\r')
    t.wait(". three")
    t.send('four\r"""\r')
    t.wait("FOUR [3]")
    t.wait(again)
    t.send("five\x1b\rsix\r")
    t.wait("SIX [5]")


def test_commands(start: Start, tmp_path: Path) -> None:
    t = start()

    def do(line: str, said: str) -> None:
        t.send(line + "\r")
        t.wait(lambda text: said in text.rpartition("> " + line)[2] and again(text))

    do("/help", "/retry")
    do("first", "FIRST [1]")
    do("/set temperature 0.3", "temperature: 0.3")
    do("/set temperature hot", "give a number (float)")
    do("/set temperature 1000", "from 0 to 100")
    do("/set tempratur 1", "nearest: temperature")
    do("/set", "set: temperature 0.3")
    do("/system be brief", "system: be brief")
    do("second", "SECOND [4]")
    do("/tokens", "in 4 messages")
    do("/retry", "SECOND [4]")
    do("/undo", "forgotten: 'second'")
    do("/tokens", "in 2 messages")
    do("/save trip", "saved to /")
    do("/clear", "a new conversation, with the same system message")
    do("third", "THIRD [2]")
    do("/load trip", "going on with trip: 2 messages")
    do("/list", "trip")
    do("/show", "[assistant]")
    do("/model other", "model: other, context 4096")
    do("/model broken", "keifu: the file is damaged")
    do("fourth", "FOURTH [4]")
    do("/halp", "did you mean /help?")
    do("/etc/hosts is a file", "/ETC/HOSTS IS A FILE [6]")
    do("see @nothing", "there is no such file")
    note = tmp_path / "n.txt"
    note.write_text("inside")
    do(f"see @{note}", "INSIDE")
    t.send("/exit\r")
    assert t.close() == 0


def test_tab_completes_commands(start: Start) -> None:
    t = start()
    t.send("/tok\t")
    t.wait("> /tokens")


def test_the_model_loads_while_the_user_types(start: Start) -> None:
    t = start(DRIVER_LOAD="2")
    t.send("hi\r")
    t.wait("loading smollm2-135m ...")
    t.wait("HI [1]")


def test_a_model_that_does_not_load_ends_the_chat(start: Start) -> None:
    t = start("-m", "broken", DRIVER_LOAD="0.5")
    t.send("hi\r")
    t.wait("keifu: the file is damaged")
    assert t.close() == 1


def test_a_full_context_is_told(start: Start) -> None:
    t = start("--ctx", "120")
    for number in range(5):
        t.send("long\r")
        t.wait(lambda text, n=number: text.count("tokens/s") + text.count("first after") > n)
        t.wait(again)
    assert "the context is full: the model no longer sees the oldest" in t.text()


def test_a_summary_stands_for_the_oldest(start: Start) -> None:
    t = start("--ctx", "220", "--overflow", "summarise")
    for _ in range(4):  # 47 tokens a turn; the room is 165: the fifth needs a summary
        t.send("long\r")
        t.wait(lambda text: text.endswith("\n>") and not text.endswith("long\n>"))
        t.wait(again)
    t.send("long\r")
    t.wait(lambda text: "tokens stands for the oldest" in " ".join(text.split()))


def test_a_base_model_says_so(start: Start) -> None:
    t = start("-m", "base")
    t.send("once\r")
    assert "it continues the text" in t.wait("ONCE [0]")


def test_nothing_is_kept_where_nothing_is_to_be(start: Start, home: Path) -> None:
    t = start("--no-keep")
    t.send("secret\r")
    t.wait("SECRET [1]")
    t.wait(again)
    t.send("\x04")
    assert t.close() == 0
    assert "kept:" not in t.text()
    assert list(home.iterdir()) == []


def test_a_dumb_terminal_gets_plain_lines(start: Start) -> None:
    t = start(TERM="dumb", prompt=False)
    t.wait("\n>")
    t.send("one\\\r")
    t.wait(".")
    t.send("two\r")
    t.wait("TWO [1]")
    t.send("\x04")
    assert t.close() == 0
