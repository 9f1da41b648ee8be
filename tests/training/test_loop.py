"""The loop: equal to a plain PyTorch loop bit for bit, and honest about bad steps."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keifu.core.errors import KeifuError
from keifu.training import Group, Loss, Objective, Sequences, Trainer, evaluate, shuffled
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM, shifted
from keifu.training.optimizers.adamw import AdamW
from keifu.training.optimizers.nt_asgd import NTASGD
from keifu.training.optimizers.sgd import SGD
from keifu.training.schedules.linear import Linear
from tests.training.models import VOCAB, lstm, transformer

torch.set_num_threads(1)


def rows(count: int = 12) -> list[Tensor]:
    made = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCAB, (2 + i % 7,), generator=made) for i in range(count)]


DATA = shuffled(rows(), 4, Sequences.of, seed=5)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def plain(model: Any, steps: int, accumulate: int) -> list[float]:
    """The same run written out."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    spared = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}],
        lr=0.01,
        fused=True,
    )
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        total, count = 0.0, 0
        for number in range(step * accumulate, (step + 1) * accumulate):
            batch = DATA(number)
            logits = model.run(batch.ids, batch.step()).logits
            keep = torch.ones(len(batch.ids), dtype=torch.bool)
            keep[torch.tensor(batch.lengths).cumsum(0) - 1] = False
            wanted = batch.ids.roll(-1)[keep]
            loss = F.cross_entropy(logits[keep], wanted, reduction="sum")
            loss.backward()
            total, count = total + float(loss.detach()), count + len(wanted)
        for p in model.parameters():
            p.grad /= count
        nn.utils.clip_grad_norm_([*decayed, *spared], 0.5)
        factor = step / 3 if step < 3 else (20 - step) / (20 - 3)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * factor
        optimizer.step()
        losses.append(total / count)
    return losses


class Whole(CausalLM):
    """The same objective by PyTorch's own functions on whole logits, to compare bits."""

    def __call__(self, model: Any, batch: Sequences) -> Loss:
        at, labels = shifted(batch)
        logits = model.run(batch.ids, batch.step()).logits[at]
        return Loss(total=F.cross_entropy(logits, labels, reduction="sum"), count=len(labels))


def trainer(
    model: nn.Module, steps: int, accumulate: int = 1, objective: CausalLM = CausalLM()
) -> Trainer[Sequences]:
    return Trainer(
        model,
        objective,
        optimization=AdamW(lr=0.01, decay=0.1),
        schedule=Linear(total=20, warmup=3),
        groups=(Group(pattern="*", vectors=False),),
        options=TrainOptions(steps=steps, accumulate=accumulate, clip=0.5),
    )


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("make", [lstm, transformer])
def test_equals_a_plain_loop_bit_for_bit(make: Any, accumulate: int) -> None:
    mine, theirs = make(), make()
    history = trainer(mine, 8, accumulate, Whole()).fit(DATA)
    losses = plain(theirs, 8, accumulate)
    assert [r.loss for r in history] == losses
    assert torch.equal(weights(mine), weights(theirs))
    # Logits in chunks round otherwise. (So do Adam's steps of key biases, whose gradient is 0.)
    found = trainer(make(), 8, accumulate).fit(DATA)
    assert [r.loss for r in found] == pytest.approx(losses, abs=1e-5)
    assert not torch.equal(weights(mine), weights(make()))
    assert history[-1].norm > 0
    assert [r.step for r in history] == list(range(8))
    assert not mine.training


def test_one_batch_of_eight_two_of_four_and_eight_of_one_are_one_step() -> None:
    """Ragged rows: the step divides by all its tokens, it does not average averages."""
    ragged, found = rows(8), []
    for size in (8, 4, 1):
        model = transformer()
        data = [Sequences.of(ragged[i : i + size]) for i in range(0, 8, size)]
        options = TrainOptions(steps=1, accumulate=8 // size, clip=None)
        history = Trainer(model, CausalLM(), optimization=SGD(lr=1.0), options=options).fit(
            lambda number, data=data: data[number]  # type: ignore[misc]
        )
        found.append((history[0], weights(model)))
    for record, after in found[1:]:
        assert record.loss == pytest.approx(found[0][0].loss, abs=1e-5)
        assert record.norm == pytest.approx(found[0][0].norm, abs=1e-5)
        assert record.count == found[0][0].count == sum(len(r) - 1 for r in ragged)
        torch.testing.assert_close(after, found[0][1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0][1], weights(transformer()), atol=1e-2)


class Noisy(nn.Module):
    """A stack whose input is dropped at random, so that the generator matters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = lstm()


@dataclass(frozen=True, kw_only=True)
class DroppedLM(Objective[Sequences]):
    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        assert isinstance(model, Noisy)
        out = model.inner.run(batch.ids, batch.step())
        hidden = F.dropout(out.hidden, 0.5, model.training)
        logits = model.inner.logits(hidden)
        assert logits is not None
        return Loss(total=F.cross_entropy(logits, batch.ids, reduction="sum"), count=len(batch.ids))


def test_a_run_continues_as_if_it_had_not_stopped() -> None:
    whole, first = Noisy(), Noisy()
    options = TrainOptions(steps=7)
    expected = Trainer(whole, DroppedLM(), options=options).fit(DATA)
    held: dict[str, Any] = {}

    class Stopped(Exception):
        pass

    def stop(record: Any) -> None:
        if record.step == 3:
            raise Stopped

    broken = Trainer(first, DroppedLM(), options=options, on_step=(stop,))
    with pytest.raises(Stopped):
        broken.fit(DATA)
    held = copy.deepcopy({"weights": first.state_dict(), **broken.state_dict()})
    second = Noisy()
    second.load_state_dict(held["weights"])
    again = Trainer(second, DroppedLM(), options=options)
    again.load_state_dict(held)
    assert [r.loss for r in again.fit(DATA)] == [r.loss for r in expected[4:]]
    assert [r.batches for r in again.history] == [(4, 5), (5, 6), (6, 7)]
    assert torch.equal(weights(second), weights(whole))


def test_the_seed_decides_and_the_callers_generator_is_left_alone() -> None:
    found = []
    for seed in (0, 0, 1):
        model = Noisy()
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        Trainer(model, DroppedLM(), options=TrainOptions(steps=3, seed=seed)).fit(DATA)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@dataclass(frozen=True, kw_only=True)
class Spoilt(CausalLM):
    bad: frozenset[int] = frozenset()

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        loss = super().__call__(model, batch)
        factor = float("nan") if int(batch.ids[0]) in self.bad else 1.0
        return Loss(total=loss.total * factor, count=loss.count)


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    model = lstm()
    start = weights(model)
    seen: list[Tensor] = []
    options = TrainOptions(steps=4)
    batches = [Sequences.of([[first, 2, 3]]) for first in (1, 7, 1, 1)]
    trainer = Trainer(
        model, Spoilt(bad=frozenset({7})), options=options,
        on_step=(lambda record: seen.append(weights(model)),),
    )  # fmt: skip
    history = trainer.fit(lambda number: batches[number])
    assert [r.skipped for r in history] == [False, True, False, False]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], start)
    assert not torch.equal(seen[1], seen[2])
    assert torch.isfinite(seen[3]).all()
    assert trainer.state.skipped == 1
    with pytest.raises(
        KeifuError, match=r"3 steps in a row to step 3 .*batches 1, 2, 3.*lower the learning rate"
    ):
        Trainer(model, Spoilt(bad=frozenset({7})), options=TrainOptions(bad_steps=3)).fit(
            lambda number: batches[number > 0]
        )


def test_data_that_is_empty_or_says_nothing_is_an_error() -> None:
    with pytest.raises(KeifuError, match="step 0 has no item"):
        Trainer(lstm(), CausalLM()).fit(lambda number: Sequences.of([[1], [2]]))
    with pytest.raises(KeifuError, match="steps, accumulate"):
        TrainOptions(steps=0)
    with pytest.raises(KeifuError, match="0 items cannot make batches of 4"):
        shuffled([], 4, Sequences.of)


def test_epochs_hold_every_item_once_in_orders_of_their_own() -> None:
    made = shuffled(list(range(10)), 3, tuple, seed=1)
    seen = [i for number in range(10) for i in made(number)]
    orders = [seen[:10], seen[10:20], seen[20:]]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert made(0) == tuple(seen[:3]), "the same each time it is asked for"
    by_one = shuffled(list(range(10)), 1, tuple, seed=1)
    assert [i for number in range(30) for i in by_one(number)] == seen, "whatever the batch's size"


def test_evaluation_is_one_division_over_all_batches() -> None:
    model, every = transformer().train(), rows()
    mean, metrics = evaluate(model, CausalLM(), [Sequences.of(every[:5]), Sequences.of(every[5:])])
    total = sum(
        float(F.cross_entropy(model(r).logits[:-1], r[1:], reduction="sum").detach()) for r in every
    )
    assert mean == pytest.approx(total / sum(len(r) - 1 for r in every), rel=1e-5)
    assert 0 <= metrics["accuracy"] <= 1
    assert model.training


def test_asgd_averages_from_the_trigger_on() -> None:
    model = lstm()
    seen: list[Tensor] = []
    losses = iter([5.0, 4.0, 6.0, 4.5, 4.4, 1.0, 1.0, 1.0])
    trainer: Trainer[Sequences]

    def validate(record: Any) -> None:
        seen.append(weights(model))
        trainer.optimizer.validated(next(losses))  # type: ignore[attr-defined]

    trainer = Trainer(
        model, CausalLM(), optimization=NTASGD(lr=0.5, patience=2),
        options=TrainOptions(steps=8), on_step=(validate,),
    )  # fmt: skip
    trainer.fit(DATA)
    # 4.5 (the fourth) is no worse than 5, the best but for the last two; 4.4 is worse than 4
    optimizer: Any = trainer.optimizer
    assert optimizer.triggered
    mean = torch.stack(seen[5:]).mean(0)
    with optimizer.averaged():
        torch.testing.assert_close(weights(model), mean, atol=1e-6, rtol=1e-6)
    assert torch.equal(weights(model), seen[-1])
    plain = lstm()
    reference = Trainer(plain, CausalLM(), optimization=SGD(lr=0.5), options=TrainOptions(steps=8))
    reference.fit(DATA)
    assert torch.equal(weights(plain), weights(model)), "SGD goes on beside the mean"
    optimizer.finish()
    torch.testing.assert_close(weights(model), mean, atol=1e-6, rtol=1e-6)


def test_a_bar_is_shown_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    options = TrainOptions(steps=3, progress=True)
    Trainer(lstm(), CausalLM(), options=options).fit(DATA)
    assert "3/3" in capsys.readouterr().err


def test_training_a_loaded_model_turns_its_gradients_on() -> None:
    model = lstm()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    start = weights(model)
    Trainer(model, CausalLM(), options=TrainOptions(steps=1)).fit(DATA)
    assert not torch.equal(weights(model), start)


def test_a_weight_that_lies_transposed_learns_as_any_other() -> None:
    """As Hugging Face's GPT-2 has them: a fused update reads weights and moments in one order."""
    plain, turned = transformer(), transformer()
    for parameter in turned.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.T.contiguous().T
    first = Trainer(turned, CausalLM(), options=TrainOptions(steps=3))
    first.fit(DATA)
    again = transformer()
    again.load_state_dict(turned.state_dict())
    for parameter in again.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.T.contiguous().T
    second = Trainer(again, CausalLM(), options=TrainOptions(steps=6))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.fit(DATA)
    Trainer(plain, CausalLM(), options=TrainOptions(steps=6)).fit(DATA)
    assert torch.equal(weights(plain), weights(again))
