"""Optimizers against torch's, transformers' and the papers' equations in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Adafactor as TheirAdafactor

from keifu.core.errors import KeifuError
from keifu.training import Optimization, Sequences, Trainer, shuffled
from keifu.training.groups import Group, optimizer_groups
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers import optimizers
from keifu.training.optimizers._eight_bit import bytes_of, codes, packed, unpacked
from keifu.training.optimizers.adafactor import Adafactor
from keifu.training.optimizers.adam import Adam
from keifu.training.optimizers.adam_8bit import Adam8bit
from keifu.training.optimizers.adamw import AdamW
from keifu.training.optimizers.adamw_8bit import AdamW8bit
from keifu.training.optimizers.lion import Lion
from keifu.training.optimizers.muon import Muon, orthogonal
from tests.training.models import VOCAB, transformer

torch.set_num_threads(1)

SHAPES = ((6, 10), (10, 4), (7,), (3, 5, 4))
STEPS = 6


def weights() -> list[nn.Parameter]:
    made = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=made) * 0.3) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=made) * 10.0 ** (step % 3 - 1) for shape in SHAPES]


def stepped(build: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> list[Tensor]:
    parameters = weights()
    optimizer = build(parameters)
    for step in range(STEPS):
        for p, g in zip(parameters, gradients(step), strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in parameters]


def ours(optimization: Optimization) -> list[Tensor]:
    def build(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        group = {"params": parameters, "lr": optimization.lr, "weight_decay": optimization.decay}
        return optimization.build([group])

    return stepped(build)


def close(found: list[Tensor], expected: list[Tensor], atol: float = 1e-5) -> None:
    for mine, theirs, start in zip(found, expected, weights()[: len(found)], strict=True):
        torch.testing.assert_close(mine, theirs.to(mine.dtype), atol=atol, rtol=1e-5)
        assert not torch.allclose(mine, start, atol=1e-3)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adafactor_equals_transformers(relative: bool, momentum: float) -> None:
    expected = stepped(
        lambda p: TheirAdafactor(
            p,
            lr=0.03,
            scale_parameter=relative,
            relative_step=False,
            weight_decay=0.1,
            beta1=momentum or None,
        )
    )
    close(ours(Adafactor(lr=0.03, relative=relative, momentum=momentum, decay=0.1)), expected)


def test_adafactors_own_rate_is_a_schedule() -> None:
    """min(0.01, 1 / sqrt(t)) (section 8): transformers' relative steps."""
    from keifu.training.schedules.inverse_square_root import InverseSquareRoot

    schedule = InverseSquareRoot(timescale=10_000)
    for step in (1, 50, 40_000, 90_000):
        paper = min(0.01, step**-0.5)
        assert 0.01 * schedule.factor(max(0, step - 10_000)) == pytest.approx(paper)


def test_adafactor_holds_a_row_and_a_column() -> None:
    parameter = nn.Parameter(torch.zeros(200, 300))
    optimizer = Adafactor().build([{"params": [parameter]}])
    parameter.grad = torch.ones(200, 300)
    optimizer.step()
    assert bytes_of(optimizer) == 4 * (200 + 300)


def test_lion_is_algorithm_2_in_float64() -> None:
    expected = []
    for number, start in enumerate(weights()):
        w, m = start.detach().double(), torch.zeros(start.shape, dtype=torch.float64)
        for step in range(STEPS):
            g = gradients(step)[number].double()
            c = 0.9 * m + 0.1 * g
            w = w - 0.02 * (torch.sign(c) + 0.3 * w)
            m = 0.99 * m + 0.01 * g
        expected.append(w)
    close(ours(Lion(lr=0.02, decay=0.3)), expected)


@pytest.mark.parametrize("size", ["spectral", "rms"])
def test_muon_equals_torchs_on_matrices_and_adamw_elsewhere(size: str) -> None:
    theirs = "original" if size == "spectral" else "match_rms_adamw"

    def build(parameters: list[nn.Parameter]) -> Any:
        first = torch.optim.Muon(
            parameters[:2], lr=0.05, weight_decay=0.1, momentum=0.9, adjust_lr_fn=theirs
        )
        second = torch.optim.AdamW(parameters[2:3], lr=0.05, weight_decay=0.1, betas=(0.9, 0.95))

        class Both:
            def step(self) -> None:
                first.step()
                second.step()

        return Both()

    found = ours(Muon(lr=0.05, decay=0.1, momentum=0.9, size=size))
    close(found[:3], stepped(build)[:3])


def test_orthogonal_is_near_u_v_and_takes_stacks_of_matrices() -> None:
    x = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(4))
    found = orthogonal(x).float()
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    size = torch.linalg.svdvals(found)
    assert 0.6 < float(size.min()) <= float(size.max()) < 1.25
    assert float(nn.functional.cosine_similarity(found, u @ v, dim=-1).min()) > 0.9
    for one, alone in zip(x, found, strict=True):
        torch.testing.assert_close(orthogonal(one).float(), alone, atol=0.02, rtol=0.02)


def test_muon_splits_groups_by_name() -> None:
    model = transformer()
    optimization = Muon()
    found = optimizer_groups(model, (Group(pattern="*"),), lr=1.0, decay=0.1)
    groups = optimization.build(found).param_groups
    names = {name: group["matrices"] for group in groups for name in group["names"]}
    assert {n for n, _ in model.named_parameters()} == set(names)
    others = {n for n in names if n.startswith(("input.", "head."))}
    assert others
    assert not any(names[n] for n in others)
    assert all(fits == (n.endswith("weight") and "norm" not in n) for n, fits in names.items()
               if n.startswith("blocks."))  # fmt: skip
    with pytest.raises(KeifuError, match="Muon's size 'long': rms or spectral"):
        Muon(size="long")


def test_codes_are_the_papers() -> None:
    """Section 1.3 by hand: 7 decades of 1, 2, 4 ... 64 fractions each way, 0 and 1."""
    signed, unsigned = codes(True), codes(False)
    for table in (signed, unsigned):
        assert len(table) == len(table.unique()) == 256
        assert float(table.max()) == 1.0
        assert 0.0 in table
    assert float(signed.min()) == pytest.approx(-(0.1 + 0.9 * 63.5 / 64))
    assert float(signed[signed > 0].min()) == pytest.approx(0.55e-6)
    assert float(unsigned.min()) == 0.0
    assert float(unsigned[1]) == pytest.approx((0.1 + 0.9 * 0.25) * 1e-6)
    assert ((signed > 0.1) & (signed < 1)).sum() == 64
    assert ((unsigned > 0.1) & (unsigned < 1)).sum() == 128


def test_packed_values_come_back_within_half_a_code() -> None:
    made = torch.Generator().manual_seed(2)
    x = torch.randn(1000, generator=made) * torch.logspace(-6, 3, 1000)
    held, scales = packed(x, True)
    assert (held.dtype, held.shape, scales.shape) == (torch.uint8, (1000,), (4,))
    found = unpacked(held, scales, True)
    table = codes(True).double()
    for block in range(4):
        part = slice(256 * block, min(1000, 256 * block + 256))
        greatest = float(x[part].abs().max())
        assert float(scales[block]) == greatest
        shares = x[part].double() / greatest
        nearest = table[(shares[:, None] - table).abs().argmin(1)]
        torch.testing.assert_close(found[part].double(), nearest * greatest, atol=0, rtol=1e-6)
    assert torch.equal(unpacked(*packed(torch.zeros(300), False), False), torch.zeros(300))


@pytest.mark.parametrize(("eight", "plain"), [(AdamW8bit, AdamW), (Adam8bit, Adam)])
def test_eight_bit_adam_is_adam_with_coarse_moments(
    eight: type[Optimization], plain: type[Optimization]
) -> None:
    close(ours(eight(lr=0.02, decay=0.1)), ours(plain(lr=0.02, decay=0.1)), atol=1e-5)  # small
    size = (80, 64)
    made = torch.Generator().manual_seed(3)
    start = torch.randn(size, generator=made)
    target = torch.randn(size, generator=made)
    found = {}
    for name, kind in (("eight", eight), ("plain", plain)):
        w = nn.Parameter(start.clone())
        optimizer = kind(lr=0.05).build([{"params": [w], "weight_decay": 0.0}])
        for _ in range(60):
            w.grad = 2 * (w.detach() - target)
            optimizer.step()
        found[name] = (float((w.detach() - target).square().mean()), bytes_of(optimizer))
    error = float((start - target).square().mean())
    assert found["plain"][0] < 0.1 * error
    assert found["eight"][0] == pytest.approx(found["plain"][0], rel=0.15, abs=0.01 * error)
    assert found["eight"][1] == 2 * (80 * 64 + 4 * 20)
    assert found["eight"][1] < 0.26 * found["plain"][1]


def test_two_steps_of_eight_bits_are_the_equations_in_float64() -> None:
    """Step 2 sees the moments of step 1 as the nearest codes times the blocks' scales."""
    made = torch.Generator().manual_seed(6)
    start, first, second = torch.randn(3, 4096, generator=made).unbind()
    w = nn.Parameter(start.clone())
    optimizer = AdamW8bit(lr=0.01, decay=0.1).build([{"params": [w], "weight_decay": 0.1}])
    for g in (first, second):
        w.grad = g.clone()
        optimizer.step()

    def coarse(x: Tensor, signed: bool) -> Tensor:
        table, rows = codes(signed).double(), x.view(-1, 256)
        greatest = rows.abs().amax(1, keepdim=True)
        return (table[(rows / greatest)[..., None].sub(table).abs().argmin(-1)] * greatest).view(-1)

    x, m, v = start.double(), torch.zeros(4096).double(), torch.zeros(4096).double()
    for t, g in enumerate((first.double(), second.double()), 1):
        x = x * (1 - 0.01 * 0.1)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        m, v = coarse(m, True), coarse(v, False)
    off = (w.detach().double() - x).abs()
    # a value half-way between two codes may fall to either side in float32
    assert int((off > 1e-5).sum()) <= 4


@pytest.mark.parametrize("name", list(optimizers))
def test_each_learns_and_its_state_is_exact(name: str) -> None:
    kind = optimizers[name]
    made = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, VOCAB, (6,), generator=made) for _ in range(8)]
    data = shuffled(rows, 4, Sequences.of)
    optimization = kind(lr={"sgd": 0.5, "nt-asgd": 0.5, "lion": 3e-3}.get(name, 0.02))

    def trainer(model: nn.Module, steps: int) -> Trainer[Sequences]:
        options = TrainOptions(steps=steps)
        return Trainer(model, CausalLM(), optimization=optimization, options=options)

    whole = transformer()
    history = trainer(whole, 12).fit(data)
    assert history[-1].loss < 0.9 * history[0].loss
    half, again = transformer(), transformer()
    first = trainer(half, 6)
    first.fit(data)
    held = copy.deepcopy(first.state_dict())
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    second = trainer(again, 12)
    second.load_state_dict(held)
    second.fit(data)
    for (key, value), other in zip(whole.state_dict().items(), again.state_dict().values(),
                                   strict=True):  # fmt: skip
        assert torch.equal(value, other), key
