"""From a folder of shards and a few options to the examples of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from keifu.core.errors import KeifuError, unknown
from keifu.data.corpus import Corpus
from keifu.data.mixture import Mixture, Part, Stage
from keifu.data.packing import PACKINGS, Rows
from keifu.data.shards import read_manifest


@dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """What of the shards is learnt, and in which order."""

    shards: tuple[str, ...]
    """Folders that `keifu data tokenize` made, all with one tokenizer"""
    split: str = "train"
    """"train" or "held-out\""""
    packing: Literal["cut", "fit", "whole"] = "cut"
    """How rows are made: "cut" every `length` tokens, "fit" documents into rows without cutting
    them, or "whole" documents, one a row"""
    length: int = 1024
    """Tokens of a row, at most"""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Share of the tokens by source; without any, by size"""
    temperature: float = 1.0
    """Above 1, small sources are seen more often: shares become share^(1/temperature)"""
    epochs: Mapping[str, float] = field(default_factory=dict)
    """How often a source is seen at most; its share then goes to the others"""
    stages: tuple[Stage, ...] = ()
    """Times with weights of their own, one after another"""
    shuffle: bool = True
    """Whether rows come in a random order; else in that of the files"""
    seed: int = 0
    """What the order follows from"""


def feed(options: FeedOptions) -> Rows | Mixture:
    """The examples of a run: of one source its rows, of several their mixture.

    Raises:
        KeifuError: folders of different tokenizers, sources that are not there.
        FormatError: damaged shards.
    """
    rows = _rows(options)
    found = _mixed(options, rows)
    plain = len(rows) == 1 and not options.epochs and not options.stages
    return rows[0] if plain else found


def mixed(options: FeedOptions) -> Mixture:
    """The same as a mixture, even if of one source."""
    return _mixed(options, _rows(options))


def identity(options: FeedOptions) -> str:
    """A hash of the shards and of what is done with them: equal ones give equal runs."""
    hashes = [read_manifest(folder).identity for folder in options.shards]
    said = json.dumps([hashes, asdict(replace(options, shards=()))], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _mixed(options: FeedOptions, every: list[Rows]) -> Mixture:
    rows = {row.stream.name: row for row in every}
    for name in (*options.weights, *options.epochs):
        if name not in rows:
            raise unknown("source", name, rows)
    parts = [
        Part(
            name=name,
            examples=row,
            tokens=row.tokens,
            weight=options.weights.get(name, 0.0) if options.weights else None,
            epochs=options.epochs.get(name),
        )
        for name, row in rows.items()
    ]
    return Mixture(parts, temperature=options.temperature, stages=options.stages, seed=options.seed)


def _rows(options: FeedOptions) -> list[Rows]:
    if options.packing not in PACKINGS:
        raise unknown("packing", options.packing, PACKINGS)
    if not options.shards:
        raise KeifuError("no folder of shards is named: keifu data tokenize makes one")
    corpora = [Corpus(folder) for folder in options.shards]
    if len({corpus.manifest.fingerprint for corpus in corpora}) > 1:
        raise KeifuError("the shards are of different tokenizers: make them again with one")
    streams = [stream for corpus in corpora for stream in corpus.streams(options.split)]
    if not streams:
        raise KeifuError(f"{', '.join(options.shards)}: nothing is in the {options.split} split")
    names = [stream.name for stream in streams]
    if len(set(names)) < len(names):
        raise KeifuError(f"several folders have sources of one name: {', '.join(sorted(names))}")
    make = PACKINGS[options.packing]
    given = {"length": options.length, "seed": options.seed, "shuffle": options.shuffle}
    return [make(stream=stream, **given) for stream in streams]  # type: ignore[arg-type]
