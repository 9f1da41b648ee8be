"""What a row is for, by its keys: text, instructions, conversations, preferences, steps.

The published forms: Alpaca, ShareGPT (LLaMA-Factory's form), OpenAI's messages, TRL's preference,
KTO, prompt and stepwise rows, LLaMA-Factory's ranking rows, plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Fields = Mapping[str, Any]
_USER = {"human", "user", "observation", "tool", "function_response"}
_MODEL = {"gpt", "assistant", "model", "chatgpt", "bot"}
_CALL = {"function_call"}
_ROLES = _USER | _MODEL | _CALL | {"system", "developer", "function"}
_STANDARD = {
    "prompt": "instruction", "query": "input", "response": "output", "messages": "conversations",
}  # fmt: skip
"""What the roles of a dataset_info.json are called in rows that need none."""
_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
"""The tags of a dataset_info.json, and what they are where it does not say."""


@dataclass(frozen=True)
class Format:
    """One form of rows."""

    name: str
    says: str
    """What it is, in a few words."""
    keys: tuple[str, ...]
    """Columns that such a row has."""
    fault: Callable[[Fields], str]
    """What is wrong with a row of it; "" for nothing."""


def detect(fields: Fields) -> Format | None:
    """The form that a row's keys are of; the first of `FORMATS` that fits."""
    return next((form for form in FORMATS if all(key in fields for key in form.keys)), None)


def fault(fields: Fields) -> str:
    """What is wrong with a row as its form has it; "" for nothing."""
    form = detect(fields)
    if form is None:
        return f"no known form: it has {', '.join(sorted(map(str, fields)))[:200] or 'no columns'}"
    return form.fault(fields)


def renamed(fields: Fields, columns: Mapping[str, str], tags: Mapping[str, str] = {}) -> Fields:
    """A row with a dataset_info.json's columns, and the words of its turns, under usual names.

    columns: role -> column, {"prompt": "question"}. tags: {"role_tag": "speaker", ...}.
    """
    usual = {column: _STANDARD.get(role, role) for role, column in columns.items()}
    row = {usual.get(name, name): value for name, value in fields.items()}
    turns = row.get("conversations")
    if not tags or not isinstance(turns, list):
        return row
    told = {**_TAGS, **tags}
    roles = {
        told[tag]: role for tag, role in _TAGS.items() if tag not in ("role_tag", "content_tag")
    }
    row["conversations"] = [
        {"from": roles.get(str(who := turn.get(told["role_tag"])), who),
         "value": turn.get(told["content_tag"])}
        if isinstance(turn, dict) else turn
        for turn in turns
    ]  # fmt: skip
    return row


def _text(fields: Fields, *names: str) -> str:
    """The fault of columns that have to hold some text."""
    for name in names:
        value = fields[name]
        if not isinstance(value, str):
            return f"{name} holds no text: {type(value).__name__}"
        if not value.strip():
            return f"{name} is empty"
    return ""


def _plain(fields: Fields) -> str:
    return _text(fields, "text")


def _alpaca(fields: Fields) -> str:
    history = fields.get("history") or []
    pairs = isinstance(history, Sequence) and all(
        isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2
        for turn in history
    )
    return _text(fields, "instruction", "output") or (
        "" if pairs else "history is no list of pairs"
    )


def _turns(turns: Any, *, answered: bool = True) -> str:
    """The fault of a conversation; it must hold an answer if `answered`."""
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        return "the conversation is empty" if turns in ([], ()) else "no list of turns"
    answers = 0
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            return f"turn {number} is no object"
        who, what = (turn.get(a, turn.get(b)) for a, b in (("role", "from"), ("content", "value")))
        if who not in _ROLES:
            return f"turn {number} is by {who!r}: " + (
                "a role or from is missing" if who is None else "no known role"
            )
        calls = turn.get("tool_calls")
        if who in _MODEL and not calls and (not what or (isinstance(what, str) and what.isspace())):
            return f"turn {number}: the assistant's turn is empty"
        if not isinstance(what, str | Sequence) and not (what is None and calls):
            return f"turn {number} holds no text: {type(what).__name__}"
        answers += who in _MODEL | _CALL
    return "no turn of the assistant" if answered and not answers else ""


def _conversation(name: str) -> Callable[[Fields], str]:
    return lambda fields: _turns(fields[name])


def _answer(value: Any, name: str) -> str:
    """The fault of a chosen or rejected answer: text, a turn, or a list of turns."""
    if isinstance(value, str):
        return "" if value.strip() else f"{name} is empty"
    wrong = _turns([value] if isinstance(value, Mapping) else value)
    return f"{name}: {wrong}" if wrong else ""


def _preference(fields: Fields) -> str:
    wrong = _answer(fields["chosen"], "chosen") or _answer(fields["rejected"], "rejected")
    if not wrong and fields["chosen"] == fields["rejected"]:
        return "chosen and rejected are the same"
    return wrong


def _asked(value: Any) -> str:
    if isinstance(value, str):
        return "" if value.strip() else "prompt is empty"
    return _turns(value, answered=False)


def _prompted(fields: Fields) -> str:
    return _asked(fields["prompt"])


def _prompted_preference(fields: Fields) -> str:
    return _asked(fields["prompt"]) or _preference(fields)


def _completed(fields: Fields) -> str:
    return _asked(fields["prompt"]) or _answer(fields["completion"], "completion")


def _labelled(fields: Fields) -> str:
    label = fields.get("label", fields.get("kto_tag"))
    wrong = "" if isinstance(label, bool) else f"the label {label!r} is not true or false"
    if "completion" in fields:
        return wrong or _completed(fields)
    return wrong or _turns(fields.get("messages", fields.get("conversations")))


def _stepwise(fields: Fields) -> str:
    steps, labels = fields["completions"], fields["labels"]
    if not isinstance(steps, Sequence) or not isinstance(labels, Sequence) or not steps:
        return "completions and labels are lists that are not empty"
    if len(steps) != len(labels):
        return f"{len(steps)} completions, but {len(labels)} labels"
    return _prompted(fields)


FORMATS: Sequence[Format] = (
    Format("stepwise", "a prompt, steps of its solution and whether each is right (TRL)",
           ("prompt", "completions", "labels"), _stepwise),
    Format("kto", "a prompt, a completion and whether it is wanted (TRL)",
           ("prompt", "completion", "label"), _labelled),
    Format("kto-messages", "a conversation and whether its answer is wanted (LLaMA-Factory)",
           ("messages", "kto_tag"), _labelled),
    Format("kto-sharegpt", "a conversation and whether its answer is wanted (LLaMA-Factory)",
           ("conversations", "kto_tag"), _labelled),
    Format("preference", "a prompt, a better and a worse answer (TRL)",
           ("prompt", "chosen", "rejected"), _prompted_preference),
    Format("ranking-alpaca", "an instruction, a better and a worse answer (LLaMA-Factory)",
           ("instruction", "chosen", "rejected"), _preference),
    Format("ranking-sharegpt", "a conversation, a better and a worse answer (LLaMA-Factory)",
           ("conversations", "chosen", "rejected"), _preference),
    Format("preference-implicit", "two whole conversations, the better first (reward models, TRL)",
           ("chosen", "rejected"), _preference),
    Format("messages", "a conversation (OpenAI)", ("messages",), _conversation("messages")),
    Format("sharegpt", "a conversation (ShareGPT)", ("conversations",),
           _conversation("conversations")),
    Format("alpaca", "an instruction and its answer (Alpaca)", ("instruction", "output"), _alpaca),
    Format("completion", "a prompt and its completion (TRL)", ("prompt", "completion"), _completed),
    Format("text", "text to learn as it is", ("text",), _plain),
    Format("prompt", "a prompt to be answered in training (PPO, GRPO)", ("prompt",), _prompted),
)  # fmt: skip
"""More telling ones first."""
