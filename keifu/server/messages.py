"""POST /v1/messages and its count_tokens: Anthropic's dialect over the same chat core."""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from keifu.inference.request import Choice, Delta, ToolCall, Usage
from keifu.inference.stream import collect
from keifu.lm.base import LM
from keifu.server import options
from keifu.server.anthropic import CountBody, MessagesBody, chat_options, conversation
from keifu.server.endpoint import Reply
from keifu.server.generate import Call, Start, in_thread, one
from keifu.server.sse import Events, data


async def count_tokens(call: Call, lm: LM, body: CountBody) -> Reply:
    """Tokens of the conversation as the model would read it."""
    messages, more = conversation(body), chat_options(body)
    more.pop("tool_choice", None)
    return {"input_tokens": await in_thread(lambda: lm.count_tokens(messages, **more))}


async def messages(call: Call, lm: LM, body: MessagesBody) -> Reply:
    """Answer a conversation in Anthropic's shape."""
    names = ("max_tokens", "temperature", "top_k", "top_p")
    wanted = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    if body.stop_sequences:
        wanted["stop"] = tuple(body.stop_sequences)
    options.checked(wanted, body, lm)
    wanted |= chat_options(body)
    given = conversation(body)
    start = Start(lm.chat_stream, given, wanted)
    single = bool(body.tool_choice and body.tool_choice.get("disable_parallel_tool_use"))
    top = {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": body.model or lm.name,
    }
    if body.stream:
        more = {key: wanted[key] for key in ("tools", "continue_final") if key in wanted}
        count = functools.partial(lm.count_tokens, given, **more)
        return Events(
            _events(call, start, top, count, single),
            ping=data({"type": "ping"}, "ping"),
            failed=lambda status, error: data(error, "error"),
        )
    done = collect([delta async for delta in one(call, start)])
    choice = done.choices[0]
    content: list[dict[str, Any]] = [{"type": "text", "text": choice.text}] if choice.text else []
    for tool in choice.tool_calls[:1] if single else choice.tool_calls:
        content.append(_tool_use(tool) | {"input": json.loads(tool.arguments)})
    return top | {"content": content, **_stop(choice), "usage": _usage(done.usage)}


def _stop(last: Choice | Delta) -> dict[str, Any]:
    """Why it ended, in Anthropic's words."""
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    if last.finish == "stop" and isinstance(last.stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop}
    return {"stop_reason": reasons.get(last.finish or "stop", "end_turn"), "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _tool_use(tool: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": tool.id, "name": tool.name}


async def _events(
    call: Call, start: Start, top: dict[str, Any], count: Any, single: bool
) -> AsyncGenerator[str, None]:
    """message_start, blocks (start, deltas, stop), message_delta, message_stop."""
    index, text_open, tools = 0, False, 0
    last = Delta()
    async with aclosing(one(call, start)) as deltas:
        begun = False
        async for delta in deltas:
            if not begun:
                begun = True
                usage = _usage(Usage(prompt_tokens=await in_thread(count)))
                opening: dict[str, Any] = {
                    "content": [],
                    "stop_reason": None,
                    "stop_sequence": None,
                }
                message = top | opening | {"usage": usage}
                yield _event("message_start", message=message)
            if delta.text:
                if not text_open:
                    text_open = True
                    block = {"type": "text", "text": ""}
                    yield _event("content_block_start", index=index, content_block=block)
                piece = {"type": "text_delta", "text": delta.text}
                yield _event("content_block_delta", index=index, delta=piece)
            for tool in delta.tool_calls[: max(0, 1 - tools)] if single else delta.tool_calls:
                if text_open:
                    yield _event("content_block_stop", index=index)
                    index, text_open = index + 1, False
                block = _tool_use(tool) | {"input": {}}
                yield _event("content_block_start", index=index, content_block=block)
                piece = {"type": "input_json_delta", "partial_json": tool.arguments}
                yield _event("content_block_delta", index=index, delta=piece)
                yield _event("content_block_stop", index=index)
                index, tools = index + 1, tools + 1
            if delta.finish:
                last = delta
    if text_open:
        yield _event("content_block_stop", index=index)
    yield _event("message_delta", delta=_stop(last), usage=_usage(last.usage or Usage()))
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> str:
    return data({"type": kind, **fields}, kind)
