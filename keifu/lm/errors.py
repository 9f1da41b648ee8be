"""What can go wrong between us and a remote model, told apart where a caller acts differently."""

from __future__ import annotations

from keifu.core.errors import ContextLengthError, KeifuError


class RemoteError(KeifuError):
    """A remote model refused or failed; `status` is the HTTP status, or None if there was none."""

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        self.status, self.code = status, code
        super().__init__(message)


class AuthenticationError(RemoteError):
    """The key is missing, wrong or not allowed to use this model (401, 403)."""


class RateLimited(RemoteError):
    """Too many requests (429): `retry_after` is the wait in seconds the server asks for, if any."""

    def __init__(
        self, message: str, *, code: str | None = None, retry_after: float | None = None
    ) -> None:
        self.retry_after = retry_after
        super().__init__(message, status=429, code=code)


class RemoteTimeout(RemoteError):
    """The request, its retries and its whole answer took longer than the timeout."""


class RemoteContextLengthError(ContextLengthError):
    """The server found the prompt too long; the counts are 0 where it did not say them."""

    def __init__(self, message: str, prompt_tokens: int, context: int) -> None:
        KeifuError.__init__(self, message)
        self.prompt_tokens, self.context, self.requested = prompt_tokens, context, 0


class UncountableError(KeifuError):
    """Nobody but the server can say how many tokens this is, and it does not."""
