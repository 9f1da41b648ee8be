"""Native pieces of training in bfloat16 beside plain formulas, and models beside float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.core.errors import KeifuError
from keifu.families import families
from keifu.families.llama import Llama
from keifu.nn.attend import attend
from keifu.nn.kernels import trained
from keifu.nn.linear_loss import linear_cross_entropy
from keifu.nn.losses import IGNORE, cross_entropy, z_loss
from keifu.nn.masks import Causal
from keifu.nn.projection import Projection
from keifu.nn.rotary import Rotary
from keifu.nn.stack import StackModule
from keifu.nn.step import fresh_step
from keifu.training import Sequences
from keifu.training.objectives.causal_lm import CausalLM

ROUNDING = 2.0**-8
"""Of a number to bfloat16, relative."""

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not trained.available(), reason=trained.why()),
]


@pytest.fixture(params=("generic", "avx2", "avx512"))
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything runs on this instruction set."""
    chosen: str = request.param
    if chosen not in trained.features():
        pytest.skip(f"this machine has no {chosen}")
    plain = trained.run
    monkeypatch.setattr(trained, "run", lambda *a, **k: plain(*a, **{**k, "level": chosen}))
    return chosen


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=made).to(dtype).requires_grad_()


def same(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *given: Tensor) -> None:
    """Values and gradients of what is computed in float32 on the same numbers."""
    wide = [t.detach().float().requires_grad_() for t in given]
    expected = plain(*wide)
    slope = drawn(*expected.shape, seed=9).detach()
    expected.backward(slope.float())
    got = ours(*given)
    got.backward(slope.to(got.dtype))
    near(got, expected)
    for mine, theirs in zip(given, wide, strict=True):
        near(mine.grad, theirs.grad)


def near(got: Tensor | None, expected: Tensor | None, times: float = 2.0) -> None:
    """Within the rounding of what went in, what came out and what was kept."""
    assert got is not None
    assert expected is not None
    most = float(expected.detach().abs().max())
    atol = 1e-5 if got.dtype == torch.float32 else times * ROUNDING * most
    torch.testing.assert_close(got.float(), expected.float(), atol=atol, rtol=times * ROUNDING)


@pytest.mark.parametrize("width", [1, 5, 16, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(level: str, width: int, dtype: torch.dtype) -> None:
    """Sums in float32: what is not rounded at the end agrees within 1e-5."""
    x, weight = drawn(67, width, dtype=dtype), drawn(width, seed=1, dtype=torch.float32)
    same(
        lambda x, w: trained.rms_norm(x, w, 1e-5),
        lambda x, w: F.rms_norm(x, (width,), w, 1e-5).to(torch.bfloat16),
        x, weight,
    )  # fmt: skip


@pytest.mark.parametrize("hidden", [1, 7, 32, 43])
def test_silu_gate(level: str, hidden: int) -> None:
    def plain(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up

    same(trained.silu_gate, plain, drawn(19, 2 * hidden))


@pytest.mark.parametrize(("width", "turned"), [(6, 6), (32, 32), (40, 36), (64, 20)])
def test_turned(level: str, width: int, turned: int) -> None:
    rotary, step = Rotary(turned), fresh_step([7, 12])
    cos, sin = rotary.tables(step)
    same(
        lambda x: trained.turned(x, cos, sin),
        lambda x: rotary.rotate(x, x, step)[0],
        drawn(19, 3, width),
    )


@pytest.mark.parametrize(("n", "heads", "groups"), [(2, 1, 1), (17, 4, 4), (40, 6, 2), (33, 4, 1)])
def test_causal_attention(level: str, n: int, heads: int, groups: int) -> None:
    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        at = torch.arange(n)
        return attend(q, k, v, query_positions=at, key_positions=at, mask=Causal(), scale=0.25)

    given = (
        drawn(3, n, heads, 16),
        drawn(3, n, groups, 16, seed=1),
        drawn(3, n, groups, 24, seed=2),
    )
    same(lambda q, k, v: trained.causal_attention(q, k, v, 0.25), plain, *given)


def test_attention_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many heads' scores are made at once."""
    given = (drawn(3, 9, 4, 8), drawn(3, 9, 2, 8, seed=1), drawn(3, 9, 2, 8, seed=2))
    whole = trained.causal_attention(*given, 0.3)
    whole.sum().backward()
    slopes = [t.grad for t in given]
    monkeypatch.setattr(trained, "AT_ONCE", 200)
    again = [t.detach().requires_grad_() for t in given]
    parts = trained.causal_attention(*again, 0.3)
    parts.sum().backward()
    assert torch.equal(whole, parts)
    assert all(torch.equal(a, b.grad) for a, b in zip(slopes, again, strict=True))


@pytest.mark.parametrize("classes", [2, 17, 96])
@pytest.mark.parametrize(("smoothing", "z"), [(0.0, 0.0), (0.1, 0.0), (0.2, 1e-2)])
def test_entropy(level: str, classes: int, smoothing: float, z: float) -> None:
    """Losses in float32 within 1e-5; the first of equal logits is the highest."""
    logits = (drawn(31, classes) * 3).detach()
    logits[0], logits[1] = 0.5, 0.5
    labels = torch.randint(0, classes, (31,), generator=torch.Generator().manual_seed(1))
    labels[0], labels[1], labels[2] = 0, 1, IGNORE
    keep, wide = labels != IGNORE, logits.float().requires_grad_()
    expected = cross_entropy(wide, labels, smoothing=smoothing)
    squared = z_loss(wide, weight=z, keep=keep) * keep.sum()
    (expected + squared).backward()
    slope = logits.clone()
    told = trained.entropy(slope, labels, smoothing, z)
    torch.testing.assert_close(
        told[:, 0].sum(), (expected + squared).detach(), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(told[:, 1].sum(), squared.detach(), rtol=1e-5, atol=1e-5)
    assert told[:, 2].tolist() == ((logits.float().argmax(-1) == labels) & keep).float().tolist()
    near(slope, wide.grad)


def test_linear_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunked loss in bfloat16 beside float32, and however many tokens a chunk has."""
    x, weight = drawn(37, 16, dtype=torch.float32), drawn(29, 16, seed=1, dtype=torch.float32)
    labels = torch.randint(0, 29, (37,), generator=torch.Generator().manual_seed(1))
    exact = linear_cross_entropy(Projection(x=x, weight=weight), labels)
    exact.total.backward()
    wanted = [x.grad, weight.grad]
    for size in (1 << 24, 29 * 10):
        monkeypatch.setattr("keifu.nn.linear_loss.HALF", size)
        a, b = (t.detach().requires_grad_() for t in (x, weight))
        with torch.autocast("cpu", torch.bfloat16):
            half = linear_cross_entropy(Projection(x=a, weight=b), labels, rows=10)
        half.total.backward()
        torch.testing.assert_close(half.total, exact.total, rtol=1e-2, atol=0)
        for mine, theirs in zip((a.grad, b.grad), wanted, strict=True):
            assert far(mine, theirs) < 0.02


def far(got: Tensor | None, expected: Tensor | None) -> float:
    """Length of the difference over the length of what is expected."""
    assert got is not None
    assert expected is not None
    return float((got - expected).norm() / expected.norm())


def gradients(model: StackModule, batch: Sequences, half: bool) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = CausalLM()(model, batch)
    loss.total.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.total.item() / loss.count, grads


MODELS: dict[str, Callable[[], Any]] = {
    "grouped": lambda: Llama(vocab=61, width=48, hidden=40, depth=2, heads=6, kv_heads=2),
    "tied": lambda: Llama(vocab=61, width=32, hidden=88, depth=2, heads=2, tied=True, bias=True),
    **{name: families[name].tiny for name in ("mistral", "gemma2", "qwen3", "phi", "mamba")},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", [(24, 24), (9, 24, 1, 14)])
def test_model_beside_float32(name: str, lengths: tuple[int, ...]) -> None:
    """The loss within 1 %; the gradient of each matrix within 4 %: bfloat16's roundings."""
    family = MODELS[name]()
    model = family.spec().build()
    model.initialise(0, std=0.15)
    made = torch.Generator().manual_seed(2)
    rows = [torch.randint(0, family.vocab, (n,), generator=made) for n in lengths]
    batch = Sequences.of(rows)
    exact, wanted = gradients(model, batch, half=False)
    half, got = gradients(model, batch, half=True)
    assert half == pytest.approx(exact, rel=0.01)
    assert set(got) == set(wanted)
    assert all(got[n].dtype == wanted[n].dtype for n in got)
    worst = {n: far(got[n], wanted[n]) for n in got if wanted[n].dim() > 1}
    assert max(worst.values()) < 0.04, worst


def test_learns_as_float32_does() -> None:
    """Sixty steps on a short text: the losses go down together."""
    assert json.__doc__
    ids = torch.tensor(list(json.__doc__.encode())[:768]).view(12, 64)
    curves = []
    for half in (False, True):
        model = Llama(vocab=128, width=32, hidden=64, depth=2, heads=2).spec().build().initialise(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        curve = []
        for step in range(60):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = CausalLM()(model, Sequences.of(list(ids.roll(step, 0)[:4])))
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()
            curve.append(loss.total.item() / loss.count)
        curves.append(curve)
    exact, half_ = (sum(c[-10:]) / 10 for c in curves)
    assert exact < 0.7 * curves[0][0]
    assert half_ == pytest.approx(exact, abs=0.02)


def test_float32_is_left_alone() -> None:
    """Without autocast nothing here has a say, nor on what is no bfloat16."""
    assert not trained.fuses(drawn(2, 2))
    with torch.autocast("cpu", torch.float16):
        assert not trained.fuses(drawn(2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert trained.fuses(drawn(2, 2))
        assert not trained.fuses(drawn(2, 2, dtype=torch.float64))


def test_unknown_instruction_set() -> None:
    x = drawn(2, 4).detach()
    with pytest.raises(KeifuError, match="instruction set"):
        trained.run("gate", (x, x), (2,), items=2, each=4, level="sse9")
