"""Speculation as a user asks for it: `none`, `lookup`, `draft:MODEL`, `early-exit:LAYERS`."""

from __future__ import annotations

import dataclasses

import torch

from keifu.core.errors import KeifuError, unknown
from keifu.families._load import open_checkpoint
from keifu.inference.chunks import chunk_of
from keifu.inference.drafters import drafters
from keifu.inference.speculation import Draft, Guide
from keifu.lm.opening import LocalOptions, Opened
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool, places, state_bytes


def draft_of(asked: str, options: LocalOptions, context: int) -> Draft | None:
    """What makes the drafter that is asked for; None where none is.

    Args:
        context: of the model that is guessed for.
    """
    name, _, argument = asked.partition(":")
    if name == "none" and not argument:
        return None
    if name not in drafters:
        raise unknown("speculation", asked, ["none", *drafters])
    return drafters[name].of(argument, lambda ref: guide(ref, options, context))


def guide(ref: str, options: LocalOptions, context: int) -> Guide:
    """A second model with room for as many requests as run at once."""
    options = dataclasses.replace(options, ctx=None, window=None, retrieve=None, template=None)
    checkpoint = open_checkpoint(ref, allow_pickle=options.allow_pickle)
    opened = Opened(ref=ref, checkpoint=checkpoint, options=options)
    model = opened.build()
    if not isinstance(model, StackModule) or model.head is None:
        raise KeifuError(f"{opened.name} does not continue texts, so it cannot draft")
    entries, room = model.spec.entries(), min(context, opened.context())
    fixed, token = state_bytes(entries, options.dtype)
    slots = options.parallel + 64
    chunk = chunk_of(torch.device(options.device))
    budget = fixed * slots + token * places(entries, room, chunk) * options.parallel
    pool = StatePool(
        entries, budget=budget, slots=slots, dtype=options.dtype, device=options.device
    )
    return Guide(
        name=opened.name,
        model=model,
        tokenizer=opened.tokenizer(),
        pool=pool,
        context=room,
        compute=options.compute,
    )
