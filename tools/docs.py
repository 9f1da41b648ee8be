"""Writes the parts of the docs that follow from the code; `--check` says which are stale."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from keifu.catalog import System, areas, systems  # noqa: E402
from keifu.cli.main import cli  # noqa: E402
from keifu.families import ARCHITECTURES, families  # noqa: E402
from keifu.families.published import PUBLISHED  # noqa: E402
from keifu.families.published.notes import NOTES  # noqa: E402
from tools.picture import picture  # noqa: E402

NOTE = "<!-- Written by `make docs` from the code: edit that instead. -->\n\n"
START, END = "<!-- tree: written by `make docs` -->", "<!-- /tree -->"
HALF = 73  # columns of a file's summary in the tree
WIDTH = 96  # columns of the commands' help
STATUS = {"works": "● works", "partial": "◐ partial", "missing": "○ missing"}
ORDER = (
    "cli", "server", "lm", "inference", "families", "checkpoints", "text", "nn", "catalog", "core",
)  # fmt: skip


def summary(path: Path) -> str:
    """What a file is: the first line of its docstring, or of its leading comment."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        line = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    else:
        line = re.sub(r"^\s*(/\*+|//+|\*+|#+)\s*", "", text.partition("\n")[0])
    return line.strip().rstrip(".*/ ")


def tree() -> str:
    """The package as a tree, a line a folder and a file, top floor first."""
    package = ROOT / "keifu"
    folders = [path.parent for path in package.glob("*/__init__.py")]
    known = {name: place for place, name in enumerate(ORDER)}
    folders.sort(key=lambda path: (known.get(path.name, -1), path.name))
    lines = ["keifu/"]
    for folder in folders:
        lines += ["", *branch(folder, 1)]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def branch(folder: Path, depth: int) -> Iterator[str]:
    """One folder, its files, and the folders in it."""
    yield leaf(folder.name + "/", depth, summary(folder / "__init__.py"))
    for path in sorted(folder.iterdir()):
        if path.suffix in (".py", ".c", ".h") and path.name != "__init__.py":
            yield leaf(path.name, depth + 1, summary(path))
        elif (path / "__init__.py").is_file():
            yield from branch(path, depth + 1)
    if count := len(list(folder.glob("*.toml"))):
        yield leaf("*.toml", depth + 1, f"the tables, {count} areas")


def leaf(name: str, depth: int, about: str) -> str:
    """A name and what it is in half a line: a longer summary ends at its last whole clause."""
    if len(about) > HALF:
        ends = [match.start() for match in re.finditer(r"[:;,] | \(", about[: HALF - 3])]
        cut = max(ends, default=0)
        if cut > HALF // 3:
            listing = about[cut] == "," and about.count("(", 0, cut) == about.count(")", 0, cut)
            about = about[:cut] + (", ..." if listing else "")
        else:
            about = textwrap.shorten(about, HALF, placeholder=" ...")
        about += ")" * (about.count("(") - about.count(")"))
    return f"{'  ' * depth}{name}".ljust(26) + f" {about}".rstrip()


def readme(text: str) -> str:
    """The README with its tree replaced; without markers it is left as it is and refused."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        sys.exit(f"docs: README.md lacks the lines {START!r} and {END!r}")
    return f"{before}{START}\n{tree()}{END}{after}"


def commands() -> str:
    """Every verb's own help."""
    context = cli.make_context("keifu", [], resilient_parsing=True, terminal_width=WIDTH)
    parts = [f"# Commands\n\n{NOTE}", fenced("keifu", cli.get_help(context))]
    parts += helps(cli, context)
    return "\n".join(parts)


def helps(group: click.Group, context: click.Context) -> Iterator[str]:
    """The help of each command of a group, and of the commands of each group in it."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = command.make_context(
            name, [], parent=context, resilient_parsing=True, terminal_width=WIDTH
        )
        yield fenced(inner.command_path, command.get_help(inner))
        if isinstance(command, click.Group):
            yield from helps(command, inner)


def fenced(title: str, text: str) -> str:
    """A heading with a block of plain text."""
    body = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{body}\n```\n"


def family_table() -> str:
    """The families with the architectures of published configs that each reads."""
    rows = []
    for name in families:
        cls = families[name]
        about = (inspect.getdoc(inspect.getmodule(cls)) or "").partition("\n")[0]
        published = [key for key, value in ARCHITECTURES.items() if value == name]
        rows.append([f"`{name}`", ", ".join(f"`{key}`" for key in published), escape(about)])
    head = f"# Families\n\n{NOTE}{len(rows)} families; `keifu diff A B` shows what one changed.\n\n"
    return head + table(["family", "architectures", "what it is"], rows)


def published_table() -> str:
    """The published checkpoints with their counted sizes."""
    known = sorted(PUBLISHED.items(), key=lambda item: (item[1].family, item[1].parameters))
    rows = [
        [
            f"`{name}`",
            f"`{row.family}`",
            f"{row.parameters:,}",
            str(row.year),
            row.licence,
            escape(row.source),
            escape(NOTES.get(name, "")),
        ]
        for name, row in known
    ]
    head = (
        f"# Published sizes\n\n{NOTE}{len(rows)} checkpoints. Each configuration is built on the "
        "meta device and its parameters counted, a tied table once; tests hold the counts to these "
        "numbers. Where the publication says another number, the last column says why.\n\n"
    )
    titles = ["checkpoint", "family", "parameters", "year", "licence", "source", "note"]
    return head + table(titles, rows)


def catalog() -> str:
    """Every system by area, with its state and its source."""
    known = systems().values()
    counts = ", ".join(
        f"{label} {sum(r.status == key for r in known)}" for key, label in STATUS.items()
    )
    parts = [f"# The family tree: {len(known)} systems\n\n{NOTE}{counts}. `keifu tree` draws it.\n"]
    for area, title in areas().items():
        rows = [catalog_row(row) for row in known if row.area == area]
        parts.append(
            f"## {title}\n\n" + table(["system", "year", "from", "idea", "source", "state"], rows)
        )
    return "\n".join(parts)


def catalog_row(row: System) -> list[str]:
    """One line of the catalog's table."""
    state = STATUS[row.status] + (f": waits for {row.waits_for}" if row.waits_for else "")
    if row.kind != "local":
        state += f" ({row.kind})"
    idea = f"{row.idea} *{row.why}*" if row.why else row.idea
    parents = ", ".join(row.parents)
    cells = [f"`{row.id}`", str(row.year), parents, idea, row.source, state]
    return [escape(cell) for cell in cells]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def escape(text: str) -> str:
    """Text that stands in one cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    """Write what is stale, or with --check name it and return 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file is stale")
    check = parser.parse_args().check
    wanted = {
        "README.md": readme((ROOT / "README.md").read_text("utf-8")),
        "docs/cli.md": commands(),
        "docs/families.md": family_table(),
        "docs/published.md": published_table(),
        "docs/catalog.md": catalog(),
        "docs/family-tree.svg": picture(),
    }
    stale = []
    for name, text in wanted.items():
        path = ROOT / name
        if not path.is_file() or path.read_text("utf-8") != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, "utf-8")
    print(
        f"docs: {', '.join(stale) or 'nothing'} {'stale; run: make docs' if check else 'written'}"
    )
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
