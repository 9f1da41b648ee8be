"""`keifu export`: a checkpoint as another program loads it, and the command that starts it."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from keifu.cli.convert import SCHEMA, told
from keifu.cli.options import Argument, Option


def command(
    source: Annotated[str, Argument("MODEL")],
    target: Annotated[str, Argument("TARGET")],
    program: Annotated[
        str, Option("--for", help="The program: vllm, transformers or llama.cpp.")
    ] = "vllm",
    type: Annotated[
        str | None,
        Option("--type", "-t", help="f32, bf16, f16; for llama.cpp also q8_0, q6_k, q4_k, q4_1."),
    ] = None,
    max_kl: Annotated[
        float | None,
        Option("--max-kl", help="Most divergence from the source that passes, in nats a token."),
    ] = None,
    allow_pickle: Annotated[
        bool, Option("--allow-pickle", help="Read .bin and .pth files, if you trust their source.")
    ] = False,
    offline: Annotated[bool, Option("--offline", help="Use no network.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, Option("-q", "--quiet", help="Print the command alone.")] = False,
) -> None:
    """Hand a checkpoint to another program: `keifu export smollm2 my-folder --for vllm`.

    MODEL is a name, a path or a hub id. TARGET is a folder, or for llama.cpp a .gguf file. Packed
    matrices are decoded where the program wants them so. The result is compared with the source as
    by `keifu convert`, and the command that starts the program on it is printed.
    """
    from keifu.cli.fetch import fetch
    from keifu.families._convert import ConvertOptions
    from keifu.lm.handoff import export

    options = ConvertOptions(type=type, max_kl=max_kl, allow_pickle=allow_pickle)
    loud = not (quiet or as_json)
    path = fetch(source, offline=offline or None, quiet=not loud)
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if loud else (lambda text: None)
    made = export(path, target, program, options, say=say)
    if as_json:
        record = made.report.record() | {
            "program": made.program, "type": made.type, "command": made.command,
            "notes": [*made.report.notes, *made.notes],
        }  # fmt: skip
        print(json.dumps({"schema_version": SCHEMA, **record}, indent=2))
        return
    if loud:
        print(told(made.report), *(f"  note: {note}" for note in made.notes), sep="\n")
        print(f"\n{made.program} runs it with")
    print(made.command)
