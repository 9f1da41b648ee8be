"""Muon: matrices step along their orthogonalised momentum, all else with AdamW.

Source: Jordan et al. 2024 (Muon); the step's size, so that AdamW's learning rate and decay serve
both: Liu et al. 2025 (Muon is Scalable for LLM Training), section 2.2.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.training.optimizer import Optimization
from keifu.training.optimizers._one_by_one import OneByOne, adam_

ITERATION = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration."""
SIZES = ("rms", "spectral")


@dataclass(frozen=True, kw_only=True)
class Muon(Optimization):
    """Momentum, then U V^T of it in place of U S V^T."""

    decay: float = 0.1
    """Weight decay, where a group does not say otherwise"""
    momentum: float = 0.95
    """Share of the momentum that is kept; the step looks ahead along it (Nesterov)"""
    size: str = "rms"
    """rms: the step is as long as AdamW's, 0.2 * sqrt(longer side); spectral: sqrt(rows / columns)
    where that is above 1, as first published"""
    iterations: int = 5
    """Of Newton and Schulz"""
    others: tuple[str, ...] = ("*input.*", "shared.*", "memory", "*head.*", "*heads.*")
    """Patterns of names that AdamW updates though they are matrices: embeddings and heads"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moments"""
    eps: float = 1e-8
    """AdamW's"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in SIZES:
            raise KeifuError(f"Muon's size {self.size!r}: {' or '.join(SIZES)}")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Over groups in torch's form, each split into what is orthogonalised and the rest."""
        made = []
        for group in groups:
            names = group.get("names") or [""] * len(group["params"])
            for matrices in (True, False):
                pairs = [
                    (weight, name)
                    for weight, name in zip(group["params"], names, strict=True)
                    if matrices == self._fits(weight, name)
                ]
                if pairs:
                    weights, kept = (list(column) for column in zip(*pairs, strict=True))
                    made.append({**group, "params": weights, "names": kept, "matrices": matrices})
        settings = {
            "lr": self.lr, "weight_decay": self.decay, "momentum": self.momentum,
            "size": self.size, "iterations": self.iterations, "betas": self.betas,
            "eps": self.eps,
        }  # fmt: skip
        return Orthogonal(made, settings)

    def _fits(self, weight: Tensor, name: str) -> bool:
        return weight.dim() > 1 and not any(fnmatch.fnmatchcase(name, p) for p in self.others)


class Orthogonal(OneByOne):
    """Muon's update where the group says matrices, AdamW's elsewhere."""

    def update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One weight."""
        if not group["matrices"]:
            if not state:
                state.update(step=0, first=torch.zeros_like(weight))
                state["second"] = torch.zeros_like(weight)
            state["step"] += 1
            return adam_(weight, gradient, state["first"], state["second"], state["step"], group)
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        held = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        change = orthogonal(gradient.lerp(held, group["momentum"]), group["iterations"])
        rows, columns = weight.shape[-2:]
        if group["size"] == "rms":
            size = 0.2 * max(rows, columns) ** 0.5
        else:
            size = max(1.0, rows / columns) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(change, alpha=-group["lr"] * size)
        return None


def orthogonal(x: Tensor, iterations: int = 5) -> Tensor:
    """(..., rows, columns) near U V^T of x = U S V^T, in bfloat16: singular values of 0.7 to 1.2.

    Each iteration is a x + (b x x^T + c (x x^T)^2) x on x of norm at most 1.
    """
    a, b, c = ITERATION
    held = x.bfloat16().reshape(-1, *x.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    held = held.mT if tall else held
    held = held / held.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = held @ held.mT
        change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        held = torch.baddbmm(held, change, held, beta=a)
    return (held.mT if tall else held).reshape(x.shape)


optimizer = Muon
