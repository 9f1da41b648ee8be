"""Errors of the HTTP API: one value, two dialects (OpenAI's and Anthropic's), one translation."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.inference.admission import STARVED, starved
from keifu.inference.crew import Lost
from keifu.inference.request import ParameterError
from keifu.nn.pages import OutOfState

log = logging.getLogger("keifu.server")

OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "service_unavailable",
}
ANTHROPIC_TYPES = {**OPENAI_TYPES, 500: "api_error", 503: "overloaded_error"}


class ApiError(Exception):
    """An answer that is not 200: its status, its words, and whether to try again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after, self.retry = retry_after, retry

    @property
    def reason(self) -> str:
        """One of the few words that errors are counted under."""
        return self.code or OPENAI_TYPES.get(self.status, "server_error")

    def headers(self) -> dict[str, str]:
        """What tells a client library when to try again, and when not to."""
        found: dict[str, str] = {}
        if self.retry_after is not None:
            found["retry-after"] = str(self.retry_after)
        if self.retry is not None:
            found["x-should-retry"] = "true" if self.retry else "false"
        if self.status in (408, 413):  # part of the body may still be on its way
            found["connection"] = "close"
        return found


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that its sender can mend (400)."""
    return ApiError(400, message, param=param, code=code)


def shown(name: str, length: int = 80) -> str:
    """A client's own words fit to be sent back to it: escaped, cut short."""
    text = name if len(name) <= length else name[:length] + "…"
    return ascii(text) if not text.isprintable() else repr(text)


PROMPT_FIELDS = {"/v1/completions": "prompt", "/v1/embeddings": "input"}


def translate(error: BaseException, request_id: str, path: str) -> ApiError:
    """The API's answer for anything raised; what is not the user's to mend is a bug (500)."""
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            field = PROMPT_FIELDS.get(path, "messages")
            return bad(str(error), field, "context_length_exceeded")
        case ParameterError():
            name = "stop_token_ids" if error.parameter == "stop_ids" else error.parameter
            return bad(str(error).replace(error.parameter, name, 1), name)
        case OutOfState() | Lost():
            return ApiError(503, str(error), code="overloaded", retry_after=1)
        case _ if starved(error):
            return ApiError(503, STARVED, code="overloaded", retry_after=1)
        case KeifuError():
            return bad(str(error))
        case HTTPException(status_code=404):
            return ApiError(404, "no such route: GET /v1/models and the README list what there is")
        case HTTPException():
            return ApiError(error.status_code, error.detail)
        case _:
            log.error("request %s failed", request_id, exc_info=error)
            return ApiError(500, f"a bug in the server; its log tells more under {request_id}")


def is_anthropic(path: str) -> bool:
    """Whether a route speaks Anthropic's dialect."""
    return path.startswith("/v1/messages")


def render(error: ApiError, path: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON body in the dialect of the route."""
    if is_anthropic(path):
        status = 529 if error.status == 503 else error.status
        kind = ANTHROPIC_TYPES.get(error.status, "api_error")
        return status, {"type": "error", "error": {"type": kind, "message": error.message}}
    return error.status, {
        "error": {
            "message": error.message,
            "type": OPENAI_TYPES.get(error.status, "server_error"),
            "param": error.param,
            "code": error.code,
        }
    }
