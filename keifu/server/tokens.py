"""POST /tokenize and /detokenize, GET /tokenizer_info: the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from keifu.lm.base import LM
from keifu.server import options
from keifu.server.bodies import DetokenizeBody, TokenizeBody
from keifu.server.endpoint import Reply, Service
from keifu.server.errors import bad
from keifu.server.generate import Call, in_thread


async def tokenize(call: Call, lm: LM, body: TokenizeBody) -> Reply:
    """Ids of a text (with begin tokens unless add_special_tokens is false) or a conversation.

    Special tokens that are written out count as such unless parse_special is false: clients look
    up the end token's id this way, and send conversations that they rendered themselves.
    """
    text = body.prompt if body.prompt is not None else body.content
    if (text is None) == (body.messages is None):
        raise bad("give either prompt or messages", "prompt")
    if text is not None:
        # llama.cpp's `content` comes without begin tokens, vLLM's `prompt` with them.
        flag = body.add_special_tokens if body.prompt is not None else body.add_special
        special = body.prompt is not None if flag is None else flag
        plain, parse = text, body.parse_special is not False
        ids = await in_thread(lambda: lm.encode(plain, special=special, parse=parse))
    else:
        messages = options.conversation(body.messages or [])
        more: dict[str, Any] = {}
        if body.add_generation_prompt is not None:
            more["add_generation_prompt"] = body.add_generation_prompt
        ids = await in_thread(lambda: lm.encode(messages, **more))
    reply: dict[str, object] = {"tokens": ids, "count": len(ids), "max_model_len": lm.context}
    if body.return_token_strs:
        reply["token_strs"] = await in_thread(lambda: [lm.decode([token]) for token in ids])
    return reply


async def detokenize(call: Call, lm: LM, body: DetokenizeBody) -> Reply:
    """The text of ids, under vLLM's name and llama.cpp's."""
    text = await in_thread(lambda: lm.decode(body.tokens))
    return {"prompt": text, "content": text}


def tokenizer_info(service: Service) -> Callable[[Request], Awaitable[JSONResponse]]:
    """A route that tells the special tokens and the chat template of ?model=."""

    async def route(request: Request) -> JSONResponse:
        async with service.models.lend(request.query_params.get("model")) as lm:
            return JSONResponse(dict(lm.tokenizer_info()))

    return route
