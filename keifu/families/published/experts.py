"""Published mixtures of experts: Mixtral, Qwen's, Switch Transformers.

A configuration has the keys of its published config.json that say something about the network.
Counts are of distinct parameters, all experts'.
"""

from __future__ import annotations

from typing import Any

from keifu.families.published.row import Published

_APACHE = "Apache-2.0"


def _mixtral(
    width: int, hidden: int, depth: int, heads: int, parameters: int, source: str, **more: Any
) -> Published:
    config = {
        "vocab_size": 32000, "hidden_size": width, "intermediate_size": hidden,
        "num_hidden_layers": depth, "num_attention_heads": heads, "num_key_value_heads": 8,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None, **more,
    }  # fmt: skip
    return Published(
        family="mixtral", config=config, parameters=parameters, source=source, licence=_APACHE,
        year=2024,
    )  # fmt: skip


def _qwen(
    family: str, width: int, hidden: int, depth: int, heads: int, kv_heads: int, expert: int,
    parameters: int, source: str, year: int, **more: Any,
) -> Published:  # fmt: skip
    config = {
        "vocab_size": 151936, "hidden_size": width, "intermediate_size": hidden,
        "num_hidden_layers": depth, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "moe_intermediate_size": expert,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, **more,
    }  # fmt: skip
    return Published(
        family=family, config=config, parameters=parameters, source=source, licence=_APACHE,
        year=year,
    )  # fmt: skip


_QWEN3 = {
    "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    "max_position_embeddings": 40960,
}  # fmt: skip


def _switch(
    width: int, hidden: int, depth: int, heads: int, sparse: int, experts: int, parameters: int,
    source: str = "arXiv 2101.03961, table 9", **more: Any,
) -> Published:  # fmt: skip
    config = {
        "vocab_size": 32128, "d_model": width, "d_ff": hidden, "d_kv": 64, "num_layers": depth,
        "num_decoder_layers": depth, "num_heads": heads, "num_experts": experts,
        "num_sparse_encoder_layers": sparse, "num_sparse_decoder_layers": sparse,
        "expert_capacity": 64, **more,
    }  # fmt: skip
    return Published(
        family="switch", config=config, parameters=parameters, source=source, licence=_APACHE,
        year=2021,
    )  # fmt: skip


_BASE = (768, 3072, 12, 12, 6)

EXPERTS_LIKE = {
    "mixtral-8x7b": _mixtral(4096, 14336, 32, 32, 46_702_792_704, "arXiv 2401.04088, table 1"),
    "mixtral-8x22b": _mixtral(
        6144, 16384, 56, 48, 140_620_634_112, "mistralai/Mixtral-8x22B-v0.1",
        max_position_embeddings=65536,
    ),
    "qwen1.5-moe-a2.7b": _qwen(
        "qwen2-moe", 2048, 5632, 24, 16, 16, 1408, 14_315_784_192, "Qwen/Qwen1.5-MoE-A2.7B", 2024,
        num_experts=60, num_experts_per_tok=4, shared_expert_intermediate_size=5632,
        max_position_embeddings=8192,
    ),
    "qwen3-30b-a3b": _qwen(
        "qwen3-moe", 2048, 6144, 48, 32, 4, 768, 30_532_122_624, "arXiv 2505.09388, table 2", 2025,
        **_QWEN3,
    ),
    "qwen3-235b-a22b": _qwen(
        "qwen3-moe", 4096, 12288, 94, 64, 4, 1536, 235_093_634_560, "arXiv 2505.09388, table 2",
        2025, **_QWEN3,
    ),
    "switch-base-8": _switch(*_BASE, 8, 619_339_008),
    "switch-base-16": _switch(*_BASE, 16, 1_072_397_568),
    "switch-base-32": _switch(*_BASE, 32, 1_978_514_688),
    "switch-base-64": _switch(*_BASE, 64, 3_790_748_928),
    "switch-base-128": _switch(*_BASE, 128, 7_415_217_408),
    "switch-base-256": _switch(*_BASE, 256, 14_664_154_368),
    "switch-large-128": _switch(1024, 4096, 24, 16, 12, 128, 26_309_291_008),
    "switch-c-2048": _switch(
        2080, 6144, 15, 30, 15, 2048, 1_571_327_875_360, "google/switch-c-2048",
        tie_word_embeddings=False,
    ),
}  # fmt: skip
"""Rows by name."""
