"""Recurrences on a tape against PyTorch: ragged rows, slots, every instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.core.errors import KeifuError
from keifu.nn.activations import ACTIVATIONS
from keifu.nn.kernels import native, recurrences
from keifu.nn.kernels.program import Program
from keifu.nn.kernels.tape import Tape, Value
from keifu.nn.kernels.tiles import tile

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why())
LENGTHS, SLOTS = [3, 1, 9, 2], [4, 0, 2, 5]
TOKENS = sum(LENGTHS)


@pytest.fixture(params=native.features(), autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs on each instruction set that the machine has, with two threads."""
    best = native.current()
    native.force(request.param)
    native.set_threads(2)
    yield request.param
    native.force(best)
    native.set_threads(1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def apply(
    build: Callable[..., Value],
    *given: Tensor,
    lengths: Sequence[int] = LENGTHS,
    slots: Sequence[int] = SLOTS,
    begins: int = 0,
) -> Tensor:
    """What an operation of several inputs makes of rows that begin at position `begins`."""
    tape = Tape(TOKENS)
    inputs = [tape.input(x.shape[1]) for x in given]
    out = tape.output(build(tape, *inputs))
    program = Program(tape)
    for value, x in zip(inputs, given, strict=True):
        program.view(value, len(x)).copy_(x)
    positions = [begins + t for n in lengths for t in range(n)]
    program.run(
        tokens=[0] * sum(lengths),
        positions=positions,
        owners=np.repeat(np.arange(len(lengths)), lengths),
        slots=np.array(slots, dtype=np.int32),
    )
    return program.view(out, sum(lengths)).clone()


def rows(x: Tensor) -> list[Tensor]:
    return list(x.double().split(LENGTHS))


def check(got: Tensor, state: Tensor, before: Tensor, y: list[Tensor], last: list[Tensor]) -> None:
    """Outputs, the states in their slots, and that no other slot was touched."""
    torch.testing.assert_close(got.double(), torch.cat(y), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(state[SLOTS].double(), torch.stack(last), atol=2e-5, rtol=2e-5)
    others = [slot for slot in range(len(state)) if slot not in SLOTS]
    assert torch.equal(state[others], before[others])


@pytest.mark.parametrize("width", [32, 21])
@pytest.mark.parametrize(("taps", "act"), [(4, "silu"), (1, "identity"), (8, "gelu_tanh")])
def test_filter(width: int, taps: int, act: str) -> None:
    x, weight, bias = drawn(TOKENS, width), drawn(width, taps, seed=1), drawn(width, seed=2)
    tail = drawn(6, taps - 1, width, seed=3)
    before = tail.clone()
    got = apply(lambda t, v: recurrences.filtered(t, v, weight, bias, tail, act=act), x)
    lines = [torch.cat([before[s].double(), r]) for s, r in zip(SLOTS, rows(x), strict=True)]
    y = [
        F.conv1d(line.T[None], weight.double()[:, None], None, groups=width)[0].T for line in lines
    ]
    y = [ACTIVATIONS[act](part + bias.double()) for part in y]
    check(got, tail, before, y, [line[len(line) - taps + 1 :] for line in lines])


@pytest.mark.parametrize(("width", "states"), [(32, 16), (45, 16), (21, 5)])
def test_selective_scan(width: int, states: int) -> None:
    """Gu & Dao 2023, eq. 2 and 4, in float64; dt over softplus's whole range."""
    x, dt = drawn(TOKENS, width), drawn(TOKENS, width, seed=1) * 8
    bc, poles = drawn(TOKENS, 2 * states, seed=2), -drawn(states, width, seed=3).exp()
    d, state = drawn(width, seed=4), drawn(6, states, width, seed=5)
    before = state.clone()
    got = apply(lambda t, *v: recurrences.selective(t, *v, poles, d, state), x, dt, bc)
    outs, last = [], []
    for slot, *row in zip(SLOTS, rows(x), rows(dt), rows(bc), strict=True):
        h, y = before[slot].double(), []
        for now, step, both in zip(*row, strict=True):
            step, (b, c) = F.softplus(step), both.split(states)
            h = torch.exp(step * poles) * h + b[:, None] * (step * now)
            y.append(c @ h + d * now)
        outs.append(torch.stack(y))
        last.append(h)
    check(got, state, before, outs, last)


@pytest.mark.parametrize(("heads", "head", "states", "groups"), [(4, 8, 16, 1), (6, 21, 37, 2)])
@pytest.mark.parametrize("limits", [(0.0, float("inf")), (0.3, 0.9)])
def test_state_space_duality(
    heads: int, head: int, states: int, groups: int, limits: tuple[float, float]
) -> None:
    """Dao & Gu 2024, section 6, in float64."""
    x, dt = drawn(TOKENS, heads * head), drawn(TOKENS, heads, seed=1) * 3
    bc, poles = drawn(TOKENS, 2 * groups * states, seed=2), -drawn(heads, seed=3).exp()
    d, state = drawn(heads, seed=4), drawn(6, heads, head, states, seed=5)
    before = state.clone()
    got = apply(lambda t, *v: recurrences.ssd(t, *v, poles, d, state, limits=limits), x, dt, bc)
    outs, last = [], []
    for slot, *row in zip(SLOTS, rows(x), rows(dt), rows(bc), strict=True):
        h, y = before[slot].double(), []
        for now, step, both in zip(*row, strict=True):
            step, now = F.softplus(step).clamp(*limits), now.unflatten(0, (heads, head))
            b, c = (
                t.unflatten(0, (groups, states)).repeat_interleave(heads // groups, 0)
                for t in both.chunk(2)
            )
            put = (step[:, None] * now)[..., None] * b[:, None]
            h = torch.exp(step * poles)[:, None, None] * h + put
            y.append(((h * c[:, None]).sum(-1) + d[:, None] * now).flatten())
        outs.append(torch.stack(y))
        last.append(h)
    check(got, state, before, outs, last)


@pytest.mark.parametrize("width", [32, 21])
@pytest.mark.parametrize("begins", [0, 7])
def test_gated_linear_recurrence(width: int, begins: int) -> None:
    """De et al. 2024, eq. 1 to 4, in float64; decays from one's neighbourhood to nothing."""
    x, gates = drawn(TOKENS, width), drawn(TOKENS, 2 * width, seed=1) * 4
    scale, state = -(drawn(width, seed=2) * 4 - 2).exp(), drawn(6, width, seed=3)
    before = state.clone()
    got = apply(lambda t, *v: recurrences.lru(t, *v, scale, state), x, gates, begins=begins)
    outs, last = [], []
    for slot, *row in zip(SLOTS, rows(x), rows(gates), strict=True):
        h, y = before[slot].double(), []
        for i, (now, both) in enumerate(zip(*row, strict=True)):
            taken, gone = torch.sigmoid(both).chunk(2)
            log = scale.double() * gone
            root = torch.sqrt(-torch.expm1(2 * log)) if begins + i else 1.0
            h = torch.exp(log) * h + root * taken * now
            y.append(h)
        outs.append(torch.stack(y))
        last.append(h)
    check(got, state, before, outs, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_diagonal_products(dtype: torch.dtype) -> None:
    x, blocks, bias = drawn(TOKENS, 60), drawn(6, 20, 20, seed=1).to(dtype), drawn(120, seed=2)
    columns = [0, 20, 40] * 2
    got = apply(lambda t, v: t.linear(v, [tile(b) for b in blocks], bias, columns=columns), x)
    parts = [x[:, c : c + 20] @ b.float().T for c, b in zip(columns, blocks, strict=True)]
    torch.testing.assert_close(got, torch.cat(parts, 1) + bias, atol=1e-4, rtol=1e-4)


def test_packed_blocks_meet_their_own_columns() -> None:
    from keifu.nn.kernels.formats import Packed

    x = drawn(TOKENS, 128)
    packed = [Packed.quantize(drawn(16, 64, seed=s), "q8_0") for s in (1, 2)]
    got = apply(lambda t, v: t.linear(v, [tile(p) for p in packed], columns=[64, 0]), x)
    parts = [x[:, 64:] @ packed[0].dequantize().T, x[:, :64] @ packed[1].dequantize().T]
    torch.testing.assert_close(got, torch.cat(parts, 1), atol=2e-2, rtol=2e-3)


def test_what_is_refused() -> None:
    x, state = drawn(TOKENS, 32), torch.zeros(6, 3, 32)
    weight = drawn(32, 4)

    def build(tape: Tape, v: Value) -> Value:
        return recurrences.filtered(tape, v, weight, None, state)

    for slots in ([4, 0, 2, 6], [4, 0, 4, 5], [-1, 0, 2, 5]):
        with pytest.raises(ValueError, match="out of its tables"):
            apply(build, x, slots=slots)
    with pytest.raises(ValueError, match="slots"):
        apply(build, x, slots=SLOTS[:3])
    assert not state.any()
    with pytest.raises(ValueError, match="state of shape"):
        apply(lambda t, v: recurrences.filtered(t, v, weight, None, state[:, 1:]), x)
    with pytest.raises(ValueError, match="float32"):
        apply(lambda t, v: recurrences.filtered(t, v, weight, None, state.double()), x)
    with pytest.raises(KeifuError, match="activation"):
        apply(lambda t, v: recurrences.filtered(t, v, weight, None, state, act="silly"), x)
    with pytest.raises(ValueError, match="do not fit"):
        apply(lambda t, v: t.linear(v, [tile(drawn(4, 20))], columns=[16]), x)
