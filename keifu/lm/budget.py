"""The context budget: does a conversation fit, with room to answer, and what gives way if not.

Counts are exact because the model itself counts (`LM.count_tokens`, chat template and all); this
file only decides what to send. Nothing is sent before it is known to fit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.inference.request import Message
from keifu.lm.pieces import pieces

Policy = Literal["error", "drop-oldest", "truncate", "summarise", "parts"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
Count = Callable[[Sequence[Message]], int]

CUT = "\n[… {count} characters left out …]\n"
"""What stands where `truncate` cut a message."""


@dataclass(frozen=True)
class Fitted:
    """A conversation that fits."""

    messages: tuple[Message, ...]
    prompt_tokens: int
    dropped: int = 0
    """Messages that were left out, oldest first (a summary may stand for them)."""
    cut: int = 0
    """Characters that were cut out of the last turn."""
    summary_tokens: int = 0
    """Tokens of the summary that stands for what was left out."""
    note: str = ""
    """Why a summary does not stand for what was left out, if one was asked for."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A context of `limit` tokens, prompt and output together, and what to do at its edge.

    `error` refuses what does not fit. `drop-oldest` leaves out whole turns (a user's message with
    the answers and tool results after it), oldest first, never a leading system message or the
    last turn. `truncate` does that and then cuts the middle out of the longest text of the last
    turn; `parts` makes several requests of it (`parts`). `summarise` is drop-oldest here: a
    `keifu.lm.summary.Summariser` puts a summary in the place of what was dropped. When even that
    does not fit, every policy is an error.
    """

    limit: int
    reserve: int = 1
    """Tokens kept free for the output."""
    policy: Policy = "error"

    def __post_init__(self) -> None:
        """Refuse a budget that nothing can satisfy."""
        if self.limit < 1 or self.reserve < 0:
            raise KeifuError(f"a budget of {self.limit} tokens less {self.reserve} makes no sense")
        if self.policy not in POLICIES:
            raise KeifuError(f"policy={self.policy!r}: give one of {', '.join(POLICIES)}")

    @property
    def room(self) -> int:
        """Most tokens the prompt may have."""
        return self.limit - self.reserve

    def check(self, prompt_tokens: int) -> None:
        """Raise unless a prompt of so many tokens leaves the reserve free."""
        if prompt_tokens > self.room:
            raise ContextLengthError(prompt_tokens, self.limit, self.reserve)

    def fit(self, messages: Sequence[Message], count: Count) -> Fitted:
        """The conversation as the policy allows it to be sent; `count` must be exact."""
        whole = tuple(messages)
        tokens = count(whole)
        if tokens <= self.room or self.policy == "error":
            self.check(tokens)
            return Fitted(whole, tokens)
        head, result = self._drop(whole, count)
        tokens, dropped = count(result), len(whole) - len(result)
        if tokens > self.room and self.policy == "truncate":
            result, cut = self._truncate(result, head, count)
            return Fitted(result, count(result), dropped, cut)
        self.check(tokens)
        return Fitted(result, tokens, dropped)

    def parts(
        self, messages: Sequence[Message], count: Count, *, repeat: bool = True
    ) -> tuple[Fitted, ...]:
        """The conversation as one request if it fits, else as several to be answered one by one.

        After what `drop-oldest` leaves out, the longest text of the last turn is cut into pieces,
        at the ends of paragraphs or sentences. With `repeat`, the text's last paragraph, where a
        question after a long text stands, goes with every piece (if it is short: a quarter at
        most). Raises ContextLengthError where there is no text whose pieces would fit.
        """
        whole = tuple(messages)
        if (tokens := count(whole)) <= self.room:
            return (Fitted(whole, tokens),)
        head, kept = self._drop(whole, count)
        tokens, dropped = count(kept), len(whole) - len(kept)
        if tokens <= self.room:
            return (Fitted(kept, tokens, dropped),)
        place = _longest(kept, head)
        text = kept[place]["content"] if place is not None else ""
        body, gap, question = text.rstrip().rpartition("\n\n")
        if not repeat or not body or len(question) > len(text) // 4:
            body, gap, question = text, "", ""

        def with_piece(piece: str) -> tuple[Message, ...]:
            assert place is not None
            return _replaced(kept, place, piece + gap + question)

        if place is None or count(with_piece("")) > self.room:
            raise ContextLengthError(tokens, self.limit, self.reserve)
        found = [with_piece(p) for p in pieces(body, lambda p: count(with_piece(p)) <= self.room)]
        return tuple(Fitted(part, count(part), dropped) for part in found)

    def _drop(self, whole: tuple[Message, ...], count: Count) -> tuple[int, tuple[Message, ...]]:
        """The leading messages' number, and what is left when as few turns as will do are dropped.

        Fewer turns never count more, so that number is found by bisection: a remote count is a
        round trip. The last turn stays, whether it fits or not.
        """
        head, turns = split_turns(whole)

        def kept(drop: int) -> tuple[Message, ...]:
            return (*head, *(m for turn in turns[drop:] for m in turn))

        most = max(len(turns) - 1, 0)
        return len(head), kept(
            bisect_left(range(most), True, key=lambda n: count(kept(n)) <= self.room)
        )

    def _truncate(
        self, messages: tuple[Message, ...], head: int, count: Count
    ) -> tuple[tuple[Message, ...], int]:
        """Cut the middle out of the longest text after the head, as little as will do."""
        place = _longest(messages, head)
        if place is None:
            raise ContextLengthError(count(messages), self.limit, self.reserve)
        text = messages[place]["content"]

        def with_cut(cut: int) -> tuple[Message, ...]:
            start = (len(text) - cut + 1) // 2
            content = text[:start] + CUT.format(count=cut) + text[start + cut :]
            return _replaced(messages, place, content)

        sizes = range(1, len(text) + 1)
        cut = 1 + bisect_left(sizes, True, key=lambda n: count(with_cut(n)) <= self.room)
        if cut > len(text):
            self.check(count(with_cut(len(text))))
        return with_cut(cut), cut

    def fit_text(self, prompt: str, count: Callable[[str], int]) -> str:
        """A text to be continued; what gives way is its start, since its end is continued."""
        tokens = count(prompt)
        if tokens <= self.room or self.policy == "error":
            self.check(tokens)
            return prompt
        cut = bisect_left(range(len(prompt)), True, key=lambda n: count(prompt[n:]) <= self.room)
        self.check(count(prompt[cut:]))
        return prompt[cut:]


def _longest(messages: Sequence[Message], head: int) -> int | None:
    """The place of the longest text after the first `head` messages; None if there is no text."""
    texts = {
        place: len(message["content"])
        for place, message in enumerate(messages)
        if place >= head and isinstance(message.get("content"), str) and message["content"]
    }
    return max(texts, key=lambda place: texts[place], default=None)


def _replaced(messages: Sequence[Message], place: int, content: str) -> tuple[Message, ...]:
    """The messages with another content at one place."""
    return (*messages[:place], {**messages[place], "content": content}, *messages[place + 1 :])


def split_turns(
    messages: Sequence[Message],
) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The leading system messages, and the turns: each from one user message up to the next."""
    start = 0
    while start < len(messages) and messages[start].get("role") in ("system", "developer"):
        start += 1
    turns: list[list[Message]] = []
    for message in messages[start:]:
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return tuple(messages[:start]), [tuple(turn) for turn in turns]


def upper_bound(
    messages: str | Sequence[Message], extra: Mapping[str, Any] | None = None
) -> int | None:
    """A count that no byte-level tokenizer exceeds, without one; None if there are images or such.

    A token stands for at least one byte; 16 tokens a message and 1024 for tools are more than
    the known chat templates add. A prompt that fits by this bound need not be counted.
    """
    total = 16
    if isinstance(messages, str):
        return total + len(messages.encode(errors="surrogatepass"))
    for message in messages:
        total += 16
        for key, value in message.items():
            if isinstance(value, str):
                total += len(value.encode(errors="surrogatepass"))
            elif key == "content" and isinstance(value, Sequence):
                if any(part.get("type") != "text" for part in value):
                    return None
                total += sum(len(part["text"].encode(errors="surrogatepass")) for part in value)
            elif value is not None:
                total += len(str(value).encode(errors="surrogatepass"))
    if extra:
        total += 1024 + len(str(extra).encode(errors="surrogatepass"))
    return total
