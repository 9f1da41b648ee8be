"""Whether Keifu chooses the tokens that the references choose, on a real model.

transformers runs the decoded weights in float32, over prompts and what Keifu made of them
(teacher-forced, so that one tie does not hide the rest). Where its two best logits lie further
apart than a margin, the best one must be ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import keifu
from keifu.lm import LM
from keifu.lm.measure import Worker, commands

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees because",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three laws of thermodynamics are:\n1.",
    "Q: What is 17 plus 25?\nA:",
    "In 1969, two astronauts",
    "import numpy as np\n\ndef softmax(x):",
    "The mitochondrion is",
    "To bake bread you need flour, water,",
    "Shakespeare wrote",
    "<html>\n<head>\n<title>",
    "She opened the letter and read:",
    "Photosynthesis converts light into",
    "The opposite of hot is",
    "SELECT name, age FROM users WHERE",
    "Translate to French: Good morning ->",
    "My favourite book is",
    "Breaking news: scientists have discovered",
)
NEW, TIE, CLEAR = 64, 1e-3, 0.5
WINDOW, TEXT = 512, 50_000
FORCED = 5120
"""Tokens of the text whose predictions are compared one by one."""
LONG, AFTER, GAP = 416, 24, 250
"""Tokens of long prompts, and what is made after each; how far apart they begin."""
MARGINS = (0.0, 0.1, CLEAR)
Options = Mapping[str, Any]
WAYS: Mapping[str, tuple[Options, Options]] = {
    "coarse": ({}, {}),
    "fine": ({}, {"prompt_logprobs": 0}),
    "bfloat16 state": ({"state": "bf16"}, {}),
}
"""How a model may be loaded and a long prompt be read: as by default; in both planes throughout, as
what is scored is; with keys and values in 16 bits."""

Reference = Callable[[Sequence[int]], torch.Tensor]
"""Token ids (n,) -> logits (n, vocab) float32."""


@dataclass(frozen=True)
class Agreement:
    """Predictions whose margin was wide enough to count, and how many of them were the same."""

    clear: int
    same: int

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.clear + other.clear, self.same + other.same)

    @property
    def share(self) -> float:
        return self.same / self.clear if self.clear else math.nan


def transformers_on(path: Path, threads: int) -> Reference:
    """The same file, decoded to float32, in transformers."""
    import transformers

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()

    def logits(tokens: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            rows: torch.Tensor = model(torch.tensor([list(tokens)])).logits[0].float()
        return rows

    return logits


def agreement(rows: torch.Tensor, chosen: Sequence[int], margin: float) -> Agreement:
    """How often `chosen` (n,) is the best of rows (n, vocab) whose best two differ by more."""
    best = rows.topk(2, dim=-1)
    clear = best.values[:, 0] - best.values[:, 1] > margin
    same = best.indices[:, 0] == torch.tensor(chosen)
    return Agreement(int(clear.sum()), int((same & clear).sum()))


def greedy(lm: LM, reference: Reference, prompts: Sequence[str], margin: float) -> Agreement:
    """What the model makes of each prompt, token by token."""
    total = Agreement(0, 0)
    for prompt in prompts:
        ids = lm.encode(prompt)
        made = lm.complete(ids, max_tokens=NEW, temperature=0, ignore_eos=True).tokens
        assert len(made) == NEW
        rows = reference([*ids, *made])[len(ids) - 1 : -1]
        total += agreement(rows, made, margin)
    return total


def forced(lm: LM, reference: Reference, windows: Sequence[Sequence[int]]) -> Agreement:
    """What the model finds likeliest after each token of given texts, read as prompts."""
    total = Agreement(0, 0)
    for ids in windows:
        done = lm.complete(ids, max_tokens=0, temperature=0, prompt_logprobs=1)
        told = (done.prompt_logprobs or ())[1:]
        total += agreement(reference(ids)[:-1], [t.top[0].id for t in told], CLEAR)
    return total


def text() -> str:
    """50 KB of prose: Python's own documentation, as far as it comes with the interpreter."""
    from pydoc_data.topics import topics

    whole = "\n".join(topics[name] for name in sorted(topics))
    return whole[:TEXT]


def windows(ids: Sequence[int]) -> list[list[int]]:
    """Stretches of the text that are read apart."""
    parts = [list(ids[i : i + WINDOW]) for i in range(0, len(ids), WINDOW)]
    return [part for part in parts if len(part) > 1]


def gaps(lm: LM, ids: Sequence[int], made: Sequence[int]) -> list[tuple[float, bool]]:
    """How far apart the model's two best logits lie before each of `made` after `ids`, and
    whether that is the best one."""
    done = lm.complete([*ids, *made], max_tokens=0, temperature=0, prompt_logprobs=2)
    told = (done.prompt_logprobs or ())[len(ids) :]
    return [(t.top[0].logprob - t.top[1].logprob, t.id == t.top[0].id) for t in told]


def clear(found: Sequence[tuple[float, bool]], margin: float) -> Agreement:
    """Those that are further apart."""
    same = [same for gap, same in found if gap > margin]
    return Agreement(len(same), sum(same))


def like(lm: LM, prompts: Sequence[Sequence[int]], made: Sequence[Sequence[int]]) -> Agreement:
    """How often a peer's greedy tokens are those that this model clearly prefers."""
    pairs = zip(prompts, made, strict=True)
    return sum((clear(gaps(lm, *pair), CLEAR) for pair in pairs), Agreement(0, 0))


def long_prompts(lm: LM) -> list[list[int]]:
    """Stretches of the text."""
    ids = lm.encode(text())
    starts = range(0, len(PROMPTS) * GAP, GAP)
    return [list(ids[start : start + LONG]) for start in starts]


def after_long_prompts(path: Path, reference: Reference, threads: int) -> Mapping[str, Any]:
    """Greedy tokens after long prompts, by how a prompt is read and what judges them.

    Rows are judged by the model itself in both planes, and by float32; columns count the places
    where the judge's two best logits lie further apart than each margin.
    """
    prompts: list[list[int]] = []
    table: dict[str, Any] = {}

    def counted(row: str, margin: float, found: Agreement) -> None:
        told = table.setdefault(f"after {LONG} tokens, {row}", {})
        told[f"same over {margin}" if margin else "same"] = f"{found.same} of {found.clear}"
        if margin == CLEAR:
            told["holds"] = found.share >= 0.99

    made: dict[str, list[Sequence[int]]] = {}
    for way, (loaded, how) in WAYS.items():
        lm = keifu.load(str(path), threads=threads, prefixes=False, **loaded)
        prompts = long_prompts(lm)
        asked = {"max_tokens": AFTER, "temperature": 0, "ignore_eos": True, **how}
        made[way] = [lm.complete(ids, **asked).tokens for ids in prompts]
        lm.close()
    lm = keifu.load(str(path), threads=threads, prefixes=False)
    for way, tokens in made.items():
        pairs = list(zip(prompts, tokens, strict=True))
        if way != "fine":
            judged = [each for pair in pairs for each in gaps(lm, *pair)]
            for margin in MARGINS:
                counted(f"{way} as fine", margin, clear(judged, margin))
        rows = [reference([*ids, *new])[len(ids) - 1 : -1] for ids, new in pairs]
        for margin in MARGINS:
            each = (agreement(r, new, margin) for r, (_, new) in zip(rows, pairs, strict=True))
            counted(f"{way} as float32", margin, sum(each, Agreement(0, 0)))
    lm.close()
    return table


def by_default(path: Path, reference: Reference, threads: int) -> Mapping[str, Any]:
    """A text that is read, and what is made after short prompts."""
    lm = keifu.load(str(path), threads=threads)
    parts = windows(lm.encode(text())[:FORCED])
    total = forced(lm, reference, parts) + greedy(lm, reference, PROMPTS, CLEAR)
    lm.close()
    return {"default": _judged(total)}


def exactly(path: Path, reference: Reference, threads: int) -> Mapping[str, Any]:
    """The same in float32, without the text."""
    lm = keifu.load(str(path), threads=threads, precision="exact")
    total = greedy(lm, reference, PROMPTS, TIE)
    lm.close()
    holds = total.same == total.clear > 0
    return {"exact": {"clear": total.clear, "same": total.same, "holds": holds}}


def of_llama(path: Path, threads: int, python: str | None) -> Mapping[str, Any]:
    """llama-cpp-python's greedy tokens, judged by ours in float32."""
    lm = keifu.load(str(path), threads=threads, precision="exact")
    prompts = [lm.encode(prompt) for prompt in PROMPTS]
    name = "llama-cpp-python"
    worker = Worker(name, commands([name], python)[name])
    try:
        if "absent" in worker.hello:
            return {"absent": str(worker.hello["absent"])}
        worker.ask("load", model=str(path), threads=threads, context=WINDOW)
        made = [worker.ask("greedy", prompt=ids, new=NEW)["tokens"] for ids in prompts]
        judged = _judged(like(lm, prompts, made))
        return {f"greedy of {name}": judged, "version": str(worker.hello["version"])}
    finally:
        worker.close()
        lm.close()


def measure(path: Path, *, threads: int, python: str | None = None) -> Mapping[str, Any]:
    """All checks; each says what it found and whether that is enough."""
    reference = transformers_on(path, threads)
    found: dict[str, Any] = {}
    for check in (after_long_prompts, by_default, exactly):
        print(check.__name__.replace("_", " "), flush=True)
        found |= check(path, reference, threads)
    return found | dict(of_llama(path, threads, python))


def _judged(found: Agreement) -> dict[str, Any]:
    holds = found.share >= 0.99
    return {"clear": found.clear, "same": found.same, "share": found.share, "holds": holds}
