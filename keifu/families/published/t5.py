"""Published T5s: 1.0, 1.1 and those trained on from it (Flan-T5, T0, FastChat-T5), mT5.

A configuration has the keys of its published config.json that say something about the network.
Counts are of distinct parameters: the shared table once, a head of its own besides.
"""

from __future__ import annotations

from typing import Any

from keifu.families.published.row import Published

_GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def _sizes(
    width: int, hidden: int, head: int, depth: int, heads: int, vocab: int = 32128, **more: Any
) -> dict[str, Any]:
    return {
        "d_model": width, "d_ff": hidden, "d_kv": head, "num_layers": depth, "num_heads": heads,
        "vocab_size": vocab, **more,
    }  # fmt: skip


def _row(config: dict[str, Any], parameters: int, source: str, year: int) -> Published:
    return Published(
        family="t5", config=config, parameters=parameters, source=source, licence="Apache-2.0",
        year=year,
    )  # fmt: skip


_FIRST = {
    "small": ((512, 2048, 64, 6, 8), 60_506_624),
    "base": ((768, 3072, 64, 12, 12), 222_903_552),
    "large": ((1024, 4096, 64, 24, 16), 737_668_096),
    "3b": ((1024, 16384, 128, 24, 32), 2_851_598_336),
    "11b": ((1024, 65536, 128, 24, 128), 11_307_321_344),
}
_NEXT = {
    "small": ((512, 1024, 64, 8, 6), 76_961_152),
    "base": ((768, 2048, 64, 12, 12), 247_577_856),
    "large": ((1024, 2816, 64, 24, 16), 783_150_080),
    "xl": ((2048, 5120, 64, 24, 32), 2_849_757_184),
    "xxl": ((4096, 10240, 64, 24, 64), 11_135_332_352),
}
"""1.1's sizes, which all later ones have."""
_MANY = {
    "small": 300_176_768,
    "base": 582_401_280,
    "large": 1_229_581_312,
    "xl": 3_742_619_648,
    "xxl": 12_921_057_280,
}
"""Of mT5: 1.1's sizes with 250112 pieces."""

T5_LIKE = {
    **{
        f"t5-{name}": _row(_sizes(*sizes), count, "arXiv 1910.10683, section 3.7", 2019)
        for name, (sizes, count) in _FIRST.items()
    },
    **{
        f"t5-v1.1-{name}": _row(
            _sizes(*sizes, **_GATED), count, f"google/t5-v1_1-{name}", 2020
        )
        for name, (sizes, count) in _NEXT.items()
    },
    **{
        f"mt5-{name}": _row(
            _sizes(*_NEXT[name][0], vocab=250112, **_GATED), count, "arXiv 2010.11934", 2020
        )
        for name, count in _MANY.items()
    },
    **{
        f"flan-t5-{name}": _row(_sizes(*sizes, **_GATED), count, "arXiv 2210.11416", 2022)
        for name, (sizes, count) in _NEXT.items()
    },
    "t0-3b": _row(_sizes(*_NEXT["xl"][0], **_GATED), _NEXT["xl"][1], "bigscience/T0_3B", 2021),
    **{
        name: _row(_sizes(*_NEXT["xxl"][0], **_GATED), _NEXT["xxl"][1], "arXiv 2110.08207", 2021)
        for name in ("t0", "t0p", "t0pp")
    },
    "fastchat-t5-3b": _row(
        _sizes(*_NEXT["xl"][0], vocab=32110, **_GATED), 2_849_683_456,
        "lmsys/fastchat-t5-3b-v1.0", 2023,
    ),
}  # fmt: skip
"""Rows by name."""
