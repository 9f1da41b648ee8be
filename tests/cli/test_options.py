"""Commands from signatures: what each kind of annotation becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner

from keifu.cli.options import Argument, Fields, Option, command_from, variables
from keifu.core.errors import KeifuError
from keifu.core.fields import field_docs


@dataclass(frozen=True, kw_only=True)
class Size:
    """A dataclass with documented fields."""

    rank: int = field(default=8, metadata={"option": Option("-r", "--rank")})
    """How many ranks."""
    kind: Literal["a", "b"] = "a"
    """Which kind; more on a second
    line."""
    names: tuple[str, ...] = ()
    """Names."""
    fast: bool = False
    """Whether it hurries."""
    limit: float | None = None
    """A bound, or none."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise KeifuError(f"rank {self.rank} is not allowed")


GOT: dict[str, Any] = {}


def sample(
    first: Annotated[str, Argument("FIRST")],
    rest: Annotated[tuple[str, ...], Argument("[REST]...")] = (),
    whole: Annotated[Size, Fields(Size)] = Size(),
    count: Annotated[int | None, Option("-c", "--count", help="A count.", min=1, max=9)] = None,
    seed: Annotated[int, Option(help="A seed.")] = 3,
    tags: Annotated[tuple[str, ...], Option("--tag", help="A tag.")] = (),
    out: Annotated[Path | None, Option("--out", help="Where to.")] = None,
    loud: Annotated[bool, Option("--loud/--soft", help="How loud.")] = True,
    maybe: Annotated[str | None, Option("--maybe", help="Maybe.", optional_value="yes")] = None,
) -> None:
    """Do a thing.

    At length.
    """
    GOT.clear()
    GOT.update(locals())


def partial(given: Annotated[dict[str, Any], Fields(Size, "rank", "names")] = {}) -> None:  # noqa: B006
    """Only what was given."""
    GOT.clear()
    GOT.update(given)


def run(function: Any, *args: str, env: dict[str, str] | None = None) -> click.testing.Result:
    return CliRunner().invoke(command_from(function, "do it"), args, env=env)


def test_defaults() -> None:
    assert run(sample, "a").exit_code == 0
    assert {
        "first": "a", "rest": (), "whole": Size(), "count": None, "seed": 3, "tags": (),
        "out": None, "loud": True, "maybe": None,
    } == GOT  # fmt: skip


def test_everything_given() -> None:
    line = "a b c -r 2 --kind b --names x --names y --fast --limit 0.5 -c 9 --seed 4 --tag t"
    assert run(sample, *line.split(), "--out", "p", "--soft", "--maybe", "no").exit_code == 0
    assert {
        "first": "a", "rest": ("b", "c"),
        "whole": Size(rank=2, kind="b", names=("x", "y"), fast=True, limit=0.5),
        "count": 9, "seed": 4, "tags": ("t",), "out": Path("p"), "loud": False, "maybe": "no",
    } == GOT  # fmt: skip


def test_an_optional_value() -> None:
    assert run(sample, "a", "--maybe").exit_code == 0
    assert GOT["maybe"] == "yes"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "Missing argument 'FIRST'"),
        (["a", "-c", "10"], "not in the range 1<=x<=9"),
        (["a", "--kind", "c"], "'a', 'b'"),
        (["a", "--limit", "x"], "not a valid float"),
        (["a", "--rank", "0"], "rank 0 is not allowed"),
    ],
)
def test_refusals(args: list[str], said: str) -> None:
    result = run(sample, *args)
    assert result.exit_code == 2
    assert said in result.output


def test_partial_fields_hand_over_only_what_was_given() -> None:
    assert run(partial).exit_code == 0
    assert GOT == {}
    assert run(partial, "--rank", "8", "--names", "n").exit_code == 0
    assert GOT == {"rank": 8, "names": ("n",)}


def test_help_is_the_fields_own_text() -> None:
    text = run(sample, "--help").output
    assert "How many ranks" in text
    assert "Which kind; more on a second" in text
    assert "[default: 8]" in text
    assert "At length." in text
    assert field_docs(Size)["kind"] == "Which kind; more on a second\nline."


def test_variables_own_before_shared() -> None:
    assert variables("do it", "seed") == ["KEIFU_DO_IT_SEED", "KEIFU_SEED"]
    assert variables("do it", "count") == ["KEIFU_DO_IT_COUNT"]
    run(sample, "a", env={"KEIFU_SEED": "7"})
    assert GOT["seed"] == 7
    run(sample, "a", env={"KEIFU_SEED": "7", "KEIFU_DO_IT_SEED": "8", "KEIFU_DO_IT_RANK": "5"})
    assert (GOT["seed"], GOT["whole"].rank) == (8, 5)
    run(sample, "a", "--seed", "9", env={"KEIFU_SEED": "7"})
    assert GOT["seed"] == 9
    result = run(sample, "a", env={"KEIFU_SEED": "many"})
    assert result.exit_code == 2
    assert "KEIFU_SEED" in result.output
