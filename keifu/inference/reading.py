"""Between outputs and a step: what a step reads of them, and the tokens that its logits give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from keifu.inference.choosing import choose, chosen
from keifu.inference.request import Delta
from keifu.inference.runner import Feed
from keifu.inference.sequence import Sequence as Output

_WRITTEN = torch.zeros(0)
"""Stands in a step for a memory of which all that is kept was written before."""


def feed_of(
    outputs: Sequence[Output],
    lengths: Sequence[int],
    compute: torch.dtype | None,
    *,
    marked: bool,
    coarse: bool,
) -> Feed:
    """The next `lengths` tokens, own and guessed, of each.

    Args:
        marked: whether the outputs' landmarks are of what they read themselves.
        coarse: whether prompts may be read in fewer bits.
    """
    states = [o.state for o in outputs if o.state is not None]
    ids: list[int] = []
    for output, state, n in zip(outputs, states, lengths, strict=True):
        ids += output.upcoming(state.length, n)
    names = {name for o in outputs for name in o.memories}
    return Feed(
        ids=ids,
        states=states,
        lengths=lengths,
        limits=[o.job.limit for o in outputs],
        compute=compute,
        memories={n: tuple(o.memories.get(n, _WRITTEN) for o in outputs) for n in names},
        landmarks=tuple([o.job.landmarks for o in outputs]) if marked else (),
        coarse=tuple([o.job.coarse for o in outputs]) if coarse else (),
    )


def go_on(
    outputs: Sequence[Output], rows: Sequence[int], logits: Tensor
) -> Iterator[tuple[Output, Delta | Exception]]:
    """One token further: each output's delta by its row of logits (tokens, vocab), or its fault.

    Deltas are made one by one, so that whoever asks may send each before the next.
    """
    edited: dict[int, Tensor] = {}
    faults: dict[int, Exception] = {}
    for output, i in zip(outputs, rows, strict=True):
        if output.edits:
            try:
                edited[i] = output.scores(logits[i])
            except Exception as error:  # the others go on
                faults[i] = error
    asks = [(output.chooser, output.generated, i) for output, i in zip(outputs, rows, strict=True)]
    for output, i, token in zip(outputs, rows, choose(asks, logits, edited), strict=True):
        try:
            if i in faults:
                raise faults[i]
            row = None if output.job.sampling.logprobs is None else logits[i]
            yield output, output.accept(chosen(token), row)
        except Exception as error:
            yield output, error
