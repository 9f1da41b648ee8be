"""Encoder and decoder of any two families, joined by cross-attention (BERT2BERT and the like).

Source: Rothe et al. 2020, arXiv 1907.12461, section 2, and the released code. config.json holds the
two configurations; weights stand under "encoder." and "decoder.". Where the widths differ, the
memory goes through a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from keifu.checkpoints.names import Names, rules
from keifu.core.errors import ConfigError
from keifu.families import families
from keifu.families._cross import named, reads
from keifu.families._family import Family
from keifu.families._fields import Fields
from keifu.families._sides import READS, Inside, for_task
from keifu.nn.pair import Bridge, Pair
from keifu.nn.stack import Stack


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(Family):
    """Configuration: two families'."""

    encoder: Family
    decoder: Family

    fields = Fields(
        architecture="EncoderDecoderModel",
        model_type="encoder-decoder",
        keys={},
        extra=(
            Inside(key="encoder", tasks=("encode",)),
            Inside(key="decoder", tasks=("generate", "fill-mask"), says=READS),
        ),
        fixed={"is_encoder_decoder": True, "tie_encoder_decoder": False},
        ignore=frozenset(("tie_word_embeddings",)),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "context", self.decoder.context)
        super().__post_init__()

    @property
    def vocab(self) -> int:
        """The decoder's."""
        return int(vars(self.decoder)["vocab"])

    def spec(self) -> Pair:
        """The encoder without a head, the decoder with cross mixers."""
        kinds = (self.encoder.fields.model_type, self.decoder.fields.model_type)
        encoder, decoder = self.encoder.spec(), self.decoder.spec()
        if not (isinstance(encoder, Stack) and isinstance(decoder, Stack)):
            raise ConfigError(f"{kinds[0]} and {kinds[1]} must be one stack each to be joined")
        widths = (int(vars(self.encoder)["width"]), int(vars(self.decoder)["width"]))
        bridge = Bridge(inputs=widths[0], outputs=widths[1]) if widths[0] != widths[1] else None
        bare = replace(encoder, head=None)
        return Pair(encoder=bare, decoder=reads(kinds[1], decoder), bridge=bridge)

    def names(self) -> Names:
        """Theirs, each under its side; an encoder's are the bare model's."""
        bare, full = self.encoder.names(), self.decoder.names()
        if not bare.bare:
            bare = bare.under(bare.base, "")
        inner = replace(bare, base="").within("encoder.", "encoder.")
        outer = named(self.decoder.fields.model_type, replace(full, base=""))
        outer = outer.within("decoder.", "decoder.")
        bridge = rules({"enc_to_dec_proj.{p}": "bridge.{p}"})
        return Names(
            (*inner.rules, *outer.rules, *bridge),
            drop=(*inner.drop, *outer.drop),
            older={**inner.older, **outer.older},
        )

    @classmethod
    def tiny(cls) -> Self:
        """BERT and GPT-2, of different widths."""
        encoder = for_task(families["bert"].tiny(), ("encode",))
        narrower: dict[str, Any] = {"width": 24}
        return cls(encoder=encoder, decoder=replace(families["gpt-2"].tiny(), **narrower))


family = EncoderDecoder
