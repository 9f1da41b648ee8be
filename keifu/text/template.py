"""Chat templates: a conversation in, text out, with what people wrote told from what is structure.

The template (a program of the checkpoint's author) runs in another process under limits. A special
token in somebody's words must not become one. So each occurrence is replaced by a run of digits
that nobody can guess and that any template passes through (no case, no space, nothing to escape),
and found again in the result as untrusted text. Tokens that only come together inside the template
(split over two parts, lower-cased, glued by a replace) are caught by rendering once more without
any of the tokens' delimiters: both results must hold the same special tokens in the same order.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keifu.text.sandbox import WORKER, FatalTemplateError, TemplateError

MAX_SOURCE = 256 << 10
_PARTS = re.compile(r"""\.(text|type)\b|\[\s*['"](text|type)['"]\s*\]""")
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt; in a trusted one, special tokens are special."""

    text: str
    trusted: bool = True


@dataclass
class ChatTemplate:
    """A Jinja chat template as published checkpoints carry it."""

    source: str
    special: Mapping[str, str] = field(default_factory=dict)
    """The template's own variables: bos_token, eos_token, ..."""
    control: frozenset[str] = frozenset()
    """Token strings that words must not turn into."""
    hidden: frozenset[str] = frozenset()
    """Those of them that no decoded answer shows; an assistant's own words may hold the others."""

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE:
            raise TemplateError(
                f"the chat template has {len(self.source)} characters; at most {MAX_SOURCE}"
            )
        self._broken: str | None = None
        self._controls = _any_of(self.control)
        self._hidden = _any_of(self.hidden)
        self._delimiters = {
            char for token in self.control for char in token[:1] + token[-1:] if not char.isalnum()
        } - set(" \t\r\n")

    @staticmethod
    def warm() -> None:
        """Start the rendering process now, so that it is ready when a conversation is."""
        WORKER.warm()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        **options: Any,
    ) -> list[Segment]:
        """The prompt, in segments; options are variables of the template.

        continue_final: the last message is left open, for the model to go on with. Raises
        TemplateError with the template's own words where it refuses the conversation.
        """
        chat = [self._plain(m) for m in messages]
        if not chat:
            raise TemplateError("there are no messages")
        nonce = "".join(secrets.choice("0123456789") for _ in range(24))
        tag = ""
        if continue_final:
            tag = nonce[::-1]
            _open_end(chat, tag + " ")
        values = {
            **self.special,
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not continue_final,
            **options,
        }
        found: list[str] = []

        def hide(match: re.Match[str]) -> str:
            found.append(match[0])
            return f"{nonce}{len(found):06d}"

        seen: list[bool] = []

        def guard(text: str, pattern: re.Pattern[str]) -> str:
            seen.append(not self._delimiters.isdisjoint(text))
            return pattern.sub(hide, text)

        text = _cut(self._run(self._mapped(chat, values, options, guard)), tag)
        pieces = re.split(rf"{nonce}(\d{{6}})", text)
        segments = [
            Segment(found[int(piece) - 1], trusted=False) if odd else Segment(piece)
            for n, piece in enumerate(pieces)
            if (odd := n % 2 == 1) or piece
        ]
        if any(seen):
            neutral = _cut(self._run(self._mapped(chat, values, options, self._neutral)), tag)
            self._compare(segments, neutral)
        return segments

    def text(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The prompt as one text, for a person to read."""
        return "".join(segment.text for segment in self.render(messages, **options))

    # --- inputs

    def _plain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as templates expect it: no empty fields, content as they read it."""
        if not isinstance(message, Mapping):
            raise TemplateError(f"a message is an object, not {type(message).__name__}")
        kept = {key: value for key, value in message.items() if value is not None}
        reasoning = next((kept[name] for name in _REASONING if name in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
        if isinstance(content := kept.get("content"), list) and not _PARTS.search(self.source):
            texts = [part.get("text") for part in content if isinstance(part, Mapping)]
            if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
                kinds = [part.get("type") for part in content if isinstance(part, Mapping)]
                other = next((kind for kind in kinds if kind != "text"), "this")
                raise TemplateError(f"this model reads text only, not {other!r}")
            kept["content"] = "\n".join(map(str, texts))
        return kept

    def _mapped(
        self,
        chat: list[dict[str, Any]],
        values: Mapping[str, Any],
        options: Mapping[str, Any],
        change: Callable[[str, re.Pattern[str]], str],
    ) -> dict[str, Any]:
        """The template's variables with every string that came from outside changed."""
        hidden, controls = self._hidden, self._controls
        try:
            given = {key: _walk(values[key], change, controls) for key in ("tools", *options)}
            messages = [
                _walk(m, change, hidden if m.get("role") == "assistant" else controls) for m in chat
            ]
        except RecursionError:
            raise TemplateError("the conversation is nested too deeply") from None
        return {**values, **given, "messages": messages}

    def _neutral(self, text: str, pattern: re.Pattern[str]) -> str:
        """Words in which no token can hide; what an assistant may say stays."""
        allowed = self._controls if pattern is self._hidden else None
        out, end = [], 0
        for match in allowed.finditer(text) if allowed else ():
            if match[0] not in self.hidden:
                out += [self._blunt(text[end : match.start()]), match[0]]
                end = match.end()
        return "".join([*out, self._blunt(text[end:])])

    def _blunt(self, text: str) -> str:
        return "".join("." if char in self._delimiters else char for char in text)

    # --- results

    def _run(self, values: dict[str, Any]) -> str:
        if self._broken:
            raise TemplateError(f"{self._broken}; it is not run again: choose another template")
        calls = _parsed_calls(values["messages"])
        try:
            if calls is not None:
                try:
                    return WORKER.ask(self.source, {**values, "messages": calls})
                except FatalTemplateError:
                    raise
                except TemplateError:
                    pass  # some templates want the arguments as the text they came as
            return WORKER.ask(self.source, values)
        except FatalTemplateError as error:
            self._broken = str(error)
            raise TemplateError(f"{error}; it is not run again: choose another template") from None

    def _compare(self, segments: Sequence[Segment], neutral: str) -> None:
        """Raise if words turned into special tokens on their way through the template."""
        marked = "".join(s.text if s.trusted else "\ue000" for s in segments)
        ours, plain = self._controls.findall(marked), self._controls.findall(neutral)
        if ours != plain:
            extra = next((t for t in ours if ours.count(t) != plain.count(t)), "a special token")
            raise TemplateError(
                f"a message would turn into {extra!r} on its way through the chat template: "
                "take the pieces of it out of the text"
            )


def _any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


def _walk(value: Any, change: Callable[..., str], pattern: re.Pattern[str]) -> Any:
    """A copy of nested plain data with every string changed, keys included."""
    if isinstance(value, str):
        return change(value, pattern)
    if isinstance(value, Mapping):
        return {_walk(k, change, pattern): _walk(v, change, pattern) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(item, change, pattern) for item in value]
    return value


def _parsed_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Tool calls with their arguments as objects instead of JSON texts; None if there are none."""
    changed = False
    result = []
    for message in messages:
        calls = []
        for call in message.get("tool_calls") or ():
            function = dict(call.get("function") or {})
            if isinstance(function.get("arguments"), str):
                try:
                    function["arguments"] = json.loads(function["arguments"] or "{}")
                    changed = True
                except ValueError:
                    pass  # not JSON: the template gets what there is
            calls.append({**call, "function": function} if function else call)
        result.append({**message, "tool_calls": calls} if calls else message)
    return result if changed else None


def _open_end(chat: list[dict[str, Any]], tag: str) -> None:
    """Put a tag after the last message's words."""
    last = chat[-1] = dict(chat[-1])
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + tag
        return
    parts = [dict(part) for part in content] if isinstance(content, list) else []
    for part in reversed(parts):
        if "text" in part:
            part["text"] += tag
            last["content"] = parts
            return
    raise TemplateError("the last message has no text to continue")


def _cut(text: str, tag: str) -> str:
    """The text before the tag; where the template trimmed the words, so is the end."""
    if not tag:
        return text
    at = text.rfind(tag)
    if at < 0:
        raise TemplateError("the chat template leaves out the message that was to be continued")
    return text[:at] if text.startswith(tag + " ", at) else text[:at].rstrip()
