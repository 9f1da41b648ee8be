"""Native kernels, weights and products: every format and instruction set against references."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.nn.kernels import native
from keifu.nn.kernels.formats import FORMATS, Packed
from keifu.nn.kernels.program import Program
from keifu.nn.kernels.tape import Tape, Value
from keifu.nn.kernels.tiles import CODES, Tiled, dequantize, supported, tile, tiled_bytes

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why())
TILED = tuple(CODES)
DENSE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(params=native.features(), autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs on each instruction set that the machine has."""
    best = native.current()
    native.force(request.param)
    yield request.param
    native.force(best)
    native.set_threads(1)


def matrix(rows: int, cols: int, seed: int = 0) -> Tensor:
    """Values with outliers, so that blocks differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, cols, generator=generator)
    return x * torch.exp(torch.randn(rows, cols, generator=generator))


def weight(name: str, rows: int, cols: int, seed: int = 0) -> tuple[Packed | Tensor, Tensor]:
    """A weight in a format, and its float32 values by the reference decoder."""
    x = matrix(rows, cols, seed)
    if name in DENSE:
        return x.to(DENSE[name]), x.to(DENSE[name]).float()
    packed = Packed.quantize(x, name)
    return packed, reference(packed)


def reference(packed: Packed) -> Tensor:
    kind = GGMLQuantizationType[packed.format.name.upper()]
    return torch.from_numpy(quants.dequantize(packed.data.numpy(), kind))


def two_planes(x: Tensor) -> Tensor:
    """Activations as the kernels see them, float64: 8-bit codes times a step a block of 32, and
    8-bit codes of what that leaves over, times a 256th of it."""
    blocks = x.unflatten(-1, (-1, 32))
    largest = blocks.abs().amax(-1, keepdim=True)
    inverse, step = torch.where(largest > 0, 127 / largest, 0), largest / 127
    high = torch.round(blocks * inverse)
    left = (blocks.double() - high.double() * step.double()) * (inverse * 256).double()
    low = torch.round(left.clamp(max=127))
    return (high.double() * step.double() + low * (step / 256).double()).flatten(-2)


def product(
    x: Tensor, pieces: list[Tiled], *, exact: bool, bias: Tensor | None = None
) -> tuple[Tensor, Value]:
    tape = Tape(len(x), exact=exact)
    given = tape.input(x.shape[1])
    out = tape.output(tape.linear(given, pieces, bias))
    program = Program(tape)
    program.view(given, len(x)).copy_(x)
    program.run(tokens=[0] * len(x))
    return program.view(out, len(x)).clone(), out


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_decoding_is_bit_equal_to_the_reference(name: str, rows: int) -> None:
    packed, expected = weight(name, rows, 512)
    assert isinstance(packed, Packed)
    tiled = tile(packed)
    assert torch.equal(dequantize(tiled, torch.empty(rows, 512)), expected)
    halves = dequantize(tiled, torch.empty(rows, 512, dtype=torch.bfloat16))
    assert torch.equal(halves, expected.bfloat16())


@pytest.mark.parametrize("name", TILED)
def test_decoding_any_bytes(name: str) -> None:
    """Not only what an encoder writes: every code and scale, subnormal and huge float16 too."""
    kind, rows = FORMATS[name], 20
    raw = np.random.default_rng(1).integers(0, 256, (rows, 3 * kind.nbytes * (256 // kind.block)))
    packed = Packed(torch.from_numpy(raw.astype(np.uint8)), kind, 3 * 256)
    expected, got = reference(packed), dequantize(tile(packed), torch.empty(rows, 768))
    same = (got == expected) | (got.isnan() & expected.isnan())
    finite = expected.isfinite()
    assert same[finite].all()
    assert finite.float().mean() > 0.8


def test_rows_in_another_order() -> None:
    packed, expected = weight("q4_1", 40, 64)
    assert isinstance(packed, Packed)
    order = torch.randperm(40)
    got = dequantize(tile(packed, order=order), torch.empty(40, 64))
    assert torch.equal(got, expected[order])


def test_tiled_size_is_the_file_size() -> None:
    """Repacking keeps the bits a weight; q4_k's scales grow (from 6 to 8 bits), and q6_k's units
    are filled up to whole cache lines."""
    for name in TILED:
        packed, _ = weight(name, 64, 1024)
        assert isinstance(packed, Packed)
        limit = packed.nbytes * {"q4_k": 1.03, "q6_k": 1.01}.get(name, 1.0)
        assert tiled_bytes(packed) == tile(packed).nbytes <= limit


@pytest.mark.parametrize("name", [*TILED, *DENSE])
@pytest.mark.parametrize("threads", [1, 2])
def test_exact_product(name: str, threads: int) -> None:
    packed, values = weight(name, 53, 512)
    native.set_threads(threads)
    x = matrix(7, 512, seed=1)
    got, _ = product(x, [tile(packed)], exact=True)
    expected = x.double() @ values.double().T
    size = x.double().abs() @ values.double().abs().T
    assert ((got - expected).abs() / size).max() < 1e-6
    assert (got - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("name", TILED)
def test_eight_bit_product(name: str) -> None:
    """Equal to the same quantised arithmetic in float64, and close to the unquantised one."""
    packed, values = weight(name, 53, 768)
    x = matrix(11, 768, seed=1)
    got, _ = product(x, [tile(packed)], exact=False)
    expected = two_planes(x) @ values.double().T
    size = two_planes(x).abs() @ values.double().abs().T
    assert ((got - expected).abs() / size).max() < 1e-5  # a tie may round the other way
    plain = x.double() @ values.double().T
    assert (got - plain).norm() / plain.norm() < 1e-4


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", [*TILED, *DENSE])
def test_a_row_does_not_depend_on_its_batch(name: str, exact: bool) -> None:
    packed, _ = weight(name, 40, 512)
    tiled, x = tile(packed), matrix(15, 512, seed=2)
    whole, _ = product(x, [tiled], exact=exact)
    for part in (x[:1], x[3:5], x[:7], x[2:15]):
        native.set_threads(2)
        start = int((x == part[0]).all(1).nonzero()[0])
        got, _ = product(part, [tiled], exact=exact)
        assert torch.equal(got, whole[start : start + len(part)])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_fused_projection_of_several_formats(threads: int) -> None:
    native.set_threads(threads)
    parts = [("q4_1", 48), ("q8_0", 20), ("f16", 17), ("q6_k", 33)]
    made = [weight(name, rows, 256, seed=i) for i, (name, rows) in enumerate(parts)]
    x, bias = matrix(3, 256, seed=9), torch.randn(118)
    got, _ = product(x, [tile(p) for p, _ in made], exact=True, bias=bias)
    values = torch.cat([v for _, v in made]).double()
    torch.testing.assert_close(got.double(), x.double() @ values.T + bias, rtol=1e-5, atol=1e-3)


def test_a_product_adds_to_the_residual() -> None:
    packed, values = weight("q8_0", 64, 64)
    tape = Tape(2, exact=True)
    x, y = tape.input(64), tape.input(64)
    tape.output(tape.linear(x, [tile(packed)], into=y, add=True))
    program = Program(tape)
    a, b = matrix(2, 64, seed=1), matrix(2, 64, seed=2)
    program.view(x).copy_(a)
    program.view(y).copy_(b)
    program.run(tokens=[0, 0])
    torch.testing.assert_close(program.view(y), b + a @ values.T, rtol=1e-5, atol=1e-4)


def test_not_a_number_is_not_hidden() -> None:
    """8-bit codes cannot hold NaN or infinity: the row that has one becomes NaN, no other does."""
    packed, _ = weight("q4_1", 16, 64)
    x = matrix(4, 64)
    x[1, 3], x[2, 40] = float("nan"), float("inf")
    got, _ = product(x, [tile(packed)], exact=False)
    assert got[1:3].isnan().all()
    assert got[[0, 3]].isfinite().all()


def test_unsupported_weights_are_refused() -> None:
    odd = Packed(torch.zeros(4, 22, dtype=torch.uint8), FORMATS["q5_0"], 32)
    assert not supported(odd)
    with pytest.raises(KeifuError, match="q5_0"):
        tile(odd)
    with pytest.raises(KeifuError, match="float64"):
        tile(torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="float16"):
        dequantize(tile(torch.zeros(2, 2)), torch.zeros(2, 2, dtype=torch.float16))
    with pytest.raises(KeifuError, match="nearest"):
        native.force("avx511")


def test_idle_threads_sleep() -> None:
    native.set_threads(2)
    packed, _ = weight("q4_1", 64, 64)
    product(matrix(2, 64), [tile(packed)], exact=False)
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.02


def test_a_forked_child_can_work() -> None:
    native.set_threads(2)
    packed, _ = weight("q4_1", 64, 64)
    tiled, x = tile(packed), matrix(2, 64)
    expected, _ = product(x, [tiled], exact=False)
    child = os.fork()
    if child == 0:
        got, _ = product(x, [tiled], exact=False)
        os._exit(0 if torch.equal(got, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_threads_can_change() -> None:
    packed, _ = weight("q4_1", 640, 64)
    tiled, x = tile(packed), matrix(2, 64)
    expected, _ = product(x, [tiled], exact=False)
    for count in (3, 1, 2, 4):
        assert native.set_threads(count) == count == native.threads()
        assert torch.equal(product(x, [tiled], exact=False)[0], expected)
    with pytest.raises(KeifuError, match="0 threads"):
        native.set_threads(0)
