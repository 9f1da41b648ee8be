"""POST /v1/chat/completions: whole and streamed answers, tools, log-probabilities."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from keifu.inference.request import Choice, Delta, ToolCall, Usage
from keifu.inference.stream import collect
from keifu.lm.base import LM
from keifu.server import logprobs, options
from keifu.server.bodies import ChatBody
from keifu.server.endpoint import Reply
from keifu.server.generate import Call, Start, one
from keifu.server.sse import DONE, Events, data


def usage_body(usage: Usage) -> dict[str, Any]:
    """Usage as OpenAI writes it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """Fields that every answer and every chunk of one answer begin with."""
    from keifu import __version__

    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": f"keifu-{__version__}",
    }


async def chat(call: Call, lm: LM, body: ChatBody) -> Reply:
    """Answer a conversation."""
    wanted = options.chat(body, lm)
    messages = options.conversation(body.messages)
    start = Start(lm.chat_stream, messages, wanted)
    writer = _Writer(body, body.model or lm.name)
    if body.stream:
        return Events(writer.stream(call, start))
    deltas = [delta async for delta in one(call, start)]
    done = collect(deltas)
    answer = writer.head("chat.completion") | {
        "choices": [writer.choice(i, choice) for i, choice in enumerate(done.choices)],
        "usage": usage_body(done.usage),
    }
    if body.prompt_logprobs is not None:
        answer["prompt_logprobs"] = logprobs.prompt(done.prompt_logprobs or ())
    return answer


class _Writer:
    """Writes one request's answer; old clients that sent `functions` get `function_call` back."""

    def __init__(self, body: ChatBody, model: str) -> None:
        self.body, self.model = body, model
        self.old = body.tools is None and body.functions is not None
        self.single = self.old or body.parallel_tool_calls is False
        self.with_usage = bool(body.stream_options and body.stream_options.include_usage)

    def head(self, kind: str) -> dict[str, Any]:
        return head(kind, "chatcmpl", self.model)

    def finish(self, reason: str | None) -> str | None:
        return "function_call" if self.old and reason == "tool_calls" else reason

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        calls = choice.tool_calls[:1] if self.single else choice.tool_calls
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if calls:
            message["content"] = choice.text or None
            if self.old:
                message["function_call"] = _function(calls[0])
            else:
                message["tool_calls"] = [_tool(call) for call in calls]
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs.chat(choice.logprobs) if self.body.logprobs else None,
            "finish_reason": self.finish(choice.finish),
        }

    async def stream(self, call: Call, start: Start) -> AsyncGenerator[str, None]:
        """Chunks: a role first, text and tool calls, a finish, the usage, [DONE]."""
        top = self.head("chat.completion.chunk")
        usage = Usage()
        calls_of: dict[int, int] = {}
        async with aclosing(one(call, start)) as deltas:
            async for delta in deltas:
                if delta.index not in calls_of:
                    calls_of[delta.index] = 0
                    role = {"role": "assistant", "content": ""}
                    yield self._chunk(top, delta.index, role, prompt=delta)
                for piece, scores in self._pieces(delta, calls_of):
                    yield self._chunk(top, delta.index, piece, scores=scores)
                if delta.finish:
                    yield self._chunk(top, delta.index, {}, finish=self.finish(delta.finish))
                    usage = add_usage(usage, delta)
        if self.with_usage:
            yield data(top | {"choices": [], "usage": usage_body(usage)})
        yield DONE

    def _pieces(
        self, delta: Delta, calls_of: dict[int, int]
    ) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
        found: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
        if delta.text or (delta.logprobs and self.body.logprobs):
            scores = logprobs.chat(delta.logprobs) if self.body.logprobs else None
            found.append(({"content": delta.text}, scores))
        for tool in delta.tool_calls:
            number = calls_of[delta.index]
            if self.single and number:
                break
            calls_of[delta.index] += 1
            if self.old:
                found.append(({"function_call": _function(tool)}, None))
                continue
            opening = _tool(tool) | {"index": number}
            opening["function"] = {"name": tool.name, "arguments": ""}
            rest = {"index": number, "function": {"arguments": tool.arguments}}
            found += [({"tool_calls": [opening]}, None), ({"tool_calls": [rest]}, None)]
        return found

    def _chunk(
        self,
        top: Mapping[str, Any],
        index: int,
        delta: dict[str, Any],
        *,
        scores: dict[str, Any] | None = None,
        finish: str | None = None,
        prompt: Delta | None = None,
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": finish}
        chunk = {**top, "choices": [choice]}
        if self.with_usage:
            chunk["usage"] = None
        if prompt is not None and prompt.prompt_logprobs and self.body.prompt_logprobs is not None:
            chunk["prompt_logprobs"] = logprobs.prompt(prompt.prompt_logprobs)
        return data(chunk)


def add_usage(usage: Usage, last: Delta) -> Usage:
    """The usage of a request so far; a prompt that its outputs share is counted once."""
    mine = last.usage or Usage()
    return Usage(
        prompt_tokens=usage.prompt_tokens or mine.prompt_tokens,
        completion_tokens=usage.completion_tokens + mine.completion_tokens,
        cached_tokens=usage.cached_tokens or mine.cached_tokens,
    )


def _function(call: ToolCall) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments}


def _tool(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": _function(call)}
