"""Packed formats against ggml's own Python code: the same bits out, the same bytes in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import GGML_QUANT_SIZES, dequantize, quantize

from keifu.core.errors import KeifuError
from keifu.nn.kernels.formats import FORMATS, WRITABLE, Packed

READ = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
READ += ["iq4_nl", "iq4_xs", "mxfp4"]
SAME_BYTES = ["q8_0", "q4_0", "q4_1"]
FITTED = ["q4_k", "q6_k"]


def kind(name: str) -> GGMLQuantizationType:
    return GGMLQuantizationType[name.upper()]


def same_bits(ours: torch.Tensor, theirs: np.ndarray) -> None:
    """Equal in every bit, except that any NaN is as good as another."""
    got = ours.numpy()
    assert got.dtype == theirs.dtype == np.float32
    assert got.shape == theirs.shape
    nan = np.isnan(theirs)
    assert (np.isnan(got) == nan).all()
    assert (got.view("u4")[~nan] == theirs.view("u4")[~nan]).all()


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


def test_the_read_and_write_lists_are_whole():
    assert list(FORMATS) == READ
    assert set(WRITABLE) == {"q8_0", "q4_0", "q4_1", "q4_k", "q6_k"}
    for name, format in FORMATS.items():
        assert (format.block, format.nbytes) == GGML_QUANT_SIZES[kind(name)]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_bytes_decode_to_the_same_bits(name, seed):
    raw = np.random.default_rng(seed).integers(0, 256, (3, 37, FORMATS[name].nbytes * 4), "u1")
    same_bits(FORMATS[name].dequantize(torch.from_numpy(raw)), dequantize(raw, kind(name)))


@pytest.mark.parametrize("name", READ)
def test_odd_scales_decode_to_the_same_bits(name):
    """NaN, infinities, zeros and subnormals, at every even place a scale may have."""
    odd = np.array([0x7E00, 0x7C00, 0xFC00, 0, 0x8000, 1, 0x83FF, 0x7BFF], "<u2").view("u1")
    nbytes = FORMATS[name].nbytes
    raw = np.random.default_rng(2).integers(0, 256, (8 * (nbytes // 2), nbytes), "u1")
    for row, block in enumerate(raw):
        block[row // 8 * 2 : row // 8 * 2 + 2] = odd.reshape(8, 2)[row % 8]
    same_bits(FORMATS[name].dequantize(torch.from_numpy(raw)), dequantize(raw, kind(name)))


@pytest.mark.parametrize("name", READ)
def test_decoding_does_not_depend_on_chunks_or_strides(name, monkeypatch):
    raw = torch.randint(0, 256, (6, FORMATS[name].nbytes * 4), dtype=torch.uint8)
    whole = FORMATS[name].dequantize(raw)
    monkeypatch.setattr("keifu.nn.kernels.formats.CHUNK", 1024)
    parts = FORMATS[name].dequantize(torch.cat((raw, raw), 1)[:, : raw.shape[1]])
    assert torch.equal(whole.nan_to_num(), parts.nan_to_num())
    assert FORMATS[name].dequantize(raw[:0]).shape == (0, FORMATS[name].block * 4)


def rows() -> dict[str, np.ndarray]:
    """Rows of 512 that a quantiser may meet."""
    random = np.random.default_rng(3)
    normal = random.standard_normal((40, 512)).astype("f4")
    outlier = normal[:4].copy()
    outlier[:, 100] = [50, -50, 1000, -1000]
    return {
        "normal": normal,
        "small": normal * np.float32(1e-4),
        "large": normal * np.float32(1e3),
        "zero": np.zeros((2, 512), "f4"),
        "constant": np.repeat(np.array([[1.5], [-1.5], [0.0371], [-3e4]], "f4"), 512, 1),
        "positive": np.abs(normal) + np.float32(1),
        "negative": -np.abs(normal) - np.float32(1),
        "outlier": outlier,
        "ties": random.integers(-8, 9, (8, 512)).astype("f4") / 2,
        # No negative zeros: which zero is the smallest is not defined.
        "half zero": np.where(np.arange(512) < 256, normal, np.float32(0)),
        "widest": np.full((1, 512), 65504, "f4") * np.sign(normal[:1]),
    }


@pytest.mark.parametrize("name", SAME_BYTES)
@pytest.mark.parametrize("case", rows())
def test_quantised_bytes_are_those_of_ggml(name, case):
    x = rows()[case]
    ours = FORMATS[name].quantize(torch.from_numpy(x)).numpy()
    assert (ours == quantize(x, kind(name))).all()


def plain_grid(name: str, x: np.ndarray) -> np.ndarray:
    """What a straightforward encoder keeps of rows: largest values to the ends of the grid.

    q4_k: a step and a minimum a sub-block of 32 from its extremes, each rounded to 6 bits;
    q6_k: a step a sub-block of 16 from its largest magnitude, rounded to 8 bits.
    """

    def over(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.nan_to_num(a / b, nan=0, posinf=0, neginf=0)

    def stored(scale: np.ndarray) -> np.ndarray:
        return scale.astype("f2").astype("f4")

    if name == "q6_k":
        part = x.reshape(-1, 16, 16)
        step = np.abs(part).max(2, keepdims=True) / 31
        d = stored(step.max(1, keepdims=True) / 127)
        step = d * np.rint(over(step, d)).clip(0, 127)
        return (step * np.rint(over(part, step)).clip(-32, 31)).reshape(x.shape)
    part = x.reshape(-1, 8, 32)
    low = -part.min(2, keepdims=True).clip(max=0)
    step = (part.max(2, keepdims=True) + low) / 15
    d, dmin = stored(step.max(1, keepdims=True) / 63), stored(low.max(1, keepdims=True) / 63)
    step, low = d * np.rint(over(step, d)).clip(0, 63), dmin * np.rint(over(low, dmin)).clip(0, 63)
    return (step * np.rint(over(part + low, step)).clip(0, 15) - low).reshape(x.shape)


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("case", rows())
def test_fitted_quantisers_lose_no_more_than_a_plain_grid(name, case):
    x = rows()[case]
    kept = dequantize(FORMATS[name].quantize(torch.from_numpy(x)).numpy(), kind(name))
    ours = ((kept - x).astype("f8") ** 2).reshape(-1, 256).sum(1)
    plain = ((plain_grid(name, x) - x).astype("f8") ** 2).reshape(-1, 256).sum(1)
    assert (ours <= plain * (1 + 1e-4)).all()


@pytest.mark.parametrize(("name", "most", "gain"), [("q4_k", 0.0720, 0.93), ("q6_k", 0.0170, 0.93)])
def test_fitted_quantisers_on_normal_weights(name, most, gain):
    """Relative error below a bound, and clearly below the plain grid's."""
    x = np.random.default_rng(4).standard_normal((128, 1024)).astype("f4") * np.float32(0.05)
    kept = dequantize(FORMATS[name].quantize(torch.from_numpy(x)).numpy(), kind(name))
    error = np.sqrt(((kept - x) ** 2).mean() / (x**2).mean())
    plain = np.sqrt(((plain_grid(name, x) - x) ** 2).mean() / (x**2).mean())
    assert error < most
    assert error < gain * plain


@pytest.mark.parametrize("name", [*SAME_BYTES, *FITTED])
def test_zeros_and_constants_come_back(name):
    """Zeros exactly; a constant that is a float16 exactly, any other to half a float16 step."""
    zeros = torch.zeros(2, 256)
    assert torch.equal(Packed.quantize(zeros, name).dequantize(), zeros)
    if name in FITTED:
        for value in (1.5, -1.5, 2.0**-14, -31.0, 65504.0):
            constant = torch.full((1, 256), value)
            assert torch.equal(Packed.quantize(constant, name).dequantize(), constant)
    near = torch.full((1, 256), 0.0371)
    worst = 2.0**-6 if name == "q4_0" else 2.0**-10
    assert (Packed.quantize(near, name).dequantize() - near).abs().max() <= 0.0371 * worst


@pytest.mark.parametrize("name", [*SAME_BYTES, *FITTED])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e5])
def test_what_a_scale_cannot_hold_is_refused(name, bad):
    x = torch.zeros(3, 256)
    x[1, 7] = bad
    with pytest.raises(KeifuError, match=rf"{name} cannot hold .*value 263 of shape \(3, 256\)"):
        FORMATS[name].quantize(x)


def test_remedies():
    with pytest.raises(KeifuError, match=r"q4_k stores rows of whole 256.*576: use q8_0 or f16"):
        FORMATS["q4_k"].quantize(torch.zeros(2, 576))
    with pytest.raises(KeifuError, match="not of 33: keep it in f16, bf16 or f32"):
        FORMATS["q8_0"].quantize(torch.zeros(2, 33))
    with pytest.raises(KeifuError, match="q5_k can be read but not written: use q4_0, q4_1"):
        FORMATS["q5_k"].quantize(torch.zeros(2, 256))


def test_dense_halves_are_those_of_ggml():
    """f16 and bf16 of the write list are torch's own conversions."""
    x = np.concatenate([a.ravel() for a in rows().values()])
    x = np.concatenate([x, np.array([1e-8, 6e-8, 65519, np.inf, -np.inf], "f4")])
    assert (torch.from_numpy(x).half().numpy() == x.astype("f2")).all()
    theirs = quantize(x, GGMLQuantizationType.BF16).view("u2")
    assert (torch.from_numpy(x).bfloat16().view(torch.uint16).numpy() == theirs).all()


def test_packed_matrices():
    x = torch.randn(10, 64)
    packed = Packed.quantize(x, "q4_1")
    assert (packed.shape, packed.nbytes) == (torch.Size((10, 64)), 10 * 2 * 20)
    whole = packed.dequantize()
    assert torch.equal(packed.dequantize(rows=slice(2, 9, 3)), whole[2:9:3])
    assert torch.equal(packed.dequantize(torch.bfloat16), whole.bfloat16())
    chosen = packed.select(torch.tensor([9, 0, 9]))
    assert isinstance(chosen, Packed)
    assert torch.equal(chosen.dequantize(), whole[[9, 0, 9]])
    stack = Packed.quantize(x.view(2, 5, 64), "q4_1")
    assert stack.shape == (2, 5, 64)
    assert torch.equal(stack.dequantize(), whole.view(2, 5, 64))
    with pytest.raises(ValueError, match="rows of 40 bytes do not hold 32 q4_1"):
        Packed(packed.data, packed.format, 32)
