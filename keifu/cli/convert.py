"""`keifu convert`: a checkpoint in another format or type, checked against the source."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

from keifu.cli.options import Argument, Option
from keifu.cli.table import size

if TYPE_CHECKING:
    from keifu.families._convert import Report

SCHEMA = 1


def command(
    source: Annotated[str, Argument("SOURCE")],
    target: Annotated[str, Argument("TARGET")],
    type: Annotated[
        str | None,
        Option("--type", "-t", help="f32, bf16, f16; GGUF also q8_0, q6_k, q4_k, q4_1, q4_0."),
    ] = None,
    max_kl: Annotated[
        float | None,
        Option("--max-kl", help="Most divergence from the source that passes, in nats a token."),
    ] = None,
    allow_pickle: Annotated[
        bool, Option("--allow-pickle", help="Read .bin and .pth files, if you trust their source.")
    ] = False,
    allow_nonfinite: Annotated[
        bool, Option("--allow-nonfinite", help="Convert NaN and infinite weights, too.")
    ] = False,
    offline: Annotated[bool, Option("--offline", help="Use no network.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, Option("-q", "--quiet", help="Print nothing.")] = False,
) -> None:
    """Write a checkpoint in another format: `keifu convert smollm2 my-folder`.

    SOURCE is a name, a path or a hub id. TARGET is a GGUF file if it ends in .gguf, else a Hugging
    Face folder. The tokenizer, the chat template, the generation settings and the licence go along.
    The result is opened again and compared with the source, and takes its name only if it agrees.
    """
    from keifu.cli.fetch import fetch
    from keifu.families._convert import ConvertOptions, convert

    options = ConvertOptions(
        type=type, max_kl=max_kl, allow_pickle=allow_pickle, allow_nonfinite=allow_nonfinite
    )
    loud = not (quiet or as_json)
    path = fetch(source, offline=offline or None, quiet=not loud)
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if loud else (lambda text: None)
    report = convert(path, target, options, say=say)
    if as_json:
        print(json.dumps({"schema_version": SCHEMA, **report.record()}, indent=2))
    elif not quiet:
        print(told(report))


def told(report: Report) -> str:
    """The report for a person."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.types.items())
    found = report.agreement
    if report.lossless:
        exact = "to the last bit" if found.identical else f"to {found.max_difference:.2g}"
        verdict = f"the same weights; logits agree {exact}"
    else:
        verdict = (
            f"top-1 agreement {found.top1:.1%}, divergence {found.kl:.3g} nats a token "
            f"(at most {report.max_kl:g}) over {found.positions} tokens"
        )
    lines = [f"{report.target}: {report.family}, {size(report.bytes)}, {kinds}", f"  {verdict}"]
    lines += [f"  note: {note}" for note in report.notes]
    return "\n".join(lines)
