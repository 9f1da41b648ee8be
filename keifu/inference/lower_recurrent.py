"""Lowering of mixers without attention: state spaces and gated linear recurrences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from keifu.inference.lowering import Lowering, Place, Unplanned, vector
from keifu.nn.kernels import recurrences, scans
from keifu.nn.kernels.tape import Value
from keifu.nn.kernels.tiles import tile
from keifu.nn.rglru import RGLRU, GatedRecurrence
from keifu.nn.ssd import Mamba2
from keifu.nn.ssm import Mamba


def mamba(work: Lowering, place: Place, module: Any, x: Value, into: Value | None) -> Value:
    """Filter, selection, scan, gate."""
    spec: Mamba = module.spec
    if spec.states > scans.STATES:
        raise Unplanned(f"{spec.states} states of a channel")
    x, gate = work.linear(module.into, x).split(spec.inner, spec.inner)
    x = _filtered(work, place, module.conv, x, spec.act)
    chosen = work.linear(module.select, x)
    dt, b, c = chosen.split(*module.select.rows.values())
    if spec.steady is not None:
        for part in (dt, b, c):
            work.tape.norm(part, None, eps=spec.steady, into=part)
    dt, bc = work.linear(module.dt, dt), chosen[spec.rank :]
    poles = -torch.exp(vector(module.log_a)).T.contiguous()
    state = work.fixed(place, "ssm")
    y = recurrences.selective(work.tape, x, dt, bc, poles, vector(module.d), state)
    return work.linear(module.out, work.tape.activate("silu", gate, y), into)


def mamba2(work: Lowering, place: Place, module: Any, x: Value, into: Value | None) -> Value:
    """Filter, state-space duality a head, gated norm."""
    spec: Mamba2 = module.spec
    # What dt is shifted by joins the bias of its rows.
    bias = (
        torch.zeros(module.into.outputs) if module.into.bias is None else vector(module.into.bias)
    )
    bias = torch.cat([bias[: -spec.heads], bias[-spec.heads :] + vector(module.dt_bias)])
    projected = work.linear(module.into, x, bias=bias)
    gate, mixed, dt = projected.split(spec.inner, spec.conv.width, spec.heads)
    mixed = _filtered(work, place, module.conv, mixed, spec.act)
    x, bc = mixed.split(spec.inner, spec.conv.width - spec.inner)
    poles, state = -torch.exp(vector(module.log_a)), work.fixed(place, "ssm")
    y = recurrences.ssd(work.tape, x, dt, bc, poles, vector(module.d), state, limits=spec.limits)
    norm = spec.norm
    weight = vector(module.norm.weight).view(norm.groups, -1)
    if not norm.gate_last:
        y = work.tape.activate("silu", gate, y)
    y = work.tape.norm(y, weight, eps=norm.eps, heads=norm.groups)
    if norm.gate_last:
        y = work.tape.activate("silu", gate, y)
    return work.linear(module.out, y, into)


def gated_recurrence(
    work: Lowering, place: Place, module: Any, x: Value, into: Value | None
) -> Value:
    """Filter, gates of each head, recurrence, the other branch's gate."""
    spec: GatedRecurrence = module.spec
    gate, x = work.linear(module.into, x).split(spec.inner, spec.inner)
    x = _filtered(work, place, module.conv, x)
    unit, lru = module.lru, spec.lru
    gates = _by_head(work, x, lru, unit.input_gate, unit.decay_gate)
    scale = -lru.power * torch.nn.functional.softplus(vector(unit.decay))
    h = recurrences.lru(work.tape, x, gates, scale, work.fixed(place, "lru.h"))
    return work.linear(module.down, work.tape.activate(spec.act, gate, h), into)


def _filtered(work: Lowering, place: Place, module: Any, x: Value, act: str = "identity") -> Value:
    """The short convolution before a recurrence."""
    weight, tail = vector(module.weight), work.fixed(place, "conv.tail")
    if weight.shape[1] > scans.TAPS:
        raise Unplanned(f"a filter of {weight.shape[1]} taps")
    return recurrences.filtered(work.tape, x, weight, vector(module.bias), tail, act=act)


def _by_head(work: Lowering, x: Value, lru: RGLRU, *gates: Any) -> Value:
    """Block-diagonal products, one block a head, of one gate after another."""
    turned: list[Tensor] = [m.T for gate in gates for m in gate.weight.detach()]
    columns = [head * (lru.width // lru.heads) for head in range(lru.heads)] * len(gates)
    bias = torch.cat([vector(gate.bias).flatten() for gate in gates])
    return work.tape.linear(x, [tile(m.contiguous()) for m in turned], bias, columns=columns)
