"""Shares of models over processes: the same logits, half of the bytes, refusals in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from keifu.core.errors import ConfigError
from keifu.families import families
from keifu.nn.attention import Attention
from keifu.nn.kernels.formats import Packed
from keifu.nn.linear import Linear
from keifu.nn.pair import PairModule
from keifu.nn.parallel import parallelize
from keifu.nn.part import build
from keifu.nn.split import Cut, Rank, dense
from keifu.nn.stack import Stack, StackModule
from keifu.nn.state import StatePool, state_bytes
from keifu.nn.step import Step
from tests.nn.processes import together

TOKENS = torch.tensor([[(5 * i * i + 3 * k) % 70 for i in range(9)] for k in range(2)])
DECODERS = [
    "llama", "gemma2", "gpt_2", "mixtral", "qwen2_moe", "bloom", "falcon", "mpt", "opt", "stablelm",
    "gpt_j", "mamba", "griffin", "mamba2", "qwen3", "phi3",
]  # fmt: skip


def whole(name: str) -> Any:
    model = families[name].tiny().spec().build()
    assert isinstance(model, StackModule | PairModule)
    model.initialise(seed=3, std=0.3)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():  # norms and biases, too
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def answered(model: Any) -> torch.Tensor:
    if isinstance(model, PairModule):
        found = model(TOKENS, TOKENS[:, :5]).logits
    else:
        found = model(TOKENS).logits
    assert found is not None
    return found


@torch.no_grad()
def stepwise(model: StackModule) -> torch.Tensor:
    """The same through paged state, in steps of 4, 1 and 4 tokens of two rows."""
    pool = StatePool(model.spec.entries(), budget=1 << 22, slots=4)
    states, outs = [pool.open(), pool.open()], []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        n = stop - start
        for state in states:
            pool.reserve(state, n)
        step = Step(
            positions=torch.arange(start, stop).repeat(2), offsets=(0, n, 2 * n), limits=(9, 9)
        )
        ids = TOKENS[:, start:stop].flatten()
        logits = model.run(ids, step, pool.handles(states, [n, n])).logits
        assert logits is not None
        outs.append(logits.view(2, n, -1))
        for state in states:
            pool.advance(state, n)
    return torch.cat(outs, 1)


def compared(mesh: DeviceMesh, names: list[str]) -> dict[str, tuple[float, float, float, float]]:
    """By family: largest differences whole and stepwise; parameters and state, to the whole's."""
    found = {}
    for name in names:
        model = whole(name)
        mine = parallelize(model, mesh)
        want = answered(model)
        size = max(want.abs().max().item(), 1.0)  # T5's scores, and so its logits, are large
        error, steps = (answered(mine) - want).abs().max().item() / size, 0.0
        if isinstance(mine, StackModule):
            steps = (stepwise(mine) - want).abs().max().item() / size
        sizes = [sum(p.numel() for p in m.parameters()) for m in (mine, model)]
        state = [sum(state_bytes(m.spec.entries(), torch.float32)) for m in (mine, model)]
        found[name] = (error, steps, sizes[0] / sizes[1], state[0] / state[1])
    return found


def graded(model: Any) -> dict[str, torch.Tensor]:
    """Gradients of a loss that weighs every logit, by name."""
    size = model(TOKENS, TOKENS[:, :5]) if isinstance(model, PairModule) else model(TOKENS)
    weights = torch.randn(size.logits.shape, generator=torch.Generator().manual_seed(5))
    (size.logits.tanh() * weights).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def slopes(mesh: DeviceMesh, names: list[str]) -> dict[str, float]:
    """By family: the largest difference of a gradient, relative to the largest of the tensor."""
    found = {}
    for name in names:
        model = whole(name)
        split = model.spec.split(Rank(mesh.get_local_rank(), mesh.size()))
        want, worst = graded(model), 0.0
        mine = graded(parallelize(model, mesh, train=True))
        assert mine.keys() == want.keys(), name
        for path, grad in mine.items():
            cut, (whole_grad,) = split.cuts.get(path), [want[path]]
            if cut is None and path not in split.once:
                dist.all_reduce(grad)
            own = whole_grad if cut is None else torch.cat([*map(dense, cut.of([whole_grad]))])
            off = (grad / mesh.size() - own).abs().max().item()
            worst = max(worst, off / whole_grad.abs().max().clamp(min=1e-3).item())
        found[name] = worst
    return found


def test_two_processes_give_the_gradients_of_one() -> None:
    names = ["llama", "gpt_2", "mixtral", "falcon", "mamba", "qwen3", "t5", "bart"]
    for answers in together(2, slopes, names):
        assert max(answers.values()) < 3e-5, answers  # T5 has large scores


def test_two_processes_give_the_logits_of_one() -> None:
    names = [*DECODERS, "t5", "bart"]
    for answers in together(2, compared, names):
        for name, (error, steps, weights, state) in answers.items():
            assert error < 1e-5, name
            assert steps < 1e-5, name
            if name in ("mamba2", "mpt"):
                assert state == 1.0, "a norm over all heads keeps the mixer whole"
                continue
            assert weights < 0.62, f"{name}: norms and positions alone are everybody's"
            assert state == 0.5 or families[name].tiny().kv_heads == 1


@pytest.mark.slow
def test_four_processes_share_two_kv_heads() -> None:
    for answers in together(4, compared, ["llama", "gemma2", "gpt_2", "mixtral", "t5"]):
        for name, (error, steps, weights, _) in answers.items():
            assert max(error, steps) < 1e-5, name
            assert weights < 0.5, name


def narrowed(part: Any, rank: int, size: int) -> Any:
    return part.split(Rank(rank, size)).part


def test_fewer_kv_heads_than_processes_are_held_by_several() -> None:
    part = Attention(width=64, heads=8, kv_heads=2, head_width=8)
    shares = [narrowed(part, rank, 4) for rank in range(4)]
    assert {(s.heads, s.kv_heads) for s in shares} == {(2, 1)}
    cuts = [part.split(Rank(rank, 4)).cuts["qkv.weight"].runs[1] for rank in range(4)]
    assert cuts == [(64, 72), (64, 72), (72, 80), (72, 80)]


def test_what_does_not_split_says_by_what_it_does() -> None:
    part = Attention(width=72, heads=9, kv_heads=3, head_width=8)
    with pytest.raises(ConfigError, match="9 heads cannot be split over 2 processes: use 3 or 9"):
        part.split(Rank(0, 2))
    spec = families["llama"].tiny().spec()
    assert isinstance(spec, Stack)
    with pytest.raises(ConfigError, match="heads cannot be split over 64 processes: use 2 or"):
        spec.split(Rank(0, 64))


def test_every_family_splits_or_says_why_and_shares_make_the_whole() -> None:
    """Each rank's parameters are those of its own part; all cuts together are the whole."""
    split = 0
    for name in families:
        spec = families[name].tiny().spec()
        if not hasattr(spec, "entries"):
            continue
        try:
            shares = [spec.split(Rank(rank, 2)) for rank in range(2)]
        except ConfigError:
            continue
        shapes = dict(build(spec, device="meta").named_parameters())
        for share in shares:
            for path, parameter in build(share.part, device="meta").named_parameters():
                cut = share.cuts.get(path)
                if cut is None:
                    assert parameter.shape == shapes[path].shape, (name, path)
                    continue
                assert cut.whole(parameter.shape) == shapes[path].shape, (name, path)
                assert parameter.shape[cut.dim] == sum(b - a for a, b in cut.runs), (name, path)
                runs = sorted(run for s in shares for run in s.cuts[path].runs)
                covered = {i for a, b in runs for i in range(a, b)}
                assert covered == set(range(cut.total)), (name, path)
            for path in share.joins:
                build(share.part, device="meta").get_submodule(path)
        split += bool(shares[0].cuts)
    assert split > 30


def test_packed_rows_stay_packed_where_the_cut_falls_between_blocks() -> None:
    values = torch.randn(12, 128, generator=torch.Generator().manual_seed(0))
    pieces = [Packed.quantize(values[:8], "q4_0"), Packed.quantize(values[8:], "q8_0")]
    whole = torch.cat([p.dequantize() for p in pieces])
    rows = Cut(0, 12, ((2, 4), (7, 10))).of(pieces)
    assert [p.format.name for p in rows if isinstance(p, Packed)] == ["q4_0", "q4_0", "q8_0"]
    index = [2, 3, 7, 8, 9]
    assert torch.equal(torch.cat([p.dequantize() for p in rows]), whole[index])
    columns = Cut(1, 128, ((32, 96),)).of(pieces)
    assert all(isinstance(p, Packed) for p in columns)
    assert torch.equal(torch.cat([p.dequantize() for p in columns]), whole[:, 32:96])
    within = Cut(1, 128, ((30, 90),)).of(pieces)
    assert torch.equal(torch.cat(within), whole[:, 30:90])


def packed(mesh: DeviceMesh) -> tuple[float, float]:
    """How far shares of packed rows and the packed whole are from the decoded one."""
    family = replace(
        families["llama"].tiny(), width=64, heads=2, kv_heads=2, head_width=32, hidden=128
    )
    made = family.spec().build().initialise(seed=3, std=0.3).eval()
    linears = [m for m in made.modules() if isinstance(m, Linear)]
    for module in linears:
        module.pack([Packed.quantize(module.dense(), "q8_0")])
    mine = parallelize(made, mesh)
    assert all(m.weight is None for m in mine.modules() if isinstance(m, Linear))
    found = answered(mine), answered(made)
    for module in linears:
        module.weight, module.pieces = torch.nn.Parameter(module.dense()), ()
    exact = answered(made)
    mine_off, whole_off = ((each - exact).abs().max().item() for each in found)
    return mine_off, whole_off


def test_packed_weights_over_two_processes() -> None:
    """Products of packed rows round to bfloat16, of shares no more than of the whole."""
    for mine, whole_off in together(2, packed):
        assert mine < 1.5 * whole_off
