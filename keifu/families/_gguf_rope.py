"""Rotary settings in GGUF: keys for the base, linear and YaRN scaling; tensors for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keifu.core.errors import ConfigError
from keifu.families._gguf_arch import Json, Own, Tensors
from keifu.nn.kernels.formats import Packed
from keifu.nn.rotary import Llama3, frequencies

FREQS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
TYPES = ("none", "linear", "yarn", "longrope")
_SCALING = "rope.scaling."
_YARN = {
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
    "attention_factor": "attn_factor",
}


@dataclass(frozen=True)
class RopeKeys:
    """`rope_parameters` of a config.json <-> `rope.*` keys and the tensors of factors."""

    def read(self, own: Own, tensors: Tensors, config: Json) -> Json:
        """`rope_parameters`, checked key by key."""
        rope: Json = {"rope_type": "default", "rope_theta": own.real("rope.freq_base") or 1e4}
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        turned = own.whole("rope.dimension_count")
        if turned is not None and turned != head:
            if turned > head or turned % 2:
                raise own.wrong("rope.dimension_count", turned, f"an even number up to {head}")
            share = turned / head
            exact = int(head * share) == turned
            rope["partial_rotary_factor"] = share if exact else math.nextafter(share, 1)
        rope |= self._scaling(own) | self._factors(own, tensors, rope, turned or head)
        return {"rope_parameters": rope}

    @staticmethod
    def _scaling(own: Own) -> Json:
        """What the keys say."""
        own.raw(_SCALING + "finetuned")
        kind = own.text(_SCALING + "type", TYPES) or "none"
        factor = own.real(_SCALING + "factor")
        original = own.whole(_SCALING + "original_context_length")
        plain = {ours: own.real(_SCALING + theirs) for ours, theirs in _YARN.items()}
        old = own.real("rope.scale_linear")
        if kind == "none" and old not in (None, 1.0):
            kind, factor = "linear", old
        if kind in ("none", "longrope"):
            return {}
        if factor is None:
            raise ConfigError(f"{own.prefix}{_SCALING}type is {kind}, but factor is missing")
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        found: Json = {"rope_type": "yarn", "factor": factor}
        if original is not None:
            found["original_max_position_embeddings"] = original
        if (times := plain.pop("attention_factor")) is not None and factor > 1:
            found["attention_factor"] = times * (1 + 0.1 * math.log(factor))
        return found | {key: value for key, value in plain.items() if value is not None}

    @staticmethod
    def _factors(own: Own, tensors: Tensors, rope: Json, turned: int) -> Json:
        """What the tensors of factors say, one a pair."""
        names = set(tensors.names())
        if LONG in names or SHORT in names:
            if not {LONG, SHORT} <= names:
                raise ConfigError(f"the file has only one of {LONG} and {SHORT}")
            original = own.whole(_SCALING + "original_context_length")
            if original is None:
                raise ConfigError(f"{own.prefix}{_SCALING}original_context_length is missing")
            return {
                "rope_type": "longrope",
                "short_factor": _values(tensors, SHORT, turned),
                "long_factor": _values(tensors, LONG, turned),
                "attention_factor": own.real(_SCALING + "attn_factor") or 1.0,
                "original_max_position_embeddings": original,
            }
        if FREQS not in names:
            return {}
        factors = _values(tensors, FREQS, turned)
        found = recover(factors, turned, rope["rope_theta"])
        if found is None:  # no published formula: the numbers themselves
            return {
                "rope_type": "longrope",
                "short_factor": factors,
                "long_factor": factors,
                "attention_factor": 1.0,
                "original_max_position_embeddings": 1,
            }
        return {
            "rope_type": "llama3",
            "factor": found.factor,
            "low_freq_factor": found.low,
            "high_freq_factor": found.high,
            "original_max_position_embeddings": found.original,
        }

    def write(self, config: Json) -> Json:
        """The keys; `rope_tensors` gives the tensors."""
        rope = dict(config["rope_parameters"])
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        turned = int(head * rope.get("partial_rotary_factor", 1.0))
        out: Json = {"rope.dimension_count": turned, "rope.freq_base": float(rope["rope_theta"])}
        kind = rope["rope_type"]
        if kind in ("linear", "yarn"):
            out |= {_SCALING + "type": kind, _SCALING + "factor": float(rope["factor"])}
        original = rope.get("original_max_position_embeddings")
        if kind in ("yarn", "longrope") and original:
            out[_SCALING + "original_context_length"] = int(original)
        for ours, theirs in _YARN.items():
            value = rope.get(ours)
            if value is None or kind not in ("yarn", "longrope"):
                continue
            if kind == "yarn" and ours == "attention_factor":
                value /= 1 + 0.1 * math.log(rope["factor"])
            if kind == "yarn" or ours == "attention_factor":
                out[_SCALING + theirs] = float(value)
        return out


def rope_tensors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of factors that a config.json's rotary scaling needs: (pairs,) float32 each."""
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        return {
            LONG: torch.tensor(rope["long_factor"], dtype=torch.float32),
            SHORT: torch.tensor(rope["short_factor"], dtype=torch.float32),
        }
    if rope.get("rope_type") != "llama3":
        return {}
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    scaling = Llama3(
        rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )  # fmt: skip
    return {FREQS: _llama3(scaling, int(head), rope["rope_theta"])}


def _llama3(scaling: Llama3, width: int, base: float) -> Tensor:
    """How many times slower each pair turns: (width / 2,)."""
    return frequencies(width, base) / scaling.frequencies(width, base, 0)[0]


def recover(factors: list[float], width: int, base: float) -> Llama3 | None:
    """The LLaMA 3.1 scaling that yields these factors, or None.

    Between the two bounds 1/factor is linear in 1/wavelength; the published files have low = 1,
    which fixes the scale that the formula leaves free.
    """
    most = max(factors)
    if most <= 1 or min(factors) < 1:
        return None
    wave = (2 * math.pi / frequencies(width, base).double()).tolist()
    pairs = [
        (1 / w, (1 / f - 1 / most) / (1 - 1 / most))
        for w, f in zip(wave, factors, strict=True)
        if 1 + 1e-4 < f < most * (1 - 1e-4)
    ]
    tried = [(4.0, 8192)]
    if len(pairs) > 1:
        (x0, y0), (x1, y1) = pairs[0], pairs[-1]
        slope = (y1 - y0) / (x1 - x0)
        span = 1 / -(y0 - slope * x0) if y0 != slope * x0 else 0.0  # (high - low) / low
        tried.append((round(1 + span, 3), round(slope * span)))
    else:
        tried += [(4.0, 1 << n) for n in range(4, 20)]
    for high, original in tried:
        if high <= 1 or original < 1:
            continue
        scaling = Llama3(round(most, 4), 1.0, high, original)
        if torch.allclose(_llama3(scaling, width, base), torch.tensor(factors), rtol=1e-4):
            return scaling
    return None


def _values(tensors: Tensors, name: str, turned: int) -> list[float]:
    """A tensor of one factor a pair."""
    if tensors.shape(name) != (turned // 2,):
        raise ConfigError(f"{name} has shape {list(tensors.shape(name))}, expected [{turned // 2}]")
    value = tensors.read(name)
    dense = value.dequantize() if isinstance(value, Packed) else value
    found: list[float] = dense.float().tolist()
    if not all(math.isfinite(f) and f > 0 for f in found):
        raise ConfigError(f"{name} has values that are not above 0")
    return found
