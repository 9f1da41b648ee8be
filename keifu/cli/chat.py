"""`keifu chat`: ask a model one thing, or talk to it."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import click

from keifu.cli import conversation as store
from keifu.cli import gather, model
from keifu.cli.answer import as_json, ended, meter
from keifu.cli.conversation import Conversation
from keifu.cli.dialogue import Dialogue
from keifu.cli.model import ModelOptions
from keifu.cli.options import Argument, Fields, Option
from keifu.cli.render import note, printer
from keifu.core.errors import KeifuError
from keifu.inference.request import Sampling

SAMPLING = Fields(
    Sampling, "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed",
    "stop",
)  # fmt: skip
BASE = "{name} has no chat template (it is a base model): it continues the text"


def command(
    words: Annotated[tuple[str, ...], Argument("[PROMPT]...")] = (),
    options: Annotated[ModelOptions, Fields(ModelOptions)] = ModelOptions(),
    system: Annotated[
        str | None, Option("-s", "--system", help="What the model is told before the conversation.")
    ] = None,
    sampling: Annotated[dict[str, Any], SAMPLING] = {},  # noqa: B006 (never written)
    resume: Annotated[
        str | None,
        Option(
            "--continue",
            metavar="[ID]",
            optional_value="",
            help="Go on with a saved "
            "conversation; without ID with the latest (then `--` before a prompt).",
        ),
    ] = None,
    save: Annotated[
        str | None, Option("--save", metavar="ID", help="Keep the conversation under this name.")
    ] = None,
    keep: Annotated[
        bool, Option("--keep/--no-keep", help="Whether what is said interactively is saved.")
    ] = True,
    listed: Annotated[bool, Option("--list", help="List the saved conversations.")] = False,
    as_object: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    stream: Annotated[
        bool, Option("--stream/--no-stream", help="Whether an answer appears while it is made.")
    ] = True,
    quiet: Annotated[bool, Option("-q", "--quiet", help="Nothing but the answer.")] = False,
) -> None:
    """Talk to a model, or ask it one thing.

    With a PROMPT, or with piped input, the answer goes to standard output and that is all. With
    neither it is a conversation: /help lists its commands, Ctrl-C stops an answer, Ctrl-D leaves.

    In a prompt `-` stands for standard input and `@file` attaches a text file.
    """  # fmt: skip
    if listed:
        _list(as_object)
        return
    words, talk = _conversation(words, resume, system, options)
    if save:
        talk.id = save
    prompt = gather.gather(words)
    if not prompt.strip():
        if words or as_object or gather.piped() or not _terminal():
            raise click.UsageError("the prompt is empty: give a PROMPT or pipe one in")
        from keifu.cli.session import Session

        Session(options, talk, sampling, keep=keep, stream=stream, quiet=quiet).run()
        return
    start = time.perf_counter()
    model.find(options, quiet=quiet)
    lm = model.load(options)
    loaded = time.perf_counter() - start
    try:
        dialogue = Dialogue(lm, talk, sampling)
        if not lm.has_template and not quiet:
            note(BASE.format(name=lm.name))
        _once(dialogue, prompt, loaded, as_object=as_object, stream=stream, quiet=quiet)
        if resume is not None or save:
            talk.save()
    finally:
        lm.close()


def _once(
    dialogue: Dialogue, prompt: str, loaded: float, *, as_object: bool, stream: bool, quiet: bool
) -> None:
    """One question, one answer on stdout."""
    out = printer(sys.stdout, markdown=stream and not as_object)
    live = stream and not as_object
    try:
        write = out.write if live else _ignore
        answer = dialogue.ask(prompt, write, policy="error", stoppable=False)
        if as_object:
            print(json.dumps(as_json(dialogue.lm, answer, loaded), ensure_ascii=False))
        elif not live:
            out.write(answer.completion.text)
    finally:
        out.end()
    if quiet:
        return
    if cut := ended(answer, dialogue.sampling.get("max_tokens")):
        note(cut)
    if sys.stderr.isatty() and not as_object:
        note(meter(answer, dialogue.lm.context))


def _conversation(
    words: tuple[str, ...], resume: str | None, system: str | None, options: ModelOptions
) -> tuple[tuple[str, ...], Conversation]:
    """The conversation to begin or go on with; an "ID" with spaces in it is the prompt's start."""
    if resume is None:
        return words, Conversation(model=options.model, system=system)
    if any(character.isspace() for character in resume):
        words, resume = (resume, *words), ""
    try:
        talk = store.load(resume or None)
    except KeifuError as wrong:
        if resume and not words:
            raise KeifuError(
                f"{wrong}; to go on with the latest one, write: --continue -- {resume}"
            ) from None
        raise
    talk.system = talk.system if system is None else system
    return words, talk


def _list(as_object: bool) -> None:
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
