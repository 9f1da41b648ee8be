"""The selective scan: native, in PyTorch and token by token; its gradients; what it refuses."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.core.errors import KeifuError
from keifu.nn import selective as form
from keifu.nn.conv import ShortConv
from keifu.nn.kernels import scans
from keifu.nn.selective import Selection, selective
from keifu.nn.step import fresh_step
from tests.nn.splits import check, drawn

LENGTHS = [70, 1, 0, 129]


def given(inner: int = 32, states: int = 5, dtype: torch.dtype = torch.float32) -> Selection:
    made = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=dtype)

    tokens = sum(LENGTHS)
    return Selection(
        x=draw(tokens, inner),
        dt=F.softplus(draw(tokens, inner)),
        b=draw(tokens, states),
        c=draw(tokens, states),
        gate=draw(tokens, inner),
        poles=-draw(states, inner).exp(),
        d=draw(inner),
    )


def sequential(s: Selection, start: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Eq. 2 and 4 of the paper, one token after another, in float64."""
    x, dt, b, c, gate, poles, d = (t.double() for t in s.tensors())
    at, outs, last = 0, [], []
    for row, n in enumerate(lengths):
        h = start[row].double()
        for t in range(at, at + n):
            h = torch.exp(dt[t] * poles) * h + b[t][:, None] * (dt[t] * x[t])
            outs.append(((c[t] @ h) + d * x[t]) * gate[t] * torch.sigmoid(gate[t]))
        last.append(h)
        at += n
    return torch.stack(outs), torch.stack(last)


def start_of(s: Selection) -> Tensor:
    shape = (len(LENGTHS), *s.poles.shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=s.x.dtype)


@torch.no_grad()
@pytest.mark.parametrize("states", [1, 5, 16])
@pytest.mark.parametrize("level", [*scans.features(), None])
def test_native_and_torch_are_the_sequential_loop(level: str | None, states: int) -> None:
    s = given(45, states)
    start = start_of(s)
    expected, after = sequential(s, start, LENGTHS)
    if level is None:
        y, last = selective(s, start, LENGTHS, native=False)
    else:
        assert scans.takes(*s.tensors(), start)
        y, last = scans.selective(*s.tensors(), start, LENGTHS, level=level)
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last.double(), after, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_scan_and_recurrence_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    s = given()
    outs = []
    for moments in (0, 1 << 20):
        monkeypatch.setattr(form, "MOMENTS", moments)
        outs.append(selective(s, start_of(s), LENGTHS, native=False))
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_strided_rows_and_shared_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of wider rows, and channels shared out among threads."""
    s = given(80)
    wider = torch.cat([s.x, s.gate, s.dt, s.b, s.c], 1)
    x, gate, dt, b, c = wider.split([80, 80, 80, 5, 5], 1)
    start = start_of(s)
    whole = scans.selective(*s.tensors(), start, LENGTHS)
    monkeypatch.setattr(scans, "ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    viewed = replace(s, x=x, gate=gate, dt=dt, b=b, c=c)
    for a, b in zip(scans.selective(*viewed.tensors(), start, LENGTHS), whole, strict=True):
        assert torch.equal(a, b)


def test_gradients_are_the_sequential_loop_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Analytic against numeric differences in float64, and against the loop's own gradients."""
    monkeypatch.setattr(form, "CHUNK", 3)
    s, lengths = given(4, 2, torch.float64), [5, 2]
    cut = [f.name for f in fields(Selection) if f.name not in ("poles", "d")]
    s = replace(s, **{name: getattr(s, name)[:7] for name in cut})
    start = torch.randn(2, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inputs = [t.clone().requires_grad_() for t in (*s.tensors(), start)]

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return selective(Selection(**dict(zip(NAMES, tensors, strict=False))), tensors[-1], lengths)

    for moments in (0, 1 << 20):
        monkeypatch.setattr(form, "MOMENTS", moments)
        assert torch.autograd.gradcheck(run, inputs)
    monkeypatch.setattr(form, "MOMENTS", 0)
    found = torch.autograd.grad(run(*inputs)[0].sin().sum(), inputs)
    plain = Selection(**dict(zip(NAMES, inputs, strict=False)))
    wanted = torch.autograd.grad(sequential(plain, inputs[-1], lengths)[0].sin().sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


NAMES = [f.name for f in fields(Selection)]


def test_the_scan_keeps_less_than_all_states_for_its_gradient() -> None:
    """One chunk's states at a time: what autograd keeps does not hold (tokens, states, inner)."""
    s = given(32, 64)
    lengths = [200]
    start = torch.zeros(1, 64, 32)
    kept = 0

    def count(t: Tensor) -> Tensor:
        nonlocal kept
        kept += t.numel()
        return t

    s = replace(s, x=s.x.requires_grad_())
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        y, _ = selective(s, start, lengths)
    assert kept < 200 * 64 * 32 // 4
    y.sum().backward()
    assert s.x.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("level", scans.features())
@pytest.mark.parametrize("taps", [1, 2, 4, 8])
def test_the_native_filter_is_the_convolution(taps: int, level: str) -> None:
    spec = ShortConv(width=48, kernel=taps)
    module = drawn(spec)
    lengths = [9, 1, 2, 14]
    x = torch.randn(26, 48, generator=torch.manual_seed(1))
    y, tails = scans.filtered(
        x, module.weight, module.bias, torch.zeros(4, taps - 1, 48), lengths, level=level
    )
    expected = module.double()(x.double(), fresh_step(lengths), None)
    torch.testing.assert_close(y, expected.float(), atol=1e-5, rtol=1e-5)
    ends = [F.pad(row, (0, 0, taps - 1, 0))[len(row) :] for row in x.split(lengths)]
    assert torch.equal(tails, torch.stack(ends))


def test_the_short_filter_splits_natively() -> None:
    check(ShortConv(width=32, kernel=4), 32)


def test_wrong_sizes_are_refused() -> None:
    s = given()
    start = start_of(s)
    with pytest.raises(ValueError, match="rows of"):
        scans.selective(*s.tensors(), start, [70, 1, 0, 128])
    with pytest.raises(ValueError, match="poles"):
        scans.selective(*s.tensors(), start[:, :4], LENGTHS)
    with pytest.raises(KeifuError, match="instruction set"):
        scans.selective(*s.tensors(), start, LENGTHS, level="avx9")
    with pytest.raises(ValueError, match="x \\("):
        scans.filtered(s.x, torch.zeros(32, 9), None, torch.zeros(4, 8, 32), LENGTHS)
    assert not scans.takes(s.x.double())
    assert not scans.takes(s.x.clone().requires_grad_())


@torch.no_grad()
@pytest.mark.parametrize("level", scans.features())
@pytest.mark.parametrize(("outputs", "inputs"), [(3, 16), (50, 48), (128, 32)])
def test_products_of_few_tokens_read_a_bfloat16_matrix_once(
    outputs: int, inputs: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=made).bfloat16()
    x = torch.randn(3, inputs, generator=made)
    expected = (x.double() @ weight.double().T).float()
    assert scans.multiplies(x, weight)
    found = scans.multiplied(x, weight, level=level)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(scans, "ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(scans.multiplied(x, weight, level=level), found)
    assert not scans.multiplies(x, weight.float())
    assert not scans.multiplies(torch.zeros(5, inputs), weight)
    with pytest.raises(ValueError, match="bfloat16"):
        scans.multiplied(x[:, :8], weight)
