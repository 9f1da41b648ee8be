"""Operations of a tape that keep a state between steps: filters, scans, linear recurrences.

A state is a tensor (slots, ...) of float32, read and written where it lies; `Program.run` is told
which slot each request has. A request's tokens of a step pass one after another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from keifu.core.errors import unknown
from keifu.nn.kernels.scans import STATES, TAPS
from keifu.nn.kernels.tape import KINDS, Node, Tape, Value


def filtered(
    tape: Tape,
    x: Value,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor,
    *,
    act: str = "identity",
) -> Value:
    """act(bias + sum_j w_j x_(t - taps + 1 + j)): a causal filter for each channel.

    Args:
        weight: (width, taps), bias: (width,), tail: (slots, taps - 1, width), the inputs before.
    """
    taps = weight.shape[1]
    if act not in KINDS:
        raise unknown("activation", act, KINDS)
    if not 1 <= taps <= TAPS:
        raise ValueError(f"a filter of {taps} taps: 1 to {TAPS}")
    _fit(weight=(weight, (x.width, taps)), bias=(bias, (x.width,)))
    numbers = {"width": x.width, "states": taps, "kind": KINDS[act]}
    out = tape.value(x.width)
    node = Node("filter", 0, numbers, input=x, out=out, tensors={"weight": weight.T})
    if bias is not None:
        node.tensors["bias"] = bias
    return _kept(tape, node, tail, (taps - 1, x.width))


def selective(
    tape: Tape, x: Value, dt: Value, bc: Value, poles: Tensor, d: Tensor, state: Tensor
) -> Value:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t, y_t = C_t h_t + D x_t (Gu & Dao 2023, eq. 2, 4).

    Args:
        dt: of each channel, before softplus; bc: B, then C, `states` columns each.
        poles: (states, width), negative, d: (width,), state: (slots, states, width).
    """
    states = poles.shape[0]
    if not 1 <= states <= STATES:
        raise ValueError(f"{states} states of a channel: 1 to {STATES}")
    if dt.width != x.width or bc.width != 2 * states:
        raise ValueError(f"dt {dt.width} and B, C {bc.width} wide for {x.width}, {states} states")
    _fit(poles=(poles, (states, x.width)), d=(d, (x.width,)))
    numbers = {"width": x.width, "states": states}
    node = Node("selective", 0, numbers, input=x, other=dt, third=bc, out=tape.value(x.width))
    node.tensors = {"weight": poles, "bias": d}
    return _kept(tape, node, state, (states, x.width))


def ssd(
    tape: Tape,
    x: Value,
    dt: Value,
    bc: Value,
    poles: Tensor,
    d: Tensor,
    state: Tensor,
    *,
    limits: tuple[float, float] = (0.0, math.inf),
) -> Value:
    """h_t = exp(dt_t a) h_(t-1) + dt_t x_t B_t^T, y_t = h_t C_t + D x_t for each head.

    Dao & Gu 2024, section 6.

    Args:
        dt: of each head, before softplus and `limits`; bc: B of all groups of heads, then C.
        poles, d: (heads,), state: (slots, heads, head width, states).
    """
    (heads,), states = poles.shape, state.shape[-1]
    groups = bc.width // (2 * states)
    whole = bc.width == 2 * groups * states and groups and heads % groups == 0
    if dt.width != heads or x.width % heads or not whole:
        raise ValueError(f"x {x.width}, dt {dt.width}, B and C {bc.width} wide for {heads} heads")
    _fit(d=(d, (heads,)))
    numbers = {"width": x.width // heads, "heads": heads, "groups": groups, "states": states}
    low, high = limits
    node = Node("ssd", 0, {**numbers, "low": low, "high": high}, input=x, other=dt, third=bc)
    node.out, node.tensors = tape.value(x.width), {"weight": poles, "bias": d}
    return _kept(tape, node, state, (heads, x.width // heads, states))


def lru(tape: Tape, x: Value, gates: Value, scale: Tensor, state: Tensor) -> Value:
    """a_t = exp(scale r_t), h_t = a_t h_(t-1) + sqrt(1 - a_t^2) i_t x_t (De et al. 2024, eq. 1-4).

    The root is left out at position 0, where nothing has decayed.

    Args:
        gates: what the sigmoids of i and then of r are taken of, each as wide as x.
        scale: (width,) not above 0, state: (slots, width).
    """
    if gates.width != 2 * x.width:
        raise ValueError(f"gates {gates.width} wide for two of {x.width}")
    _fit(scale=(scale, (x.width,)))
    node = Node("lru", 0, {"width": x.width}, input=x, other=gates, out=tape.value(x.width))
    node.tensors = {"weight": scale}
    return _kept(tape, node, state, (x.width,))


def _kept(tape: Tape, node: Node, state: Tensor, shape: tuple[int, ...]) -> Value:
    """Append an operation that reads and writes `state` (slots, *shape)."""
    _fit(state=(state[0], shape))
    if state.dtype != torch.float32:
        raise ValueError(f"the state of a recurrence must be float32, not {state.dtype}")
    node.tensors["state"] = state
    node.fields["limit"] = state.shape[0]
    node.reads.append(state)
    node.writes.append(state)
    tape.append(node)
    assert node.out is not None
    return node.out


def _fit(**given: tuple[Tensor | None, tuple[int, ...]]) -> None:
    for name, (tensor, shape) in given.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} of shape {tuple(tensor.shape)}, not {shape}")
