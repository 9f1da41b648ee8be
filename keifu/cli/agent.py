"""`keifu agent NAME`: a program that takes several steps towards a goal, told while it works."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import click

from keifu.agents import agents
from keifu.agents._agent import Surroundings
from keifu.agents._trace import Began, Chose, Ended, Event, Made, Recalled, Refused, Said, record
from keifu.cli import gather, model
from keifu.cli.embedder import EMBEDDER, Lazy
from keifu.cli.listing import about
from keifu.cli.model import ModelOptions
from keifu.cli.options import Argument, Fields, Option
from keifu.cli.render import note, safe
from keifu.cli.verbs import Verb, Verbs
from keifu.core.errors import KeifuError
from keifu.retrieval.memory import Embedder

app = Verbs(
    "agent",
    {name: Verb(f"keifu.cli.agent:{name}", "Agents", about("agents", name)) for name in agents},
    help="Let a model work towards a GOAL in several steps. What an agent has done is kept in its "
    "folder: the same command goes on where it stopped.",
    subcommand_metavar="NAME ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def __getattr__(name: str) -> Callable[..., None]:
    """The command of one agent, made when it is asked for: its flags are the agent's options."""
    if name not in agents:
        raise AttributeError(name)
    return _command(name)


def _command(name: str) -> Callable[..., None]:
    cls = agents[name]

    def command(
        goal: Annotated[tuple[str, ...], Argument("[GOAL]")] = (),
        options: Annotated[ModelOptions, Fields(ModelOptions)] = ModelOptions(),
        how: Any = cls.options(),
        folder: Annotated[
            Path, Option("-o", "--output", help="The folder of its state and its results.")
        ] = Path(name),
        embedder: Annotated[
            str, Option(help="What compares its memories: a model that embeds, or `none`: words.")
        ] = EMBEDDER,
        pick: Annotated[bool, Option("--pick", help="Choose yourself where it has a choice.")] = (
            False
        ),
        as_object: Annotated[
            bool, Option("--json", help="Print what happens, one JSON object a line.")
        ] = False,
        quiet: Annotated[bool, Option("-q", "--quiet", help="Nothing but the result.")] = False,
    ) -> None:
        if pick and not (sys.stdin is not None and sys.stdin.isatty()):
            raise click.UsageError("--pick asks at a terminal, and there is none")
        text = gather.text(" ".join(goal), "the goal")
        model.find(options, quiet=quiet)
        lm = model.load(options)
        lazy = None if embedder == "none" else Lazy(embedder, options)
        around = Surroundings(
            folder=folder,
            embedder=Embedder(embedder, lazy.embed) if lazy else None,
            choose=_choose if pick else None,
        )
        tell = _tell_json if as_object else _tell_quietly if quiet else _tell
        try:
            if not lm.has_template:
                raise KeifuError(f"{lm.name} takes no instructions: an agent needs a chat model")
            for event in cls(lm, how, around).run(text):
                tell(event)
        except KeyboardInterrupt:
            note(f"stopped; the same command goes on with {folder}")
            raise
        finally:
            lm.close()
            if lazy:
                lazy.close()

    command.__doc__ = f"{about('agents', name)}\n\nThe same command goes on with what is in -o."
    command.__annotations__["how"] = Annotated[cls.options, Fields(cls.options)]
    return command


def _tell(event: Event) -> None:
    """An event for a person: results on stdout, the rest on stderr."""
    match event:
        case Began(done=done) if done:
            note(f"going on after {done} of {event.steps} steps: {safe(event.goal)}")
        case Began():
            note(f"{event.steps} steps: {safe(event.goal)}")
        case Recalled():
            note(f"step {event.step}: {len(event.texts)} memories recalled")
        case Said():
            used = f"{event.usage.prompt_tokens} tokens read, {event.usage.completion_tokens} made"
            note(f"step {event.step}, {event.purpose}: {used}")
        case Refused():
            note(f"step {event.step}, {event.purpose}: {safe(event.why)}")
        case Chose():
            note(f"step {event.step}, chosen by the {event.by}: {safe(event.chosen)}")
        case Made():
            print(safe(event.text), end="\n\n", flush=True)
        case Ended():
            note(f"done: {event.steps} steps")


def _tell_quietly(event: Event) -> None:
    if isinstance(event, Made):
        _tell(event)


def _tell_json(event: Event) -> None:
    print(json.dumps(record(event), ensure_ascii=False), flush=True)


def _choose(options: Sequence[str]) -> int | str:
    """A person picks a number, or writes what is to happen instead."""
    for number, option in enumerate(options, 1):
        note(f"{number}. {safe(option)}\n")
    while True:
        try:
            said = input(f"1 to {len(options)}, or your own words: ").strip()
        except EOFError:
            raise KeyboardInterrupt from None
        if said.isascii() and said.isdigit():
            if 1 <= int(said[:9]) <= len(options):
                return int(said) - 1
            note(f"there is no {said[:9]}")
        elif said:
            return said
