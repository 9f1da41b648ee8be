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
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
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
    write: tuple[str, str]
    """What stands before and after the arguments of a call to NAME."""
    several: tuple[str, str, str] | None = None
    """What stands before, between and after several calls; None: there is one at a time."""
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


HERMES = ToolFormat(
    "hermes",
    re.compile(r"<tool_call>"),
    ("<tool_call>",),
    "</tool_call>",
    _object,
    ('<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>"),
    ("", "\n", ""),
)
"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen, SmolLM."""
TAGGED = ToolFormat(
    "tagged",
    re.compile(r"<function="),
    ("<function=",),
    "</function>",
    _tagged,
    ("<function=NAME>", "</function>"),
)
"""`<function=name>{...}</function>`: Llama 3.1's custom functions."""
MISTRAL = ToolFormat(
    "mistral",
    re.compile(r"\[TOOL_CALLS\]"),
    ("[TOOL_CALLS]",),
    None,
    _mistral,
    ('{"name": "NAME", "arguments": ', "}"),
    ("[TOOL_CALLS] [", ", ", "]"),
    id_length=9,
)
"""`[TOOL_CALLS] [{"name": ..., "arguments": {...}}]`; its templates want ids of 9 characters."""
MISTRAL_ARGS = replace(
    MISTRAL,
    name="mistral-args",
    hint=re.compile(r"\[ARGS\]"),
    write=("[TOOL_CALLS]NAME[ARGS]", ""),
    several=("", "", ""),
)
"""`[TOOL_CALLS]name[ARGS]{...}`, one after another: Mistral's since 2025."""
LLAMA = ToolFormat(
    "llama",
    re.compile(r'<\|python_tag\|>|"parameters": dictionary of argument|Environment: ipython'),
    ("<|python_tag|>", "{"),
    None,
    _objects,
    ('{"name": "NAME", "parameters": ', "}"),
    at_start=True,
)
"""`{"name": ..., "parameters": {...}}` as the whole output: Llama 3.1 and later."""
PLAIN = ToolFormat(
    "plain",
    re.compile(r"(?!)"),
    ("```json", "{", "["),
    None,
    _objects,
    ('{"name": "NAME", "arguments": ', "}"),
    at_start=True,
)
"""A bare JSON object; never detected, only read where the request requires a call."""

FORMATS = (HERMES, TAGGED, MISTRAL_ARGS, MISTRAL, LLAMA)


def detect(template: str) -> ToolFormat | None:
    """The format that a chat template teaches; None if it knows no tools."""
    return next((form for form in FORMATS if form.hint.search(template)), None)


def markers(form: ToolFormat) -> tuple[str, ...]:
    """Texts that have to survive detokenization although they may be special tokens."""
    inner = ("[ARGS]", "[CALL_ID]") if form.openers == MISTRAL.openers else ()
    closer = (form.closer,) if form.closer else ()
    return (*(o for o in form.openers if len(o) > 1), *closer, *inner)


class ToolReader:
    """Takes generated text piece by piece and gives back plain text and finished calls.

    Text that may yet become a call is held back. What looks like a call but is none (bad JSON, a
    function nobody offered, arguments that are no object) comes out as the text it was; white
    space round a call goes with it. However the text is cut into pieces, the sum is the same.
    """

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self.form, self.names = form, frozenset(names)
        self._held = ""
        self._gap = ""
        """White space before the opener, which only a true call takes with it."""
        self._opener = ""
        self._searched = 0
        """How much of the held call is known not to hold the closer."""
        self._begun = False
        """Whether other text came first, after which some formats have no calls."""
        self._after = False
        """Whether a call came last."""

    def feed(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """The next piece of output."""
        self._held += text
        out: list[str] = []
        calls: list[ToolCall] = []
        while self._inside(out, calls) if self._opener else self._outside(out):
            pass
        return "".join(out), tuple(calls)

    def close(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The end of the output: an unclosed call counts if it is whole."""
        out: list[str] = []
        calls: list[ToolCall] = []
        if self._opener:
            self._finish(self._held, out, calls)
        elif not (self._after and not self._held.strip()):
            out.append(self._held)
        self._held = ""
        return "".join(out), tuple(calls)

    def _outside(self, out: list[str]) -> bool:
        """Give plain text away up to an opener; True once inside a call."""
        if self._after:
            self._held = self._held.lstrip()
        text = self._held
        found = [] if self.form.at_start and self._begun else self._openers(text)
        if found:
            at, self._opener = min(found)
            before = text[:at]
            plain = before.rstrip()
            self._gap = before[len(plain) :]
            self._held, self._searched = text[at + len(self._opener) :], 0
        else:
            plain = text[: len(text) - self._tail(text)].rstrip()
            self._held = text[len(plain) :]
        if plain:
            out.append(plain)
            self._begun, self._after = True, False
        return bool(found)

    def _openers(self, text: str) -> list[tuple[int, str]]:
        """Where calls begin; in a format that has them first, only there."""
        found = [(at, o) for o in self.form.openers if (at := text.find(o)) >= 0]
        if self.form.at_start:
            return [(at, o) for at, o in found if not text[:at].strip()]
        return found

    def _tail(self, text: str) -> int:
        """Length of the longest end of the text that may begin an opener."""
        for size in range(min(len(text), max(map(len, self.form.openers)) - 1), 0, -1):
            if any(opener.startswith(text[-size:]) for opener in self.form.openers):
                return size
        return 0

    def _inside(self, out: list[str], calls: list[ToolCall]) -> bool:
        """Read a call once it is closed; True if there is more to look at."""
        closer = self.form.closer
        at = self._held.find(closer, self._searched) if closer else -1
        if closer and at >= 0:
            body, self._held = self._held[:at], self._held[at + len(closer) :]
            self._finish(body, out, calls, closer)
            return True
        self._searched = max(0, len(self._held) - len(closer or "") + 1)
        if len(self._held) > MOST_CHARACTERS:
            self._give_up(out, self._held)
            self._held = ""
        return False

    def _finish(self, body: str, out: list[str], calls: list[ToolCall], closer: str = "") -> None:
        try:
            calls += self._read(body)
        except ValueError:
            self._give_up(out, body + closer)
        else:
            self._opener = self._gap = ""
            self._after = True

    def _give_up(self, out: list[str], rest: str) -> None:
        out.append(self._gap + self._opener + rest)
        self._opener = self._gap = ""
        self._begun, self._after = True, False

    def _read(self, body: str) -> list[ToolCall]:
        inner = self._opener + body if self._opener in ("{", "[") else body
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
