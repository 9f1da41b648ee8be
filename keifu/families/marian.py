"""Marian: the Transformer of 2017 as the OPUS-MT translators have it.

Source: Junczys-Dowmunt et al. 2018 (ACL P18-4020), Tiedemann & Thottingal 2020 (OPUS-MT), and the
released code. Differs from bart.py in: sinusoids (all sines, then all cosines), no norm after the
input, and vocabularies of source and target that need not be one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from keifu.core.errors import ConfigError
from keifu.families._learns import Learns
from keifu.families._seq2seq import Seq2Seq, fields
from keifu.nn.norms import LayerNorm
from keifu.nn.positions import Sinusoid


@dataclass(frozen=True, kw_only=True)
class Marian(Seq2Seq):
    """Configuration; defaults are an OPUS-MT translator's."""

    vocab: int = 58101
    decoder_vocab: int | None = None
    """Of the target; None: as many as the source's."""
    one_vocab: bool = True
    """Source and target share a vocabulary and its table."""
    tied: bool = True
    width: int = 512
    encoder_depth: int = 6
    encoder_heads: int = 8
    encoder_hidden: int = 2048
    decoder_depth: int = 6
    decoder_heads: int = 8
    decoder_hidden: int = 2048
    act: str = "silu"
    scaled: bool = True
    context: int = 512

    taught = (("seq2seq", Learns(objective="seq2seq", start="pad")),)
    fields = fields(
        "MarianMTModel",
        "marian",
        {
            "decoder_vocab": "decoder_vocab_size",
            "one_vocab": "share_encoder_decoder_embeddings",
            "tied": "tie_word_embeddings",
        },
        normalize_before=False,
        normalize_embedding=False,
        add_final_layer_norm=False,
        static_position_embeddings=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder_vocab", self.decoder_vocab or self.vocab)
        super().__post_init__()

    def check(self) -> None:
        """One vocabulary has one size and one table."""
        super().check()
        if self.one_vocab and self.decoder_vocab != self.vocab:
            raise ConfigError(
                f"decoder_vocab_size={self.decoder_vocab} with vocab_size={self.vocab} needs "
                "share_encoder_decoder_embeddings=false"
            )
        if self.one_vocab and not self.tied:
            raise ConfigError(
                "tie_word_embeddings=false needs share_encoder_decoder_embeddings=false"
            )

    def positions(self) -> Sinusoid:
        """Marian's layout."""
        return Sinusoid(width=self.width, layout="concat")

    def input_norm(self) -> LayerNorm | None:
        """None."""
        return None

    def target_vocab(self) -> int:
        """The target's."""
        assert self.decoder_vocab
        return self.decoder_vocab

    def shared(self) -> bool:
        """As the configuration says."""
        return self.one_vocab

    def tied_head(self) -> bool:
        """As the configuration says."""
        return self.tied

    @classmethod
    def tiny(cls) -> Self:
        """Two vocabularies."""
        return cls(
            vocab=96, decoder_vocab=80, one_vocab=False, width=32, encoder_depth=2,
            encoder_heads=4, encoder_hidden=48, decoder_depth=2, decoder_heads=4,
            decoder_hidden=48, context=64,
        )  # fmt: skip


family = Marian
