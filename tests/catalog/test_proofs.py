"""A full run fails when a proof of the catalog did not run, with and without workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proofs import covers, unproved

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_good(): pass
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.skip
def test_skipped(): pass
@pytest.mark.parametrize("n", [1, 2])
def test_cases(n): pass
"""
CONFTEST = """
from types import SimpleNamespace
import keifu.catalog
row = SimpleNamespace(id="row", proof={proof!r})
keifu.catalog.systems = lambda: {{"row": row}}
pytest_plugins = ("tests.proofs",)
"""
CONFIG = """
[tool.pytest.ini_options]
testpaths = ["checks"]
addopts = "-q -p no:cacheprovider -m 'not slow and not gpu and not net'"
markers = ["slow"]
"""


def run(folder: Path, proof: list[str], *flags: str) -> tuple[int, str]:
    (folder / "checks").mkdir()
    (folder / "checks/test_it.py").write_text(TESTS)
    (folder / "checks/conftest.py").write_text(CONFTEST.format(proof=proof))
    (folder / "pyproject.toml").write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("flags", [(), ("-pxdist", "-n2")], ids=["alone", "workers"])
def test_proofs_that_ran_pass(tmp_path, flags):
    proof = [f"checks/test_it.py::test_{name}" for name in ("good", "slow", "cases")]
    code, text = run(tmp_path, proof, *flags)
    assert code == 0, text


@pytest.mark.parametrize("flags", [(), ("-pxdist", "-n2")], ids=["alone", "workers"])
def test_skipped_or_absent_proof_fails_the_run(tmp_path, flags):
    proof = [f"checks/test_it.py::test_{name}" for name in ("good", "skipped", "gone")]
    code, text = run(tmp_path, proof, *flags)
    assert code == 1, text
    assert "row: checks/test_it.py::test_skipped was skipped" in text
    assert "row: checks/test_it.py::test_gone did not run" in text
    assert "test_good did" not in text


def test_a_chosen_part_is_not_judged(tmp_path):
    code, text = run(tmp_path, ["checks/test_it.py::test_gone"], "-k", "good")
    assert code == 0, text


def test_one_bad_case_spoils_its_proof():
    outcomes = {"f::t[1]": "passed", "f::t[2]": "failed", "f::tt": "passed"}
    assert unproved([("r", "f::t")], outcomes, set()) == ["r: f::t was failed"]
    assert unproved([("r", "f::t[1]"), ("r", "f::tt")], outcomes, set()) == []
    assert not covers("f::t", "f::tt")
