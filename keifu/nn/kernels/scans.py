"""Scans of state-space models natively, where no gradient is asked for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_int, c_int32, c_int64, c_void_p
from functools import cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from keifu.core.errors import KeifuError, unknown
from keifu.nn.kernels.library import open_library

LEVELS = ("generic", "avx2", "avx512")
STATES, TAPS, LANES = 256, 8, 16
"""Most states of a channel, most taps of a filter; threads share multiples of LANES channels."""
FEW = 4
"""Tokens up to which a product is a walk through the matrix."""
ALONE = 1 << 20
"""Steps of work (tokens * channels * states) below which one thread does it all."""


class _Scan(ctypes.Structure):
    _fields_ = (
        *((n, c_void_p) for n in ("x", "dt", "b", "c", "gate", "poles", "d", "state", "y")),
        ("offsets", c_void_p),
        ("slots", c_void_p),
        *((f"{n}_stride", c_int64) for n in ("x", "dt", "b", "c", "gate", "y")),
        ("rows", c_int64),
        ("inner", c_int64),
        ("states", c_int32),
        ("raw", c_int32),
    )


class _Filter(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "bias", "tail", "y", "offsets", "slots")),
        *((name, c_int64) for name in ("x_stride", "y_stride", "rows", "inner")),
        ("taps", c_int32),
        ("act", c_int32),
    )


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("weight", "x", "y")),
        *((name, c_int64) for name in ("tokens", "inputs", "outputs")),
    )


def _declare(library: ctypes.CDLL) -> None:
    library.kf_selective.argtypes = [POINTER(_Scan), c_int64, c_int64, c_int]
    library.kf_filtered.argtypes = [POINTER(_Filter), c_int64, c_int64, c_int]
    library.kf_multiplied.argtypes = [POINTER(_Product), c_int64, c_int64, c_int]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    return open_library("_scans", _declare, "kf_scan_size", (_Scan, _Filter, _Product))


def available() -> bool:
    """Whether the kernels were built and load."""
    return _load()[0] is not None


def why() -> str:
    """Why they are not available, and the remedy; empty where they are."""
    return _load()[1]


def features() -> tuple[str, ...]:
    """The instruction sets that this machine can use, slowest first."""
    loaded, _ = _load()
    return () if loaded is None else LEVELS[: loaded.kf_scan_level() + 1]


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernels take such tensors: float32 on the CPU, of which no gradient is asked,
    and which are there (not while torch compiles)."""
    given = [t for t in tensors if t is not None]
    return (
        not torch.compiler.is_compiling()
        and available()
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in given))
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in given)
        and given[0].shape[0] > 0
    )


def selective(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    gate: Tensor,
    poles: Tensor,
    d: Tensor,
    start: Tensor,
    lengths: Sequence[int],
    *,
    level: str | None = None,
) -> tuple[Tensor, Tensor]:
    """As `keifu.nn.selective.selective`, whose arguments these are, one by one."""
    (tokens, inner), (states, rows) = x.shape, (poles.shape[0], start.shape[0])
    wanted = ((x, inner), (dt, inner), (b, states), (c, states), (gate, inner))
    if (
        any(t.shape != (tokens, width) for t, width in wanted)
        or poles.shape != (states, inner)
        or d.shape != (inner,)
        or start.shape != (rows, states, inner)
        or not 1 <= states <= STATES
    ):
        raise ValueError(f"x {tuple(x.shape)}, poles {tuple(poles.shape)}, {tuple(start.shape)}")
    x, dt, b, c, gate = (_lined(t) for t, _ in wanted)
    poles, d = poles.contiguous(), d.contiguous()
    y, last = torch.empty(tokens, inner), start.clone(memory_format=torch.contiguous_format)
    offsets = _offsets(lengths, rows, tokens)
    strides = {
        f"{n}_stride": t.stride(0) for n, t in zip(_STRIDED, (x, dt, b, c, gate), strict=True)
    }
    held = (x, dt, b, c, gate, poles, d, last, y, offsets)
    pointers = dict(zip(_SCANNED, (t.data_ptr() for t in held), strict=True))
    made = _Scan(**pointers, **strides, y_stride=inner, rows=rows, inner=inner, states=states)
    _share("kf_selective", made, inner, tokens * inner * states, level)
    return y, last


_STRIDED = ("x", "dt", "b", "c", "gate")
_SCANNED = (*_STRIDED, "poles", "d", "state", "y", "offsets")


def filtered(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tails: Tensor,
    lengths: Sequence[int],
    *,
    level: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A causal filter for each channel.

    Args:
        x: (tokens, inner), weight (inner, taps), bias (inner,), tails (rows, taps - 1, inner) the
            inputs before each row.

    Returns:
        (tokens, inner) outputs and the tails after each row.
    """
    (tokens, inner), taps, rows = x.shape, weight.shape[1], tails.shape[0]
    if (
        weight.shape[0] != inner
        or tails.shape != (rows, taps - 1, inner)
        or (bias is not None and bias.shape != (inner,))
        or not 1 <= taps <= TAPS
    ):
        raise ValueError(f"x {tuple(x.shape)}, {tuple(weight.shape)}, {tuple(tails.shape)}")
    x, across = _lined(x), weight.T.contiguous()
    bias = None if bias is None else bias.contiguous()
    y, last = torch.empty(tokens, inner), tails.clone(memory_format=torch.contiguous_format)
    offsets = _offsets(lengths, rows, tokens)
    made = _Filter(
        x=x.data_ptr(), weight=across.data_ptr(), bias=None if bias is None else bias.data_ptr(),
        tail=last.data_ptr(), y=y.data_ptr(), offsets=offsets.data_ptr(),
        x_stride=x.stride(0), y_stride=inner, rows=rows, inner=inner, taps=taps,
    )  # fmt: skip
    _share("kf_filtered", made, inner, tokens * inner * taps, level)
    return y, last


def multiplies(x: Tensor, weight: Tensor | None) -> bool:
    """Whether a product of few tokens with a bfloat16 matrix reads it faster here than in torch."""
    return (
        weight is not None
        and not torch.compiler.is_compiling()
        and weight.dtype == torch.bfloat16
        and weight.is_contiguous()
        and weight.shape[1] % LANES == 0
        and 0 < x.shape[0] <= FEW
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_grad_enabled()
        and available()
    )


def multiplied(x: Tensor, weight: Tensor, *, level: str | None = None) -> Tensor:
    """x (tokens, inputs) @ weight.T, weight (outputs, inputs) in bfloat16: float32 throughout."""
    (tokens, inputs), outputs = x.shape, weight.shape[0]
    if weight.shape != (outputs, inputs) or weight.dtype != torch.bfloat16 or inputs % LANES:
        raise ValueError(f"x {tuple(x.shape)}, {weight.dtype} {tuple(weight.shape)}")
    x, weight, y = x.float().contiguous(), weight.contiguous(), torch.empty(tokens, outputs)
    made = _Product(
        weight=weight.data_ptr(), x=x.data_ptr(), y=y.data_ptr(),
        tokens=tokens, inputs=inputs, outputs=outputs,
    )  # fmt: skip
    _share("kf_multiplied", made, outputs, tokens * inputs * outputs, level)
    return y


def _lined(x: Tensor) -> Tensor:
    """Rows of neighbouring numbers, whatever lies between the rows."""
    return x if x.stride(1) == 1 else x.contiguous()


def _offsets(lengths: Sequence[int], rows: int, tokens: int) -> Tensor:
    """(rows + 1) where each row begins."""
    offsets = [0, *accumulate(lengths)]
    if len(lengths) != rows or offsets[-1] != tokens or min(lengths) < 0:
        raise ValueError(f"rows of {list(lengths)} tokens, not {rows} of {tokens}")
    return torch.tensor(offsets, dtype=torch.int32)


@cache
def _helpers(count: int) -> ThreadPoolExecutor:
    """Threads that wait for work asleep."""
    return ThreadPoolExecutor(count, "keifu-scan")


def _share(name: str, made: ctypes.Structure, inner: int, work: int, level: str | None) -> None:
    """Run a kernel on all channels, shared out among threads where that is worth their waking."""
    if level is not None and level not in features():
        raise unknown("instruction set", level, features())
    loaded, reason = _load()
    if loaded is None:
        raise KeifuError(f"no native kernels for scans: {reason}")
    number = LEVELS.index(level or features()[-1])
    run: Callable[..., int] = getattr(loaded, name)
    count = 1 if work < ALONE else max(1, min(torch.get_num_threads(), inner // LANES))
    cuts = [inner // LANES * i // count * LANES for i in range(count)] + [inner]
    parts = [(ctypes.byref(made), first, end, number) for first, end in pairwise(cuts)]
    others = [_helpers(count - 1).submit(run, *part) for part in parts[1:]]
    failed = [run(*parts[0]), *(other.result() for other in others)]
    if any(failed):
        raise ValueError(f"{name} does not take these sizes")
