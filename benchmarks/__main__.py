"""`python -m benchmarks`: all of them on the default model; results go to benchmarks/results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import (
    accuracy,
    clean,
    constrain,
    embed,
    experts,
    gpu,
    mamba,
    perplexity,
    prefix,
    shards,
    soak,
    speculate,
    startup,
    streams,
    train,
    vectors,
)
from keifu.checkpoints.store import pull
from keifu.cli.bench import drawn
from keifu.core import machine
from keifu.lm import peers
from keifu.lm.measure import BenchOptions, commands, compare, described

RESULTS = Path(__file__).parent / "results"
HIDDEN = {"machine", "samples"}
"""What a table does not show."""
Found = Mapping[str, Any]


def speed(path: Path, *, threads: int, python: str | None, rounds: int) -> Found:
    """What `keifu bench` measures."""
    options = BenchOptions(threads=threads, rounds=rounds)
    return compare(path, commands(list(peers.PEERS), python), options, told=print)


def lines(name: str, found: Found) -> str:
    """A result in a few lines of Markdown."""
    if name == "speed":
        return f"```text\n{drawn(found)}\n```"
    shown = []
    for check, told in found.items():
        if told == []:
            continue
        if not isinstance(told, Mapping):
            shown.append(f"- {check}: {told}")
            continue
        verdict = {True: "holds", False: "DOES NOT HOLD", None: ""}[told.get("holds")]
        numbers = ", ".join(
            f"{k} {v if isinstance(v, str) else _number(v)}"
            for k, v in told.items()
            if k != "holds"
        )
        shown.append(f"- {check}: {numbers}" + (f" **{verdict}**" if verdict else ""))
    return "\n".join(shown)


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value / 1e6:.1f} MB" if value > 10**6 else str(value)
    return f"{value / 1e6:.1f} MB" if value > 1e6 else f"{value:.4g}"


def write(name: str, found: Found, shown: str) -> None:
    """One JSON file and one Markdown file a benchmark."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    machine = ", ".join(
        f"{k} {' '.join(v) if isinstance(v, list) else v}" for k, v in found["machine"].items()
    )
    (RESULTS / f"{name}.md").write_text(f"# {name}\n\n{shown}\n\nMachine: {machine}.\n")


def main() -> None:
    """Run what was asked for."""
    every: dict[str, Callable[..., Found]] = {
        "speed": speed,
        "streams": streams.measure,
        "startup": startup.measure,
        "accuracy": accuracy.measure,
        "perplexity": perplexity.measure,
        "constrain": constrain.measure,
        "vectors": vectors.measure,
        "clean": clean.measure,
        "embed": embed.measure,
        "mamba": mamba.measure,
        "speculate": speculate.measure,
        "experts": experts.measure,
        "gpu": gpu.measure,
        "prefix": prefix.measure,
        "tokenize": shards.measure,
        "train": train.measure,
        "soak": soak.measure,
    }
    own = {"clean", "embed", "experts", "gpu", "mamba", "train", "vectors"}
    """Those that do not run the model that is asked for, but their own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(every)}; none: all but soak")
    parser.add_argument("--model", default="smollm2-135m", help="a name, or a GGUF file")
    parser.add_argument("--python", help="the Python that has the peers, if not this one")
    parser.add_argument("--threads", type=int, default=machine.threads())
    parser.add_argument("--rounds", type=int, default=9, help="of speed, streams and tokenize")
    parser.add_argument("--minutes", type=float, default=30.0, help="of soak")
    parser.add_argument("--dry", action="store_true", help="print only, write nothing")
    given = parser.parse_args()
    if wrong := set(given.names) - set(every):
        parser.error(f"no benchmark {', '.join(wrong)}: {', '.join(every)}")
    path = pull(given.model) if {*(given.names or every)} - own else None
    for name in given.names or [n for n in every if n != "soak"]:
        options = {"threads": given.threads, "python": given.python}
        if name in ("speed", "streams", "tokenize"):
            options["rounds"] = given.rounds
        if name == "soak":
            options["minutes"] = given.minutes
        found = {"machine": described(), **every[name](path, **options)}
        shown = lines(name, {k: v for k, v in found.items() if name == "speed" or k not in HIDDEN})
        print(f"\n## {name}\n\n{shown}\n", flush=True)
        if not (given.dry or "not comparable" in found):
            write(name, found, shown)
            if name == "soak":
                soak.draw(found, RESULTS / "soak.png")


if __name__ == "__main__":
    main()
