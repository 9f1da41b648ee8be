"""PEGASUS: a summariser whose pre-training removes whole sentences.

Source: Zhang et al. 2020, arXiv 1912.08777, section 3, and the released code. Differs from mbart.py
in: sinusoids (all sines, then all cosines), no norm after the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from keifu.families._learns import Learns
from keifu.families._seq2seq import fields
from keifu.families.mbart import MBART
from keifu.nn.norms import LayerNorm
from keifu.nn.positions import Sinusoid


@dataclass(frozen=True, kw_only=True)
class Pegasus(MBART):
    """Configuration; defaults are PEGASUS-large's."""

    vocab: int = 96103
    encoder_depth: int = 16
    decoder_depth: int = 16
    act: str = "relu"

    taught = (("seq2seq", Learns(objective="gap-sentences", start="pad")),)
    fields = fields(
        "PegasusForConditionalGeneration",
        "pegasus",
        {},
        tie_word_embeddings=True,
        normalize_before=True,
        normalize_embedding=False,
        add_final_layer_norm=True,
        static_position_embeddings=True,
    )

    def positions(self) -> Sinusoid:
        """Marian's layout."""
        return Sinusoid(width=self.width, layout="concat")

    def input_norm(self) -> LayerNorm | None:
        """None."""
        return None

    @classmethod
    def tiny(cls) -> Self:
        """One layer less on the encoder's side."""
        return cls(
            vocab=96, width=32, encoder_depth=1, encoder_heads=4, encoder_hidden=48,
            decoder_depth=2, decoder_heads=4, decoder_hidden=48, context=64,
        )  # fmt: skip


family = Pegasus
