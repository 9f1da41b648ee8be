"""Two-way rules between the names a checkpoint publishes and ours.

One table serves loading, saving, GGUF, merging and adapters. A rule is a pair of patterns:

    {i}        a number, the same on both sides
    {p}        "weight" or "bias", the same on both sides
    {q,k,v}    on their side: several tensors that are the named rows of our one matrix,
               or, where the names are numbers, its entries one after another;
               {gate=w2,up=w1} where they call the rows something else
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from keifu.core.errors import FormatError
from keifu.nn.kernels.formats import Packed

Value = Tensor | Packed


class Transform(Protocol):
    """A change of layout that can be undone."""

    def load(self, value: Value) -> Value:
        """From their layout to ours."""

    def save(self, value: Value) -> Value:
        """From our layout to theirs."""


@dataclass(frozen=True)
class Transpose:
    """Their matrix is (inputs, outputs), as GPT-2's Conv1D keeps it."""

    def load(self, value: Value) -> Value:
        """Swap the two dimensions; a vector stays."""
        if isinstance(value, Packed):
            return value.dequantize().t()
        return value.t() if value.dim() == 2 else value

    def save(self, value: Value) -> Value:
        """Swap the two dimensions back."""
        return self.load(value)


@dataclass(frozen=True)
class Shift:
    """Their value is ours plus a constant (GGUF keeps Gemma's norms as 1 + w)."""

    by: float

    def load(self, value: Value) -> Value:
        """Subtract."""
        return _dense(value) - self.by

    def save(self, value: Value) -> Value:
        """Add."""
        return _dense(value) + self.by


@dataclass(frozen=True)
class OneOf:
    """Their tensor is one entry of ours along a new first dimension (experts, norms of heads)."""

    def load(self, value: Value) -> Value:
        """(...) -> (1, ...), to be joined with its siblings."""
        return _dense(value)[None]

    def save(self, value: Value) -> Value:
        """(1, ...) -> (...)."""
        return _dense(value)[0]


@dataclass(frozen=True)
class OneChannel:
    """Their filters are (channels, 1, taps), PyTorch's depthwise ones; ours (channels, taps)."""

    def load(self, value: Value) -> Value:
        """Drop the dimension of one."""
        return _dense(value).squeeze(1)

    def save(self, value: Value) -> Value:
        """Put it back."""
        return _dense(value)[:, None]


@dataclass(frozen=True)
class Stacks:
    """Their (count, rows, cols) are matrices that we keep one under the other (experts in GGUF)."""

    count: int

    def load(self, value: Value) -> Value:
        """(count, rows, cols) -> (count * rows, cols), packed rows as they are."""
        if len(value.shape) != 3 or value.shape[0] != self.count:
            raise FormatError(f"{self.count} experts cannot be of shape {tuple(value.shape)}")
        if isinstance(value, Packed):
            return replace(value, data=value.data.flatten(0, 1))
        return value.flatten(0, 1)

    def save(self, value: Value) -> Value:
        """Back."""
        if isinstance(value, Packed):
            return replace(value, data=value.data.unflatten(0, (self.count, -1)))
        out: Tensor = value.unflatten(0, (self.count, -1))
        return out


@dataclass(frozen=True)
class OneRow:
    """Their vector is our matrix of one row."""

    def load(self, value: Value) -> Value:
        """(width,), or the matrix itself, -> (1, width)."""
        return _dense(value).reshape(1, -1)

    def save(self, value: Value) -> Value:
        """(1, width) -> (width,)."""
        return _dense(value)[0]


def numbered(count: int) -> str:
    """The pattern of `count` numbered siblings that are one parameter of ours: {0,1,2}."""
    return "{" + ",".join(map(str, range(count))) + "}" if count > 1 else "0"


@dataclass(frozen=True)
class Rows:
    """Their rows in another order: row j of ours is row `index(n)[j]` of their n rows.

    Works on packed matrices too, since a packed row is a unit.
    """

    index: Callable[[int], Tensor]

    def load(self, value: Value) -> Value:
        """Gather."""
        return _select(value, self.index(value.shape[0]))

    def save(self, value: Value) -> Value:
        """Gather by the inverse."""
        return _select(value, torch.argsort(self.index(value.shape[0])))


def _select(value: Value, index: Tensor) -> Value:
    return value.select(index) if isinstance(value, Packed) else value[index]


def _dense(value: Value) -> Tensor:
    return value.dequantize() if isinstance(value, Packed) else value


def half_to_pairs(heads: int) -> Rows:
    """Theirs turn neighbouring pairs (2i, 2i + 1), ours the halves (i, i + d/2), head by head.

    The permutation between original LLaMA or GGUF files and Hugging Face ones.
    """

    def index(rows: int) -> Tensor:
        grid = torch.arange(rows).view(heads, rows // heads // 2, 2)
        return grid.transpose(1, 2).reshape(-1)

    return Rows(index)


def grouped_qkv(kv_heads: int, share: int, head_width: int) -> Rows:
    """Theirs: for each key head its `share` queries, its key, its value; ours: all q, all k, all v.

    GPT-NeoX and BLOOM (share 1), Falcon's new decoder.
    """

    def index(rows: int) -> Tensor:
        unit = rows // (kv_heads * (share + 2))
        grid = torch.arange(rows).view(kv_heads, share + 2, unit)
        parts = (grid[:, :share], grid[:, share], grid[:, share + 1])
        return torch.cat([p.reshape(-1) for p in parts])

    return Rows(index)


@dataclass(frozen=True)
class Rule:
    """theirs <-> ours, with transforms of the whole value or of single pieces of a fused one."""

    theirs: str
    ours: str
    transforms: tuple[Transform, ...] = ()
    pieces: Mapping[str, Transform] = field(default_factory=dict)

    def match(self, ours: str) -> list[tuple[str, str]] | None:
        """Their names for a parameter of ours, as (piece, name); None if it is another rule's."""
        found = _pattern(self.ours).fullmatch(ours)
        if found is None:
            return None
        theirs = self.theirs
        for key, value in found.groupdict().items():
            theirs = theirs.replace("{" + key + "}", value)
        several = _SEVERAL.search(theirs)
        if several is None:
            return [("", theirs)]
        found_pairs = [part.partition("=") for part in several.group(1).split(",")]
        return [(k, theirs.replace(several.group(0), name or k)) for k, _, name in found_pairs]

    def load(self, piece: str, value: Value) -> Value:
        """One tensor of theirs in our layout."""
        if piece in self.pieces:
            value = self.pieces[piece].load(value)
        for transform in self.transforms:
            value = transform.load(value)
        return value

    def save(self, piece: str, value: Value) -> Value:
        """One tensor of ours in their layout."""
        for transform in reversed(self.transforms):
            value = transform.save(value)
        return self.pieces[piece].save(value) if piece in self.pieces else value


_SEVERAL = re.compile(r"\{(\w+(?:=\w+)?(?:,\w+(?:=\w+)?)+)\}")


@cache
def _pattern(text: str) -> re.Pattern[str]:
    escaped = re.escape(text).replace(r"\{i\}", r"(?P<i>\d+)")
    return re.compile(escaped.replace(r"\{p\}", r"(?P<p>weight|bias)"))


@dataclass(frozen=True)
class Names:
    """A family's table of rules, and the patterns of tensors that carry nothing of ours."""

    rules: tuple[Rule, ...]
    drop: tuple[str, ...] = ()
    """Regular expressions of their names that are ignored (buffers, masks, a tied head)."""
    base: str = ""
    """A prefix of their names that checkpoints of the bare model, without its head, leave out."""
    bare: bool = False
    """The rules are the bare model's, written without `base`."""
    older: Mapping[str, str] = field(default_factory=dict)
    """Endings of names in older checkpoints -> today's (BERT's ".gamma" is ".weight")."""

    def fitted(self, available: Iterable[str]) -> Names:
        """This table as a checkpoint with these names spells it: with `base` or without."""
        if not self.base or any(name.startswith(self.base) for name in available) != self.bare:
            return self
        return self.under("", self.base) if self.bare else self.under(self.base, "")

    def modern(self, theirs: str) -> str:
        """Today's spelling of a name of theirs."""
        for old, new in self.older.items():
            if theirs.endswith(old):
                return theirs.removesuffix(old) + new
        return theirs

    def find(self, ours: str) -> tuple[Rule, list[tuple[str, str]]] | None:
        """The rule for one of our parameters and their names for it."""
        for rule in self.rules:
            names = rule.match(ours)
            if names is not None:
                return rule, names
        return None

    def dropped(self, theirs: str) -> bool:
        """Whether a tensor of theirs is known to carry nothing."""
        return any(re.fullmatch(pattern, theirs) for pattern in self.drop)

    def under(self, *prefixes: str) -> Names:
        """The same rules with the first prefix replaced by the second on their side."""
        old, new = prefixes
        return replace(
            self,
            rules=tuple(
                replace(r, theirs=new + r.theirs.removeprefix(old))
                if r.theirs.startswith(old)
                else r
                for r in self.rules
            ),
        )

    def within(self, theirs: str, ours: str) -> Names:
        """The same rules for a model inside another: a prefix of its names on either side."""
        outer = re.escape(theirs)
        return replace(
            self,
            rules=tuple(
                replace(r, theirs=theirs + r.theirs, ours=ours + r.ours) for r in self.rules
            ),
            drop=tuple(f"{outer}(?:{pattern})" for pattern in self.drop),
            base=theirs + self.base if self.base else "",
        )

    def replaced(self, rules: Iterable[Rule], drop: Sequence[str] = ()) -> Names:
        """These rules, with those for the same parameters of ours overridden by others."""
        new = tuple(rules)
        mine = {r.ours for r in new}
        kept = tuple(r for r in self.rules if r.ours not in mine)
        return replace(self, rules=new + kept, drop=(*self.drop, *drop))


def rules(table: Mapping[str, str], *transforms: Transform) -> tuple[Rule, ...]:
    """Plain rules from a literal table {theirs: ours}, all with the same transforms."""
    return tuple(Rule(theirs, ours, transforms) for theirs, ours in table.items())
