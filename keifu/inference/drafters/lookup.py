"""Prompt lookup: what followed the last few tokens when they came before (Saxena 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from keifu.core.errors import KeifuError
from keifu.inference.sequence import Sequence as Output
from keifu.inference.speculation import Draft, Drafter, Load

SIZES = (4, 3)
"""How many last tokens must have come before: the longest row that has is followed."""


class _Index:
    """Where each row of tokens last came, before the end of the text."""

    def __init__(self) -> None:
        self.read = 0
        self.ends: dict[tuple[int, ...], int] = {}

    def find(self, tokens: Sequence[int]) -> int | None:
        """The place after the last earlier copy of the last tokens."""
        for end in range(max(self.read, 1), len(tokens)):
            for size in SIZES:
                if size <= end:
                    self.ends[tuple(tokens[end - size : end])] = end
        self.read = max(self.read, len(tokens))
        for size in SIZES:
            if size <= len(tokens):
                found = self.ends.get(tuple(tokens[-size:]))
                if found is not None:
                    return found
        return None


class Lookup(Drafter):
    """Guesses that a text goes on as it went on before; costs next to nothing."""

    def __init__(self) -> None:
        self._indices: WeakKeyDictionary[Output, _Index] = WeakKeyDictionary()

    @classmethod
    def of(cls, argument: str, load: Load) -> Draft:
        """It takes no argument."""
        if argument:
            raise KeifuError(f"lookup:{argument} is not allowed: lookup takes no argument")
        return lambda target: cls()

    def propose(self, outputs: Sequence[Output], counts: Sequence[int]) -> None:
        """What followed; past the text's end, what it would be if it went round."""
        for output, count in zip(outputs, counts, strict=True):
            tokens = output.tokens
            found = self._indices.setdefault(output, _Index()).find(tokens)
            if found is not None:
                rest = tokens[found : found + count]
                output.guessed += [rest[i % len(rest)] for i in range(count)]


drafter = Lookup
