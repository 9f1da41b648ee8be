"""Word vectors: a word and the words near it, by a trainer of their own.

Source: Mikolov et al. 2013, 1301.3781 and 1310.4546. Every step touches a few rows of two tables,
and threads share these without locks (`keifu.training.vectors`): a loop that accumulates, clips and
steps over all weights would be thousands of times slower. `keifu vectors train` is its command.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from keifu.core.errors import KeifuError
from keifu.training.objective import Loss, Objective
from keifu.training.vectors import Progress, Trained, VectorOptions, train_vectors
from keifu.training.words import Sentences


@dataclass(frozen=True, kw_only=True)
class WordVectors(Objective[object]):
    """What word vectors are trained by: `train` in the place of the loop."""

    options: VectorOptions = field(default_factory=VectorOptions)
    """Of their trainer"""

    def __call__(self, model: nn.Module, batch: object) -> Loss:
        """Refuses: there are no batches."""
        raise KeifuError("word vectors have a trainer of their own: use WordVectors.train")

    def train(
        self,
        sentences: Sentences | str | os.PathLike[str],
        show: Callable[[Progress], None] = lambda progress: None,
    ) -> Trained:
        """Vectors from sentences (lists of words) or a file of one a line."""
        return train_vectors(sentences, self.options, show=show)


objective = WordVectors
