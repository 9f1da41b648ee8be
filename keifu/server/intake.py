"""Reading a request body: bounded in bytes, seconds and depth, and strict about JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import Receive

from keifu.server.bodies import Body
from keifu.server.errors import ApiError, bad
from keifu.server.settings import Limits

B = TypeVar("B", bound=Body)

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A string, closed or not: were the end needed, each quote of an unclosed one would be tried."""

_NOT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_OFF_THREAD = 256 * 1024


class Gone(Exception):
    """The client left before its request was whole: there is nobody to answer."""


async def read_body(headers: Headers, receive: Receive, limits: Limits) -> bytes:
    """The whole body; 415, 413 or 408 where it is not one we take."""
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send the body as JSON, with content-type: application/json")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "compressed bodies are not taken: send it without content-encoding")
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await _receive_all(headers, receive, limits.body_bytes)
    except TimeoutError:
        message = f"the body took longer than {limits.body_seconds:g} s to arrive"
        raise ApiError(408, message, retry=False) from None


async def _receive_all(headers: Headers, receive: Receive, limit: int) -> bytes:
    declared = headers.get("content-length", "0")
    size = 0
    parts: list[bytes] = []
    too_large = declared.isdecimal() and int(declared[:20]) > limit
    until = time.monotonic() + 5.0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        piece = message.get("body", b"")
        size += len(piece)
        too_large = too_large or size > limit
        more = message.get("more_body", False)
        if too_large:
            # A client reads no answer while it still writes, so read on a little, keeping nothing.
            parts.clear()
            if not more or size > 16 * limit or time.monotonic() > until:
                raise ApiError(413, f"the body is larger than {limit} bytes", retry=False)
            continue
        parts.append(piece)
        if not more:
            return b"".join(parts)


async def parse(kind: type[B], raw: bytes, limits: Limits) -> B:
    """The bytes as a body of this type, in a thread if there are many."""

    def work() -> B:
        return validate(kind, parse_json(raw, limits.depth))

    return await asyncio.to_thread(work) if len(raw) > _OFF_THREAD else work()


def parse_json(raw: bytes, depth: int) -> dict[str, Any]:
    """Strict JSON: UTF-8, no NaN or infinity, no key twice, no half of a surrogate pair."""
    if (deep := nesting(raw)) > depth:
        raise bad(f"the body nests {deep} deep; {depth} is allowed")
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_distinct,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
    except UnicodeDecodeError as error:
        raise bad(f"the body is not UTF-8: byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise bad(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:
        raise bad(f"the body is not JSON that is taken here: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise bad("the body is not a JSON object")
    if b"\\u" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise bad("the body has half of a surrogate pair, which is no character") from None
    return value


def nesting(raw: bytes) -> int:
    """How deep brackets nest outside strings; linear in the body, whatever is in it."""
    brackets = _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS)
    if not brackets:
        return 0
    codes = np.frombuffer(brackets, dtype=np.uint8)
    opening = (codes == ord("[")) | (codes == ord("{"))
    steps = np.where(opening, 1, -1).astype(np.int32)
    return int(np.cumsum(steps, dtype=np.int32).max())


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _bounded(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"{text[:40]}… is too large a number")
    return int(text)


def validate(kind: type[B], value: dict[str, Any]) -> B:
    """The body as its type; every field that is wrong is named, the first one in `param`."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults: dict[str, str] = {}
        for fault in error.errors(include_url=False, include_context=False, include_input=False):
            where = ".".join(str(part) for part in fault["loc"] if _is_field(part)) or "body"
            faults.setdefault(where[:120], fault["msg"])
            if len(faults) == 5:
                break
        param = next(iter(faults)).split(".")[0]
        text = "; ".join(f"{name}: {message}" for name, message in faults.items())
        raise bad(text, param) from None


def _is_field(part: int | str) -> bool:
    """Pydantic puts the branches of a union ("list[int]", "function-after[...]") in the path."""
    return isinstance(part, int) or (part.isidentifier() and part not in {"str", "int", "none"})
