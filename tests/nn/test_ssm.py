"""Mamba's mixer against Hugging Face's, a sequential loop, and its own state; the short filter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MambaConfig, MambaForCausalLM

from keifu.inference.engine import Engine
from keifu.inference.request import Sampling
from keifu.nn import selective
from keifu.nn.block import Block
from keifu.nn.conv import ShortConv
from keifu.nn.heads import LMHead
from keifu.nn.inputs import Tokens
from keifu.nn.norms import RMSNorm
from keifu.nn.scan import linear_scan
from keifu.nn.ssm import Mamba
from keifu.nn.stack import Stack, StackModule, repeat
from keifu.nn.step import fresh_step
from keifu.nn.wiring import Pre
from tests.inference.test_engine import byte_tokenizer, reference
from tests.nn.splits import LENGTHS, check, drawn

SPEC = Mamba(width=12, inner=24, states=5, rank=3, kernel=4)
NAMES = {
    "embeddings": "input.table", "layers": "blocks", "norm_f": "norm", "in_proj": "into",
    "conv1d": "conv", "x_proj": "select", "dt_proj": "dt", "out_proj": "out",
    "A_log": "log_a", "D": "d",
}  # fmt: skip


def pair(*, bias: bool = False, conv_bias: bool = True) -> tuple[StackModule, MambaForCausalLM]:
    """Two layers of ours with the weights of theirs."""
    config = MambaConfig(
        vocab_size=96, hidden_size=12, state_size=5, num_hidden_layers=2, expand=2,
        time_step_rank=3, conv_kernel=4, use_bias=bias, use_conv_bias=conv_bias,
    )  # fmt: skip
    theirs = MambaForCausalLM(config).eval()
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.normal_(1.0 if "norm" in name else 0.0, 0.4, generator=made)
    norm = RMSNorm(width=12, eps=config.layer_norm_epsilon)
    block = Block(mixer=replace(SPEC, bias=bias, conv_bias=conv_bias), wiring=Pre(norm=norm))
    ours = Stack(
        input=Tokens(vocab=96, width=12),
        blocks=repeat(block, 2),
        norm=norm,
        head=LMHead(width=12, vocab=96, tied=True),
    ).build()
    assert isinstance(ours, StackModule)
    state = {}
    for name, value in theirs.backbone.state_dict().items():
        words = [NAMES.get(word, word) for word in name.split(".")]
        if words[0] == "blocks" and words[2] == "norm":
            words[2] = "norms.mixer_norm"
        state[".".join(words)] = value.squeeze(1) if "conv1d.weight" in name else value
    ours.load_state_dict(state)
    return ours.eval(), theirs


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("conv_bias", [False, True])
def test_equals_hugging_face(bias: bool, conv_bias: bool) -> None:
    ours, theirs = pair(bias=bias, conv_bias=conv_bias)
    ids = torch.randint(96, (2, 70), generator=torch.manual_seed(1))
    out = ours(ids, taps=["block.0"])
    expected = theirs(ids, output_hidden_states=True)
    torch.testing.assert_close(out.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.taps["block.0"], expected.hidden_states[0], atol=1e-4, rtol=1e-4)


def test_gradients_equal_hugging_faces() -> None:
    ours, theirs = pair()
    ids = torch.randint(96, (1, 9), generator=torch.manual_seed(2))
    logits = ours(ids).logits
    assert logits is not None
    logits.square().mean().backward()
    theirs(ids).logits.square().mean().backward()
    found = {n: p.grad for n, p in ours.named_parameters()}
    layer = theirs.backbone.layers[0].mixer
    for name, wanted in (
        ("log_a", layer.A_log),
        ("d", layer.D),
        ("dt.weight", layer.dt_proj.weight),
    ):
        gradient = found[f"blocks.0.mixer.{name}"]
        torch.testing.assert_close(gradient, wanted.grad, atol=1e-5, rtol=1e-4)


def sequential(decay: Tensor, new: Tensor) -> Tensor:
    h, every = torch.zeros_like(new[0]), []
    for a, b in zip(decay, new, strict=True):
        h = a * h + b
        every.append(h)
    return torch.stack(every)


@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 37, 64])
def test_the_scan_is_the_loop_even_where_decays_vanish(tokens: int) -> None:
    made = torch.manual_seed(0)
    decay = torch.rand(tokens, 3, 2, generator=made)
    decay[tokens // 2] = 0.0
    decay[:, 0] = 1e-30
    decay[:, 1] = 1.0
    new = torch.randn(tokens, 3, 2, generator=made)
    states, _ = linear_scan(decay, new, torch.zeros(1, 3, 2), [tokens])
    torch.testing.assert_close(states, sequential(decay, new), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_recurrence_and_scan_agree_over_ragged_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module = drawn(SPEC)
    lengths = [150, 1, 64, 65]
    x = torch.randn(sum(lengths), 12, generator=torch.manual_seed(3))
    outs = []
    for moments in (0, 1 << 20):
        monkeypatch.setattr(selective, "MOMENTS", moments)
        outs.append(module(x, fresh_step(lengths), None))
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("moments", [0, 4])
def test_any_split_equals_the_whole(moments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective, "MOMENTS", moments)
    monkeypatch.setattr(selective, "CHUNK", 4)
    check(SPEC, 12)
    check(replace(SPEC, kernel=1, conv_bias=False), 12)


def test_the_short_filter_is_a_causal_convolution() -> None:
    spec = ShortConv(width=6, kernel=3)
    whole = check(spec, 6)
    module = drawn(spec)
    x = torch.randn(sum(LENGTHS), 6, generator=torch.manual_seed(1))
    theirs = nn.Conv1d(6, 6, 3, groups=6)
    theirs.load_state_dict({"weight": module.weight[:, None], "bias": module.bias})
    rows = [theirs(F.pad(row.T[None], (2, 0)))[0].T for row in x.split(LENGTHS)]
    torch.testing.assert_close(whole, torch.cat(rows), atol=1e-6, rtol=1e-6)


def test_the_engine_generates_as_hugging_face_does() -> None:
    ours, theirs = pair()
    engine = Engine(ours, byte_tokenizer(), context=96, parallel=3, budget=1 << 20)
    prompts = [list(range(3, 3 + k)) for k in (1, 5, 9, 40)]
    asked = Sampling(max_tokens=12, temperature=0.0)
    streams = [engine.submit(p, asked) for p in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        tokens = list(stream.result().tokens)
        assert tokens == reference(ours, prompt, 12)
        ids = torch.tensor([prompt])
        expected = theirs.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert tokens == expected[0, len(prompt) :].tolist()[: len(tokens)]
    engine.close()


def test_first_values_are_the_papers() -> None:
    model = Stack(
        input=Tokens(vocab=8, width=12),
        blocks=(Block(mixer=SPEC, wiring=Pre(norm=RMSNorm(width=12))),),
    ).build()
    assert isinstance(model, StackModule)
    mixer = model.initialise(seed=4).blocks[0].get_submodule("mixer")
    torch.testing.assert_close(mixer.log_a.exp(), torch.arange(1.0, 6.0).expand(24, 5))
    dt = F.softplus(mixer.dt.bias)
    assert dt.min() >= 0.00099
    assert dt.max() <= 0.1001
