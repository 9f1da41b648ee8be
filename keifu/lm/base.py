"""The LM interface: what every program above this floor is written against."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from keifu.core.errors import KeifuError, unknown
from keifu.inference.meter import Statistics
from keifu.inference.request import Completion, Message, ParameterError, Sampling, Score
from keifu.inference.stream import Stream

_BATCH = 32

Prompt = str | Sequence[int]
"""A text (special tokens in it are plain text) or token ids (taken as they are)."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What a chat request asks beyond sampling."""

    tools: Sequence[Mapping[str, Any]] = ()
    """Functions the model may call, in OpenAI's shape ({"type": "function", "function": {...}})."""
    tool_choice: str | Mapping[str, Any] = "auto"
    """"auto", "none", "required", or {"type": "function", "function": {"name": ...}}."""
    response_format: Mapping[str, Any] | None = None
    """{"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": ...}}."""
    template_options: Mapping[str, Any] | None = None
    """Extra variables for the chat template."""
    continue_final: bool = False
    """Continue the last assistant message instead of starting a new one."""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What an embedding request asks beyond its texts."""

    truncate: Literal["error", "end"] = "error"
    """What becomes of a text that is too long: an error that names it, or its end is cut off."""
    normalize: bool | None = None
    """Whether vectors are brought to length one; None: as the model was made."""
    prompt: str | None = None
    """Which of the model's instructions comes before every text, by name; None: its own default."""

    def __post_init__(self) -> None:
        if self.truncate not in ("error", "end"):
            raise ParameterError("truncate", self.truncate, '"error" or "end"')

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EmbedOptions:
        """From keyword arguments; one that is not known is an error that names those that are."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise unknown("option of an embedding", name, known)
        return cls(**options)


@dataclass(frozen=True)
class Embeddings:
    """One vector a text, and what they cost."""

    vectors: list[list[float]]
    tokens: int
    """Tokens that were read."""
    cut: int = 0
    """Texts whose end was cut off."""


class LM(ABC):
    """A language model, wherever it runs: this process, a server, a script of replies.

    Implementations give the four streaming or awaitable primitives (`complete_stream`,
    `chat_stream`, `ascore`, `aembed`); everything else is derived here. Keyword arguments of
    `complete` and `chat` are the fields of `Sampling` and, for chat, of `ChatOptions`; one left
    out takes the model's own default (`defaults`).
    """

    name: str
    """What the model is called in listings and responses."""
    context: int
    """Most tokens of prompt and output together."""
    defaults: Mapping[str, Any] = {}
    """Sampling fields that the checkpoint recommends."""
    pooling: str = "model"
    """How `aembed` makes its vectors: "mean" (of a decoder's last hidden states), "model"."""
    dimensions: Collection[int] | None = None
    """Sizes that its vectors may be cut to; None: any."""
    text_to_text: bool = False
    """Whether a prompt is read apart and the output is a text of its own (an encoder-decoder):
    nothing is continued, and `context` is the prompt's room."""
    has_template: bool = True
    """Whether the checkpoint says how a conversation is written; without, `chat` cannot work."""

    @abstractmethod
    def complete_stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Continue a prompt; read the stream with `for` or `async for`."""

    @abstractmethod
    def chat_stream(self, messages: Sequence[Message], **options: Any) -> Stream:
        """Answer a conversation; read the stream with `for` or `async for`."""

    @abstractmethod
    async def ascore(self, prompt: Prompt, continuation: Prompt) -> Score:
        """Log-probability of each token of `continuation` after `prompt`."""

    @abstractmethod
    async def aembed(self, texts: Sequence[Prompt]) -> list[list[float]]:
        """One vector a text."""

    async def aembeddings(
        self,
        texts: Sequence[Prompt],
        options: EmbedOptions = EmbedOptions(),
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Embeddings:
        """One vector a text, with options and what they cost; `progress` hears texts done, of all.

        Here for models that only have `aembed`, which take no options but `normalize`.
        """
        if options.prompt is not None or options.truncate != "error":
            raise KeifuError(f"{self.name} knows no prompts for texts and does not cut any")
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _BATCH):  # between batches a cancelled task stops
            vectors += await self.aembed(texts[start : start + _BATCH])
            if progress is not None:
                progress(len(vectors), len(texts))
        if options.normalize:
            lengths = [math.sqrt(math.fsum(x * x for x in v)) or 1.0 for v in vectors]
            vectors = [[x / n for x in v] for v, n in zip(vectors, lengths, strict=True)]
        tokens = await asyncio.to_thread(self._tokens, texts)
        return Embeddings(vectors, tokens)

    def _tokens(self, texts: Sequence[Prompt]) -> int:
        return sum(self.count_tokens(t) if isinstance(t, str) else len(t) for t in texts)

    @abstractmethod
    def count_tokens(self, messages: str | Sequence[Message], **options: Any) -> int:
        """Tokens of a text, or of a conversation once its chat template is applied."""

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        special: bool = True,
        parse: bool = False,
        **options: Any,
    ) -> list[int]:
        """Token ids of a text (with the model's own begin tokens if `special`) or a conversation.

        `parse` reads special tokens that are written out in the text as such, which is only for
        those who mean it: "<|im_end|>" is one token then. Options of a conversation are `tools`,
        `continue_final`, `add_generation_prompt` and the chat template's own variables. Raises
        KeifuError where the tokenizer is out of reach, as it is for most remote models.
        """
        raise KeifuError(f"{self.name} does not show its tokenizer: it cannot encode")

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens included; KeifuError as for `encode`."""
        raise KeifuError(f"{self.name} does not show its tokenizer: it cannot decode")

    def tokenizer_info(self) -> Mapping[str, Any]:
        """bos_token, eos_token, pad_token, chat_template (None where absent), vocab_size."""
        raise KeifuError(f"{self.name} does not show its tokenizer")

    def complete(self, prompt: Prompt, **options: Any) -> Completion:
        """Continue a prompt and wait for the whole output."""
        return self.complete_stream(prompt, **options).result()

    async def acomplete(self, prompt: Prompt, **options: Any) -> Completion:
        """Continue a prompt without blocking the event loop."""
        return await self.complete_stream(prompt, **options).aresult()

    def chat(self, messages: Sequence[Message], **options: Any) -> Completion:
        """Answer a conversation and wait for the whole answer."""
        return self.chat_stream(messages, **options).result()

    async def achat(self, messages: Sequence[Message], **options: Any) -> Completion:
        """Answer a conversation without blocking the event loop."""
        return await self.chat_stream(messages, **options).aresult()

    def score(self, prompt: Prompt, continuation: Prompt) -> Score:
        """Log-probability of each token of `continuation` after `prompt`."""
        return asyncio.run(self.ascore(prompt, continuation))

    def embed(self, texts: Sequence[Prompt], **options: Any) -> list[list[float]]:
        """One vector a text; keyword arguments are the fields of `EmbedOptions`."""
        if not options:
            return asyncio.run(self.aembed(texts))
        return self.embeddings(texts, **options).vectors

    def embeddings(
        self,
        texts: Sequence[Prompt],
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Embeddings:
        """One vector a text, and what they cost."""
        asked = EmbedOptions.of(options)
        return asyncio.run(self.aembeddings(texts, asked, progress=progress))

    def statistics(self) -> Statistics | None:
        """What its engine counts, now; None where the model runs elsewhere or has no engine."""
        return None

    def close(self) -> None:  # noqa: B027 (most have nothing to free)
        """Free what the model holds; running requests end as cancelled."""

    def sampling(self, options: Mapping[str, Any]) -> Sampling:
        """The checkpoint's defaults with the request's options over them."""
        defaults = dict(self.defaults)
        constraint = options.get("constraint")
        if constraint is not None and not constraint.free:  # it says itself where the output ends
            defaults = {k: v for k, v in defaults.items() if k not in ("stop", "stop_ids")}
        return Sampling(**{**defaults, **options})
