"""The entry point: verbs, exit codes, errors in one line, and what a start may import."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import keifu
from keifu.cli import main as module
from keifu.cli.main import VERBS, cli, main
from keifu.cli.verbs import Verb, Verbs
from keifu.core.errors import KeifuError

DRIVER = Path(__file__).with_name("driver.py")
ROOT = str(Path(__file__).parents[2])


def driver(*args: str, **more: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": ROOT, **more}
    return subprocess.Popen(
        [sys.executable, str(DRIVER), *args],
        env=env, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_help_lists_every_verb_under_its_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"  {name} " in text
        assert verb.job + ":" in text
    assert "Examples:" in text


def test_no_verb_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: keifu")


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_there_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: keifu {name}")


def test_groups_hold_real_functions() -> None:
    for verb in VERBS.values():
        where, _, attribute = verb.target.partition(":")
        found = getattr(importlib.import_module(where), attribute)
        table = found.table if isinstance(found, Verbs) else {}
        for inner in table.values():
            where, _, attribute = inner.target.partition(":")
            assert callable(getattr(importlib.import_module(where), attribute))


def test_version_tells_torchs_without_importing_it(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert main(["--version"]) == 0
    out = capsys.readouterr().out
    assert f"keifu {keifu.__version__}" in out
    assert f"torch {torch.__version__}" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["chta"], "Did you mean chat"),
        (["chat", "--temprature", "1"], "'--temperature'"),
        (["Why is it so?"], 'keifu chat "Why is it so?"'),
        (["chat", "--precision", "low", "hi"], "'default', 'exact'"),
        (["chat", "--threads", "0", "hi"], "from 1 to 1024"),
        (["models", "lst"], "Did you mean list?"),
        (["models"], "Usage: keifu models"),
    ],
)
def test_misuse_is_2_and_says_what_is_nearest(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(args)
    out = capsys.readouterr()
    assert said in out.out + out.err
    assert (code, bool(out.out)) == ((0, True) if args == ["models"] else (2, False))


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr(module, "raiser", command, raising=False)
    monkeypatch.setitem(VERBS, "raise", Verb("keifu.cli.main:raiser", "job", "help"))
    assert cli.table is VERBS


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeifuError("two\nlines"), 1, "keifu: two lines\n"),
        (ZeroDivisionError("x"), 1, "keifu: this is a bug: ZeroDivisionError: x"),
        (MemoryError(), 1, "keifu: out of memory"),
        (OSError(28, "No space left on device", "/x"), 1, "keifu: No space left on device: /x"),
        (KeyboardInterrupt(), 130, ""),
        (click.UsageError("no"), 2, "no"),
    ],
)
def test_failures_are_one_line(
    error: BaseException, code: int, line: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    raising(error, monkeypatch)
    assert main(["raise"]) == code
    out = capsys.readouterr()
    assert line in out.err
    assert "Traceback" not in out.err
    assert out.out == ""


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(KeifuError("no"), monkeypatch)
    monkeypatch.setenv("KEIFU_DEBUG", "1")
    with pytest.raises(KeifuError):
        main(["raise"])


def test_completion_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["--show-completion", shell]) == 0
        assert "_KEIFU_COMPLETE" in capsys.readouterr().out


def test_completion_knows_verbs_and_options() -> None:
    from click.shell_completion import ShellComplete

    complete = ShellComplete(cli, {}, "keifu", "_KEIFU_COMPLETE")
    assert {item.value for item in complete.get_completions([], "c")} >= {"chat", "complete"}
    assert [i.value for i in complete.get_completions(["chat"], "--temp")] == ["--temperature"]


HEAVY = {"torch", "rich", "httpx", "prompt_toolkit", "numpy", "tokenizers", "yaml", "typer"}


def modules_after(args: list[str]) -> set[str]:
    """Top-level modules that one run of the command line imports, beyond those of a bare Python."""
    code = f"import sys; from keifu.cli.main import main; main({args!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["chat", "--help"], ["chta"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    assert not modules_after(args) & HEAVY


def test_a_one_shot_chat_imports_no_terminal_libraries() -> None:
    process = driver("chat", "hello", DRIVER_MODULES="1")
    out, err = process.communicate(timeout=30)
    assert out == "HELLO [1]\n"
    found = {name.split(".")[0] for name in err.split()}
    assert "keifu" in found
    assert not found & HEAVY


def test_a_reader_that_leaves_early_is_no_error() -> None:
    process = driver("chat", "count 2000", DRIVER_DELAY="0.001")
    assert process.stdout is not None
    assert process.stdout.read(4) == "1 2 "
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_sigint_is_130_and_quiet() -> None:
    process = driver("chat", "count 2000")
    assert process.stdout is not None
    process.stdout.read(4)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out.endswith("\n")


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keifu", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("keifu ")
