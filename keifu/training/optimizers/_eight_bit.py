"""Adam whose moments are held in 8 bits: block-wise dynamic quantisation (Dettmers et al. 2022).

A code of b bits is, after its sign, e zeros, a one, and the rest as a fraction in [0.1, 1]: the
value is 10^-e * fraction, so that both the small and the large are near a code (section 1.3). The
second moment has no sign and one bit more (section 2.2). Each block has a scale of its own, its
greatest absolute value (section 2.1).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.training.optimizers._one_by_one import OneByOne, adam_

BLOCK = 256
"""Values that share a scale (the paper has 2,048; fewer are more exact, 1.6 % larger)."""
SMALL = 4096
"""A parameter of fewer values keeps 32-bit moments (as the authors' library does)."""

MOMENTS = (("first", True), ("second", False))
"""Names, and whether they have a sign."""


@lru_cache(maxsize=8)
def codes(signed: bool, device: torch.device = torch.device("cpu")) -> Tensor:
    """(256,) the values of the codes, ascending: 0, 1, and by decade twice as many as below."""
    found = [0.0, 1.0]
    for decade in range(7):
        count = 2 ** (decade if signed else decade + 1)
        middles = [0.1 + 0.9 * (i + 0.5) / count for i in range(count)]
        found += [m * 10.0 ** (decade - 6) for m in middles]
        found += [-m * 10.0 ** (decade - 6) for m in middles] if signed else []
    return torch.tensor(sorted(found), dtype=torch.float32, device=device)


def packed(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (values,) uint8 of the nearest values, and scales (blocks,) float32."""
    flat = x.float().flatten()
    rows = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = rows.abs().amax(1)
    table = codes(signed, x.device)
    bounds = (table[1:] + table[:-1]) / 2
    shares = rows / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    nearest = torch.bucketize(shares, bounds, out_int32=True).to(torch.uint8)
    return nearest.flatten()[: len(flat)], scales


def unpacked(held: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """(values,) float32."""
    values = codes(signed, held.device).index_select(0, held.int())
    rows = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK) * scales[:, None]
    return rows.flatten()[: len(values)]


class EightBit(OneByOne):
    """Adam's update on moments that are unpacked for one parameter at a time.

    A group's "coupled" puts the weight decay into the gradient (Adam), else it is apart (AdamW).
    """

    def update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One weight."""
        state["step"] = state.get("step", 0) + 1
        flat, moments = gradient.float().flatten(), []
        for name, signed in MOMENTS:
            if name not in state:
                moments.append(torch.zeros_like(flat))
            elif f"{name}_scales" in state:
                moments.append(unpacked(state[name], state[f"{name}_scales"], signed))
            else:
                moments.append(state[name])
        changed = weight.float().flatten()
        settings = group
        if group["coupled"]:
            flat = flat + group["weight_decay"] * changed
            settings = {**group, "weight_decay": 0.0}
        adam_(changed, flat, moments[0], moments[1], state["step"], settings)
        weight.copy_(changed.view_as(weight))
        for (name, signed), moment in zip(MOMENTS, moments, strict=True):
            if weight.numel() < SMALL:
                state[name] = moment
            else:
                state[name], state[f"{name}_scales"] = packed(moment, signed)


def bytes_of(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all the tensors in its states."""
    tensors = (v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))
    return sum(math.prod(v.shape) * v.element_size() for v in tensors)
