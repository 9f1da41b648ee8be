"""Precision, recomputation, averages, watches and the bar beside the loop."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from keifu.core.errors import KeifuError
from keifu.families import families
from keifu.training import Pairs, Sequences, Trainer, evaluate, shuffled
from keifu.training.average import Average
from keifu.training.computing import at_precision, recomputed
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.objectives.seq2seq import Seq2Seq
from keifu.training.optimizers.adamw import AdamW
from keifu.training.optimizers.sgd import SGD
from keifu.training.rate import Operations, peak, tokens
from keifu.training.watch import HeldOut, Samples
from tests.training.models import VOCAB, lstm, pair, transformer

torch.set_num_threads(1)


def rows(count: int = 12) -> list[Tensor]:
    made = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCAB, (2 + i % 7,), generator=made) for i in range(count)]


DATA = shuffled(rows(), 4, Sequences.of, seed=5)
PAIRS = shuffled(rows(), 4, lambda some: Pairs.of(some, some))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("make", "objective", "data"),
    [(transformer, CausalLM(), DATA), (pair, Seq2Seq(), PAIRS), (lstm, CausalLM(), DATA)],
)
def test_computing_blocks_again_changes_no_bit(make: Any, objective: Any, data: Any) -> None:
    plain, spared = make(), make()
    Trainer(plain, objective, options=TrainOptions(steps=4)).fit(data)
    Trainer(spared, objective, options=TrainOptions(steps=4, recompute=True)).fit(data)
    assert torch.equal(weights(plain), weights(spared))
    assert not torch.equal(weights(plain), weights(make()))


def test_computing_again_keeps_less() -> None:
    """Bytes that autograd keeps for the gradient, with the blocks' insides and without."""
    model = transformer()
    batch = Sequences.of([torch.arange(64) % VOCAB])

    def kept(on: bool) -> int:
        held: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            held[x.data_ptr()] = x.numel() * x.element_size()
            return x

        with recomputed(model, on), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            CausalLM()(model, batch).total.backward()
        return sum(held.values())

    assert kept(True) < 0.6 * kept(False)
    assert "forward" not in vars(model.blocks[0])
    with pytest.raises(KeifuError, match="a Linear has no blocks"), recomputed(nn.Linear(2, 2)):
        pass


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_learn_the_same(recompute: bool) -> None:
    """Needs a C++ compiler. SGD, since Adam makes steps of roundings where a gradient is zero."""
    data = shuffled([torch.arange(i, i + 8) for i in range(12)], 4, Sequences.of)
    plain, fast = transformer(), transformer()
    Trainer(plain, CausalLM(), optimization=SGD(lr=0.3), options=TrainOptions(steps=4)).fit(data)
    options = TrainOptions(steps=4, compile=True, recompute=recompute)
    Trainer(fast, CausalLM(), optimization=SGD(lr=0.3), options=options).fit(data)
    torch.testing.assert_close(weights(fast), weights(plain), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(weights(fast), weights(transformer()), atol=1e-3)
    assert fast.blocks[0]._compiled_call_impl is None


def test_bf16_is_autocast_and_the_weights_stay_float32() -> None:
    model, plain = transformer(), transformer()
    optimization = AdamW(lr=0.01)
    history = Trainer(
        model, CausalLM(), optimization=optimization,
        options=TrainOptions(steps=6, precision="bf16", clip=None),
    ).fit(DATA)  # fmt: skip
    reference = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.01, fused=True)
    for step in range(6):
        reference.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = CausalLM()(plain, DATA(step))
        loss.total.backward()
        for parameter in plain.parameters():
            assert parameter.grad is not None
            parameter.grad /= loss.count
        reference.step()
        assert history[step].loss == float(loss.total.detach()) / loss.count
    assert torch.equal(weights(model), weights(plain))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    exact = Trainer(transformer(), CausalLM(), options=TrainOptions(steps=1)).fit(DATA)
    assert history[0].loss != exact[0].loss
    assert history[0].loss == pytest.approx(exact[0].loss, rel=0.02)
    with pytest.raises(KeifuError, match=r"bf17.*nearest: bf16"):
        TrainOptions(precision="bf17")


@pytest.mark.parametrize(("every", "after"), [(1, 0), (2, 3)])
def test_the_average_is_torchs_and_continues_exactly(every: int, after: int) -> None:
    average = Average(decay=0.8, every=every, after=after)
    model = transformer()
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))

    def theirs(record: Any) -> None:
        if record.step >= after and (record.step - after) % every == 0:
            reference.update_parameters(model)

    def made(model: nn.Module, steps: int, **more: Any) -> Trainer[Sequences]:
        options = TrainOptions(steps=steps)
        return Trainer(model, CausalLM(), average=average, options=options, **more)

    whole = made(model, 9, on_step=(theirs,))
    whole.fit(DATA)
    trained = weights(model)
    with whole.averaged():
        torch.testing.assert_close(weights(model), weights(reference), atol=1e-6, rtol=1e-6)
        assert not torch.equal(weights(model), trained)
    assert torch.equal(weights(model), trained)
    first, second = transformer(), transformer()
    half = made(first, 5)
    half.fit(DATA)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    again = made(second, 9)
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    again.fit(DATA)
    assert whole.average is not None
    assert again.average is not None
    for name, mean in whole.average.means.items():
        assert torch.equal(mean, again.average.means[name])
    with pytest.raises(KeifuError, match=r"decay must be in \[0, 1\)"):
        Average(decay=1.0)


def test_held_out_batches_and_samples_are_taken_of_the_average_and_change_nothing() -> None:
    held = [Sequences.of(rows()[:5]), Sequences.of(rows()[5:])]
    model, plain, seen = transformer(), transformer(), []

    def say(given: nn.Module) -> list[str]:
        assert not given.training
        seen.append(weights(given))
        return [f"{torch.rand(1).item():.3f}"]  # draws, which the run must not notice

    made = Trainer(
        model, CausalLM(), average=Average(decay=0.5), options=TrainOptions(steps=7),
        watch=(HeldOut(lambda: held, every=3), Samples(say, every=5)),
    )  # fmt: skip
    history = made.fit(DATA)
    assert [sorted(r.found) for r in history] == [
        [], [], ["held_out"], [], ["samples"], ["held_out"], ["held_out", "samples"],
    ]  # fmt: skip
    with made.averaged():
        loss, metrics = evaluate(model, CausalLM(), held)
        assert torch.equal(seen[-1], weights(model))
    assert history[-1].found["held_out"] == {"loss": loss, **metrics}
    Trainer(plain, CausalLM(), options=TrainOptions(steps=7)).fit(DATA)
    assert torch.equal(weights(model), weights(plain))
    with pytest.raises(KeifuError, match="every 0 steps"):
        Samples(say, every=0)


@pytest.mark.parametrize("name", ["gpt-2", "llama"])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    """PaLM's rule against torch's counter of matrix products, forward and back.

    torch does not count its own attention: scores and their use, twice that again backwards.
    """
    family: Any = families[name].tiny()
    model: Any = family.spec().build()
    model.initialise(0, std=0.1)
    batch = Sequences.of([torch.arange(40) % 20])
    with FlopCounterMode(display=False) as counter:
        model(batch.ids).logits.square().sum().backward()
    attention = family.depth * 3 * 2 * (2 * 40 * 40 * family.width)
    expected = counter.get_total_flops() + attention
    assert Operations(model).of(batch) == pytest.approx(expected, rel=1e-6)
    pairs = Pairs.of([[1, 2, 3]], [[1, 2]])
    assert (tokens(batch), tokens(pairs), tokens(None)) == (40, 5, 0)
    assert Operations(nn.Linear(2, 2)).of(batch) == 0
    assert Operations(pair()).of(pairs) > 0


def test_the_bar_tells_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    options = TrainOptions(steps=3, progress=True)
    history = Trainer(transformer(), CausalLM(), options=options).fit(DATA)
    assert [r.tokens for r in history] == [sum(DATA(n).lengths) for n in range(3)]
    assert re.search(r"[\d,]+ tok/s, \d+% of peak", capsys.readouterr().err)
    assert peak(torch.device("cpu"), "float32") > 1e8


def test_a_run_can_be_stopped_and_goes_on() -> None:
    whole, model = transformer(), transformer()
    Trainer(whole, CausalLM(), options=TrainOptions(steps=6)).fit(DATA)
    made = Trainer(
        model, CausalLM(), options=TrainOptions(steps=6),
        on_step=(lambda record: made.stop() if record.step == 2 else None,),
    )  # fmt: skip
    assert len(made.fit(DATA)) == 3
    with at_precision("float32", made.device):
        assert len(made.fit(DATA)) == 6
    assert torch.equal(weights(whole), weights(model))
