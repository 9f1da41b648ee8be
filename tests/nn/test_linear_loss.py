"""Cross-entropy in chunks equals that of whole logits, in value, gradient and on every option."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from keifu.nn.heads import LMHead
from keifu.nn.linear import Embedding, Linear
from keifu.nn.losses import IGNORE, linear_cross_entropy, z_loss
from keifu.nn.norms import LayerNorm
from keifu.nn.projection import Projecting, Projection, Spread
from keifu.nn.task_heads import MaskedLM

TOKENS, WIDTH, VOCAB = 23, 8, 37


def drawn(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=made) * std).requires_grad_()


def given(**options: Any) -> tuple[Projection, Tensor]:
    made = torch.Generator().manual_seed(9)
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=made)
    labels[[3, 11]] = IGNORE
    x, weight = drawn(TOKENS, WIDTH), drawn(VOCAB, WIDTH, seed=1)
    return Projection(x=x, weight=weight, **options), labels


def plain(given: Projection, labels: Tensor, smoothing: float, z: float) -> Tensor:
    """The same from whole logits, by torch's own cross-entropy."""
    logits = given.x @ given.weight.T
    if given.bias is not None:
        logits = logits + given.bias
    logits = logits * given.scale
    if given.softcap is not None:
        logits = given.softcap * torch.tanh(logits / given.softcap)
    if given.shift is not None:
        logits = logits + given.shift
    keep = labels != IGNORE
    own = F.cross_entropy(logits[keep], labels[keep], reduction="sum", label_smoothing=smoothing)
    return own + z_loss(logits, weight=z, keep=keep) * keep.sum()


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": drawn(VOCAB, seed=2)},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0, "scale": 1.7},
    "shift": {"shift": drawn(1, VOCAB, seed=3).detach()},
    "all": {
        "bias": drawn(VOCAB, seed=2),
        "scale": 1.3,
        "softcap": 3.0,
        "shift": drawn(1, VOCAB, seed=3).detach(),
    },
}


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize(("smoothing", "z"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.01)])
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_are_those_of_whole_logits(
    name: str, smoothing: float, z: float, rows: int
) -> None:
    made, labels = given(**OPTIONS[name])
    parts = [p for p in (made.x, made.weight, made.bias) if p is not None]
    found = linear_cross_entropy(made, labels, smoothing=smoothing, z=z, rows=rows)
    expected = plain(made, labels, smoothing, z)
    torch.testing.assert_close(found.total, expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(3 * found.total, parts)
    theirs = torch.autograd.grad(3 * expected, parts)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert max(float(g.abs().max()) for g in theirs) > 0.1


def test_in_float64_the_gradient_is_the_slope() -> None:
    made, labels = given(**OPTIONS["all"])

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        one = replace(made, x=x, weight=weight, bias=bias)
        return linear_cross_entropy(one, labels, smoothing=0.1, z=0.01, rows=7).total

    parts = [p.detach().double().requires_grad_() for p in (made.x, made.weight, made.bias)]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(loss, parts)


def test_right_ones_are_counted_and_no_item_is_no_loss() -> None:
    made, labels = given()
    said = (made.x @ made.weight.T).argmax(-1)
    labels[:4] = said[:4]
    found = linear_cross_entropy(made, labels, rows=6)
    assert int(found.right) == int(((said == labels) & (labels != IGNORE)).sum()) >= 4
    none = linear_cross_entropy(made, torch.full_like(labels, IGNORE))
    assert float(none.total.detach()) == 0.0
    (gradient,) = torch.autograd.grad(none.total, [made.x])
    assert not gradient.any()
    empty = linear_cross_entropy(replace(made, x=made.x[:0]), labels[:0])
    assert float(empty.total.detach()) == 0.0
    with torch.no_grad():
        assert not linear_cross_entropy(made, labels).total.requires_grad


class Largest(TorchDispatchMode):
    """Hears the size of every tensor that comes into being."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.most = max([self.most, *sizes])
        return out


def test_no_tensor_is_as_large_as_the_logits() -> None:
    x, weight = drawn(512, 8), drawn(1024, 8, seed=1)
    labels = torch.arange(512)
    made = Projection(x=x, weight=weight, softcap=5.0)

    def most(loss: Callable[[], Tensor]) -> int:
        with Largest() as heard:
            loss().backward()
        found: int = heard.most
        return found

    chunked = most(lambda: linear_cross_entropy(made, labels, rows=16, z=1e-4).total)
    whole = most(lambda: plain(made, labels, 0.0, 1e-4))
    assert chunked == 16 * 1024  # one chunk of logits
    assert whole == 512 * 1024


def test_bf16_states_and_matrix_keep_their_precision_of_sums() -> None:
    made, labels = given()
    exact = plain(made, labels, 0.0, 0.0)
    half = replace(made, x=made.x.bfloat16(), weight=made.weight.bfloat16())
    found = linear_cross_entropy(half, labels, rows=6).total
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.01)
    ours = torch.autograd.grad(found, [made.x, made.weight])
    for one, other in zip(ours, torch.autograd.grad(exact, [made.x, made.weight]), strict=True):
        assert float((one - other).norm() / other.norm()) < 0.03


class Crowd:
    """Threads that add up and compare tensors as processes would."""

    def __init__(self, size: int) -> None:
        self.barrier, self.held = threading.Barrier(size, timeout=30), [torch.empty(0)] * size

    def both(self, rank: int, join: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def made(x: Tensor) -> Tensor:
            self.held[rank] = x.clone()
            self.barrier.wait()
            out = join(torch.stack(self.held))
            self.barrier.wait()
            return out

        return made


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_vocabulary_over_two_processes_is_the_whole_one(smoothing: float) -> None:
    made, labels = given(bias=drawn(VOCAB, seed=2), softcap=4.0)
    assert made.bias is not None
    whole = linear_cross_entropy(made, labels, smoothing=smoothing, z=0.01)
    expected = torch.autograd.grad(whole.total, [made.x, made.weight, made.bias])
    crowd, found = Crowd(2), dict[int, Any]()
    runs = ((0, 19), (19, VOCAB))

    def work(rank: int) -> None:
        first, stop = runs[rank]
        spread = Spread(
            first=first,
            total=VOCAB,
            sum=crowd.both(rank, lambda every: every.sum(0)),
            max=crowd.both(rank, lambda every: every.amax(0)),
        )
        assert made.bias is not None
        parts = [made.x.detach(), made.weight.detach()[first:stop], made.bias.detach()[first:stop]]
        x, weight, bias = (p.clone().requires_grad_() for p in parts)
        one = replace(made, x=x, weight=weight, bias=bias, spread=spread)
        loss = linear_cross_entropy(one, labels, smoothing=smoothing, z=0.01, rows=6)
        found[rank] = (loss, torch.autograd.grad(loss.total, [x, weight, bias]))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for rank, (first, stop) in enumerate(runs):
        loss, grads = found[rank]
        torch.testing.assert_close(loss.total, whole.total, atol=1e-5, rtol=1e-5)
        assert int(loss.right) == int(whole.right)
        for one, other in zip(
            grads, (expected[0], expected[1][first:stop], expected[2][first:stop]), strict=True
        ):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


HEADS: dict[str, LMHead | MaskedLM] = {
    "own": LMHead(width=WIDTH, vocab=VOCAB, bias=True),
    "tied": LMHead(width=WIDTH, vocab=VOCAB, tied=True, bias=True, softcap=3.0, scale=0.7),
    "narrow": LMHead(width=WIDTH, vocab=VOCAB, tied=True, table_width=6),
    "shift": LMHead(width=WIDTH, vocab=VOCAB, tied=True, shift=True),
    "masked": MaskedLM(width=WIDTH, vocab=VOCAB, norm=LayerNorm(width=WIDTH)),
    "masked own": MaskedLM(width=WIDTH, vocab=VOCAB, norm=LayerNorm(width=WIDTH), tied=False),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_say_what_product_they_end_in(name: str) -> None:
    spec = HEADS[name]
    head = spec.build()
    assert isinstance(head, Projecting)
    table = Embedding(VOCAB, getattr(spec, "table_width", None) or WIDTH)
    made = torch.Generator().manual_seed(4)
    tensors = [*head.parameters(), *head.buffers(), *table.parameters()]
    with torch.no_grad():
        for tensor in tensors:
            tensor.normal_(0, 0.5, generator=made)
    x = drawn(TOKENS, WIDTH)
    labels = torch.arange(TOKENS) % VOCAB
    product = head.projection(x, table)
    assert product is not None
    found = linear_cross_entropy(product, labels, rows=8).total
    expected = F.cross_entropy(head(x, table), labels, reduction="sum")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    parts = [x, *(p for p in (*head.parameters(), *table.parameters()))]
    ours = torch.autograd.grad(found, parts, allow_unused=True)
    theirs = torch.autograd.grad(expected, parts, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_an_adapter_on_the_head_is_not_passed_by() -> None:
    head = LMHead(width=WIDTH, vocab=VOCAB).build()
    assert isinstance(head, Projecting)
    table, x = Embedding(VOCAB, WIDTH), drawn(3, WIDTH)
    assert head.projection(x, table) is not None
    out = head.get_submodule("out")
    assert isinstance(out, Linear)
    out.deltas.append(lambda x, y: y + 1)
    assert head.projection(x, table) is None
