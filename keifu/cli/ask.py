"""`keifu ask`: a question about documents, however long they are."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from keifu.cli import gather, model
from keifu.cli.bar import Bar
from keifu.cli.embedder import EMBEDDER, Lazy
from keifu.cli.model import ModelOptions
from keifu.cli.options import Argument, Fields, Option
from keifu.cli.render import note, printer
from keifu.core.errors import KeifuError
from keifu.prompting.document import Document, Plan, Reader, Reading

if TYPE_CHECKING:
    from keifu.lm.base import LM

SCHEMA = 1
ROUTES = {
    "stuff": "the whole is sent at once",
    "map-reduce": "every part is read, then the notes on them",
    "retrieve": "only the passages nearest to the question are sent",
}


def command(
    words: Annotated[tuple[str, ...], Argument("[FILE]... QUESTION")],
    options: Annotated[ModelOptions, Fields(ModelOptions)] = ModelOptions(),
    reading: Annotated[Reading, Fields(Reading)] = Reading(),
    embedder: Annotated[
        str,
        Option(help="What compares passages: a model that embeds; `none` compares words (BM25)."),
    ] = EMBEDDER,
    planned: Annotated[bool, Option("--plan", help="Show what would be asked, ask nothing.")] = (
        False
    ),
    as_object: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, Option("-q", "--quiet", help="Nothing but the answer.")] = False,
) -> None:
    """Ask a QUESTION about FILEs of text (`-`, or piped input: standard input).

    Counted exactly, they are sent whole where they fit the model's context, else read part by
    part, and from --most-calls parts on searched for the passages that matter. What a document says
    is data to the model: instructions in it are not to be followed.
    """
    question, documents = _documents(words)
    model.find(options, quiet=quiet)
    lm = model.load(options)
    try:
        if not lm.has_template:
            raise KeifuError(f"{lm.name} takes no instructions: ask a model made for conversations")
        reader = Reader(lm, documents, question, reading)
        plan = reader.plan()
        if planned:
            print(json.dumps(_told(lm, plan)) if as_object else _described(plan, reader))
            return
        if not quiet and not as_object:
            note(_described(plan, reader))
        _answer(lm, reader, plan, options, embedder, as_object, quiet)
    finally:
        lm.close()


def _documents(words: tuple[str, ...]) -> tuple[str, list[Document]]:
    """The question, and what could be read; what could not is said, file by file."""
    *names, question = [gather.text(word, "the question") for word in words or ("",)]
    if not question.strip():
        raise click.UsageError("there is no question: give FILEs, then a QUESTION in quotes")
    if not names:
        if not gather.piped():
            raise click.UsageError(
                f"there is no document: give FILEs before {question[:40]!r}, or pipe one in"
            )
        names = ["-"]
    found, failed = [], []
    for name in names:
        try:
            text = gather.document(name)
        except KeifuError as wrong:
            failed.append(str(wrong))
            continue
        if text.strip():
            found.append(Document(text, "" if name == "-" else Path(name).name))
        else:
            failed.append(f"{name} is empty")
    if not found:
        raise KeifuError("; ".join(failed))
    for line in failed:
        model.warn(f"{line}; left out")
    return question, found


def _answer(
    lm: LM,
    reader: Reader,
    plan: Plan,
    options: ModelOptions,
    embedder: str,
    as_object: bool,
    quiet: bool,
) -> None:
    """Carry the plan out: a bar while parts are read, the answer as it comes."""
    out = printer(sys.stdout, markdown=not as_object)
    bar = Bar(plan.route == "map-reduce" and sys.stderr.isatty() and not quiet)
    lazy, retriever = None, None
    if plan.route == "retrieve" and embedder != "none":
        from keifu.retrieval.dense import Dense

        lazy = Lazy(embedder, options)
        retriever = Dense(lazy.embed)

    def write(text: str) -> None:
        bar.close()
        out.write(text)

    try:
        work = reader.answer(
            plan,
            retriever=retriever,
            write=None if as_object else write,
            progress=bar.update,
        )
        found = asyncio.run(work)
    finally:
        bar.close()
        if lazy:
            lazy.close()
        if not as_object:
            out.end()
    if as_object:
        spent = {**asdict(found.usage), "total_tokens": found.usage.total_tokens}
        steps = [asdict(step) for step in found.steps]
        more: dict[str, Any] = {"text": found.text, "usage": spent, "steps": steps}
        print(json.dumps(_told(lm, plan) | more | {"passages": found.passages}, ensure_ascii=False))
    elif not quiet and sys.stderr.isatty():
        calls, usage = len(found.steps), found.usage
        note(f"{calls} requests, {usage.prompt_tokens} tokens read, {usage.completion_tokens} made")


def _told(lm: LM, plan: Plan) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA,
        "model": lm.name,
        "route": plan.route,
        "tokens": plan.tokens,
        "context": lm.context,
        "room": plan.room,
        "calls": plan.calls,
        "prompt_tokens": plan.prompt_tokens,
    }


def _described(plan: Plan, reader: Reader) -> str:
    """The plan in a line."""
    bound = {"stuff": "", "map-reduce": " or more", "retrieve": " or fewer"}[plan.route]
    calls = f"{plan.calls} request{'s' if plan.calls > 1 else ''}"
    if plan.route == "map-reduce":
        calls += " or more"
    fit = f"{plan.tokens} tokens, room for {plan.room} of {reader.lm.context}"
    return (
        f"{plan.route}: {fit}; {ROUTES[plan.route]} ({calls}, {plan.prompt_tokens} tokens{bound})"
    )
