"""The policies `summarise` and `parts`: exact at their borders, nothing asked twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.inference.request import Message
from keifu.lm.budget import Budget, Policy
from keifu.lm.summary import CLOSING, OPENING, Summariser
from tests.lm.test_budget import talk, words

MEMO = 10  # words around a summary, counted in OPENING and CLOSING by hand
TALK = talk(20, 20, 20)  # 22 tokens each: a turn of 44, and the last one of 22
FITTED: dict[Policy, tuple[int, int, int]] = {
    # prompt tokens, dropped messages, tokens of the summary when 66 tokens have room for 65
    "drop-oldest": (22, 2, 0),
    "truncate": (22, 2, 0),
    "parts": (22, 2, 0),
    "summarise": (22 + MEMO + 16, 2, 16),  # a quarter of 65 is 16
}


class Writer:
    """Writes so many words and keeps what it was asked."""

    def __init__(self, size: int = 100) -> None:
        self.size, self.asked = size, list[tuple[str, list[Message], int]]()

    def __call__(self, so_far: str, messages: Sequence[Message], most: int) -> str:
        self.asked.append((so_far, list(messages), most))
        return " ".join([f"s{len(self.asked)}"] * self.size)


@pytest.mark.parametrize("limit", [66, 67, 68])  # one short, just enough, one to spare
@pytest.mark.parametrize("policy", FITTED)
def test_each_policy_at_its_border(policy: Policy, limit: int) -> None:
    budget, writer = Budget(limit=limit, policy=policy), Writer()
    if policy == "summarise":
        fitted = Summariser(writer).fit(budget, TALK, words)
    elif policy == "parts":
        (fitted,) = budget.parts(TALK, words)
    else:
        fitted = budget.fit(TALK, words)
    found = (fitted.prompt_tokens, fitted.dropped, fitted.summary_tokens)
    assert found == (FITTED[policy] if limit == 66 else (66, 0, 0))
    assert words(fitted.messages) == fitted.prompt_tokens
    assert len(writer.asked) == (limit == 66 and policy == "summarise")


@pytest.mark.parametrize("limit", [66, 67, 68])
def test_one_message_in_parts(limit: int) -> None:
    budget = Budget(limit=limit, policy="parts")
    found = [f.prompt_tokens for f in budget.parts(talk(64), words)]
    assert found == ([65, 3] if limit == 66 else [66])


def test_a_question_goes_with_every_part() -> None:
    text = "one two three.\n\nfour five six.\n\nseven eight nine.\n\nWhy?"
    head = {"role": "system", "content": "be brief"}
    messages = [head, *talk(5, 5), {"role": "user", "content": text}]
    # A part: 4 for the system message, 2 for its own, 6 words and the question's one: 13.
    found = Budget(limit=14, policy="parts").parts(messages, words)
    assert [f.messages[-1]["content"] for f in found] == [
        "one two three.\n\nfour five six.\n\nWhy?",
        "seven eight nine.\n\nWhy?",
    ]
    assert [(f.prompt_tokens, f.dropped) for f in found] == [(13, 2), (10, 2)]
    assert all(f.messages[0] == head for f in found)
    alone = Budget(limit=14, policy="parts").parts(messages, words, repeat=False)
    assert alone[0].messages[-1]["content"] == "one two three.\n\nfour five six."
    assert alone[-1].messages[-1]["content"] == "seven eight nine.\n\nWhy?"
    with pytest.raises(ContextLengthError):
        Budget(limit=7, policy="parts").parts(messages, words)
    with pytest.raises(ContextLengthError):
        Budget(limit=3, policy="parts").parts([head], words)


def conversation(turns: int) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "s s"}, *talk(*[5] * (2 * turns + 1))]


def test_a_summary_is_used_again_and_extended() -> None:
    """Room 80, a quarter is 20. System 4, a turn 14, the last 7, the words around a summary 10."""
    budget, writer = Budget(limit=81, policy="summarise"), Writer(3)
    summariser = Summariser(writer)
    assert summariser.fit(budget, conversation(4), words).prompt_tokens == 4 + 4 * 14 + 7
    assert writer.asked == []
    # Five turns are 81. With 20 for the summary and 20 to spare, 40 are left: 4 + 10 + 14 + 7.
    fitted = summariser.fit(budget, conversation(5), words)
    assert writer.asked == [("", conversation(5)[1:9], 20)]
    assert (fitted.prompt_tokens, fitted.dropped, fitted.summary_tokens) == (38, 8, 3)
    system, first, *rest = fitted.messages
    assert (system, rest) == (conversation(5)[0], conversation(5)[10:])
    assert first["content"] == f"{OPENING}s1 s1 s1{CLOSING}w8 w8 w8 w8 w8"
    # 38 + 3 x 14 = 80: it serves three turns more.
    for turns in (6, 7, 8):
        fitted = summariser.fit(budget, conversation(turns), words)
        assert (fitted.prompt_tokens, fitted.dropped) == (38 + 14 * (turns - 5), 8)
    assert len(writer.asked) == 1
    fitted = summariser.fit(budget, conversation(9), words)
    assert writer.asked[1:] == [("s1 s1 s1", conversation(9)[9:17], 20)]
    assert (fitted.prompt_tokens, fitted.dropped, fitted.summary_tokens) == (38, 16, 3)
    # Another past needs another summary.
    edited = conversation(9)
    edited[2] = {"role": "assistant", "content": "other words than before were said"}
    summariser.fit(budget, edited, words)
    assert writer.asked[2][0] == ""


@pytest.mark.parametrize(
    ("limit", "size", "why"),
    [(33, 3, "no room for a summary"), (67 - 1, 0, "came out empty")],
)
def test_without_a_summary_the_oldest_go(limit: int, size: int, why: str) -> None:
    budget = Budget(limit=limit, policy="summarise")
    fitted = Summariser(Writer(size)).fit(budget, TALK, words)
    assert (fitted.prompt_tokens, fitted.dropped, fitted.summary_tokens) == (22, 2, 0)
    assert why in fitted.note


def test_a_writer_that_fails_or_does_not_help() -> None:
    def fail(so_far: str, messages: Sequence[Message], most: int) -> str:
        raise KeifuError("the model broke")

    budget = Budget(limit=66, policy="summarise")
    fitted = Summariser(fail).fit(budget, TALK, words)
    assert (fitted.dropped, fitted.note) == (2, "no summary could be written (the model broke)")
    with pytest.raises(ContextLengthError):
        Summariser(Writer()).fit(Budget(limit=20, policy="summarise"), TALK, words)
    with pytest.raises(KeifuError, match="between 0 and 1"):
        Summariser(Writer(), share=1.0)


def test_pictures_and_tools_keep_their_shape() -> None:
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    last = {"role": "user", "content": [picture, {"type": "text", "text": "what is it"}]}

    def count(messages: Sequence[Message]) -> int:
        texts = [
            m["content"] if isinstance(m["content"], str) else m["content"][0].get("text", "")
            for m in messages
        ]
        return words([{"content": text} for text in texts])

    fitted = Summariser(Writer(2)).fit(
        Budget(limit=80, policy="summarise"), [*talk(50, 50), last], count
    )
    (message,) = fitted.messages
    assert message["content"] == [
        {"type": "text", "text": f"{OPENING}s1 s1{CLOSING}"},
        *last["content"],
    ]
