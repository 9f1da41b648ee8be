"""Log-probabilities in the three shapes that clients know: chat, completions, vLLM's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keifu.inference.request import TokenLogprob

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


def _value(logprob: float | None) -> float:
    return max(logprob if logprob is not None else LEAST, LEAST)


def chat(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""
    return {"content": [_entry(t) | {"top_logprobs": list(map(_entry, t.top))} for t in tokens]}


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": _value(token.logprob),
        "bytes": list(token.bytes or token.token.encode("utf-8", "replace")),
    }


def completion(tokens: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion; a prompt's first token has None.

    The token itself is always among its alternatives, with the very same float, and of two ids
    with one text the likelier counts, so that "the token has the largest value" means greedy.
    """
    texts: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for token in tokens:
        texts.append(token.token)
        offsets.append(offset)
        offset += len(token.token)
        if token.logprob is None:
            values.append(None)
            tops.append(None)
            continue
        values.append(_value(token.logprob))
        top = {token.token: _value(token.logprob)}
        for other in token.top:
            if other.id != token.id:
                value = _value(other.logprob)
                top[other.token] = max(value, top.get(other.token, value))
        tops.append(top)
    return {
        "tokens": texts,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def prompt(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token its id and the likeliest ids; None for the first."""
    found: list[dict[str, Any] | None] = []
    for token in tokens:
        if token.logprob is None:
            found.append(None)
            continue
        ranks = {other.id: rank for rank, other in enumerate(token.top, 1)}
        listed = {other.id: other for other in token.top} | {token.id: token}
        found.append(
            {
                str(key): {
                    "logprob": _value(other.logprob),
                    "rank": ranks.get(key),
                    "decoded_token": other.token,
                }
                for key, other in listed.items()
            }
        )
    return found
