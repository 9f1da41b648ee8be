"""keifu diff: what differs between two values, expected by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keifu.cli.diff import Row, differences, written
from keifu.cli.main import main


@dataclass(frozen=True, kw_only=True)
class Norm:
    width: int
    eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class Scale:
    width: int


@dataclass(frozen=True, kw_only=True)
class Mixer:
    heads: int = 4
    bias: bool = False
    norm: Norm | Scale | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    blocks: tuple[Any, ...]
    extra: tuple[tuple[str, Any], ...] = ()


PLAIN = Whole(blocks=(Mixer(norm=Norm(width=8)),) * 4)


def rows(a: object, b: object) -> list[tuple[str, str | None, str | None]]:
    return [(r.path, r.a, r.b) for r in differences(a, b)]


def test_equal_values_have_no_rows() -> None:
    assert rows(PLAIN, replace(PLAIN)) == []


def test_the_same_change_in_a_run_of_blocks_is_one_row() -> None:
    other = Whole(blocks=(Mixer(norm=Norm(width=8), bias=True),) * 4)
    assert rows(PLAIN, other) == [("blocks[0..3].bias", "False", "True")]


def test_alternating_blocks_show_where() -> None:
    other = Whole(blocks=(PLAIN.blocks[0], Mixer(heads=2, norm=Norm(width=8))) * 2)
    assert rows(PLAIN, other) == [("blocks[1,3].heads", "4", "2")]


def test_changes_of_different_blocks_are_told_together() -> None:
    mixed = Whole(blocks=(Mixer(heads=1), Mixer(heads=1), Mixer(heads=2), Mixer(heads=1)))
    other = Whole(blocks=tuple(replace(block, bias=True) for block in mixed.blocks))
    assert rows(mixed, other) == [("blocks[0..3].bias", "False", "True")]
    assert rows([[1], [1]], [[2], [2]]) == [("[0..1][0]", "1", "2")]


def test_another_part_is_one_row_with_both_written_out() -> None:
    other = Whole(blocks=(Mixer(norm=Scale(width=8)),) * 4)
    expected = ("blocks[0..3].norm", "Norm(width=8)", "Scale(width=8)")
    assert rows(PLAIN, other) == [expected]


def test_more_blocks_and_more_parts() -> None:
    other = Whole(blocks=PLAIN.blocks[:2], extra=(("bias", Norm(width=2, eps=1e-6)),))
    block = "Mixer(norm=Norm(width=8))"
    assert rows(PLAIN, other) == [
        ("blocks[2..3]", block, None),
        ("extra[0]", None, "[bias, Norm(width=2, eps=1e-06)]"),
    ]


def test_kinds_are_told_apart() -> None:
    assert rows({"a": 1}, {"a": 1.0, "b": 2}) == [("['a']", "1", "1"), ("['b']", None, "2")]
    assert list(differences(True, 1)) == [Row("", "True", "1")]


def test_written_counts_repeats() -> None:
    assert written((1, 1, 2)) == "[2 x 1, 2]"


VALUES = st.recursive(
    st.integers(0, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("k", max_size=2), inner),
    max_leaves=12,
)


@given(VALUES, VALUES)
def test_rows_exist_exactly_when_values_differ(a: object, b: object) -> None:
    assert bool(list(differences(a, b))) == (a != b)
    swapped = [(path, right, left) for path, left, right in rows(b, a)]
    assert sorted(map(str, rows(a, b))) == sorted(map(str, swapped))


def test_two_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "llama", "llama"]) == 0
    assert capsys.readouterr().out == "llama and llama are the same parts in the same places\n"
    assert main(["diff", "--json", "llama", "llama"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == []


def test_a_misspelt_family_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "llama", "lama"]) == 1
    out = capsys.readouterr()
    assert "nearest: llama" in out.err
    assert out.out == ""


def test_a_value_that_says_how_it_is_written_is_written_so() -> None:
    from keifu.nn.masks import Causal, Window

    assert written(Causal() & Window(width=4)) == "Causal() & Window(width=4, keep=0)"


@dataclass(frozen=True, kw_only=True)
class More(Whole):
    memory: int = 3


def test_a_whole_that_is_more_differs_in_what_it_adds() -> None:
    found = list(differences(Whole(blocks=(Mixer(),)), More(blocks=(Mixer(heads=2),))))
    assert found == [
        Row("", "Whole", "More"),
        Row("blocks[0].heads", "4", "2"),
        Row("memory", None, "3"),
    ]
