"""Models behind OpenAI's HTTP API: the vendor's, and every server that speaks it.

At the vendor's address only the published fields are sent; elsewhere also the extra ones that
vLLM, llama.cpp and `keifu serve` share (top_k, min_p, ignore_eos, continue_final_message ...).
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from keifu.core.errors import KeifuError, unknown
from keifu.inference.constraint import Constraint
from keifu.inference.request import (
    Delta,
    FinishReason,
    Message,
    ParameterError,
    Score,
    TokenLogprob,
    ToolCall,
    Usage,
)
from keifu.inference.stream import Stream
from keifu.lm.base import ChatOptions, Prompt
from keifu.lm.counting import chat_tokens, published_tokenizer
from keifu.lm.errors import RemoteError, UncountableError
from keifu.lm.remote import Ask, Call, Decoder, RemoteLM
from keifu.lm.sse import Event
from keifu.lm.transport import Transport, submit

EMBED_BATCH = 2048
"""Most texts that one embeddings request takes."""

_COMMON = {
    name: name
    for name in (
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stop",
        "n",
    )
}
_EXTENDED = {
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "stop_ids": "stop_token_ids",
    "include_stop": "include_stop_str_in_output",
    "ignore_eos": "ignore_eos",
    "min_tokens": "min_tokens",
    "priority": "priority",
    "cache_salt": "cache_salt",
}
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "error",
}


class OpenAILM(RemoteLM):
    """One model of one OpenAI-compatible API."""

    protocol: ClassVar[str] = "openai"
    embed_batch: ClassVar[int] = EMBED_BATCH
    vendor_url: ClassVar[str] = "https://api.openai.com/v1"
    url_variable: ClassVar[str] = "OPENAI_BASE_URL"

    def headers(self, key: str | None) -> dict[str, str]:
        """Bearer authentication, if there is a key."""
        return {"authorization": f"Bearer {key}"} if key else {}

    def _body(self, ask: Ask, names: Mapping[str, str]) -> dict[str, Any]:
        """The fields that chat and completions share."""
        names = {**_COMMON, **({} if self.at_vendor else _EXTENDED), **names}
        body: dict[str, Any] = {"model": self.model, "stream": True}
        body["stream_options"] = {"include_usage": True}
        body |= self.translate(ask, {**names, "logprobs": "logprobs", "logit_bias": "logit_bias"})
        if bias := body.get("logit_bias"):
            body["logit_bias"] = {str(k): v for k, v in bias.items()}
        return body

    def chat_request(self, messages: Sequence[Message], ask: Ask) -> Call:
        """`/chat/completions`; messages, tools and response formats are already in its shape."""
        # The vendor's reasoning models refuse max_tokens, older servers know nothing else.
        limit = "max_completion_tokens" if self.at_vendor else "max_tokens"
        body = self._body(ask, {"max_tokens": limit})
        body["messages"] = [dict(m) for m in messages]
        if (alternatives := body.pop("logprobs", None)) is not None:
            body |= {"logprobs": True, "top_logprobs": alternatives}
        chat = ask.chat
        if chat.tools:
            body["tools"] = [dict(t) for t in chat.tools]
            if chat.tool_choice != "auto":
                body["tool_choice"] = chat.tool_choice
        if chat.response_format:
            body["response_format"] = chat.response_format
        if (chat.template_options or chat.continue_final) and self.at_vendor:
            name = "continue_final" if chat.continue_final else "template_options"
            raise ParameterError(name, True, "the vendor's API has no such setting")
        if chat.template_options:
            body["chat_template_kwargs"] = dict(chat.template_options)
        if chat.continue_final:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return Call("/chat/completions", body)

    def constrain(self, constraint: Constraint) -> dict[str, Any]:
        """The vendor's `response_format`, elsewhere vLLM's `structured_outputs`."""
        if not self.at_vendor and constraint.kind != "lark":
            return {"structured_outputs": {constraint.kind: constraint.value}}
        if (wanted := constraint.as_format()) is None:
            return super().constrain(constraint)
        return {"response_format": wanted}

    def decoder(self) -> Decoder:
        """Reads `chat.completion.chunk` events."""
        return OpenAIDecoder(self.transport)

    def complete_stream(self, prompt: Prompt, **options: Any) -> Stream:
        """`/completions` on a text or on token ids."""
        ask = self.ask(options)
        body = self._body(ask, {"max_tokens": "max_tokens"})
        body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        return self.start(Call("/completions", body), prompt, ask)

    async def ascore(self, prompt: Prompt, continuation: Prompt) -> Score:
        """`/completions` with echo: the server reads the text and reports each token's logprob."""
        if isinstance(prompt, str) != isinstance(continuation, str):
            raise KeifuError("score: give prompt and continuation both as text or both as ids")
        whole = f"{prompt}{continuation}" if isinstance(prompt, str) else [*prompt, *continuation]
        body = {
            "model": self.model,
            "prompt": whole,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "echo": True,
        }
        answer = await self.on_loop(self.transport.json("POST", "/completions", body))
        try:
            return _read_score(prompt, continuation, answer)
        except (LookupError, TypeError, AttributeError):
            raise self.cannot("score here", "the server echoed no log-probabilities") from None

    def embed_request(self, texts: Sequence[Prompt]) -> Call:
        """`/embeddings`, as base64 where the server has it."""
        given = [t if isinstance(t, str) else list(t) for t in texts]
        body = {"model": self.model, "input": given, "encoding_format": "base64"}
        return Call(path="/embeddings", body=body)

    def vectors(self, answer: Any) -> list[list[float]]:
        """By their index."""
        data = sorted(answer["data"], key=lambda item: int(item["index"]))
        return [_vector(item["embedding"]) for item in data]

    async def count(self, messages: str | Sequence[Message], chat: ChatOptions) -> int:
        """By `tokenizer=`, by tiktoken for the vendor's models, by `/tokenize` elsewhere."""
        if not self.at_vendor and self.tokenizer is None:
            return await self._ask_count(messages, chat)
        encode = self.tokenizer
        if encode is None:
            encode = await asyncio.to_thread(published_tokenizer, self.model)
        if isinstance(messages, str):
            return len(encode(messages))
        if chat.tools:
            raise UncountableError("OpenAI does not publish how tools are counted")
        return await asyncio.to_thread(chat_tokens, messages, encode)

    async def _ask_count(self, messages: str | Sequence[Message], chat: ChatOptions) -> int:
        """The de-facto tokenizer route, which lies beside /v1 rather than under it."""
        body: dict[str, Any] = {"model": self.model}
        if isinstance(messages, str):
            body |= {"prompt": messages, "add_special_tokens": False}
        else:
            body |= {"messages": [dict(m) for m in messages], "add_generation_prompt": True}
            if chat.tools:
                body["tools"] = [dict(t) for t in chat.tools]
        root = self.transport.connection.url.removesuffix("/v1")
        try:
            answer = await self.transport.json("POST", "/tokenize", body, root=root)
            return int(answer["count"] if "count" in answer else len(answer["tokens"]))
        except (RemoteError, LookupError, TypeError, ValueError) as error:
            raise UncountableError(
                f"{self.name}: the server does not count tokens ({error}); pass tokenizer="
            ) from None


def _read_score(prompt: Prompt, continuation: Prompt, answer: Any) -> Score:
    """The continuation's part of an echoed completion; LookupError where there is none."""
    found = answer["choices"][0]["logprobs"]
    tokens, values, best = found["tokens"], found["token_logprobs"], found["top_logprobs"]
    if isinstance(prompt, str):
        text, starts = prompt + str(continuation), list(found["text_offset"])
        # Some servers echo a begin token, and some of those count its name as text.
        begin = 0 if text.startswith(tokens[0]) else 1
        starts = [start - starts[begin] for start in starts]
        ends = [*starts[1:], starts[-1] + 1]
        inside = [
            i
            for i in range(begin, len(starts))
            if starts[i] < len(text) and max(ends[i], starts[i] + 1) > len(prompt)
        ]
        ids: tuple[int, ...] = ()
    else:
        inside = list(range(len(prompt), len(prompt) + len(continuation)))
        ids = tuple(continuation)  # type: ignore[arg-type]
    logprobs = [values[i] for i in inside]
    if any(v is None for v in logprobs):
        raise KeifuError("nothing predicts the first token of an empty prompt: give a prompt")
    greedy = all(values[i] >= max(best[i].values()) for i in inside)
    return Score(tuple(float(v) for v in logprobs), greedy, ids)


def _vector(value: Any) -> list[float]:
    """An embedding: base64 of little-endian float32, or a list of numbers."""
    if isinstance(value, str):
        raw = base64.b64decode(value, validate=True)
        if len(raw) % 4:
            raise ValueError(f"{len(raw)} bytes are no numbers of 4")
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    return [float(v) for v in value]


class OpenAIDecoder:
    """Reads chat and completion chunks; an output's end waits for the usage that follows it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._tools: dict[int, dict[int, list[str]]] = {}
        self._finish: dict[int, FinishReason] = {}
        self._stop: dict[int, str | int | None] = {}
        self._usage: Usage | None = None
        self._over = False

    def feed(self, event: Event) -> Iterable[Delta]:
        """Text, log-probabilities and tool-call fragments of one chunk."""
        if self._over or event.data.strip() == "[DONE]":
            self._over = True
            return
        chunk = self._transport.decode(event.data)
        if not isinstance(chunk, dict):
            raise RemoteError(f"the server sent a chunk that is no object: {event.data[:80]!r}")
        if chunk.get("error") or event.type == "error":
            raise self._transport.failure(0, chunk)
        try:
            if chunk.get("usage"):
                self._usage = _usage(chunk["usage"])
            for choice in chunk.get("choices") or ():
                yield from self._choice(choice)
        except (LookupError, TypeError, AttributeError, ValueError):
            raise RemoteError(f"the server sent a malformed chunk: {event.data[:80]!r}") from None

    def _choice(self, choice: Mapping[str, Any]) -> Iterable[Delta]:
        index = int(choice.get("index", 0))
        delta = choice.get("delta") or {}
        text = choice["text"] if "text" in choice else delta.get("content") or delta.get("refusal")
        for piece in delta.get("tool_calls") or ():
            slot = self._tools.setdefault(index, {}).setdefault(int(piece["index"]), ["", "", ""])
            function = piece.get("function") or {}
            for place, part in enumerate(
                (piece.get("id"), function.get("name"), function.get("arguments"))
            ):
                slot[place] += part or ""
        logprobs = tuple(_logprobs(choice.get("logprobs")))
        if text or logprobs:
            yield Delta(index=index, text=text or "", logprobs=logprobs)
        if reason := choice.get("finish_reason"):
            self._finish[index] = _FINISH.get(reason, "error")
            self._stop[index] = choice.get("stop_reason")

    def end(self) -> Iterable[Delta]:
        """One last delta an output, with its tool calls; the first carries the whole usage."""
        if not self._finish:
            raise RemoteError("the server broke off its answer before the end")
        for place, index in enumerate(sorted(self._finish)):
            calls = self._tools.get(index, {})
            usage = self._usage or Usage()
            yield Delta(
                index=index,
                tool_calls=tuple(ToolCall(*calls[i]) for i in sorted(calls)),
                finish=self._finish[index],
                stop=self._stop[index],
                usage=usage if place == 0 else Usage(prompt_tokens=usage.prompt_tokens),
            )


def _usage(value: Mapping[str, Any]) -> Usage:
    cached = (value.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(int(value["prompt_tokens"]), int(value.get("completion_tokens") or 0), int(cached))


def _logprobs(value: Mapping[str, Any] | None) -> Iterable[TokenLogprob]:
    """Log-probabilities in the chat shape (content) or the completions shape (tokens).

    The API gives no token ids: they are -1 unless the server adds them.
    """
    if not value:
        return
    for item in value.get("content") or ():
        top = tuple(_entry(other) for other in item.get("top_logprobs") or ())
        yield _entry(item, top)
    if "tokens" in value:
        best = value.get("top_logprobs") or [None] * len(value["tokens"])
        for token, logprob, others in zip(
            value["tokens"], value["token_logprobs"], best, strict=True
        ):
            ranked = sorted((others or {}).items(), key=lambda pair: -pair[1])
            top = tuple(TokenLogprob(-1, t, p, bytes=t.encode()) for t, p in ranked)
            yield TokenLogprob(-1, token, logprob, top, token.encode())


def _entry(item: Mapping[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    raw = bytes(item["bytes"]) if item.get("bytes") else item["token"].encode()
    return TokenLogprob(int(item.get("id", -1)), item["token"], float(item["logprob"]), top, raw)


def connect(model: str | None, lm: Callable[[str], OpenAILM]) -> OpenAILM:
    """Ask a server what it serves: the model's context, or the nearest names if it has it not."""
    probe = lm(model or "")
    try:
        answer = submit(probe.transport.json("GET", "/models")).result()
        served = {str(m["id"]): m for m in answer["data"]}
    except RemoteError as error:
        if error.status not in (404, 405, 501) or not model:
            raise
        return probe  # a server that lists nothing but may well answer
    except (LookupError, TypeError):
        raise RemoteError(f"{probe.transport.connection.url}/models is no list of models") from None
    if model is None and len(served) == 1:
        model = next(iter(served))
    if model not in served:
        raise unknown("served model", model or "", served, "name it after # in the address")
    found = lm(model)
    found.context = found.context or int(served[model].get("max_model_len") or 0)
    return found
