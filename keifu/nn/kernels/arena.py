"""Memory for weights that are read from end to end each step: in huge pages where Linux has them.

A token reads all weights once, far more than the processor's tables of 4 KiB pages can hold; with
pages of 2 MiB, and tensors one after another in them, it reads 10 to 100 % more bytes a second.
"""

from __future__ import annotations

import mmap
import sys
import threading

import torch
from torch import Tensor

CHUNK = 32 << 20
"""Bytes asked of the system at once; what is not written yet takes no memory."""
ALIGNED = 64

_lock = threading.Lock()
_chunk: mmap.mmap | None = None
_used = 0


def take(size: int) -> Tensor:
    """New memory, `size` bytes of uint8 from a multiple of 64 on; freed with its last neighbour."""
    global _chunk, _used
    with _lock:
        start = -(-_used // ALIGNED) * ALIGNED
        if _chunk is None or start + size > len(_chunk):
            _chunk, start = _map(max(CHUNK, size)), 0
        _used = start + size
        return torch.frombuffer(_chunk, dtype=torch.uint8, count=size, offset=start)


def _map(size: int) -> mmap.mmap:
    """Anonymous memory of this process alone; huge pages are a hint that the system may refuse."""
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made.madvise(mmap.MADV_HUGEPAGE)
    return made
