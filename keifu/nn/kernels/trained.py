"""What stands between the products of training in bfloat16, natively, forward and backward.

Parts ask `fuses` and call these in place of the plain formulas while a model trains under autocast
to bfloat16 on the processor: each piece is read once and written once, and backward keeps what is
small and makes the rest again. Without a compiler the plain formulas run.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from keifu.core.errors import KeifuError, unknown
from keifu.nn.kernels.library import open_library

LEVELS = ("generic", "avx2", "avx512")
KERNELS = (
    *("norm", "norm back", "gate", "gate back"),
    *("turn", "softmax", "softmax back", "entropy"),
)
BLOCK = 32
"""Rows whose parts of a norm's gradient are added up by one thread."""
GRAIN = 1 << 15
"""Numbers that a thread takes at a time."""
KEYS, SCORES, AT_ONCE = 1 << 14, 1 << 25, 1 << 21
"""Most keys and most scores of a row; scores that are made at once where rows are shorter."""


class _Given(ctypes.Structure):
    _fields_ = (("p", c_void_p * 6), ("n", c_int64 * 6), ("f", c_float * 4))


def _declare(library: ctypes.CDLL) -> None:
    library.kf_train_run.argtypes = [
        *(c_int, POINTER(_Given), c_int64, c_int64, c_int, c_void_p, c_int)
    ]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    return open_library("_train", _declare, "kf_train_size", (_Given,))


@cache
def _together() -> int | None:
    """Where the OpenMP that torch runs on starts threads; None: not to be found, so one thread."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def available() -> bool:
    """Whether the kernels were built and load."""
    return _load()[0] is not None


def why() -> str:
    """Why they are not available, and the remedy; empty where they are."""
    return _load()[1]


def features() -> tuple[str, ...]:
    """The instruction sets that this machine can use, slowest first."""
    loaded, _ = _load()
    return () if loaded is None else LEVELS[: loaded.kf_train_level() + 1]


def fuses(x: Tensor) -> bool:
    """Whether a model trains in bfloat16 on the processor, and the kernels are there."""
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and x.dtype in (torch.bfloat16, torch.float32)
        and not torch.compiler.is_compiling()
        and available()
    )


def run(
    kernel: str,
    tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...],
    floats: tuple[float, ...] = (),
    *,
    items: int,
    each: int,
    level: str | None = None,
) -> None:
    """A kernel over items of `each` numbers; what it is given is said in train_isa.h.

    level: the instruction set; None: the best.
    """
    loaded, reason = _load()
    if loaded is None:
        raise KeifuError(f"no native kernels for training: {reason}")
    known = features()
    if level is not None and level not in known:
        raise unknown("instruction set", level, known)
    given = _Given()
    for i, tensor in enumerate(tensors):
        given.p[i] = tensor.data_ptr()
    given.n[: len(numbers)] = numbers
    given.f[: len(floats)] = floats
    grain = max(1, GRAIN // max(1, each))
    number, threads = LEVELS.index(level or known[-1]), torch.get_num_threads()
    if loaded.kf_train_run(
        KERNELS.index(kernel), given, items, grain, number, _together(), threads
    ):
        raise ValueError(f"{kernel} does not run here")


def _half(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).contiguous()


def multiplies(x: Tensor, weight: Tensor) -> bool:
    """Whether `multiplied` takes them: a product with a plain float32 matrix."""
    plain = type(weight) in (Tensor, torch.nn.Parameter)
    return plain and weight.dtype == torch.float32 and fuses(x)


def multiplied(x: Tensor, weight: Tensor) -> Tensor:
    """x (tokens, inputs) @ weight.T in bfloat16, as autocast makes it, without its detours."""
    out: Tensor = _Product.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.dtype, half, matrix = x.dtype, x.to(torch.bfloat16), weight.to(torch.bfloat16)
        ctx.save_for_backward(half, matrix)
        return half @ matrix.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        half, matrix = ctx.saved_tensors
        slope, (of_x, of_weight) = slope.to(torch.bfloat16), ctx.needs_input_grad
        dx = (slope @ matrix).to(ctx.dtype) if of_x else None
        return dx, (slope.T @ half).float() if of_weight else None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight (Zhang & Sennrich 2019): x (..., width) -> the same in bfloat16."""
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, wide, width = x.contiguous(), weight.float().contiguous(), x.shape[-1]
        y = torch.empty(x.shape, dtype=torch.bfloat16)
        rows = x.numel() // width
        scale = torch.empty(rows)
        half = int(x.dtype == torch.bfloat16)
        run("norm", (x, wide, y, scale), (width, half), (eps,), items=rows, each=width)
        ctx.save_for_backward(x, wide, scale)
        ctx.weight_dtype = weight.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        x, wide, scale = ctx.saved_tensors
        width, rows = x.shape[-1], scale.numel()
        blocks = -(-rows // BLOCK)
        dx, dw = torch.empty_like(x), torch.empty(blocks, width)
        numbers = (width, int(x.dtype == torch.bfloat16), rows, BLOCK)
        given = (x, wide, _half(slope), scale, dx, dw)
        run("norm back", given, numbers, items=blocks, each=width * BLOCK)
        return dx, dw.sum(0).to(ctx.weight_dtype), None


def silu_gate(both: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020, SwiGLU): (tokens, 2 * hidden) bfloat16 -> (tokens, hidden)."""
    out: Tensor = _Gate.apply(both)  # type: ignore[no-untyped-call]
    return out


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        both, (rows, hidden) = both.contiguous(), (both.shape[0], both.shape[1] // 2)
        y = both.new_empty(rows, hidden)
        run("gate", (both, y), (hidden,), items=rows, each=2 * hidden)
        ctx.save_for_backward(both)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        (rows, twice), out = both.shape, torch.empty_like(both)
        given = (both, _half(slope), out)
        run("gate back", given, (twice // 2,), items=rows, each=twice)
        return out


def turns(x: Tensor) -> bool:
    """Whether `turned` takes heads that lie like this."""
    return fuses(x) and turns_flat(x)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding, dimension i with i + half (Su et al. 2021).

    Args:
        x: (tokens, heads, width) bfloat16; cos, sin: (tokens, half) float32, half * 2 <= width.
    """
    out: Tensor = _Turned.apply(x, cos.contiguous(), sin.contiguous(), 1.0)  # type: ignore[no-untyped-call]
    return out


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        flat = slope if turns_flat(slope) else _half(slope)
        return _turn(flat, cos, sin, -1.0), None, None, None


def turns_flat(x: Tensor) -> bool:
    """Whether each token's heads lie one after another, in bfloat16."""
    return x.dtype == torch.bfloat16 and x.stride()[1:] == (x.shape[2], 1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    (tokens, heads, width), half = x.shape, cos.shape[1]
    y = torch.empty(x.shape, dtype=x.dtype)
    numbers = (heads, width, half, x.stride(0))
    run("turn", (x, cos, sin, y), numbers, (way,), items=tokens, each=heads * width)
    return y


def attends(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `causal_attention` takes them: (rows, n, heads, width), as many keys as queries."""
    n, share = q.shape[1], q.shape[2] // k.shape[2]
    return (
        all(fuses(t) and t.dtype == torch.bfloat16 for t in (q, k, v))
        and k.shape[1] == n <= KEYS
        and share * n * n <= SCORES
    )


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T, causal) v (Vaswani et al. 2017, eq. 1).

    The scores of a few heads at a time are products of their own, and are made again in backward:
    never more than `AT_ONCE` of them, or those of one head, are in memory.

    Args:
        q: (rows, n, heads, width); k, v: (rows, n, groups, width), heads a multiple of groups.

    Returns:
        (rows, n, heads, value width)
    """
    out: Tensor = _Attention.apply(q, k, v, scale)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        groups = k.shape[2]
        ctx.shape, ctx.scale = q.shape, scale
        a, b, c = (_grouped(t, groups) for t in (q, k, v))
        ctx.save_for_backward(a, b, c)
        n = b.shape[1]
        out = torch.empty(*a.shape[:2], c.shape[2], dtype=a.dtype)
        for part in _parts(a, n):
            torch.bmm(_shares(a[part], b[part], n, scale), c[part], out=out[part])
        return _ungrouped(out, q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        a, b, c = ctx.saved_tensors
        n = b.shape[1]
        back = _grouped(slope.to(a.dtype), b.shape[0] // slope.shape[0])
        da, db, dc = (torch.empty_like(t) for t in (a, b, c))
        for part in _parts(a, n):
            shares = _shares(a[part], b[part], n, ctx.scale)
            torch.bmm(shares.transpose(1, 2), back[part], out=dc[part])
            scores = torch.bmm(back[part], c[part].transpose(1, 2))
            rows = scores.shape[0] * scores.shape[1]
            run("softmax back", (shares, scores), (n, n), (ctx.scale,), items=rows, each=n)
            torch.bmm(scores, b[part], out=da[part])
            torch.bmm(scores.transpose(1, 2), a[part], out=db[part])
        few = (*ctx.shape[:2], b.shape[0] // ctx.shape[0], b.shape[2])
        wide = (*few[:3], c.shape[2])
        return _ungrouped(da, ctx.shape), _ungrouped(db, few), _ungrouped(dc, wide), None


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(rows, n, heads, width) -> (rows * groups, share * n, width): a group's heads share keys."""
    each: Tensor = x.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
    return each.reshape(x.shape[0] * groups, -1, x.shape[3])


def _ungrouped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    rows, n, heads, _ = shape
    out: Tensor = x.view(rows, heads, n, x.shape[2]).transpose(1, 2)
    return out


def _parts(q: Tensor, n: int) -> list[slice]:
    """Heads whose scores are made at once."""
    step = max(1, AT_ONCE // (q.shape[1] * n))
    return [slice(i, i + step) for i in range(0, q.shape[0], step)]


def _shares(q: Tensor, k: Tensor, n: int, scale: float) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2))
    rows = scores.shape[0] * scores.shape[1]
    run("softmax", (scores,), (n, n), (scale,), items=rows, each=n)
    return scores


def entropy(logits: Tensor, labels: Tensor, smoothing: float, z: float) -> Tensor:
    """Cross-entropy of each row, smoothed, with z * log(Z)^2; logits become their slopes in place.

    Args:
        logits: (tokens, classes) bfloat16; labels: (tokens,), below 0 where a row does not count.

    Returns:
        (tokens, 3) float32: the loss, z's part of it, 1 where the label is the first of the
        highest logits.
    """
    told, marks = torch.empty(labels.shape[0], 3), labels.long().contiguous()
    classes = logits.shape[1]
    given = (logits, marks, told)
    run("entropy", given, (classes,), (smoothing, z), items=len(marks), each=classes)
    return told
