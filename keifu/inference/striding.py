"""Strides: steps that follow one another at once, where nobody but the kernels has a say in them.

What a token costs beside the model is cheap only as long as it is in the caches, through which
every step draws all weights; and the kernels' threads fall asleep while they wait for it. So
outputs whose next tokens follow from scores and settings alone are read several steps further
before their tokens are looked at: no more than their ends allow, and no longer than readers wait
gladly. Whoever comes meanwhile, or leaves, is looked after when the step that runs is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_int32

from keifu.inference.chunks import Chunks
from keifu.inference.runner import Feed, Runner, Stride
from keifu.inference.sequence import Sequence as Output
from keifu.nn.pages import OutOfState
from keifu.nn.state import StatePool

MOST = 8
"""Most steps of a stride."""
PACE = 0.05
"""Seconds that readers wait for what a stride gives: no slower than 20 pieces of text a second."""


class Strides:
    """The strides of one engine's outputs."""

    def __init__(
        self,
        pool: StatePool,
        runners: Sequence[Runner],
        chunks: Chunks,
        feed: Callable[[Sequence[Output], Sequence[int]], Feed],
    ) -> None:
        self._pool, self._runners, self._chunks, self._feed = pool, runners, chunks, feed
        self._hurry = c_int32(0)

    def hurry(self) -> None:
        """End the stride that runs after its present step. Safe from any thread."""
        self._hurry.value = 1

    def begin(self) -> None:
        """What anyone wanted up to now is about to be looked at."""
        self._hurry.value = 0

    def room(self, outputs: Sequence[Output]) -> int:
        """Steps that all of them can be taken on at once, with pages for them; 1: no stride."""
        if self._hurry.value or not all(output.steady for output in outputs):
            return 1
        steps = min(MOST, *(min(o.left, self._chunks.room(o)) for o in outputs))
        if steps < 2 or self._pool.free_tokens < len(outputs) * (steps + self._pool.page):
            return 1
        try:
            for output in outputs:
                assert output.state is not None
                self._pool.reserve(output.state, steps)
        except OutOfState:
            return 1
        return steps

    def take(self, outputs: Sequence[Output]) -> Sequence[Sequence[int]]:
        """The tokens of a stride, (steps, outputs); none where there cannot be one."""
        if (steps := self.room(outputs)) < 2:
            return ()
        feed = self._feed(outputs, [1] * len(outputs))
        runner = next(r for r in self._runners if r.takes(feed.lengths, feed.states))
        how = Stride(
            choosers=[o.chooser for o in outputs],
            places=[o.generated for o in outputs],
            most=steps,
            ends=sorted({token for o in outputs for token in o.ends}),
            hurry=self._hurry,
            seconds=PACE,
        )
        made = runner.stride(feed, how)
        for state in feed.states:
            self._pool.advance(state, len(made))
        return made
