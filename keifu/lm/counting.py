"""Token counts of OpenAI's chat models without asking the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keifu.inference.request import Message
from keifu.lm.errors import UncountableError


def chat_tokens(messages: Sequence[Message], encode: Callable[[str], Sequence[int]]) -> int:
    """Tokens of a conversation for the vendor's chat models since gpt-3.5-turbo-0613.

    Each message costs 3 and each name 1 more, and the answer is primed with 3 (OpenAI cookbook,
    "How to count tokens with tiktoken"). Images, tool calls and their results are not published.
    """
    total = 3
    for message in messages:
        total += 3
        for key, value in message.items():
            if key == "content" and isinstance(value, Sequence) and not isinstance(value, str):
                if any(part.get("type") != "text" for part in value):
                    raise UncountableError("images and sounds are not counted here")
                total += sum(len(encode(part["text"])) for part in value)
            elif isinstance(value, str):
                total += len(encode(value)) + (key == "name")
            elif value is not None:
                raise UncountableError("OpenAI does not publish how tool calls are counted")
    return total


def published_tokenizer(model: str) -> Callable[[str], Sequence[int]]:
    """The vendor's published tokenizer; text that looks like a special token is plain text."""
    try:
        import tiktoken
    except ModuleNotFoundError as error:
        if error.name != "tiktoken":
            raise
        raise UncountableError(
            f"counting tokens for {model} needs tiktoken: pip install 'keifu[text]'"
        ) from None
    try:
        encoding = tiktoken.encoding_for_model(model)
    except KeyError:
        raise UncountableError(f"no tokenizer is published for {model}: pass tokenizer=") from None
    except OSError as error:
        raise UncountableError(f"the tokenizer of {model} cannot be fetched: {error}") from None
    return lambda text: encoding.encode(text, disallowed_special=())
