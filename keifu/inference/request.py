"""What is asked of a model and what comes back: the values that cross every floor above `nn`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from keifu.core.errors import KeifuError
from keifu.inference.constraint import Constraint

COLD = 1e-6
"""A temperature below this is greedy: logits divided by it may leave the numbers that there are."""
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]


class ParameterError(KeifuError):
    """A request parameter is out of range: names the parameter, its value and the bounds."""

    def __init__(self, parameter: str, value: object, allowed: str) -> None:
        self.parameter = parameter
        text = repr(value)
        text = text if len(text) <= 120 else text[:120] + "…"
        super().__init__(f"{parameter}={text} is not allowed: {allowed}")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, when to stop, and whose turn it is; the defaults leave the
    model as it is."""

    max_tokens: int | None = None
    """Most tokens to generate; None means all the room the context leaves."""
    temperature: float = 1.0
    """0 is greedy; 1 leaves the distribution as it is."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probability reaches p (Holtzman et al. 2019)."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024)."""
    typical_p: float = 1.0
    """Keep tokens nearest the entropy until their mass reaches p (Meister et al. 2022)."""
    repetition_penalty: float = 1.0
    """Divide (or multiply, if negative) logits of tokens seen in prompt or output (CTRL, 2019)."""
    presence_penalty: float = 0.0
    """Subtract once from the logit of every token already generated."""
    frequency_penalty: float = 0.0
    """Subtract from a token's logit for each time it was generated."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    seed: int | None = None
    """The same seed gives the same output whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """Strings that end the output; they are not part of it unless include_stop."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end the output, besides the model's own."""
    include_stop: bool = False
    """Whether the stop string stays in the text."""
    show_special: bool = False
    """Whether special tokens that the model writes appear in the text, as they are spelt."""
    ignore_eos: bool = False
    """Go on past the model's own end tokens."""
    min_tokens: int = 0
    """No end before this many tokens."""
    logprobs: int | None = None
    """Report the log-probability of each output token and of this many alternatives."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens; the first has none."""
    n: int = 1
    """How many outputs for the one prompt."""
    beams: int = 1
    """Beam width; above 1 the search is deterministic and sampling settings do not apply."""
    length_penalty: float = 1.0
    """Beam scores are divided by length to this power."""
    length_formula: Literal["power", "gnmt"] = "power"
    """Length n counts as n, as Hugging Face has it, or as (5 + n) / 6 (Wu et al. 2016, eq. 14),
    with which the Transformer of 2017 has its penalty of 0.6."""
    early_stopping: bool | Literal["never"] = False
    """When a beam search ends: True, once it has as many outputs as beams; False, once the best
    running beam's score at its length is below theirs; "never", below theirs at any length."""
    no_repeat_ngram: int = 0
    """No row of so many tokens comes twice; 0 allows all."""
    priority: int = 0
    """Requests with a lower number go first, and give way last."""
    cache_salt: str = ""
    """Whose request it is: what was read for one is reused for the same one alone, and those who
    wait take turns."""
    constraint: Constraint | None = None
    """What the output must be, whatever the other settings; it then also says where it ends."""

    @property
    def each_alone(self) -> bool:
        """Whether no token's chances against another depend on which others there are."""
        greedy = self.temperature < COLD or self.top_k == 1
        kept = (self.top_k, self.top_p, self.min_p, self.typical_p)
        return greedy or kept == (0, 1.0, 0.0, 1.0)

    def normalised(self, score: float, length: int) -> float:
        """A beam's sum of log-probabilities, made comparable with those of other lengths."""
        counted = length if self.length_formula == "power" else (5 + length) / 6
        return float(score / counted**self.length_penalty)

    def __post_init__(self) -> None:
        """Every bound in one place, so that a server, a terminal and a library refuse alike."""
        bounds: list[tuple[str, float | None, float, float]] = [
            ("max_tokens", self.max_tokens, 0, 2**31),
            ("temperature", self.temperature, 0, 100),
            ("top_k", self.top_k, 0, 2**31),
            ("top_p", self.top_p, 0, 1),
            ("min_p", self.min_p, 0, 1),
            ("typical_p", self.typical_p, 0, 1),
            ("repetition_penalty", self.repetition_penalty, 1e-3, 100),
            ("presence_penalty", self.presence_penalty, -2, 2),
            ("frequency_penalty", self.frequency_penalty, -2, 2),
            ("seed", self.seed, -(2**63), 2**64 - 1),
            ("min_tokens", self.min_tokens, 0, 2**31),
            ("logprobs", self.logprobs, 0, 100),
            ("prompt_logprobs", self.prompt_logprobs, 0, 100),
            ("n", self.n, 1, 128),
            ("beams", self.beams, 1, 64),
            ("length_penalty", self.length_penalty, -10, 10),
            ("no_repeat_ngram", self.no_repeat_ngram, 0, 1024),
            ("priority", self.priority, -(2**31), 2**31 - 1),
        ]
        for name, value, low, high in bounds:
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ParameterError(name, value, f"from {low:g} to {high:g}")
        if 1 < self.beams < self.n:
            raise ParameterError("n", self.n, f"at most as many as beams, {self.beams}")
        if self.early_stopping not in (True, False, "never"):
            raise ParameterError("early_stopping", self.early_stopping, 'true, false or "never"')
        if self.length_formula not in ("power", "gnmt"):
            raise ParameterError("length_formula", self.length_formula, '"power" or "gnmt"')
        if len(self.cache_salt) > 256:
            raise ParameterError("cache_salt", self.cache_salt, "at most 256 characters")
        if len(self.stop) > 64 or any(not s or len(s) > 1024 for s in self.stop):
            raise ParameterError("stop", self.stop, "at most 64 strings of 1 to 1024 characters")
        whole = self.constraint is not None and not self.constraint.free
        if whole and (self.stop or self.stop_ids):
            name = "stop" if self.stop else "stop_ids"
            why = "the constraint says where the output ends, so nothing else may: leave it out"
            raise ParameterError(name, getattr(self, name), why)
        if any(not (math.isfinite(b) and -100 <= b <= 100) for b in self.logit_bias.values()):
            raise ParameterError("logit_bias", dict(self.logit_bias), "values from -100 to 100")


@dataclass(frozen=True)
class TokenLogprob:
    """One token's natural-log probability and the likeliest alternatives (best first)."""

    id: int
    token: str
    """The token's own text; bytes that are no whole character appear as replacement characters."""
    logprob: float | None
    """None for a prompt's first token, which nothing predicts."""
    top: tuple[TokenLogprob, ...] = ()
    bytes: bytes = b""
    """The token's exact bytes."""


@dataclass(frozen=True)
class Usage:
    """Tokens read and written by one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    """Tokens that were guessed ahead."""
    accepted_tokens: int = 0
    """Those of them that were right, and so are part of the completion."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in seconds."""

    queued: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    first_token: float = 0.0
    """From submission to the first token."""


@dataclass(frozen=True)
class ToolCall:
    """A function the model wants called; `arguments` is a JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Delta:
    """A piece of one output as it is made; text never ends inside a character or a stop string."""

    index: int = 0
    """Which of the n outputs."""
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    """Sent once, before any text, when asked for."""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: FinishReason | None = None
    """Set on the last delta of this output."""
    stop: str | int | None = None
    """The stop string or id that ended it."""
    usage: Usage | None = None
    """Set with `finish`: this output's tokens."""
    timings: Timings | None = None

    def then(self, later: Delta) -> Delta:
        """This piece and the one after it as one, of pieces of text and tokens alone."""
        text, tokens = self.text + later.text, self.tokens + later.tokens
        return replace(later, text=text, tokens=tokens)


@dataclass(frozen=True)
class Choice:
    """One whole output."""

    text: str
    tokens: tuple[int, ...] = ()
    finish: FinishReason = "stop"
    stop: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Completion:
    """The answer to one request: its outputs, what they cost and how long they took."""

    choices: tuple[Choice, ...]
    usage: Usage = Usage()
    timings: Timings = Timings()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def text(self) -> str:
        """The first output's text."""
        return self.choices[0].text

    @property
    def tokens(self) -> tuple[int, ...]:
        """The first output's token ids."""
        return self.choices[0].tokens

    @property
    def finish(self) -> FinishReason:
        """Why the first output ended."""
        return self.choices[0].finish

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The first output's tool calls."""
        return self.choices[0].tool_calls


@dataclass(frozen=True)
class Score:
    """How likely a continuation is: one natural-log probability a continuation token."""

    logprobs: tuple[float, ...]
    greedy: bool
    """Whether every continuation token was the likeliest one."""
    tokens: tuple[int, ...] = ()

    @property
    def total(self) -> float:
        """Their sum."""
        return sum(self.logprobs)


Message = Mapping[str, Any]
"""A chat message in OpenAI's shape: role, content (text or parts), tool_calls, tool_call_id."""
