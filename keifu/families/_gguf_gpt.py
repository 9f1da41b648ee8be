"""The GGUF architectures of GPT-2 and its successors, as llama.cpp's converter writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keifu.checkpoints.names import Rule
from keifu.families._gguf_arch import GROUPS, SIZES, Arch, Json, Own, Tensors
from keifu.families._gguf_rope import RopeKeys
from keifu.nn.wiring import ParallelNorms

_EPS = "attention.layer_norm_epsilon"
_GROUPS = "attention.head_count_kv"
_HIDDEN = "feed_forward_length"
_GPT2 = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    _HIDDEN: "n_inner",
    "attention.head_count": "n_head",
    _EPS: "layer_norm_epsilon",
}


@dataclass(frozen=True)
class BloomSizes:
    """Sizes that BLOOM's config.json does not have, because they follow from the others."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """Nothing new: they must follow."""
        implied = {_HIDDEN: 4 * config["hidden_size"], _GROUPS: config["n_head"]}
        for key, value in implied.items():
            if own.whole(key) not in (None, value):
                raise own.wrong(key, own.raw(key), f"{value}, as follows from the other sizes")
        return {}

    def write(self, config: Json) -> Json:
        """Both."""
        return {_HIDDEN: 4 * config["hidden_size"], _GROUPS: config["n_head"]}


@dataclass(frozen=True)
class NeoXKeys:
    """GPT-NeoX: the wiring by its key, biases by their tensors."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """In parallel unless the key says otherwise."""
        parallel = own.raw("use_parallel_residual")
        if parallel not in (None, True, False):
            raise own.wrong("use_parallel_residual", parallel, "true or false")
        return {
            "use_parallel_residual": parallel is not False,
            "attention_bias": "blk.0.attn_qkv.bias" in tensors.names(),
        }

    def write(self, config: Json) -> Json:
        """The key."""
        return {"use_parallel_residual": config["use_parallel_residual"]}


@dataclass(frozen=True)
class FalconKeys:
    """Falcon's decoders are told apart by their key heads and norms."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """One key head and one norm: the old decoder."""
        own.text("tensor_data_layout", ("jploski",))
        groups = own.whole(_GROUPS) or config["num_attention_heads"]
        two = "blk.0.attn_norm_2.weight" in tensors.names()
        if groups == 1 and not two:
            return {"multi_query": True}
        norms = 2 if two else 1
        new = {"new_decoder_architecture": True, "num_ln_in_parallel_attn": norms}
        return {"num_kv_heads": groups, **new}

    def write(self, config: Json) -> Json:
        """How many key heads; the order of rows, of which there is one kind."""
        heads = config["num_attention_heads"]
        groups = config["num_kv_heads"] or heads
        if not config["new_decoder_architecture"]:
            groups = 1 if config["multi_query"] else heads
        return {_GROUPS: groups, "tensor_data_layout": "jploski"}


@dataclass(frozen=True)
class MPTKeys:
    """MPT's settings of attention and its MLP's width as a ratio."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """`attn_config` and `expansion_ratio`."""
        hidden = own.whole(_HIDDEN) or 4 * config["d_model"]
        if own.whole(_GROUPS) not in (None, config["n_heads"]):
            raise own.wrong(_GROUPS, own.raw(_GROUPS), "attention.head_count: no shared keys")
        most = own.real("attention.max_alibi_bias") or 8.0
        if most != int(most):
            raise own.wrong("attention.max_alibi_bias", most, "a whole number above 0")
        attention = {
            "alibi_bias_max": int(most),
            "clip_qkv": own.real("attention.clamp_kqv"),
            "qk_ln": "blk.0.attn_q_norm.weight" in tensors.names(),
        }
        whole, rest = divmod(hidden, config["d_model"])
        ratio = hidden / config["d_model"] if rest else whole
        return {"attn_config": attention, "expansion_ratio": ratio}

    def write(self, config: Json) -> Json:
        """What there is."""
        attention = config["attn_config"]
        hidden = int(config["d_model"] * config["expansion_ratio"])
        out = {_HIDDEN: hidden, "attention.max_alibi_bias": float(attention["alibi_bias_max"])}
        clip = attention["clip_qkv"]
        return out if clip is None else {**out, "attention.clamp_kqv": float(clip)}


def _fused(family: Any) -> tuple[Rule, ...]:
    """Queries, keys and values are one tensor, in this order whatever the published one is."""
    return (Rule("blk.{i}.attn_qkv.{p}", "blocks.{i}.mixer.qkv.{p}"),)


def _falcon(family: Any) -> tuple[Rule, ...]:
    """The first norm is the MLP's where there are two."""
    if not isinstance(family.wiring(), ParallelNorms):
        return _fused(family)
    return (
        *_fused(family),
        Rule("blk.{i}.attn_norm_2.{p}", "blocks.{i}.norms.mixer_norm.{p}"),
        Rule("blk.{i}.attn_norm.{p}", "blocks.{i}.norms.mlp_norm.{p}"),
    )


def _head_bias(family: Any) -> tuple[Rule, ...]:
    """Of a tied head, too."""
    return (Rule("output.bias", "head.bias"),)


_ROPE = RopeKeys()

GPT_ARCHS = {
    "gpt2": Arch(family="gpt-2", keys=_GPT2, optional={}, rules=_fused),
    "gptj": Arch(
        family="gpt-j",
        keys=_GPT2,
        optional={"rope.dimension_count": "rotary_dim"},
        rules=_head_bias,
    ),
    "gptneox": Arch(
        family="gpt-neox",
        keys=SIZES | {_EPS: "layer_norm_eps"},
        optional={},
        also=(_ROPE, NeoXKeys()),
        rules=_fused,
    ),
    "bloom": Arch(
        family="bloom",
        keys={
            "block_count": "n_layer",
            "context_length": "seq_length",
            "embedding_length": "hidden_size",
            "attention.head_count": "n_head",
            _EPS: "layer_norm_epsilon",
        },
        optional={},
        also=(BloomSizes(),),
        rules=_fused,
    ),
    "falcon": Arch(
        family="falcon",
        keys=SIZES | {_HIDDEN: "ffn_hidden_size", _EPS: "layer_norm_epsilon"},
        optional={},
        also=(_ROPE, FalconKeys()),
        rules=_falcon,
    ),
    "mpt": Arch(
        family="mpt",
        keys={
            "block_count": "n_layers",
            "context_length": "max_seq_len",
            "embedding_length": "d_model",
            "attention.head_count": "n_heads",
            _EPS: "layer_norm_epsilon",
        },
        optional={},
        also=(MPTKeys(),),
        rules=_fused,
    ),
    "phi2": Arch(
        family="phi",
        keys=SIZES | {_EPS: "layer_norm_eps"},
        optional=GROUPS,
        also=(_ROPE,),
        rules=_head_bias,
    ),
}
"""`general.architecture` -> how it is read and written."""
