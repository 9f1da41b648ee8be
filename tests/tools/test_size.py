"""The size budgets refuse what is too long, too deep, too heavy or named after nothing."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/size.py"


@pytest.fixture
def size(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("size", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "size", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["size"])
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return module


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def function(lines: int) -> str:
    return "def long():\n" + "    x = 1\n" * (lines - 1)


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("keifu/nn/part.py", "x = 1\n" * 400, 0),
        ("keifu/nn/part.py", "x = 1\n" * 401, 1),
        ("keifu/nn/kernels/part.h", "// x\n" * 401, 1),
        ("keifu/families/llama.py", "x = 1\n" * 120, 0),
        ("keifu/families/llama.py", "x = 1\n" * 121, 1),
        ("keifu/families/_shared.py", "x = 1\n" * 121, 0),
        ("tests/test_x.py", function(80), 0),
        ("tests/test_x.py", function(81), 1),
        ("tests/test_x.py", "class A:\n    " + function(81).replace("\n", "\n    "), 1),
        ("keifu/a/b/c.py", "", 0),
        ("keifu/a/b/c/d.py", "", 1),
        ("keifu/nn/utils.py", "", 1),
        ("tests/common/test_x.py", "", 1),
        ("docs/large.md", "x" * 200_001, 1),
    ],
)
def test_stops(size, tmp_path, capsys, name, text, code):
    write(tmp_path, name, text)
    assert size.main() == code
    assert (name in capsys.readouterr().out) or not code


def test_aims_are_shown_and_do_not_fail(size, tmp_path, capsys):
    write(tmp_path, "keifu/nn/part.py", "x = 1\n" * 200 + function(51))
    assert size.main() == 0
    out = capsys.readouterr().out
    assert "   251   250   400  keifu/nn/part.py\n" in out
    assert "    51    50    80  keifu/nn/part.py:long\n" in out


def test_difference_counts_changed_and_new_files(size, tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    path = write(tmp_path, "keifu/nn/part.py", "a = 1\nb = 2\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    path.write_text("a = 1\nc = 3\nd = 4\n")
    write(tmp_path, "tests/nn/test_part.py", "x = 1\n")
    rows = {line.split()[0]: line.split()[1:] for line in size.difference("HEAD").splitlines()[1:]}
    assert rows == {
        "keifu/nn": ["2", "1", "+1"],
        "tests/nn": ["1", "0", "+1"],
        "all": ["3", "1", "+2"],
    }
    with pytest.raises(SystemExit, match="no revision 'nowhere'"):
        size.difference("nowhere")
