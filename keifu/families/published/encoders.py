"""Published sizes of BERT and its successors: one row a checkpoint, counted with the pooler.

A count is of the bare encoder (`...Model`), distinct parameters.
"""

from __future__ import annotations

from typing import Any

from keifu.families.published.row import Published

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_BASE, _LARGE = (768, 12, 12, 3072), (1024, 24, 16, 4096)
_ROBERTA: dict[str, Any] = {
    "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5,
}  # fmt: skip


def _row(
    family: str,
    sizes: tuple[int, int, int, int],
    vocab: int,
    parameters: int,
    source: str,
    licence: str,
    year: int,
    **more: Any,
) -> Published:
    return Published(
        family=family,
        config={**dict(zip(_SIZES, sizes, strict=True)), "vocab_size": vocab, **more},
        parameters=parameters,
        source=source,
        licence=licence,
        year=year,
    )


def _bert(sizes: tuple[int, int, int, int], vocab: int, parameters: int) -> Published:
    source = "arXiv 1810.04805, section 3; counted with the reference class"
    return _row("bert", sizes, vocab, parameters, source, "Apache-2.0", 2018)


def _roberta(
    family: str, sizes: tuple[int, int, int, int], vocab: int, parameters: int, paper: str,
    year: int = 2019,
) -> Published:  # fmt: skip
    source = f"arXiv {paper}; counted with the reference class"
    return _row(family, sizes, vocab, parameters, source, "MIT", year, **_ROBERTA)


def _albert(sizes: tuple[int, int, int, int], parameters: int) -> Published:
    source = "arXiv 1909.11942, table 1; counted with the reference class"
    licence, narrow = "Apache-2.0", {"embedding_size": 128, "num_hidden_groups": 1}
    return _row("albert", sizes, 30000, parameters, source, licence, 2019, **narrow)


ENCODERS = {
    "bert-base-uncased": _bert(_BASE, 30522, 109_482_240),
    "bert-large-uncased": _bert(_LARGE, 30522, 335_141_888),
    "bert-base-cased": _bert(_BASE, 28996, 108_310_272),
    "bert-large-cased": _bert(_LARGE, 28996, 333_579_264),
    "bert-base-multilingual-cased": _bert(_BASE, 119547, 177_853_440),
    "bert-base-chinese": _bert(_BASE, 21128, 102_267_648),
    "roberta-base": _roberta("roberta", _BASE, 50265, 124_645_632, "1907.11692"),
    "roberta-large": _roberta("roberta", _LARGE, 50265, 355_359_744, "1907.11692"),
    "xlm-roberta-base": _roberta("xlm-roberta", _BASE, 250002, 278_043_648, "1911.02116"),
    "xlm-roberta-large": _roberta("xlm-roberta", _LARGE, 250002, 559_890_432, "1911.02116"),
    "camembert-base": _roberta("camembert", _BASE, 32005, 110_621_952, "1911.03894"),
    "albert-base": _albert(_BASE, 11_683_584),
    "albert-large": _albert(_LARGE, 17_683_968),
    "albert-xlarge": _albert((2048, 24, 16, 8192), 58_724_864),
    "albert-xxlarge": _albert((4096, 12, 64, 16384), 222_595_584),
    "ernie-1.0-base-zh": _row(
        "ernie", _BASE, 18000, 99_866_112, "arXiv 1904.09223, section 4.1, and the released config",
        "Apache-2.0", 2019, max_position_embeddings=513, hidden_act="relu", layer_norm_eps=1e-5,
    ),
    "ernie-3.0-base-zh": _row(
        "ernie", _BASE, 40000, 117_944_832, "the released config", "Apache-2.0", 2022,
        max_position_embeddings=2048, type_vocab_size=4, use_task_id=True, layer_norm_eps=1e-5,
    ),
}  # fmt: skip
