"""From a recipe to what is trained: tokenizer, shards, model, batches. Made once, then kept."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from keifu.core.errors import ConfigError, KeifuError
from keifu.core.values import made
from keifu.data.bad import Bad
from keifu.data.corpus import Corpus
from keifu.data.example import Examples
from keifu.data.feed import FeedOptions, feed
from keifu.data.job import Encoding
from keifu.data.read import documents
from keifu.data.shards import MANIFEST
from keifu.data.tokenise import tokenise
from keifu.families import families
from keifu.families._family import Family
from keifu.families._load import open_checkpoint
from keifu.nn.pair import PairModule
from keifu.nn.part import build
from keifu.nn.stack import StackModule
from keifu.text.load import load
from keifu.text.tokenizer import Tokenizer
from keifu.text.train import TrainOptions as Vocabulary
from keifu.text.train import train as learn
from keifu.training.natural import natural, vocabulary_of
from keifu.training.objective import Objective
from keifu.training.objectives import objectives
from keifu.training.recipe import DataOptions, ModelOptions, Recipe
from keifu.training.saving import weights

TOKENIZER, SHARDS = "tokenizer", "shards"
Say = Callable[[str], None]
_KEPT = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A model and what saving it takes."""

    family: Family
    name: str
    """The family's."""
    model: nn.Module
    settings: dict[str, Any]
    """Further keys of its config.json."""


def tokenizer_of(recipe: Recipe, folder: Path, say: Say = print) -> Tokenizer:
    """The run's tokenizer: what it kept, what the recipe names, or one learnt from the sources."""
    options, data, kept = recipe.tokenizer, recipe.data, folder / TOKENIZER
    if kept.is_dir():
        return load(kept)
    if data.shards:
        return Corpus(data.shards[0]).tokenizer
    if options.path:
        there = Path(options.path)
        plain = there.is_dir() and not (there / "config.json").exists()
        found = load(there) if plain else open_checkpoint(options.path).tokenizer()
    elif recipe.model.path:
        found = open_checkpoint(recipe.model.path).tokenizer()
    else:
        say(f"learning a vocabulary of {options.size}")
        how = Vocabulary(
            size=options.size,
            bos=options.bos,
            eos=options.eos,
            pad=options.pad,
            mask=options.mask,
            special=options.special,
            lowercase=options.lowercase,
        )
        found = learn(options.kind, _texts(data, options.characters), how)
    temporary = folder / f"tmp-{TOKENIZER}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    found.save(temporary)
    os.replace(temporary, kept)
    return load(kept)


def shards_of(
    recipe: Recipe, folder: Path, tokenizer: Tokenizer, say: Say = print
) -> tuple[str, ...]:
    """Folders of shards: the recipe's, or the run's own, made of the sources the first time."""
    data = recipe.data
    if data.shards:
        return data.shards
    own = folder / SHARDS
    if not (own / MANIFEST).exists():
        say("tokenising")
        encoding = Encoding(
            column=data.column, unit=data.unit, prompt=data.prompt, target=data.target,
            held_out=data.held_out, skip_bad=data.skip_bad,
        )  # fmt: skip
        tokenise(own, data.sources, tokenizer, encoding, workers=1)
    return (str(own),)


def examples_of(data: DataOptions, shards: Sequence[str], split: str = "train") -> Examples:
    """The run's examples; held-out ones come in the order of the files."""
    train = split == "train"
    return feed(
        FeedOptions(
            shards=tuple(shards),
            split=split,
            packing=data.packing,
            length=data.length,
            weights=data.weights if train else {},
            temperature=data.temperature if train else 1.0,
            epochs=data.epochs if train else {},
            stages=data.stages if train else (),
            shuffle=train,
            seed=data.seed,
        )
    )


def identity(shards: Sequence[str]) -> str:
    """What the run's data is, in one word: other data, another word."""
    return "+".join(Corpus(folder).manifest.identity[:16] for folder in shards)


def configuration(options: ModelOptions, vocab: int, length: int) -> Family:
    """A new model's family; its vocabulary and context are these where the recipe says nothing."""
    assert options.family
    family = families[options.family]
    names = {field.name for field in fields(family)}
    given = dict(options.fields)
    if "vocab" in names:
        given.setdefault("vocab", vocab)
    if "context" in names:
        given.setdefault("context", length)
    if given.get("vocab", vocab) < vocab:
        raise ConfigError(
            f"model.vocab={given['vocab']} has no room for the tokenizer's {vocab} tokens"
        )
    return made(family, given, "model.")


def new_model(recipe: Recipe, tokenizer: Tokenizer) -> Made:
    """A model of the recipe's, with its first values.

    The vocabulary is the tokenizer's and the context a row's length where the recipe does not say.
    """
    options = recipe.model
    assert options.family
    family = configuration(options, len(tokenizer), recipe.data.length)
    objective = objective_of(recipe, family)
    model = build(objective.fitted(family.spec(), vocabulary_of(family, tokenizer)))
    if not isinstance(model, StackModule | PairModule):
        raise KeifuError(
            f"{options.family} is no stack of blocks or pair of them: `keifu vectors train` "
            "trains word vectors, and no recipe"
        )
    model.initialise(options.seed, options.std)
    start = vocabulary_of(family, tokenizer).roles.get("start")
    settings = {"decoder_start_token_id": start} if isinstance(model, PairModule) else {}
    return Made(family=family, name=options.family, model=model, settings=settings)


def objective_of(recipe: Recipe, family: Family) -> Objective[Any]:
    """The recipe's objective, or what the family learns by nature."""
    if recipe.objective is None:
        return natural(family)
    return made(objectives[recipe.objective.name], recipe.objective.options, "objective.")


def model_at(path: str, recipe: Recipe, tokenizer: Tokenizer) -> Made:
    """A checkpoint's model, to go on with."""
    checkpoint = open_checkpoint(path)
    family = checkpoint.family
    fitted = objective_of(recipe, family).fitted(family.spec(), vocabulary_of(family, tokenizer))
    settings = {name: checkpoint.config[name] for name in _KEPT if name in checkpoint.config}
    return Made(
        family=family,
        name=checkpoint.family_name,
        model=weights(checkpoint, fitted),
        settings=settings,
    )


def _texts(data: DataOptions, most: int) -> Iterator[str]:
    """The sources' texts in turn, one of each, until there are characters enough."""
    reading = Encoding(column=data.column, unit=data.unit).reading()
    open_ = [
        (document.text for place in places for document in documents(place, _bad(data), reading))
        for places in data.sources.values()
    ]
    for text in itertools.chain.from_iterable(itertools.zip_longest(*open_)):
        if text is not None:
            yield text[:most]
            most -= len(text)
            if most <= 0:
                return


def _bad(data: DataOptions) -> Bad:
    return Bad(skip=data.skip_bad)
