"""Experts apart: every process has some of them, and tokens travel to where their expert is.

Lepikhin et al. 2020 (GShard), section 3.2: each process has rows of its own; two all-to-all
exchanges a layer bring the choices to the experts' processes and the answers back. An expert's
gradient is then made where it is, from the tokens of all processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from keifu.core.errors import ConfigError
from keifu.nn.experts import Bank
from keifu.nn.split import Cut, Rank
from keifu.nn.stacked import Stacked


def spread(model: nn.Module, mesh: DeviceMesh) -> dict[str, Cut]:
    """Leave this process its share of a model's experts; returns what is cut, by name.

    Every process must then run as many steps as the others.

    Raises:
        ConfigError: the model has no experts, or they do not divide evenly.
    """
    rank = Rank(mesh.get_local_rank(), mesh.size())
    cuts: dict[str, Cut] = {}
    for path, bank in model.named_modules():
        if not isinstance(bank, Bank):
            continue
        count = bank.down.count
        start, stop = rank.even(count, "experts")
        for name, module in bank.named_children():
            if isinstance(module, Stacked):
                cuts |= {f"{path}.{name}.{leaf}": cut for leaf, cut in _narrow(module, start, stop)}
        _exchange(bank, count, mesh)
    if not cuts:
        raise ConfigError("the model has no experts to spread: use parallel.expert 1")
    return cuts


def _narrow(module: Stacked, start: int, stop: int) -> list[tuple[str, Cut]]:
    """Keep the experts from `start` to `stop` of a resident stack."""
    if module.weight is None:
        raise ConfigError("packed experts cannot be spread: load the model dense")
    found = []
    for leaf, value in list(module.named_parameters(recurse=False)):
        each = value.shape[0] // module.count
        cut = Cut(0, value.shape[0], ((start * each, stop * each),))
        (own,) = cut.of([value.detach()])
        assert isinstance(own, Tensor)
        kept = nn.Parameter(own.clone(), requires_grad=value.requires_grad)
        module.register_parameter(leaf, kept)
        found.append((leaf, cut))
    module.count = stop - start
    module.outputs = module.count * module.each
    return found


def _exchange(bank: Bank, count: int, mesh: DeviceMesh) -> None:
    """Have a bank of some experts answer for all `count`."""
    group, ranks = mesh.get_group(), mesh.size()
    own = bank.forward

    def everywhere(x: Tensor, sizes: Sequence[int]) -> Tensor:
        """x (choices, width) sorted by expert, `sizes` for each of all experts, as the bank's."""
        ours = torch.tensor(sizes, device=x.device).view(ranks, count // ranks)
        theirs = torch.empty_like(ours)
        dist.all_to_all_single(theirs, ours, group=group)
        out, back = ours.sum(1).tolist(), theirs.sum(1).tolist()
        come: Tensor = _Exchanged.apply(x, out, back, group)  # type: ignore[no-untyped-call]
        expert = torch.arange(count // ranks, device=x.device).repeat(ranks)
        order = expert.repeat_interleave(theirs.flatten()).argsort(stable=True)
        done = own(come[order], theirs.sum(0).tolist())
        answers = done[order.argsort()]
        found: Tensor = _Exchanged.apply(answers, back, out, group)  # type: ignore[no-untyped-call]
        return found

    bank.forward = everywhere  # type: ignore[method-assign]


class _Exchanged(torch.autograd.Function):
    """Rows (rows, width) sent to each process and received from it; gradients go the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, out: list[int], back: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.given = out, back, group
        found = x.new_empty(sum(back), *x.shape[1:])
        dist.all_to_all_single(found, x.contiguous(), back, out, group=group)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        out, back, group = ctx.given
        found = grad.new_empty(sum(out), *grad.shape[1:])
        dist.all_to_all_single(found, grad.contiguous(), out, back, group=group)
        return found, None, None, None
