"""POST /v1/embeddings: one vector a text, as floats or base64, cut to fewer dimensions if asked."""

from __future__ import annotations

import base64
import math

import numpy as np

from keifu.lm.base import LM, Prompt
from keifu.server.bodies import EmbeddingBody
from keifu.server.completions import prompts
from keifu.server.endpoint import Reply
from keifu.server.errors import bad
from keifu.server.generate import Call, in_thread

BATCH = 32


async def embeddings(call: Call, lm: LM, body: EmbeddingBody) -> Reply:
    """Embed one or many texts; `pooling` says how a vector was made of a text."""
    texts = prompts(body.input, "input")
    if any(len(text) == 0 for text in texts):
        raise bad("input has an empty text, which has no vector", "input")
    vectors: list[list[float]] = []
    async with call.gate.place(call.deadline):
        tokens = await in_thread(lambda: sum(_count(lm, text) for text in texts))
        for start in range(0, len(texts), BATCH):  # between batches a client that left is noticed
            vectors += await lm.aembed(texts[start : start + BATCH])
    if body.dimensions is not None:
        if body.dimensions > len(vectors[0]):
            text = f"dimensions={body.dimensions}; this model's vectors have {len(vectors[0])}"
            raise bad(text, "dimensions")
        vectors = [_shorter(vector, body.dimensions) for vector in vectors]
    encode = _base64 if body.encoding_format == "base64" else list
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": encode(vector)}
            for i, vector in enumerate(vectors)
        ],
        "model": body.model or lm.name,
        "pooling": lm.pooling,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _count(lm: LM, text: Prompt) -> int:
    return lm.count_tokens(text) if isinstance(text, str) else len(text)


def _shorter(vector: list[float], size: int) -> list[float]:
    """The first `size` numbers, at length one again."""
    cut = vector[:size]
    norm = math.sqrt(sum(x * x for x in cut))
    return [x / norm for x in cut] if norm else cut


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as the openai client reads it."""
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
