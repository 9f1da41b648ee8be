"""Published sizes of RecurrentGemma (Griffin) and HyenaDNA (Hyena): one row a checkpoint.

A configuration has the keys of its published config.json that say something about the network.
Counts are of distinct parameters: a tied head once, HyenaDNA's fixed features not at all.
"""

from __future__ import annotations

from typing import Any

from keifu.families.published.row import Published


def _gemma(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": 6 * width, "num_hidden_layers": depth,
        "num_attention_heads": heads, "num_key_value_heads": 1, "lru_width": width,
        "head_dim": 256, "attention_window_size": 2048, "conv1d_width": 4,
        "logits_soft_cap": 30.0, "vocab_size": 256000, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5, "block_types": ["recurrent", "recurrent", "attention"],
    }  # fmt: skip


def _dna(width: int, depth: int, length: int) -> dict[str, Any]:
    return {
        "d_model": width, "d_inner": 4 * width, "n_layer": depth, "max_seq_len": length,
        "vocab_size": 12, "pad_vocab_size_multiple": 8, "emb_dim": 5, "filter_order": 64,
        "hyena_order": 2, "num_inner_mlps": 2, "short_filter_order": 3, "activation_freq": 10,
        "layer_norm_epsilon": 1e-5,
    }  # fmt: skip


_GEMMA = {
    "recurrentgemma-2b": ((2560, 26, 10), 2_682_862_080, None),
    "recurrentgemma-2b-it": ((2560, 26, 10), 2_682_862_080, "gemma"),
    "recurrentgemma-9b": ((4096, 38, 16), 8_579_977_216, None),
    "recurrentgemma-9b-it": ((4096, 38, 16), 8_579_977_216, "gemma"),
}
_DNA = {
    "tiny-1k-seqlen": ((128, 2, 1026), 436_096),
    "tiny-1k-seqlen-d256": ((256, 2, 1026), 1_641_088),
    "tiny-16k-seqlen-d128": ((128, 2, 16386), 436_096),
    "small-32k-seqlen": ((256, 4, 32770), 3_277_568),
    "medium-160k-seqlen": ((256, 8, 160002), 6_550_528),
    "medium-450k-seqlen": ((256, 8, 450002), 6_550_528),
    "large-1m-seqlen": ((256, 8, 1000002), 6_550_528),
}
GRIFFIN_LIKE = {
    name: Published(
        family="griffin", config=_gemma(*sizes), parameters=parameters,
        source="arXiv 2404.07839, table 1; counted with the reference class",
        licence="Gemma Terms of Use", year=2024, chat=chat,
    )
    for name, (sizes, parameters, chat) in _GEMMA.items()
}  # fmt: skip
HYENA_LIKE = {
    f"hyenadna-{name}": Published(
        family="hyena", config=_dna(*sizes), parameters=parameters,
        source="arXiv 2306.15794; counted with its code", licence="BSD-3-Clause", year=2023,
    )
    for name, (sizes, parameters) in _DNA.items()
}  # fmt: skip
