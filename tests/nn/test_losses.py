"""Losses against their formulas."""

from __future__ import annotations

import math

import torch

from keifu.nn.losses import z_loss


def test_z_loss_by_hand() -> None:
    """Two positions: log Z = log 4 and log 6, weight 1e-4."""
    logits = torch.tensor([[0.0, math.log(3)], [math.log(2), math.log(4)]])
    expected = 1e-4 * (math.log(4) ** 2 + math.log(6) ** 2) / 2
    torch.testing.assert_close(z_loss(logits), torch.tensor(expected))
    kept = z_loss(logits, keep=torch.tensor([False, True]))
    torch.testing.assert_close(kept, torch.tensor(1e-4 * math.log(6) ** 2))
    assert float(z_loss(logits, keep=torch.tensor([False, False]))) == 0


def test_z_loss_gradient_equals_the_formula_and_differences() -> None:
    made = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=made, requires_grad=True)
    (got,) = torch.autograd.grad(z_loss(logits, weight=0.3), logits)
    with torch.no_grad():
        z = logits.exp().sum(-1, keepdim=True)
        expected = 2 * 0.3 * z.log() * (logits.exp() / z) / 15
    torch.testing.assert_close(got, expected)
    assert torch.autograd.gradcheck(lambda x: z_loss(x, weight=0.3), (logits,))
    flat = z_loss(logits.detach() - z.log())  # normalised logits have log Z = 0
    assert float(flat) < 1e-30


def test_z_loss_of_half_precision_is_computed_wide() -> None:
    logits = torch.full((2, 50000), 9.0, dtype=torch.bfloat16)
    expected = 1e-4 * (9 + math.log(50000)) ** 2
    torch.testing.assert_close(z_loss(logits), torch.tensor(expected))
