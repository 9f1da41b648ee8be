"""`keifu train`: from a recipe to a trained model in a folder, and on from where it was cut."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from keifu.checkpoints import whole
from keifu.cli.options import Argument, Option
from keifu.core import machine

if TYPE_CHECKING:
    from keifu.training.loop import Record
    from keifu.training.recipe import Recipe
    from keifu.training.run import Result

SCHEMA = 1


def command(
    recipe: Annotated[str, Argument("RECIPE")],
    settings: Annotated[tuple[str, ...], Argument("[NAME=VALUE]...")] = (),
    out: Annotated[
        Path | None, Option("-o", "--out", help="Folder of the run (default: runs/NAME).")
    ] = None,
    plan: Annotated[
        bool, Option("--plan", help="Say what it will take, and do not begin.")
    ] = False,
    resume: Annotated[
        bool, Option("--resume", help="Go on from the latest whole checkpoint.")
    ] = False,
    override: Annotated[
        bool,
        Option(
            "--override",
            help="With --resume, though the recipe, the data or the number of processes changed: "
            "weights, moments and the step are kept, the rest is the recipe's from there on.",
        ),
    ] = False,
    threads: Annotated[int | None, Option("--threads", help="Processor threads.", min=1)] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Train what RECIPE says: `keifu train recipes/char_lstm.yaml train.steps=200`.

    RECIPE is a YAML file, or with --resume the folder of a run. NAME=VALUE sets one of its values.
    The folder gets recipe.yaml (to the last default), metrics.jsonl and checkpoints, which are
    Hugging Face folders; `keifu chat FOLDER` talks to the latest. Ctrl-C saves and stops.
    """
    import torch

    from keifu.training.recipe import read

    path = Path(recipe)
    if path.is_dir():
        out, path = out or path, path / whole.RECIPE
    given = read(path, settings)
    folder = out or Path("runs") / path.stem
    torch.set_num_threads(threads or machine.threads())
    loud = not (quiet or as_json)
    if plan:
        _plan(given, as_json)
        return
    result = _train(given, folder, resume, override, loud)
    if as_json:
        facts = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(result).items()}
        print(json.dumps({"schema_version": SCHEMA, **facts}))
    elif not quiet:
        print(ended(result))


def ended(result: Result) -> str:
    """The end of a run, for a person."""
    held = result.held_out
    measured = f", held-out {held:.4f} (perplexity {math.exp(held):.1f})" if held else ""
    return (
        f"{result.checkpoint}: {result.family}, {result.steps} steps, loss {result.loss:.4f}"
        f"{measured}, {result.seconds:.0f} s"
    )


def _train(recipe: Recipe, folder: Path, resume: bool, override: bool, loud: bool) -> Result:
    from dataclasses import replace

    from keifu.training.run import train

    bar = loud and sys.stderr.isatty()
    recipe = replace(recipe, train=replace(recipe.train, progress=bar))

    def say(text: str) -> None:
        if loud:
            print(text, file=sys.stderr, flush=True)

    def show(record: Record, found: dict[str, Any]) -> None:
        step = record.step + 1
        often = max(1, recipe.train.steps // 20)
        if not bar and (found or step % often == 0):
            held = f", held-out {found['held_out']['loss']:.4f}" if "held_out" in found else ""
            say(f"step {step}/{recipe.train.steps}: loss {record.loss:.4f}{held}")

    try:
        return train(recipe, folder, resume=resume, override=override, say=say, show=show)
    except KeyboardInterrupt:
        at = next(iter(whole.steps(folder)), None)
        if at is not None:
            say(f"stopped; step {at} is saved: keifu train {folder} --resume goes on")
        raise


def _plan(recipe: Recipe, as_json: bool) -> None:
    """Print what the run will take."""
    from keifu.families._load import open_checkpoint
    from keifu.training.making import configuration
    from keifu.training.plan import plan, told

    if recipe.model.path:
        family = open_checkpoint(recipe.model.path).family
    else:
        family = configuration(recipe.model, recipe.tokenizer.size, recipe.data.length)
    found = plan(recipe, family.spec())
    if as_json:
        print(json.dumps({"schema_version": SCHEMA, **found.record()}))
    else:
        print(told(found))
