"""How one GGUF architecture is described: its keys, what its tensors imply, its tensor names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from keifu.checkpoints.names import Rule, Value
from keifu.core.errors import ConfigError

Json = dict[str, Any]
MOST = 1 << 24
"""No size, count or context length of a model is larger."""


class Tensors(Protocol):
    """What is asked of a file's tensors: a `TensorSource`, or only names and shapes."""

    def names(self) -> list[str]:
        """All names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""

    def read(self, name: str) -> Value:
        """A tensor."""


class Own:
    """The metadata under an architecture's prefix; every key that nobody asks for is an error."""

    def __init__(self, metadata: Mapping[str, Any], name: str) -> None:
        self.prefix = f"{name}."
        cut = len(self.prefix)
        self._keys = {key[cut:]: key for key in metadata if key.startswith(self.prefix)}
        self._metadata, self._asked = metadata, set[str]()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def raw(self, key: str) -> Any:
        """A value as it is, or None."""
        self._asked.add(key)
        return self._metadata[self._keys[key]] if key in self._keys else None

    def whole(self, key: str) -> int | None:
        """A whole number from 1 on; a list (one a layer) only where all are alike."""
        value = self._one(key)
        if value is not None and not (type(value) is int and 1 <= value <= MOST):
            raise self.wrong(key, value, f"a whole number from 1 to {MOST}")
        return value

    def real(self, key: str) -> float | None:
        """A number above 0, as the shortest decimal that is the same float32."""
        value = self._one(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
            raise self.wrong(key, value, "a number above 0")
        return float(str(np.float32(value)))

    def text(self, key: str, known: tuple[str, ...]) -> str | None:
        """One of some words."""
        value = self.raw(key)
        if value is not None and value not in known:
            raise self.wrong(key, value, f"one of {', '.join(known)}")
        return None if value is None else str(value)

    def _one(self, key: str) -> Any:
        value = self.raw(key)
        if not isinstance(value, list):
            return value
        if not value or any(item != value[0] for item in value):
            raise ConfigError(f"{self.prefix}{key} differs by layer, which is not supported")
        return value[0]

    def wrong(self, key: str, value: Any, allowed: str) -> ConfigError:
        """The error for a value that cannot be."""
        return ConfigError(f"{self.prefix}{key}={value!r:.80} is not allowed: {allowed}")

    def left(self) -> list[str]:
        """Keys that nobody asked for."""
        return sorted(self.prefix + key for key in self._keys.keys() - self._asked)


class Also(Protocol):
    """Keys that mean more than one number: both ways, like a family's `Keys`."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """What they add to the config.json read so far."""

    def write(self, config: Json) -> Json:
        """The keys (without prefix) for a config.json."""


SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
"""Keys (after the architecture's name) that every file has -> keys of a LLaMA-like config.json."""
RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
GROUPS = {"attention.head_count_kv": "num_key_value_heads"}
HEAD = {"attention.key_length": "head_dim"}

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
"""GGUF's tensor names <-> ours, wherever an architecture does not say otherwise."""


@dataclass(frozen=True, kw_only=True)
class Arch:
    """How one GGUF architecture departs from the standard."""

    family: str
    relatives: Mapping[str, str] = field(default_factory=dict)
    """Keys whose presence makes it another family."""
    keys: Mapping[str, str] = field(default_factory=lambda: SIZES | RMS)
    """Keys that must be there -> keys of the family's config.json."""
    optional: Mapping[str, str] = field(default_factory=lambda: GROUPS | HEAD)
    """Keys that may be there."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Config keys that the architecture implies."""
    present: Mapping[str, str] = field(default_factory=dict)
    """Tensors -> config keys that are true where the tensor is there."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Tensors -> config keys that are true where it is not."""
    tied: str | None = "tie_word_embeddings"
    """The config key that is true where there is no output.weight."""
    also: tuple[Also, ...] = ()
    rules: Callable[[Any], tuple[Rule, ...]] = lambda family: ()
    """Rules instead of the standard ones for the same parameters of ours."""
    ignore: tuple[str, ...] = ()
    """Keys that say nothing more."""
