"""The prompt: words, piped input, attachments; what is not text is refused."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keifu.cli import gather
from keifu.cli.gather import attached, text
from keifu.core.errors import KeifuError


def pipe(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `data` what is piped into this process."""
    read, write = os.pipe()

    def feed() -> None:
        with os.fdopen(write, "wb") as file:
            file.write(data)

    threading.Thread(target=feed, daemon=True).start()
    monkeypatch.setattr("sys.stdin", os.fdopen(read))


@pytest.mark.parametrize(
    ("words", "piped", "expected"),
    [
        (["a", "b"], None, "a b"),
        ([], None, ""),
        ([], b"in\n", "in"),
        (["q?"], b"in\n", "in\n\nq?"),
        (["q?"], b"", "q?"),
        (["Sum up:", "-", "now"], b"in\n", "Sum up: in now"),
        ([], "\ufeffmit BOM".encode(), "mit BOM"),
        ([], "日本 🎉 שלום".encode(), "日本 🎉 שלום"),
    ],
)
def test_words_and_piped_input(
    words: list[str], piped: bytes | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if piped is not None:
        pipe(piped, monkeypatch)
    assert gather.gather(words) == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a\0b", "binary (a NUL byte at 1)"),
        (b"\xff\xfe", "not UTF-8 text (byte 0)"),
        (b"a" * ((32 << 20) + 1), "larger than 32 MiB"),
    ],
)
def test_piped_input_that_is_no_text(
    data: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(data, monkeypatch)
    with pytest.raises(KeifuError, match=said.replace("(", r"\(").replace(")", r"\)")):
        gather.gather(["q"])


def test_a_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert gather.gather(["hi"]) == "hi"
    with pytest.raises(KeifuError, match="closed"):
        gather.gather(["-"])


def test_a_silent_pipe_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    monkeypatch.setattr("sys.stdin", os.fdopen(read))
    threading.Timer(2.3, lambda: (os.write(write, b"late"), os.close(write))).start()
    assert gather.gather(["q"]) == "late\n\nq"
    assert "waiting for piped input" in capsys.readouterr().err


def test_attachments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("one\ntwo\n")
    Path("with space.md").write_text("x ```y```")
    assert attached("Read @a.txt, please") == "a.txt:\n```\none\ntwo\n```\n\nRead a.txt, please"
    assert attached('@"with space.md"?') == (
        "with space.md:\n````\nx ```y```\n````\n\nwith space.md?"
    )
    assert attached("mail me@a.txt or @@home") == "mail me@a.txt or @home"
    assert attached(f"@{tmp_path}/a.txt").startswith("a.txt:\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "no such file (write @@ for a plain @)"),
        (".", "is a folder"),
        ("binary", "binary"),
        ("latin", "not UTF-8"),
        ("big", "larger than 4 MiB"),
        ("fifo", "no regular file"),
        ("x" * 300, "cannot be read"),
        ("a\0b", "cannot be read"),
    ],
)
def test_attachments_that_cannot_be(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("binary").write_bytes(b"\x7fELF\0")
    Path("latin").write_bytes("é".encode("latin-1"))
    Path("big").write_bytes(b"a" * ((4 << 20) + 1))
    os.mkfifo("fifo")
    with pytest.raises(KeifuError) as error:
        attached(f"see @{name}")
    assert said in str(error.value)


def test_words_that_are_no_text() -> None:
    with pytest.raises(KeifuError, match="not valid UTF-8 at character 1"):
        text("a\udcff", "the prompt")
    with pytest.raises(KeifuError, match="NUL character at 1"):
        text("a\0", "the prompt")


@given(st.text(st.characters(exclude_characters="@", exclude_categories=["Cs"])))
def test_a_prompt_without_at_signs_is_itself(prompt: str) -> None:
    assert attached(prompt) == prompt
