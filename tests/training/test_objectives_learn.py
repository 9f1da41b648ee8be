"""Each objective lowers the held-out loss on real text: the recipe that shows it."""

from __future__ import annotations

import pytest
import torch

from recipes.objectives import TRAINED, losses, manual


def test_next_words_are_learnt_in_a_few_steps() -> None:
    torch.set_num_threads(1)
    before, after = losses("causal-lm", manual(), steps=25)
    assert before - after > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_every_objective_lowers_the_held_out_loss(name: str) -> None:
    torch.set_num_threads(1)
    before, after = losses(name, manual())
    assert before - after > (0.2 if name == "contrastive" else 0.5)
