"""`keifu bench`: how fast a model runs here, against the machine's limits and against peers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from keifu.cli.model import DEFAULT
from keifu.cli.options import Argument, Fields, Option
from keifu.cli.table import size, table
from keifu.lm import streams
from keifu.lm.measure import OURS, BenchOptions, commands, compare
from keifu.lm.streams import GridOptions


def command(
    model: Annotated[str, Argument("[MODEL]")] = DEFAULT,
    options: Annotated[BenchOptions, Fields(BenchOptions)] = BenchOptions(),
    peers: Annotated[
        str,
        Option("--peers", metavar="NAMES", help="Compare with these too (with commas), or `none`."),
    ] = "llama-cpp-python,transformers",
    python: Annotated[
        Path | None, Option("--python", help="The Python that has the peers (default: this one).")
    ] = None,
    grid: Annotated[
        bool, Option("--grid", help="Measure 1, 4 and 16 streams at 512 and 4096 tokens instead.")
    ] = False,
    plot: Annotated[
        Path | None, Option("--plot", metavar="FILE", help="Also draw it: .png, .svg or .pdf.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """How fast MODEL runs here: loading, first token, reading a prompt, decoding, memory.

    Peers that are installed run on the same file with as many threads, in turn with Keifu. The
    limit is what the machine's memory bandwidth allows for decoding, and its bfloat16 matrix
    products for reading; a quiet machine gives the truest numbers.
    """
    from keifu.cli.fetch import fetch
    from keifu.evaluation.plot import check

    if plot is not None:
        check(plot)
    names = [] if peers == "none" else [n for n in map(str.strip, peers.split(",")) if n]
    subjects = commands(names, str(python) if python else None)
    path = fetch(model, quiet=as_json)
    show = sys.stderr.isatty()
    if grid:
        cells = GridOptions(
            threads=options.threads, new=options.new, rounds=options.rounds, seed=options.seed
        )
        found = streams.grid(path, subjects, cells, told=_told if show else lambda text: None)
    else:
        found = compare(path, subjects, options, told=_told if show else lambda text: None)
    if show:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if plot is not None:
        from keifu.cli.bench_plot import draw

        draw(found, plot)
    print(json.dumps(found) if as_json else (drawn_grid if grid else drawn)(found))


def _told(text: str) -> None:
    print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True)


def drawn_grid(found: Mapping[str, Any]) -> str:
    """One line a cell and subject."""
    header = ["", "streams", "context", "decode", "prefill", "first token", "peak memory", OURS]
    rows = [
        [
            row["subject"],
            str(row["batch"]),
            str(row["context"]),
            f"{row['decode']:.0f} tok/s",
            f"{row['prefill']:.0f} tok/s",
            f"{row['first_token']:.2f} s",
            size(row["memory"]),
            _times(row.get("ratio")),
        ]
        for row in found["rows"]
    ]
    parts = [table(header, rows)]
    parts += [f"{name} was left out: {why}" for name, why in found["absent"].items()]
    if found["plain"]:
        parts.append(f"Keifu ran its plain path: {found['plain']}")
    return "\n\n".join(parts)


def drawn(found: Mapping[str, Any]) -> str:
    """The result as tables."""
    settings, machine, limits = found["settings"], found["machine"], found["limits"]
    rows = [
        [
            f"{name} {told['version'].split()[0]}",
            f"{told['load']:.2f} s",
            f"{1000 * told['first_token']:.0f} ms",
            f"{told['prefill']:.0f} tok/s",
            f"{told['decode']:.1f} tok/s",
            size(told["memory"]),
        ]
        for name, told in found["subjects"].items()
    ]
    rows.append(
        ["limit", "", "", f"{limits['prefill']:.0f} tok/s", f"{limits['decode']:.1f} tok/s", ""]
    )
    prompt = settings["prompt"]
    speeds = [f"prefill({prompt})", f"decode at {prompt}"]
    header = ["", "load", "first token", *speeds, "peak memory"]
    parts = [
        f"{settings['model']}, {settings['threads']} threads, "
        f"median of {settings['rounds']} rounds\n"
        f"{machine['processor']}, {machine['cores']} cores, {size(machine['memory'])} of memory; "
        f"{limits['bandwidth'] / 1e9:.1f} GB/s, {limits['bf16'] / 1e9:.0f} GFLOP/s (bf16)",
        table(header, rows),
        table(
            [f"{OURS} against", "first token", "prefill", "decode"],
            [
                [name, *(_times(told.get(m)) for m in ("first_token", "prefill", "decode"))]
                for name, told in found["ratios"].items()
            ],
        ),
    ]
    parts += [f"{name} was left out: {why}" for name, why in found["absent"].items()]
    if why := found["subjects"][OURS]["why_plain"]:
        parts.append(f"Keifu ran its plain path: {why}")
    return "\n\n".join(parts)


def _times(ratio: Mapping[str, float] | None) -> str:
    """A median ratio with its spread, in times our speed over theirs."""
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
