"""What several processes hold of a model and its optimizer, put together in one, and shared out.

Put together, it is what one process alone would have: checkpoints do not know how many wrote them,
and any number goes on from them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from keifu.core.errors import KeifuError
from keifu.training.place import Place

Place_of = Callable[[str], Place]


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of a model without its parameters' values; buffers are kept."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        memo[id(parameter)] = empty
    return copy.deepcopy(model, memo)


def filled(bones: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A model of a skeleton with these values as its parameters."""
    memo: dict[int, Any] = {
        id(empty): nn.Parameter(values[name], empty.requires_grad)
        for name, empty in bones.named_parameters()
    }
    return copy.deepcopy(bones, memo)


def put_together(
    parts: Mapping[str, Tensor],
    everyones: Sequence[Mapping[str, Place]],
    places: Mapping[str, str],
    group: dist.ProcessGroup,
) -> dict[str, Tensor]:
    """Whole tensors in main memory in the first process; nothing in the others. All call this.

    Tensor after tensor, so that no process but the first holds more than its own part.

    Args:
        everyones: the places of parameters of each process.
        places: the parameter whose place a tensor has, by the tensor's name.
    """
    mine, found = dist.get_rank(), dict[str, Tensor]()
    for name, part in parts.items():
        holders = [
            rank
            for rank, held in enumerate(everyones)
            if held[places[name]].first and not held[places[name]].zero
        ]
        if mine and mine in holders:
            dist.send(part.detach().cpu().contiguous(), 0, group=group)
        if mine:
            continue
        whole = torch.zeros(everyones[0][places[name]].whole, dtype=part.dtype)
        for rank in holders:
            place = everyones[rank][places[name]]
            here = part.detach().cpu()
            if rank:
                here = torch.empty(place.shape(), dtype=part.dtype)
                dist.recv(here, rank, group=group)
            for (offsets, sizes), inside in place.boxes():
                there = tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))
                whole[there] = here[inside]
        found[name] = whole
    return found


def named(state: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The tensors of an optimizer's state: "number.entry" -> the parameter's name, the entry."""
    return {
        f"{number}.{entry}": (names[int(number)], entry)
        for number, entries in state.items()
        for entry, value in entries.items()
        if isinstance(value, Tensor)
    }


def whole_state(
    state: dict[str, Any],
    names: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    together: Callable[[Mapping[str, Tensor], Mapping[str, str]], Mapping[str, Tensor]],
    mine: Mapping[str, Place],
) -> dict[str, Any]:
    """An optimizer's `state_dict` with whole tensors for this process's parts of them.

    Args:
        names: of the parameters, in the optimizer's order; shapes: of what is here of them.
        together: puts parts together, given the parameter of each.

    Raises:
        KeifuError: a state that is neither shaped as its parameter nor the same everywhere.
    """
    parts, like = dict[str, Tensor](), dict[str, str]()
    for key, (name, entry) in named(state["state"], names).items():
        value = state["state"][int(key.partition(".")[0])][entry]
        if tuple(value.shape) == shapes[name]:
            parts[key], like[key] = value, name
        elif value.dim() and shapes[name] != mine[name].whole:
            raise KeifuError(
                f"the optimizer's {entry} of {name} cannot be put together from shards: use adamw, "
                "or parallel.shard false"
            )
    found = together(parts, like)
    entries = {
        number: {entry: found.get(f"{number}.{entry}", value) for entry, value in held.items()}
        for number, held in state["state"].items()
    }
    return {**state, "state": entries}


def own_state(
    state: dict[str, Any], names: Sequence[str], mine: Mapping[str, Place]
) -> dict[str, Any]:
    """The parts that are here of what `whole_state` gave."""
    entries = {
        int(number): {
            entry: mine[names[int(number)]].own(value)
            if isinstance(value, Tensor) and tuple(value.shape) == mine[names[int(number)]].whole
            else value
            for entry, value in held.items()
        }
        for number, held in state["state"].items()
    }
    return {**state, "state": entries}
