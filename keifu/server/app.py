"""The HTTP application: routes over models that are lent, behind one guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from keifu.server import bodies, tokens
from keifu.server.anthropic import CountBody, MessagesBody
from keifu.server.chat import chat
from keifu.server.completions import completions
from keifu.server.embeddings import embeddings
from keifu.server.endpoint import Post, Service
from keifu.server.gate import Gate
from keifu.server.guard import Guard
from keifu.server.health import Everyone, alone, health
from keifu.server.messages import count_tokens, messages
from keifu.server.metrics import metrics
from keifu.server.models import Models
from keifu.server.settings import Access, Compat, Limits


def service(
    models: Models,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    strict: bool,
    compat: Compat = "vllm",
) -> Service:
    """Everything the routes share, made of the models and the settings."""
    bounds = limits or Limits()
    return Service(models, Gate(bounds), bounds, access or Access(), strict, compat)


def build(
    shared: Service,
    on_loaded: Callable[[], None] = lambda: None,
    everyone: Everyone | None = None,
) -> ASGIApp:
    """The application; it loads the first model in the background and then calls `on_loaded`.

    `everyone` asks all processes behind the address, where there is more than this one.
    """
    everyone = everyone or alone(shared)

    @asynccontextmanager
    async def life(app: Any) -> AsyncIterator[None]:
        async def load() -> None:
            await shared.models.start()
            on_loaded()

        task = asyncio.create_task(load())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await shared.models.close()

    def post(path: str, kind: type[bodies.Body], handler: Any) -> Route:
        return Route(path, Post(shared, kind, handler), methods=["POST"])

    routes = [
        post("/v1/chat/completions", bodies.ChatBody, chat),
        post("/v1/completions", bodies.CompletionBody, completions),
        post("/v1/embeddings", bodies.EmbeddingBody, embeddings),
        post("/v1/messages", MessagesBody, messages),
        post("/v1/messages/count_tokens", CountBody, count_tokens),
        Route("/v1/models", _models(shared)),
        Route("/v1/models/{name:path}/reload", _reload(shared), methods=["POST"]),
        Route("/v1/models/{name:path}", _model(shared)),
        Route("/health", health(everyone)),
        Route("/metrics", metrics(everyone, shared.compat)),
        Route("/ping", _ping),
        Route("/version", _version),
    ]
    for prefix in ("", "/v1"):
        routes += [
            post(f"{prefix}/tokenize", bodies.TokenizeBody, tokens.tokenize),
            post(f"{prefix}/detokenize", bodies.DetokenizeBody, tokens.detokenize),
            Route(f"{prefix}/tokenizer_info", tokens.tokenizer_info(shared)),
        ]
    router = Router(routes, redirect_slashes=False, default=_nothing, lifespan=life)
    return Guard(router, shared.access, shared.gate.answered)


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)


def _models(shared: Service) -> Callable[[Request], Any]:
    async def route(request: Request) -> JSONResponse:
        cards = [slot.card() for slot in shared.models.slots()]
        return JSONResponse({"object": "list", "data": cards})

    return route


def _model(shared: Service) -> Callable[[Request], Any]:
    async def route(request: Request) -> JSONResponse:
        return JSONResponse(shared.models.find(request.path_params["name"]).card())

    return route


def _reload(shared: Service) -> Callable[[Request], Any]:
    async def route(request: Request) -> JSONResponse:
        with shared.gate.admit():
            slot = await shared.models.reload(request.path_params["name"])
        return JSONResponse(slot.card())

    return route


async def _ping(request: Request) -> JSONResponse:
    return JSONResponse({})


async def _version(request: Request) -> JSONResponse:
    from keifu import __version__

    return JSONResponse({"version": __version__})
