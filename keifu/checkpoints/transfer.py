"""Filling a model from a checkpoint and emptying one into it, tensor by tensor.

Peak memory is the model plus one tensor: the model is built on the meta device and each parameter
takes its place as it is read. Every tensor must be used and every parameter filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from keifu.checkpoints.names import Names, Rule, Value
from keifu.checkpoints.source import Respelt, TensorSource, check_values
from keifu.core.errors import FormatError, nearest
from keifu.nn.kernels.formats import Packed
from keifu.nn.linear import Linear, Weight
from keifu.nn.split import Rank, Split, share_of
from keifu.nn.stacked import Stacked, Store


def fill(
    model: nn.Module,
    names: Names,
    source: TensorSource,
    *,
    dtype: torch.dtype | None = None,
    unpack: bool = False,
    mapped: bool = False,
    device: torch.device | str = "cpu",
    allow_nonfinite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    share: tuple[Split, Rank] | None = None,
) -> None:
    """Give every parameter of a model built on "meta" its value.

    A persistent buffer is a constant with a value of its own (zero, an identity), which stays
    where the checkpoint has none.

    Args:
        dtype: of matrices that are not kept packed; None keeps the checkpoint's. Vectors (norms,
            biases) are float32 unless the dtype is float32 or wider anyway.
        unpack: decode packed matrices instead of keeping them packed.
        mapped: leave experts' matrices in the file; each is read, and checked, when it is used.
        allow_nonfinite: accept NaN and infinity, which are an error otherwise.
        share: the model is one process's share; what is not of it is never touched in the file.

    Raises:
        FormatError: lists every parameter without a tensor, every tensor without a parameter and
            every shape that does not fit.
    """
    if names.older:
        source = Respelt(source, names.modern)
    available, used = set(source.names()), set[str]()
    names = names.fitted(available)
    missing: list[str] = []
    parameters = dict(model.named_parameters())
    for done, (ours, parameter) in enumerate(parameters.items()):
        found = names.find(ours)
        theirs = [name for _, name in found[1]] if found else []
        absent = [name for name in theirs if name not in available]
        if found is None or absent:
            missing.append(f"{ours} (from {', '.join(absent) or 'no rule'})")
            continue
        used.update(theirs)
        if mapped and (owner := _stacked(model, ours, len(theirs))):
            store = _store(owner, ours, found, source, dtype, unpack, device, allow_nonfinite)
            owner.bind(store)
            continue
        values = [found[0].load(piece, source.read(name)) for piece, name in found[1]]
        values = _checked(ours, theirs, values, parameter.shape, allow_nonfinite, share)
        _place(model, ours, values, dtype, unpack, device)
        if progress:
            progress(done + 1, len(parameters))
    used |= _constants(model, names, source, available, device, allow_nonfinite, share)
    left = sorted(n for n in available - used if not names.dropped(n))
    if missing or left:
        raise FormatError(_leftovers(missing, left))


def _stacked(model: nn.Module, ours: str, tensors: int) -> Stacked | None:
    """The layer whose experts' matrices a parameter stacks, if each is a tensor of its own."""
    path, _, leaf = ours.rpartition(".")
    owner = model.get_submodule(path)
    fits = isinstance(owner, Stacked) and leaf == "weight" and owner.count == tensors
    return owner if fits and isinstance(owner, Stacked) else None


def _store(
    owner: Stacked,
    ours: str,
    found: tuple[Rule, list[tuple[str, str]]],
    source: TensorSource,
    dtype: torch.dtype | None,
    unpack: bool,
    device: torch.device | str,
    allow_nonfinite: bool,
) -> Store:
    """What reads one expert's matrix from the file; shapes are checked now, values at first use."""
    rule, names = found
    shape = torch.Size((owner.each, owner.inputs))
    for _, theirs in names:
        if not rule.transforms and source.shape(theirs) != tuple(shape):
            got = source.shape(theirs)
            raise FormatError(f"{theirs} has shape {got}, but {ours} needs {tuple(shape)} of it")
    checked = set[int]()

    def read(expert: int) -> Value:
        piece, theirs = names[expert]
        value = rule.load(piece, source.read(theirs))
        if expert not in checked:
            _check(ours, [theirs], [value], shape, allow_nonfinite)
            checked.add(expert)
        if isinstance(value, Packed) and not unpack:
            return replace(value, data=value.data.to(device))
        dense = value.dequantize() if isinstance(value, Packed) else value
        return dense.to(device, dtype or dense.dtype)

    return read


def _constants(
    model: nn.Module,
    names: Names,
    source: TensorSource,
    available: set[str],
    device: torch.device | str,
    allow_nonfinite: bool,
    share: tuple[Split, Rank] | None,
) -> set[str]:
    """Fill the persistent buffers that the checkpoint has; returns the names it used."""
    used = set[str]()
    for path, module in model.named_modules():
        for leaf, buffer in kept_buffers(module):
            ours = f"{path}.{leaf}" if path else leaf
            found = names.find(ours)
            if found is None:
                raise KeyError(f"no rule for {ours}")
            ((piece, theirs),) = found[1]
            value: Value = buffer
            if theirs in available:
                used.add(theirs)
                value = found[0].load(piece, source.read(theirs))
                shape = buffer.shape
                (value,) = _checked(ours, [theirs], [value], shape, allow_nonfinite, share)
            dense = value.dequantize() if isinstance(value, Packed) else value
            module.register_buffer(leaf, dense.to(device, buffer.dtype))
    return used


def kept_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own buffers that a checkpoint holds, by name."""
    for leaf, buffer in module._buffers.items():
        if buffer is not None and leaf not in module._non_persistent_buffers_set:
            yield leaf, buffer


def _leftovers(missing: list[str], left: list[str]) -> str:
    """One line that names both sides, shortened, with the nearest names."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} parameters have no tensor: " + ", ".join(missing[:6]))
    if left:
        parts.append(f"{len(left)} tensors have no parameter: " + ", ".join(left[:6]))
    if missing and left:
        close = nearest(missing[0].split("from ")[-1].rstrip(")"), left, 1)
        parts.append(f"nearest: {close[0]}" if close else "no name is near")
    return "the checkpoint does not fit its configuration: " + "; ".join(parts)


def _checked(
    ours: str,
    theirs: list[str],
    values: list[Value],
    shape: torch.Size,
    allow_nonfinite: bool,
    share: tuple[Split, Rank] | None,
) -> list[Value]:
    """Values that fit a parameter of this shape, or what a process keeps of them."""
    if share is None:
        _check(ours, theirs, values, shape, allow_nonfinite)
        return values
    split, rank = share
    cut = split.cuts.get(ours)
    _check(ours, theirs, values, shape if cut is None else cut.whole(shape), True)
    values = share_of(values, ours, split, rank.rank == 0)
    if not allow_nonfinite:
        for value in values:
            check_values("+".join(theirs), value)
    return values


def _check(
    ours: str, theirs: list[str], values: list[Value], shape: torch.Size, allow_nonfinite: bool
) -> None:
    """Shapes must fit exactly and numbers be finite."""
    label = "+".join(theirs)
    got = [tuple(v.shape) for v in values]
    rows = sum(s[0] for s in got if s)
    if (rows, *got[0][1:]) != tuple(shape) or any(s[1:] != got[0][1:] for s in got):
        raise FormatError(f"{label} has shape {got}, but {ours} needs {tuple(shape)}")
    if not allow_nonfinite:
        for value in values:
            check_values(label, value)


def _place(
    model: nn.Module,
    ours: str,
    values: list[Value],
    dtype: torch.dtype | None,
    unpack: bool,
    device: torch.device | str,
) -> None:
    """Put a value where the parameter was: packed where it may stay so, dense otherwise."""
    path, _, leaf = ours.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, Weight) and leaf == "weight" and not unpack:
        packed = [v for v in values if isinstance(v, Packed)]
        if len(packed) == len(values):
            owner.pack([replace(p, data=p.data.to(device)) for p in packed])
            return
    dense = [v.dequantize() if isinstance(v, Packed) else v for v in values]
    whole = dense[0] if len(dense) == 1 else torch.cat(dense)
    wanted = dtype or whole.dtype
    if whole.dim() == 1:
        wanted = torch.float32 if wanted.itemsize < 4 else wanted
    owner.register_parameter(leaf, nn.Parameter(whole.to(device, wanted), requires_grad=False))


def outline(model: nn.Module, names: Names) -> Iterator[tuple[str, Rule, str, str]]:
    """(our name, rule, piece, their name) for every tensor the model would export."""
    for ours in _matrices(model):
        found = names.find(ours)
        if found is None:
            raise KeyError(f"no rule for {ours}")
        for piece, theirs in found[1]:
            yield ours, found[0], piece, theirs


def empty(model: nn.Module, names: Names) -> Iterator[tuple[str, Value]]:
    """(their name, value) for every tensor of a model, in their layout, one at a time."""
    for ours, rule, piece, theirs in outline(model, names):
        yield theirs, taken(model, ours, rule, piece)


def taken(model: nn.Module, ours: str, rule: Rule, piece: str) -> Value:
    """One tensor of `outline`, in their layout."""
    return rule.save(piece, _piece(model, ours, rule, piece))


def _matrices(model: nn.Module) -> Iterator[str]:
    """Our names of parameters, packed weights and kept buffers, in module order."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, Weight) and module.weight is None:
            yield f"{prefix}weight"
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + leaf
        for leaf, _ in kept_buffers(module):
            yield prefix + leaf


def _piece(model: nn.Module, ours: str, rule: Rule, piece: str) -> Value:
    """One named row range of a parameter, or all of it."""
    path, _, leaf = ours.rpartition(".")
    owner = model.get_submodule(path)
    start, stop = 0, None
    if isinstance(owner, Stacked) and leaf == "weight" and piece.isdigit():
        return _expert(owner, int(piece))
    if piece.isdigit():
        start, stop = int(piece), int(piece) + 1
    elif piece:
        if not isinstance(owner, Linear) or piece not in owner.rows:
            raise KeyError(f"{ours} has no rows named {piece!r}")
        for name, rows in owner.rows.items():
            if name == piece:
                stop = start + rows
                break
            start += rows
    if isinstance(owner, Weight) and leaf == "weight" and owner.weight is None:
        return _packed_rows(owner, start, owner.outputs if stop is None else stop)
    value: Tensor = getattr(owner, leaf).detach()
    return value[start:stop]


def _expert(owner: Stacked, expert: int) -> Value:
    """One expert's matrix: still packed where one piece holds it."""
    found = owner.matrix(expert)
    if isinstance(found, Tensor):
        return found.detach()
    return found[0] if len(found) == 1 else torch.cat([p.dequantize() for p in found])


def _packed_rows(owner: Weight, start: int, stop: int) -> Value:
    """A row range of a packed matrix: still packed where one piece holds it."""
    at = 0
    for piece in owner.pieces:
        rows = piece.shape[0]
        if at <= start and stop <= at + rows:
            return piece.select(torch.arange(start - at, stop - at))
        at += rows
    return owner.dense()[start:stop]


def assign(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values under our own names into a model (tests, merged models)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
