"""Sparse experts' published names, one tensor an expert, and keys that only such models have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keifu.checkpoints.names import numbered
from keifu.core.errors import ConfigError

Json = Mapping[str, Any]

LOSSES = frozenset(
    "output_router_logits router_aux_loss_coef router_z_loss_coef router_jitter_noise "
    "add_router_probs router_type batch_prioritized_routing".split()
)
"""Keys of training alone: weights of losses, noise. `CausalLM(auxiliary=...)` takes the weights."""


def experts_table(theirs: str, ours: str, count: int, **parts: str) -> dict[str, str]:
    """Rules for `count` experts below `theirs`: our part -> what theirs is called.

    experts_table("mlp.experts.{e}.", "blocks.{i}.mlp.", 8, up="wi") maps `mlp.experts.3.wi.weight`
    to the fourth run of rows of `blocks.{i}.mlp.experts.up.weight`.
    """
    each = theirs.replace("{e}", numbered(count))
    return {f"{each}{name}.weight": f"{ours}experts.{part}.weight" for part, name in parts.items()}


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A list of layer numbers <-> a tuple."""

    key: str
    ours: str

    def names(self) -> frozenset[str]:
        """The key."""
        return frozenset((self.key,))

    def read(self, config: Json) -> dict[str, Any]:
        """In order, each once."""
        found = config.get(self.key)
        if found is None:
            return {}
        depth = config.get("num_hidden_layers", 0)
        if not all(isinstance(n, int) and 0 <= n < depth for n in found):
            raise ConfigError(f"{self.key}={found!r} names no layers of 0 to {depth - 1}")
        return {self.ours: tuple(sorted(set(found)))}

    def write(self, values: Json) -> dict[str, Any]:
        """A list."""
        return {self.key: list(values[self.ours])}


@dataclass(frozen=True, kw_only=True)
class FullSparse:
    """`is_full_sparse`, which only Switch-C's config.json has, and whose other keys it mends.

    They say 12 decoder layers and, by leaving it out, a tied head: the checkpoint has 15, all
    sparse, and a head of its own (google/flaxformer, switch_c.gin).
    """

    def names(self) -> frozenset[str]:
        """The key."""
        return frozenset(("is_full_sparse",))

    def read(self, config: Json) -> dict[str, Any]:
        """As many decoder layers as the encoder has, experts in all."""
        depth = config.get("num_layers")
        if not config.get("is_full_sparse") or depth is None:
            return {}
        return {"decoder_depth": depth, "sparse": depth, "decoder_sparse": depth, "tied": False}

    def write(self, values: Json) -> dict[str, Any]:
        """Nothing: the other keys say it."""
        return {}
