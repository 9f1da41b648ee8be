"""Sparse experts in GGUF files: one tensor of all experts of a layer and kind, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keifu.checkpoints.names import OneRow, Rule, Stacks
from keifu.core.errors import ConfigError
from keifu.families._gguf_arch import Json, Own, Tensors
from keifu.nn.experts import Experts
from keifu.nn.stack import Stack


def expert_rules(family: Any) -> tuple[Rule, ...]:
    """The router, the experts and the shared expert, where the family's layers have any."""
    spec = family.spec()
    assert isinstance(spec, Stack)
    mixtures = {block.mlp for block in spec.blocks if isinstance(block.mlp, Experts)}
    if not mixtures:
        return ()
    (mixture,) = mixtures
    ours, stacks = "blocks.{i}.mlp.", (Stacks(mixture.count),)
    return (
        Rule("blk.{i}.ffn_gate_inp.weight", f"{ours}router.weight"),
        *(
            Rule(f"blk.{{i}}.ffn_{kind}_exps.weight", f"{ours}experts.{kind}.weight", stacks)
            for kind in ("gate", "up", "down")
        ),
        Rule(
            "blk.{i}.ffn_{gate=gate_shexp,up=up_shexp}.weight", f"{ours}always.mlp.gate_up.weight"
        ),
        Rule("blk.{i}.ffn_down_shexp.weight", f"{ours}always.mlp.down.weight"),
        Rule("blk.{i}.ffn_gate_inp_shexp.weight", f"{ours}always.gate.weight", (OneRow(),)),
    )


@dataclass(frozen=True)
class ExpertWidths:
    """Hidden widths of the experts <-> keys; older files say them by their tensors alone."""

    shared: bool = False

    def _keys(self) -> dict[str, tuple[str, str, int]]:
        """GGUF's key -> config.json's, and which dimension of which tensor it is."""
        found = {"expert_feed_forward_length": ("moe_intermediate_size", "ffn_gate_exps", 1)}
        if self.shared:
            theirs = "shared_expert_intermediate_size"
            found["expert_shared_feed_forward_length"] = (theirs, "ffn_gate_shexp", 0)
        return found

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """What the tensors of a layer have, which a key must equal."""
        found: Json = {}
        for key, (theirs, kind, at) in self._keys().items():
            named = [name for name in tensors.names() if name.endswith(f".{kind}.weight")]
            if not named:
                raise ConfigError(f"the GGUF file has experts by its keys, but no {kind} tensor")
            shape, said = tensors.shape(named[0]), own.whole(key)
            if len(shape) <= at or said not in (None, shape[at]):
                raise own.wrong(key, said, f"{named[0]} has shape {list(shape)}")
            found[theirs] = shape[at]
        return found

    def write(self, config: Json) -> Json:
        """The keys."""
        return {
            key: config[theirs] for key, (theirs, _, _) in self._keys().items() if config[theirs]
        }
