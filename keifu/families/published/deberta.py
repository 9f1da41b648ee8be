"""Published sizes of DeBERTa v1, v2 and v3: one row a checkpoint, counted as the bare encoder."""

from __future__ import annotations

from typing import Any

from keifu.families.published.row import Published

_FIRST: dict[str, Any] = {
    "max_position_embeddings": 512, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False, "type_vocab_size": 0, "vocab_size": 50265,
}  # fmt: skip
_THIRD = _FIRST | {
    "vocab_size": 128100, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
}  # fmt: skip
_SECOND = _THIRD | {"conv_kernel_size": 3, "conv_act": "gelu"}


def _row(
    shared: dict[str, Any], sizes: tuple[int, int, int, int], parameters: int, year: int,
    **more: Any,
) -> Published:  # fmt: skip
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return Published(
        family="deberta" if shared is _FIRST else "deberta-v2",
        config={**shared, **dict(zip(keys, sizes, strict=True)), **more},
        parameters=parameters,
        source="counted with the reference class",
        licence="MIT",
        year=year,
    )


DEBERTA = {
    "deberta-base": _row(_FIRST, (768, 12, 12, 3072), 138_601_728, 2020),
    "deberta-large": _row(_FIRST, (1024, 24, 16, 4096), 405_163_008, 2020),
    "deberta-xlarge": _row(_FIRST, (1024, 48, 16, 4096), 757_804_032, 2020),
    "deberta-v2-xlarge": _row(_SECOND, (1536, 24, 24, 6144), 884_593_152, 2021),
    "deberta-v2-xxlarge": _row(_SECOND, (1536, 48, 24, 6144), 1_564_549_632, 2021),
    "deberta-v3-xsmall": _row(_THIRD, (384, 12, 6, 1536), 70_682_112, 2021),
    "deberta-v3-small": _row(_THIRD, (768, 6, 12, 3072), 141_304_320, 2021),
    "deberta-v3-base": _row(_THIRD, (768, 12, 12, 3072), 183_831_552, 2021),
    "deberta-v3-large": _row(_THIRD, (1024, 24, 16, 4096), 434_012_160, 2021),
    "mdeberta-v3-base": _row(_THIRD, (768, 12, 12, 3072), 278_218_752, 2021, vocab_size=251000),
}
"""Every published size by name."""
