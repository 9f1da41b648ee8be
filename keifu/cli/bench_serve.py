"""`keifu bench serve`: latency and throughput of a server, at rates that it does not choose."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from keifu.cli.model import DEFAULT
from keifu.cli.options import Argument, Fields, Option
from keifu.cli.table import table
from keifu.core.errors import KeifuError
from keifu.evaluation.findings import Column, Findings, Lines
from keifu.lm.latency import LATENCIES, PERCENTILES
from keifu.lm.openloop import LoadOptions

CONNECTIONS = 16_384
"""Enough that no request waits for one."""
_LATE, _BUSY = 0.1, 0.7


def command(
    model: Annotated[str, Argument("[MODEL]")] = "",
    url: Annotated[
        str | None,
        Option("--url", help="A running server's API, as http://host:8000/v1; MODEL is its name."),
    ] = None,
    options: Annotated[LoadOptions, Fields(LoadOptions)] = LoadOptions(),
    flags: Annotated[
        str, Option("--flags", help='Flags of our own server, as "--parallel 8 --threads 2".')
    ] = "",
    plot: Annotated[
        Path | None, Option("--plot", metavar="FILE", help="Draw latency over rate (.png, .svg).")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """How a server answers under load: requests leave at random times, at the rates given.

    Without --url, `keifu serve MODEL` is started for it on a free port and stopped afterwards.
    With it, any server of OpenAI's API is asked (vLLM, llama-server); its key is KEIFU_API_KEY.
    Requests never wait for earlier ones, and latency counts from when a request was due.
    """
    if plot is not None:
        from keifu.evaluation.plot import check

        check(plot)
    if url is not None and flags:
        raise KeifuError("--flags are of a server of our own: leave out --url, or them")
    if url is None:
        found = _our_own(model or DEFAULT, flags, options, quiet=as_json)
    else:
        found = _measured(url, model, options)
    if plot is not None:
        from keifu.evaluation.plot import draw

        draw(findings(found), plot)
    print(json.dumps(found, allow_nan=False, default=str) if as_json else drawn(found))


def _our_own(model: str, flags: str, options: LoadOptions, *, quiet: bool) -> dict[str, Any]:
    """A server of ours, for as long as it is measured."""
    from keifu.cli.fetch import fetch
    from keifu.lm.measure import described
    from keifu.lm.serving import Serving, command

    try:
        words = shlex.split(flags)
    except ValueError as wrong:
        raise KeifuError(f"--flags {flags!r} cannot be split into words: {wrong}") from None
    fetch(model, quiet=quiet)
    _told(f"starting a server of {model}")
    with Serving(command(model, words)) as server:
        found = _measured(f"{server.url}/v1", "", options)
    return {**found, "machine": described(), "flags": flags}


def _measured(url: str, model: str, options: LoadOptions) -> dict[str, Any]:
    import keifu.lm
    from keifu.lm.openai import OpenAILM
    from keifu.lm.openloop import measure

    address = url + (f"#{model}" if model else "")
    timeout = options.timeout
    lm = keifu.lm.load(address, timeout=timeout, retries=0, connections=CONNECTIONS)
    assert isinstance(lm, OpenAILM)
    try:
        return measure(lm, options, told=_told)
    finally:
        lm.close()
        _told("")


def _told(text: str) -> None:
    if sys.stderr.isatty():
        tail = f"{text} ..." if text else ""
        print(f"\r\033[K{tail}", end="", file=sys.stderr, flush=True)


def drawn(found: Mapping[str, Any]) -> str:
    """Two tables, and what a reader must know."""
    settings, rows = found["settings"], found["rows"]
    words = [f"{','.join(settings[name])} {name} tokens" for name in ("input", "output")]
    if settings["shared"]:
        words.append(f"{100 * settings['shared']:g}% of each prompt shared")
    if settings["concurrency"]:
        words.append(f"at most {settings['concurrency']} at once")
    goodput = any(row["goodput"] is not None for row in rows)
    header = ["rate", "done", "failed", "requests/s", "output tok/s", "total tok/s", "at once"]
    through = [
        [
            f"{row['rate']:g}",
            str(row["completed"]),
            str(row["failed"]),
            f"{row['achieved']:.2f}",
            f"{row['output_rate']:.1f}",
            f"{row['total_rate']:.1f}",
            str(row["at_once"]),
            *([f"{row['goodput'] or 0:.2f}"] if goodput else []),
        ]
        for row in rows
    ]
    columns = ["mean", *(f"p{q}" for q in PERCENTILES)]
    late = [
        [f"{row['rate']:g}", about, *(f"{1e3 * row[name][c]:.1f} ms" for c in columns)]
        for row in rows
        for name, about in LATENCIES.items()
        if row[name]
    ]
    parts = [
        f"{found['model']}: {', '.join(words)} ({settings['prompts']})",
        table([*header, *(["good/s"] if goodput else [])], through),
        table(["rate", "latency", *columns], late),
    ]
    return "\n\n".join(parts + [line for row in rows for line in notes(row)])


def notes(row: Mapping[str, Any]) -> list[str]:
    """What makes a row's numbers less than they seem."""
    at, found = f"at {row['rate']:g} requests/s", []
    for error, number in row["errors"].items():
        found.append(f"{at}, {number} failed: {error}")
    if row["late"] and row["ttft"] and row["late"]["p99"] > _LATE * row["ttft"]["p99"]:
        found.append(
            f"{at}, requests left up to {1e3 * row['late']['p99']:.0f} ms late (p99): "
            "--concurrency held them back, or this client is too slow"
        )
    if row["client_cpu"] > _BUSY:
        found.append(f"{at}, this client took {100 * row['client_cpu']:.0f}% of a core")
    return found


def findings(found: Mapping[str, Any]) -> Findings:
    """Latencies over rate, a line a percentile."""
    rows = tuple(
        {
            "percentile": f"p{q}",
            "rate": row["rate"],
            **{name: row[name] and row[name][f"p{q}"] for name in LATENCIES},
        }
        for row in found["rows"]
        for q in PERCENTILES
    )
    return Findings(
        probe="serve",
        title=f"{found['model']} under load",
        axes=(Column("percentile", "name"), Column("rate", "count", "requests a second")),
        measures=tuple(Column(name, "seconds", about) for name, about in LATENCIES.items()),
        rows=rows,
        picture=Lines("rate", tuple(LATENCIES)),
    )
