"""Rows for gist tokens: instruction, k gist tokens, input, output (Mu et al. 2023, section 3).

A row's landmarks say where its gist tokens are; which of it the loss sees is said by its labels.
The authors' text for a decoder is "Instruction: ...", the gist tokens, "Input: ...", "Output:";
texts are the caller's, since every family's tokenizer has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keifu.core.errors import KeifuError
from keifu.nn.gist import landmarks_of
from keifu.nn.losses import IGNORE
from keifu.nn.masks import Landmarks


@dataclass(frozen=True, kw_only=True)
class Example:
    """One task with one input of it, as token ids."""

    prompt: tuple[int, ...]
    """What is to be compressed: the instruction."""
    input: tuple[int, ...] = ()
    """What comes after the gist tokens and is given."""
    output: tuple[int, ...]
    """What is to be learnt; with its end token."""

    def __post_init__(self) -> None:
        """Refuse a row that would teach nothing."""
        if not self.prompt or not self.output:
            raise KeifuError("a gist example needs a prompt and an output of one token or more")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as a decoder learns from it."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """The output's ids; IGNORE before them."""
    landmarks: Landmarks


def row(example: Example, token: int, k: int = 1) -> Row:
    """A decoder's row: prompt, k gist tokens, input, output.

    Raises:
        KeifuError: no gist token, or one in the example's own ids.
    """
    given = source(example, token, k)
    ids = (*given.ids, *example.output)
    labels = (*(IGNORE for _ in given.ids), *example.output)
    return Row(ids=ids, labels=labels, landmarks=landmarks_of(ids, token))


def source(example: Example, token: int, k: int = 1) -> Row:
    """What an encoder reads of it: prompt, k gist tokens, input; the output is a row of its own."""
    if k < 1:
        raise KeifuError(f"{k} gist tokens: 1 or more are needed")
    if token in (*example.prompt, *example.input, *example.output):
        raise KeifuError(f"the example has the gist token {token} among its own")
    ids = (*example.prompt, *[token] * k, *example.input)
    return Row(ids=ids, labels=(IGNORE,) * len(ids), landmarks=landmarks_of(ids, token))


def rows(examples: Sequence[Example], token: int, k: int = 1) -> list[Row]:
    """A decoder's rows."""
    return [row(example, token, k) for example in examples]
