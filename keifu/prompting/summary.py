"""Writing the summary of a conversation with a model, for the context budget's `summarise`."""

from __future__ import annotations

from collections.abc import Sequence

from keifu.core.errors import KeifuError
from keifu.inference.request import Message
from keifu.lm.base import LM
from keifu.lm.pieces import take
from keifu.lm.summary import Write
from keifu.prompting.quoted import quoted, rule

TASK = (
    "Write down what matters in this conversation for going on with it: names, numbers, facts, "
    "wishes, what was decided and what is open. Short sentences, at most {words} words, nothing "
    "else. {rule}"
)
EXTEND = "The summary so far must be kept and extended by what is new."


def writer(lm: LM) -> Write:
    """Summaries by this model: temperature 0, at most as many tokens as allowed.

    What does not fit the model's context is read piece by piece, each summary extended by the next.
    """

    def write(so_far: str, messages: Sequence[Message], most: int) -> str:
        rest = "\n\n".join(f"{m['role']}: {_text(m)}" for m in messages)
        while rest.strip():
            known = so_far

            def fits(piece: str, known: str = known) -> bool:
                return lm.count_tokens(_prompt(known, piece, most)) + most <= lm.context

            piece, rest = take(rest, fits)
            done = lm.chat(_prompt(known, piece, most), max_tokens=most, temperature=0)
            so_far = done.text.strip()
            if not so_far:
                raise KeifuError(f"{lm.name} wrote nothing")
        return so_far

    return write


def _prompt(so_far: str, new: str, most: int) -> list[Message]:
    task = TASK.format(words=max(10, most * 2 // 3), rule=rule("summary", "conversation"))
    parts = [quoted("summary", so_far)] if so_far else []
    parts += [quoted("conversation", new), task]
    if so_far:
        parts.append(EXTEND)
    return [{"role": "user", "content": "\n\n".join(parts)}]


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    return " ".join(p["text"] if p.get("type") == "text" else f"({p['type']})" for p in content)
