"""What a model needs of a machine's memory, and the refusal of one that needs more than is free."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from keifu.core import machine
from keifu.core.errors import KeifuError
from keifu.nn.pair import Pair
from keifu.nn.part import Part, build
from keifu.nn.stack import Stack
from keifu.nn.stacked import Stacked
from keifu.nn.state import state_bytes

if TYPE_CHECKING:
    from keifu.lm.opening import Opened

_PAGE = 32


def weight_bytes(opened: Opened, spec: Part, precision: str) -> int:
    """Bytes of the weights as they are kept: no more than the files where those stay packed."""
    options, model = opened.options, build(spec, device="meta")
    left_out = set[int]()
    if options.experts == "mapped":
        for module in model.modules():
            if isinstance(module, Stacked):
                left_out |= {id(p) for p in module.parameters()}
    parameters = list(model.parameters())
    every = sum(p.numel() for p in parameters)
    held = sum(p.numel() for p in parameters if id(p) not in left_out)
    size = 4 if precision == "exact" else 2
    dense = held * size
    path = opened.checkpoint.path
    if precision == "exact" or path.suffix != ".gguf":
        return dense
    return min(dense, math.ceil(_files(path) * held / max(every, 1)))


def _files(path: Path) -> int:
    """Bytes of a GGUF file, of all its parts where there are several."""
    stem, found, _ = path.name.partition("-00001-of-")
    parts = path.parent.glob(f"{stem}-*-of-*.gguf") if found else [path]
    return sum(part.stat().st_size for part in parts)


def free_bytes(device: str) -> int:
    """What can still be taken where a model is to lie."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return machine.memory().available


def check_room(opened: Opened, spec: Part, precision: str) -> None:
    """Refuse a model before anything of it is read, if it cannot fit beside what runs already.

    Raises:
        KeifuError: with the estimate and what is free.
    """
    options = opened.options
    weights, state = weight_bytes(opened, spec, precision), 0
    if isinstance(spec, Stack | Pair):
        fixed, token = state_bytes(spec.entries(), options.kept)
        state = fixed + token * _PAGE if options.max_memory is None else options.max_memory
    free = free_bytes(options.device)
    if weights + state > free:
        raise KeifuError(
            f"{opened.name} does not fit: about {_shown(weights)} of weights and at least "
            f"{_shown(state)} of state, and {_shown(free)} are free: choose a smaller model or "
            "more tightly packed weights, or lower --max-memory"
        )


def _shown(size: int) -> str:
    """Bytes for a reader: 1.5 GB, 270 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{math.ceil(size / 1e6)} MB"
