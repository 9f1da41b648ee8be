"""How local chat models write tool calls, and how to read them out of text as it is generated.

A format is a row of one table: what opens a call, what closes it, and how the inside reads. The
markers must reach the reader as text: a detokenizer that drops special tokens has to keep
`markers(format)`.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from keifu.inference.request import ToolCall

MOST_CHARACTERS = 256 * 1024
"""A call longer than this is text."""

Pair = tuple[str, Any]
"""A function's name and its arguments, not yet checked."""


@dataclass(frozen=True)
class ToolFormat:
    """One way to write tool calls."""

    name: str
    hint: re.Pattern[str]
    """What a chat template that teaches this format contains."""
    openers: tuple[str, ...]
    """Texts that begin a call."""
    closer: str | None
    """Text that ends it; None: it runs to the end of the output."""
    read: Callable[[str], list[Pair]]
    """The calls in the text from opener to closer, without them; ValueError if it is none."""
    at_start: bool = False
    """Whether a call can only be the first thing in the output."""
    id_length: int = 24


def _json(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _pairs(value: Any) -> list[Pair]:
    """The calls in a JSON value: an object with name and arguments, or a list of them."""
    found: list[Pair] = []
    for item in value if isinstance(value, list) else [value]:
        match item:
            case {"name": str(name), "arguments": arguments}:
                found.append((name, arguments))
            case {"name": str(name), "parameters": arguments}:
                found.append((name, arguments))
            case {"function": {"name": str(name), "arguments": arguments}}:
                found.append((name, arguments))
            case _:
                raise ValueError("not a call")
    return found


def _object(text: str) -> list[Pair]:
    return _pairs(_json(text))


def _tagged(text: str) -> list[Pair]:
    """`NAME>{arguments}`, what is left of `<function=NAME>{arguments}</function>`."""
    name, mark, arguments = text.partition(">")
    if not mark:
        raise ValueError("no >")
    return [(name.strip(), _json(arguments))]


def _mistral(text: str) -> list[Pair]:
    """A list of calls, or since 2025 `name[ARGS]{...}`, several after one another."""
    if "[ARGS]" not in text:
        return _object(text)
    found: list[Pair] = []
    for piece in text.split("[TOOL_CALLS]"):
        name, mark, arguments = piece.partition("[ARGS]")
        if not mark:
            raise ValueError("no [ARGS]")
        found.append((name.partition("[CALL_ID]")[0].strip(), _json(arguments)))
    return found


def _objects(text: str) -> list[Pair]:
    """JSON objects side by side, with `;`, a comma or nothing between them."""
    decoder, found, at = json.JSONDecoder(), list[Pair](), 0
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except RecursionError:
            raise ValueError("nested too deep") from None
        found += _pairs(value)
        while at < len(text) and text[at] in " \r\n\t;,":
            at += 1
    return found


HERMES = ToolFormat("hermes", re.compile(r"<tool_call>"), ("<tool_call>",), "</tool_call>", _object)
"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen, SmolLM."""
TAGGED = ToolFormat("tagged", re.compile(r"<function="), ("<function=",), "</function>", _tagged)
"""`<function=name>{...}</function>`: Llama 3.1's custom functions."""
MISTRAL = ToolFormat(
    "mistral", re.compile(r"\[TOOL_CALLS\]"), ("[TOOL_CALLS]",), None, _mistral, id_length=9
)
"""`[TOOL_CALLS] [{"name": ..., "arguments": {...}}]`; its templates want ids of 9 characters."""
LLAMA = ToolFormat(
    "llama",
    re.compile(r'<\|python_tag\|>|"parameters": dictionary of argument|Environment: ipython'),
    ("<|python_tag|>", "{"),
    None,
    _objects,
    at_start=True,
)
"""`{"name": ..., "parameters": {...}}` as the whole output: Llama 3.1 and later."""
PLAIN = ToolFormat("plain", re.compile(r"(?!)"), ("```json", "{", "["), None, _objects, True)
"""A bare JSON object; never detected, only read where the request requires a call."""

FORMATS = (HERMES, TAGGED, MISTRAL, LLAMA)


def detect(template: str) -> ToolFormat | None:
    """The format that a chat template teaches; None if it knows no tools."""
    return next((form for form in FORMATS if form.hint.search(template)), None)


def markers(form: ToolFormat) -> tuple[str, ...]:
    """Texts that have to survive detokenization although they may be special tokens."""
    inner = ("[ARGS]", "[CALL_ID]") if form is MISTRAL else ()
    closer = (form.closer,) if form.closer else ()
    return (*(o for o in form.openers if len(o) > 1), *closer, *inner)


class ToolReader:
    """Takes generated text piece by piece and gives back plain text and finished calls.

    Text that may yet become a call is held back. What looks like a call but is none (bad JSON, a
    function nobody offered, arguments that are no object) comes out as the text it was.
    """

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self.form, self.names = form, frozenset(names)
        self._held = ""
        self._opener = ""
        self._searched = 0
        """How much of the held call is known not to hold the closer."""
        self._begun = False
        self.count = 0

    def feed(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """The next piece of output."""
        self._held += text
        out: list[str] = []
        calls: list[ToolCall] = []
        while self._step(out, calls):
            pass
        return self._told(out), tuple(calls)

    def close(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The end of the output: an unclosed call counts if it is whole."""
        out: list[str] = []
        calls: list[ToolCall] = []
        if self._opener:
            self._finish(self._held, out, calls)
        else:
            out.append(self._held)
        self._held = self._opener = ""
        return self._told(out), tuple(calls)

    def _told(self, out: Sequence[str]) -> str:
        text = "".join(out)
        if self.count and not text.strip():
            return ""  # only the white space around calls
        return text

    def _step(self, out: list[str], calls: list[ToolCall]) -> bool:
        """Move one piece out of what is held; False when more text is needed."""
        if self._opener:
            return self._inside(out, calls)
        if self.form.at_start and self._begun:
            out.append(self._held)
            self._held = ""
            return False
        if self.form.at_start and not self._held.strip():
            return False
        found = [(at, o) for o in self.form.openers if (at := self._held.find(o)) >= 0]
        first = min(found, default=None)
        if first and not (self.form.at_start and self._held[: first[0]].strip()):
            at, self._opener = first
            out.append(self._held[:at])
            self._held, self._searched = self._held[at + len(self._opener) :], 0
            return True
        keep = self._tail()
        out.append(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        self._begun = self._begun or bool("".join(out).strip())
        return False

    def _tail(self) -> int:
        """Length of the longest end of what is held that may begin an opener."""
        for size in range(min(len(self._held), max(map(len, self.form.openers)) - 1), 0, -1):
            end = self._held[-size:]
            if any(opener.startswith(end) for opener in self.form.openers):
                return size
        return 0

    def _inside(self, out: list[str], calls: list[ToolCall]) -> bool:
        closer = self.form.closer
        at = self._held.find(closer, self._searched) if closer else -1
        if closer and at >= 0:
            body, self._held = self._held[:at], self._held[at + len(closer) :]
            self._finish(body, out, calls, closer)
            self._opener = ""
            return True
        self._searched = max(0, len(self._held) - len(closer or "") + 1)
        if len(self._held) > MOST_CHARACTERS:
            out.append(self._opener + self._held)
            self._held, self._opener, self._begun = "", "", True
        return False

    def _finish(self, body: str, out: list[str], calls: list[ToolCall], closer: str = "") -> None:
        try:
            calls += self._read(body)
        except ValueError:
            out.append(self._opener + body + closer)
            self._begun = True

    def _read(self, body: str) -> list[ToolCall]:
        inner = ("{" if self._opener == "{" else "[" if self._opener == "[" else "") + body
        if self._opener == "```json":
            inner = inner.rstrip().removesuffix("```")
        found = []
        for name, arguments in self.form.read(inner):
            if isinstance(arguments, str):
                arguments = _json(arguments)
            if name not in self.names or not isinstance(arguments, dict):
                raise ValueError(name)
            text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            found.append(ToolCall(call_id(self.form.id_length), name, text))
        self.count += len(found)
        return found


def call_id(length: int = 24) -> str:
    """A fresh id of a call: letters and digits, `call_` before the long ones."""
    letters = string.ascii_letters + string.digits
    word = "".join(secrets.choice(letters) for _ in range(length))
    return word if length < 16 else f"call_{word}"


def read_all(
    text: str, form: ToolFormat, names: Collection[str]
) -> tuple[str, tuple[ToolCall, ...]]:
    """A whole output at once: its text without the calls, and the calls."""
    reader = ToolReader(form, names)
    first, calls = reader.feed(text)
    rest, more = reader.close()
    return first + rest, calls + more
