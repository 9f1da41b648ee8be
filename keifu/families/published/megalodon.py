"""Published sizes of MEGALODON: the authors' presets, and the paper's 7B with its longer chunks.

No weights were published; the vocabulary is LLaMA 2's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keifu.families.published.row import Published


def _row(parameters: int, source: str, **config: Any) -> Published:
    return Published(
        family="megalodon", config={"vocab_size": 32000, **config}, parameters=parameters,
        source=source, licence="MIT", year=2024,
    )  # fmt: skip


_SMALL: dict[str, Any] = {
    "num_layers": 12, "model_dim": 1024, "num_heads": 1, "z_dim": 256, "value_dim": 2048,
    "ffn_hidden_dim": 2560, "norm_num_groups": 32,
}  # fmt: skip
_MIDDLE: dict[str, Any] = {
    "num_layers": 24, "model_dim": 2048, "num_heads": 2, "z_dim": 512, "value_dim": 4096,
    "norm_num_groups": 64,
}  # fmt: skip
_LARGE: dict[str, Any] = {
    "num_layers": 32, "model_dim": 4096, "num_heads": 4, "z_dim": 1024, "value_dim": 8192,
    "norm_num_groups": 64,
}  # fmt: skip
_GATED: dict[str, Any] = {"swiglu": True, "ffn_hidden_dim": 8192}
_CODE = "XuezheMax/megalodon, ModelStore"

MEGALODON: Mapping[str, Published] = {
    "megalodon-200m": _row(220_627_968, _CODE, **_SMALL),
    "megalodon-1.3b": _row(1_342_832_640, _CODE, **_MIDDLE, ffn_hidden_dim=4864),
    "megalodon-1.3b-pg19": _row(
        1_327_628_288,
        _CODE,
        **_MIDDLE,
        ffn_hidden_dim=3584,
        swiglu=True,
        scale_emb=True,
        share_emb=True,
    ),
    "megalodon-7.1b": _row(7_117_381_632, _CODE, **_LARGE, ffn_hidden_dim=11264),
    "megalodon-7.3b": _row(7_385_817_088, _CODE, **_LARGE, **_GATED),
    "megalodon-7b": _row(
        7_385_817_088,
        "arXiv 2404.08801, section 4.1",
        **_LARGE,
        **_GATED,
        chunk_size=4096,
        rope_base=1e5,
    ),
}
