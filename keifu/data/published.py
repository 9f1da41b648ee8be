"""Published mixtures of training text: the sources, and how much of the whole each one is."""

from __future__ import annotations

from collections.abc import Mapping

REDPAJAMA_TOKENS: Mapping[str, float] = {
    "common_crawl": 878e9, "c4": 175e9, "github": 59e9, "book": 26e9, "arxiv": 28e9,
    "wikipedia": 24e9, "stackexchange": 20e9,
}  # fmt: skip
"""Tokens of RedPajama's seven slices (Together, RedPajama-Data-1T, April 2023: its table)."""

REDPAJAMA: Mapping[str, float] = {
    name: tokens / sum(REDPAJAMA_TOKENS.values()) for name, tokens in REDPAJAMA_TOKENS.items()
}
"""Their shares, as weights of a mixture."""

LLAMA: Mapping[str, float] = {
    "common_crawl": 0.67, "c4": 0.15, "github": 0.045, "wikipedia": 0.045, "book": 0.045,
    "arxiv": 0.025, "stackexchange": 0.02,
}  # fmt: skip
"""Sampling shares of LLaMA's sources, which RedPajama rebuilds (Touvron et al. 2023, arXiv
2302.13971, table 1)."""
