"""Cutting a text into pieces that fit, each at the best border there is."""

from __future__ import annotations

import re
from collections.abc import Callable

from keifu.core.errors import KeifuError

BORDERS = (
    re.compile(r"\n[ \t]*\n\s*"),  # paragraphs
    re.compile(r"\n+"),
    re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。．！？]+[」』）]*"),  # sentences
    re.compile(r"\s+"),
)
"""Where a text may be cut, the best kind first; the cut is at the match's end."""


def pieces(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The text in pieces that each fit; only white space at their borders is lost.

    Each holds as much as fits and then ends at a paragraph's end if there is one in its second
    half, else at a line's, a sentence's, a word's. `fits` is asked about pieces without the white
    space around them and must be exact. Raises KeifuError if not even one character fits.
    """
    found, guess = [], 1024
    while text.strip():
        piece, rest = take(text, fits, guess)
        found.append(piece)
        text, guess = rest, len(text) - len(rest)
    return found


def take(text: str, fits: Callable[[str], bool], guess: int = 1024) -> tuple[str, str]:
    """The first such piece, and the rest; `guess` is the number of characters to try first."""
    text = text.lstrip()
    length = _longest(text, fits, guess)
    if length == len(text):
        return text.rstrip(), ""
    for end in _ends(text, length):
        # Fewer characters are nearly always, but not quite always, fewer tokens.
        if fits(piece := text[:end].rstrip()):
            return piece, text[end:]
    raise KeifuError("the room is too small: not even one character fits")


def _longest(text: str, fits: Callable[[str], bool], guess: int) -> int:
    """Characters of the longest beginning that fits: galloping, then halving."""
    low, high = 0, max(1, min(guess, len(text)))
    while fits(text[:high].rstrip()):
        if high == len(text):
            return high
        low, high = high, min(2 * high, len(text))
    while high - low > 1:
        middle = (low + high) // 2
        if fits(text[:middle].rstrip()):
            low = middle
        else:
            high = middle
    return low


def _ends(text: str, length: int) -> list[int]:
    """Where a piece of at most `length` characters may end, the best first."""
    ends = [
        max((m.end() for m in border.finditer(text, length // 2, length)), default=0)
        for border in BORDERS
    ]
    return [end for end in ends if end] + list(range(length, max(length - 64, 0), -1))
