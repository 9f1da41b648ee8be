"""Normalisation over the last dimension, and over rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keifu.core.errors import KeifuError
from keifu.nn.kernels import trained
from keifu.nn.part import Part, parameter


@dataclass(frozen=True, kw_only=True)
class RMSNorm(Part):
    """x / rms(x) * (w + offset) (Zhang & Sennrich 2019); Gemma stores w around zero, offset 1."""

    width: int
    eps: float = 1e-6
    offset: float = 0.0
    affine: bool = True

    def build(self) -> nn.Module:
        """The module; weights start at the identity."""
        return _RMSNorm(self)


class _RMSNorm(nn.Module):
    def __init__(self, spec: RMSNorm) -> None:
        super().__init__()
        self.spec = spec
        self.weight = parameter(spec.width, fill=1.0 - spec.offset) if spec.affine else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return F.rms_norm(x, (self.spec.width,), None, self.spec.eps)
        weight = self.weight + self.spec.offset if self.spec.offset else self.weight
        if trained.fuses(x):
            return trained.rms_norm(x, weight, self.spec.eps)
        return F.rms_norm(x, (self.spec.width,), weight.to(x.dtype), self.spec.eps)


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Part):
    """(x - mean) / std * (w + offset) + b (Ba et al. 2016).

    Without bias (MPT), or without either (OLMo); MEGALODON stores w around zero, offset 1.
    """

    width: int
    eps: float = 1e-5
    bias: bool = True
    affine: bool = True
    offset: float = 0.0

    def build(self) -> nn.Module:
        """The module; weights start at the identity."""
        return _LayerNorm(self)


class _LayerNorm(nn.Module):
    def __init__(self, spec: LayerNorm) -> None:
        super().__init__()
        self.spec = spec
        self.weight = parameter(spec.width, fill=1.0 - spec.offset) if spec.affine else None
        with_bias = spec.affine and spec.bias
        self.bias = parameter(spec.width, fill=0.0) if with_bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor | None = self.weight
        if weight is not None:
            weight = (weight + self.spec.offset if self.spec.offset else weight).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, (self.spec.width,), weight, bias, self.spec.eps)


@dataclass(frozen=True, kw_only=True)
class PerHeadNorm(Part):
    """LayerNorm of each head with its own weights (StableLM 2): x is (tokens, heads, width)."""

    heads: int
    width: int
    eps: float = 1e-5

    def build(self) -> nn.Module:
        """The module; weights start at the identity."""
        return _PerHeadNorm(self)


class _PerHeadNorm(nn.Module):
    def __init__(self, spec: PerHeadNorm) -> None:
        super().__init__()
        self.spec = spec
        self.weight = parameter(spec.heads, spec.width, fill=1.0)

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x, (self.spec.width,), None, None, self.spec.eps)
        return normed * self.weight.to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Part):
    """Each number over all rows of a batch (Ioffe & Szegedy 2015, algorithms 1 and 2).

    While training the batch's own mean and variance; else the running ones, which move by
    `momentum` of the way at each step (the variance's unbiased estimate) and are kept buffers.
    """

    width: int
    eps: float = 1e-5
    momentum: float = 0.1

    def build(self) -> nn.Module:
        """`weight` and `bias`; `running_mean` and `running_var`."""
        return _BatchNorm(self)


class _BatchNorm(nn.Module):
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, spec: BatchNorm) -> None:
        super().__init__()
        self.spec = spec
        self.weight = parameter(spec.width, fill=1.0)
        self.bias = parameter(spec.width, fill=0.0)
        self.register_buffer("running_mean", torch.zeros(spec.width))
        self.register_buffer("running_var", torch.ones(spec.width))

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, width) -> (rows, width)."""
        if self.training and x.shape[0] < 2:
            raise KeifuError("batch normalisation needs two rows or more in a batch to train")
        kept = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(x, *kept, self.training, self.spec.momentum, self.spec.eps)


Norm = RMSNorm | LayerNorm | PerHeadNorm
