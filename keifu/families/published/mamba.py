"""Published sizes of Mamba, Falcon Mamba and Mamba-2: one row a checkpoint."""

from __future__ import annotations

from typing import Any

from keifu.families.published.row import Published

_APACHE = "Apache-2.0"


def _row(
    family: str, config: dict[str, Any], parameters: int, year: int, licence: str, source: str
) -> Published:
    return Published(
        family=family, config=config, parameters=parameters, source=source, licence=licence,
        year=year,
    )  # fmt: skip


def _mamba(width: int, depth: int, vocab: int = 50280) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": depth, "vocab_size": vocab}


def _mamba2(width: int, depth: int) -> dict[str, Any]:
    """The original checkpoints: one group, heads of 64, a tied head."""
    heads = {"num_heads": width // 32, "n_groups": 1, "tie_word_embeddings": True}
    return _mamba(width, depth, 50288) | heads


_SIZES = {
    "130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48), "1.4b": (2048, 48),
    "2.8b": (2560, 64),
}  # fmt: skip
_SIZES_2 = {
    "130m": (768, 24), "370m": (1024, 48), "780m": (1536, 48), "1.3b": (2048, 48),
    "2.7b": (2560, 64),
}  # fmt: skip
_COUNTS = {
    "mamba-130m": 129_135_360,
    "mamba-370m": 371_516_416,
    "mamba-790m": 793_204_224,
    "mamba-1.4b": 1_372_178_432,
    "mamba-2.8b": 2_768_345_600,
    "mamba2-130m": 128_989_632,
    "mamba2-370m": 368_346_624,
    "mamba2-780m": 780_161_280,
    "mamba2-1.3b": 1_343_757_312,
    "mamba2-2.7b": 2_702_599_680,
    "mamba-codestral-7b": 7_285_403_648,
    "falcon-mamba-7b": 7_272_665_088,
}
"""Distinct parameters, counted with the reference classes."""

MAMBA_LIKE = {
    **{
        f"mamba-{name}": _row(
            "mamba", _mamba(*size), _COUNTS[f"mamba-{name}"], 2023, _APACHE,
            "arXiv 2312.00752, table 12",
        )
        for name, size in _SIZES.items()
    },
    **{
        f"mamba2-{name}": _row(
            "mamba2", _mamba2(*size), _COUNTS[f"mamba2-{name}"], 2024, _APACHE,
            "arXiv 2405.21060, table 9",
        )
        for name, size in _SIZES_2.items()
    },
    "mamba-codestral-7b": _row(
        "mamba2", {}, _COUNTS["mamba-codestral-7b"], 2024, _APACHE,
        "mistralai/Mamba-Codestral-7B-v0.1",
    ),
    "falcon-mamba-7b": _row(
        "falcon-mamba",
        {**_mamba(4096, 64, 65024), "intermediate_size": 8192, "expand": 16,
         "tie_word_embeddings": False},
        _COUNTS["falcon-mamba-7b"], 2024, "TII Falcon-Mamba License 2.0",
        "tiiuae/falcon-mamba-7b",
    ),
}  # fmt: skip
"""Every published size."""
