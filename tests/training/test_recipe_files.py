"""Every recipe of the tree: what it says is understood, and two steps of it run and go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keifu.checkpoints import whole
from keifu.families._load import open_checkpoint
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
