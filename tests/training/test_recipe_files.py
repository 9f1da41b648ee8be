"""Every recipe of the tree: what it says is understood, and two steps of it run and go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keifu.checkpoints import whole
from keifu.families._load import open_checkpoint
from keifu.training.average import Average
from keifu.training.recipe import read
from keifu.training.run import train

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
RECIPES = [name for name in RECIPES if not name.endswith("_data")]  # of `keifu data build`
LARGE = {"continue_smollm2"}
SMALL = ["data.unit=paragraph", "data.length=32", "data.batch=2", "tokenizer.size=600",
         "evaluate.batches=1", "schedule.warmup=1"]  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_understood(name: str) -> None:
    recipe = read(ROOT / "recipes" / f"{name}.yaml")
    assert recipe.plan().factor(recipe.train.steps // 2) > 0


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in LARGE])
def test_two_steps_of_a_recipe_run_and_go_on(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    text = "\n\n".join((ROOT / "docs/training.md").read_text("utf-8").split("\n\n"))
    (tmp_path / "text.txt").write_text(text)
    over = [*SMALL, f"data.sources.text=[{tmp_path / 'text.txt'}]"]
    path = ROOT / "recipes" / f"{name}.yaml"
    assert train(read(path, [*over, "train.steps=2"]), tmp_path / "run").steps == 2
    again = read(path, [*over, "train.steps=3"])
    assert train(again, tmp_path / "run", resume=True, override=True).steps == 3
    found = whole.latest_whole(tmp_path / "run")
    assert found is not None
    assert open_checkpoint(found).family_name == again.model.family


def test_guards_averages_and_muon_are_a_recipes_too(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    (tmp_path / "text.txt").write_text((ROOT / "docs/training.md").read_text("utf-8"))
    name = next(name for name in RECIPES if name not in LARGE)
    over = [*SMALL, f"data.sources.text=[{tmp_path / 'text.txt'}]", "guard.deviations=6",
            "average.decay=0.5", "optimizer={name: muon}", "optimizer.lr=0.001"]  # fmt: skip
    path = ROOT / "recipes" / f"{name}.yaml"
    train(read(path, [*over, "train.steps=2"]), tmp_path / "run")
    kept = read(tmp_path / "run" / "recipe.yaml")
    assert (kept.guard.deviations, kept.average) == (6, Average(decay=0.5))
    again = read(path, [*over, "train.steps=3", "optimizer.decay=0.2"])
    assert train(again, tmp_path / "run", resume=True, override=True).steps == 3
