"""Prompts of a wanted length, cut out of real text."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from keifu.core.errors import KeifuError
from keifu.lm.errors import RemoteError
from keifu.lm.openai import OpenAILM
from keifu.lm.transport import submit

MOST_BYTES = 64 << 20
CHARACTERS = 400_000
"""Of the text, that prompts are cut from."""
PIECE = 20_000
"""Characters that are tokenized at once."""
GUESS = 4.0
"""Characters of a token, where the server does not tell."""


def source_text(path: Path | None) -> str:
    """A file's text, or Python's documentation of itself; white space as single spaces."""
    if path is None:
        from pydoc_data.topics import topics

        return " ".join(" ".join(topics.values()).split())
    try:
        if path.stat().st_size > MOST_BYTES:
            raise KeifuError(f"--text {path} has over {MOST_BYTES >> 20} MiB: give a part of it")
        text = " ".join(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as wrong:
        raise KeifuError(f"--text {path} cannot be read: {wrong}") from None
    if not text:
        raise KeifuError(f"--text {path} holds no text")
    return text


@dataclass(frozen=True)
class Texts:
    """A text that prompts are cut from: its characters, or the served model's ids of them."""

    whole: str | list[int]
    per_token: float = 1.0
    """Elements of `whole` that make a token."""
    told: str = ""
    """How long prompts are, in a few words."""

    @classmethod
    def of(cls, lm: OpenAILM, text: str, *, ids: bool) -> Texts:
        """As the server cuts it, where it has `/tokenize`; else by characters."""
        text = text[:CHARACTERS]
        try:
            found = submit(_tokenize(lm, text)).result()
        except (RemoteError, LookupError, TypeError, ValueError):
            why = f"text, {GUESS:g} characters a token: the server does not tokenize"
            return cls(text, GUESS, why)
        if ids:
            return cls(found, 1.0, "token ids of the text")
        return cls(text, len(text) / len(found), "text, by its mean characters a token")

    def cut(self, tokens: int, shared: float, draw: random.Random) -> str | list[int]:
        """A prompt of so many tokens; the shared part is the text's beginning, the rest any."""
        size = max(round(tokens * self.per_token), 1)
        same = round(size * shared)
        start, n = draw.randrange(len(self.whole)), len(self.whole)
        places = [i % n for i in (*range(same), *range(start, start + size - same))]
        if isinstance(self.whole, str):
            text = self.whole
            return "".join(text[i] for i in places)
        ids = self.whole
        return [ids[i] for i in places]


async def _tokenize(lm: OpenAILM, text: str) -> list[int]:
    """The de-facto tokenizer route beside /v1 (vLLM's `prompt`, llama-server's `content`)."""
    transport, found = lm.transport, list[int]()
    root = transport.connection.url.removesuffix("/v1")
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        body = {"model": lm.model, "prompt": piece, "content": piece, "add_special_tokens": False}
        answer = await transport.json("POST", "/tokenize", body, root=root)
        found += [int(token) for token in answer["tokens"]]
    if not found:
        raise ValueError("no tokens")
    return found
