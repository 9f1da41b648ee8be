"""`keifu probe NAME MODEL...`: one verb a probe, made from the registry and the probe's options."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import click

from keifu.cli import model as opening
from keifu.cli.model import DEFAULT, ModelOptions
from keifu.cli.options import Argument, Fields, Option, command_from
from keifu.cli.probe_table import drawn
from keifu.cli.render import colourful
from keifu.cli.verbs import Verb, Verbs
from keifu.core.errors import KeifuError
from keifu.data.symbolic import FILE
from keifu.evaluation.findings import Findings
from keifu.evaluation.probe import Probe, Subject, examine, probes

EXAMPLES = """\
Examples:
  keifu probe needle                                        is one sentence found anywhere?
  keifu probe needle --lengths 1024,4096 --plot needle.png
  keifu probe recall                                        whose partner was it?
  keifu probe copying                                       few words among noise
  keifu probe cost smollm2-135m published:mamba-130m        what a longer context costs

--out DIR keeps finished cells, so that the same command goes on after an interruption."""


class Probes(Verbs):
    """The probes as verbs: their names come from the folder, a command from a probe's options."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of one probe."""
        if cmd_name not in self.table:
            return None
        command = command_from(_function(cmd_name), self.path(ctx, cmd_name))
        examples = "\n".join(f"  keifu probe {line}" for line in probes[cmd_name].examples)
        command.epilog = f"\b\nExamples:\n{examples}"
        if not ctx.resilient_parsing:
            self.settle(ctx, command)
        return command


def _function(name: str) -> Callable[..., None]:
    """What a probe's command calls, with that probe's options in its signature."""
    cls = probes[name]

    def command(**given: Any) -> None:
        _run(name, **given)

    models: Any = Annotated[tuple[str, ...], Argument(f"[{cls.models}]")]
    names = ("ctx", "threads", "device", "precision", "offline") if cls.loads else ("offline",)
    parameters = {
        "models": (models, ()),
        "probe": (Annotated[cls, Fields(cls)], None),
        "model": (Annotated[ModelOptions, Fields(ModelOptions, *names)], None),
        "out": (
            Annotated[Path | None, Option(help="Keep finished cells here, and go on from them.")],
            None,
        ),
        "plot": (
            Annotated[Path | None, Option(help="Draw what was found (.png, .svg, .pdf).")],
            None,
        ),
        "as_json": (Annotated[bool, Option("--json", help="Print one JSON object.")], False),
    }
    signature = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        for key, (hint, default) in parameters.items()
    ]
    command.__doc__ = cls.__doc__
    command.__annotations__ = {key: hint for key, (hint, _) in parameters.items()}
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    return command


def _run(
    name: str,
    *,
    models: tuple[str, ...],
    probe: Probe,
    model: ModelOptions,
    out: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Ask, and show what was found."""
    if plot is not None:
        from keifu.evaluation.plot import check

        check(plot)
    if out is not None and out.exists() and not out.is_dir():
        raise KeifuError(f"--out {out} is a file: give a folder")
    subjects = [_subject(ref, model, probe, quiet=as_json) for ref in models or (DEFAULT,)]
    show = sys.stderr.isatty()
    findings = examine(name, probe, subjects, told=_told if show else _silent, out=out)
    if show:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if plot is not None:
        from keifu.evaluation.plot import draw

        draw(findings, plot)
    _say(findings, as_json)


def _subject(ref: str, given: ModelOptions, probe: Probe, *, quiet: bool) -> Subject:
    """A model, fetched now and opened when it is asked."""
    from dataclasses import replace

    options = replace(given, model=ref)
    if options.threads is None and (Path(ref) / FILE).exists():
        options = replace(options, threads=1)  # more would wait for each other: it is tiny
    if not ref.startswith("published:"):
        opening.find(options, quiet=quiet)
    return Subject(ref, partial(opening.load, options))


def _say(findings: Findings, as_json: bool) -> None:
    if as_json:
        print(json.dumps(findings.record(), allow_nan=False))
    else:
        print(drawn(findings, colours=colourful(sys.stdout)))


def _told(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """Nobody looks."""


app = Probes(
    "probe",
    {
        name: Verb(f"{probes[name].__module__}:probe", "What to ask", probes[name].title)
        for name in probes
    },
    help="Put a question to a model at every point of a grid: length, depth, pairs.",
    epilog=EXAMPLES,
    subcommand_metavar="PROBE [MODEL...]",
)
