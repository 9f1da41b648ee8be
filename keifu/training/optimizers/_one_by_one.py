"""What optimizers of our own share: a loop over parameters, exact states, Adam's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class OneByOne(torch.optim.Optimizer):
    """An optimizer that updates one parameter after another.

    Saved states come back in the types they had; torch's own would make floats of 8-bit codes.
    """

    def update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Change one weight in place; `state` is its own, empty at first."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.update(weight, weight.grad, self.state[weight], group)
        return None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `state_dict` gave it, in the same types."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        for weight, number in zip(weights, saved, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[weight][name] = value.to(weight.device, copy=True)


def adam_(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: int,
    group: dict[str, Any],
) -> None:
    """Adam's update number `step` (from 1), in place on weight and both moments.

    Kingma & Ba 2015, algorithm 1; decay apart from the gradient: Loshchilov & Hutter 2019,
    algorithm 2.
    """
    one, two = group["betas"]
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    first.lerp_(gradient, 1 - one)
    second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
    root = second.sqrt().div_((1 - two**step) ** 0.5).add_(group["eps"])
    weight.addcdiv_(first, root, value=-group["lr"] / (1 - one**step))
