"""Models behind Anthropic's Messages API.

Version 2026-10-21 of the protocol dropped temperature, top_p and top_k: a request that sets one
of them is sent under version 2023-06-01, which still takes them for the models that do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from keifu.core.errors import KeifuError
from keifu.inference.constraint import Constraint
from keifu.inference.request import Delta, FinishReason, Message, ParameterError, ToolCall, Usage
from keifu.lm.base import ChatOptions
from keifu.lm.errors import RemoteError
from keifu.lm.remote import Ask, Call, Decoder, RemoteLM, data_url, parse_json, text_of
from keifu.lm.sse import Event
from keifu.lm.transport import Transport

VERSION, OLD_VERSION = "2026-10-21", "2023-06-01"

DEFAULT_OUTPUT = 4096
"""The API demands max_tokens; every model it serves allows this many."""

_NAMES = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop": "stop_sequences",
}
_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}


class AnthropicLM(RemoteLM):
    """One Claude model, or another behind the same protocol."""

    protocol: ClassVar[str] = "anthropic"
    vendor_url: ClassVar[str] = "https://api.anthropic.com"
    url_variable: ClassVar[str] = "ANTHROPIC_BASE_URL"
    native_n: ClassVar[bool] = False

    def headers(self, key: str | None) -> dict[str, str]:
        """Bearer authentication, as the vendor's clients do since 2026-10, and the version."""
        bearer = {"authorization": f"Bearer {key}"} if key else {}
        return {"anthropic-version": VERSION, **bearer}

    def chat_request(self, messages: Sequence[Message], ask: Ask) -> Call:
        """`/v1/messages`; n outputs are n requests, since it answers one at a time."""
        if ask.sampling.temperature > 1:
            raise ParameterError("temperature", ask.sampling.temperature, "anthropic goes to 1")
        given = {k: v for k, v in ask.given.items() if k != "n"}
        limit = self.max_output or DEFAULT_OUTPUT
        body = {"model": self.model, "max_tokens": limit, "stream": True}
        body |= self.translate(Ask(given, ask.sampling, ask.chat), _NAMES)
        body |= self._prompt(messages, ask.chat)
        if ask.chat.template_options:
            raise ParameterError("template_options", True, "anthropic has no such setting")
        sampled = body.keys() & {"temperature", "top_p", "top_k"}
        return Call("/v1/messages", body, {"anthropic-version": OLD_VERSION} if sampled else {})

    def _prompt(self, messages: Sequence[Message], chat: ChatOptions) -> dict[str, Any]:
        """What is read: system, messages, tools; the part that is counted."""
        system, turns = to_anthropic(messages)
        if turns and (turns[-1]["role"] == "assistant") != chat.continue_final:
            raise KeifuError(
                "anthropic continues a last assistant message and answers any other: "
                f"continue_final={chat.continue_final} does not fit the last role"
            )
        body: dict[str, Any] = {"messages": turns}
        if system:
            body["system"] = system
        if chat.tools:
            body["tools"] = [_tool(t) for t in chat.tools]
            if chat.tool_choice != "auto":
                body["tool_choice"] = _tool_choice(chat.tool_choice)
        if chat.response_format:
            body["output_config"] = {"format": _format(chat.response_format)}
        return body

    def constrain(self, constraint: Constraint) -> dict[str, Any]:
        """JSON schemas alone."""
        if (wanted := constraint.as_format()) is None:
            return super().constrain(constraint)
        return {"output_config": {"format": _format(wanted)}}

    def decoder(self) -> Decoder:
        """Reads the Messages event stream."""
        return AnthropicDecoder(self.transport)

    async def count(self, messages: str | Sequence[Message], chat: ChatOptions) -> int:
        """By `/v1/messages/count_tokens`, which is free; a text counts as a user's message."""
        if isinstance(messages, str):
            if self.tokenizer is not None:
                return len(self.tokenizer(messages))
            messages = [{"role": "user", "content": messages}]
        body = {"model": self.model, **self._prompt(messages, chat)}
        answer = await self.transport.json("POST", "/v1/messages/count_tokens", body)
        try:
            return int(answer["input_tokens"])
        except (LookupError, TypeError, ValueError):
            raise RemoteError(f"{self.name}: the token count is malformed") from None


def to_anthropic(messages: Sequence[Message]) -> tuple[str, list[dict[str, Any]]]:
    """OpenAI-shaped messages as (system text, turns); consecutive turns of one role are one.

    Tool results are blocks of a user turn; tool calls are blocks of an assistant turn.
    """
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        role = message["role"]
        if role in ("system", "developer"):
            if turns:
                raise KeifuError(
                    f"message {index}: anthropic takes system messages only at the start"
                )
            system.append(text_of(message.get("content")))
            continue
        side = "assistant" if role == "assistant" else "user"
        content = _tool_result(message) if role == "tool" else _content(message)
        if turns and turns[-1]["role"] == side:
            turns[-1]["content"] = _blocks(turns[-1]["content"]) + _blocks(content)
        else:
            turns.append({"role": side, "content": content})
    return "\n\n".join(system), turns


def _blocks(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _content(message: Message) -> str | list[dict[str, Any]]:
    """A text stays a text; parts and tool calls become blocks."""
    content, calls = message.get("content"), message.get("tool_calls") or ()
    if isinstance(content, str) and not calls:
        return content
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    blocks = [_part(p) for p in parts if p.get("type") != "text" or p["text"]]
    for call in calls:
        function = call["function"]
        arguments = parse_json(function["arguments"] or "{}", f"{function['name']}'s arguments")
        blocks.append(
            {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}
        )
    return blocks


def _tool_result(message: Message) -> list[dict[str, Any]]:
    content = message.get("content")
    inner = content if isinstance(content, str) else [_part(p) for p in content or ()]
    return [{"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": inner}]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """One message part as a content block."""
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        image = part["image_url"]
        url = image if isinstance(image, str) else image["url"]
        found = data_url(url)
        if found is None:
            return {"type": "image", "source": {"type": "url", "url": url}}
        source = {"type": "base64", "media_type": found[0], "data": found[1]}
        return {"type": "image", "source": source}
    if kind == "file" and (found := data_url(part["file"]["file_data"])):
        source = {"type": "base64", "media_type": found[0], "data": found[1]}
        return {"type": "document", "source": source}
    raise KeifuError(
        f"anthropic takes no message part of type {kind!r}: give text, image_url, file"
    )


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    described = {"description": function["description"]} if "description" in function else {}
    return {"name": function["name"], **described, "input_schema": schema}


def _tool_choice(choice: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(choice, str):
        kinds = {"auto": "auto", "required": "any", "none": "none"}
        if choice not in kinds:
            raise KeifuError(f"tool_choice={choice!r}: give auto, none, required or a function")
        return {"type": kinds[choice]}
    return {"type": "tool", "name": choice["function"]["name"]}


def _format(response_format: Mapping[str, Any]) -> dict[str, Any]:
    if response_format.get("type") != "json_schema":
        raise KeifuError("anthropic gives JSON only by schema: response_format type json_schema")
    return {"type": "json_schema", "schema": response_format["json_schema"]["schema"]}


class AnthropicDecoder:
    """Reads message_start … message_stop; thinking is not part of the answer's text."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._tool: list[str] | None = None
        self._usage: dict[str, int] = {}
        self._reason: str | None = None
        self._stop: str | None = None
        self._over = False

    def feed(self, event: Event) -> Iterable[Delta]:
        """Text as it comes, a tool call once it is whole."""
        data = self._transport.decode(event.data)
        try:
            kind = data["type"]
            if kind == "error":
                raise self._transport.failure(0, data)
            yield from self._event(kind, data)
        except (LookupError, TypeError, AttributeError, ValueError):
            raise RemoteError(f"the server sent a malformed event: {event.data[:80]!r}") from None

    def _event(self, kind: str, data: Mapping[str, Any]) -> Iterable[Delta]:
        if kind == "message_start":
            self._count(data["message"].get("usage") or {})
        elif kind == "content_block_start":
            block = data["content_block"]
            self._tool = [block["id"], block["name"], ""] if block["type"] == "tool_use" else None
            if self._tool and block.get("input"):
                self._tool[2] = json.dumps(block["input"])
            if block["type"] == "text" and block.get("text"):
                yield Delta(text=block["text"])
        elif kind == "content_block_delta":
            piece = data["delta"]
            if piece["type"] == "text_delta":
                yield Delta(text=piece["text"])
            elif piece["type"] == "input_json_delta" and self._tool:
                self._tool[2] += piece["partial_json"]
        elif kind == "content_block_stop" and self._tool:
            call, self._tool = self._tool, None
            yield Delta(tool_calls=(ToolCall(call[0], call[1], call[2] or "{}"),))
        elif kind == "message_delta":
            self._reason = data["delta"].get("stop_reason") or self._reason
            self._stop = data["delta"].get("stop_sequence") or self._stop
            self._count(data.get("usage") or {})
        elif kind == "message_stop":
            self._over = True

    def _count(self, usage: Mapping[str, Any]) -> None:
        self._usage |= {k: int(v) for k, v in usage.items() if isinstance(v, int)}

    def end(self) -> Iterable[Delta]:
        """The last delta; cached prompt tokens are counted with the prompt's."""
        if not self._over:
            raise RemoteError("the server broke off its answer before the end")
        used = self._usage
        cached = used.get("cache_read_input_tokens", 0)
        prompt = used.get("input_tokens", 0) + cached + used.get("cache_creation_input_tokens", 0)
        yield Delta(
            finish=_FINISH.get(self._reason or "", "error"),
            stop=self._stop,
            usage=Usage(prompt, used.get("output_tokens", 0), cached),
        )
