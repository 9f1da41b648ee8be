"""Where a publication says another number of parameters than its own dimensions give, and why."""

from __future__ import annotations

from collections.abc import Mapping

_CODE = "the paper's 1.3 B leave out one table of tokens (51,200 x 2,048)"
NOTES: Mapping[str, str] = {
    "transformer-base": "the paper says 65 M, which would need 40,817 shared tokens, not 37,000",
    "transformer-big": "the paper says 213 M, which would need 35,856 shared tokens, not 37,000",
    "bert-large-uncased": "the paper rounds to 340 M",
    "albert-xlarge": "the paper rounds to 60 M",
    "albert-xxlarge": "the paper says 235 M; its own dimensions (width 4,096, table 128, one "
    "shared layer, 30,000 tokens) give this, pooler included",
    "xlm-roberta-base": "the paper says 270 M, the released table has 250,002 tokens",
    "xlm-roberta-large": "the paper says 550 M, the released table has 250,002 tokens",
    "gpt-3-175b": "the paper rounds to 175.0 B",
    "gpt-3-13b": "the paper rounds to 13.0 B; its width of 5,140 is kept",
    "opt-350m": "the name rounds up; the token table is half as wide as the stream",
    "opt-175b": "the paper rounds to 175 B",
    "palm-540b": "the paper's 540.35 B; the scales of the norms add 2,193,408 to what its matrices "
    "have",
    "lamda-137b": "the paper's 137 B leave the token table out: 137,438,953,472 in the blocks' "
    "matrices",
    "falcon-180b": "the name rounds up",
    "falcon-180b-chat": "the name rounds up",
    "switch-c-2048": "table 9 of the paper has 32 heads of 64; the released checkpoint has 30 and "
    "a head of its own (google/flaxformer, switch_c.gin)",
    "phi-1": _CODE,
    "phi-1.5": _CODE,
    "gemma-2b": "the paper counts a table of 256,128 tokens (2,506,434,560), released were 256,000",
    "gemma-7b": "the paper counts a table of 256,128 tokens (8,538,074,112), released were 256,000",
}
"""Notes by the name of the published row; where there is none, the two agree as far as the
publication rounds."""
