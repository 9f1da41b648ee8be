"""Running a step: token ids in, logits out, state advanced. Fast paths stand behind this seam."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ctypes import c_int32
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from keifu.inference.choosing import Chooser
from keifu.nn.masks import Landmarks
from keifu.nn.stack import StackModule
from keifu.nn.state import RequestState, StatePool
from keifu.nn.step import Step


@dataclass(frozen=True, kw_only=True, eq=False)
class Feed:
    """What a step reads: further tokens of some requests."""

    ids: Sequence[int]
    """All tokens, request after request."""
    states: Sequence[RequestState]
    lengths: Sequence[int]
    """How many tokens are each request's."""
    limits: Sequence[int]
    """The length that each request may reach."""
    compute: torch.dtype | None = None
    """What branches compute in; None: as it comes."""
    memories: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """By name, what cross mixers read, one tensor a request."""
    landmarks: tuple[Landmarks, ...] = ()
    coarse: tuple[int, ...] = ()
    """What lies at positions below this may be computed in fewer bits; empty: nothing may."""

    def step(self, device: torch.device) -> Step:
        """The same as blocks read it."""
        return step_of(
            self.states,
            self.lengths,
            self.limits,
            device,
            self.compute,
            self.memories,
            self.landmarks,
            self.coarse,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Stride:
    """Several steps at once: how their tokens are chosen, and when they end."""

    choosers: Sequence[Chooser]
    """One a request."""
    places: Sequence[int]
    """How many tokens each has chosen before."""
    most: int
    """Steps that there is room for."""
    ends: Sequence[int]
    """Tokens after which somebody has to look."""
    hurry: c_int32
    """Not 0: somebody waits, so the step that runs is the last."""
    seconds: float
    """That they should not take longer than together."""


class Runner(Protocol):
    """One way of running the blocks over a ragged batch."""

    free: float
    """How many tokens more cost as much as what a step costs for itself, whatever it reads."""

    def takes(self, lengths: Sequence[int], states: Sequence[RequestState]) -> bool:
        """Whether it runs a step with these many new tokens a row, after what the states hold."""

    def run(self, feed: Feed, select: Sequence[int]) -> Tensor:
        """Logits (len(select), vocab) float32 of the selected tokens; state is written in place.

        They may lie in the runner's own memory: whoever wants them after the next run keeps a copy.
        """

    def stride(self, feed: Feed, how: Stride) -> Sequence[Sequence[int]]:
        """Steps one after another over a token a request, each from the one before; state is
        written in place. What each step chose: (steps, requests). Of a runner that leaves choosing
        to others nothing is written, and there are no steps."""
        return ()


class TorchRunner(Runner):
    """The plain path: the modules themselves. It runs everything."""

    def __init__(self, model: StackModule, pool: StatePool) -> None:
        self.model, self.pool = model, pool
        # smollm2-135m in float32 on two cores: 70 ms for one token, 9 ms for each further one.
        # Other devices, which wait for memory longer, were not measured.
        self.free = 7.0 if pool.device.type == "cpu" else 32.0

    def takes(self, lengths: Sequence[int], states: Sequence[RequestState]) -> bool:
        """Always."""
        return True

    def run(self, feed: Feed, select: Sequence[int]) -> Tensor:
        """Blocks, norm and head, in PyTorch."""
        device = self.pool.device
        tokens = torch.tensor(feed.ids, device=device)
        handles = self.pool.handles(feed.states, feed.lengths)
        chosen = torch.tensor(list(select), dtype=torch.long, device=device)
        logits = self.model.run(tokens, feed.step(device), handles, select=chosen).logits
        if logits is None:
            raise ValueError("the model has no head to generate with")
        return logits.cpu()


Fast = Callable[[StackModule, StatePool, int], tuple[list[Runner], str]]
"""Makes the fast runners of a stack over a pool, for a context; or says why there are none."""


class Ways:
    """The ways to run a stack: fast ones, where there are some, and the plain one.

    Args:
        why: why there are no fast ones where `fast` is None.
        plain: makes the plain one.
    """

    def __init__(
        self,
        fast: Fast | None,
        why: str,
        plain: Callable[[StackModule, StatePool], Runner] = TorchRunner,
    ) -> None:
        self._fast, self.why, self._plain = fast, why, plain

    def __call__(self, model: StackModule, pool: StatePool, context: int) -> list[Runner]:
        """The runners of a stack, in the order in which they are tried."""
        found: list[Runner] = []
        if self._fast is not None:
            found, self.why = self._fast(model, pool, context)
        return [*found, self._plain(model, pool)]


def step_of(
    states: Sequence[RequestState],
    lengths: Sequence[int],
    limits: Sequence[int],
    device: torch.device,
    compute: torch.dtype | None = None,
    memories: Mapping[str, tuple[Tensor, ...]] | None = None,
    landmarks: tuple[Landmarks, ...] = (),
    coarse: tuple[int, ...] = (),
) -> Step:
    """The step that feeds `lengths` new tokens to each request."""
    offsets = [0]
    positions: list[int] = []
    for state, n in zip(states, lengths, strict=True):
        offsets.append(offsets[-1] + n)
        positions.extend(range(state.length, state.length + n))
    return Step(
        positions=torch.tensor(positions, device=device),
        offsets=tuple(offsets),
        limits=tuple(limits),
        compute=compute,
        memories=memories or {},
        landmarks=landmarks,
        coarse=coarse,
    )
