"""Vocabularies and examples of numbers, for objectives that need no text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from keifu.data.example import Example, Listed
from keifu.data.vocabulary import Vocabulary

ROLES = ("pad", "bos", "eos", "cls", "sep", "mask")
NAMED = (*("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "[NLU]", "[S2S]", "[NLG]", "<GIST>"),)


def vocabulary(size: int = 96, **fields: Any) -> Vocabulary:
    """Ids 0 to 5 have roles, 6 ends sentences, 7 to 11 go on inside words; the last are special."""
    roles = {name: i for i, name in enumerate(ROLES)}
    top = size - len(NAMED)
    named = {name: top + i for i, name in enumerate(NAMED)}
    spans = tuple(range(top - 1, top - 31, -1))
    made = Vocabulary(
        size=size,
        roles={**roles, "start": 0},
        named=named,
        special=frozenset((*roles.values(), *named.values(), *spans)),
        sentinels=spans,
        prefix=(roles["cls"],),
        suffix=(roles["sep"],),
        inside=lambda token: 7 <= token <= 11,
        ends=lambda token: token == 6,
        spelt=lambda token: f"w{token}".encode(),
    )
    return replace(made, **fields)


WORDS = range(6, 53)
"""Ids that are text."""


def text(random: np.random.Generator, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Words with a sentence's end now and then."""
    ids = random.integers(7, WORDS.stop, length)
    ids[random.random(length) < 0.15] = 6
    return ids


def examples(count: int = 8, length: int = 20, seed: int = 0, **fields: Any) -> Listed:
    """Examples with everything that any objective asks for."""
    random, found = np.random.default_rng(seed), []
    for n in range(count):
        size = length - n % 5
        found.append(
            Example(
                ids=text(random, size),
                target=text(random, 6),
                label=n % 2,
                spans=((2, 5), (7, 9)),
                **fields,
            )
        )
    return Listed(items=found, seed=seed)
