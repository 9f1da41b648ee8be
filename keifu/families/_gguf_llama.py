"""The GGUF architectures of the LLaMA-like families, as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from keifu.checkpoints.names import Rule, Shift, half_to_pairs
from keifu.families._gguf_arch import (
    GROUPS,
    HEAD,
    RMS,
    SIZES,
    STANDARD,
    Arch,
    Json,
    Own,
    Tensors,
)
from keifu.families._gguf_experts import ExpertWidths, expert_rules
from keifu.families._gguf_rope import RopeKeys

_WINDOW = "attention.sliding_window"
_PATTERN = "attention.sliding_window_pattern"


@dataclass(frozen=True)
class WindowKeys:
    """`sliding_window` and, where layers differ, `layer_types`."""

    rule: Callable[[int], bool] | None = None
    """Which layers slide where the file does not say; None: all or none."""
    by_layer: bool = False
    """Whether the family's config.json lists its layers."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """The window; the layers that slide from the pattern or the rule."""
        window, pattern = own.whole(_WINDOW), own.raw(_PATTERN)
        if not self.by_layer or window is None:
            return {"sliding_window": window} if window or not self.by_layer else {}
        depth = config["num_hidden_layers"]
        if pattern is None:
            slides = [self.rule(i) if self.rule else False for i in range(depth)]
        elif isinstance(pattern, list) and len(pattern) == depth:
            slides = [bool(item) for item in pattern]
        else:
            raise own.wrong(_PATTERN, pattern, f"a list of {depth}")
        kinds = ["sliding_attention" if s else "full_attention" for s in slides]
        return {"sliding_window": window, "layer_types": kinds}

    def write(self, config: Json) -> Json:
        """The keys, and the pattern where it is not the rule's."""
        window = config.get("sliding_window")
        slides = [kind == "sliding_attention" for kind in config.get("layer_types") or ()]
        if window is None or (self.by_layer and not any(slides)):
            return {}
        usual = [self.rule(i) if self.rule else False for i in range(len(slides))]
        return {_WINDOW: window} | ({} if slides == usual else {_PATTERN: slides})


@dataclass(frozen=True)
class QueryScale:
    """Gemma's `query_pre_attn_scalar`: the head's width, or in the largest, width / heads."""

    large: int
    """The depth of the model that is different."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """From `attention.scale` where it is there."""
        scale = own.real("attention.scale")
        if scale is not None:
            return {"query_pre_attn_scalar": round(scale**-2, 3)}
        return {"query_pre_attn_scalar": self._usual(config)}

    def _usual(self, config: Json) -> int:
        if config["num_hidden_layers"] == self.large:
            return int(config["hidden_size"]) // int(config["num_attention_heads"])
        return int(config.get("head_dim") or 256)

    def write(self, config: Json) -> Json:
        """Only what is unusual."""
        scalar = config["query_pre_attn_scalar"]
        return {} if scalar == self._usual(config) else {"attention.scale": scalar**-0.5}


@dataclass(frozen=True)
class LocalRope(RopeKeys):
    """Gemma 3: a second base for the local layers, which are never scaled."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """`rope_parameters` by layer kind."""
        whole = super().read(own, tensors, config)["rope_parameters"]
        local = own.real("rope.freq_base_swa") or 10000.0
        near = {"rope_type": "default", "rope_theta": local}
        return {"rope_parameters": {"full_attention": whole, "sliding_attention": near}}

    def write(self, config: Json) -> Json:
        """The global layers' keys and the local base."""
        kinds = config["rope_parameters"]
        out = super().write({**config, "rope_parameters": kinds["full_attention"]})
        return out | {"rope.freq_base_swa": float(kinds["sliding_attention"]["rope_theta"])}


@dataclass(frozen=True)
class QwenRope:
    """Qwen 1: a plain base; the length it was trained on, where the file says it."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """`rotary_emb_base` and `seq_length`."""
        plain = RopeKeys().read(own, tensors, config)["rope_parameters"]
        if set(plain) != {"rope_type", "rope_theta"}:
            raise own.wrong("rope.scaling.type", plain["rope_type"], "none")
        trained = own.whole("rope.scaling.original_context_length")
        return {
            "rotary_emb_base": plain["rope_theta"],
            "kv_channels": config["hidden_size"] // config["num_attention_heads"],
        } | ({} if trained is None else {"seq_length": trained})

    def write(self, config: Json) -> Json:
        """The same keys."""
        return {
            "rope.dimension_count": config["kv_channels"],
            "rope.freq_base": float(config["rotary_emb_base"]),
            "rope.scaling.original_context_length": config["seq_length"],
        }


@dataclass(frozen=True)
class Wiring:
    """StableLM's parallel blocks: the key repeats what the tensors show."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """The tensors decide (old converters wrote the key wrong)."""
        own.raw("use_parallel_residual")
        return {}

    def write(self, config: Json) -> Json:
        """The key that llama.cpp's own files have."""
        return {"use_parallel_residual": bool(config["use_parallel_residual"])}


def _paired_rows(family: Any) -> tuple[Rule, ...]:
    """LLaMA's queries and keys are permuted: GGUF turns neighbouring pairs, we turn halves."""
    pieces = {"q": half_to_pairs(family.heads), "k": half_to_pairs(family.kv_heads)}
    qkv = Rule("blk.{i}.attn_{q,k,v}.{p}", "blocks.{i}.mixer.qkv.{p}", pieces=pieces)
    return (qkv, *expert_rules(family))


def _fused(family: Any) -> tuple[Rule, ...]:
    """Queries, keys and values are one tensor."""
    return (Rule("blk.{i}.attn_qkv.{p}", "blocks.{i}.mixer.qkv.{p}"),)


def _all_fused(family: Any) -> tuple[Rule, ...]:
    """Gate and up, too."""
    return (*_fused(family), Rule("blk.{i}.ffn_up.{p}", "blocks.{i}.mlp.gate_up.{p}"))


def _ones_added(family: Any) -> tuple[Rule, ...]:
    """Gemma's norms are stored whole, not as what is added to 1."""
    norms = ((theirs, ours) for theirs, ours in STANDARD.items() if "norm" in theirs)
    return tuple(Rule(theirs.replace("{p}", "weight"), ours.replace("{p}", "weight"), (Shift(1.0),))
                 for theirs, ours in norms)  # fmt: skip


_EXPERTS = {"expert_used_count": "num_experts_per_tok"}
_BIAS = {"blk.0.attn_q.bias": "attention_bias"}
_ROPE = RopeKeys()
_GEMMA = Arch(
    family="gemma",
    also=(_ROPE,),
    present=_BIAS,
    rules=_ones_added,
)
_GEMMA2 = replace(
    _GEMMA,
    family="gemma2",
    optional=GROUPS
    | HEAD
    | {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    also=(_ROPE, WindowKeys(rule=lambda i: i % 2 == 0, by_layer=True), QueryScale(large=46)),
)
_QWEN2 = Arch(
    family="qwen2",
    also=(_ROPE, WindowKeys(by_layer=True)),
)
_QWEN2_MOE = replace(
    _QWEN2,
    family="qwen2-moe",
    keys=SIZES | RMS | _EXPERTS | {"expert_count": "num_experts"},
    fixed={"qkv_bias": True, "norm_topk_prob": False},
    also=(*_QWEN2.also, ExpertWidths(shared=True)),
    rules=expert_rules,
)

LLAMA_ARCHS = {
    "llama": Arch(
        family="llama",
        relatives={"expert_count": "mixtral", _WINDOW: "mistral"},
        optional=GROUPS | HEAD | _EXPERTS | {"expert_count": "num_local_experts"},
        present={**_BIAS, "blk.0.ffn_gate.bias": "mlp_bias"},
        also=(_ROPE, WindowKeys()),
        rules=_paired_rows,
        ignore=("tensor_data_layout",),
    ),
    "qwen": Arch(
        family="qwen",
        keys=SIZES | {"attention.layer_norm_rms_epsilon": "layer_norm_epsilon"},
        optional={},
        also=(QwenRope(),),
        rules=_fused,
    ),
    "qwen2": _QWEN2,
    "qwen2moe": _QWEN2_MOE,
    "qwen3": replace(_QWEN2, family="qwen3", present=_BIAS),
    "qwen3moe": replace(
        _QWEN2_MOE,
        family="qwen3-moe",
        fixed={"norm_topk_prob": True},
        present=_BIAS,
        also=(*_QWEN2.also, ExpertWidths()),
    ),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": replace(
        _GEMMA2,
        family="gemma3",
        also=(
            LocalRope(),
            WindowKeys(rule=lambda i: (i + 1) % 6 != 0, by_layer=True),
            QueryScale(large=62),
        ),
    ),
    "phi3": Arch(
        family="phi3", optional=GROUPS, also=(_ROPE, WindowKeys()), rules=_all_fused
    ),
    "stablelm": Arch(
        family="stablelm",
        keys=SIZES | {"attention.layer_norm_epsilon": "layer_norm_eps"},
        optional=GROUPS,
        present={
            "blk.0.attn_q.bias": "use_qkv_bias",
            "blk.0.attn_q_norm.weight": "qk_layernorm",
        },
        absent={"blk.0.ffn_norm.weight": "use_parallel_residual"},
        also=(_ROPE, Wiring()),
    ),
}  # fmt: skip
"""`general.architecture` -> how it is read and written."""
