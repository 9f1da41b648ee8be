"""Griffin and Hawk: gated linear recurrences with local attention between them, or alone.

Source: De et al. 2024, arXiv 2402.19427; RecurrentGemma (the published models): arXiv 2404.07839.
Hawk is `block_types` ["recurrent"]. Differs from gemma.py in: mixers, biases, rotation, caps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from keifu.checkpoints.names import Names, OneChannel, rules
from keifu.core.errors import ConfigError
from keifu.families._fields import Act, Rope
from keifu.families._keys import Twice
from keifu.families.gemma import Gemma
from keifu.nn.attention import Attention
from keifu.nn.heads import LMHead
from keifu.nn.inputs import Tokens
from keifu.nn.masks import Causal, Window
from keifu.nn.rglru import GatedRecurrence
from keifu.nn.rotary import Rotary
from keifu.nn.stack import Stack


@dataclass(frozen=True, kw_only=True)
class Griffin(Gemma):
    """Configuration; defaults are RecurrentGemmaConfig's, not those of a published model."""

    unlimited: ClassVar[bool] = True

    width: int = 2560
    hidden: int = 3840
    depth: int = 26
    heads: int = 10
    kv_heads: int | None = None
    head_width: int | None = None
    mlp_bias: bool = True
    inner: int | None = None
    """Width of the recurrence; None is the stream's."""
    pattern: tuple[str, ...] = ("recurrent", "recurrent", "attention")
    window: int = 2048
    kernel: int = 4
    cap: float = 30.0
    rotary: float = 0.5

    fields = Gemma.fields.replaced(
        "RecurrentGemmaForCausalLM", "recurrent_gemma", without=("context", "hidden", "mlp_bias"),
        keys={"inner": "lru_width", "pattern": "block_types", "window": "attention_window_size",
              "kernel": "conv1d_width", "cap": "logits_soft_cap"},
        extra=(Act(key="hidden_activation"), Rope(fraction="rotary"),
               Twice(key="intermediate_size", ours="hidden")), tasks=("generate",),
        fixed={"embeddings_scale_by_sqrt_dim": True}, aliases={"_block_types": "block_types"},
        ignore=frozenset({"w_init_variance_scale", "final_w_init_variance_scale"}),
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", self.inner or self.width)
        object.__setattr__(self, "pattern", tuple(self.pattern))
        super().__post_init__()

    def check(self) -> None:
        """Known mixers; heads that divide the recurrence and share the width."""
        super().check()
        if self.head_width != self.width // self.heads:
            raise ConfigError(f"head_dim={self.head_width} is not {self.width} / {self.heads}")
        if not self.pattern or set(self.pattern) - {"recurrent", "attention"}:
            raise ConfigError(f"block_types={list(self.pattern)}; known: recurrent, attention")
        if not self.inner or self.inner % self.heads:
            raise ConfigError(f"lru_width={self.inner} is no multiple of {self.heads} heads")

    def mixer(self, index: int) -> GatedRecurrence | Attention:
        """A layer's recurrence, or its attention to the last `window` tokens."""
        if self.pattern[index % len(self.pattern)] == "recurrent":
            sizes = {"width": self.width, "inner": self.inner or 0, "heads": self.heads}
            return GatedRecurrence(**sizes, kernel=self.kernel, act=self.act)
        turned = Rotary(int(self.width // self.heads * self.rotary), base=self.rope_base)
        mask = Causal() & Window(self.window)
        return replace(super().attention(), position=turned, mask=mask, out_bias=True)

    def spec(self) -> Stack:
        """Gemma's with its own mixers; the input's scale is a bfloat16 whatever the model is in."""
        scale = torch.tensor(math.sqrt(self.width), dtype=torch.bfloat16).item()
        tokens = Tokens(vocab=self.vocab, width=self.width, scale=scale)
        blocks = tuple(replace(self.block(), mixer=self.mixer(i)) for i in range(self.depth))
        head = LMHead(width=self.width, vocab=self.vocab, tied=self.tied, softcap=self.cap)
        return replace(super().spec(), input=tokens, blocks=blocks, head=head)

    def names(self) -> Names:
        """RecurrentGemma's."""
        layer, ours, mixer = "model.layers.{i}", "blocks.{i}", "blocks.{i}.mixer"
        theirs, unit = f"{layer}.temporal_block", f"{layer}.temporal_block.rg_lru"
        table = {
            f"{layer}.temporal_pre_norm.{{p}}": f"{ours}.norms.mixer_norm.{{p}}",
            f"{theirs}.{{q,k,v}}_proj.{{p}}": f"{mixer}.qkv.{{p}}",
            f"{theirs}.o_proj.{{p}}": f"{mixer}.out.{{p}}",
            f"{theirs}.linear_{{gate=y,x=x}}.{{p}}": f"{mixer}.into.{{p}}",
            f"{theirs}.conv_1d.bias": f"{mixer}.conv.bias",
            f"{unit}.recurrent_param": f"{mixer}.lru.decay",
            f"{unit}.input_gate_{{p}}": f"{mixer}.lru.input_gate.{{p}}",
            f"{unit}.recurrent_gate_{{p}}": f"{mixer}.lru.decay_gate.{{p}}",
            f"{theirs}.linear_out.{{p}}": f"{mixer}.down.{{p}}",
            f"{layer}.channel_pre_norm.{{p}}": f"{ours}.norms.mlp_norm.{{p}}",
            f"{layer}.mlp_block.{{gate,up}}_proj.{{p}}": f"{ours}.mlp.gate_up.{{p}}",
            f"{layer}.mlp_block.down_proj.{{p}}": f"{ours}.mlp.down.{{p}}",
            "model.final_norm.{p}": "norm.{p}",
        }
        taps = {f"{theirs}.conv_1d.weight": f"{mixer}.conv.weight"}
        return super().names().replaced((*rules(table), *rules(taps, OneChannel())))

    @classmethod
    def tiny(cls) -> Self:
        """Both mixers, a recurrence wider than the stream, keys shared by all heads."""
        return cls(vocab=96, width=32, hidden=48, depth=3, heads=4, inner=40, kv_heads=1, window=5)


family = Griffin
