"""A model in this process: a checkpoint, an engine, a tokenizer behind the LM interface."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from keifu.core.errors import KeifuError, unknown
from keifu.inference.constraint import Constraint, ConstraintError
from keifu.inference.engine import Engine
from keifu.inference.grammar import available
from keifu.inference.kept import Kept
from keifu.inference.meter import Statistics
from keifu.inference.request import Delta, Message, Sampling, Score
from keifu.inference.stream import Stream
from keifu.lm.base import LM, ChatOptions, Prompt
from keifu.lm.tool_grammar import forced, guided
from keifu.lm.tools import ToolFormat, ToolReader, detect, markers
from keifu.text.tokenizer import Tokenizer

SAMPLING_FIELDS = frozenset(f.name for f in dataclasses.fields(Sampling))
_CHAT = frozenset(f.name for f in dataclasses.fields(ChatOptions))


class LocalLM(LM):
    """The LM interface over one engine."""

    pooling = "mean"

    def __init__(
        self, name: str, engine: Engine, tokenizer: Tokenizer, defaults: Mapping[str, Any]
    ) -> None:
        self.name, self.engine, self.tokenizer = name, engine, tokenizer
        self.context, self.defaults = engine.context, dict(defaults)
        self.has_template = bool(tokenizer.marks.templates)

    def complete_stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Continue a text or token ids; with `past`, what comes after a kept past."""
        past, given = taken_past(options)
        sampling = self.sampling(known_options(given, SAMPLING_FIELDS))
        return self.engine.submit(self.ids(prompt, begin=past is None), sampling, past=past)

    def chat_stream(self, messages: Sequence[Message], **options: Any) -> Stream:
        """Answer a conversation, as its chat template writes it."""
        given = known_options(options, SAMPLING_FIELDS | _CHAT)
        chat = ChatOptions(**{k: v for k, v in given.items() if k in _CHAT})
        form = self._tool_format(chat)
        wanted = self._constraint(given.get("constraint"), chat, form)
        asked = {k: v for k, v in given.items() if k in SAMPLING_FIELDS}
        sampling = self.sampling(asked if wanted is None else {**asked, "constraint": wanted})
        prompt = self.tokenizer.encode_chat(messages, most=self.context, **_template_options(chat))
        if form is None:
            return self.engine.submit(prompt, sampling, continues=chat.continue_final)
        stream = _ToolStream(form, [t["function"]["name"] for t in chat.tools])
        kept = self._marker_ids(form)
        return self.engine.submit(
            prompt, sampling, continues=chat.continue_final, stream=stream, shown=kept
        )

    def _tool_format(self, chat: ChatOptions) -> ToolFormat | None:
        """How this model writes tool calls, where the request has tools; an error if it cannot."""
        if not chat.tools or chat.tool_choice == "none":
            return None
        form = detect("\n".join(self.tokenizer.marks.templates.values()))
        if form is None:
            raise KeifuError(f"{self.name} knows no tools: its chat template does not take any")
        return form

    def _constraint(
        self, given: Constraint | None, chat: ChatOptions, form: ToolFormat | None
    ) -> Constraint | None:
        """What the request, its response format and its choice of a tool make of the output."""
        schema, wanted = schema_of(chat.response_format), None
        if form is not None and (chat.tool_choice != "auto" or schema is not None):
            named = chat.tool_choice if isinstance(chat.tool_choice, Mapping) else None
            wanted = forced(
                form,
                _chosen(chat.tools, named),
                self._markers(form),
                one=named is not None,
                instead=schema if chat.tool_choice == "auto" else None,
            )
        elif schema is not None:
            wanted = Constraint.json(schema)
        if wanted is not None and given is not None:
            raise KeifuError("a constraint beside a response_format or tools: choose one of them")
        if form is not None and wanted is None and given is None and available():
            return self._guided(form, chat.tools)
        return wanted or given

    def _guided(self, form: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> Constraint:
        """Whole calls by the tools' schemas, where the model chooses to call; arguments are any
        object if some schema cannot be followed, and no tool has `strict`."""
        special = self._markers(form)
        others = self.tokenizer.control_ids - self.engine.end_ids - set(special.values())
        wanted = guided(form, tools, special, sorted(others))
        try:
            self.engine.grammars.compile(wanted)
        except ConstraintError:
            if any(tool["function"].get("strict") for tool in tools):
                raise
            any_object = [{"function": {"name": tool["function"]["name"]}} for tool in tools]
            wanted = guided(form, any_object, special, sorted(others))
        return wanted

    def _markers(self, form: ToolFormat) -> dict[str, int]:
        """The special tokens that are parts of a call, by their spelling."""
        return {self.tokenizer.token(i): i for i in self._marker_ids(form)}

    def _marker_ids(self, form: ToolFormat) -> frozenset[int]:
        """Special tokens that are part of a tool call and so must reach the reader as text."""
        wanted = set(markers(form))
        return frozenset(i for i in self.tokenizer.special_ids if self.tokenizer.token(i) in wanted)

    async def ascore(self, prompt: Prompt, continuation: Prompt) -> Score:
        """Log-probabilities of the continuation's tokens after the prompt's."""
        first = self._ids(prompt)
        if isinstance(prompt, str) and isinstance(continuation, str):
            # A token may span the border: the whole is encoded, the prompt's share cut off.
            whole = self._ids(prompt + continuation)
            rest = whole[len(first) :] if whole[: len(first)] == first else None
            if rest is None:
                rest = self.tokenizer.encode(continuation, add_bos=False)
        elif isinstance(continuation, str):
            rest = self.tokenizer.encode(continuation, add_bos=False)
        else:
            rest = list(continuation)
        if not first or not rest:
            raise KeifuError("scoring needs at least one token of prompt and of continuation")
        sampling = Sampling(max_tokens=0, prompt_logprobs=1, temperature=0)
        done = await self.engine.submit([*first, *rest], sampling).aresult()
        told = (done.prompt_logprobs or ())[len(first) :]
        found = tuple(t.logprob for t in told if t.logprob is not None)
        best = all(t.top[0].logprob == t.logprob for t in told)
        return Score(logprobs=found, greedy=best, tokens=tuple(rest))

    async def aembed(self, texts: Sequence[Prompt]) -> list[list[float]]:
        """The mean of each text's last hidden states."""
        prompts = [self._ids(t) for t in texts]
        vectors = await asyncio.to_thread(self.engine.embed, prompts)
        found: list[list[float]] = vectors.tolist()
        return found

    def count_tokens(self, messages: str | Sequence[Message], **options: Any) -> int:
        """Tokens of a text or of a rendered conversation."""
        return len(self.encode(messages, **options))

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        special: bool = True,
        parse: bool = False,
        **options: Any,
    ) -> list[int]:
        """Ids of a text, or of a conversation once its template is applied."""
        if isinstance(prompt, str):
            bos = None if special else False
            return self.tokenizer.encode(prompt, add_bos=bos, special=parse)
        return self.tokenizer.encode_chat(prompt, **options)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return self.tokenizer.decode(tokens, skip_special=False)

    def tokenizer_info(self) -> Mapping[str, Any]:
        """The tokens a client needs to know by name."""
        tokenizer = self.tokenizer
        named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
        shown = {f"{k}_token": None if i is None else tokenizer.token(i) for k, i in named.items()}
        templates = tokenizer.marks.templates
        return {
            **shown,
            "chat_template": templates.get("default"),
            "vocab_size": tokenizer.vocab_size,
        }

    def statistics(self) -> Statistics:
        """What the engine counts."""
        return self.engine.statistics()

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.ids(prompt)

    def ids(self, prompt: Prompt, *, begin: bool = True, end: bool = True) -> list[int]:
        """The ids of what the model is to read; a text that cannot fit is refused unread.

        Args:
            begin: with the tokens that the checkpoint puts before a text.
            end: and those that it puts after one.
        """
        if not isinstance(prompt, str):
            return list(prompt)
        bos, eos = (None if begin else False), (None if end else False)
        return self._reads().encode(prompt, most=self.context, add_bos=bos, add_eos=eos)

    def _reads(self) -> Tokenizer:
        """The tokenizer of what it reads."""
        return self.tokenizer


class _ToolStream(Stream):
    """Takes tool calls out of the text on its way to the consumer."""

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        super().__init__()
        self._form, self._names = form, list(names)
        self._readers: dict[int, ToolReader] = {}
        self._called: set[int] = set()

    def put(self, delta: Delta) -> None:
        """Producer: text goes through the reader; a call that ends the output says so."""
        reader = self._readers.setdefault(delta.index, ToolReader(self._form, self._names))
        text, calls = reader.feed(delta.text)
        if delta.finish:
            rest, more = reader.close()
            text, calls = text + rest, calls + more
        if calls:
            self._called.add(delta.index)
        finish = delta.finish
        if finish == "stop" and delta.index in self._called:
            finish = "tool_calls"
        super().put(dataclasses.replace(delta, text=text, tool_calls=calls, finish=finish))


def taken_past(options: Mapping[str, Any]) -> tuple[Kept | None, dict[str, Any]]:
    """What a request continues, and its other options."""
    past = options.get("past")
    if past is not None and not isinstance(past, Kept):
        raise KeifuError(f"past is a {type(past).__name__}, not what keifu.lm.gist.compress keeps")
    return past, {name: value for name, value in options.items() if name != "past"}


def known_options(options: Mapping[str, Any], allowed: Collection[str]) -> dict[str, Any]:
    """Options that were given, refused by name where they are not known."""
    for name in options:
        if name not in allowed:
            raise unknown("option", name, allowed)
    given = {k: v for k, v in options.items() if v is not None}
    for name in ("stop", "stop_ids"):
        if name in given:
            value = given[name]
            given[name] = (value,) if isinstance(value, (str, int)) else tuple(value)
    return given


def schema_of(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON schema that a response format asks for; None for plain text."""
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return schema
        case _:
            raise KeifuError(
                'response_format has the type "text", "json_object" or "json_schema" with a '
                "json_schema: {schema: {...}}"
            )


def _chosen(
    tools: Sequence[Mapping[str, Any]], named: Mapping[str, Any] | None
) -> Sequence[Mapping[str, Any]]:
    """The tools that may be called: all of them, or the one that the choice names."""
    if named is None:
        return tools
    name = named.get("function", named).get("name")
    found = [tool for tool in tools if tool["function"]["name"] == name]
    if not found:
        raise unknown("tool", str(name), [tool["function"]["name"] for tool in tools])
    return found


def _template_options(chat: ChatOptions) -> dict[str, Any]:
    tools = list(chat.tools) if chat.tools and chat.tool_choice != "none" else None
    extra = dict(chat.template_options or {})
    return {"tools": tools, "continue_final": chat.continue_final, **extra}
