"""Faults 16, 19 and 58 at the command line: odd text, full and empty prompts, poor surroundings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.terminal import DRIVER, ROOT, Terminal


@pytest.fixture
def poor(tmp_path: Path) -> dict[str, str]:
    """A small environment: no home that can be written, a temporary folder of the test's own."""
    (tmp_path / "tmp").mkdir()
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": "/proc/nothing-can-be-made-here",
        "TMPDIR": str(tmp_path / "tmp"),
    }


def run(
    env: dict[str, str], *args: str | bytes, data: bytes | None = None, **more: object
) -> subprocess.CompletedProcess[bytes]:
    """One run of the command line over the scripted model, without any terminal."""
    done = subprocess.run(
        [sys.executable, str(DRIVER), *args],
        env=env, capture_output=True, timeout=30, **more,  # type: ignore[call-overload]
        **({"stdin": subprocess.DEVNULL} if data is None else {"input": data}),
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    return done  # type: ignore[no-any-return]


# 16: text that is none, or that is hard


def test_16_arguments_that_are_not_utf_8_are_refused(poor: dict[str, str]) -> None:
    done = run(poor, "chat", b"a\xffb")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"not valid UTF-8 at character 1" in done.stderr


@pytest.mark.parametrize(
    "text", ["שלום עולם", "a\u202eb", "🎉👩‍👩‍👧‍👦é", "\u0007\u001b[2J", "ﷺ" * 50]
)
def test_16_hard_text_makes_the_round_trip(text: str, poor: dict[str, str]) -> None:
    done = run(poor, "complete", "--echo", text)
    assert done.returncode == 0
    assert done.stdout.startswith(text.encode())


def test_16_ten_megabytes_of_one_word_end_in_an_error_of_one_line(poor: dict[str, str]) -> None:
    start = time.monotonic()
    done = run(poor, "chat", "--ctx", "10", data=b"a " * 4_999_999 + b"a")
    assert done.returncode == 1
    assert b"5000000 tokens" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert time.monotonic() - start < 20


def test_16_nul_in_piped_input(poor: dict[str, str]) -> None:
    done = run(poor, "chat", data=b"a\0")
    assert done.returncode == 1
    assert b"binary" in done.stderr


# 19: prompts too long, just full, empty


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--ctx", "4", "a b c d"], 1, b"has 4 tokens plus 1 requested, but the context holds 4"),
        (["--ctx", "4", "a b c"], 0, b""),
        (["--ctx", "4", "--max-tokens", "2", "a b c"], 1, b"3 tokens plus 2 requested"),
        ([""], 2, b"the prompt is empty"),
        ([" \n"], 2, b"the prompt is empty"),
        (["-s", "only a system message"], 2, b"the prompt is empty"),
        (["-s", "w " * 50, "--ctx", "20", "q"], 1, b"but the context holds 20"),
    ],
)
def test_19_prompts(args: list[str], code: int, said: bytes, poor: dict[str, str]) -> None:
    done = run(poor, "chat", *args)
    assert (done.returncode, said in done.stderr) == (code, True)
    assert bool(done.stdout) == (code == 0)


def test_19_empty_piped_input(poor: dict[str, str]) -> None:
    assert run(poor, "chat", data=b"").returncode == 2
    assert run(poor, "chat", "hello", data=b"").stdout == b"HELLO [1]\n"


# 58: poor surroundings


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"LANG": "C"},
        {"LC_ALL": "C", "LANG": "C"},
        {"LC_ALL": "POSIX"},
        {"TERM": "dumb"},
        {"XDG_DATA_HOME": "/dev/null/x", "XDG_CONFIG_HOME": "/dev/null/y"},
    ],
)
def test_58_one_answer_anywhere(env: dict[str, str], poor: dict[str, str]) -> None:
    done = run({**poor, **env}, "chat", "日本 🎉")
    assert (done.returncode, done.stdout.decode()) == (0, "日本 🎉 [1]\n")


def test_58_an_ascii_terminal_gets_ascii(poor: dict[str, str]) -> None:
    done = run({**poor, "PYTHONIOENCODING": "ascii"}, "chat", "caf\u00e9 🎉")
    assert (done.returncode, done.stdout) == (0, b"CAF? ? [1]\n")
    for verb in ("tree", "--help", "doctor"):
        done = run({**poor, "PYTHONIOENCODING": "ascii"}, verb)
        assert done.returncode == 0
        assert done.stdout.isascii()


def test_58_a_deleted_working_folder(tmp_path: Path, poor: dict[str, str]) -> None:
    (tmp_path / "gone").mkdir()
    script = f'rmdir ../gone && exec "$0" {DRIVER} chat "$@"'
    command = ["sh", "-c", script, sys.executable, "--json", "hello"]
    done = subprocess.run(
        command, env=poor, cwd=tmp_path / "gone", capture_output=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0
    assert b'"HELLO [1]"' in done.stdout
    command[-2:] = ["see @x"]
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        command, env=poor, cwd=tmp_path / "gone", capture_output=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1
    assert b"no such file" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins a process to a core")
def test_58_one_core(poor: dict[str, str]) -> None:
    core = min(os.sched_getaffinity(0))
    done = run(poor, "doctor", "--json", preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    assert done.returncode == 0
    assert b"one core does all the work" in done.stdout


@pytest.fixture
def talk(
    poor: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Terminal]:
    """An interactive chat whose home cannot be written and whose working folder is gone."""
    monkeypatch.delenv("KEIFU_HOME", raising=False)
    (tmp_path / "gone").mkdir()
    terminal = Terminal("chat", **{**poor, "LC_ALL": "C", "CWD": str(tmp_path / "gone")})
    yield terminal
    terminal.close(0)


def test_58_a_conversation_without_home_folder_or_locale(talk: Terminal, tmp_path: Path) -> None:
    talk.wait("\n>")
    talk.send("one\r")
    talk.wait("ONE [1]")
    talk.wait("the conversation is kept in")
    talk.send("two\r")
    text = talk.wait(lambda text: "TWO [3]" in text and text.endswith("\n>"))
    assert text.count("cannot be written") == 1
    talk.send("\x04")
    assert talk.close() == 0
    assert list((tmp_path / "tmp").glob("keifu-*/conversations/*.json"))


def test_58_no_network_is_no_hang(poor: dict[str, str]) -> None:
    start = time.monotonic()
    code = "import sys; from keifu.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "chat", "--offline", "hi"],
        env=poor, capture_output=True, stdin=subprocess.DEVNULL, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"smollm2-135m is not on this machine" in done.stderr
    assert time.monotonic() - start < 5
