"""Published encoder-decoders: BART's and Marian's relatives, the Transformer of 2017.

A configuration has the keys of its published config.json that say something about the network.
Counts are of distinct parameters: a shared table counts once, sinusoids, which nothing learns, not
at all (the reference classes of Marian and PEGASUS count them).
"""

from __future__ import annotations

from typing import Any

from keifu.families.published.row import Published

_COUNTED = "counted with the reference class"


def _row(
    family: str, config: dict[str, Any], parameters: int, source: str, licence: str, year: int
) -> Published:
    return Published(
        family=family, config=config, parameters=parameters, source=source, licence=licence,
        year=year,
    )  # fmt: skip


def _sizes(width: int, depth: int, heads: int, hidden: int, vocab: int) -> dict[str, Any]:
    """Both sides alike."""
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", depth), ("attention_heads", heads), ("ffn_dim", hidden))
    }
    return {"vocab_size": vocab, "d_model": width, **sides}


_LARGE = (1024, 12, 16, 4096)
_BART = {"activation_function": "gelu", "max_position_embeddings": 1024}
_MARIAN = {"activation_function": "swish", "max_position_embeddings": 512, "scale_embedding": True}
_MNLI = {
    "architectures": ["BartForSequenceClassification"],
    "id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"},
    "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
}
BART_LIKE = {
    "bart-base": _row(
        "bart", _sizes(768, 6, 12, 3072, 50265) | _BART, 139_420_416,
        f"facebook/bart-base, {_COUNTED}", "Apache-2.0", 2019,
    ),
    "bart-large": _row(
        "bart", _sizes(*_LARGE, 50265) | _BART, 406_291_456,
        f"facebook/bart-large, {_COUNTED}", "Apache-2.0", 2019,
    ),
    "bart-large-cnn": _row(
        "bart", _sizes(*_LARGE, 50264) | _BART, 406_290_432,
        f"facebook/bart-large-cnn, {_COUNTED}", "MIT", 2019,
    ),
    "bart-large-mnli": _row(
        "bart", _sizes(*_LARGE, 50265) | _BART | _MNLI, 407_344_131,
        f"facebook/bart-large-mnli, {_COUNTED}", "MIT", 2019,
    ),
    "mbart-large-cc25": _row(
        "mbart", _sizes(*_LARGE, 250027) | _BART | {"scale_embedding": True}, 610_851_840,
        f"facebook/mbart-large-cc25, {_COUNTED}", "MIT", 2020,
    ),
    "mbart-large-50": _row(
        "mbart", _sizes(*_LARGE, 250054) | _BART | {"scale_embedding": True}, 610_879_488,
        f"facebook/mbart-large-50, {_COUNTED}", "MIT", 2020,
    ),
    "pegasus-large": _row(
        "pegasus",
        _sizes(1024, 16, 16, 4096, 96103)
        | {"activation_function": "relu", "max_position_embeddings": 1024, "scale_embedding": True},
        568_699_904, f"google/pegasus-large, {_COUNTED}", "Apache-2.0", 2020,
    ),
    "opus-mt-en-de": _row(
        "marian", _sizes(512, 6, 8, 2048, 58101) | _MARIAN, 73_886_208,
        f"Helsinki-NLP/opus-mt-en-de, {_COUNTED}", "CC-BY-4.0", 2020,
    ),
    "opus-mt-en-fr": _row(
        "marian", _sizes(512, 6, 8, 2048, 59514) | _MARIAN, 74_609_664,
        f"Helsinki-NLP/opus-mt-en-fr, {_COUNTED}", "Apache-2.0", 2020,
    ),
    "transformer-base": _row(
        "transformer", _sizes(512, 6, 8, 2048, 37000), 63_045_632,
        "arXiv 1706.03762, table 3, which rounds to 65 M", "Apache-2.0", 2017,
    ),
    "transformer-big": _row(
        "transformer", _sizes(1024, 6, 16, 4096, 37000), 214_171_648,
        "arXiv 1706.03762, table 3, which rounds to 213 M", "Apache-2.0", 2017,
    ),
}  # fmt: skip
"""Rows by name."""
