"""Guards: spikes are left out, runs go back past them without the batches that led there."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from keifu.core.errors import KeifuError
from keifu.training import Loss, Sequences, Trainer, shuffled
from keifu.training.average import Average
from keifu.training.guard import Diverged, Guard, Sentry, numbers
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.adamw import AdamW
from tests.training.models import VOCAB, lstm

torch.set_num_threads(1)
MARK = VOCAB - 1


def rows() -> list[Tensor]:
    made = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCAB - 1, (6,), generator=made) for _ in range(12)]


DATA = shuffled(rows(), 4, Sequences.of, seed=5)


def with_bad(*bad: int) -> Any:
    """The data with a mark on some batches."""
    spoilt = Sequences.of([[MARK, 1, 2]])
    return lambda number: spoilt if number in bad else DATA(number)


@dataclass(frozen=True, kw_only=True)
class Marked(CausalLM):
    """A loss that is `times` as large on marked batches."""

    times: float = 100.0

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        loss = super().__call__(model, batch)
        factor = self.times if int(batch.ids[0]) == MARK else 1.0
        return Loss(total=loss.total * factor, count=loss.count)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trainer(model: nn.Module, steps: int, guard: Guard, **more: Any) -> Trainer[Sequences]:
    bad, options = more.pop("bad_steps", 1), more.pop("options", {})
    return Trainer(
        model, Marked(times=more.pop("times", 100.0)), optimization=AdamW(lr=0.01), guard=guard,
        options=TrainOptions(steps=steps, bad_steps=bad, **options), **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "guard", [Guard(deviations=6.0, window=4), Guard(norm=5.0, window=4)], ids=["loss", "norm"]
)
def test_a_spike_is_left_out(guard: Guard) -> None:
    model, seen = lstm(), []
    made = trainer(
        model, 9, guard, bad_steps=3, on_step=(lambda record: seen.append(weights(model)),)
    )
    history = made.fit(with_bad(6))
    assert [r.step for r in history if r.skipped] == [6]
    assert torch.equal(seen[5], seen[6])
    assert not torch.equal(seen[6], seen[7])
    assert (made.state.skipped, made.state.step, made.state.batch) == (1, 9, 9)
    early = trainer(lstm(), 9, guard, bad_steps=3).fit(with_bad(2))
    assert not any(r.skipped for r in early), "nothing is judged before the window is full"
    loose = trainer(lstm(), 9, Guard(), bad_steps=3).fit(with_bad(6))
    assert not any(r.skipped for r in loose), "no guard, no spike"


def test_the_judgement_is_mean_and_deviation_by_hand() -> None:
    """Of 1, 2, 3, 4: mean 2.5, standard deviation sqrt(1.25) = 1.118; 2 of them end at 4.736."""
    sentry = Sentry(Guard(deviations=2.0, window=4))
    for loss in (1.0, 2.0, 3.0, 4.0):
        assert sentry.judge(loss, 1.0, (0, 1))
    assert not sentry.judge(4.74, 1.0, (4, 5))
    assert sentry.bad == [(4, 5)]
    assert not sentry.judge(float("nan"), 1.0, (5, 6))
    assert not sentry.judge(1.0, float("inf"), (6, 7))
    assert sentry.judge(4.73, 1.0, (7, 8))
    assert sentry.bad == []
    even = Sentry(Guard(deviations=2.0, window=2))
    assert all(even.judge(loss, 1.0, (0, 1)) for loss in (2.0, 2.0, 2.09))
    assert not even.judge(2.2, 1.0, (3, 4)), "5 % above an even loss"
    assert numbers([(3, 4), (8, 12)]) == "3, 8 to 11"


@pytest.mark.parametrize("times", [100.0, float("nan")])
def test_a_run_goes_back_and_passes_over_the_batches(times: float) -> None:
    """States before steps 0, 3, 6 and 9 are kept, two at a time: step 10 goes back to 6, so the
    whole is a run whose step 6 takes batch 11."""
    guard = Guard(deviations=6.0, window=4, back=3)
    model, plain = lstm(), lstm()
    average = Average(decay=0.5)
    made = trainer(model, 12, guard, times=times, average=average)
    history = made.fit(with_bad(10))
    assert [r.step for r in history] == [*range(11), *range(6, 12)]
    assert [r.back_to for r in history if r.back_to is not None] == [6]
    assert [r.batches[0] for r in history] == [*range(11), *range(11, 17)]
    expected = trainer(plain, 12, Guard(), average=average)
    expected.fit(lambda number: DATA(number if number < 6 else number + 5))
    assert torch.equal(weights(model), weights(plain))
    assert made.average is not None
    assert expected.average is not None
    for name, mean in expected.average.means.items():
        assert torch.equal(mean, made.average.means[name])
    assert (made.state.step, made.state.batch, made.state.skipped) == (12, 17, 1)


def test_it_stops_after_so_many_times_and_names_the_batches() -> None:
    guard = Guard(back=2, rewinds=2)
    made = trainer(lstm(), 20, guard, times=float("nan"), bad_steps=2)
    bad = {4, 5, 8, 9, 12, 13}
    with pytest.raises(Diverged, match=r"2 steps in a row .*batches 12, 13\): lower") as caught:
        made.fit(with_bad(*bad))
    assert caught.value.batches == [(12, 13), (13, 14)]
    assert [r.back_to for r in made.history if r.back_to is not None] == [2, 2]
    assert torch.isfinite(weights(made.model)).all()
    with pytest.raises(KeifuError, match="window must be 2"):
        Guard(window=1)
    with pytest.raises(KeifuError, match="deviations 0"):
        Guard(deviations=0.0)


def test_judging_continues_as_if_it_had_not_stopped() -> None:
    guard = Guard(deviations=6.0, window=4)
    whole, first, second = lstm(), lstm(), lstm()
    expected = trainer(whole, 9, guard, bad_steps=3).fit(with_bad(6))
    broken = trainer(first, 5, guard, bad_steps=3)
    broken.fit(with_bad(6))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    again = trainer(second, 9, guard, bad_steps=3)
    again.load_state_dict(copy.deepcopy(broken.state_dict()))
    found = again.fit(with_bad(6))
    assert [(r.loss, r.skipped) for r in found] == [(r.loss, r.skipped) for r in expected[5:]]
    assert any(r.skipped for r in found)
    assert torch.equal(weights(whole), weights(second))
