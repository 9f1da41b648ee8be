"""Gist caches over the LM interface: a prompt pressed into k tokens, for all that comes after it.

with compress(lm, "Answer in one word.", tokens=1) as cache:
    lm.complete(" What is the capital of France?", past=cache.kept)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keifu.core.errors import KeifuError
from keifu.inference import gist, gist_file
from keifu.inference.kept import Kept
from keifu.lm.base import LM, Prompt
from keifu.lm.local import LocalLM
from keifu.nn.masks import Landmarks

MOST = 1024
"""Gist tokens of one prompt."""


@dataclass(frozen=True, kw_only=True)
class Gist:
    """One prompt's cache, held by a model's engine."""

    lm: LocalLM
    kept: Kept
    digest: str
    """SHA-256 of what was read."""
    bytes: int
    """What its tensors take."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens that it stands for."""
        return self.kept.length - self.kept.tokens

    @property
    def ratio(self) -> float:
        """Tokens that it stands for, each token of it."""
        return self.prompt_tokens / self.kept.tokens

    def report(self) -> Mapping[str, Any]:
        """What it saves: tokens, the ratio, bytes."""
        each = self.bytes // self.kept.tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "cache_tokens": self.kept.tokens,
            "ratio": self.ratio,
            "cache_bytes": self.bytes,
            "saved_bytes": each * (self.prompt_tokens - self.kept.tokens),
        }

    def save(self, path: Path) -> None:
        """Write it, for this checkpoint alone."""
        source = gist.contents(self.kept)
        header = gist_file.Header(
            model=_identity(self.lm),
            prompt=self.digest,
            length=source.past.length,
            start=source.past.start,
            dtype=str(self.lm.engine.pool.dtype).removeprefix("torch."),
        )
        gist_file.save(path, source, header)

    def close(self) -> None:
        """Give back what it holds; requests that run go on."""
        gist.release(self.kept)

    def __enter__(self) -> Gist:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()


def compress(lm: LM, prompt: Prompt, *, tokens: int = 1) -> Gist:
    """Read a prompt and `tokens` gist tokens after it, and keep those in its place.

    Raises:
        KeifuError: the model has no gist token, or is not of this machine.
    """
    local = _local(lm)
    if local.engine.intake.gist is None:
        raise KeifuError(f"{lm.name} has no gist token: train a model with recipes/gist.py")
    if not 1 <= tokens <= MOST:
        raise KeifuError(f"{tokens} gist tokens are not allowed: from 1 to {MOST}")
    ids = [*local.ids(prompt, end=False), *[local.engine.intake.gist] * tokens]
    return _held(local, gist.compress(local.engine, ids), gist_file.prompt_hash(ids))


def open_gist(lm: LM, path: Path) -> Gist:
    """A cache from a file, if this checkpoint made it.

    Raises:
        KeifuError: it is damaged, of another checkpoint, or computed in another precision.
    """
    local = _local(lm)
    source, header = gist_file.load(path, _identity(local))
    marks = Landmarks(gist=(header.start, header.length))
    return _held(local, gist.restored(local.engine, source, marks), header.prompt)


def _held(lm: LocalLM, kept: Kept, digest: str) -> Gist:
    source = gist.contents(kept)
    return Gist(lm=lm, kept=kept, digest=digest, bytes=source.past.bytes + source.hidden.nbytes)


def _identity(lm: LocalLM) -> str:
    model = lm.engine.pair or lm.engine.model
    return gist_file.fingerprint(model, lm.tokenizer)


def _local(lm: LM) -> LocalLM:
    if not isinstance(lm, LocalLM):
        raise KeifuError(f"{lm.name} keeps no state that could be compressed: take a local decoder "
                         "or encoder-decoder")  # fmt: skip
    return lm
