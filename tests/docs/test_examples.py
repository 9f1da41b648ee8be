"""The examples of the README and of docs/ run, or at least parse; the picture is up to date."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from keifu.cli.main import cli, main
from keifu.cli.verbs import Verbs
from keifu.families.published import PUBLISHED
from keifu.families.published.notes import NOTES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)( run)?\n(.*?)^```$", re.M | re.S)


def blocks(kind: str) -> Iterator[tuple[str, bool, str]]:
    """(page, whether it is to be run, text) of all blocks of a language."""
    for page in PAGES:
        for language, run, text in BLOCK.findall(page.read_text("utf-8")):
            if language == kind:
                yield str(page.relative_to(ROOT)), bool(run), text


def commands(only_run: bool) -> list[str]:
    """Every keifu command of the shell blocks, after the last pipe."""
    found = []
    for _, run, text in blocks("sh"):
        lines = (line.rpartition("| ")[2] for line in text.splitlines())
        found += [line for line in lines if line.startswith("keifu ") and run >= only_run]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("line", commands(only_run=False))
def test_command_parses(line: str) -> None:
    _, verb, *words = shlex.split(line, comments=True)
    group: click.Group = cli
    context = cli.make_context("keifu", [], resilient_parsing=True)
    command = group.get_command(context, verb)
    while isinstance(command, click.Group):
        context = command.make_context(verb, [], parent=context, resilient_parsing=True)
        verb, *words = command.spelt(words) if isinstance(command, Verbs) else words
        command = command.get_command(context, verb)
    assert command is not None, f"no verb in {line!r}"
    command.make_context(verb, words, parent=context)


@pytest.mark.parametrize("line", commands(only_run=True))
def test_command_runs(
    line: str, smollm2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/null") as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert main(shlex.split(line, comments=True)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_readme_python_runs(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for page, _, text in blocks("python"):
        if page == "README.md":
            exec(compile(text, page, "exec"), names)
    out = capsys.readouterr().out.splitlines()
    assert "Paris" in out[0]
    assert "49152" in out[-1]


def test_a_documented_family_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/adding-a-family.md: what it says of itself is what it makes."""
    (text,) = [t for page, _, t in blocks("python") if page == "docs/adding-a-family.md"]
    names: dict[str, object] = {"__name__": "cousin"}
    monkeypatch.setitem(__import__("sys").modules, "cousin", type(pytest)("cousin"))
    exec(compile(text, "cousin.py", "exec"), names)
    cousin = names["family"].tiny()  # type: ignore[attr-defined]
    mixer = cousin.spec().blocks[0].mixer
    assert mixer.softcap == 30.0
    assert mixer.q_norm.width == mixer.head_width
    assert cousin.to_hf()["attn_logit_softcapping"] == 30.0
    assert len(text.splitlines()) < 60


def test_other_python_compiles() -> None:
    for page, _, text in blocks("python"):
        compile(text, page, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_notes_on_sizes_are_of_published_rows() -> None:
    assert set(NOTES) <= set(PUBLISHED)
