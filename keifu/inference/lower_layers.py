"""Lowering of the Transformer's parts: attention over paged state, plain and gated layers."""

from __future__ import annotations

from typing import Any

from keifu.inference.lowering import Lowering, Place, Unplanned
from keifu.nn.attention import Attention
from keifu.nn.kernels.tape import Value
from keifu.nn.masks import Both, Causal, Gist, Mask, Window
from keifu.nn.mlp import MLP, GatedMLP
from keifu.nn.positions import Alibi, NoPosition
from keifu.nn.rotary import Rotary
from keifu.nn.streaming import Back, Cached


def attention(work: Lowering, place: Place, module: Any, x: Value, into: Value | None) -> Value:
    """Projection, norms of heads, rotary, paged attention, projection."""
    spec: Attention = module.spec
    window, sinks = _reach(spec.mask)
    qkv = work.linear(module.qkv, x)
    if spec.clip is not None:
        work.tape.clamp(qkv, -spec.clip, spec.clip, into=qkv)
    q, k, v = qkv.split(*module.qkv.rows.values())
    for part, norm, heads in (
        (q, module.q_norm, spec.heads),
        (k, module.k_norm, spec.kv_heads),
    ):
        if norm is not None:
            by_head = heads if norm.spec.width == spec.head_width else 1
            work.norm(norm, part, heads=by_head, into=part)
    slopes, turn, back, cached = None, None, None, False
    match spec.position:
        case Rotary():
            turn = work.turn(spec.position)
        case Cached(Rotary() as inner):
            turn = work.turn(inner, spec.position)
            back = work.turn(inner, Back(spec.position))
        case Alibi():
            slopes = spec.position.slopes()
        case Cached(Alibi() as inner):
            slopes, cached = inner.slopes(), True
        case NoPosition():
            pass
        case other:
            raise Unplanned(f"position {type(other).__name__}")
    keys, values = place.entry("k"), place.entry("v")
    index = work.pool.group_of(*keys)
    storage = work.pool.groups[index].storage
    mixed = work.tape.attend(
        q, k, v, storage[keys], storage[values],
        page=work.pool.page, scale=module.scale, turn=turn, softcap=spec.softcap,
        slopes=slopes, window=window, sinks=sinks, cached=cached, back=back, table=index,
    )  # fmt: skip
    return work.linear(module.out, mixed, into)


def _reach(mask: Mask) -> tuple[int | None, int]:
    """(window, sinks) of a mask that the kernel knows."""
    match mask:
        case Both(rest, Gist() as gist) if type(gist) is Gist and not rest.sinks:
            return _reach(rest)  # the rest is said by where a row starts to see: `starts`
        case Causal():
            return None, 0
        case Both(Causal(), Window(width, keep)):
            return width, keep
    raise Unplanned(f"mask {mask}")


def mlp(work: Lowering, place: Place, module: Any, x: Value, into: Value | None) -> Value:
    """The plain layer."""
    spec: MLP = module.spec
    hidden = work.tape.activate(spec.act, work.linear(module.up, x))
    return work.linear(module.down, hidden, into)


def gated_mlp(work: Lowering, place: Place, module: Any, x: Value, into: Value | None) -> Value:
    """The gated layer."""
    spec: GatedMLP = module.spec
    gate, up = work.linear(module.gate_up, x).split(spec.hidden, spec.hidden)
    hidden = work.tape.activate(spec.act, gate, up)
    return work.linear(module.down, hidden, into)
