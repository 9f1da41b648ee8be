"""Models behind Google's Gemini API (generativelanguage v1): chat and embeddings."""

from __future__ import annotations

import json
import mimetypes
import secrets
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from keifu.core.errors import KeifuError
from keifu.inference.constraint import Constraint
from keifu.inference.request import (
    Delta,
    FinishReason,
    Message,
    ParameterError,
    TokenLogprob,
    ToolCall,
    Usage,
)
from keifu.lm.base import ChatOptions, Prompt
from keifu.lm.errors import RemoteError
from keifu.lm.remote import Ask, Call, Decoder, RemoteLM, data_url, parse_json, text_of
from keifu.lm.sse import Event
from keifu.lm.transport import Transport

EMBED_BATCH = 100
"""Most texts that one batchEmbedContents request takes."""

_NAMES = {
    "max_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "stop": "stopSequences",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "n": "candidateCount",
    "logprobs": "logprobs",
}
_FINISH: dict[str, FinishReason] = {"STOP": "stop", "MAX_TOKENS": "length"}


class GeminiLM(RemoteLM):
    """One Gemini model."""

    protocol: ClassVar[str] = "gemini"
    embed_batch: ClassVar[int] = EMBED_BATCH
    vendor_url: ClassVar[str] = "https://generativelanguage.googleapis.com"
    url_variable: ClassVar[str] = "GOOGLE_GEMINI_BASE_URL"

    def headers(self, key: str | None) -> dict[str, str]:
        """The key in a header: in the address it would end up in logs."""
        return {"x-goog-api-key": key} if key else {}

    def _path(self, verb: str) -> str:
        return f"/v1/models/{urllib.parse.quote(self.model, safe='')}:{verb}"

    def chat_request(self, messages: Sequence[Message], ask: Ask) -> Call:
        """`streamGenerateContent` with server-sent events."""
        if ask.chat.template_options or ask.chat.continue_final:
            name = "continue_final" if ask.chat.continue_final else "template_options"
            raise ParameterError(name, True, "gemini has no such setting")
        body = self._prompt(messages, ask.chat)
        settings = self.translate(ask, _NAMES)
        if "logprobs" in settings:
            settings["responseLogprobs"] = True
        settings |= _format(ask.chat.response_format)
        if settings:
            body["generationConfig"] = settings
        return Call(self._path("streamGenerateContent?alt=sse"), body)

    def _prompt(self, messages: Sequence[Message], chat: ChatOptions) -> dict[str, Any]:
        """What is read: systemInstruction, contents, tools; the part that is counted."""
        system, contents = to_gemini(messages)
        body: dict[str, Any] = {"contents": contents}
        if system:
            body["systemInstruction"] = {"parts": [{"text": system}], "role": "user"}
        if chat.tools:
            body["tools"] = [{"functionDeclarations": [_function(t) for t in chat.tools]}]
            if chat.tool_choice != "auto":
                body["toolConfig"] = {"functionCallingConfig": _tool_choice(chat.tool_choice)}
        return body

    def constrain(self, constraint: Constraint) -> dict[str, Any]:
        """JSON schemas alone."""
        if (wanted := constraint.as_format()) is None:
            return super().constrain(constraint)
        return _format(wanted)

    def decoder(self) -> Decoder:
        """Reads a stream of GenerateContentResponse."""
        return GeminiDecoder(self.transport)

    def embed_request(self, texts: Sequence[Prompt]) -> Call:
        """`batchEmbedContents`."""
        if not all(isinstance(t, str) for t in texts):
            raise self.cannot("embed token ids", "give texts")
        name = f"models/{self.model}"
        requests = [{"model": name, "content": {"parts": [{"text": t}]}} for t in texts]
        return Call(path=self._path("batchEmbedContents"), body={"requests": requests})

    def vectors(self, answer: Any) -> list[list[float]]:
        """In order."""
        return [[float(v) for v in found["values"]] for found in answer["embeddings"]]

    async def count(self, messages: str | Sequence[Message], chat: ChatOptions) -> int:
        """By `countTokens`, which is free."""
        if isinstance(messages, str):
            if self.tokenizer is not None:
                return len(self.tokenizer(messages))
            messages = [{"role": "user", "content": messages}]
        body = self._prompt(messages, chat)
        if body.keys() != {"contents"}:
            body = {"generateContentRequest": {"model": f"models/{self.model}", **body}}
        answer = await self.transport.json("POST", self._path("countTokens"), body)
        try:
            return int(answer["totalTokens"])
        except (LookupError, TypeError, ValueError):
            raise RemoteError(f"{self.name}: the token count is malformed") from None


def to_gemini(messages: Sequence[Message]) -> tuple[str, list[dict[str, Any]]]:
    """OpenAI-shaped messages as (system text, contents); consecutive ones of one role are one.

    A tool's result names its function, which OpenAI's shape leaves to the call's id.
    """
    system: list[str] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        role = message["role"]
        if role in ("system", "developer"):
            if contents:
                raise KeifuError(f"message {index}: gemini takes system messages only at the start")
            system.append(text_of(message.get("content")))
            continue
        side = "model" if role == "assistant" else "user"
        if role == "tool":
            parts = [_tool_result(message, names, index)]
        else:
            parts = _parts(message.get("content"))
            for call in message.get("tool_calls") or ():
                function = call["function"]
                names[call["id"]] = function["name"]
                what = f"{function['name']}'s arguments"
                arguments = parse_json(function["arguments"] or "{}", what)
                parts.append({"functionCall": {"name": function["name"], "args": arguments}})
        if contents and contents[-1]["role"] == side:
            contents[-1]["parts"] += parts
        else:
            contents.append({"parts": parts, "role": side})
    return "\n\n".join(system), contents


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"text": content}] if content else []
    return [_part(part) for part in content or ()]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """One message part; an address is passed on as fileData, never fetched by us."""
    kind = part.get("type")
    if kind == "text":
        return {"text": part["text"]}
    if kind == "input_audio":
        audio = part["input_audio"]
        return {"inlineData": {"data": audio["data"], "mimeType": f"audio/{audio['format']}"}}
    if kind in ("image_url", "file"):
        value = part[kind]
        url = value if isinstance(value, str) else value.get("url") or value.get("file_data") or ""
        if found := data_url(url):
            return {"inlineData": {"data": found[1], "mimeType": found[0]}}
        guessed = mimetypes.guess_type(urllib.parse.urlsplit(url).path)[0]
        return {"fileData": {"fileUri": url, **({"mimeType": guessed} if guessed else {})}}
    raise KeifuError(f"gemini takes no message part of type {kind!r}")


def _tool_result(message: Message, names: Mapping[str, str], index: int) -> dict[str, Any]:
    call = message["tool_call_id"]
    if call not in names:
        raise KeifuError(f"message {index} answers the tool call {call!r}, which nobody made")
    text = text_of(message.get("content"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    response = value if isinstance(value, dict) else {"result": text}
    return {"functionResponse": {"name": names[call], "response": response}}


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    declared = {k: function[k] for k in ("description", "name") if k in function}
    if schema := function.get("parameters"):
        declared["parametersJsonSchema"] = schema
    return declared


def _tool_choice(choice: str | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(choice, str):
        return {"mode": "ANY", "allowedFunctionNames": [choice["function"]["name"]]}
    modes = {"auto": "AUTO", "required": "ANY", "none": "NONE"}
    if choice not in modes:
        raise KeifuError(f"tool_choice={choice!r}: give auto, none, required or a function")
    return {"mode": modes[choice]}


def _format(response_format: Mapping[str, Any] | None) -> dict[str, Any]:
    kind = (response_format or {}).get("type", "text")
    if kind == "text":
        return {}
    settings: dict[str, Any] = {"responseMimeType": "application/json"}
    if response_format and kind == "json_schema":
        settings["responseJsonSchema"] = response_format["json_schema"]["schema"]
    return settings


class GeminiDecoder:
    """Reads chunks of candidates; thoughts are not part of the answer's text."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._finish: dict[int, FinishReason] = {}
        self._called: set[int] = set()
        self._usage = Usage()

    def feed(self, event: Event) -> Iterable[Delta]:
        """Text, tool calls and log-probabilities of one chunk."""
        chunk = self._transport.decode(event.data)
        try:
            if isinstance(chunk, list) or "error" in chunk:
                raise self._transport.failure(0, chunk)
            if reason := (chunk.get("promptFeedback") or {}).get("blockReason"):
                raise RemoteError(f"gemini refused the prompt: {self._transport.clean(reason)}")
            if usage := chunk.get("usageMetadata"):
                self._usage = _usage(usage)
            for candidate in chunk.get("candidates") or ():
                yield from self._candidate(candidate)
        except (LookupError, TypeError, AttributeError, ValueError):
            raise RemoteError(f"the server sent a malformed chunk: {event.data[:80]!r}") from None

    def _candidate(self, candidate: Mapping[str, Any]) -> Iterable[Delta]:
        index = int(candidate.get("index", 0))
        parts = (candidate.get("content") or {}).get("parts") or ()
        text = "".join(p["text"] for p in parts if "text" in p and not p.get("thought"))
        calls = [p["functionCall"] for p in parts if "functionCall" in p]
        found = []
        for call in calls:
            self._called.add(index)
            name = call.get("id") or f"call_{secrets.token_hex(8)}"
            found.append(ToolCall(name, call["name"], json.dumps(call.get("args") or {})))
        logprobs = tuple(_logprobs(candidate.get("logprobsResult") or {}))
        if text or found or logprobs:
            yield Delta(index=index, text=text, tool_calls=tuple(found), logprobs=logprobs)
        if reason := candidate.get("finishReason"):
            self._finish[index] = _FINISH.get(reason, "error")

    def end(self) -> Iterable[Delta]:
        """One last delta an output; the first carries the whole usage."""
        if not self._finish:
            raise RemoteError("the server broke off its answer before the end")
        for place, index in enumerate(sorted(self._finish)):
            finish = self._finish[index]
            if finish == "stop" and index in self._called:
                finish = "tool_calls"
            usage = self._usage if place == 0 else Usage(self._usage.prompt_tokens)
            yield Delta(index=index, finish=finish, usage=usage)


def _usage(value: Mapping[str, Any]) -> Usage:
    """Thinking is paid for and counted as output."""
    made = int(value.get("candidatesTokenCount") or 0) + int(value.get("thoughtsTokenCount") or 0)
    cached = int(value.get("cachedContentTokenCount") or 0)
    return Usage(int(value.get("promptTokenCount") or 0), made, cached)


def _logprobs(value: Mapping[str, Any]) -> Iterable[TokenLogprob]:
    tops = value.get("topCandidates") or ()
    for place, item in enumerate(value.get("chosenCandidates") or ()):
        others = tops[place].get("candidates") or () if place < len(tops) else ()
        yield _entry(item, tuple(_entry(other) for other in others))


def _entry(item: Mapping[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    token = item.get("token", "")
    probability = float(item["logProbability"])
    return TokenLogprob(int(item.get("tokenId", -1)), token, probability, top, token.encode())
