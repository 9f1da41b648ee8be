"""Speculation: seconds of an output with and without guesses, by the kind of request.

What speculation promises is checked beside: the tokens are those that came without.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keifu.inference.request import Completion
from keifu.lm.base import LM
from keifu.lm.opening import load_local

WAYS = ("none", "lookup", "early-exit:20")
CODE = "\n".join(
    f"def read_{name}(path):\n    with open(path) as file:\n        return [line.strip() for line "
    f"in file if '{name}' in line]\n"
    for name in ("users", "orders", "prices", "cities")
)
NOTES = (
    "Maria Rossi was born in Turin in 1958 and studied physics at Padua. In 1985 she moved to the "
    "observatory of Arcetri near Florence, where she built the first of her four spectrographs. "
    "She directed the observatory from 1997 to 2006 and has taught at Siena since then."
)
PROMPTS = {
    "edit": f"Repeat this Python code exactly, with every `path` renamed to `name`:\n\n{CODE}",
    "quote": f"{NOTES}\n\nQuote the sentences that say where she worked, then list the years.",
    "code": "Write a Python class for a bank account with deposit, withdraw and transfer methods.",
    "free": "Tell me a story about a lighthouse keeper who finds a door in the sea.",
}
NEW, ROUNDS = 160, 4
BOUNDS = {"edit": 0.8, "quote": 1.0, "code": 1.0, "free": 1.02}
"""What lookup may cost beside none: 1.02 on a text that repeats nothing."""


def measure(path: Path, *, threads: int = 2, python: str | None = None) -> Mapping[str, Any]:
    """Tokens a second of decoding and the share of the time without, each by the best of the
    rounds (what else a machine does only adds), and what became of the guesses."""
    models = {way: load_local(str(path), speculate=way, threads=threads, ctx=2048) for way in WAYS}
    found: dict[str, Any] = {"settings": {"threads": threads, "new": NEW, "rounds": ROUNDS}}
    for name, prompt in PROMPTS.items():
        rounds = [{way: _spent(lm, prompt) for way, lm in models.items()} for _ in range(ROUNDS)]
        answers = {way: _answer(lm, prompt, NEW) for way, lm in models.items()}
        for way in models:
            ratios = [r[way] / r["none"] for r in rounds]
            best = {w: min(r[w] for r in rounds) for w in (way, "none")}
            usage = answers[way].usage
            told: dict[str, Any] = {"tokens a second": NEW / best[way]}
            if way != "none":
                told |= {"time of none": best[way] / best["none"]}
                told |= {"median of rounds": statistics.median(ratios)}
                told |= {"guessed": usage.drafted_tokens, "right": usage.accepted_tokens}
                same = answers[way].tokens == answers["none"].tokens
                told["same tokens"] = str(same).lower()
                told["holds"] = same and (way != "lookup" or told["time of none"] <= BOUNDS[name])
            found[f"{name}, {way}"] = told
    for lm in models.values():
        lm.close()
    return found


def _spent(lm: LM, prompt: str) -> float:
    """Seconds of an answer of NEW tokens, without the prompt's."""
    took = []
    for most in (1, NEW):
        began = time.perf_counter()
        _answer(lm, prompt, most)
        took.append(time.perf_counter() - began)
    return took[1] - took[0]


def _answer(lm: LM, prompt: str, most: int) -> Completion:
    message = {"role": "user", "content": prompt}
    return lm.chat([message], max_tokens=most, temperature=0.0, ignore_eos=True)
