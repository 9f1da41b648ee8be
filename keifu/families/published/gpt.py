"""Published sizes and descendants of GPT-1 to PaLM's families: one row a checkpoint.

A configuration has the keys of its published config.json that say something about the network.
Counts are of distinct parameters (a tied head once). Where the weights are closed, the keys are
those that our family reads.
"""

from __future__ import annotations

from typing import Any

from keifu.families.published.row import Published

_COUNTED = "counted with the reference class"
_CLOSED = "proprietary, weights closed"


def _row(
    family: str,
    config: dict[str, Any],
    parameters: int,
    source: str,
    licence: str,
    year: int,
    chat: str | None = None,
) -> Published:
    return Published(
        family=family, config=config, parameters=parameters, source=source, licence=licence,
        year=year, chat=chat,
    )  # fmt: skip


def _gpt(width: int, depth: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"n_embd": width, "n_layer": depth, "n_head": heads, **more}


_J: dict[str, Any] = _gpt(4096, 28, 16, n_positions=2048, rotary_dim=64, vocab_size=50400)
GPT = {
    "gpt-1": _row(
        "gpt-1", _gpt(768, 12, 12, n_positions=512, vocab_size=40478, afn="gelu"),
        116_534_784, "openai-community/openai-gpt", "MIT", 2018,
    ),
    **{
        name: _row(
            "gpt-2", _gpt(*sizes, n_positions=1024, vocab_size=50257), parameters,
            "Radford et al. 2019, table 2", "MIT (modified)", 2019,
        )
        for name, sizes, parameters in (
            ("gpt-2", (768, 12, 12), 124_439_808),
            ("gpt-2-medium", (1024, 24, 16), 354_823_168),
            ("gpt-2-large", (1280, 36, 20), 774_030_080),
            ("gpt-2-xl", (1600, 48, 25), 1_557_611_200),
        )
    },
    **{
        f"gpt-3-{name}": _row(
            "gpt-3", _gpt(*sizes, head_dim=head, n_positions=2048, vocab_size=50257), parameters,
            "arXiv 2005.14165, table 2.1", _CLOSED, 2020,
        )
        for name, sizes, head, parameters in (
            ("125m", (768, 12, 12), 64, 125_226_240),
            ("350m", (1024, 24, 16), 64, 355_871_744),
            ("760m", (1536, 24, 16), 96, 760_300_032),
            # The table's 24 heads of 128 are not 2048 wide; 16 heads make the 1.3B of its name.
            ("1.3b", (2048, 24, 16), 128, 1_315_723_264),
            ("2.7b", (2560, 32, 32), 80, 2_651_553_280),
            ("6.7b", (4096, 32, 32), 128, 6_658_404_352),
            ("13b", (5140, 40, 40), 128, 12_936_488_380),
            ("175b", (12288, 96, 96), 128, 174_604_259_328),
        )
    },
    "gpt-j-6b": _row("gpt-j", _J, 6_050_882_784, "EleutherAI/gpt-j-6b card", "Apache-2.0", 2021),
    "gpt4all-j": _row("gpt-j", _J, 6_050_882_784, "Nomic AI report 2", "Apache-2.0", 2023),
}  # fmt: skip


def _neox(
    width: int, depth: int, heads: int, vocab: int, rotary: float = 0.25, parallel: bool = True,
    context: int = 2048,
) -> dict[str, Any]:  # fmt: skip
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "vocab_size": vocab,
        "rotary_pct": rotary,
        "use_parallel_residual": parallel,
        "max_position_embeddings": context,
    }


_PYTHIA = {
    "70m": ((512, 6, 8, 50304), 70_426_624),
    "160m": ((768, 12, 12, 50304), 162_322_944),
    "410m": ((1024, 24, 16, 50304), 405_334_016),
    "1b": ((2048, 16, 8, 50304), 1_011_781_632),
    "1.4b": ((2048, 24, 16, 50304), 1_414_647_808),
    "2.8b": ((2560, 32, 32, 50304), 2_775_208_960),
    "6.9b": ((4096, 32, 32, 50432), 6_857_302_016),
    "12b": ((5120, 36, 40, 50688), 11_846_072_320),
}
_RINNA = (2816, 36, 22, 32000, 1.0, False)
_RED = {"3b": (2560, 32, 32, 50432, 1.0, False), "7b": (4096, 32, 32, 50432, 1.0, False)}
_ALPHA = {"3b": (4096, 16, 32, 50688), "7b": (6144, 16, 48, 50432)}
NEOX = {
    "gpt-neox-20b": _row(
        "gpt-neox", _neox(6144, 44, 64, 50432), 20_554_567_680, "arXiv 2204.06745", "Apache-2.0",
        2022,
    ),
    **{
        f"pythia-{name}": _row(
            "gpt-neox", _neox(*sizes), parameters, "arXiv 2304.01373, table 1", "Apache-2.0", 2023
        )
        for name, (sizes, parameters) in _PYTHIA.items()
    },
    **{
        f"dolly-2.0-{name}": _row(
            "gpt-neox", _neox(*sizes, 50280), parameters, f"databricks/dolly-v2-{name} card",
            "MIT", 2023, "dolly",
        )
        for name, sizes, parameters in (
            ("3b", (2560, 32, 32), 2_775_086_080),
            ("7b", (4096, 32, 32), 6_856_056_832),
            ("12b", (5120, 36, 40), 11_841_894_400),
        )
    },
    "opencalm-7b": _row(
        "gpt-neox", _neox(4096, 32, 32, 52224, 1.0, False), 6_871_982_080,
        "cyberagent/open-calm-7b card", "CC-BY-SA-4.0", 2023,
    ),
    "japanese-gpt-neox-3.6b": _row(
        "gpt-neox", _neox(*_RINNA), 3_607_245_312, "rinna/japanese-gpt-neox-3.6b card", "MIT", 2023
    ),
    "japanese-gpt-neox-3.6b-instruction-sft": _row(
        "gpt-neox", _neox(*_RINNA), 3_607_245_312,
        "rinna/japanese-gpt-neox-3.6b-instruction-sft card", "MIT", 2023, "rinna",
    ),
    "gpt-neox-japanese-2.7b": _row(
        "gpt-neox-japanese",
        {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
         "vocab_size": 32000, "intermediate_multiple_size": 4, "rotary_pct": 1.0},
        2_598_837_760, "abeja/gpt-neox-japanese-2.7b card", "MIT", 2022,
    ),
    **{
        f"redpajama-incite{kind}-{size}": _row(
            "gpt-neox", _neox(*_RED[size]), parameters, "arXiv 2411.12372", "Apache-2.0", 2023, chat
        )
        for size, parameters in (("3b", 2_775_864_320), ("7b", 6_857_302_016))
        for kind, chat in (("", None), ("-chat", "redpajama"))
    },
    **{
        f"stablelm{kind}-alpha-{size}": _row(
            "gpt-neox", _neox(*_ALPHA[size], context=4096), parameters, _COUNTED, licence, 2023,
            chat,
        )
        for size, parameters in (("3b", 3_637_321_728), ("7b", 7_868_755_968))
        for kind, licence, chat in (
            ("-base", "CC-BY-SA-4.0", None), ("-tuned", "CC-BY-NC-SA-4.0", "stablelm-alpha"),
        )
    },
}  # fmt: skip

OPTS = {
    f"opt-{name}": _row(
        "opt",
        {"hidden_size": width, "ffn_dim": 4 * width, "num_hidden_layers": depth,
         "num_attention_heads": heads, "word_embed_proj_dim": table or width,
         "do_layer_norm_before": not table, "vocab_size": 50272, "max_position_embeddings": 2048},
        parameters, "arXiv 2205.01068, table 1", "OPT-175B Licence", 2022,
    )
    for name, width, depth, heads, table, parameters in (
        ("125m", 768, 12, 12, 0, 125_239_296),
        ("350m", 1024, 24, 16, 512, 331_196_416),
        ("1.3b", 2048, 24, 32, 0, 1_315_758_080),
        ("2.7b", 2560, 32, 32, 0, 2_651_596_800),
        ("6.7b", 4096, 32, 32, 0, 6_658_473_984),
        ("13b", 5120, 40, 40, 0, 12_853_473_280),
        ("30b", 7168, 48, 56, 0, 29_974_540_288),
        ("66b", 9216, 64, 72, 0, 65_719_701_504),
        ("175b", 12288, 96, 96, 0, 174_604_468_224),
    )
}  # fmt: skip

BLOOMS = {
    f"bloom{name}": _row(
        "bloom",
        {"hidden_size": width, "n_layer": depth, "n_head": heads, "vocab_size": 250880},
        parameters, f"bigscience/bloom{name} card", "BigScience RAIL 1.0", 2022,
    )
    for name, width, depth, heads, parameters in (
        ("-560m", 1024, 24, 16, 559_214_592),
        ("-1b1", 1536, 24, 16, 1_065_314_304),
        ("-1b7", 2048, 24, 16, 1_722_408_960),
        ("-3b", 2560, 30, 32, 3_002_557_440),
        ("-7b1", 4096, 30, 32, 7_069_016_064),
        ("", 14336, 70, 112, 176_247_271_424),
    )
}  # fmt: skip


def _falcon(width: int, depth: int, heads: int, groups: int | None) -> dict[str, Any]:
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "vocab_size": 65024,
        "max_position_embeddings": 2048,
    }
    if groups is None:
        return {**sizes, "multi_query": True, "parallel_attn": True}
    return {**sizes, "num_kv_heads": groups, "new_decoder_architecture": True}


_F7, _F40, _F180 = (4544, 32, 71, None), (8192, 60, 128, 8), (14848, 80, 232, 8)
_TII = "Falcon-180B TII Licence 1.0"
FALCONS = {
    **{
        f"falcon-{name}": _row(
            "falcon", _falcon(*sizes), parameters, "arXiv 2311.16867, table 15", licence, 2023, chat
        )
        for name, sizes, parameters, licence, chat in (
            ("7b", _F7, 6_921_720_704, "Apache-2.0", None),
            ("7b-instruct", _F7, 6_921_720_704, "Apache-2.0", "falcon"),
            ("40b", _F40, 41_303_293_952, "Apache-2.0", None),
            ("40b-instruct", _F40, 41_303_293_952, "Apache-2.0", "falcon"),
            ("180b", _F180, 178_557_088_768, _TII, None),
            ("180b-chat", _F180, 178_557_088_768, _TII, "falcon-180b"),
        )
    },
    "falcon-rw-1b": _row(
        "falcon",
        {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32,
         "vocab_size": 50304, "alibi": True, "bias": True, "multi_query": False,
         "parallel_attn": False},
        1_311_625_216, "arXiv 2306.01116", "Apache-2.0", 2023,
    ),
}  # fmt: skip


def _mpt(
    width: int, depth: int, heads: int, context: int = 2048, most: int = 8,
    clip: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "d_model": width,
        "n_layers": depth,
        "n_heads": heads,
        "expansion_ratio": 4,
        "vocab_size": 50432,
        "max_seq_len": context,
        "attn_config": {"alibi": True, "alibi_bias_max": most, "clip_qkv": clip},
    }


MPTS = {
    f"mpt-{name}": _row("mpt", config, parameters, f"mosaicml/mpt-{name} card", licence, 2023, chat)
    for name, config, parameters, licence, chat in (
        ("7b", _mpt(4096, 32, 32), 6_649_286_656, "Apache-2.0", None),
        ("7b-instruct", _mpt(4096, 32, 32), 6_649_286_656, "Apache-2.0", "dolly"),
        ("7b-chat", _mpt(4096, 32, 32), 6_649_286_656, "CC-BY-NC-SA-4.0", "chatml"),
        ("7b-storywriter", _mpt(4096, 32, 32, 65536, 16, 6.0), 6_649_286_656, "Apache-2.0", None),
        ("30b", _mpt(7168, 48, 64, 8192), 29_957_200_896, "Apache-2.0", None),
        ("30b-chat", _mpt(7168, 48, 64, 8192), 29_957_200_896, "CC-BY-NC-SA-4.0", "chatml"),
    )
}


def _phi(width: int, depth: int, rotary: float) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": 32,
        "vocab_size": 51200,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": rotary,
    }


PHIS = {
    "phi-1": _row("phi", _phi(2048, 24, 0.5), 1_418_270_720, "arXiv 2306.11644", "MIT", 2023),
    "phi-1.5": _row("phi", _phi(2048, 24, 0.5), 1_418_270_720, "arXiv 2309.05463", "MIT", 2023),
    "phi-2": _row(
        "phi", _phi(2560, 32, 0.4), 2_779_683_840, "microsoft/phi-2 card", "MIT", 2023, "phi-2"
    ),
}

GOOGLE = {
    **{
        f"palm-{name}": _row(
            "palm",
            {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth,
             "num_attention_heads": heads},
            parameters, "arXiv 2204.02311, table 1", _CLOSED, 2022,
        )
        for name, width, depth, heads, parameters in (
            ("8b", 4096, 32, 16, 8_632_012_800),
            ("62b", 8192, 64, 32, 62_495_662_080),
            ("540b", 18432, 118, 48, 540_356_474_880),
        )
    },
    "lamda-137b": _row(
        "lamda",
        {"d_model": 8192, "d_ff": 65536, "num_layers": 64, "num_heads": 128, "d_kv": 128,
         "vocab_size": 32000},
        137_964_302_336, "arXiv 2201.08239, section 3 (137B without tables)", _CLOSED, 2022,
    ),
}  # fmt: skip

GPT_LIKE = {**GPT, **NEOX, **OPTS, **BLOOMS, **FALCONS, **MPTS, **PHIS, **GOOGLE}
"""All rows."""
