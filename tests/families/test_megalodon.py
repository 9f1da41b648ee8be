"""MEGALODON: a slow float64 model written from the paper; names, sizes, state, the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.checkpoints.transfer import empty, fill
from keifu.core.errors import ConfigError, FormatError, KeifuError
from keifu.families import families
from keifu.families._load import build_model, open_checkpoint
from keifu.families.megalodon import Megalodon
from keifu.families.published import PUBLISHED
from keifu.families.published.megalodon import MEGALODON
from keifu.inference.engine import Engine
from keifu.inference.request import Sampling
from keifu.nn.part import build, count
from keifu.nn.stack import StackModule
from keifu.nn.state import Fixed, StatePool
from tests.families.flat import WINDOW, costs
from tests.families.parity import Tensors, export, greedy, tokens
from tests.inference.test_engine import byte_tokenizer, reference

SIZES: dict[str, Any] = {
    "vocab_size": 48, "model_dim": 12, "ffn_hidden_dim": 20, "num_layers": 3, "num_heads": 2,
    "z_dim": 8, "value_dim": 16, "cema_ndim": 3, "chunk_size": 5, "norm_num_groups": 3,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "paper": {"cema_form": "paper"},
    "every option": {
        "swiglu": True, "rescale_nffn": True, "scale_emb": True, "share_emb": True,
        "rope_base": 100.0, "norm_eps": 1e-3,
    },
    "no weights in norms": {"norm_affine": False, "num_heads": 1, "chunk_size": 64},
    "paper, every option": {
        "cema_form": "paper", "swiglu": True, "rescale_nffn": True, "norm_affine": False,
        "share_emb": True, "norm_num_groups": 1, "chunk_size": 1,
    },
}  # fmt: skip
Weights = Mapping[str, Tensor]


class Slow:
    """The model by the paper's equations over the authors' state dict, float64, token by token."""

    def __init__(self, weights: Weights, config: Mapping[str, Any]) -> None:
        self.w = {name: value.double() for name, value in weights.items()}
        self.c = {"num_heads": 1, "norm_eps": 1e-5, "rope_base": 10000.0, **config}

    def __call__(self, ids: Tensor) -> Tensor:
        """ids (time,) -> logits (time, vocab)."""
        x = self.w["embed.weight"][ids]
        if self.c.get("scale_emb"):
            x = x * math.sqrt(self.c["model_dim"])
        for layer in range(self.c["num_layers"]):
            at = f"layers.{layer}"
            inner = x + self.mega(x, f"{at}.mega")
            x = x + self.nffn(inner, f"{at}.nffn")
        x = self.timestep_norm(x, "output.final_norm")
        head = "embed.weight" if self.c.get("share_emb") else "output.output.weight"
        return x @ self.w[head].T

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def timestep_norm(self, x: Tensor, name: str) -> Tensor:
        """Section 3.2: mean and variance of a group over all tokens so far, anew each time."""
        out = []
        for t in range(len(x)):
            groups = x[: t + 1].reshape(t + 1, self.c["norm_num_groups"], -1)
            mean = groups.mean(dim=(0, 2), keepdim=True)
            var = ((groups - mean) ** 2).mean(dim=(0, 2), keepdim=True)
            out.append(((groups[-1] - mean[0]) / (var[0] + self.c["norm_eps"]).sqrt()).flatten())
        weight, bias = self.w[f"{name}.weight"] + 1, self.w[f"{name}.bias"]
        return torch.stack(out) * weight + bias

    def cema(self, x: Tensor, name: str) -> Tensor:
        """Section 3.1, equation 2, and what the authors' code makes of it."""
        w, orders = self.w, self.c["cema_ndim"]
        alpha = torch.sigmoid(w[f"{name}.alpha"][..., 0])
        delta = torch.sigmoid(w[f"{name}.delta"][..., 0])
        base = torch.sigmoid(w[f"{name}.theta"][..., 0])
        theta = torch.stack(
            [2 * math.pi * k / orders * base[:, 0] for k in range(1, orders + 1)], 1
        )
        turn = torch.complex(theta.cos(), theta.sin())
        h = torch.zeros_like(turn)
        out = []
        for x_t in x:
            if self.c.get("cema_form") == "paper":
                u = w[f"{name}.beta"][..., 0] * x_t[:, None]
                h = alpha * turn * u + (1 - alpha * delta) * turn * h
                eta = w[f"{name}.eta"]
                out.append((eta[..., 0] * h.real - eta[..., 1] * h.imag).sum(1))
            else:
                h = alpha * x_t[:, None] + (1 - alpha * delta) * turn * h
                gamma = w[f"{name}.gamma"] * math.sqrt(1 / orders)
                y = (gamma[..., 0] * h.real - gamma[..., 1] * h.imag).sum(1)
                out.append(y + w[f"{name}.omega"][:, 0] * x_t)
        return torch.stack(out)

    def mega(self, x: Tensor, name: str) -> Tensor:
        """Section 3.3 with the gate of Mega: queries and keys of one normalised z."""
        heads, chunk = self.c["num_heads"], self.c["chunk_size"]
        t = self.timestep_norm(x, f"{name}.timenorm")
        m = self.cema(t, f"{name}.cema")
        m = m / (m.pow(2).mean(-1, keepdim=True) + self.c["norm_eps"]).sqrt()
        if f"{name}.rmsnorm.weight" in self.w:
            m = m * (self.w[f"{name}.rmsnorm.weight"] + 1)
        z = self.linear(m, f"{name}.wz").reshape(len(x), heads, -1)
        width = z.shape[-1]
        z = z / (z.pow(2).sum(-1, keepdim=True) + width * self.c["norm_eps"]).sqrt()
        # Of length 1 already: the affine forms act on z / ||z||, with no further scale.
        kappa = self.w[f"{name}.gamma"].reshape(2, heads, width) + 1
        mu = self.w[f"{name}.beta"].reshape(2, heads, width)
        q, k = z * kappa[0] + mu[0], z * kappa[1] + mu[1]
        v = F.silu(self.linear(t, f"{name}.wv")).reshape(len(x), heads, -1)
        out = torch.zeros_like(v)
        for i in range(len(x)):
            first = i // chunk * chunk
            for head in range(heads):
                query = self.turned(q[i, head], i - first)
                keys = [self.turned(k[j, head], j - first) for j in range(first, i + 1)]
                scores = torch.stack([(query * key.conj()).sum().real for key in keys])
                out[i, head] = scores.softmax(0) @ v[first : i + 1, head]
        gate = F.silu(self.linear(m, f"{name}.wr"))
        return self.linear(m, f"{name}.wh1") + self.linear(out.flatten(1) * gate, f"{name}.wh2")

    def turned(self, x: Tensor, position: int) -> Tensor:
        """Neighbouring numbers as complex ones, turned by the position in the chunk."""
        angles = [position / self.c["rope_base"] ** (2 * i / len(x)) for i in range(len(x) // 2)]
        turn = torch.polar(torch.ones(len(angles)).double(), torch.tensor(angles).double())
        return torch.complex(x[0::2], x[1::2]) * turn

    def nffn(self, x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, keepdim=True, correction=0) + self.c["norm_eps"]
        ).sqrt()
        if f"{name}.norm.weight" in self.w:
            x = x * (self.w[f"{name}.norm.weight"] + 1) + self.w[f"{name}.norm.bias"]
        hidden = F.silu(self.linear(x, f"{name}.fc1"))
        if self.c.get("swiglu"):
            hidden = hidden * self.linear(x, f"{name}.fc3")
        y = self.linear(hidden, f"{name}.fc2")
        return y * self.w[f"{name}.alpha"] if self.c.get("rescale_nffn") else y


def theirs(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' parameters, module by module."""
    c = {"norm_affine": True, **config}
    d, z, v, f, n = (
        c[key] for key in ("model_dim", "z_dim", "value_dim", "ffn_hidden_dim", "cema_ndim")
    )
    table: dict[str, tuple[int, ...]] = {"embed.weight": (c["vocab_size"], d)}
    paper = c.get("cema_form") == "paper"
    for layer in range(c["num_layers"]):
        mega, nffn = f"layers.{layer}.mega", f"layers.{layer}.nffn"
        table |= {f"{mega}.timenorm.{p}": (d,) for p in ("weight", "bias")}
        table |= {f"{mega}.cema.{p}": (d, n, 1) for p in ("alpha", "delta")}
        table |= {f"{mega}.cema.theta": (d, 1, 1)}
        if paper:
            table |= {f"{mega}.cema.beta": (d, n, 1), f"{mega}.cema.eta": (d, n, 2)}
        else:
            table |= {f"{mega}.cema.gamma": (d, n, 2), f"{mega}.cema.omega": (d, 1)}
        for name, rows in (("wv", v), ("wz", z), ("wr", v), ("wh1", d)):
            table |= {f"{mega}.{name}.weight": (rows, d), f"{mega}.{name}.bias": (rows,)}
        table |= {f"{mega}.wh2.weight": (d, v), f"{mega}.gamma": (2, z), f"{mega}.beta": (2, z)}
        table |= {f"{nffn}.fc1.weight": (f, d), f"{nffn}.fc2.weight": (d, f)}
        if c["norm_affine"]:
            table |= {f"{mega}.rmsnorm.weight": (d,)}
            table |= {f"{nffn}.norm.{p}": (d,) for p in ("weight", "bias")}
        if c.get("swiglu"):
            table |= {f"{nffn}.fc3.weight": (f, d)}
        if c.get("rescale_nffn"):
            table |= {f"{nffn}.alpha": (d,)}
    table |= {f"output.final_norm.{p}": (d,) for p in ("weight", "bias")}
    return table if c.get("share_emb") else table | {"output.output.weight": (c["vocab_size"], d)}


def made(case: str) -> tuple[Megalodon, StackModule, dict[str, Tensor]]:
    """Ours, filled from random weights under the authors' names."""
    config = {**SIZES, **CASES[case]}
    family = Megalodon.from_hf(config)
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=draw) * (1.0 if ".cema." in name else 0.3)
        for name, shape in theirs(config).items()
    }
    model = build(family.spec(), device="meta")
    assert isinstance(model, StackModule)
    fill(model, family.names(), Tensors(weights))
    return family, model.eval(), weights


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_equals_the_papers_equations(case: str) -> None:
    _, model, weights = made(case)
    ids = tokens(48, 2, 19)
    slow = Slow(weights, {**SIZES, **CASES[case]})
    wanted = torch.stack([slow(row) for row in ids])
    got = model(ids).logits
    assert got is not None
    assert wanted.std() > 0.1
    torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_the_authors_names_both_ways(case: str, tmp_path: Path) -> None:
    """Every key and shape; what their norms keep of a prior is read over, as is a tied head."""
    family, model, weights = made(case)
    written = dict(empty(model, family.names()))
    assert {name: tuple(value.shape) for name, value in written.items()} == theirs(
        {**SIZES, **CASES[case]}
    )
    for name, value in written.items():
        assert isinstance(value, Tensor)
        assert torch.equal(value, weights[name])
    read = open_checkpoint(export(family, model, tmp_path / "m"))
    assert (read.family, read.family_name) == (family, "megalodon")
    again = build_model(read)
    assert isinstance(again, StackModule)
    ids = tokens(48, 1, 12)
    assert torch.equal(again(ids).logits, model(ids).logits)
    constant = {f"layers.0.mega.timenorm.prior_{k}": torch.zeros(3) for k in ("mean", "logv")}
    constant |= {"output.final_norm.prior_count": torch.tensor(0), "rope.freqs": torch.ones(2)}
    tied = {"output.output.weight": weights["embed.weight"]} if family.tied else {}
    other = build(family.spec(), device="meta")
    fill(other, family.names(), Tensors({**weights, **constant, **tied}))
    wrong = {**weights, "layers.0.mega.wq.weight": torch.zeros(8, 12)}
    with pytest.raises(FormatError, match=r"layers\.0\.mega\.wq\.weight"):
        fill(build(family.spec(), device="meta"), family.names(), Tensors(wrong))


@torch.no_grad()
@pytest.mark.parametrize("case", ["plain", "paper", "every option"])
def test_cached_greedy_is_the_slow_models(case: str) -> None:
    """Through several chunks: the prompt in two steps, then token by token."""
    _, model, weights = made(case)
    slow, ids = Slow(weights, {**SIZES, **CASES[case]}), [5, 1, 30, 17, 2, 2, 40]
    said = greedy(model, ids, 12)
    for token in said:
        logits = slow(torch.tensor(ids))[-1]
        assert logits[token] > logits.max() - 1e-4
        ids.append(token)


@torch.no_grad()
def test_default_precision_keeps_the_average_and_the_norm_in_float32(tmp_path: Path) -> None:
    """bfloat16 products through several chunks, near the exact model's."""
    family, model, _ = made("every option")
    checkpoint = open_checkpoint(export(family, model, tmp_path / "m"))
    rough = build_model(checkpoint, precision="default")
    assert isinstance(rough, StackModule)
    ids = tokens(48, 2, 40)
    exact, near = model(ids).logits, rough(ids).logits
    assert exact is not None
    assert near is not None
    assert (exact - near).abs().max() < 0.1 * exact.std()
    fixed = [e for use in rough.spec.entries() for e in use.values() if isinstance(e, Fixed)]
    assert {entry.dtype for entry in fixed} == {torch.float32, torch.int64}


def test_the_engine_runs_requests_together_as_alone() -> None:
    """Ragged steps of prompts and single tokens, restarts of preempted requests."""
    family = Megalodon.tiny()
    model = family.spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=0, std=0.5).eval()
    prompts = [list(range(3, 3 + k)) for k in (1, 5, 9, 40, 2, 17)]
    asked = Sampling(max_tokens=14, temperature=0.0)
    for budget, parallel in ((1 << 21, 4), (_slots(model, 4) + 3 * 32 * 320, 4)):
        engine = Engine(model, byte_tokenizer(), context=96, parallel=parallel, budget=budget)
        streams = [engine.submit(p, asked) for p in prompts]
        for prompt, stream in zip(prompts, streams, strict=True):
            assert list(stream.result().tokens) == reference(model, prompt, 14)
        assert engine.pool.free_tokens == engine.pool.capacity
        engine.close()


def _slots(model: StackModule, parallel: int) -> int:
    """Bytes of the fixed state of an engine's slots."""
    pool = StatePool(model.spec.entries(), budget=1 << 24, slots=parallel + 64)
    return sum(t.nbytes for t in pool.fixed.values())


@pytest.mark.parametrize("name", MEGALODON)
def test_published_sizes(name: str) -> None:
    """Counted from the authors' shapes, and near what they call the size."""
    row = PUBLISHED[name]
    family = families[row.family].from_hf(row.config)
    assert isinstance(family, Megalodon)
    config = family.to_hf()
    shapes = theirs(config)
    model = build(family.spec(), device="meta")
    assert {n: tuple(v.shape) for n, v in empty(model, family.names())} == shapes
    assert count(family.spec()) == row.parameters == sum(map(math.prod, shapes.values()))
    called = {"200m": 0.2e9, "1.3b": 1.3e9, "1.3b-pg19": 1.3e9, "7b": 7e9, "7.1b": 7.1e9}
    size = called.get(name.removeprefix("megalodon-"), 7.3e9)
    assert abs(row.parameters / size - 1) < 0.12
    assert Megalodon.from_hf(config) == family


def test_what_does_not_fit_is_said() -> None:
    for change, said in (
        ({"z_dim": 9}, "cannot share z of 9"),
        ({"norm_num_groups": 5}, "groups=5"),
        ({"chunk_size": 0}, "chunk=0"),
        ({"cema_form": "papers"}, "paper"),
        ({"output_size": 7}, "output_size=7"),
        ({"swigl": True}, "nearest: swiglu"),
        ({"num_heads": 0}, "heads=0"),
    ):
        with pytest.raises((ConfigError, KeifuError), match=said):
            Megalodon.from_hf({**SIZES, **change})


@pytest.mark.slow
def test_decoding_costs_the_same_at_any_length() -> None:
    """Time within 15 % and as many bytes after 4,096, 16,384 and 65,536 tokens.

    The pool holds some 4,096 tokens in all. A past read to its end would cost 16 times as much.
    """
    family = Megalodon.from_hf({**SIZES, "model_dim": 48, "chunk_size": WINDOW})
    model = family.spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=0).eval()
    token = 4 * family.depth * (family.z + family.values)
    found = costs(model, family.vocab, budget=4096 * token)
    assert len({cost.state for cost in found}) == 1, found
    seconds = [cost.seconds for cost in found]
    mean = sum(seconds) / len(seconds)
    assert all(abs(each / mean - 1) <= 0.15 for each in seconds), found


@pytest.mark.slow
def test_the_average_reaches_across_chunks_and_without_it_nothing_does() -> None:
    from recipes.delay import accuracy

    assert accuracy(remembers=True) > 0.95
    assert accuracy(remembers=False) < 0.5
