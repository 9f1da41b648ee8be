"""Which requests of an engine share what they read, under which key, and how far."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass

from keifu.inference.radix import PrefixTree
from keifu.inference.sequence import Job
from keifu.inference.sequence import Sequence as Output
from keifu.nn.masks import UNMARKED, Mask
from keifu.nn.part import Part
from keifu.nn.past import first
from keifu.nn.rotary import Scaling
from keifu.nn.state import StatePool


class Prefixes:
    """What the requests of one engine have read, for those that begin alike.

    A tree is of one model and one pool; the key of a text in it is whose it is (`cache_salt`) and,
    where positions are scaled by a request's length, that length. What a request reads besides
    tokens (memories, a kept past, landmarks) has no key: such requests share nothing.

    Args:
        by: what is shared ends at a multiple of so many tokens of a prompt; None: anywhere, in
            outputs too.
        on: whether anything is shared at all.
        tree: makes the tree.
    """

    def __init__(
        self,
        spec: Part,
        pool: StatePool,
        *,
        by: int | None = None,
        on: bool = True,
        tree: Callable[[StatePool], PrefixTree] = PrefixTree,
    ) -> None:
        values = list(_values(spec))
        self._by, self._scaled = by, any(isinstance(v, Scaling) and v.by_length for v in values)
        ahead = any(isinstance(v, Mask) and v.given(UNMARKED).ahead for v in values)
        # What a token that sees later ones leaves behind depends on how its text goes on.
        self.tree = tree(pool) if on and not (ahead or pool.memories) else None

    def begin(self, output: Output) -> None:
        """Give a new output the state of what was read before, all but its last token."""
        state, job, key = output.state, output.job, self._key(output.job)
        if self.tree is None or state is None or state.length or key is None:
            return
        if job.sampling.prompt_logprobs is not None and output.index == 0:
            return  # every position is asked for
        tokens = output.tokens[:-1]
        if self.tree.pool.fixed and self._by is None:
            output.branch = self.tree.common(key, tokens)
        found = self.tree.fill(state, key, tokens, self._by or 1)
        if not output.generated and output.index == 0:
            job.sought, job.cached = len(tokens), found

    def store(self, output: Output) -> None:
        """Keep what an output has read."""
        state, job, key = output.state, output.job, self._key(output.job)
        if self.tree is None or state is None or key is None or first(state):
            return
        # Where it has chosen tokens, the last one is not read; a wrong guess may stand there.
        most = min(state.length, len(output.tokens) - (output.generated > 0))
        if self._by is not None:
            most = min(most, len(job.prompt)) // self._by * self._by
        self.tree.store(state, key, output.tokens, most)

    def clear(self) -> None:
        """Forget everything."""
        if self.tree is not None:
            self.tree.clear()

    def _key(self, job: Job) -> Hashable | None:
        """Under what a request's tokens are kept; None: it shares nothing."""
        if job.past is not None or job.memories or job.landmarks != UNMARKED:
            return None
        return job.sampling.cache_salt, job.limit if self._scaled else None


def _values(part: object) -> Iterator[object]:
    """All values that a part is made of; a mask's own parts are its own affair."""
    yield part
    if isinstance(part, Mask):
        return
    if is_dataclass(part):
        inner: list[object] = [getattr(part, f.name) for f in fields(part)]
    elif isinstance(part, Mapping):
        inner = list(part.values())
    else:
        inner = list(part) if isinstance(part, list | tuple) else []
    for value in inner:
        yield from _values(value)
