"""From request fields to the LM's options, and the list of fields that had no effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keifu.inference.constraint import Constraint, ConstraintError
from keifu.inference.request import Message, ParameterError
from keifu.lm.base import LM
from keifu.server.bodies import (
    IGNORED,
    REFUSED,
    Body,
    ChatBody,
    ChatMessage,
    CompletionBody,
    Function,
    Part,
    Sampled,
)
from keifu.server.errors import bad, shown

SAME = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "n", "ignore_eos", "min_tokens",
    "prompt_logprobs", "priority", "cache_salt",
)  # fmt: skip
RESERVED = frozenset({"messages", "prompt", "special", "parse", "tools", "continue_final", "self"})
"""What a chat template gets from elsewhere."""
RENAMED = {
    "repetition_penalty": "repeat_penalty",
    "max_tokens": "max_completion_tokens",
    "stop_ids": "stop_token_ids",
    "logprobs": "top_logprobs",
}
"""LM options that a request may have asked for under another name."""


def ignored(body: Body, strict: bool) -> list[str]:
    """Names of the fields that have no effect; 400 for those that may not be lost."""
    extra = body.unknown()
    for name, value in extra.items():
        if name in REFUSED and value not in ("", False, [], {}):
            raise bad(f"{name} is not supported by this server", name, "unsupported_parameter")
        if strict and name not in IGNORED:
            text = f"unknown field {shown(name)}; without --strict it would be ignored"
            raise bad(text, name[:80], "unsupported_parameter")
    return list(extra)


def sampling(body: Sampled) -> dict[str, Any]:
    """Sampling options that were set; the model's own defaults stand for the others."""
    found = {name: getattr(body, name) for name in SAME if getattr(body, name) is not None}
    if body.repeat_penalty is not None:
        found["repetition_penalty"] = body.repeat_penalty
    if body.stop:
        found["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    elif body.stop == "":
        raise bad("stop is an empty string, which ends nothing", "stop")
    if body.stop_token_ids:
        found["stop_ids"] = tuple(body.stop_token_ids)
    if body.skip_special_tokens is not None:
        found["show_special"] = not body.skip_special_tokens
    if body.include_stop_str_in_output is not None:
        found["include_stop"] = body.include_stop_str_in_output
    if body.logit_bias:
        found["logit_bias"] = _biases(body.logit_bias)
    return found


def checked(options: Mapping[str, Any], body: Body, lm: LM) -> None:
    """Refuse at once, before any waiting, what is out of bounds, by the request's own name."""
    try:
        lm.sampling(options)
    except ParameterError as error:
        other = RENAMED.get(error.parameter, "")
        if getattr(body, other, None) is not None:
            raise bad(str(error).replace(error.parameter, other, 1), other) from None
        raise


def _biases(given: Mapping[str, Any]) -> dict[int, float]:
    for key, value in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise bad(f"logit_bias has {shown(key)}, which is no token id", "logit_bias")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise bad(f"logit_bias of {key} is no number", "logit_bias")
    return {int(key): float(value) for key, value in given.items()}


def completion(body: CompletionBody, lm: LM) -> dict[str, Any]:
    """Options of a text completion."""
    options = sampling(body)
    options["max_tokens"] = 16 if body.max_tokens is None else body.max_tokens
    if (wanted := constraint(body)) is not None:
        options["constraint"] = wanted
    if body.logprobs is not None:
        options["logprobs"] = body.logprobs
        if body.echo and body.prompt_logprobs is None:
            options["prompt_logprobs"] = body.logprobs
    if body.best_of is not None:
        if body.best_of < options.get("n", 1):
            raise bad(f"best_of={body.best_of} is less than n", "best_of")
        if body.stream:
            raise bad("best_of cannot be streamed: the best is known at the end", "best_of")
        options["n"] = body.best_of
        options.setdefault("logprobs", 0)
    checked(options, body, lm)
    return options


def chat(body: ChatBody, lm: LM) -> dict[str, Any]:
    """Options of a chat: sampling, tools, format and template."""
    options = sampling(body)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if limit is not None:
        options["max_tokens"] = limit
    if body.top_logprobs is not None and not body.logprobs:
        raise bad("top_logprobs needs logprobs: true", "top_logprobs")
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    checked(options, body, lm)
    tools = [tool.function for tool in body.tools or ()] or list(body.functions or ())
    choice = body.tool_choice if body.function_call is None else body.function_call
    if tools:
        options |= tool_options([described(tool) for tool in tools], choice)
    elif choice not in (None, "none", "auto"):
        raise bad("tool_choice is set, but there are no tools", "tool_choice")
    if (wanted := constraint(body)) is not None:
        format = wanted.as_format()
        options |= {"response_format": format} if format else {"constraint": wanted}
    template = dict(body.chat_template_kwargs or {})
    if taken := RESERVED & template.keys():
        text = f"chat_template_kwargs may not set {', '.join(sorted(taken))}"
        raise bad(text, "chat_template_kwargs")
    if body.add_generation_prompt is not None:
        template["add_generation_prompt"] = body.add_generation_prompt
    if template:
        options["template_options"] = template
    if body.continue_final_message:
        options["continue_final"] = True
    return options


def described(tool: Function) -> dict[str, Any]:
    """A tool in OpenAI's shape, without the fields that were left out."""
    return {"type": "function", "function": tool.model_dump(exclude_none=True)}


def tool_options(tools: list[dict[str, Any]], choice: Any) -> dict[str, Any]:
    """`tools` and `tool_choice`, the choice checked against the tools."""
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) != len(names):
        raise bad("two tools have the same name", "tools")
    match choice:
        case None:
            choice = "auto"
        case "none" | "auto" | "required":
            pass
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(allowed)}}:
            kept = {_name(item) for item in allowed}
            tools = [tool for tool in tools if tool["function"]["name"] in kept]
            if not tools or mode not in ("auto", "required"):
                raise bad("allowed_tools names none of the tools, or no mode", "tool_choice")
            choice = mode
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            if name not in names:
                raise bad(f"tool_choice names {shown(name)}, not one of the tools", "tool_choice")
            choice = {"type": "function", "function": {"name": name}}
        case _:
            text = 'tool_choice is "none", "auto", "required" or one function'
            raise bad(text, "tool_choice")
    return {"tools": tools, "tool_choice": choice}


def _name(item: object) -> str:
    match item:
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            return name
        case _:
            raise bad("allowed_tools has an entry without a name", "tool_choice")


def constraint(body: Sampled) -> Constraint | None:
    """What the output must be, under the name that the request has for it; None for any text."""
    given = [name for name in _CONSTRAINTS if getattr(body, name) is not None]
    if body.response_format == {"type": "text"}:
        given.remove("response_format")
    if len(given) > 1:
        raise bad(f"{given[0]} and {given[1]} both say what the output must be", given[1])
    if not given:
        return None
    name = given[0]
    try:
        return _CONSTRAINTS[name](getattr(body, name))
    except ConstraintError as error:
        raise bad(f"{name}: {error}", name) from None


def _format(given: dict[str, Any]) -> Constraint:
    match given:
        case {"type": "json_object"}:
            return Constraint.json()
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return Constraint.json(schema)
        case _:
            text = 'response_format has type "text", "json_object" or "json_schema" with a schema'
            raise bad(text, "response_format")


def _structured(given: dict[str, Any]) -> Constraint:
    match {name: value for name, value in given.items() if value is not None}:
        case {"json": dict() | str() as schema, **rest} if not rest:
            return Constraint.json(schema)
        case {"json_object": True, **rest} if not rest:
            return Constraint.json()
        case {"regex": str(pattern), **rest} if not rest:
            return Constraint.regex(pattern)
        case {"choice": list(options), **rest} if not rest:
            return Constraint.choice(options)
        case {"grammar": str(text), **rest} if not rest:
            return Constraint.grammar(text)
        case _:
            text = "structured_outputs has one of json, json_object, regex, choice, grammar"
            raise bad(text, "structured_outputs")


_CONSTRAINTS: dict[str, Callable[[Any], Constraint]] = {
    "response_format": _format,
    "structured_outputs": _structured,
    "guided_json": Constraint.json,
    "guided_regex": Constraint.regex,
    "guided_choice": Constraint.choice,
    "guided_grammar": Constraint.grammar,
    "json_schema": Constraint.json,
    "grammar": Constraint.grammar,
}
"""Fields that constrain the output: OpenAI's, vLLM's, its older ones, llama.cpp's."""


def conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """Messages as chat templates know them: plain text, roles of today."""
    return [_message(message) for message in messages]


def _message(message: ChatMessage) -> Message:
    roles = {"developer": "system", "function": "tool"}
    found: dict[str, Any] = {
        "role": roles.get(message.role, message.role),
        "content": _text(message.content),
    }
    calls = [call.model_dump() for call in message.tool_calls or ()]
    if message.function_call is not None:
        called = message.function_call.model_dump()
        calls.append({"id": message.function_call.name, "type": "function", "function": called})
    if calls:
        found["tool_calls"] = calls
    if message.role == "function" and message.name:
        found["tool_call_id"] = message.name
    for field in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, field)) is not None:
            found[field] = value
    return found


def _text(content: str | Sequence[Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in ("text", "refusal"):
            text = f"this model reads text alone, not {shown(part.type)}"
            raise bad(text, "messages", "unsupported_content")
    return "\n".join(part.text or part.refusal or "" for part in content)
