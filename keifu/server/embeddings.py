"""POST /v1/embeddings: one vector a text, as floats or base64, cut to fewer dimensions if asked."""

from __future__ import annotations

import base64
import math

import numpy as np

from keifu.inference.request import Delta, Usage
from keifu.lm.base import LM, EmbedOptions
from keifu.server.bodies import EmbeddingBody
from keifu.server.completions import prompts
from keifu.server.endpoint import Reply
from keifu.server.errors import bad
from keifu.server.generate import Call


async def embeddings(call: Call, lm: LM, body: EmbeddingBody) -> Reply:
    """Embed one or many texts; `pooling` says how a vector was made of a text.

    A text that is too long is refused unless `truncate` asks for its end to be cut off; the reply
    then says of how many texts it was, in `truncated`.
    """
    texts = prompts(body.input, "input")
    if any(len(text) == 0 for text in texts):
        raise bad("input has an empty text, which has no vector", "input")
    _check_dimensions(lm, body.dimensions)
    options = EmbedOptions(
        truncate="end" if body.truncate in (True, "end") else "error",
        normalize=body.normalize,
        prompt=body.prompt_name,
    )
    with call.watch({}) as watch:
        async with call.gate.place(call.deadline):
            watch.placed()
            made = await lm.aembeddings(texts, options)
            watch.take(Delta(finish="stop", usage=Usage(made.tokens)))
    vectors = made.vectors
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
        **({"truncated": made.cut} if options.truncate == "end" else {}),
        "usage": {"prompt_tokens": made.tokens, "total_tokens": made.tokens},
    }


def _check_dimensions(lm: LM, wanted: int | None) -> None:
    """Refuse to cut the vectors of a model that was not trained for it."""
    allowed = lm.dimensions
    if wanted is None or allowed is None or wanted in allowed:
        return
    sizes = ", ".join(map(str, sorted(allowed)))
    text = f"dimensions={wanted}: this model's vectors can be cut to {sizes}"
    if not allowed:
        text = f"dimensions={wanted}: this model's vectors cannot be cut: leave dimensions out"
    raise bad(text, "dimensions")


def _shorter(vector: list[float], size: int) -> list[float]:
    """The first `size` numbers, at length one again."""
    cut = vector[:size]
    norm = math.sqrt(sum(x * x for x in cut))
    return [x / norm for x in cut] if norm else cut


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as the openai client reads it."""
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
