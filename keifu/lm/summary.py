"""The context budget's policy `summarise`: a summary stands for the turns that no longer fit.

Who writes the summary is the caller's affair (`Write`): this floor knows no program.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from keifu.core.errors import KeifuError
from keifu.inference.request import Message
from keifu.lm.budget import Budget, Count, Fitted, split_turns
from keifu.lm.pieces import take

Write = Callable[[str, Sequence[Message], int], str]
"""Given the summary so far, the messages it lacks and the most tokens: the new summary."""

OPENING = "[Summary of the conversation so far:]\n"
CLOSING = "\n[End of the summary.]\n\n"
"""What a summary stands between. It is put before the first question that is left, in the user's
message: what was said by a user must not gain the authority of a system message, and templates
that want turns to alternate, or know no system message, take it."""


@dataclass(frozen=True)
class Summary:
    """What was said in the first turns of a conversation."""

    text: str = ""
    turns: int = 0
    """How many turns it stands for."""
    mark: str = ""
    """A hash of those turns: an edited conversation needs another summary."""


class Summariser:
    """Keeps the summary of one conversation: used again while it serves, then extended.

    Args:
        write: who writes it.
        share: the part of the room that a summary may take, between 0 and 1.
    """

    def __init__(self, write: Write, share: float = 0.25) -> None:
        if not 0 < share < 1:
            raise KeifuError(f"share={share}: the summary's part of the room is between 0 and 1")
        self.write, self.share, self.summary = write, share, Summary()

    def fit(self, budget: Budget, messages: Sequence[Message], count: Count) -> Fitted:
        """The conversation, its oldest turns summarised as far as it does not fit.

        A summary is never longer than its share of the room. Where there is no room for one, or
        none is written, the oldest turns are dropped and the note says why. Raises
        ContextLengthError if what must stay does not fit.
        """
        whole = tuple(messages)
        if (tokens := count(whole)) <= budget.room:
            return Fitted(whole, tokens)
        head, turns = split_turns(whole)
        done = self.summary.turns if self._speaks_of(turns) else 0
        if done:
            fitted = self._fitted(head, turns, done, self.summary.text, count)
            if fitted.prompt_tokens <= budget.room:
                return fitted
        try:
            return self._extend(budget, head, turns, done, count)
        except _NoSummary as reason:
            dropped = replace(budget, policy="drop-oldest").fit(whole, count)
            return replace(dropped, note=str(reason))

    def _extend(
        self,
        budget: Budget,
        head: tuple[Message, ...],
        turns: list[tuple[Message, ...]],
        done: int,
        count: Count,
    ) -> Fitted:
        """Take more turns into the summary; leave as much again free, or every turn costs one."""
        most = int(budget.room * self.share)

        def bare(drop: int) -> int:
            return count(_sent(head, turns[drop:], ""))

        choices = range(done + 1, len(turns))
        for spare in (2 * most, most):
            place = bisect_left(choices, True, key=lambda n: bare(n) + spare <= budget.room)
            if place < len(choices):
                break
        else:
            raise _NoSummary("the last turn leaves no room for a summary")
        drop = choices[place]
        new = [message for turn in turns[done:drop] for message in turn]
        try:
            text = self.write(self.summary.text if done else "", new, most).strip()
        except KeifuError as wrong:
            raise _NoSummary(f"no summary could be written ({wrong})") from None
        empty = bare(drop)
        if not text or most < 1:
            raise _NoSummary("the summary came out empty")
        text, _ = take(text, lambda t: count(_sent(head, turns[drop:], t)) - empty <= most)
        self.summary = Summary(text, drop, _mark(turns[:drop]))
        return self._fitted(head, turns, drop, text, count)

    def _fitted(
        self,
        head: tuple[Message, ...],
        turns: list[tuple[Message, ...]],
        drop: int,
        text: str,
        count: Count,
    ) -> Fitted:
        sent = _sent(head, turns[drop:], text)
        tokens = count(sent)
        empty = count(_sent(head, turns[drop:], ""))
        dropped = sum(len(turn) for turn in turns[:drop])
        return Fitted(sent, tokens, dropped, summary_tokens=tokens - empty)

    def _speaks_of(self, turns: list[tuple[Message, ...]]) -> bool:
        """Whether the summary is of this conversation's beginning, and leaves its last turn."""
        known = self.summary
        return 0 < known.turns < len(turns) and known.mark == _mark(turns[: known.turns])


class _NoSummary(Exception):
    """Why there is none."""


def _sent(
    head: Sequence[Message], turns: Sequence[tuple[Message, ...]], summary: str
) -> tuple[Message, ...]:
    """The leading messages and these turns, the summary before the first one's text."""
    memo = OPENING + summary + CLOSING
    first, *rest = [message for turn in turns for message in turn]
    content = first.get("content")
    if first.get("role") != "user":
        return (*head, {"role": "user", "content": memo.strip()}, first, *rest)
    if isinstance(content, str) or content is None:
        return (*head, {**first, "content": memo + (content or "")}, *rest)
    parts = [{"type": "text", "text": memo}, *content]
    return (*head, {**first, "content": parts}, *rest)


def _mark(turns: Sequence[tuple[Message, ...]]) -> str:
    whole = json.dumps([[dict(m) for m in turn] for turn in turns], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode()).hexdigest()
