"""How a part is shared out over processes: what each builds, holds and has to make whole.

Tensor parallelism (Shoeybi et al. 2019, section 3): a part says how it splits (`Part.split`), by
value. A share is a narrower part of the same kind, so its state, its counts and its modules' names
follow from it as from any part; what comes out of it is made whole where its `joins` say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from keifu.core.errors import ConfigError
from keifu.nn.kernels.formats import Packed

if TYPE_CHECKING:
    from keifu.nn.part import Part

Value = Tensor | Packed
Run = tuple[int, int]


@dataclass(frozen=True)
class Rank:
    """Which of how many processes."""

    rank: int
    size: int

    def even(self, total: int, what: str) -> Run:
        """This rank's run of `total`, as long as every other's.

        Raises:
            ConfigError: there is none.
        """
        if total % self.size:
            fit = [str(n) for n in range(2, min(total, 64) + 1) if total % n == 0]
            raise ConfigError(
                f"{total} {what} cannot be split over {self.size} processes: use "
                f"{' or '.join(fit) or '1'}"
            )
        each = total // self.size
        return self.rank * each, (self.rank + 1) * each

    def near(self, total: int, what: str) -> Run:
        """This rank's run where runs may differ; on the borders of packed blocks if they can be."""
        unit = next(
            u for u in (256, 32, 1) if total % u == 0 and (total // u >= self.size or u < 2)
        )
        count = total // unit
        if count < self.size:
            raise ConfigError(f"{total} {what} are too few for {self.size} processes")
        at = [unit * (count * r // self.size) for r in (self.rank, self.rank + 1)]
        return at[0], at[1]

    def chunk(self, total: int, what: str) -> Run:
        """This rank's run as a sharded tensor lies: chunks of one length, the last one shorter."""
        each = -(-total // self.size)
        if each * (self.size - 1) >= total:
            raise ConfigError(f"{total} {what} are too few for {self.size} processes")
        return self.rank * each, min((self.rank + 1) * each, total)


@dataclass(frozen=True)
class Cut:
    """The share of one parameter: some runs of one of its dimensions, one after another."""

    dim: int
    total: int
    runs: tuple[Run, ...]

    def whole(self, shape: Sequence[int]) -> torch.Size:
        """The shape of what a share of this shape was cut from."""
        return torch.Size((*shape[: self.dim], self.total, *shape[self.dim + 1 :]))

    def of(self, values: Sequence[Value]) -> list[Value]:
        """The share of values that lie one under the other: packed rows stay packed, columns do
        where the cuts fall between blocks."""
        if self.dim == 0:
            found, at = list[Value](), 0
            held = [(value, at := at + value.shape[0]) for value in values]
            for start, stop in self.runs:
                for value, end in held:
                    first = end - value.shape[0]
                    a, b = max(start, first) - first, min(stop, end) - first
                    if a < b:
                        found.append(_rows(value, a, b))
            return found
        return [_columns(value, self.dim, self.runs) for value in values]


def _rows(value: Value, start: int, stop: int) -> Value:
    if isinstance(value, Packed):
        return Packed(value.data[start:stop], value.format, value.cols)
    return value[start:stop]


def _columns(value: Value, dim: int, runs: Sequence[Run]) -> Value:
    if isinstance(value, Packed):
        block, size = value.format.block, value.format.nbytes
        if any(a % block or b % block for a, b in runs):
            return _columns(value.dequantize(), dim, runs)
        pieces = [value.data[..., a // block * size : b // block * size] for a, b in runs]
        return Packed(torch.cat(pieces, -1), value.format, sum(b - a for a, b in runs))
    return torch.cat([value.narrow(dim, a, b - a) for a, b in runs], dim)


@dataclass(frozen=True)
class Sum:
    """Every process has a part of the sum."""


@dataclass(frozen=True)
class Gather:
    """Every process has a chunk of the last dimension, which is `total` wide."""

    total: int


@dataclass(frozen=True)
class Rows:
    """A table of which every process has the rows of some ids: the others' rows are zero."""

    run: Run


Join = Sum | Gather | Rows
"""How the outputs of all processes' shares become the whole's."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One process's share of a part. Paths are of the part's own modules and parameters.

    A parameter without a cut is held whole; a module without a join gives the same everywhere.
    """

    part: Part
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    joins: Mapping[str, Join] = field(default_factory=dict)
    once: frozenset[str] = frozenset()
    """What a sum takes from the first process alone (a bias after it); zero on the others."""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if name else path


def combined(part: Part, inner: Mapping[str, Split]) -> Split:
    """The share of a part whose modules are shares of others, by their paths in it."""
    cuts: dict[str, Cut] = {}
    joins: dict[str, Join] = {}
    once = frozenset[str]()
    for path, split in inner.items():
        cuts |= {f"{path}.{name}": cut for name, cut in split.cuts.items()}
        joins |= {_join(path, name): join for name, join in split.joins.items()}
        once |= {f"{path}.{name}" for name in split.once}
    return Split(part=part, cuts=cuts, joins=joins, once=once)


def outs(name: str, cut: Cut) -> dict[str, Cut]:
    """A projection cut by its outputs: its matrix and its bias."""
    return {f"{name}.weight": cut, f"{name}.bias": cut}


def ins(name: str, total: int, run: Run) -> dict[str, Cut]:
    """A projection cut by its inputs; its outputs are parts of a sum."""
    return {f"{name}.weight": Cut(1, total, (run,))}


def beside(*groups: tuple[int, Run]) -> Cut:
    """Runs of several groups of rows that lie one under the other: (rows of the group, run)."""
    at, runs = 0, list[Run]()
    for total, (start, stop) in groups:
        runs.append((at + start, at + stop))
        at += total
    return Cut(0, at, tuple(runs))


def share_of(values: Sequence[Value], name: str, split: Split, first: bool) -> list[Value]:
    """What one process keeps of a parameter, whose values lie one under the other.

    Args:
        first: whether it is the first process, which alone adds what a sum takes once.
    """
    cut = split.cuts.get(name)
    found = list(values) if cut is None else cut.of(values)
    if name in split.once and not first:
        return [torch.zeros_like(dense(value)) for value in found]
    return found


def dense(value: Value) -> Tensor:
    """A value decoded."""
    return value.dequantize() if isinstance(value, Packed) else value
