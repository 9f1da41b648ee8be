"""The catalog holds every system, its tree is sound, and what it claims exists."""

from __future__ import annotations

import itertools
import pkgutil
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from keifu.catalog import System, areas, check, children, systems
from keifu.catalog.tree import parse
from keifu.cli.main import cli
from keifu.core.errors import ConfigError
from tests.proofs import covers

ROOT = Path(__file__).parents[2]
IDS = (Path(__file__).parent / "ids.txt").read_text().split()
SYSTEMS = systems()


def row(id: str, year: int = 2000, parents: tuple[str, ...] = (), **more: object) -> System:
    facts = {"name": id, "area": "a", "idea": "i", "source": "s", "kind": "local"}
    return System(
        **{**facts, "status": "missing", "id": id, "year": year, "parents": parents, **more}
    )


def entry(**changes: str) -> str:
    """An area's file with one row, some of whose lines are replaced ("" takes one away)."""
    lines = {
        "id": '"x"', "name": '"X"', "year": "2000", "parents": "[]", "idea": '"i"',
        "source": '"s"', "kind": '"local"', "status": '"missing"',
    } | changes  # fmt: skip
    body = "\n".join(f"{key} = {value}" for key, value in lines.items() if value)
    return f'order = 1\ntitle = "T"\n[[system]]\n{body}\n'


def test_every_row_is_there():
    assert len(IDS) == len(set(IDS)) == 301
    assert list(SYSTEMS) == IDS
    assert len(areas()) == 24
    assert set(areas()) == {system.area for system in SYSTEMS.values()}


def test_lineage_the_literature_has():
    line = ["transformer", "gpt-1", "gpt-2", "gpt-3", "llama", "llama-2", "llama-3", "llama-3.1"]
    for parent, child in itertools.pairwise(line):
        assert parent in SYSTEMS[child].parents
    assert "lora" in SYSTEMS["qlora"].parents
    assert "nf4" in SYSTEMS["qlora"].parents
    assert {"bert", "gpt-2"} <= set(SYSTEMS["bart"].parents)
    assert "albert" in {child.id for child in children("bert")}


def test_every_model_has_its_branch():
    branches = dict.fromkeys(areas(), "decoder-only")
    branches |= {"recurrent": "other", "post_attention": "other", "encoders": "encoder-only"}
    branches |= dict.fromkeys(["attention", "encoder_decoders", "experts"], "encoder-decoder")
    no_models = {"encoder-heads", "encoder-decoder", "open-source-licences", "landscape-trends"}
    for system in SYSTEMS.values():
        if system.model:
            expected = branches[system.area]
            if system.id == "fastchat-t5":  # the one T5 among the instruction-tuned chat models
                expected = "encoder-decoder"
            assert system.model.branch == expected, system.id
        elif system.area in ("encoders", "encoder_decoders", "decoders"):
            assert system.id in no_models


def test_a_closed_model_says_what_cannot_be_done():
    closed = [s for s in SYSTEMS.values() if s.model and s.model.openness == "closed"]
    assert {"gpt-3", "gpt-4", "chatgpt", "claude-100k", "palm", "lamda"} <= {s.id for s in closed}
    assert all(system.why for system in closed)


def test_code_imports():
    for system in SYSTEMS.values():
        if system.code:
            pkgutil.resolve_name(system.code)


def test_proofs_are_collected(request):
    proofs = {proof for system in SYSTEMS.values() for proof in system.proof}
    assert all("::" in proof for proof in proofs)
    here = request.node.nodeid  # a proof that is certainly there: an empty collection must not pass
    files = sorted({proof.partition("::")[0] for proof in {*proofs, here}})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-o", "addopts=", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    nodes = [line for line in done.stdout.splitlines() if "::" in line]
    missing = [p for p in {*proofs, here} if not any(covers(p, node) for node in nodes)]
    assert not missing, f"{missing}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def parses(line: str) -> None:
    """Raise click's error unless the line is a `keifu` command that its own parser takes."""
    program, *words = shlex.split(line)
    assert program == "keifu", line
    context, command = click.Context(cli, info_name="keifu"), cli
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        context = click.Context(found, info_name=name, parent=context)
        command = found
    command.make_context(context.info_name, words, parent=context.parent)


def test_commands_parse():
    for system in SYSTEMS.values():
        if system.command:
            parses(system.command)


@pytest.mark.parametrize("line", ["keifu tree llama --ancestors", 'keifu chat --json "Hi"'])
def test_parser_takes(line):
    parses(line)


@pytest.mark.parametrize("line", ["keifu grow llama", "keifu tree --colour", "keifu tree a b"])
def test_parser_refuses(line):
    with pytest.raises(click.UsageError):
        parses(line)


FAULTS = {
    "cycle": [row("a", parents=("b",)), row("b", parents=("a",))],
    "not connected": [row("a"), row("b", parents=("a",)), row("c")],
    "older than its parent": [row("a", 2001), row("b", 2000, ("a",))],
    "no parent 'aa'": [row("a"), row("b", parents=("aa",))],
    "stands 2 times": [row("a"), row("a")],
    "lacks code, proof or try": [row("a", status="works", code="keifu", command="keifu tree")],
    "go together": [row("a", status="partial")],
}


@pytest.mark.parametrize("message", FAULTS)
def test_unsound_tree_is_refused(message):
    with pytest.raises(ConfigError, match=message):
        check(FAULTS[message])


def test_sound_tree_is_taken():
    check(
        [
            row("a"),
            row("b", 2001, ("a",)),
            row("c", 2002, ("a", "b")),
            row("d", 2002),
            row("e", 2003, ("c", "d")),
        ]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prents": "[]"}, "unknown key 'prents', nearest 'parents'"),
        ({"year": '"2000"'}, "not a int"),
        ({"kind": '"lokal"'}, "allowed: local, remote"),
        ({"idea": ""}, "lacks 'idea'"),
        ({"source": '""'}, "source is empty"),
        ({"parents": "[1]"}, "not a string"),
        ({"model": '{ branch = "encoder" }'}, "branch = 'encoder'; allowed: encoder-only"),
        ({"id": '"x'}, "catalog a.toml"),
    ],
)
def test_bad_row_is_refused(changes, message):
    parse("a", entry())
    with pytest.raises(ConfigError, match=message):
        parse("a", entry(**changes))
