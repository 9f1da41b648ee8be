"""Short causal convolution, one filter a channel: the local mixer of state-space models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keifu.nn.activations import ACTIVATIONS
from keifu.nn.kernels import scans
from keifu.nn.part import Initialised, Part, parameter
from keifu.nn.state import Entry, Fixed, Handle
from keifu.nn.step import Step


@dataclass(frozen=True, kw_only=True)
class ShortConv(Part):
    """y_t = sum_j w_j x_(t - kernel + 1 + j) + b for each channel, zeros before the row."""

    width: int
    kernel: int = 4
    bias: bool = True

    def build(self) -> nn.Module:
        """`weight` (width, kernel) and `bias`."""
        return _ShortConv(self)

    def state(self) -> Mapping[str, Entry]:
        """The last kernel - 1 inputs."""
        return {"tail": Fixed((self.kernel - 1, self.width))}


class _ShortConv(Initialised):
    def __init__(self, spec: ShortConv) -> None:
        super().__init__()
        self.spec = spec
        self.weight = parameter(spec.width, spec.kernel)
        self.bias = parameter(spec.width) if spec.bias else None

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        before, lengths = self.spec.kernel - 1, step.lengths()
        if state is None:
            tails = x.new_zeros(step.rows, before, self.spec.width)
        else:
            tails = state.get("tail").to(x.dtype)
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if scans.takes(x, weight, bias, tails) and self.spec.kernel <= scans.TAPS:
            y, tails = scans.filtered(x, weight, bias, tails, lengths)
        else:
            y, tails = _filtered(x, weight, bias, tails, step)
        if state is not None:
            state.set("tail", tails)
        return y

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """U(-1/sqrt(kernel), 1/sqrt(kernel)), the bias too."""
        bound = self.spec.kernel**-0.5
        for each in self.parameters():
            each.uniform_(-bound, bound, generator=generator)


def _filtered(
    x: Tensor, weight: Tensor, bias: Tensor | None, tails: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    """The same in PyTorch: one convolution over all rows, each behind its tail."""
    lengths, before = step.lengths(), tails.shape[1]
    if all(n == 1 for n in lengths):
        line = torch.cat([tails, x[:, None]], dim=1)
        y = (line * weight.T).sum(1)
        return y if bias is None else y + bias, line[:, 1:]
    line = torch.cat([t for pair in zip(tails, x.split(lengths), strict=True) for t in pair])
    y = F.conv1d(line.T[None], weight[:, None], bias, groups=weight.shape[0])[0].T
    # What crosses rows is not taken.
    shift = torch.arange(step.rows).repeat_interleave(torch.tensor(lengths)) * before
    y = y[(torch.arange(x.shape[0]) + shift).to(x.device)]
    ends = [end + before * (row + 1) for row, end in enumerate(step.offsets[1:])]
    return y, torch.stack([line[end - before : end] for end in ends])


@dataclass(frozen=True, kw_only=True)
class LocalConv(Part):
    """act(conv(x)) over an odd number of neighbours on both sides, zeros beyond the row.

    DeBERTa v2's n-gram layer (He et al. 2021, section 5): all channels of a group are mixed.
    """

    width: int
    kernel: int = 3
    groups: int = 1
    act: str = "tanh"

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0 or self.width % self.groups:
            raise ValueError(f"{self}: the kernel must be odd and the groups divide the width")

    def build(self) -> nn.Module:
        """`weight` (width, width / groups, kernel) and `bias`."""
        return _LocalConv(self)


class _LocalConv(nn.Module):
    def __init__(self, spec: LocalConv) -> None:
        super().__init__()
        self.spec = spec
        self.weight = parameter(spec.width, spec.width // spec.groups, spec.kernel)
        self.bias = parameter(spec.width, fill=0.0)

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        if state is not None:
            raise ValueError("a bidirectional mixer keeps no state")
        lengths, gap = step.lengths(), self.spec.kernel // 2
        # One convolution over all rows with zeros between them, which no row sees past.
        empty = x.new_zeros(gap, self.spec.width)
        line = torch.cat([t for row in x.split(lengths) for t in (empty, row)] + [empty])
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        y = F.conv1d(line.T[None], weight, bias, padding=0, groups=self.spec.groups)[0].T
        shift = torch.arange(step.rows).repeat_interleave(torch.tensor(lengths)) * gap
        return ACTIVATIONS[self.spec.act](y[(torch.arange(x.shape[0]) + shift).to(x.device)])
