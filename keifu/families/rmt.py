"""RMT: a decoder of any family reads segments one by one and hands memory vectors onward.

Source: Bulatov et al. 2022, arXiv 2207.06881, section 3; Bulatov et al. 2023, arXiv 2304.11062.
config.json holds the base model's configuration and the sizes under the released code's names;
weights are named as that code's checkpoints name them (`memory_cell.*`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from keifu.checkpoints.names import Names, rules
from keifu.core.errors import ConfigError
from keifu.families import families
from keifu.families._family import Family
from keifu.families._fields import Fields
from keifu.families._sides import Inside
from keifu.nn.segments import Segments
from keifu.nn.stack import Stack


@dataclass(frozen=True, kw_only=True)
class RMT(Family):
    """Configuration: a base family's, and the sizes of memory and segments."""

    unlimited: ClassVar[bool] = True

    base: Family
    memory: int = 10
    """Memory vectors, before a segment and after it."""
    segment: int
    """Tokens of a text in a segment."""
    segments: int = 4
    """Most segments of a row while it was trained."""
    bptt: int | None = None
    """Segments that a gradient goes through while it trains; None: all of a row."""

    fields = Fields(
        architecture="RMTForCausalLM",
        model_type="rmt",
        keys={
            "memory": "num_mem_tokens",
            "segment": "segment_size",
            "segments": "max_n_segments",
            "bptt": "k2",
        },
        extra=(Inside(key="base", tasks=("generate",)),),
        ignore=frozenset(("tie_word_embeddings",)),
    )

    def __post_init__(self) -> None:
        if self.bptt == -1:  # the released code's "all"
            object.__setattr__(self, "bptt", None)
        super().__post_init__()
        object.__setattr__(self, "context", self.segment * self.segments)

    def check(self) -> None:
        """A segment between its memories must fit into the base model."""
        kind = self.base.fields.model_type
        if "generate" not in self.base.tasks or not isinstance(self.base.spec(), Stack):
            raise ConfigError(f"{kind} is no decoder of one stack: it cannot be RMT's base")
        sizes = {
            "num_mem_tokens": self.memory,
            "segment_size": self.segment,
            "max_n_segments": self.segments,
            "k2": self.bptt,
        }
        for name, size in sizes.items():
            whole = isinstance(size, int) and not isinstance(size, bool) and size > 0
            if not whole and (name, size) != ("k2", None):
                raise ConfigError(f"{name}={size!r} is not allowed: a whole number above 0")
        places, most = self.segment + 2 * self.memory, self.base.context
        if places > most and not self.base.unlimited:
            raise ConfigError(
                f"segment_size={self.segment} and num_mem_tokens={self.memory} twice take {places} "
                f"positions, more than the {most} of {kind}: make one of them smaller"
            )

    @property
    def vocab(self) -> int:
        """The base model's."""
        return int(vars(self.base)["vocab"])

    def spec(self) -> Stack:
        """The base model's stack in segments."""
        stack = self.base.spec()
        assert isinstance(stack, Stack)
        return Segments.of(stack, memory=self.memory, segment=self.segment, bptt=self.bptt)

    def names(self) -> Names:
        """The base model's inside the memory cell, and the first memory."""
        inside = self.base.names().within("memory_cell.model.", "")
        return inside.replaced(rules({"memory_cell.memory": "memory"}))

    @classmethod
    def tiny(cls) -> Self:
        """GPT-2, segments of five tokens."""
        return cls(base=families["gpt-2"].tiny(), memory=3, segment=5)


family = RMT
