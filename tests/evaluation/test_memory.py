"""Recall and copying: a model of symbols scores as in training, one of text is asked in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import keifu.lm
from keifu.core.errors import KeifuError
from keifu.data.symbolic import SelectiveCopying
from keifu.evaluation.findings import Findings
from keifu.evaluation.probe import Probe, Subject, examine, probes
from keifu.evaluation.probes.copying import Copying
from keifu.evaluation.probes.needle import Needle
from keifu.evaluation.probes.recall import Recall
from keifu.lm.scripted import Request, ScriptedLM
from keifu.nn.losses import IGNORE
from keifu.nn.stack import StackModule
from keifu.training import Sequences, evaluate
from keifu.training.objectives.causal_lm import CausalLM
from recipes import needle as finder
from recipes import selective_copying as recipe


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StackModule]:
    """The recipe's Mamba, stopped early: it gets some symbols right and others wrong."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = recipe.train("mamba", steps=40)
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp("copier")
    recipe.save("mamba", model, folder)
    return folder, model


def ask(name: str, probe: Probe, folder: Path) -> Findings:
    subject = Subject(str(folder), lambda: keifu.lm.load(str(folder), precision="exact", threads=1))
    return examine(name, probe, [subject])


def test_the_share_is_that_of_training(copier: tuple[Path, StackModule]) -> None:
    folder, model = copier
    (row,) = ask("copying", Copying(lengths=(32,)), folder).rows
    assert row["accuracy"] == pytest.approx(recipe.accuracy(model), abs=1e-6)
    assert (row["asked"], row["tokens"]) == (1024, 37)
    assert isinstance(row["accuracy"], float)
    assert 0.12 < row["accuracy"] < 1.0


def test_lengths_beyond_those_of_training(copier: tuple[Path, StackModule]) -> None:
    folder, _ = copier
    findings = ask("copying", Copying(rows=2), folder)
    assert [row["length"] for row in findings.rows] == [32, 64, 128, 256]


def test_a_needle_of_symbols(tmp_path: Path) -> None:
    """At each depth the share that training's own measure gives on the same rows."""
    model = finder.train(finder.BASE, finder.SHORT, steps=2)
    finder.save(finder.BASE, model, tmp_path)
    findings = ask("needle", Needle(depths=(0, 50), samples=64, seed=7), tmp_path)
    assert [row["length"] for row in findings.rows] == [32, 32, 64, 64, 128, 128]
    for row in findings.rows:
        length, depth = row["length"], row["depth"]
        assert isinstance(length, int)
        assert isinstance(depth, int)
        drawn = replace(finder.TASK, length=length, depth=depth).draw(64, 7)
        ids, labels = (torch.from_numpy(a) for a in (drawn.ids, drawn.labels(IGNORE)))
        batch = Sequences.of(list(ids), list(labels))
        expected = evaluate(model, CausalLM(), [batch])[1]["accuracy"]
        assert row["found"] == pytest.approx(expected, abs=1e-6)


def test_another_task_names_its_probe(copier: tuple[Path, StackModule]) -> None:
    folder, _ = copier
    with pytest.raises(KeifuError, match="was trained on selective-copying: keifu probe copying"):
        ask("recall", Recall(), folder)


def test_longer_rows_than_the_model_holds(tmp_path: Path) -> None:
    SelectiveCopying(length=8).save(tmp_path)
    lm = ScriptedLM(context=20)
    with pytest.raises(KeifuError, match="--length 16 makes rows of 21 symbols, more than the 20"):
        examine("copying", Copying(lengths=(16,)), [Subject(str(tmp_path), lambda: lm)])


def forgetful(request: Request) -> str:
    """Knows the first four partners told, and no other."""
    told = dict(re.findall(r"^(\w+): (\w+)$", request.prompt, re.M)[:4])
    key = re.findall(r"partner of (\w+)\?|^(\w+):$", request.prompt, re.M)[-1]
    return f" {told.get(key[0] or key[1], 'nobody')}."


@pytest.mark.parametrize("template", [True, False])
def test_recall_in_words(template: bool) -> None:
    lm = ScriptedLM.from_function(forgetful)
    lm.has_template = template
    probe = Recall(pairs=(2, 4, 16), rows=40)
    rows = examine("recall", probe, [Subject("s", lambda: lm)]).rows
    assert [row["accuracy"] for row in rows[:2]] == [1.0, 1.0]
    assert rows[2]["accuracy"] == pytest.approx(4 / 16, abs=0.15)
    assert {request.verb for request in lm.requests} == {"chat" if template else "complete"}


def test_copying_in_words() -> None:
    """A model that drops the last word gets three of four right, each in its place."""

    def copy(request: Request) -> str:
        line = re.findall(r"Line: (.*)", request.prompt)[-1]
        return " ".join([w for w in line.split() if w != "blah"][:3])

    lm = ScriptedLM.from_function(copy)
    rows = examine("copying", Copying(lengths=(8, 64), rows=3), [Subject("s", lambda: lm)]).rows
    assert [(row["length"], row["accuracy"]) for row in rows] == [(8, 0.75), (64, 0.75)]
    assert "blah" in lm.prompts[0]


def test_every_probe_has_a_title_examples_and_columns() -> None:
    assert list(probes) == ["copying", "cost", "needle", "recall"]
    for name, probe in probes.items():
        assert probe.title
        assert all(line.split()[0] == name for line in probe.examples)
        names = [c.name for c in (*probe.axes, *probe.measures)]
        assert len(set(names)) == len(names)
        assert probe.grid <= set(vars(probe())) | {"lengths", "pairs", "depths", "samples"}
