"""Gist caches (Mu et al. 2023, section 4): a prompt read once, of which the gist tokens are kept.

`compress` reads a prompt that ends with gist tokens and forgets what is before them, so that k
positions are held. Whoever continues begins where the prompt ended: positions are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from keifu.core.errors import KeifuError
from keifu.inference.engine import Engine
from keifu.inference.kept import Kept, Source
from keifu.inference.onward import read
from keifu.inference.request import Sampling
from keifu.inference.sequence import Sequence as Output
from keifu.nn.masks import UNMARKED, Landmarks
from keifu.nn.past import Past, forget, given, taken


def compress(engine: Engine, prompt: Sequence[int]) -> Kept:
    """Read a prompt that ends with gist tokens, and hold those alone.

    Where rotary scaling depends on a request's length, the cache has that of the prompt's.

    Raises:
        KeifuError: the model has no gist token, or the prompt does not end with it.
        OutOfState: there is no room for it beside what else is kept.
    """
    marks = engine.intake.landmarks(prompt, None)
    if engine.intake.gist is None:
        raise KeifuError("the model has no gist token: train one with recipes/gist.py")
    if marks.gist is None or marks.gist[1] != len(prompt):
        raise KeifuError("a prompt to be compressed ends with its gist tokens")
    if engine.pair is not None:
        return _source(engine, prompt, marks)
    first, made = marks.gist[0], list[Kept]()

    def keep(output: Output) -> None:
        state = output.state
        assert state is not None
        forget(engine.pool, state, first)
        output.state = None
        made.append(
            Kept(engine=engine, length=len(prompt), tokens=len(prompt) - first, landmarks=marks,
                 state=state)
        )  # fmt: skip

    engine.submit(prompt, Sampling(max_tokens=0, temperature=0), keep=keep).result()
    return made[0]


def _source(engine: Engine, prompt: Sequence[int], marks: Landmarks) -> Kept:
    """The same of an encoder, between two steps of the engine."""
    pair = engine.pair
    assert pair is not None
    assert marks.gist is not None
    engine.intake.check_source(prompt, Sampling(max_tokens=0), ())
    found: Source = engine.call(lambda: read(pair, prompt, marks, engine.device, engine.compute))
    return Kept(engine=engine, length=len(prompt), tokens=found.past.tokens, landmarks=marks,
                source=found)  # fmt: skip


def release(kept: Kept) -> None:
    """Give back what a kept past holds; requests that already run go on."""
    engine, state = kept.engine, kept.state
    assert isinstance(engine, Engine)
    kept.state = kept.source = None
    if state is not None:
        engine.call(lambda: engine.pool.free(state))


def contents(kept: Kept) -> Source:
    """A copy of what a kept past holds; a decoder's has no hidden states: (0, 0)."""
    engine, state = kept.engine, kept.state
    assert isinstance(engine, Engine)
    if kept.source is not None:
        return kept.source
    if state is None:
        raise KeifuError("the past is released: read it again")
    past: Past = engine.call(lambda: taken(engine.pool, state))
    return Source(past=past, hidden=torch.zeros(0, 0))


def restored(engine: Engine, source: Source, landmarks: Landmarks = UNMARKED) -> Kept:
    """A kept past of what another engine of the same model held.

    Raises:
        KeifuError: it does not fit this model, or is longer than its context.
    """
    past = source.past
    most = engine.context if engine.pair is None else engine.source_context
    if past.length >= most:
        raise KeifuError(f"the past ends at position {past.length}, beyond the context of {most}")
    kept = Kept(engine=engine, length=past.length, tokens=past.tokens, landmarks=landmarks)
    if engine.pair is None:
        kept.state = engine.call(lambda: given(engine.pool, past))
    else:
        kept.source = source
    return kept
