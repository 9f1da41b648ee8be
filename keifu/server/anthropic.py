"""Anthropic's request bodies, and how they read as a conversation in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from keifu.inference.request import Message
from keifu.server import options
from keifu.server.bodies import Body, Count, Flag, Many, Number, Object, Text, ToolName
from keifu.server.errors import bad, shown

CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Block(BaseModel):
    """One block of an Anthropic message, tool result or system prompt."""

    model_config = ConfigDict(strict=True)
    type: str
    text: Text = None
    id: Text = None
    name: Text = None
    input: Object | None = None
    tool_use_id: Text = None
    content: str | Many[Block] | None = None
    is_error: Flag = None
    thinking: Text = None


class AnthropicMessage(BaseModel):
    """A message of a conversation in Anthropic's shape."""

    model_config = ConfigDict(strict=True)
    role: Literal["user", "assistant", "system"]
    content: str | Many[Block]


class AnthropicTool(BaseModel):
    """One tool of an Anthropic request; what Anthropic's own servers run has another type."""

    model_config = ConfigDict(strict=True)
    type: Literal["custom"] | None = None
    name: ToolName
    description: Text = None
    input_schema: Object


class CountBody(Body):
    """POST /v1/messages/count_tokens."""

    messages: Annotated[Many[AnthropicMessage], Field(min_length=1, max_length=10_000)]
    system: str | Many[Block] | None = None
    tools: Annotated[Many[AnthropicTool], Field(max_length=128)] | None = None
    tool_choice: Object | None = None


class MessagesBody(CountBody):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Many[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Count = None
    top_p: Number = None
    stream: Flag = None


def conversation(body: CountBody) -> list[Message]:
    """Anthropic's system prompt and blocks as messages in OpenAI's shape."""
    found: list[Message] = []
    if body.system:
        found.append({"role": "system", "content": _text(body.system)})
    for message in body.messages:
        if isinstance(message.content, str):
            found.append({"role": message.role, "content": message.content})
        else:
            found += _turn(message.role, message.content)
    return found


def _turn(role: str, blocks: Sequence[Block]) -> list[Message]:
    """One turn's blocks: tool results become messages of their own, before the turn's text."""
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[Message] = []
    for block in blocks:
        match block.type:
            case "text":
                texts.append(block.text or "")
            case "tool_use":
                called = {"name": block.name or "", "arguments": json.dumps(block.input or {})}
                calls.append({"id": block.id or "", "type": "function", "function": called})
            case "tool_result":
                text = _text(block.content or "")
                content = f"Error: {text}" if block.is_error else text
                tool = {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": content}
                results.append(tool)
            case "thinking" | "redacted_thinking":
                pass
            case other:
                raise bad(f"this model reads text alone, not {shown(other)}", "messages")
    turn: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
    if calls:
        turn["tool_calls"] = calls
    return [*results, turn] if texts or calls or not results else results


def _text(content: str | Sequence[Block]) -> str:
    if isinstance(content, str):
        return content
    if other := [block.type for block in content if block.type != "text"]:
        raise bad(f"this model reads text alone, not {shown(other[0])}", "messages")
    return "\n".join(block.text or "" for block in content)


def chat_options(body: CountBody) -> dict[str, Any]:
    """Tools, their choice, and whether the last message begins the answer."""
    found: dict[str, Any] = {}
    if body.tools:
        tools = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    **({"description": tool.description} if tool.description else {}),
                    "parameters": tool.input_schema,
                },
            }
            for tool in body.tools
        ]
        match body.tool_choice:
            case None:
                choice: Any = "auto"
            case {"type": "tool", "name": str(name)}:
                choice = {"name": name}
            case {"type": str(kind)} if kind in CHOICES:
                choice = CHOICES[kind]
            case _:
                raise bad('tool_choice has type "auto", "any", "tool" or "none"', "tool_choice")
        found = options.tool_options(tools, choice)
    if body.messages[-1].role == "assistant":
        found["continue_final"] = True  # Anthropic's way to begin the answer for the model
    return found
