"""ELMo's recurrence: a projected LSTM whose cell and output are clipped, two directions apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keifu.nn.linear import Linear
from keifu.nn.recurrent import _LSTM, LSTM, Bidirectional, Carry


@dataclass(frozen=True, kw_only=True)
class ClippedLSTM(LSTM):
    """An LSTM with clamped cell and projection and one bias (Peters et al. 2018, bilm-tf).

    c = clamp(f * c + i * g), h = clamp(P (o * tanh(c))); torch's LSTM has two biases that add up,
    here `ih` alone has one.
    """

    cell_clip: float | None = None
    out_clip: float | None = None

    def build(self) -> nn.Module:
        """`ih` with a bias and `hh` without, rows "i", "f", "g", "o"; `project`."""
        return _ClippedLSTM(self)


class _ClippedLSTM(_LSTM):
    spec: ClippedLSTM

    def __init__(self, spec: ClippedLSTM) -> None:
        super().__init__(spec)
        self.hh = Linear(spec.out, 4 * spec.hidden, rows=self.ih.rows)

    def whole(self) -> Callable[..., tuple[Tensor, ...]] | None:  # type: ignore[override]
        """None of torch's clips."""
        return None

    def cell(self, x: Tensor, carry: Carry, dropped: Tensor | None = None) -> tuple[Tensor, Carry]:
        """One moment."""
        h, c = carry
        i, f, g, o = (x + self.recur(h, dropped)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        c = _clamped(c, self.spec.cell_clip)
        h = torch.sigmoid(o) * torch.tanh(c)
        if self.project is not None:
            h = self.project(h)
        h = _clamped(h, self.spec.out_clip)
        return h, (h, c)


def _clamped(x: Tensor, most: float | None) -> Tensor:
    return x if most is None else x.clamp(-most, most)


@dataclass(frozen=True, kw_only=True)
class Apart(Bidirectional):
    """Two directions that never see each other: each reads and writes its half of the stream."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (tokens, 2 * width) -> a half for each."""
        first, second = x.chunk(2, dim=-1)
        return first, second
