"""T5's encoder alone, as text embedders and image generators publish it (`T5EncoderModel`).

Differs from t5.py in: no decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keifu.checkpoints.names import Names
from keifu.families._t5 import table
from keifu.families.t5 import T5
from keifu.nn.stack import Stack


@dataclass(frozen=True, kw_only=True)
class T5Encoder(T5):
    """Configuration; defaults are T5-base's."""

    tasks: ClassVar[tuple[str, ...]] = ("embed",)

    fields = T5.fields.replaced("T5EncoderModel", "t5", fixed={})

    def spec(self) -> Stack:
        """The one side."""
        return self.stack(self.depth, decoder=False)

    def names(self) -> Names:
        """T5's; a whole checkpoint's decoder is left aside."""
        return table({"encoder": ""}, own_head=False).replaced((), drop=(r"decoder\..*",))


family = T5Encoder
