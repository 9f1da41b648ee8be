"""What a machine can do at most, measured: bytes of memory read, and matrix products, a second.

Decoding one token reads every weight once, so bandwidth over bytes is its speed limit; reading a
prompt is matrix products, so the matrix peak is. `keifu doctor --measure` and the benchmarks use
the same two numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_BYTES = 256 << 20  # well beyond any cache of these machines
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """The best of several runs on one device with the present number of threads."""

    device: str
    threads: int
    bandwidth: float
    """Bytes read a second."""
    bf16: float
    """Floating-point operations a second in bfloat16 matrix products."""
    fp32: float
    """The same in float32."""


def measure(device: str = "cpu") -> Ceilings:
    """Measure both ceilings; about a second on a processor with two cores."""
    return Ceilings(
        device=device,
        threads=torch.get_num_threads(),
        bandwidth=bandwidth(device),
        bf16=matrix_peak(torch.bfloat16, device),
        fp32=matrix_peak(torch.float32, device),
    )


def bandwidth(device: str = "cpu") -> float:
    """Bytes a second: the better of summing an array and copying it (which reads and writes)."""
    source = torch.ones(_BYTES // 4, device=device)
    target = torch.empty_like(source)
    summed = source.nbytes / _best(source.sum, device)
    copied = 2 * source.nbytes / _best(lambda: target.copy_(source), device)
    return max(summed, copied)


def matrix_peak(dtype: torch.dtype, device: str = "cpu") -> float:
    """Operations a second (two a multiply-add) of a square product, the best of three sizes."""
    best = 0.0
    for rows in (_ROWS // 2, _ROWS, 2 * _ROWS):
        a = torch.ones(rows, rows, dtype=dtype, device=device)
        best = max(best, 2 * rows**3 / _best(lambda a=a: a @ a, device))  # type: ignore[misc]
    return best


def _best(work: Callable[[], object], device: str, runs: int = 5) -> float:
    """The shortest of several runs in seconds, after one to warm up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
