"""Constraints of tool calls: an output that is calls, or a text in which calls are whole ones."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from keifu.inference.constraint import Constraint
from keifu.lm.tools import ToolFormat

Tools = Sequence[Mapping[str, Any]]
"""In OpenAI's shape."""

_PLAIN_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MOST_CALLS = 8
"""Calls in one answer that must be calls."""


def forced(
    form: ToolFormat,
    tools: Tools,
    special: Mapping[str, int],
    *,
    one: bool = False,
    instead: Mapping[str, Any] | None = None,
) -> Constraint:
    """An output that is calls of these tools and nothing else, the arguments by their schemas.

    Args:
        special: the ids of the parts of a call that are special tokens, by their spelling.
        one: whether there is exactly one call.
        instead: the schema of a JSON value that may come in place of calls.
    """
    before, between, after = form.several or ("", "", "")
    more = f"({_lark(between, special)} call){{0,{_MOST_CALLS - 1}}}"
    more = "" if one or form.several is None else more
    start = f"start: {_lark(before, special)} call {more} {_lark(after, special)}"
    lines = [start if instead is None else f"{start} | instead"]
    lines += _calls(form, tools, special)
    if instead is not None:
        lines.append(f"instead: {_json_rule(instead)}")
    return Constraint("lark", "\n".join(lines))


def guided(
    form: ToolFormat, tools: Tools, special: Mapping[str, int], others: Sequence[int]
) -> Constraint:
    """A free text in which each call that is begun is one of these tools', by its schema.

    Args:
        special: the ids of the parts of a call that are special tokens, by their spelling.
        others: special tokens that may stand in the text.
    """
    between = f" | <[{','.join(map(str, others))}]>" if others else ""
    lines = [f"text: (TEXT{between})*", "TEXT: /(?s:.+)/"]
    opener, cut = form.openers[0], ""
    if form.at_start:
        # What begins as a call does is one; other texts begin otherwise.
        begin = form.write[0].partition("NAME")[0]
        lines.append(f"start: {_lark(opener, special)}? call | PLAIN text | text_of_others")
        lines.append(f"text_of_others: ({between[3:]} text)?" if others else 'text_of_others: ""')
        lines.append(f"PLAIN: /(?s:.+)/ & ~/{re.escape(begin)}(?s:.*)/")
    else:
        group = form.several[0] if form.several else ""
        several, cut = group.removeprefix(opener), "" if group else opener
        if opener in special:
            head = f"text {_lark(opener, special)}"
        else:
            head = "text head"
            lines.append(f"head[lazy]: /(?s:.*)/ {_lark(opener, special)}")
        if group and form.several:
            _, comma, after = (_lark(part, special) for part in form.several)
            calls = f"{_lark(several, special)} call ({comma} call){{0,{_MOST_CALLS - 1}}} {after}"
            lines.append(f"start: text | {head} {calls}")
        else:
            lines.append(f"start: ({head} call)* text")
    return Constraint("lark", "\n".join(lines + _calls(form, tools, special, cut)), free=True)


def _calls(form: ToolFormat, tools: Tools, special: Mapping[str, int], cut: str = "") -> list[str]:
    """The rules of a call of one of the tools, without what it is begun with."""
    lines = ["call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
    for index, tool in enumerate(tools):
        function = tool["function"]
        name = json.dumps(function["name"], ensure_ascii=False)[1:-1]
        begin, end = (part.replace("NAME", name) for part in form.write)
        begin, end = _lark(begin.removeprefix(cut), special), _lark(end, special)
        lines.append(f"call_{index}: {begin} arguments_{index} {end}")
        schema = {"type": "object", **(function.get("parameters") or {})}
        lines.append(f"arguments_{index}: {_json_rule(schema)}")
    return lines


def _lark(text: str, special: Mapping[str, int]) -> str:
    """A text in a grammar: strings, and special tokens by their ids."""
    if not special:
        return json.dumps(text, ensure_ascii=False) if text else ""
    pieces = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
    told = (f"<[{special[p]}]>" if p in special else json.dumps(p) for p in pieces if p)
    return " ".join(told)


def _json_rule(schema: Mapping[str, Any]) -> str:
    checked = json.loads(Constraint.json(schema).text)
    return "%json " + json.dumps({**checked, "x-guidance": _PLAIN_JSON}, ensure_ascii=False)
