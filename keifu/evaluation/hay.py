"""Real text to hide things in, cut so that a prompt has exactly so many of a model's tokens."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path

from keifu.core.errors import FormatError, KeifuError

_MOST = 256 << 20
_NEAR = 16
"""Characters on either side of the best cut in which an exact one is looked for."""


def hay(path: Path | None) -> str:
    """A file's text; without one, the language reference that Python brings with it.

    Raises:
        KeifuError: the file cannot be read or is no UTF-8 text, or Python came without its docs.
    """
    if path is None:
        try:
            topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        except ModuleNotFoundError:
            raise KeifuError(
                "this Python came without its reference texts: give --hay FILE"
            ) from None
        return "\n\n".join(" ".join(topics[name].split()) for name in sorted(topics))
    try:
        if path.stat().st_size > _MOST:
            raise KeifuError(f"{path} has more than {_MOST >> 20} MiB: give a part of it")
        return path.read_bytes().decode("utf-8")
    except OSError as refused:
        raise KeifuError(f"cannot read {path}: {refused.strerror}") from None
    except UnicodeDecodeError as wrong:
        raise FormatError(f"{path} is no UTF-8 text (byte {wrong.start})") from None


def digest(text: str) -> str:
    """Which text it was."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def hidden(text: str, size: int, depth: float, needle: str) -> str:
    """`size` characters of hay with the needle after `depth` per cent, at a sentence's end."""
    if depth >= 100:
        return f"{text[:size]}\n{needle}"
    place = round(size * depth / 100)
    if place:
        place = max(text.rfind(end, 0, place) + len(end) for end in (". ", "\n", " "))
    before, after = text[:place].rstrip(), text[place:size]
    return f"{before}\n{needle}\n{after}" if before else f"{needle}\n{after}"


def fitted(make: Callable[[int], str], count: Callable[[str], int], tokens: int, most: int) -> str:
    """The text among make(0) ... make(most) that counts as exactly `tokens`.

    A text's count grows nearly in proportion to its size, so interpolation comes near in a few
    tries, which matters where a count is a round trip. Where no text has the exact count (one
    character of several tokens), the longest found below it is taken.

    Raises:
        KeifuError: even the empty hay is longer, or all of it is shorter.
    """
    known: dict[int, int] = {}

    def counted(size: int) -> int:
        if size not in known:
            known[size] = count(make(size))
        return known[size]

    least = counted(0)
    if least > tokens:
        raise KeifuError(f"{tokens} tokens do not hold the question and the needle: {least} do")
    low, high = 0, 4 * (tokens - least) + 16
    while counted(min(high, most)) < tokens:
        low, high = min(high, most), 2 * high
        if low == most:
            raise KeifuError(
                f"the hay makes {counted(most)} tokens and {tokens} are asked: give a longer --hay"
            )
    high = min(high, most)
    while high - low > 1 and tokens not in (counted(low), counted(high)):
        share = (tokens - counted(low)) / (counted(high) - counted(low))
        size = min(max(low + round(share * (high - low)), low + 1), high - 1)
        low, high = (size, high) if counted(size) <= tokens else (low, size)
    near = range(max(0, low - _NEAR), min(most, low + _NEAR) + 1)
    tried = (high, *sorted(near, key=lambda size: abs(size - low)))
    exact = next((size for size in tried if counted(size) == tokens), None)
    return make(max(n for n in known if known[n] <= tokens) if exact is None else exact)
