"""Speculation: processor time of an output with and without, on an edit and on free text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keifu.inference.speculation import Speculation
from keifu.lm.local import LocalLM
from keifu.lm.opening import load_local

WAYS = ("none", "lookup", "early-exit:20")
CODE = "\n".join(
    f"def read_{name}(path):\n    with open(path) as file:\n        return [line.strip() for line "
    f"in file if '{name}' in line]\n"
    for name in ("users", "orders", "prices", "cities")
)
PROMPTS = {
    "edit": f"Repeat this Python code exactly, with every `path` renamed to `name`:\n\n{CODE}",
    "free": "Tell me a story about a lighthouse keeper who finds a door in the sea.",
}
NEW, ROUNDS = 160, 3
BOUND = 1.02
"""What lookup may cost on a text that repeats nothing, beside none."""


def measure(path: Path, *, threads: int = 2, python: str | None = None) -> Mapping[str, Any]:
    """Tokens a second of processor time in decoding, and what became of the guesses."""
    models = {way: load_local(str(path), speculate=way, threads=1, ctx=2048) for way in WAYS}
    found: dict[str, Any] = {}
    for name, prompt in PROMPTS.items():
        rounds = [{way: _spent(lm, prompt) for way, lm in models.items()} for _ in range(ROUNDS)]
        for way, lm in models.items():
            ratio = statistics.median(r[way] / r["none"] for r in rounds)
            seconds = min(r[way] for r in rounds)
            told = {"tokens a second": NEW / seconds, "time of none": ratio}
            told |= _guesses(lm, prompt)
            if way == "lookup":
                told["holds"] = ratio <= (BOUND if name == "free" else 1.0)
            found[f"{name}, {way}"] = told
    for lm in models.values():
        lm.close()
    return found


def _spent(lm: Any, prompt: str) -> float:
    """Processor seconds of an answer of NEW tokens, without the prompt's."""
    took = []
    for most in (1, NEW):
        began = time.process_time()
        _answer(lm, prompt, most)
        took.append(time.process_time() - began)
    return took[1] - took[0]


def _guesses(lm: Any, prompt: str) -> dict[str, float]:
    assert isinstance(lm, LocalLM)
    speculation: Speculation | None = lm.engine.speculation
    if speculation is None:
        return {}
    usage = _answer(lm, prompt, NEW).usage
    return {"guessed": usage.drafted_tokens, "right": usage.accepted_tokens}


def _answer(lm: Any, prompt: str, most: int) -> Any:
    message = {"role": "user", "content": prompt}
    return lm.chat([message], max_tokens=most, temperature=0.0, ignore_eos=True)
