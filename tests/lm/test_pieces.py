"""Cutting texts: nothing is lost, every piece fits, borders are the best there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keifu.core.errors import KeifuError
from keifu.lm.pieces import pieces, take


@given(st.text(alphabet="ab. \n。!", max_size=200), st.integers(1, 40), st.integers(1, 300))
def test_nothing_is_lost_and_all_fits(text: str, most: int, guess: int) -> None:
    found = pieces(text, lambda piece: len(piece) <= most)
    assert all(0 < len(piece) <= most for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())
    if text.strip():
        piece, rest = take(text, lambda piece: len(piece) <= most, guess)
        assert [piece, *pieces(rest, lambda piece: len(piece) <= most)] == found


def test_borders_in_their_order() -> None:
    text = "One two.\n\nThree four. Five six\nseven eight"
    assert pieces(text, lambda p: len(p) <= 100) == [text]
    # 20 characters hold "One two.\n\nThree four": the paragraph ends in the second half.
    assert pieces(text, lambda p: len(p) <= 19) == [
        "One two.",
        "Three four.",
        "Five six\nseven",
        "eight",
    ]
    # A paragraph that ends early is no border: the piece would be nearly empty.
    assert take("A.\n\nBbb ccc ddd eee", lambda p: len(p) <= 14)[0] == "A.\n\nBbb ccc"
    assert pieces("日本語。文は続く。", lambda p: len(p) <= 6) == ["日本語。", "文は続く。"]
    assert pieces("abcdefgh", lambda p: len(p) <= 3) == ["abc", "def", "gh"]
    assert pieces(" \n ", lambda p: False) == []
    with pytest.raises(KeifuError, match="not even one character fits"):
        pieces("abc", lambda p: False)


def test_a_count_that_is_not_monotone() -> None:
    """A word cut in two can be more tokens than the whole: the piece that is given still fits."""

    def fits(piece: str) -> bool:
        return 2 * piece.count("ab") + 3 * (piece + "-").count("a-") + piece.count("x") <= 4

    found = pieces("ab x ab x ab x", fits)
    assert all(fits(piece) for piece in found)
