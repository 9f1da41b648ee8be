"""An encoder-decoder in this process: a prompt is read whole, the output is a text of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keifu.core.errors import KeifuError
from keifu.inference.engine import Engine
from keifu.inference.request import Message, Sampling, Score
from keifu.inference.stream import Stream
from keifu.lm.base import Prompt
from keifu.lm.local import SAMPLING_FIELDS, LocalLM, known_options, taken_past
from keifu.text.tokenizer import Tokenizer

_DRAWN = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_SEARCH = ("beams", "early_stopping", "length_penalty", "length_formula")


class PairLM(LocalLM):
    """The LM interface over an engine of a pair.

    Args:
        reader: the tokenizer of what the encoder reads, where it is another than the output's.
    """

    text_to_text = True

    def __init__(
        self,
        name: str,
        engine: Engine,
        tokenizer: Tokenizer,
        defaults: Mapping[str, Any],
        *,
        reader: Tokenizer | None = None,
    ) -> None:
        super().__init__(name, engine, tokenizer, defaults)
        self.reader, self.context = reader or tokenizer, engine.source_context
        most = engine.context - len(engine.rules.start)
        if self.defaults.get("max_tokens", 0) > most:
            self.defaults = {**self.defaults, "max_tokens": most}

    def sampling(self, options: Mapping[str, Any]) -> Sampling:
        """The checkpoint's defaults; a request that wants its tokens drawn gets no beam search."""
        defaults = dict(self.defaults)
        drawn = any(options.get(key) is not None for key in _DRAWN)
        if drawn and options.get("temperature") != 0 and options.get("beams") is None:
            for key in (*_SEARCH, *(() if defaults.get("temperature") else ("temperature",))):
                defaults.pop(key, None)
        return Sampling(**{**defaults, **options})

    def complete_stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Turn a text or token ids into another text; with `past`, one that goes on from it."""
        past, given = taken_past(options)
        sampling = self.sampling(known_options(given, SAMPLING_FIELDS))
        ids = self.ids(prompt, begin=past is None)
        return self.engine.submit(ids, sampling, past=past, continues=False)

    def chat_stream(self, messages: Sequence[Message], **options: Any) -> Stream:
        """As a decoder's, if the checkpoint says how a conversation becomes one text."""
        if not self.has_template:
            raise KeifuError(
                f"{self.name} turns one text into another and has no chat template: use complete"
            )
        if options.get("tools") or options.get("continue_final"):
            raise KeifuError(f"{self.name} is an encoder-decoder: it knows neither tools nor "
                             "continuing a message")  # fmt: skip
        return super().chat_stream(messages, **options)

    async def ascore(self, prompt: Prompt, continuation: Prompt) -> Score:
        """Log-probability of each token of a target, given the source; texts end without </s>."""
        source = self._ids(prompt)
        target = (
            self.tokenizer.encode(continuation, add_bos=False, add_eos=False)
            if isinstance(continuation, str)
            else list(continuation)
        )
        if not source or not target:
            raise KeifuError("scoring needs at least one token of source and of target")
        asked = Sampling(max_tokens=0, prompt_logprobs=1, temperature=0)
        done = await self.engine.submit(source, asked, prefix=target).aresult()
        told = (done.prompt_logprobs or ())[len(self.engine.rules.start) :]
        found = tuple(t.logprob for t in told if t.logprob is not None)
        best = all(t.top[0].logprob == t.logprob for t in told)
        return Score(logprobs=found, greedy=best, tokens=tuple(target))

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        special: bool = True,
        parse: bool = False,
        **options: Any,
    ) -> list[int]:
        """Ids of a source."""
        if isinstance(prompt, str):
            around = None if special else False
            return self.reader.encode(prompt, add_bos=around, add_eos=around, special=parse)
        return self.reader.encode_chat(prompt, **options)

    def _reads(self) -> Tokenizer:
        return self.reader
