"""A model over several processes: each has its share of the parts, and sums and joins outputs.

Every process runs the same step over the same tokens. Weights are plain tensors, so packed rows and
kernels stay what they are; what crosses between processes is a distributed tensor with the
placement that the part's join names (`torch.distributed.tensor`), made whole in one collective.

Gradients follow from one rule: what is differentiated is the sum of all processes' losses, and each
collective's gradient is its adjoint. So a share's gradient is done after the backward pass, and
what every process holds whole (norms, routers, tables of positions) has a part of its gradient in
each, to be added up, whoever read it and where. Since every process has the same loss, all come out
multiplied by the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from keifu.nn.kernels.formats import Packed
from keifu.nn.linear import Embedding, Weight
from keifu.nn.pair import PairModule
from keifu.nn.part import Part, build
from keifu.nn.projection import Projecting, Projection, Spread
from keifu.nn.split import Gather, Join, Rank, Rows, Split, Value, dense, share_of
from keifu.nn.stack import StackModule


def share(part: Part, mesh: DeviceMesh) -> Split:
    """This process's share of a part.

    Raises:
        ConfigError: the part does not split over so many.
    """
    return part.split(Rank(mesh.get_local_rank(), mesh.size()))


def attach(model: nn.Module, split: Split, mesh: DeviceMesh) -> None:
    """Make a built share whole with the other processes' wherever it says so."""
    done = set[int]()
    for path, join in split.joins.items():
        module = model.get_submodule(path)
        if id(module) not in done:  # a table that two stacks share
            done.add(id(module))
            _join(module, join, mesh)


def _join(module: nn.Module, join: Join, mesh: DeviceMesh) -> None:
    if isinstance(join, Rows):
        start, stop = join.run
        rows = module.forward

        def looked_up(ids: Tensor) -> Tensor:
            elsewhere = (ids < start) | (ids >= stop)
            mine = rows((ids - start).clamp(0, stop - start - 1))
            mine = mine.masked_fill(elsewhere[..., None], 0)
            return made_whole(mine, mesh, Partial(), mine.shape)

        module.forward = looked_up
        return

    if isinstance(join, Gather) and isinstance(module, Projecting):
        module.spread = spread(mesh, join.total)
        _all_losses(module, mesh.size())

    def whole(_: nn.Module, args: Any, out: Tensor) -> Tensor:
        if isinstance(join, Gather):
            shape = torch.Size((*out.shape[:-1], join.total))
            return made_whole(out, mesh, Shard(out.dim() - 1), shape)
        return made_whole(out, mesh, Partial(), out.shape)

    module.register_forward_hook(whole)


def spread(mesh: DeviceMesh, total: int) -> Spread:
    """A vocabulary of `total` over the mesh's processes, for losses that leave the logits there."""

    def over(how: dist.ReduceOp.RedOpType) -> Callable[[Tensor], Tensor]:
        def joined(x: Tensor) -> Tensor:
            out = x.contiguous().clone()
            dist.all_reduce(out, op=how, group=mesh.get_group())
            return out

        return joined

    first, _ = Rank(mesh.get_local_rank(), mesh.size()).chunk(total, "tokens of vocabulary")
    return Spread(
        first=first, total=total, sum=over(dist.ReduceOp.SUM), max=over(dist.ReduceOp.MAX)
    )


def _all_losses(head: Projecting, processes: int) -> None:
    """A loss that reads a head's product gives its rows the gradient of one process's loss, and
    what is differentiated here is all processes'."""
    plain = head.projection

    def projection(x: Tensor, table: Embedding) -> Projection | None:
        """As the head's own."""
        found = plain(x, table)
        if found is None:
            return None
        bias = found.bias
        if bias is not None:
            bias = _Times.apply(bias, processes)  # type: ignore[no-untyped-call]
        weight = _Times.apply(found.weight, processes)  # type: ignore[no-untyped-call]
        return replace(found, weight=weight, bias=bias)

    head.projection = projection  # type: ignore[method-assign]


class _Times(torch.autograd.Function):
    """A tensor as it is, its gradient times a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, times: int) -> Tensor:
        ctx.times = times
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.times, None


def made_whole(x: Tensor, mesh: DeviceMesh, placement: Placement, shape: torch.Size) -> Tensor:
    """The whole, on every process, of what each has a part of."""
    if torch.is_grad_enabled() and x.requires_grad:
        found: Tensor = _MadeWhole.apply(x, mesh, placement, shape)  # type: ignore[no-untyped-call]
        return found
    return _laid(x, mesh, placement, Replicate(), shape)


def _laid(
    x: Tensor, mesh: DeviceMesh, before: Placement, after: Placement, shape: torch.Size
) -> Tensor:
    """This process's part of a tensor of this shape, laid out another way."""
    stride = [1]
    for size in reversed(shape[1:]):
        stride.insert(0, stride[0] * size)
    spread = DTensor.from_local(
        x.contiguous(), mesh, [before], run_check=False, shape=shape, stride=tuple(stride)
    )
    found: Tensor = spread.redistribute(mesh, [after]).to_local()
    return found


class _MadeWhole(torch.autograd.Function):
    """The adjoint of a sum that all receive is a sum that all receive; of a gathering, a sum of
    which each receives its chunk."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mesh: DeviceMesh, placement: Placement, shape: torch.Size
    ) -> Tensor:
        ctx.given = mesh, placement, shape
        return _laid(x, mesh, placement, Replicate(), shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        mesh, placement, shape = ctx.given
        after = Replicate() if placement.is_partial() else placement
        return _laid(grad, mesh, Partial(), after, shape), None, None, None


def parallelize(
    model: StackModule | PairModule, mesh: DeviceMesh, *, train: bool = False
) -> StackModule | PairModule:
    """This process's share of a model that every process has whole; the whole is left as it is.

    Args:
        train: the share's parameters have gradients.

    Raises:
        ConfigError: the model does not split over so many processes.
    """
    split, first = share(model.spec, mesh), mesh.get_local_rank() == 0
    made = build(split.part, device="meta")
    assert isinstance(made, StackModule | PairModule)
    for path, module in made.named_modules():
        source, prefix = model.get_submodule(path), f"{path}." if path else ""
        held: dict[str, Sequence[Value]] = {
            leaf: [value.detach()]
            for leaf, value in [*source._parameters.items(), *source._buffers.items()]
            if value is not None
        }
        if isinstance(source, Weight) and source.weight is None:
            held["weight"] = source.pieces
        for leaf, values in held.items():
            _hold(module, leaf, share_of(values, prefix + leaf, split, first), train)
    if isinstance(made, PairModule) and made.spec.tied:
        made.decoder.input.table = made.encoder.input.table
    attach(made, split, mesh)
    return made.train(train)


def _hold(module: nn.Module, leaf: str, values: Sequence[Value], train: bool) -> None:
    """Give a share its value; columns of packed rows that fall within blocks are decoded."""
    packed = [v for v in values if isinstance(v, Packed)]
    if isinstance(module, Weight) and leaf == "weight" and len(packed) == len(values):
        module.pack([replace(p, data=p.data.clone()) for p in packed])
        return
    whole = torch.cat([dense(v) for v in values])
    if leaf in module._buffers:
        module._buffers[leaf] = whole
    else:
        module.register_parameter(leaf, nn.Parameter(whole, requires_grad=train))
