"""A subject with known speeds: `python fake_subject.py VERSION SECONDS_A_TOKEN [fail|absent]`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from keifu.lm import peers

VERSION, STEP, *HOW = sys.argv[1:]
FACTS = {"weights": "none", "vocab": 50, "bytes": 1000, "state": 10, "flops": 4000}


class Fake:
    """Reads 4 prompt tokens in the time of one step."""

    version = VERSION

    def __init__(self) -> None:
        print("noise on standard output must not reach the answers")
        if HOW == ["absent"]:
            raise ImportError("No module named 'fake'")
        self.held = b""

    def load(self, model: str, threads: int, context: int, streams: int = 1) -> dict[str, Any]:
        if HOW == ["fail"]:
            raise ValueError(f"cannot read {model.rsplit('/', 1)[-1]}")
        if HOW == ["die"]:
            print("out of luck", file=sys.stderr)
            sys.exit(3)
        self.held = b"x" * (64 << 20)
        return {**FACTS, "path": "Fake", "why_plain": ""}

    def generate(self, prompt: list[int], new: int) -> Iterator[int]:
        time.sleep(len(prompt) / 4 * float(STEP))
        for token in range(new):
            yield token
            time.sleep(float(STEP))

    def together(self, prompts: list[list[int]], new: int) -> list[list[float]]:
        """Prompts one after the other, then a token for each of them a step."""
        times: list[list[float]] = [[] for _ in prompts]
        for prompt, mine in zip(prompts, times, strict=True):
            time.sleep(len(prompt) / 4 * float(STEP))
            mine.append(time.perf_counter())
        for _ in range(new - 1):
            time.sleep(float(STEP))
            for mine in times:
                mine.append(time.perf_counter())
        return times

    def logprobs(self, tokens: list[int]) -> list[float]:
        return [-1.0 for _ in tokens[1:]]


def ceilings(threads: int) -> dict[str, float]:
    return {"bandwidth": 2e6 * threads, "bf16": 8e6 * threads}


peers.serve(Fake, {"ceilings": ceilings})
