"""`keifu train`: a plan, a run, what it writes, and talking to it at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from keifu.cli.main import main
from keifu.families import families
from keifu.nn.part import count
from keifu.training.plan import plan
from keifu.training.recipe import Recipe, read

RECIPE = """
model: {family: llama, width: 16, hidden: 32, depth: 2, heads: 2, context: 64}
tokenizer: {size: 300}
data: {sources: {text: [text.txt]}, unit: line, length: 16, batch: 2, held_out: 0.2}
objective: causal-lm
train: {steps: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny recipe in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(f"a line of text, number {n}\n" for n in range(99)))
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"


def test_a_run_can_be_asked_at_once(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny.yaml", "train.steps=3", "--json", "--threads", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1
    assert (told["steps"], told["family"]) == (3, "llama")
    assert Path(told["checkpoint"]) == Path("runs/tiny/checkpoints/step-3")
    assert 0 < told["held_out"] < 7
    assert main(["complete", "-m", "runs/tiny", "a line", "--max-tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    written = Path("runs/tiny/recipe.yaml").read_text()
    assert "lr: 0.001  # Learning rate" in written
    again = read(Path("runs/tiny/recipe.yaml"))
    assert again == read(recipe, ["train.steps=3"])
    assert Recipe.of(again.told()) == again
    assert main(["train", "runs/tiny", "--threads", "1"]) == 1
    assert "--resume" in capsys.readouterr().err
    more = ["--resume", "--override", "train.steps=4", "--threads", "1"]
    assert main(["train", "runs/tiny", *more]) == 0
    assert "step-4: llama, 4 steps" in capsys.readouterr().out


def test_a_run_is_planned_before_it_begins(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny.yaml", "--plan", "--json", "--threads", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    family = families["llama"](
        vocab=300, width=16, hidden=32, depth=2, heads=2, context=64,
    )  # fmt: skip
    number = count(family.spec())
    assert told["parameters"] == told["trained"] == number
    assert told["weights"] == told["gradients"] == 4 * number
    assert told["optimizer"] == 8 * number
    products = (4 * 16 * 16 + 3 * 16 * 32) * 2 + 16 * 300  # a token's, by hand
    attention = 2 * 2 * 16 * 16  # scores and mixing of 16 places, width 16, 2 layers
    assert told["operations"] == 6 * (products + attention) * 16 * 2
    assert told["seconds"] > 0
    assert not Path("runs").exists()
    assert main(["train", "tiny.yaml", "--plan", "optimizer=sgd", "--threads", "1"]) == 0
    assert "optimizer 0.0 MB" in capsys.readouterr().out


def test_planned_activations_are_what_a_step_keeps(recipe: Path) -> None:
    family = families["llama"].tiny()
    found = plan(read(recipe, ["data.batch=1"]), family.spec())
    model = family.spec().build().initialise(0)  # type: ignore[attr-defined]
    kept: dict[int, torch.Tensor] = {}
    own = {id(p) for p in model.parameters()}

    def keep(value: torch.Tensor) -> torch.Tensor:
        base = value if value._base is None else value._base
        if id(base) not in own:
            kept[base.data_ptr()] = base
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(torch.zeros(16, dtype=torch.long)).logits.sum()
    real = sum(t.numel() * t.element_size() for t in kept.values())
    assert found.activations == pytest.approx(real, rel=0.25)
