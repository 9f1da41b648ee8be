"""POST /v1/completions: texts or token ids in, `echo`, prompt log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from keifu.inference.request import Choice, Completion, Delta, TokenLogprob, Usage
from keifu.inference.stream import collect
from keifu.lm.base import LM, Prompt
from keifu.server import logprobs, options
from keifu.server.bodies import CompletionBody
from keifu.server.chat import add_usage, head, usage_body
from keifu.server.endpoint import Reply
from keifu.server.errors import bad
from keifu.server.generate import Call, Start, in_thread, many
from keifu.server.sse import DONE, Events, data

_END = (TokenLogprob(-1, "", None),)
"""Stands for an output that ended before its first token: lm_eval counts one entry after the
prompt's and drops it."""


def prompts(given: str | list[Any], field: str) -> list[Prompt]:
    """One text or id list, or several, as a list of prompts."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [given]
    if not given:
        raise bad(f"{field} is an empty list", field)
    return given


@dataclass(frozen=True)
class _Ask:
    """A request once its prompts and options are known."""

    body: CompletionBody
    top: dict[str, Any]
    echoes: list[str]
    """What to put before each output: the prompts' texts, or nothing."""
    starts: list[Start]
    keep: int
    """Outputs to return for each prompt."""


async def completions(call: Call, lm: LM, body: CompletionBody) -> Reply:
    """Continue one or many prompts; choices are numbered prompt by prompt."""
    given = prompts(body.prompt, "prompt")
    wanted = options.completion(body, lm)
    if body.echo and lm.text_to_text:
        raise bad(
            f"echo: {lm.name} does not continue its prompt, so there is no text to join", "echo"
        )
    echoes = await in_thread(lambda: [_text(lm, p) for p in given]) if body.echo else []
    ask = _Ask(
        body=body,
        top=head("text_completion", "cmpl", body.model or lm.name),
        echoes=echoes or [""] * len(given),
        starts=[Start(lm.complete_stream, prompt, wanted) for prompt in given],
        keep=1 if body.n is None else body.n,
    )
    if body.stream:
        return Events(_chunks(call, ask))
    deltas: list[list[Delta]] = [[] for _ in given]
    async for index, delta in many(call, ask.starts):
        deltas[index].append(delta)
    return _whole(ask, [collect(each) for each in deltas])


def _text(lm: LM, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else lm.decode(prompt)


def _whole(ask: _Ask, done: list[Completion]) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    usage = Usage()
    for echo, each in zip(ask.echoes, done, strict=True):
        usage = Usage(
            prompt_tokens=usage.prompt_tokens + each.usage.prompt_tokens,
            completion_tokens=usage.completion_tokens + each.usage.completion_tokens,
            cached_tokens=usage.cached_tokens + each.usage.cached_tokens,
        )
        prompt = each.prompt_logprobs or ()
        for choice in _best(each.choices, ask.keep):
            scores = None
            if ask.body.logprobs is not None:
                tokens = choice.logprobs
                if ask.body.echo:
                    tokens = (*prompt, *(tokens or _END[: ask.body.max_tokens]))
                scores = logprobs.completion(tokens)
            entry = _choice(len(choices), echo + choice.text, scores, choice.finish)
            entry["stop_reason"] = choice.stop
            if ask.body.prompt_logprobs is not None:
                entry["prompt_logprobs"] = logprobs.prompt(prompt)
            choices.append(entry)
    return ask.top | {"choices": choices, "usage": usage_body(usage)}


def _best(choices: tuple[Choice, ...], keep: int) -> list[Choice]:
    """The `keep` outputs whose tokens are likeliest on average, best first."""
    if keep == len(choices):
        return list(choices)

    def mean(choice: Choice) -> float:
        scores = [t.logprob for t in choice.logprobs if t.logprob is not None]
        return sum(scores) / len(scores) if scores else 0.0

    return sorted(choices, key=mean, reverse=True)[:keep]


def _choice(
    index: int, text: str, scores: dict[str, Any] | None, finish: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": finish}


async def _chunks(call: Call, ask: _Ask) -> AsyncGenerator[str, None]:
    body = ask.body
    extra: dict[str, Any] = {}
    if body.stream_options and body.stream_options.include_usage:
        extra["usage"] = None
    usages = [Usage() for _ in ask.starts]
    offsets: dict[int, int] = {}
    prompt_scores: dict[int, Any] = {}
    async with aclosing(many(call, ask.starts)) as deltas:
        async for which, delta in deltas:
            index = which * ask.keep + delta.index
            scored, text = delta.logprobs, delta.text
            if delta.prompt_logprobs is not None:
                prompt_scores[which] = delta.prompt_logprobs
            if index not in offsets:
                offsets[index] = 0
                text = ask.echoes[which] + text
                if body.echo:
                    scored = (*prompt_scores.get(which, ()), *scored)
            scores = None
            if body.logprobs is not None:
                scores = logprobs.completion(scored, offsets[index])
                offsets[index] += sum(len(token.token) for token in scored)
            if text or scored or delta.finish:
                choice = _choice(index, text, scores, delta.finish)
                yield data(ask.top | {"choices": [choice]} | extra)
            if delta.finish:
                usages[which] = add_usage(usages[which], delta)
    if extra:
        total = Usage(
            prompt_tokens=sum(u.prompt_tokens for u in usages),
            completion_tokens=sum(u.completion_tokens for u in usages),
            cached_tokens=sum(u.cached_tokens for u in usages),
        )
        yield data(ask.top | {"choices": [], "usage": usage_body(total)})
    yield DONE
