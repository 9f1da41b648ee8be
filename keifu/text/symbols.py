"""A vocabulary of words that stand for one id each, for models of symbols."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import models, pre_tokenizers

from keifu.core.errors import KeifuError
from keifu.text.marks import Marks
from keifu.text.tokenizer import Tokenizer


def symbols(names: Sequence[str], *, other: str) -> Tokenizer:
    """A tokenizer whose ids are the names' places; words are told apart by spaces.

    Args:
        other: the name that any other word is read as.
    """
    ids = {name: place for place, name in enumerate(names)}
    if len(ids) != len(names) or other not in ids or any(len(n.split()) != 1 for n in names):
        raise KeifuError(f"names of symbols are words, each once, with {other!r} among them")
    rust = tokenizers.Tokenizer(models.WordLevel(vocab=ids, unk_token=other))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(rust, Marks())
