"""Tasks of symbols: what is asked was told, and the same seed draws the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from keifu.core.errors import KeifuError
from keifu.data.symbolic import TASKS, AssociativeRecall, Needle, SelectiveCopying, Task, task_of

EVERY: list[Task] = [
    AssociativeRecall(keys=5, values=3, pairs=4, lag=2),
    SelectiveCopying(kinds=4, count=3, length=10),
    Needle(kinds=6, length=20, depth=50),
]


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_rows_are_drawn_from_the_seed(task: Task) -> None:
    rows = task.draw(50, seed=3)
    assert (task.draw(50, seed=3).ids == rows.ids).all()
    assert (task.draw(50, seed=4).ids != rows.ids).any()
    assert rows.ids.min() >= 0
    assert rows.ids.max() < len(task.symbols()) == len(set(task.symbols()))
    labels = rows.labels(-100)
    assert (labels[:, list(rows.places)] == rows.answers).all()
    assert (labels != -100).sum() == rows.answers.size


def test_recall_asks_what_was_told() -> None:
    task = AssociativeRecall(keys=5, values=3, pairs=4, lag=2)
    rows = task.draw(100, seed=0)
    assert rows.ids.shape == (100, 18)
    assert rows.places == (11, 13, 15, 17)
    for ids, answers in zip(rows.ids.tolist(), rows.answers.tolist(), strict=True):
        told = dict(zip(ids[0:8:2], ids[1:8:2], strict=True))
        assert len(told) == 4
        assert ids[8:10] == [8, 8]
        assert sorted(ids[10::2]) == sorted(told)
        assert [told[key] for key in ids[10::2]] == answers
        assert all(5 <= value < 8 for value in answers)
    assert len({tuple(row[10::2]) for row in rows.ids.tolist()}) > 20  # asked in any order


def test_copying_asks_symbols_in_their_order() -> None:
    task = SelectiveCopying(kinds=4, count=3, length=10)
    rows = task.draw(200, seed=0)
    assert rows.places == (11, 12, 13)
    for ids, answers in zip(rows.ids.tolist(), rows.answers.tolist(), strict=True):
        assert [i for i in ids[:10] if i != 4] == answers
        assert ids[10:] == [5] * 4
    assert {i for row in rows.ids for i in np.flatnonzero(row[:10] != 4)} == set(range(10))


@pytest.mark.parametrize(("depth", "place"), [(0, 0), (50, 8), (100, 16)])
def test_the_needle_stands_where_it_is_asked(depth: int, place: int) -> None:
    rows = Needle(kinds=6, length=20, depth=depth).draw(30, seed=0)
    for ids, answer in zip(rows.ids.tolist(), rows.answers[:, 0].tolist(), strict=True):
        assert ids.index(6) == place
        assert ids[place + 1] == ids[-1] == answer
        assert ids[-2] == 7


def test_anywhere_means_everywhere() -> None:
    rows = Needle(kinds=6, length=12).draw(300, seed=0)
    assert {row.index(6) for row in rows.ids.tolist()} == set(range(9))


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_a_folder_says_what_its_model_was_trained_on(task: Task, tmp_path: Path) -> None:
    assert TASKS[task.name] is type(task)
    task.save(tmp_path)
    assert task_of(tmp_path) == task


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"task": "recal"}, "no task 'recal'"),
        ({"task": "needle", "deep": 1}, "no field of needle 'deep'; nearest: depth"),
        ({"task": "needle", "length": 2**40}, "length=1099511627776 is not allowed"),
        ({"task": "needle", "depth": 101}, "depth=101 is not allowed: from 0 to 100"),
        ({"task": "needle", "length": "9"}, "length='9' is not allowed"),
        ({"task": "associative-recall", "pairs": 7}, "7 pairs need as many keys, not 6"),
        ({"task": "selective-copying", "length": 2}, "4 symbols do not fit in 2"),
        ([], "names no task"),
    ],
)
def test_a_wrong_file_is_refused(record: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps(record))
    with pytest.raises(KeifuError, match=message):
        task_of(tmp_path)
