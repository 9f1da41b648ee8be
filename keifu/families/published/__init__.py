"""Published checkpoints by name: sizes of the families and descendants that need no file."""

from __future__ import annotations

from collections.abc import Mapping

from keifu.families.published.deberta import DEBERTA
from keifu.families.published.encoders import ENCODERS
from keifu.families.published.experts import EXPERTS_LIKE
from keifu.families.published.gpt import GPT_LIKE
from keifu.families.published.griffin import GRIFFIN_LIKE, HYENA_LIKE
from keifu.families.published.llama import LLAMA_LIKE
from keifu.families.published.mamba import MAMBA_LIKE
from keifu.families.published.megalodon import MEGALODON
from keifu.families.published.pairs import BART_LIKE
from keifu.families.published.row import Published
from keifu.families.published.t5 import T5_LIKE

PUBLISHED: Mapping[str, Published] = {
    **LLAMA_LIKE,
    **GPT_LIKE,
    **MAMBA_LIKE,
    **BART_LIKE,
    **T5_LIKE,
    **DEBERTA,
    **ENCODERS,
    **GRIFFIN_LIKE,
    **HYENA_LIKE,
    **EXPERTS_LIKE,
    **MEGALODON,
}
"""Every published checkpoint that we know the configuration of."""
