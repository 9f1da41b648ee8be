"""docs/faults.md names tests that exist, for every row promised, and no fault test is left out."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMISED = {*range(1, 17), 19, 20, 22, 24, 25, 26, 27, 28, 29, 30, 31, 32, 39, 40, 41, 45, 58}


def table() -> dict[int, list[str]]:
    """The patterns of node ids by row."""
    rows: dict[int, list[str]] = {}
    for line in (ROOT / "docs/faults.md").read_text("utf-8").splitlines():
        if found := re.match(r"\| (\d+) \|.*\| ([^|]*) \|$", line):
            assert int(found[1]) not in rows
            patterns = re.findall(r"`([^`]+)`", found[2])
            rows[int(found[1])] = [p if "/" in p else f"tests/faults/{p}" for p in patterns]
    return rows


def cited(path: Path) -> list[str]:
    """The node ids of a file's test functions, without parameters."""
    tree = ast.parse(path.read_text("utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    where = path.relative_to(ROOT).as_posix()
    return [f"{where}::{name}" for name in names if name.startswith("test_")]


def test_every_promised_row_is_there() -> None:
    rows = table()
    assert set(rows) >= PROMISED
    assert list(rows) == sorted(rows)
    assert all(rows.values())


def test_every_test_named_exists() -> None:
    for row, patterns in table().items():
        for pattern in patterns:
            path, _, name = pattern.partition("::")
            found = cited(ROOT / path)
            assert name, f"row {row}: {pattern} names no test"
            assert any(fnmatchcase(test, pattern) for test in found), f"row {row}: {pattern}"


def test_no_fault_test_is_left_out() -> None:
    patterns = [pattern for row in table().values() for pattern in row]
    files = [p for p in Path(__file__).parent.glob("test_*.py") if p != Path(__file__)]
    assert len(files) >= 9
    every = [test for path in files for test in cited(path)]
    left = [test for test in every if not any(fnmatchcase(test, p) for p in patterns)]
    assert left == []


def test_a_numbered_test_stands_in_its_row() -> None:
    """`test_16_…` belongs to row 16 and to no other."""
    rows = table()
    for path in Path(__file__).parent.glob("test_*.py"):
        for test in cited(path):
            if number := re.search(r"::test_(\d+)_", test):
                holders = [n for n, row in rows.items() if any(fnmatchcase(test, p) for p in row)]
                assert holders == [int(number[1])], test
