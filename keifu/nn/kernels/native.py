"""The native kernels: whether they are there, which instruction set runs, how many threads."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Any

from keifu.core.errors import KeifuError, unknown
from keifu.nn.kernels.library import open_library

LEVELS = ("generic", "avx2", "avx512")
TABLES = 8
"""Page tables that one step may carry: one for each group of layers with the same window."""


class Segment(ctypes.Structure):
    """Rows of a weight and the output's and input's columns they meet; `kf_segment` in ops.h."""

    _fields_ = (
        ("data", c_void_p),
        ("group_bytes", c_int64),
        ("format", c_int32),
        ("rows", c_int32),
        ("cols", c_int32),
        ("first", c_int32),
        ("from_", c_int32),
    )


class Op(ctypes.Structure):
    """One operation of a tape; `kf_op` in ops.h."""

    _fields_ = (
        *((name, c_int32) for name in ("code", "flags", "kind", "width")),
        *((name, c_int32) for name in ("heads", "kv_heads", "rotated", "table")),
        *((name, c_int32) for name in ("window", "sinks", "page_shift", "segments")),
        *((name, c_int32) for name in ("states", "groups")),
        *((name, c_float) for name in ("eps", "scale", "cap", "low", "high", "offset")),
        *((name, c_void_p) for name in ("input", "other", "third", "out")),
        *((f"{name}_stride", c_int64) for name in ("in", "other", "third", "out")),
        ("codes", c_void_p),
        *((name, c_void_p) for name in ("weight", "bias", "cosines", "sines", "slopes")),
        *((name, c_void_p) for name in ("keys", "values", "state", "partial")),
        ("segment", POINTER(Segment)),
        ("limit", c_int64),
    )


class StepData(ctypes.Structure):
    """What one run of a tape works on; `kf_step` in ops.h."""

    _fields_ = (
        *((name, c_int32) for name in ("rows", "count", "runs", "requests")),
        *((name, c_void_p) for name in ("tokens", "positions", "lengths", "starts", "owners")),
        *((name, c_void_p) for name in ("chosen", "coarse", "offsets", "slots")),
        ("tables", c_void_p * TABLES),
        ("table_strides", c_int64 * TABLES),
    )


class Choice(ctypes.Structure):
    """A question, which token of a row of logits comes next, and its answer; `kf_choice`."""

    _fields_ = (
        *((name, c_void_p) for name in ("logits", "ids")),
        ("count", c_int64),
        *((name, c_uint64) for name in ("seed", "place")),
        *((name, c_float) for name in ("temperature", "top_p", "min_p")),
        *((name, c_int32) for name in ("top_k", "token")),
    )


class Stride(ctypes.Structure):
    """Several steps at once; `kf_stride`."""

    _fields_ = (
        *((name, c_void_p) for name in ("ends", "hurry", "tokens")),
        ("seconds", c_double),
        *((name, c_int32) for name in ("most", "end_count", "made")),
    )


def _declare(library: ctypes.CDLL) -> None:
    """Argument and result types of the functions that the library exports."""
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "kf_level": (c_char_p, [c_int]),
        "kf_current": (c_char_p, []),
        "kf_force": (c_int, [c_int]),
        "kf_sizes": (c_int, [c_int]),
        "kf_threads": (c_int, [c_int]),
        "kf_codes_size": (c_int64, [c_int64]),
        "kf_tiled_bytes": (c_int64, [c_int, c_int64, c_int64]),
        "kf_pack": (c_int, [c_int, c_void_p, c_void_p, c_int, c_int, c_void_p]),
        "kf_unpack": (c_int, [c_int, c_void_p, c_int, c_int, c_void_p, c_int]),
        "kf_check": (c_int, [POINTER(Op), c_int, POINTER(StepData)]),
        "kf_run": (c_int, [POINTER(Op), c_int, POINTER(StepData), c_int64]),
        "kf_draw": (c_int, [c_void_p, c_int]),
        "kf_go_on": (
            c_int,
            [
                *(POINTER(Op), c_int, POINTER(Op), c_int, POINTER(StepData)),
                *(c_int64, c_void_p, POINTER(Stride)),
            ],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    return open_library("_native", _declare, "kf_sizes", (Op, StepData, Segment, Choice, Stride))


def available() -> bool:
    """Whether the kernels were built and load."""
    return _load()[0] is not None


def why() -> str:
    """Why they are not available, and the remedy; empty where they are."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The loaded library; an error where there is none."""
    loaded, reason = _load()
    if loaded is None:
        raise KeifuError(f"no native kernels: {reason}")
    return loaded


def features() -> tuple[str, ...]:
    """The instruction sets that the kernels can use on this machine, slowest first."""
    if not available():
        return ()
    return tuple(name for i, name in enumerate(LEVELS) if library().kf_level(i))


def current() -> str:
    """The instruction set in use: the best one, unless `force` said otherwise."""
    name: bytes = library().kf_current()
    return name.decode()


def force(name: str) -> None:
    """Use this instruction set from now on (for tests and measurements)."""
    if name not in features():
        raise unknown("instruction set", name, features())
    library().kf_force(LEVELS.index(name))


def set_threads(count: int) -> int:
    """How many threads work on a job, the caller's among them; returns how many it will be."""
    if count < 1:
        raise KeifuError(f"{count} threads cannot work: use 1 or more")
    got: int = library().kf_threads(count)
    return got


def threads() -> int:
    """How many threads work on a job."""
    count: int = library().kf_threads(0)
    return count
