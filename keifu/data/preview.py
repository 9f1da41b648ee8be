"""Looking at rows as training will see them: each token's text, its piece, whether it is learnt."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from keifu.core.errors import KeifuError
from keifu.data.example import Example, Examples
from keifu.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One token of a row."""

    id: int
    text: str
    """What it adds to the text; bytes that are no whole character as <E6>, controls as names."""
    piece: int
    """Which document of the row, from 0."""
    learnt: bool
    """Whether next-token training predicts it: not a piece's first, not a prompt's."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a run."""

    number: int
    source: str
    pieces: tuple[int, ...]
    """Tokens of each."""
    tokens: tuple[Seen, ...]
    target: tuple[Seen, ...]
    """What is to be written of it; empty where there is none."""
    label: int | None

    @property
    def learnt(self) -> int:
        """Tokens that are predicted, or of pairs, that are written."""
        return sum(token.learnt for token in self.target or self.tokens)


def preview(examples: Examples, tokenizer: Tokenizer, count: int = 3, first: int = 0) -> list[Row]:
    """The rows that a run takes from the number `first` on."""
    if count < 1 or first < 0:
        raise KeifuError(f"{count} rows from number {first}: at least 1, from 0 on")
    return [_row(number, examples(number), tokenizer) for number in range(first, first + count)]


def _row(number: int, example: Example, tokenizer: Tokenizer) -> Row:
    owners = [piece for piece, size in enumerate(example.lengths) for _ in range(size)]
    keep = [True] * len(owners) if example.keep is None else example.keep.tolist()
    begins = [at == 0 or owners[at - 1] != owners[at] for at in range(len(owners))]
    pair = example.target is not None
    tokens = tuple(
        Seen(id=i, text=shown(i, tokenizer), piece=piece, learnt=kept and not begin and not pair)
        for i, piece, kept, begin in zip(example.ids.tolist(), owners, keep, begins, strict=True)
    )
    target: Sequence[int] = [] if example.target is None else example.target.tolist()
    return Row(
        number=number,
        source=example.source,
        pieces=example.lengths,
        tokens=tokens,
        target=tuple(Seen(id=i, text=shown(i, tokenizer), piece=0, learnt=True) for i in target),
        label=example.label,
    )


def shown(token: int, tokenizer: Tokenizer) -> str:
    """A token so that it can be printed anywhere: no half characters, nothing that commands."""
    if token in tokenizer.special_ids:
        return _plain(tokenizer.token(token))
    try:
        return _plain(tokenizer.token_bytes(token).decode())
    except UnicodeDecodeError:
        return "".join(
            chr(byte) if 0x20 <= byte < 0x7F else f"<{byte:02X}>"
            for byte in tokenizer.token_bytes(token)
        )


def _plain(text: str) -> str:
    return "".join(
        c if c == "\n" or unicodedata.category(c)[0] != "C" else f"<U+{ord(c):04X}>" for c in text
    )
