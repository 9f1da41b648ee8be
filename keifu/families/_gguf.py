"""GGUF: which family an architecture is, its metadata as a published config, its tensor names.

Tensor names are nearly the same for every architecture, so one table speaks of our names; an
architecture says only where it departs from it. Metadata keys become the keys of the family's
config.json, so that one reader (`Family.from_hf`) checks both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from keifu.checkpoints.names import Names, Rule, half_to_pairs, rules
from keifu.core.errors import ConfigError, unknown
from keifu.families._family import Family
from keifu.nn.stack import Stack

Json = dict[str, Any]

STANDARD = {
    "token_embd.weight": "input.table.weight",
    "token_embd_norm.{p}": "input.norm.{p}",
    "position_embd.weight": "input.positions.weight",
    "blk.{i}.attn_norm.{p}": "blocks.{i}.norms.mixer_norm.{p}",
    "blk.{i}.attn_{q,k,v}.{p}": "blocks.{i}.mixer.qkv.{p}",
    "blk.{i}.attn_output.{p}": "blocks.{i}.mixer.out.{p}",
    "blk.{i}.attn_q_norm.{p}": "blocks.{i}.mixer.q_norm.{p}",
    "blk.{i}.attn_k_norm.{p}": "blocks.{i}.mixer.k_norm.{p}",
    "blk.{i}.post_attention_norm.{p}": "blocks.{i}.norms.mixer_post_norm.{p}",
    "blk.{i}.ffn_norm.{p}": "blocks.{i}.norms.mlp_norm.{p}",
    "blk.{i}.post_ffw_norm.{p}": "blocks.{i}.norms.mlp_post_norm.{p}",
    "blk.{i}.ffn_{gate,up}.{p}": "blocks.{i}.mlp.gate_up.{p}",
    "blk.{i}.ffn_up.{p}": "blocks.{i}.mlp.up.{p}",
    "blk.{i}.ffn_down.{p}": "blocks.{i}.mlp.down.{p}",
    "output_norm.{p}": "norm.{p}",
    "output.{p}": "head.out.{p}",
}
"""GGUF's names <-> ours, wherever an architecture does not say otherwise."""

KEYS = {
    "vocab_size": "hidden:vocab",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""Metadata keys (after the architecture's name) -> keys of a LLaMA-like config.json."""


@dataclass(frozen=True, kw_only=True)
class Arch:
    """How one GGUF architecture departs from the standard."""

    family: str
    keys: Mapping[str, str] = field(default_factory=lambda: KEYS)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Config keys that the architecture implies."""
    rules: Callable[[Family], tuple[Rule, ...]] = lambda family: ()
    """Rules instead of the standard ones for the same parameters of ours."""
    ignore: tuple[str, ...] = ()
    """Metadata keys that say nothing more."""


def _paired_rows(family: Any) -> tuple[Rule, ...]:
    """LLaMA's queries and keys are permuted: GGUF turns neighbouring pairs, we turn halves."""
    pieces = {"q": half_to_pairs(family.heads), "k": half_to_pairs(family.kv_heads)}
    qkv = Rule("blk.{i}.attn_{q,k,v}.{p}", "blocks.{i}.mixer.qkv.{p}", pieces=pieces)
    return (qkv,)


ARCHS: Mapping[str, Arch] = {
    "llama": Arch(family="llama", rules=_paired_rows),
}
"""`general.architecture` -> how it is read."""

_COMMON = frozenset(
    "vocab_size rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor "
    "rope.scaling.original_context_length rope.scaling.finetuned rope.scaling.attn_factor "
    "attention.value_length".split()
)


def arch_of(metadata: Mapping[str, Any]) -> tuple[str, Arch]:
    """The architecture of a file, or an error that lists the known ones."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ConfigError("the GGUF file lacks general.architecture")
    if name not in ARCHS:
        raise unknown("GGUF architecture", name, ARCHS)
    return name, ARCHS[name]


def config_of(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Json:
    """The config.json that a file's metadata amounts to.

    Raises:
        ConfigError: a key is missing, unknown or has a value that cannot be.
    """
    name, arch = arch_of(metadata)
    prefix = f"{name}."
    own = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    strange = sorted(set(own) - set(arch.keys) - _COMMON - set(arch.ignore))
    if strange:
        raise ConfigError(f"GGUF keys {', '.join(prefix + k for k in strange)} are not known")
    vocab = tensors["token_embd.weight"].shape[0] if "token_embd.weight" in tensors else 0
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and vocab and len(tokens) > vocab:
        raise ConfigError(f"{len(tokens)} tokens, but token_embd.weight has only {vocab} rows")
    config: Json = dict(arch.fixed)
    for key, theirs in arch.keys.items():
        if key in own and not theirs.startswith("hidden:"):
            config[theirs] = _scalar(prefix + key, own[key])
    for key in ("block_count", "attention.head_count", "embedding_length", "context_length"):
        value = config.get(arch.keys[key])
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{prefix}{key}={value!r} is not allowed: a whole number above 0")
    config["vocab_size"] = vocab or own.get("vocab_size", 0)
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["rope_parameters"] = _rope(own, prefix)
    return config


def _scalar(key: str, value: Any) -> Any:
    """A number; an array (one value a layer) only where all are alike."""
    if isinstance(value, (list, tuple)):
        if len(set(value)) != 1:
            raise ConfigError(f"{key} differs by layer, which is not supported")
        value = value[0]
    if isinstance(value, float) and not value == value:
        raise ConfigError(f"{key} is not a number")
    return value


def _rope(own: Mapping[str, Any], prefix: str) -> Json:
    """The rotary settings in the published spelling."""
    base = own.get("rope.freq_base", 10000.0)
    if not (isinstance(base, float) and 0 < base < 1e12):
        raise ConfigError(f"{prefix}rope.freq_base={base!r} is not allowed: above 0")
    rope: Json = {"rope_type": "default", "rope_theta": base}
    kind = own.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise ConfigError(f"{prefix}rope.scaling.type={kind!r} is not known: none, linear, yarn")
    if kind != "none":
        rope |= {"rope_type": kind, "factor": own.get("rope.scaling.factor", 1.0)}
    if kind == "yarn" and "rope.scaling.original_context_length" in own:
        rope["original_max_position_embeddings"] = own["rope.scaling.original_context_length"]
    return rope


def names_of(arch: Arch, family: Family, spec: Stack) -> Names:
    """The table between the file's tensors and the family's parameters."""
    standard = Names(rules(STANDARD))
    return standard.replaced(arch.rules(family))
