"""A draft model: a smaller one of the same vocabulary guesses (Leviathan et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.nn import functional

from keifu.core.errors import KeifuError
from keifu.inference.runner import Feed
from keifu.inference.sampling import NEVER
from keifu.inference.sequence import Sequence as Output
from keifu.inference.speculation import Draft, Drafter, Guide, Load, Target
from keifu.nn.heads import LMHead
from keifu.nn.pages import OutOfState
from keifu.nn.part import count
from keifu.nn.stack import StackModule
from keifu.nn.state import RequestState

ALONE, CHUNK = 32, 512
"""Up to how many unread tokens outputs are read together, and most that one reads at once."""


@dataclass(eq=False)
class _Reader:
    """How far the draft model has read an output."""

    state: RequestState
    read: list[int] = field(default_factory=list)
    known: int = 0
    """How much of it is no guess."""


class DraftModel(Drafter):
    """Guesses of a second model that reads the outputs beside the one that makes them."""

    def __init__(self, target: Target, guide: Guide) -> None:
        if not guide.tokenizer.same_vocabulary(target.tokenizer):
            raise KeifuError(
                f"the draft model {guide.name} has another vocabulary: take a smaller model of the "
                "same kind"
            )
        self.pool, self.context, self.compute = guide.pool, guide.context, guide.compute
        self.width = _width(target.model)
        self.runners = target.ways(guide.model, guide.pool, guide.context)
        self.price = count(guide.model.spec) / count(target.model.spec)
        self._readers: WeakKeyDictionary[Output, _Reader] = WeakKeyDictionary()

    @classmethod
    def of(cls, argument: str, load: Load) -> Draft:
        """The argument is the second model's name."""
        if not argument:
            raise KeifuError("speculation by a draft model needs its name: draft:MODEL")
        guide = load(argument)
        return lambda target: cls(target, guide)

    def propose(self, outputs: Sequence[Output], counts: Sequence[int]) -> None:
        """Read what is new of each output, then one token of all of them in a step."""
        self._sweep()
        rows: list[tuple[Output, _Reader, int]] = []
        for output, wanted in zip(outputs, counts, strict=True):
            reader = self._caught_up(output, wanted)
            if reader is not None:
                rows.append((output, reader, wanted))
        choose = {output: output.guesser() for output, _, _ in rows}
        made = 0
        while rows:
            readers = [reader for _, reader, _ in rows]
            texts = [self._text(output)[len(reader.read) :] for output, reader, _ in rows]
            logits = self._run(readers, texts)
            for (output, reader, _), row in zip(rows, logits, strict=True):
                if not made:
                    reader.known = len(reader.read)
                    reader.state.snapshots.clear()
                    self.pool.snapshot(reader.state)
                output.guessed.append(choose[output](row))
            made += 1
            rows = [row for row in rows if row[2] > made]

    @staticmethod
    def _text(output: Output) -> list[int]:
        return output.tokens + output.guessed

    def _caught_up(self, output: Output, wanted: int) -> _Reader | None:
        """Its reader, back at what the output still has, with few tokens left to read.

        None: there is no room for this output.
        """
        tokens = output.tokens
        if len(tokens) + wanted > self.context:
            return None
        try:
            reader = self._readers.get(output)
            if reader is None:
                reader = self._readers[output] = _Reader(self.pool.open())
            state = reader.state
            most = min(len(reader.read), len(tokens) - 1)
            same = min(reader.known, most)
            while same < most and reader.read[same] == tokens[same]:
                same += 1
            del reader.read[self.pool.restore(state, same) :]
            self.pool.advance(state, 0)
            while len(left := tokens[len(reader.read) :]) > ALONE:
                self._run([reader], [left[: min(CHUNK, len(left) - 1)]])
            self.pool.reserve(state, len(left) + wanted)
        except OutOfState:
            return None
        return reader

    def _run(self, readers: Sequence[_Reader], texts: Sequence[list[int]]) -> Tensor:
        """Read further tokens of each; logits (readers, width) of the last ones."""
        states, lengths = [r.state for r in readers], [len(t) for t in texts]
        for state, n in zip(states, lengths, strict=True):
            self.pool.reserve(state, n)
        limits = [self.context] * len(readers)
        feed = Feed(
            ids=[token for text in texts for token in text],
            states=states,
            lengths=lengths,
            limits=limits,
            compute=self.compute,
        )
        runner = next(r for r in self.runners if r.takes(lengths, states))
        logits = runner.run(feed, [end - 1 for end in accumulate(lengths)])
        for reader, text in zip(readers, texts, strict=True):
            self.pool.advance(reader.state, len(text), undoable=True)
            reader.read += text
        return _fitted(logits, self.width)

    def _sweep(self) -> None:
        """Give back what is held for outputs that have ended or do not run."""
        for output, reader in list(self._readers.items()):
            if output.state is None:
                self.pool.free(reader.state)
                del self._readers[output]


def _width(model: StackModule) -> int:
    """How many logits a model gives."""
    head = model.spec.head
    if not isinstance(head, LMHead):
        raise KeifuError("a draft model guesses for models whose head gives plain logits")
    return head.vocab


def _fitted(logits: Tensor, width: int) -> Tensor:
    """Logits (rows, vocab) with as many columns as the model's, so that the draws agree."""
    missing = width - logits.shape[1]
    if missing <= 0:
        return logits[:, :width]
    return functional.pad(logits, (0, missing), value=NEVER)


drafter = DraftModel
