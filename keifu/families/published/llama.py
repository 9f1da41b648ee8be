"""Published sizes and descendants of the LLaMA-like families: one row a checkpoint.

A configuration has the keys of its published config.json that say something about the network.
Counts are of distinct parameters (a tied head once).
"""

from __future__ import annotations

from typing import Any

from keifu.families.published.row import Published

_LLAMA = "arXiv 2302.13971, table 2"
_LLAMA2 = "arXiv 2307.09288"
_LLAMA3 = "arXiv 2407.21783, table 3"
_COUNTED = "counted with the reference class"
_NONCOMMERCIAL = "LLaMA non-commercial licence"
_COMMUNITY = "Llama 2 Community Licence"
_COMMUNITY3 = "Meta Llama 3 Community Licence"
_COMMUNITY31 = "Llama 3.1 Community Licence"
_TONGYI = "Tongyi Qianwen Licence"


def _sizes(
    width: int, hidden: int, depth: int, heads: int, kv_heads: int | None = None, /, **more: Any
) -> dict[str, Any]:
    """The keys that every LLaMA-like config.json has."""
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        **({} if kv_heads is None else {"num_key_value_heads": kv_heads}),
        **more,
    }


_V1: dict[str, Any] = {"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
_V2 = {**_V1, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_V3 = {**_V2, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}
_V31 = {
    **_V3,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_7B, _13B = (4096, 11008, 32, 32), (5120, 13824, 40, 40)


def _llama(config: dict[str, Any], parameters: int, source: str, licence: str, year: int,
           chat: str | None = None, family: str = "llama") -> Published:  # fmt: skip
    return Published(
        family=family, config=config, parameters=parameters, source=source, licence=licence,
        year=year, chat=chat,
    )  # fmt: skip


LLAMA = {
    "llama-7b": _llama(_sizes(*_7B, **_V1), 6_738_415_616, _LLAMA, _NONCOMMERCIAL, 2023),
    "llama-13b": _llama(_sizes(*_13B, **_V1), 13_015_864_320, _LLAMA, _NONCOMMERCIAL, 2023),
    "llama-33b": _llama(
        _sizes(6656, 17920, 60, 52, **_V1), 32_528_943_616, _LLAMA, _NONCOMMERCIAL, 2023
    ),
    "llama-65b": _llama(
        _sizes(8192, 22016, 80, 64, **{**_V1, "rms_norm_eps": 1e-5}),
        65_285_660_672, _LLAMA, _NONCOMMERCIAL, 2023,
    ),
    "llama-2-7b": _llama(
        _sizes(*_7B, **_V2), 6_738_415_616, _LLAMA2, _COMMUNITY, 2023, "llama-2"
    ),
    "llama-2-13b": _llama(
        _sizes(*_13B, **_V2), 13_015_864_320, _LLAMA2, _COMMUNITY, 2023, "llama-2"
    ),
    "llama-2-70b": _llama(
        _sizes(8192, 28672, 80, 64, 8, **_V2), 68_976_648_192, _LLAMA2, _COMMUNITY, 2023, "llama-2"
    ),
    "llama-3-8b": _llama(
        _sizes(4096, 14336, 32, 32, 8, **_V3), 8_030_261_248, _LLAMA3, _COMMUNITY3, 2024, "llama-3"
    ),
    "llama-3-70b": _llama(
        _sizes(8192, 28672, 80, 64, 8, **_V3),
        70_553_706_496, _LLAMA3, _COMMUNITY3, 2024, "llama-3",
    ),
    "llama-3.1-8b": _llama(
        _sizes(4096, 14336, 32, 32, 8, **_V31),
        8_030_261_248, _LLAMA3, _COMMUNITY31, 2024, "llama-3.1",
    ),
    "llama-3.1-70b": _llama(
        _sizes(8192, 28672, 80, 64, 8, **_V31),
        70_553_706_496, _LLAMA3, _COMMUNITY31, 2024, "llama-3.1",
    ),
    "llama-3.1-405b": _llama(
        _sizes(16384, 53248, 126, 128, 8, **_V31),
        405_853_388_800, _LLAMA3, _COMMUNITY31, 2024, "llama-3.1",
    ),
    "ziya2-13b": _llama(
        _sizes(*_13B, **{**_V2, "vocab_size": 39424}),
        13_091_886_080, "arXiv 2311.03301", "Apache-2.0", 2023,
    ),
    "alma-7b-ja": _llama(
        _sizes(*_7B, **_V2), 6_738_415_616, "webbigdata/ALMA-7B-Ja card", _COMMUNITY, 2023
    ),
    "openllama-3b": _llama(
        _sizes(3200, 8640, 26, 32, **_V1), 3_426_473_600, _COUNTED, "Apache-2.0", 2023
    ),
    "openllama-7b": _llama(
        _sizes(*_7B, **_V1), 6_738_415_616, "OpenLLaMA repository", "Apache-2.0", 2023
    ),
    "openllama-13b": _llama(
        _sizes(*_13B, **_V1), 13_015_864_320, "OpenLLaMA repository", "Apache-2.0", 2023
    ),
    "gpt4all-lora": _llama(
        _sizes(*_7B, **_V1), 6_738_415_616, "Nomic AI report 1", _NONCOMMERCIAL, 2023, "alpaca"
    ),
    "gpt4all-13b-snoozy": _llama(
        _sizes(*_13B, **_V1),
        13_015_864_320, "nomic-ai/gpt4all-13b-snoozy card", "GPL-3.0", 2023, "alpaca",
    ),
    "yi-6b": _llama(
        _sizes(4096, 11008, 32, 32, 4, **_V2 | {"vocab_size": 64000, "rope_theta": 5e6}),
        6_061_035_520, _COUNTED, "Yi Licence", 2023, "chatml",
    ),
    "yi-34b": _llama(
        _sizes(7168, 20480, 60, 56, 8, **_V2 | {"vocab_size": 64000, "rope_theta": 5e6}),
        34_388_917_248, "arXiv 2403.04652, table 2", "Yi Licence", 2023, "chatml",
    ),
    "yi-34b-200k": _llama(
        _sizes(
            7168, 20480, 60, 56, 8,
            **_V2 | {"vocab_size": 64000, "rope_theta": 5e6, "max_position_embeddings": 200000},
        ),
        34_388_917_248, "arXiv 2403.04652, section 7.1", "Yi Licence", 2023,
    ),
    **{
        f"deepseek-coder-{name}": _llama(
            _sizes(
                *sizes,
                vocab_size=32256,
                max_position_embeddings=16384,
                rms_norm_eps=1e-6,
                rope_theta=100000,
                rope_scaling={"type": "linear", "factor": 4.0},
            ),
            parameters, "arXiv 2401.14196, table 2", "DeepSeek Licence", 2023, "deepseek-coder",
        )
        for name, sizes, parameters in (
            ("1.3b", (2048, 5504, 24, 16, 16), 1_346_471_936),
            ("6.7b", (4096, 11008, 32, 32, 32), 6_740_512_768),
            ("33b", (7168, 19200, 62, 56, 8), 33_342_991_360),
        )
    },
    **{
        f"smollm2-{name}": _llama(
            _sizes(
                *sizes,
                vocab_size=49152,
                max_position_embeddings=8192,
                rms_norm_eps=1e-5,
                rope_theta=theta,
                tie_word_embeddings=True,
            ),
            parameters, "arXiv 2502.02737", "Apache-2.0", 2024, "chatml",
        )
        for name, sizes, theta, parameters in (
            ("135m", (576, 1536, 30, 9, 3), 100000.0, 134_515_008),
            ("360m", (960, 2560, 32, 15, 5), 100000.0, 361_821_120),
            ("1.7b", (2048, 8192, 24, 32, 32), 130000.0, 1_711_376_384),
        )
    },
}  # fmt: skip


_MISTRAL = _sizes(
    4096, 14336, 32, 32, 8,
    vocab_size=32000, max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=10000.0,
    sliding_window=4096,
)  # fmt: skip


def _mistral(
    source: str, chat: str | None, licence: str = "Apache-2.0", vocab: int = 32000, **more: Any
) -> Published:
    """Mistral 7B, or a fine-tune of it that added some tokens."""
    return Published(
        family="mistral",
        config={**_MISTRAL, "vocab_size": vocab, **more},
        parameters=7_241_732_096 + (vocab - 32000) * 2 * 4096,
        source=source,
        licence=licence,
        year=2023,
        chat=chat,
    )


MISTRAL = {
    "mistral-7b": _mistral("arXiv 2310.06825, table 1", "mistral"),
    "openhermes-2.5-mistral-7b": _mistral(
        "teknium/OpenHermes-2.5-Mistral-7B card", "chatml", vocab=32002
    ),
    "neural-chat-7b-v3-1": _mistral("Intel/neural-chat-7b-v3-1 card", "neural-chat"),
    "neural-chat-7b-v3-2": _mistral("Intel/neural-chat-7b-v3-2 card", "neural-chat"),
    "neural-chat-7b-v3-16k": _mistral("NurtureAI/neural-chat-7b-v3-16k card", "neural-chat"),
    "juanako-7b-una": _mistral("fblgit/juanako-7b-UNA card", "chatml"),
    "openinstruct-mistral-7b": _mistral("monology/openinstruct-mistral-7b card", "alpaca"),
    "loyal-piano-m7": _mistral("chargoddard/loyal-piano-m7 card", "alpaca", "CC-BY-NC-4.0"),
    "blossom-v3-mistral-7b": _mistral("Azure99/blossom-v3-mistral-7b card", "blossom"),
}


def _gemma(
    family: str, year: int, source: str, parameters: int, *sizes: int, **more: Any
) -> Published:
    return Published(
        family=family,
        config=_sizes(*sizes, rms_norm_eps=1e-6, tie_word_embeddings=True, **more),
        parameters=parameters,
        source=source,
        licence="Gemma Terms of Use",
        year=year,
        chat="gemma",
    )


_G1: dict[str, Any] = {"vocab_size": 256000, "head_dim": 256, "max_position_embeddings": 8192}
_G2 = {
    **_G1,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
}
_G3 = {
    "vocab_size": 262208,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
_G3_SMALL = {
    **{k: v for k, v in _G3.items() if k != "rope_scaling"},
    "vocab_size": 262144,
    "sliding_window": 512,
    "max_position_embeddings": 32768,
}
_GEMMA, _GEMMA2, _GEMMA3 = "arXiv 2403.08295", "arXiv 2408.00118, table 1", "arXiv 2503.19786"
GEMMA = {
    "gemma-2b": _gemma("gemma", 2024, _GEMMA, 2_506_172_416, 2048, 16384, 18, 8, 1, **_G1),
    "gemma-7b": _gemma("gemma", 2024, _GEMMA, 8_537_680_896, 3072, 24576, 28, 16, 16, **_G1),
    "gemma-2-2b": _gemma("gemma2", 2024, _GEMMA2, 2_614_341_888, 2304, 9216, 26, 8, 4, **_G2),
    "gemma-2-9b": _gemma("gemma2", 2024, _GEMMA2, 9_241_705_984, 3584, 14336, 42, 16, 8, **_G2),
    "gemma-2-27b": _gemma(
        "gemma2", 2024, _GEMMA2, 27_227_128_320, 4608, 36864, 46, 32, 16,
        **{**_G2, "head_dim": 128, "query_pre_attn_scalar": 144},
    ),
    "gemma-3-270m": _gemma(
        "gemma3", 2025, _GEMMA3, 268_098_176, 640, 2048, 18, 4, 1, **_G3_SMALL
    ),
    "gemma-3-1b": _gemma(
        "gemma3", 2025, _GEMMA3, 999_885_952, 1152, 6912, 26, 4, 1, **_G3_SMALL
    ),
    "gemma-3-4b": _gemma("gemma3", 2025, _GEMMA3, 3_880_263_168, 2560, 10240, 34, 8, 4, **_G3),
    "gemma-3-12b": _gemma(
        "gemma3", 2025, _GEMMA3, 11_766_034_176, 3840, 15360, 48, 16, 8, **_G3
    ),
    "gemma-3-27b": _gemma(
        "gemma3", 2025, _GEMMA3, 27_009_346_304, 5376, 21504, 62, 32, 16,
        **{**_G3, "head_dim": 128, "query_pre_attn_scalar": 168},
    ),
}  # fmt: skip

_QWEN1: dict[str, Any] = {"kv_channels": 128, "no_bias": True, "rotary_emb_base": 10000,
                          "rotary_pct": 1.0, "layer_norm_epsilon": 1e-6, "use_logn_attn": True,
                          "use_dynamic_ntk": True, "tie_word_embeddings": False}  # fmt: skip


def _qwen1(parameters: int, *sizes: int, vocab: int = 152064, seq: int = 8192) -> Published:
    config = _sizes(*sizes, vocab_size=vocab, seq_length=seq, **_QWEN1)
    return Published(
        family="qwen", config=config, parameters=parameters, source="arXiv 2309.16609, table 1",
        licence=_TONGYI, year=2023, chat="chatml",
    )  # fmt: skip


def _qwen(
    family: str, parameters: int, *sizes: int, licence: str = "Apache-2.0", **more: Any
) -> Published:
    year, source = _REPORTS[family]
    base: dict[str, Any] = {
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
    }
    return Published(
        family=family, config=_sizes(*sizes, **base, **more), parameters=parameters,
        source=source, licence=licence, year=year, chat="chatml",
    )  # fmt: skip


_REPORTS = {
    "qwen2": (2024, "arXiv 2407.10671, table 1"),
    "qwen3": (2025, "arXiv 2505.09388, table 1"),
}
_TIED: dict[str, Any] = {"vocab_size": 151936, "tie_word_embeddings": True}
_WIDE: dict[str, Any] = {"vocab_size": 151936, "head_dim": 128}
QWEN = {
    "qwen-7b": _qwen1(7_721_324_544, 4096, 22016, 32, 32, vocab=151936),
    "qwen-14b": _qwen1(14_167_290_880, 5120, 27392, 40, 40),
    "qwen-72b": _qwen1(72_287_920_128, 8192, 49152, 80, 64, seq=32768),
    "qwen2-0.5b": _qwen("qwen2", 494_032_768, 896, 4864, 24, 14, 2, **_TIED),
    "qwen2-1.5b": _qwen("qwen2", 1_543_714_304, 1536, 8960, 28, 12, 2, **_TIED),
    "qwen2-7b": _qwen("qwen2", 7_615_616_512, 3584, 18944, 28, 28, 4, vocab_size=152064),
    "qwen2-72b": _qwen(
        "qwen2", 72_706_203_648, 8192, 29568, 80, 64, 8, vocab_size=152064, licence=_TONGYI
    ),
    "qwen3-0.6b": _qwen("qwen3", 596_049_920, 1024, 3072, 28, 16, 8, **_WIDE | _TIED),
    "qwen3-1.7b": _qwen("qwen3", 1_720_574_976, 2048, 6144, 28, 16, 8, **_WIDE | _TIED),
    "qwen3-4b": _qwen("qwen3", 4_022_468_096, 2560, 9728, 36, 32, 8, **_WIDE | _TIED),
    "qwen3-8b": _qwen("qwen3", 8_190_735_360, 4096, 12288, 36, 32, 8, **_WIDE),
}


def _phi3(parameters: int, *sizes: int, **more: Any) -> Published:
    base: dict[str, Any] = {
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    return Published(
        family="phi3", config=_sizes(*sizes, **base, **more), parameters=parameters,
        source="arXiv 2404.14219, section 2", licence="MIT", year=2024, chat="phi-3",
    )  # fmt: skip


def _stablelm(
    parameters: int, source: str, licence: str, chat: str, *sizes: int, year: int, **more: Any
) -> Published:
    base: dict[str, Any] = {
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
    }
    return Published(
        family="stablelm", config=_sizes(*sizes, **base, **more), parameters=parameters,
        source=source, licence=licence, year=year, chat=chat,
    )  # fmt: skip


OTHERS = {
    "phi-3-mini-4k": _phi3(3_821_079_552, 3072, 8192, 32, 32, 32, sliding_window=2047),
    "phi-3-medium-4k": _phi3(13_960_238_080, 5120, 17920, 40, 40, 10, sliding_window=2047),
    "stablelm-3b-4e1t": _stablelm(
        2_795_443_200, "StableLM-3B-4E1T technical report", "CC-BY-SA-4.0", "stablelm-zephyr",
        2560, 6912, 32, 32, 32, year=2023, vocab_size=50304,
    ),
    "stablelm-2-1.6b": _stablelm(
        1_644_515_328, "arXiv 2402.17834, table 1", "Stability AI Community Licence", "chatml",
        2048, 5632, 24, 32, 32, year=2024, vocab_size=100352, use_qkv_bias=True,
    ),
}  # fmt: skip

LLAMA_LIKE = {**LLAMA, **MISTRAL, **GEMMA, **QWEN, **OTHERS}
"""Every row by name."""
