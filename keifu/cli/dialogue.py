"""One conversation with one model: asking, and what gives way when the context is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keifu.cli.answer import Answer, joined, run
from keifu.cli.conversation import Conversation
from keifu.core.errors import KeifuError
from keifu.inference.request import Message
from keifu.lm.budget import Budget, Count, Fitted, Policy, upper_bound

if TYPE_CHECKING:
    from keifu.inference.stream import Stream
    from keifu.lm.base import LM
    from keifu.lm.summary import Summariser
    from keifu.retrieval.memory import Memory, Remembered

BASE_TOKENS = 256
"""Most tokens of a base model's completion unless the user says: it has no way to stop."""


class Dialogue:
    """A conversation, the model that answers and how its tokens are chosen."""

    def __init__(self, lm: LM, conversation: Conversation, sampling: Mapping[str, Any]) -> None:
        self.lm, self.conversation, self.sampling = lm, conversation, dict(sampling)
        self.dropped = 0
        """Messages that the last request left out, oldest first."""
        self.summary_tokens, self.note = 0, ""
        """Tokens of the summary that stood for them, or why there is none."""
        self._summary: Summariser | None = None
        self.memory: Memory | None = None
        """What is remembered of the user; what a question asks for goes into its prompt."""
        self.recalled: list[Remembered] = []
        """What of it the last request was given."""

    def ask(
        self, question: str, write: Callable[[str], None], *, policy: Policy, stoppable: bool
    ) -> Answer:
        """Put a question and keep it with its answer (its answers' texts, where it takes parts).

        If it fails, or is broken off before a word came, the conversation stays as it was.
        Raises KeifuError; ContextLengthError where the policy is "error" and it does not fit.
        """
        before = list(self.conversation.messages)
        self.conversation.say("user", question)
        answers: list[Answer] = []
        try:
            for stream in self._streams(policy):
                if answers:
                    write("\n\n")
                answers.append(run(stream, write, stoppable=stoppable))
                if answers[-1].completion.finish == "cancelled":
                    break
            answer = joined(answers)
        except BaseException:
            self.conversation.messages = before
            raise
        if answer.completion.text or answer.completion.finish != "cancelled":
            self.conversation.say("assistant", answer.completion.text)
        else:
            self.conversation.messages = before
        return answer

    def left_out(self) -> str:
        """What the last request left out, in words."""
        if self.summary_tokens:
            stands = f"a summary of {self.summary_tokens} tokens stands for"
            return f"the context is full: {stands} the oldest {self.dropped} messages"
        why = f" ({self.note})" if self.note else ""
        unseen = f"the model no longer sees the oldest {self.dropped} messages"
        return f"the context is full: {unseen}{why}"

    def tokens(self) -> int:
        """Tokens of the whole conversation, as the model would read it."""
        if self.lm.has_template:
            return self.lm.count_tokens(self.conversation.prompt())
        return self.lm.count_tokens(self.text(self.conversation.prompt()))

    def text(self, messages: Sequence[Message]) -> str:
        """The conversation as one running text, for a model that only continues texts.

        One that turns texts into others reads the last message alone.
        """
        if self.lm.text_to_text:
            return str(messages[-1]["content"])
        system = [m["content"] + "\n\n" for m in messages if m["role"] == "system"]
        return "".join([*system, *(m["content"] for m in messages if m["role"] != "system")])

    def _streams(self, policy: Policy) -> Iterator[Stream]:
        """The request, or one for each part, begun when the one before it is read."""
        limit = self.lm.context
        asked = self.sampling.get("max_tokens")
        if asked is None:  # a conversation goes on with room for an answer
            reserve = 1 if policy == "error" else min(512, limit // 4)
        else:
            reserve = max(1, asked)
        budget = Budget(limit=limit, reserve=reserve, policy=policy)
        for fitted in self._fitted(budget):
            self.dropped, self.summary_tokens = fitted.dropped, fitted.summary_tokens
            self.note = fitted.note
            if self.lm.has_template:
                yield self.lm.chat_stream(fitted.messages, **self.sampling)
            elif self.lm.text_to_text:  # it knows where to stop, and its room is its own
                yield self.lm.complete_stream(self.text(fitted.messages), **self.sampling)
            else:
                most = min(BASE_TOKENS, limit - fitted.prompt_tokens) if asked is None else asked
                yield self.lm.complete_stream(
                    self.text(fitted.messages), **{**self.sampling, "max_tokens": most}
                )

    def _fitted(self, budget: Budget) -> tuple[Fitted, ...]:
        """What is sent, one part or several, as the policy has it."""
        messages = self._recalled(self.conversation.prompt())
        if self.lm.has_template:
            count: Count = self.lm.count_tokens
            bound = upper_bound(messages)
            # What may not be shortened is not counted: the model refuses it, unread if need be.
            if budget.policy == "error" or (bound is not None and bound <= budget.room):
                return (Fitted(tuple(messages), 0),)
        else:

            def count(some: Sequence[Message]) -> int:
                return self.lm.count_tokens(self.text(some))

        if budget.policy == "parts":
            return budget.parts(messages, count, repeat=not self.lm.text_to_text)
        if budget.policy == "summarise":
            return (self._summariser().fit(budget, messages, count),)
        return (budget.fit(messages, count),)

    def _recalled(self, messages: list[Message]) -> list[Message]:
        """The messages with what is remembered for the last of them."""
        if self.memory is None:
            return messages
        if not self.lm.has_template:
            raise KeifuError(f"{self.lm.name} takes no notes: --memory is for chat models")
        from keifu.prompting.memory import SHARE, recalled

        most = int(self.lm.context * SHARE)
        messages, self.recalled = recalled(self.memory, messages, self.lm.count_tokens, most)
        return messages

    def _summariser(self) -> Summariser:
        if not self.lm.has_template:
            raise KeifuError(f"{self.lm.name} takes no instructions: it cannot write a summary")
        if self._summary is None:
            from keifu.lm.summary import Summariser
            from keifu.prompting.summary import writer

            self._summary = Summariser(writer(self.lm))
        return self._summary
