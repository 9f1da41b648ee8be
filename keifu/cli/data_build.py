"""`keifu data build`: clean texts with the steps of a recipe, count what went and why."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from keifu.cli.options import Argument, Fields, Option
from keifu.cli.table import table
from keifu.data.pipeline import BuildOptions, Pipeline, Show
from keifu.data.read import Reading
from keifu.data.recipe import read_recipe, usual
from keifu.data.report import Report

SCHEMA = 1


def build(
    folder: Annotated[Path, Argument("FOLDER")],
    sources: Annotated[tuple[str, ...], Argument("SOURCE...")] = (),
    recipe: Annotated[
        Path | None, Option(help="YAML file with the steps (default: Keifu's usual ones).")
    ] = None,
    against: Annotated[
        tuple[str, ...],
        Option(help="Evaluation set whose text must not be in the corpus; again for more."),
    ] = (),
    judge: Annotated[str | None, Option(help="Model of the step `perplexity`.")] = None,
    options: Annotated[BuildOptions, Fields(BuildOptions)] = BuildOptions(),
    reading: Annotated[Reading, Fields(Reading)] = Reading(),
    quiet: Annotated[bool, Option("-q", "--quiet", help="Show no progress.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Clean texts: `keifu data build corpus web/ books.parquet`.

    FOLDER gets documents.jsonl (text, and in meta the rest with its place), report.json (what went,
    by step and reason, with examples) and sample.jsonl (kept and dropped ones, drawn for people to
    read). A build that was broken off goes on with the same command, and ends in the same bytes.
    """
    wanted = (read_recipe(recipe) if recipe else usual()).with_evaluation(against)
    if reading == Reading():
        reading = wanted.reading
    opened = functools.partial(_judge, judge) if judge else None
    pipeline = Pipeline(steps=wanted.steps, judge=opened, judged_by=judge or "")
    began = time.perf_counter()
    with _bar(quiet or as_json) as show:
        report = pipeline.build(sources or wanted.sources, folder, options, reading, show)
    took = time.perf_counter() - began
    if as_json:
        facts = {"folder": str(folder), **report.as_json(), "seconds": round(took, 3)}
        print(json.dumps({"schema_version": SCHEMA, **facts}, ensure_ascii=False))
    elif not quiet:
        print(_shown(report, folder, took))


def _judge(model: str) -> Callable[[str], float]:
    """A model's perplexity of a text; opened in each process that cleans."""
    import math

    import keifu

    lm = keifu.load(model)

    def score(text: str) -> float:
        first, space, rest = text.lstrip().partition(" ")
        if not first or not rest.strip():
            return math.nan  # nothing can be said of one word: it counts as unlikely
        found = lm.score(first, space + rest).logprobs
        return math.exp(-sum(found) / len(found))

    return score


def _shown(report: Report, folder: Path, took: float) -> str:
    share = report.kept_characters / max(1, report.read_characters)
    rate = report.read_characters / 1e6 / took
    parts = [
        f"{folder}: {report.kept:,} of {report.read:,} documents, {share:.1%} of "
        f"{report.read_characters:,} characters; {report.read / took:,.0f} documents/s, "
        f"{rate:.2f} million characters/s"
    ]
    if report.dropped:
        rows = [
            [step, reason, f"{times:,}", *report.examples.get(f"{step}: {reason}", [("", "")])[0]]
            for (step, reason), times in sorted(
                report.dropped.items(), key=lambda item: int(item[0][0].split()[0])
            )
        ]
        parts.append(table(["step", "why", "dropped", "for example", "what"], rows))
    if report.bad:
        parts.append(f"{report.bad:,} rows could not be read, the first: "
                     + ": ".join(report.bad_examples[0]))  # fmt: skip
    return "\n".join(parts)


@contextmanager
def _bar(silent: bool) -> Iterator[Show]:
    """Counts on stderr where that is a terminal."""
    if silent or not sys.stderr.isatty():
        yield lambda report: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    told = TextColumn("{task.fields[told]}")
    with Progress(
        SpinnerColumn(), told, TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("", total=None, told="starting")
        began = time.perf_counter()

        def show(report: Report) -> None:
            rate = report.read / (time.perf_counter() - began)
            share = report.kept / max(1, report.read)
            bar.update(
                task,
                told=f"{report.read:,} read, {share:.1%} kept, {rate:,.0f} documents/s"
                + (f", {report.bad:,} bad" if report.bad else ""),
            )

        yield show
