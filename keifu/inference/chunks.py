"""How much of an output a step reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from keifu.inference.sequence import FORCED, Sequence

CHUNK = 512
"""Prompt tokens a request reads at once; fixed, so that results do not depend on the load."""
FAR = 4096
"""The same on other devices than the processor, which need more work at a time to be busy."""
SCORED = 128
"""The same where every position's logits are wanted: bounds their memory."""
ALONE = 64
"""The same of a deterministic engine; what its requests share ends with a chunk."""


def chunk_of(device: torch.device) -> int:
    """How many tokens of a prompt are read at once on a device."""
    return CHUNK if device.type == "cpu" else FAR


@dataclass(frozen=True)
class Chunks:
    """The steps in which an engine's outputs are read."""

    deterministic: bool
    most: int = CHUNK

    def count(self, output: Sequence) -> int:
        """Tokens that an output reads in its next step: up to the next multiple of the chunk."""
        scored = output.job.sampling.prompt_logprobs is not None
        chunk = ALONE if self.deterministic else SCORED if scored else self.most
        length = output.state.length if output.state else 0
        end = output.branch if output.branch > length else 2**62
        # What was generated is read again as it was made, one by one, where bits have to be equal.
        asked = max(len(output.job.prompt) - output.read, 1)
        left = asked if self.deterministic else output.pending
        return min(left, chunk - length % chunk, end - length)

    def room(self, output: Sequence) -> int:
        """Tokens that an output of which all is read may go on by before its next chunk begins."""
        return self.most - (output.length - 1) % self.most

    def last(self, output: Sequence) -> bool:
        """Whether an output goes on with the others: its next step reads its last few tokens."""
        few = output.generated > 0 < output.read and output.pending <= 1 + FORCED
        return few and self.count(output) == output.pending
