"""Training beside a plain loop over transformers: tokens a second, share of the peak, memory.

The peer is `LlamaForCausalLM` from the same weights, autocast to bfloat16, `clip_grad_norm_` and
`torch.optim.AdamW(fused=True)`; we are `Trainer` with `precision="bf16"`. The same batches of the
standard library's own words in the same order. Each is a process of its own and they take turns;
ratios are taken within a round, then their median. The first step, which compiles what is compiled,
is told apart. Losses of all steps are compared, so that nobody trains less than the other.

Operations of a token: 6 a weight that is in a product, and 6 * layers * tokens of a row * width for
causal attention: forward and backward of half of the scores.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keifu.checkpoints.safetensors import Planned, write_safetensors
from keifu.checkpoints.transfer import empty
from keifu.families.llama import Llama
from keifu.inference.ceilings import matrix_peak
from keifu.lm.measure import Worker
from keifu.nn.stack import StackModule

SUBJECT = Path(__file__).with_name("train_subject.py")
NOISE = 0.02
"""Most difference of two losses of a step, in nats: bfloat16 rounds differently in each."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained."""

    family: Llama
    rows: int
    tokens: int
    steps: int
    """Of a round."""
    rounds: int
    ratio: float | None = None
    """Bars."""
    share: float | None = None

    def operations(self) -> float:
        """Of a step."""
        f = self.family
        each = f.width * (2 * f.heads + 2 * (f.kv_heads or 0)) * (f.head_width or 0)
        weights = f.depth * (each + 3 * f.width * f.hidden) + f.vocab * f.width
        scores = f.depth * self.tokens * f.heads * (f.head_width or 0)
        return 6.0 * (weights + scores) * self.rows * self.tokens


CASES: Mapping[str, Case] = {
    "7 M": Case(
        family=Llama(vocab=4096, width=256, hidden=688, depth=6, heads=4, context=256),
        rows=8, tokens=256, steps=4, rounds=5, ratio=1.6,
    ),
    "110 M": Case(
        family=Llama(
            vocab=32000, width=768, hidden=2048, depth=12, heads=12, context=512, tied=True
        ),
        rows=4, tokens=512, steps=1, rounds=3, share=0.5,
    ),
}  # fmt: skip


def batches(case: Case, count: int) -> np.ndarray[Any, Any]:
    """(count, rows, tokens): words of the standard library's sources, the frequent ones first."""
    wanted, said = count * case.rows * case.tokens, list[str]()
    for path in sorted(Path(json.__file__).parents[1].glob("*.py")):
        said += path.read_text("utf-8", "replace").split()
        if len(said) >= wanted:
            break
    known = {w: i + 1 for i, (w, _) in enumerate(Counter(said).most_common(case.family.vocab - 1))}
    ids = np.array([known.get(w, 0) for w in said], dtype=np.int64)
    return np.resize(ids, wanted).reshape(count, case.rows, case.tokens)


def save(case: Case, folder: Path, count: int) -> None:
    """The model both begin with, and what they read."""
    model = case.family.spec().build()
    assert isinstance(model, StackModule)
    state = dict(empty(model.initialise(0), case.family.names()))
    tensors = [Planned.of(n, t.detach()) for n, t in state.items() if isinstance(t, Tensor)]
    write_safetensors(folder, tensors, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(case.family.to_hf()))
    np.save(folder / "batches.npy", batches(case, count))


def trained(
    case: Case, subjects: Sequence[str], *, threads: int, python: str | None, rounds: int
) -> dict[str, Any]:
    """Everyone in turn."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in subjects}
    peaks: list[float] = []
    with TemporaryDirectory() as made:
        folder = Path(made)
        save(case, folder, 1 + case.steps * rounds)
        for name in subjects:
            starts = python if name.startswith("peer") and python else sys.executable
            command = [starts, str(SUBJECT), name, str(folder), str(threads)]
            runs[name].append({"worker": Worker(name, command)})
        try:
            for number in range(1 + rounds):
                turn = number % len(subjects)
                for name in [*subjects[turn:], *subjects[:turn]]:
                    worker = runs[name][0]["worker"]
                    runs[name].append(worker.ask("run", steps=case.steps if number else 1))
                peaks.append(matrix_peak(torch.bfloat16))
        finally:
            for told in runs.values():
                told.pop(0)["worker"].close()
    return _told(case, runs, max(peaks))


def _told(case: Case, runs: Mapping[str, list[dict[str, Any]]], peak: float) -> dict[str, Any]:
    tokens, losses = case.rows * case.tokens * case.steps, {}
    found: dict[str, Any] = {
        "operations a token": case.operations() / (case.rows * case.tokens),
        "matrix peak, GFLOP/s": peak / 1e9,
    }
    for name, told in runs.items():
        seconds = statistics.median(run["seconds"] for run in told[1:])
        losses[name] = [loss for run in told for loss in run["losses"]]
        found[name] = {
            "tokens a second": tokens / seconds,
            "share of the peak": case.operations() * case.steps / seconds / peak,
            "first step, seconds": told[0]["seconds"],
            "peak memory": told[-1]["peak"],
            "first loss": losses[name][0],
            "last loss": losses[name][-1],
        }
    if {"peer", "bf16"} <= set(runs):
        pairs = zip(runs["peer"][1:], runs["bf16"][1:], strict=True)
        ratios = sorted(theirs["seconds"] / mine["seconds"] for theirs, mine in pairs)
        differ = max(abs(a - b) for a, b in zip(losses["peer"], losses["bf16"], strict=True))
        ratio, mine = statistics.median(ratios), found["bf16"]
        less = mine["peak memory"] < found["peer"]["peak memory"]
        found["bf16 beside the peer"] = {
            "ratio": ratio,
            "lowest": ratios[0],
            "highest": ratios[-1],
            "memory, ours / theirs": mine["peak memory"] / found["peer"]["peak memory"],
            "largest difference of losses": differ,
            "holds": less
            and differ <= NOISE
            and ratio >= (case.ratio or 0)
            and mine["share of the peak"] >= (case.share or 0),
        }
    return found


def measure(
    path: Path | None,
    *,
    threads: int,
    python: str | None = None,
    cases: Sequence[str] = tuple(CASES),
    subjects: Sequence[str] = ("peer", "bf16"),
    rounds: int | None = None,
) -> Mapping[str, Any]:
    """Both shapes."""
    torch.set_num_threads(threads)
    found: dict[str, Any] = {}
    for name in cases:
        case = CASES[name]
        told = trained(case, subjects, threads=threads, python=python, rounds=rounds or case.rounds)
        found |= {f"{name}, {key}": value for key, value in told.items()}
    return found


if __name__ == "__main__":
    chosen = {"cases": sys.argv[1].split(";"), "subjects": sys.argv[2].split(";")}
    told = measure(None, threads=int(sys.argv[3]), rounds=int(sys.argv[4]), **chosen)
    print(json.dumps(told, indent=1))
