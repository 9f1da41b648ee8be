"""Meta's own checkpoint folders: params.json beside consolidated.NN.pth, as a LLaMA config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keifu.checkpoints.names import Names, Rule, half_to_pairs, rules
from keifu.checkpoints.source import TensorSource
from keifu.core.errors import ConfigError
from keifu.families.llama import Llama

_KNOWN = frozenset(
    "dim n_layers n_heads n_kv_heads multiple_of ffn_dim_multiplier norm_eps vocab_size rope_theta "
    "use_scaled_rope rope_scale_factor max_seq_len max_batch_size".split()
)
_EMBEDDING, _GATE = "tok_embeddings.weight", "layers.0.feed_forward.w1.weight"


def config_of(params: Mapping[str, Any], source: TensorSource) -> dict[str, Any]:
    """The config.json that a params.json amounts to; sizes it leaves out come from the tensors.

    Raises:
        ConfigError: names unknown, missing and contradictory keys.
    """
    if strange := sorted(set(params) - _KNOWN):
        raise ConfigError(f"params.json has unknown keys {', '.join(strange)}")
    for key in ("dim", "n_layers", "n_heads", "norm_eps"):
        value = params.get(key)
        if not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"params.json: {key}={value!r} is not allowed: above 0")
    names = set(source.names())
    if not {_EMBEDDING, _GATE} <= names:
        raise ConfigError(f"params.json's weights lack {_EMBEDDING} or {_GATE}")
    vocab, said = source.shape(_EMBEDDING)[0], params.get("vocab_size", -1)
    if said not in (-1, vocab):
        raise ConfigError(f"params.json: vocab_size={said!r}, but {_EMBEDDING} has {vocab} rows")
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": params["dim"],
        "intermediate_size": source.shape(_GATE)[0],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": float(params.get("rope_theta") or 10000.0),
        "max_position_embeddings": _context(params),
        "vocab_size": vocab,
        "tie_word_embeddings": "output.weight" not in names,
    }
    if params.get("use_scaled_rope"):
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": float(params.get("rope_scale_factor") or 8.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return config


def _context(params: Mapping[str, Any]) -> int:
    """The length the model was trained on, which the file does not say: as each version's paper."""
    if params.get("max_seq_len"):
        return int(params["max_seq_len"])
    if params.get("use_scaled_rope"):
        return 131072
    theta = params.get("rope_theta") or 10000.0
    if theta != 10000.0:
        return 8192 if theta == 500000.0 else 16384  # Llama 3; Code Llama
    first_65b = params["dim"] == 8192 and not params.get("n_kv_heads")
    return 4096 if params["norm_eps"] == 1e-5 and not first_65b else 2048


def names_of(family: Llama) -> Names:
    """Meta's names <-> ours; queries and keys turn in neighbouring pairs there."""
    assert family.kv_heads
    layer, ours = "layers.{i}", "blocks.{i}"
    table = {
        _EMBEDDING: "input.table.weight",
        f"{layer}.attention_norm.weight": f"{ours}.norms.mixer_norm.weight",
        f"{layer}.attention.wo.weight": f"{ours}.mixer.out.weight",
        f"{layer}.ffn_norm.weight": f"{ours}.norms.mlp_norm.weight",
        f"{layer}.feed_forward.{{gate=w1,up=w3}}.weight": f"{ours}.mlp.gate_up.weight",
        f"{layer}.feed_forward.w2.weight": f"{ours}.mlp.down.weight",
        "norm.weight": "norm.weight",
        "output.weight": "head.out.weight",
    }
    pieces = {"q": half_to_pairs(family.heads), "k": half_to_pairs(family.kv_heads)}
    qkv = Rule(
        f"{layer}.attention.{{q=wq,k=wk,v=wv}}.weight", f"{ours}.mixer.qkv.weight", pieces=pieces
    )
    return Names((qkv, *rules(table)), drop=(r"rope\.freqs",))
