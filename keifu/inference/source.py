"""Encoding what the requests to an encoder-decoder give it to read: several in one ragged pass.

A source that is read in chunks gets one pass over some of them a step of the engine, so that what
runs already goes on meanwhile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from keifu.inference.onward import onward
from keifu.inference.sequence import Sequence as Output
from keifu.nn.chunks import Chunk, Overlap, passes
from keifu.nn.pair import PairModule
from keifu.nn.stack import StackModule
from keifu.nn.step import Step, fresh_step

ENCODED = 2048
"""Source tokens of one pass: what runs already waits no longer than that. A longer source runs
alone."""


def together(outputs: Iterable[Output]) -> list[Output]:
    """As many outputs, in order, as one pass takes; at least one."""
    found: list[Output] = []
    total = 0
    for output in outputs:
        total += len(output.job.source)
        if found and total > ENCODED:
            break
        found.append(output)
    return found


def encode_each(
    pair: PairModule,
    outputs: list[Output],
    device: torch.device,
    compute: torch.dtype | None,
    failed: Callable[[Output, Exception], None],
) -> None:
    """`encode`; where several fail together, each on its own."""
    try:
        encode(pair, outputs, device, compute)
    except Exception:
        for output in outputs:
            try:
                encode(pair, [output], device, compute)
            except Exception as error:
                failed(output, error)


def encode(
    pair: PairModule, outputs: list[Output], device: torch.device, compute: torch.dtype | None
) -> None:
    """Give each output its source's memory, which lives until the first step has written it."""
    for output in outputs:
        if output.job.past is not None:
            output.memories = {pair.spec.memory: onward(pair, output.job, device, compute)}
    outputs = [output for output in outputs if output.job.past is None]
    if not outputs:
        return
    chunks, sources = pair.spec.chunks, [output.job.source for output in outputs]
    if chunks is not None and sum(map(len, sources)) > ENCODED:
        _further(pair, chunks, outputs[0], device, compute)
        return
    ids, step = _ragged(sources, device, compute)
    step = replace(step, landmarks=tuple(output.job.landmarks for output in outputs))
    for output, memory in zip(outputs, pair.read(ids, step), strict=True):
        output.memories = {pair.spec.memory: memory}


def _ragged(
    sources: Sequence[Sequence[int]], device: torch.device, compute: torch.dtype | None
) -> tuple[Tensor, Step]:
    """Sources one after another (tokens,), and the step that says where each is."""
    step = replace(fresh_step([len(s) for s in sources], device), compute=compute)
    return torch.tensor(list(itertools.chain(*sources)), device=device), step


@dataclass
class Reading:
    """A source on its way to being a memory."""

    ids: Tensor
    step: Step
    left: list[list[Chunk]]
    """The chunks that are still to be read, by the pass that they run in."""
    pieces: list[Tensor] = field(default_factory=list)


def _further(
    pair: PairModule,
    chunks: Overlap,
    output: Output,
    device: torch.device,
    compute: torch.dtype | None,
) -> None:
    """One more pass over one output's source; after the last of them it has its memory."""
    reading = output.reading
    if reading is None:
        ids, step = _ragged([output.job.source], device, compute)
        reading = output.reading = Reading(ids, step, passes(chunks.of(len(ids))))
    reading.pieces += pair.read_chunks(reading.ids, reading.left[0], reading.step)
    del reading.left[0]
    if not reading.left:
        output.memories = {pair.spec.memory: pair.bridged(torch.cat(reading.pieces))}
        output.reading = None


def mean_state(
    reader: StackModule | PairModule, prompt: Sequence[int], device: torch.device
) -> Tensor:
    """The mean of what a prompt's last hidden states are, an encoder's of a pair: (width,)."""
    step, ids = fresh_step([len(prompt)], device), torch.tensor(list(prompt), device=device)
    if isinstance(reader, PairModule):
        (hidden,) = reader.states(ids, step)
    else:
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        hidden = reader.run(ids, step, select=nothing).hidden
    return hidden.float().mean(0).cpu()
