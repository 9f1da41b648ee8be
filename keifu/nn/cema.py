"""Complex exponential moving average: each channel's damped and turning memories of its past.

h_t = q h_(t-1) + p x_t,  y_t = Re(sum_k g_k h_(t,k)) + omega x_t

with q = (1 - alpha delta) e^(i theta) and theta_k = (2 pi k / orders) of a channel's base angle:
Ma et al. 2024, arXiv 2404.08801, section 3.1, equations 2 and 3. The code that its authors released
(XuezheMax/megalodon, complex_exponential_moving_average.py) is not equation 2:

|       | the paper                          | the code                         |
|-------|------------------------------------|----------------------------------|
| p     | alpha e^(i theta) beta: the input turns as the memory does | alpha, real; no beta |
| g     | eta                                | gamma / sqrt(orders)             |
| omega | none; so it names the base angles  | the input's weight in the output |

In both, alpha and delta lie between 0 and 1 (equation 1), and eta or gamma is complex. The paper
leaves the base angles free; both forms here keep them in one turn, by the code's sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keifu.nn.attention import alike, stacked
from keifu.nn.part import Initialised, Part, parameter
from keifu.nn.state import Entry, Fixed, Handle
from keifu.nn.step import Step

LONG = 2048
"""Tokens that one Fourier transform covers; the state carries over to the next."""
SHORT = 8
"""Tokens up to which the recurrence costs less than a transform."""
BASE = 64
"""Powers of q are those below this times those of its multiples."""


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """What the recurrence runs on, in double precision; each (width, orders) but for `skip`."""

    p: Tensor
    """Of the input, complex."""
    decay: Tensor
    """|q|."""
    angle: Tensor
    """The argument of q."""
    g: Tensor
    """Of the output, complex."""
    skip: Tensor | None
    """omega (width,): the input's own weight in the output."""

    def powers(self, exponents: Tensor) -> Tensor:
        """q to each of the exponents (n,): (width, orders, n) complex."""
        grown = self.decay[..., None] ** exponents
        return torch.polar(grown, self.angle[..., None] * exponents)


class Form:
    """Which parameters there are and how they make the coefficients.

    Shapes are those of the authors' files. Real parameters that must lie between 0 and 1 are kept
    before the sigmoid.
    """

    def shapes(self, width: int, orders: int) -> dict[str, tuple[int, ...]]:
        """The parameters by name."""
        real, turns, complex_pair = (width, orders, 1), (width, 1, 1), (width, orders, 2)
        return {"alpha": real, "delta": real, "theta": turns} | self.more(real, complex_pair)

    def more(self, real: tuple[int, ...], pair: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The parameters besides alpha, delta and theta."""
        raise NotImplementedError

    def coefficients(self, given: Mapping[str, Tensor]) -> Coefficients:
        """From the parameters."""
        raise NotImplementedError


def _decay(given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, 1 - alpha delta, and theta_k = k (2 pi / orders) sigmoid(theta): (width, orders)."""
    doubled = {name: given[name].double() for name in ("alpha", "delta", "theta")}
    alpha, delta, base = (value.sigmoid().squeeze(-1) for value in doubled.values())
    orders = alpha.shape[1]
    turns = torch.arange(1, orders + 1, device=base.device, dtype=base.dtype) / orders
    return alpha, 1.0 - alpha * delta, 2 * math.pi * base * turns


def _paired(value: Tensor) -> Tensor:
    """(..., 2) reals -> (...) complex."""
    return torch.view_as_complex(value.double().contiguous())


@dataclass(frozen=True)
class Released(Form):
    """The authors' code: a real p = alpha, g = gamma / sqrt(orders), the input added by omega."""

    def more(self, real: tuple[int, ...], pair: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """gamma, complex as two reals, and omega."""
        return {"gamma": pair, "omega": (real[0], 1)}

    def coefficients(self, given: Mapping[str, Tensor]) -> Coefficients:
        """p = alpha."""
        alpha, decay, angle = _decay(given)
        g = _paired(given["gamma"]) / math.sqrt(alpha.shape[1])
        skip = given["omega"].double().squeeze(-1)
        p = torch.complex(alpha, torch.zeros_like(alpha))
        return Coefficients(p=p, decay=decay, angle=angle, g=g, skip=skip)


@dataclass(frozen=True)
class Published(Form):
    """Equation 2 on equation 1's u = beta x: p = alpha e^(i theta) beta, g = eta, no other path."""

    def more(self, real: tuple[int, ...], pair: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """beta, which spreads a channel over its orders, and eta, complex as two reals."""
        return {"beta": real, "eta": pair}

    def coefficients(self, given: Mapping[str, Tensor]) -> Coefficients:
        """The input turns as the memory does."""
        alpha, decay, angle = _decay(given)
        p = torch.polar(alpha, angle) * given["beta"].double().squeeze(-1)
        return Coefficients(p=p, decay=decay, angle=angle, g=_paired(given["eta"]), skip=None)


FORMS: Mapping[str, Form] = {"code": Released(), "paper": Published()}
"""The two forms by name."""


@dataclass(frozen=True, kw_only=True)
class ComplexEMA(Part):
    """The moving average of each channel, by Fourier transform or as a recurrence."""

    width: int
    orders: int = 16
    """Memories of each channel (the paper's h)."""
    form: Form = Released()

    def build(self) -> nn.Module:
        """The form's parameters."""
        return _ComplexEMA(self)

    def state(self) -> Mapping[str, Entry]:
        """h, a complex number as two reals."""
        return {"h": Fixed((self.width, self.orders, 2))}


class _ComplexEMA(Initialised):
    def __init__(self, spec: ComplexEMA) -> None:
        super().__init__()
        self.spec = spec
        for name, shape in spec.form.shapes(spec.width, spec.orders).items():
            self.register_parameter(name, parameter(*shape))

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width); at least float32 inside."""
        given = x.to(torch.promote_types(x.dtype, torch.float32))
        made = self.spec.form.coefficients(dict(self.named_parameters()))
        if state is None:
            shape = (step.rows, self.spec.width, self.spec.orders)
            start = torch.zeros(shape, dtype=given.dtype.to_complex(), device=x.device)
        else:
            start = torch.view_as_complex(state.get("h").to(given.dtype))
        outs: dict[int, Tensor] = {}
        ends: dict[int, Tensor] = {}
        for rows in alike(step.lengths()):
            y, h = averaged(stacked(given, step, rows), start[rows], made)
            outs |= zip(rows, y, strict=True)
            ends |= zip(rows, h, strict=True)
        if state is not None:
            last = torch.stack([ends[row] for row in range(step.rows)])
            state.set("h", torch.view_as_real(last))
        return torch.cat([outs[row] for row in range(step.rows)]).to(x.dtype)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """The authors': angles from 1 to 1 / width turns, in random order; g real at first."""
        width = self.spec.width
        for name, value in self.named_parameters():
            if name in ("alpha", "delta"):
                value.normal_(0.0, 0.2, generator=generator)
            elif name == "theta":
                turns = torch.exp(torch.arange(1, width + 1) * (-math.log(width) / width))
                order = torch.randperm(width, generator=generator)
                value.copy_(turns[order].clamp(max=1 - 1e-6).logit().view_as(value))
            elif name == "omega":
                nn.init.trunc_normal_(value, 0.0, 0.25, -1.0, 1.0, generator=generator)
            elif name == "beta":
                value.fill_(1.0)
            else:
                scale = 1.0 if name == "gamma" else self.spec.orders**-0.5
                value.normal_(0.0, scale, generator=generator)
                value[..., 1] = 0.0


def averaged(x: Tensor, h: Tensor, made: Coefficients) -> tuple[Tensor, Tensor]:
    """Rows x (rows, time, width) from states h (rows, width, orders): outputs and last states."""
    form = _recurrence if x.shape[1] <= SHORT else _transformed
    outs = []
    for part in x.split(LONG, dim=1):
        y, h = form(part, h, made)
        outs.append(y)
    y = torch.cat(outs, dim=1)
    return (y if made.skip is None else y + made.skip.to(x.dtype) * x), h


def _recurrence(x: Tensor, h: Tensor, made: Coefficients) -> tuple[Tensor, Tensor]:
    """One token of every row after another."""
    p, q, g = (c.to(h.dtype) for c in (made.p, torch.polar(made.decay, made.angle), made.g))
    outs = []
    for at in x.unbind(1):
        h = q * h + p * at[..., None]
        outs.append((g * h).real.sum(-1))
    return torch.stack(outs, 1), h


def _transformed(x: Tensor, h: Tensor, made: Coefficients) -> tuple[Tensor, Tensor]:
    """All tokens at once: y = x * kernel + what is left of h, the product of their transforms.

    Powers of q are taken in double precision: a float32 angle is off by 1e-3 after 2,048 turns.
    """
    time, blocks = x.shape[1], -(-x.shape[1] // BASE)
    count = torch.arange(blocks, device=x.device)
    near = made.powers(count.new_tensor(range(BASE))).to(h.dtype)
    far = made.powers(count * BASE).to(h.dtype)
    p, g = made.p.to(h.dtype), made.g.to(h.dtype)
    once, all_of_them = made.powers(count.new_tensor([1, time])).to(h.dtype).unbind(-1)

    def over_time(weights: Tensor) -> Tensor:
        """Re(sum_k weights_k q_k^t) for each t: (..., width, orders) -> (..., width, time)."""
        grid = (weights[..., None] * far).transpose(-1, -2) @ near
        return grid.real.flatten(-2)[..., :time]

    line = x.transpose(1, 2)
    size = 2 * blocks * BASE
    spectrum = torch.fft.rfft(line, size) * torch.fft.rfft(over_time(p * g), size)
    y = torch.fft.irfft(spectrum, size)[..., :time] + over_time(g * once * h)
    # The last state: the latest input has met no q yet, the first all but one.
    back = nn.functional.pad(line.flip(-1), (0, blocks * BASE - time)).unflatten(-1, (blocks, BASE))
    within = back.to(h.dtype) @ near.transpose(-1, -2)
    taken = (within * far.transpose(-1, -2)).sum(-2)
    return y.transpose(1, 2), all_of_them * h + p * taken
