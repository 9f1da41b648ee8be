"""`keifu chat`: ask a model one thing, or talk to it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import click

from keifu.cli import constrain, gather, model
from keifu.cli import conversation as store
from keifu.cli.answer import as_json, ended, meter
from keifu.cli.conversation import Conversation
from keifu.cli.dialogue import Dialogue
from keifu.cli.model import ModelOptions
from keifu.cli.options import Argument, Fields, Option
from keifu.cli.render import note, printer
from keifu.core.errors import KeifuError
from keifu.inference.request import Sampling
from keifu.lm.budget import Policy

if TYPE_CHECKING:
    from keifu.cli.remembering import Remembering
    from keifu.lm.base import LM

SAMPLING = Fields(
    Sampling, "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed",
    "stop",
)  # fmt: skip
BASE = "{name} has no chat template (it is a base model): it continues the text"
TEXT = "{name} turns a text into another (an encoder-decoder): it reads each message on its own"


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a chat is held."""

    system: str | None = field(default=None, metadata={"option": Option("-s", "--system")})
    """What the model is told before the conversation"""
    resume: str | None = field(
        default=None,
        metadata={"option": Option("--continue", metavar="[ID]", optional_value="")},
    )
    """Go on with a saved conversation; without ID with the latest (then `--` before a prompt)"""
    save: str | None = field(default=None, metadata={"option": Option(metavar="ID")})
    """Keep the conversation under this name"""
    keep: bool = True
    """Whether what is said interactively is saved"""
    stream: bool = True
    """Whether an answer appears while it is made"""
    overflow: Policy | None = None
    """What to do when the context is full (default: `error` for one question, `drop-oldest` in a
    conversation; `summarise` keeps a summary of what is dropped; `parts` answers a long text piece
    by piece)"""
    memory: str | None = field(default=None, metadata={"option": Option(metavar="USER")})
    """Put what is remembered of USER into the prompts (/remember, /memories, /forget; with --list
    or `keifu list memories` it is shown)"""
    embedder: str | None = None
    """What compares memories: a model that embeds, or `none`: words (default: minilm-l6-v2)"""
    quiet: bool = field(default=False, metadata={"option": Option("-q", "--quiet")})
    """Nothing but the answer"""


def command(
    words: Annotated[tuple[str, ...], Argument("[PROMPT]...")] = (),
    options: Annotated[ModelOptions, Fields(ModelOptions)] = ModelOptions(),
    sampling: Annotated[dict[str, Any], SAMPLING] = {},  # noqa: B006 (never written)
    form: Annotated[constrain.Form, Fields(constrain.Form)] = constrain.Form(),
    manner: Annotated[Manner, Fields(Manner)] = Manner(),
    listed: Annotated[bool, Option("--list", help="List the saved conversations")] = False,
    as_object: Annotated[bool, Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Talk to a model, or ask it one thing.

    With a PROMPT, or with piped input, the answer goes to standard output and that is all. With
    neither it is a conversation: /help lists its commands, Ctrl-C stops an answer, Ctrl-D leaves.

    In a prompt `-` stands for standard input and `@file` attaches a text file.
    """
    remembering, sampling = None, {**sampling, **form.options()}
    if manner.memory is not None:
        from keifu.cli.remembering import Remembering

        remembering = Remembering(manner.memory, manner.embedder, options)
    try:
        if listed:
            _list(as_object, remembering)
        else:
            _talk(words, options, sampling, manner, remembering, as_object)
    finally:
        if remembering:
            remembering.close()


def _talk(
    words: tuple[str, ...],
    options: ModelOptions,
    sampling: dict[str, Any],
    manner: Manner,
    remembering: Remembering | None,
    as_object: bool,
) -> None:
    """One answer if there is a prompt, else a conversation."""
    memory = remembering.memory if remembering else None
    words, talk = _conversation(words, manner, options)
    prompt = gather.gather(words)
    if not prompt.strip():
        if words or as_object or gather.piped() or not _terminal():
            raise click.UsageError("the prompt is empty: give a PROMPT or pipe one in")
        from keifu.cli.session import Session

        Session(
            options,
            talk,
            sampling,
            policy=manner.overflow or "drop-oldest",
            memory=memory,
            keep=manner.keep,
            stream=manner.stream,
            quiet=manner.quiet,
        ).run()
        return
    start = time.perf_counter()
    model.find(options, quiet=manner.quiet)
    lm = model.load(options)
    loaded = time.perf_counter() - start
    try:
        dialogue = Dialogue(lm, talk, sampling)
        dialogue.memory = memory
        if (manners := untaught(lm)) and not manner.quiet:
            note(manners)
        _once(dialogue, prompt, loaded, manner, as_object)
        if manner.resume is not None or manner.save:
            talk.save()
    finally:
        lm.close()


def untaught(lm: LM) -> str | None:
    """What a model does with a message, where it was not made for conversations."""
    if lm.has_template:
        return None
    return (TEXT if lm.text_to_text else BASE).format(name=lm.name)


def _once(dialogue: Dialogue, prompt: str, loaded: float, manner: Manner, as_object: bool) -> None:
    """One question, one answer on stdout."""
    live = manner.stream and not as_object
    out = printer(sys.stdout, markdown=live)
    try:
        write = out.write if live else _ignore
        answer = dialogue.ask(prompt, write, policy=manner.overflow or "error", stoppable=False)
        if as_object:
            print(json.dumps(as_json(dialogue.lm, answer, loaded), ensure_ascii=False))
        elif not live:
            out.write(answer.completion.text)
    finally:
        out.end()
    if manner.quiet:
        return
    if dialogue.dropped:
        note(dialogue.left_out())
    if cut := ended(answer, dialogue.sampling.get("max_tokens")):
        note(cut)
    if sys.stderr.isatty() and not as_object:
        note(meter(answer, dialogue.lm.context))


def _conversation(
    words: tuple[str, ...], manner: Manner, options: ModelOptions
) -> tuple[tuple[str, ...], Conversation]:
    """The conversation to begin or go on with; an "ID" with spaces in it is the prompt's start."""
    id = manner.resume
    if id is None:
        talk = Conversation(model=options.model, system=manner.system)
    else:
        if any(character.isspace() for character in id):
            words, id = (id, *words), ""
        try:
            talk = store.load(id or None)
        except KeifuError as wrong:
            if not id or words:
                raise
            remedy = f"to go on with the latest one, write: --continue -- {id}"
            raise KeifuError(f"{wrong}; {remedy}") from None
        talk.system = talk.system if manner.system is None else manner.system
    if manner.save:
        store.check_id(manner.save)  # before any work is done for it
        talk.id = manner.save
    return words, talk


def _list(as_object: bool, remembering: Remembering | None) -> None:
    """The saved conversations, or what is remembered of a user."""
    if remembering:
        from keifu.cli.remembering import as_json as of_memories
        from keifu.cli.remembering import shown

        memories = remembering.memory.all()
        print(json.dumps(of_memories(remembering.user, memories)) if as_object else shown(memories))
        return
    rows = store.listing()
    if as_object:
        print(json.dumps({"schema_version": store.SCHEMA, "conversations": rows}))
        return
    if not rows:
        note("no saved conversations")
        return
    from keifu.cli.table import table

    cells = [[r["id"], r["when"], r["model"] or "?", str(r["messages"]), r["title"]] for r in rows]
    print(table(["id", "when", "model", "messages", "title"], cells))


def _terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _ignore(text: str) -> None:
    """A result that is printed whole at the end needs no drawing."""
