"""A scripted model with a known weakness; run as a program, it probes itself slowly."""

from __future__ import annotations

import math
import re
import sys
import time
from pathlib import Path
from typing import Any

from keifu.evaluation.findings import Findings
from keifu.evaluation.probe import Subject, examine
from keifu.evaluation.probes.needle import Needle
from keifu.inference.request import Score
from keifu.lm.base import Prompt
from keifu.lm.scripted import Reply, Request, ScriptedLM

NEEDLE = re.compile(r"The magic number of \w+ is (\d+)\.")
PROBE = Needle(lengths=(96, 192), depths=(0, 25, 75, 100), parallel=1, score=False)


class Planted(ScriptedLM):
    """Finds a needle in the second half of its prompt alone; weighs answers all the same."""

    margin = 1.5

    async def ascore(self, prompt: Prompt, continuation: Prompt) -> Score:
        """The right number is likelier by a known margin, wherever it stands."""
        before, after = (
            p if isinstance(p, str) else self.tokenizer.decode(p) for p in (prompt, continuation)
        )
        found = NEEDLE.search(before)
        assert found
        right = after.strip() == found[1]
        return Score((-1.0 if right else -1.0 - self.margin,), greedy=right)


def answer(request: Request) -> Reply:
    """The number, or a shrug."""
    found = NEEDLE.search(request.prompt)
    assert found
    seen = found.start() > len(request.prompt) / 2
    return Reply(text=f"It is {found[1]}." if seen else "I cannot see it.")


def planted(**options: Any) -> Planted:
    lm = Planted.from_function(answer, **options)
    assert isinstance(lm, Planted)
    return lm


def asked(lm: ScriptedLM, out: Path | None = None, probe: Needle = PROBE) -> Findings:
    return examine("needle", probe, [Subject("planted", lambda: lm)], out=out)


if __name__ == "__main__":

    def slowly(request: Request) -> Reply:
        time.sleep(0.2)
        return answer(request)

    slow = Planted.from_function(slowly)
    assert math.isfinite(slow.margin)
    asked(slow, Path(sys.argv[1]))
