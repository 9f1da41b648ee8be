"""Every published form of rows is told by its keys; what is wrong in a row is said."""

from __future__ import annotations

from typing import Any

import pytest

from keifu.data.formats import FORMATS, detect, fault, renamed

SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
SHARE = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "a", "input": "", "output": "b", "history": [["c", "d"]]},
    "sharegpt": {"conversations": SHARE, "system": "s", "tools": "[]"},
    "messages": {"messages": SAID, "tools": []},
    "preference": {"prompt": "p", "chosen": "a", "rejected": "b"},
    "preference-implicit": {"chosen": SAID, "rejected": [*SAID[:1], {**SAID[1], "content": "no"}]},
    "ranking-alpaca": {"instruction": "a", "chosen": "b", "rejected": "c"},
    "ranking-sharegpt": {"conversations": SHARE[:1], "chosen": SHARE[1],
                         "rejected": {"from": "gpt", "value": "no"}},
    "kto": {"prompt": "p", "completion": "c", "label": True},
    "kto-messages": {"messages": SAID, "kto_tag": False},
    "kto-sharegpt": {"conversations": SHARE, "kto_tag": False},
    "stepwise": {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
    "completion": {"prompt": SAID[:1], "completion": SAID[1:]},
    "prompt": {"prompt": SAID[:1], "answer": "42"},
    "text": {"text": "words", "meta": {}},
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_each_is_told_by_its_keys(name: str) -> None:
    form = detect(ROWS[name])
    assert form is not None
    assert form.name == name
    assert fault(ROWS[name]) == ""


def test_all_are_tested() -> None:
    assert {form.name for form in FORMATS} == set(ROWS)
    assert detect({"a": 1}) is None
    assert fault({"a": 1}) == "no known form: it has a"


def answered(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(turns)}


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
WRONG: list[tuple[dict[str, Any], str]] = [
    (answered(SAID[0], {"role": "assistant", "content": ""}), "turn 2: the assistant's turn is em"),
    (answered(SAID[0], {"role": "assistant", "content": " \n"}), "turn 2: the assistant's turn is"),
    (answered(SAID[0], {"role": "assistant"}), "turn 2: the assistant's turn is empty"),
    (answered(SAID[0]), "no turn of the assistant"),
    (answered(), "the conversation is empty"),
    ({"messages": "hi"}, "no list of turns"),
    (answered(SAID[0], {"content": "x"}), "turn 2 is by None: a role or from is missing"),
    (answered({"role": "wizard", "content": "x"}), "turn 1 is by 'wizard': no known role"),
    (answered("hi"), "turn 1 is no object"),  # type: ignore[arg-type]
    (answered({"role": "user", "content": 3}, SAID[1]), "turn 1 holds no text: int"),
    ({"conversations": [SHARE[0], {"from": "gpt", "value": ""}]}, "turn 2: the assistant's turn"),
    ({"instruction": "a", "output": ""}, "output is empty"),
    ({"instruction": None, "output": "b"}, "instruction holds no text: NoneType"),
    ({"instruction": "a", "output": "b", "history": ["c"]}, "history is no list of pairs"),
    ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt is empty"),
    ({"prompt": "p", "chosen": "", "rejected": "b"}, "chosen is empty"),
    ({"prompt": "p", "completion": "c", "label": 1}, "the label 1 is not true or false"),
    ({"prompt": "p", "completions": ["a"], "labels": []}, "1 completions, but 0 labels"),
    ({"text": ""}, "text is empty"),
    ({"text": 3}, "text holds no text: int"),
]


@pytest.mark.parametrize(("row", "said"), WRONG)
def test_what_is_wrong_is_said(row: dict[str, Any], said: str) -> None:
    assert fault(row).startswith(said)


def test_calls_of_tools_are_answers() -> None:
    assert fault(answered(SAID[0], CALL)) == ""
    assert fault({"conversations": [SHARE[0], {"from": "function_call", "value": "{}"}]}) == ""


def test_columns_of_a_dataset_info() -> None:
    row = {"frage": "a", "antwort": "b", "x": 1}
    assert renamed(row, {"prompt": "frage", "response": "antwort"}) == {
        "instruction": "a", "output": "b", "x": 1,
    }  # fmt: skip
    said = {"talk": [{"who": "me", "what": "hi"}, {"who": "it", "what": "yo"}]}
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"}
    assert renamed(said, {"messages": "talk"}, tags) == {"conversations": SHARE}
    assert fault(renamed(said, {"messages": "talk"}, {**tags, "user_tag": "you"})) == (
        "turn 1 is by 'me': no known role"
    )
