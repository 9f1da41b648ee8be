"""A POST route: admit, read, validate, run while the client is there, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from keifu.lm.base import LM
from keifu.server.bodies import Body
from keifu.server.errors import ApiError, render, shown, translate
from keifu.server.gate import Gate
from keifu.server.generate import Call
from keifu.server.intake import Gone, parse, read_body
from keifu.server.models import Models
from keifu.server.options import ignored
from keifu.server.settings import Access, Compat, Limits
from keifu.server.sse import HEADERS, Events, SlowReader, send_events

B = TypeVar("B", bound=Body)
Reply = dict[str, Any] | Events
Handler = Callable[[Call, LM, B], Awaitable[Reply]]


@dataclass(frozen=True)
class Service:
    """What every route shares."""

    models: Models
    gate: Gate
    limits: Limits
    access: Access
    strict: bool = False
    compat: Compat = "vllm"


class Post(Generic[B]):
    """One POST route as an ASGI application."""

    def __init__(self, service: Service, kind: type[B], handler: Handler[B]) -> None:
        self._service, self._kind, self._handler = service, kind, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors before the answer starts are raised to the guard."""
        service = self._service
        with service.gate.admit():
            await asyncio.sleep(0)  # whoever came with it and is refused hears so before any work
            try:
                raw = await read_body(Headers(scope=scope), receive, service.limits)
            except Gone:
                service.gate.cancelled += 1
                return
            body = await parse(self._kind, raw, service.limits)
            call = Call(
                id=scope["state"]["request_id"],
                gate=service.gate,
                limits=service.limits,
                tally=service.models.find(body.model).tally,
                deadline=asyncio.get_running_loop().time() + service.limits.deadline,
                ignored=ignored(body, service.strict),
            )
            answer = self._answer(call, body, scope, receive, send)
            try:
                stayed = await until_disconnect(receive, answer)
            except SlowReader:
                service.gate.cancelled += 1
                raise
            if not stayed:
                service.gate.cancelled += 1

    async def _answer(
        self, call: Call, body: B, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers: dict[str, str] = {}
        if call.ignored:
            headers["x-ignored-params"] = ", ".join(map(header_word, call.ignored[:50]))

        def explain(error: BaseException) -> tuple[int, dict[str, Any]]:
            return render(translate(error, call.id, scope["path"]), scope["path"])

        try:
            async with (
                asyncio.timeout_at(call.deadline + call.limits.grace) as limit,
                self._service.models.lend(body.model) as lm,
            ):
                reply = await self._handler(call, lm, body)
                if isinstance(reply, Events):
                    await send_events(send, reply, HEADERS | headers, call.limits, explain)
                else:
                    await JSONResponse(reply, headers=headers)(scope, receive, send)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ApiError(503, "the request took too long", code="overloaded") from None


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Run the work until it ends or the client leaves; False if it left."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def header_word(name: str) -> str:
    """A field's name fit for a header: a client may have sent anything as one."""
    plain = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name[:64] if plain else shown(name, 32).encode("ascii", "replace").decode()
