"""What training has to know of a tokenizer: ids by their role, what is text, where words begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from keifu.core.errors import KeifuError
from keifu.data.span_corruption import MOST_SENTINELS
from keifu.text.marks import Pairing
from keifu.text.tokenizer import Tokenizer

STARTS = ("bos", "pad", "eos")
"""Where a decoder starts, if nobody says otherwise: the first of these that there is."""
_STOPS = (".", "!", "?", "。", "！", "？")


def _never(token: int) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ids and what they are for. `of` takes a tokenizer's; tests may say what they like."""

    size: int
    roles: Mapping[str, int] = field(default_factory=dict)
    """bos, eos, sep, pad, cls, mask, and `start`, which a pair's decoder begins with."""
    named: Mapping[str, int] = field(default_factory=dict)
    """Special tokens as they are spelt."""
    special: frozenset[int] = frozenset()
    sentinels: tuple[int, ...] = ()
    """What stands for the first hidden span, the second ..."""
    prefix: tuple[int, ...] = ()
    """What this checkpoint expects before a text."""
    suffix: tuple[int, ...] = ()
    pair: Pairing | None = None
    """How two texts stand together."""
    inside: Callable[[int], bool] = _never
    """Whether a token goes on inside a word."""
    ends: Callable[[int], bool] = _never
    """Whether a sentence ends with it."""
    spelt: Callable[[int], bytes] | None = None
    """The bytes of a token."""
    context: int | None = None
    """Most tokens of a row, marks and all."""

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, *, start: str | None = None, context: int | None = None
    ) -> Vocabulary:
        """A tokenizer's.

        Args:
            start: the role (bos, pad, eos) of the token that a pair's decoder begins with.
        """
        marks = tokenizer.marks
        roles = dict(marks.named)
        given = [start] if start is not None else STARTS
        found = [roles[role] for role in given if role in roles]
        if found:
            roles["start"] = found[0]
        named = {tokenizer.token(i): i for i in tokenizer.control_ids}
        spans = [named.get(f"<extra_id_{n}>") for n in range(min(len(named), MOST_SENTINELS))]
        known = spans.index(None) if None in spans else len(spans)
        word = lru_cache(1 << 18)(lambda token: tokenizer.token(token))
        return cls(
            size=tokenizer.vocab_size,
            roles=roles,
            named=named,
            special=tokenizer.special_ids,
            sentinels=tuple(i for i in spans[:known] if i is not None),
            prefix=marks.prefix,
            suffix=marks.suffix,
            pair=marks.pair,
            inside=_inside(tokenizer, word),
            ends=lambda token: word(token).endswith(_STOPS),
            spelt=tokenizer.token_bytes,
            context=context,
        )

    def id(self, role: str) -> int:
        """The id of a role.

        Raises:
            KeifuError: the tokenizer has none.
        """
        if role not in self.roles:
            known = ", ".join(self.roles) or "none"
            raise KeifuError(
                f"the tokenizer has no {role} token (it has: {known}): add one and name its role"
            )
        return self.roles[role]

    def first(self, *names: str) -> int:
        """The id of the first of these special tokens that there is.

        Raises:
            KeifuError: there is none.
        """
        found = next((self.named[name] for name in names if name in self.named), None)
        if found is None:
            raise KeifuError(
                f"the tokenizer has no special token {' or '.join(names)}: extend it with one"
            )
        return found

    def bare(self, ids: Sequence[int]) -> list[int]:
        """A document without the eos at its end."""
        found = list(ids)
        return found[:-1] if found and found[-1] == self.roles.get("eos") else found

    def marked(self, ids: Sequence[int]) -> list[int]:
        """A text with its marks, cut to the context."""
        room = None
        if self.context is not None:
            room = max(1, self.context - len(self.prefix) - len(self.suffix))
        return [*self.prefix, *list(ids)[:room], *self.suffix]

    def layout(self) -> Pairing:
        """How two texts stand together: as the tokenizer says, or as BERT has them."""
        if self.pair is not None:
            return self.pair
        begin, end = self.id("cls"), self.id("sep")
        return Pairing(before=((begin, 0),), between=((end, 0),), after=((end, 1),))


def _inside(tokenizer: Tokenizer, word: Callable[[int], str]) -> Callable[[int], bool]:
    """By how this vocabulary marks words: "##" inside them, or a space's sign before them."""
    size = tokenizer.vocab_size
    sample = [word(i) for i in range(0, size, max(1, size // 4000))]
    if any(token.startswith("##") for token in sample):
        return lambda token: word(token).startswith("##")
    signs = ("▁", "Ġ", " ")
    if any(token.startswith(signs) for token in sample):
        return lambda token: not word(token).startswith(signs)
    return _never
