"""Recording: work whose tensors keep their places, taken down once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Work = Callable[[], Tensor]
"""Reads and writes tensors that stay where they are; what it gives is its own."""


class Recorder(Protocol):
    """What takes work down."""

    def record(self, work: Work) -> Work:
        """The same work, replayed; what it gives lies in one place, until the next replay.

        The work runs several times meanwhile.
        """


class Graphs:
    """CUDA graphs, which share one pool of memory: one replay at a time.

    A graph of another one's pool may overwrite what that one gave, so a replay's result is used,
    or copied, before the next of any.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None

    def record(self, work: Work) -> Work:
        """A graph of the work, after it has warmed up on a stream of its own."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a tokenizer's, a server's) may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            given = work()
        self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return given

        return replay


class Calls:
    """Plain calls, for devices without graphs, and for tests: the same promises, no saving."""

    def record(self, work: Work) -> Work:
        """What calls the work and puts its result where the first call's lay."""
        given = work().clone()

        def replay() -> Tensor:
            return given.copy_(work())

        return replay


def recorder(device: torch.device) -> Recorder:
    """The best one for a device."""
    return Graphs(device) if device.type == "cuda" else Calls()
