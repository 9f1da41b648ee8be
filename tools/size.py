"""Size budgets: stops a file or function that is too long, and prints what a change adds."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
CODE = (".py", ".c", ".h")
FILE, FUNCTION = (250, 400), (50, 80)  # lines: the aim and the stop
SMALL = 120  # lines at which one family or one method stops
SMALL_FOLDERS = (
    "families", "adapters", "quantization", "merging", "editing", "interpretability", "objectives",
)  # fmt: skip
DEPTH = 2  # folders below keifu/
LARGE = 200_000  # bytes at which any file stops
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc"}


@dataclass(frozen=True)
class Finding:
    """One thing above its aim; above its stop it fails the check."""

    where: str
    lines: int
    aim: int
    stop: int

    @property
    def fails(self) -> bool:
        """Whether it is over the stop."""
        return self.lines > self.stop


def tracked() -> list[Path]:
    """The files that git knows or would add, in order."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    paths = (ROOT / name for name in sorted(set(names.split("\0"))) if name)
    return [path for path in paths if path.is_file()]


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every function with its length in lines, its docstring included, its decorators not."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, (node.end_lineno or node.lineno) - node.lineno + 1
            name += "."
        yield from functions(node, name)


def measure(path: Path) -> Iterator[Finding]:
    """What of one file is above its aim."""
    name = path.relative_to(ROOT)
    text = path.read_text("utf-8")
    aim, stop = FILE
    small = name.parts[0] == "keifu" and name.parent.name in SMALL_FOLDERS
    if small and not name.name.startswith("_"):
        aim = stop = SMALL
    lines = text.count("\n")
    if lines > aim:
        yield Finding(str(name), lines, aim, stop)
    if path.suffix == ".py":
        for function, length in functions(ast.parse(text)):
            if length > FUNCTION[0]:
                yield Finding(f"{name}:{function}", length, *FUNCTION)


def misplaced(path: Path) -> Iterator[str]:
    """What is wrong with a file's place, name or weight."""
    name = PurePosixPath(path.relative_to(ROOT).as_posix())
    if (weight := path.stat().st_size) > LARGE:
        yield f"{name}: {weight / 1000:.0f} kB; no file is over {LARGE // 1000} kB"
    if name.parts[0] == "keifu" and len(name.parts) - 2 > DEPTH:
        yield f"{name}: more than {DEPTH} folders below keifu/"
    for part in (*name.parent.parts, name.stem):
        if part.strip("_") in VAGUE:
            yield f"{name}: {part!r} says nothing; name it after what it does"


def difference(revision: str) -> str:
    """Lines added and removed in each folder since a revision, files not yet added included."""
    added: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    command = ["git", "diff", "--numstat", "--no-renames", revision, "--"]
    patterns = [f"*{suffix}" for suffix in CODE]
    done = subprocess.run([*command, *patterns], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"size: no revision {revision!r}: {done.stderr.strip().splitlines()[0]}")
    for line in done.stdout.splitlines():
        plus, minus, name = line.split("\t")
        added[folder(name)] += int(plus)
        removed[folder(name)] += int(minus)
    command = ["git", "ls-files", "--others", "--exclude-standard", "--", *patterns]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split():
        added[folder(name)] += (ROOT / name).read_text("utf-8").count("\n")
    lines = [f"{'since ' + revision:<32}{'added':>8}{'removed':>9}{'net':>8}"]
    for name in sorted({*added, *removed}):
        plus, minus = added[name], removed[name]
        lines.append(f"{name:<32}{plus:>8}{minus:>9}{plus - minus:>+8}")
    plus, minus = sum(added.values()), sum(removed.values())
    return "\n".join([*lines, f"{'all':<32}{plus:>8}{minus:>9}{plus - minus:>+8}"])


def folder(name: str) -> str:
    """The top of a file's path: keifu/nn, tests/nn, tools."""
    return "/".join(PurePosixPath(name).parent.parts[:2]) or "."


def main() -> int:
    """Print the findings; 1 where something is over its stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="REV", help="also print the change since a revision")
    parser.add_argument("--quiet", action="store_true", help="print only what fails")
    options = parser.parse_args()
    faults = [fault for path in tracked() for fault in misplaced(path)]
    files = [path for path in tracked() if path.suffix in CODE]
    findings = [finding for path in files for finding in measure(path)]
    findings.sort(key=lambda finding: finding.stop - finding.lines)
    shown = [finding for finding in findings if finding.fails or not options.quiet]
    if shown:
        print(f"{'lines':>6} {'aim':>5} {'stop':>5}")
        for found in shown:
            mark = "  OVER" if found.fails else ""
            print(f"{found.lines:>6} {found.aim:>5} {found.stop:>5}  {found.where}{mark}")
    for fault in faults:
        print(fault)
    if options.against:
        print(difference(options.against))
    over = sum(finding.fails for finding in findings)
    print(f"size: {len(files)} files, {len(findings)} above the aim, {over + len(faults)} refused")
    return 1 if over or faults else 0


if __name__ == "__main__":
    sys.exit(main())
