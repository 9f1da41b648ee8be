"""Putting what is remembered before a question: as data, within a share of the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keifu.inference.request import Message
from keifu.prompting.quoted import quoted, rule
from keifu.retrieval.memory import Memory, Remembered

SHARE = 0.125
"""The part of a context that memories may take."""
NEAREST = 8
"""Most memories in one prompt."""
LEAST = 0.2
"""The cosine below which a memory has nothing to do with a question."""
TASK = "These are notes about the user from earlier conversations. Use them where they help. {rule}"


def recalled(
    memory: Memory,
    messages: Sequence[Message],
    count: Callable[[Sequence[Message]], int],
    most: int,
) -> tuple[list[Message], list[Remembered]]:
    """The conversation with memories before its last question, and which they are.

    They are the nearest to that question that together cost at most `most` tokens; without any,
    or where the last message is no text of the user's, the conversation is as it was.
    """
    whole = list(messages)
    last = whole[-1] if whole else {}
    question = last.get("content")
    if last.get("role") != "user" or not isinstance(question, str):
        return whole, []
    found = memory.search(question, NEAREST, least=LEAST)
    while found:
        told = [*whole[:-1], {**last, "content": noted(found, question)}]
        if count(told) - count(whole) <= most:
            return told, found
        found.pop()
    return whole, []


def noted(found: Sequence[Remembered], question: str) -> str:
    """A question with memories before it, the oldest first."""
    lines = [f"- {' '.join(one.text.split())}" for one in sorted(found, key=lambda one: one.id)]
    notes = quoted("memories", "\n".join(lines))
    return f"{notes}\n\n{TASK.format(rule=rule('memories'))}\n\n{question}"
