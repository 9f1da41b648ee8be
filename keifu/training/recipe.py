"""The recipe: a short YAML file that says what is trained on what, and how, as values.

    model: {family: llama, width: 256, hidden: 688, depth: 6, heads: 8}
    tokenizer: {kind: byte-bpe, size: 4096}
    data: {sources: {docs: [docs/]}, held_out: 0.02, length: 256, batch: 8}
    objective: causal-lm
    optimizer: {name: adamw, lr: 3e-3}
    schedule: {name: cosine, warmup: 50}
    train: {steps: 400}

Every section is a frozen dataclass; what a family, an objective, an optimizer or a schedule can be
told are the fields of that dataclass. What nobody knows is an error with the nearest name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from keifu.core.errors import ConfigError, KeifuError
from keifu.core.fields import field_docs
from keifu.core.registry import Registry
from keifu.core.values import checked, differences, made, strange, told
from keifu.data.mixture import Stage
from keifu.families import families
from keifu.training.average import Average
from keifu.training.groups import EVERYTHING, Group
from keifu.training.guard import Guard
from keifu.training.loop import TrainOptions
from keifu.training.objectives import objectives
from keifu.training.optimizer import Optimization
from keifu.training.optimizers import optimizers
from keifu.training.optimizers.adamw import AdamW
from keifu.training.saving import CheckpointOptions
from keifu.training.schedule import Schedule
from keifu.training.schedules import schedules

_MOST = 1 << 20
FREE = ("checkpoints", "evaluate", "reports")
"""Sections that a run may be resumed with other values of: they change nothing that is learnt."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained: a new model of a family, or one to go on with."""

    family: str | None = None
    """Family of a new model (`keifu list families`); its fields stand beside this one"""
    path: str | None = None
    """Instead: a checkpoint, a run's folder or a known name, to go on with"""
    std: float = 0.02
    """Standard deviation of a new model's first matrices"""
    seed: int = 0
    """What a new model's first values follow from"""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the family that are not its defaults"""


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """How texts become tokens."""

    path: str | None = None
    """A tokenizer's or a checkpoint's folder (default: the model's, where it goes on)"""
    kind: str = "byte-bpe"
    """Of one that is learnt from the sources: byte-bpe, spm-bpe, unigram or wordpiece"""
    size: int = 4096
    """How many tokens it learns"""
    bos: str | None = None
    """Begins a text, where there is one"""
    eos: str | None = "<|endoftext|>"
    """Ends a text"""
    pad: str | None = None
    """What fills a row; T5's and BART's decoders begin with it"""
    mask: str | None = None
    """What stands for what is hidden (wordpiece always has [MASK])"""
    special: tuple[str, ...] = ()
    """Further special tokens, such as T5's <extra_id_0>, <extra_id_1> ..."""
    lowercase: bool = False
    """wordpiece: fold case and accents"""
    characters: int = 20_000_000
    """Characters of the sources that it is learnt from, at most"""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is read, and in which order."""

    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Files, folders or data sets by the name of their source; tokenised when the run begins"""
    shards: tuple[str, ...] = ()
    """Instead: folders that `keifu data tokenize` made"""
    column: str = "text"
    """Column that holds the text"""
    target: str | None = None
    """Column with what is to be written of the text"""
    prompt: str | None = None
    """Column with a text that comes first and is not learnt"""
    unit: Literal["file", "line", "paragraph"] = "file"
    """What one document of a text file is"""
    held_out: float = 0.0
    """Share of documents that are not learnt from but measured on"""
    skip_bad: bool = False
    """Whether rows that cannot be read are left out and counted"""
    batch: int = 8
    """Rows that run together; a step has `accumulate` times so many in each process"""
    packing: Literal["cut", "fit", "whole"] = "cut"
    """How rows are made: cut every `length` tokens, documents fitted in, or one document a row"""
    length: int = 256
    """Tokens of a row, at most"""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Share of the tokens by source; without any, by size"""
    temperature: float = 1.0
    """Above 1, small sources are seen more often"""
    epochs: Mapping[str, float] = field(default_factory=dict)
    """How often a source is seen at most"""
    stages: tuple[Stage, ...] = ()
    """Times with weights of their own, one after another"""
    seed: int = 0
    """What the order follows from"""

    def __post_init__(self) -> None:
        if bool(self.sources) == bool(self.shards):
            raise KeifuError("data needs either sources or shards")
        if self.batch < 1:
            raise KeifuError(f"a batch of {self.batch} rows: 1 or more")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How the run is measured on what it does not learn from."""

    every: int = 100
    """Steps from one measurement to the next; the last step always has one"""
    batches: int = 16
    """Held-out batches of each"""

    def __post_init__(self) -> None:
        if self.every < 1 or self.batches < 1:
            raise KeifuError("evaluate: every and batches must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Named:
    """One of a registry by name, and what it is told."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All of a run."""

    model: ModelOptions
    """What is trained"""
    tokenizer: TokenizerOptions = TokenizerOptions()
    """How texts become tokens"""
    data: DataOptions
    """What is learnt from"""
    objective: Named | None = None
    """What is learnt (`keifu list objectives`; default: what the family learns by nature)"""
    optimizer: Optimization = AdamW()
    """How weights follow gradients (`keifu list optimizers`)"""
    schedule: Named = Named(name="constant")
    """How the learning rate goes (`keifu list schedules`); `total` is the run's steps by default"""
    groups: tuple[Group, ...] = EVERYTHING
    """Which parameters learn, and how fast"""
    train: TrainOptions = TrainOptions()
    """How long and how the loop runs"""
    guard: Guard = Guard()
    """Which steps are left out, and when the run goes back"""
    average: Average | None = None
    """Keep a moving average of the weights, which is what is measured"""
    evaluate: EvaluateOptions = EvaluateOptions()
    """When it is measured"""
    checkpoints: CheckpointOptions = CheckpointOptions()
    """When it is saved"""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From plain values.

        Raises:
            ConfigError: names every section's fault, in one line.
        """
        faults, found = [], {}
        every = [f.name for f in dataclasses.fields(cls)]
        missing = [f"{name} is missing" for name in ("model", "data") if not given.get(name)]
        for name, value in given.items():
            if name not in every:
                faults.append(strange(str(name), str(name), every))
            elif value is not None:
                try:
                    found[name] = _SECTIONS[name](value)
                except KeifuError as wrong:
                    faults.append(str(wrong))
        if faults or missing:
            raise ConfigError("; ".join([*faults, *missing]))
        return cls(**found)

    def plan(self) -> Schedule:
        """The schedule, over the steps of the run where it is not told otherwise."""
        kind = schedules[self.schedule.name]
        options = dict(self.schedule.options)
        if any(f.name == "total" for f in dataclasses.fields(kind)):
            options.setdefault("total", self.train.steps)
        return made(kind, options, "schedule.")

    def told(self) -> dict[str, Any]:
        """As plain values, with every default: `Recipe.of` of them is the same recipe."""
        found = {f.name: told(getattr(self, f.name)) for f in dataclasses.fields(self)}
        found["model"] |= found["model"].pop("fields")
        for name in ("objective", "schedule"):
            if found[name] is not None:
                found[name] = {"name": found[name]["name"], **found[name]["options"]}
        name = type(self.optimizer).__module__.rpartition(".")[2].replace("_", "-")
        found["optimizer"] = {"name": name, **found["optimizer"]}
        return found

    def text(self) -> str:
        """As YAML, each value with what it is."""
        docs: dict[str, type] = {
            "optimizer": type(self.optimizer),
            "schedule": schedules[self.schedule.name],
        }
        if self.objective is not None:
            docs["objective"] = objectives[self.objective.name]
        lines = []
        for name, value in self.told().items():
            whole = " ".join(field_docs(Recipe)[name].split())
            lines.append(f"{name}:  # {whole}" if isinstance(value, dict) else f"# {whole}")
            if not isinstance(value, dict):
                lines.append(f"{name}: {_line(value)}")
                continue
            cls = docs.get(name) or type(getattr(self, name))
            about = field_docs(cls)
            for key, inner in value.items():
                comment = " ".join(about.get(key, "").split())
                lines.append(f"  {key}: {_line(inner)}" + (f"  # {comment}" if comment else ""))
        return "\n".join(lines) + "\n"

    def against(self, other: Recipe) -> list[str]:
        """What differs from another recipe that a run would learn differently for."""
        mine, theirs = other.told(), self.told()
        for side in (mine, theirs):
            for name in FREE:
                side.pop(name, None)
            side["train"].pop("progress", None)
        return differences(mine, theirs)


def read(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe's file, with settings such as `train.steps=10` over it.

    Paths in it are of the folder that the command runs in; the recipe has them from the root.

    Raises:
        ConfigError: it cannot be read, or something in it is unknown or wrong.
    """
    try:
        if path.stat().st_size > _MOST:
            raise ConfigError(f"{path}: larger than {_MOST} bytes: no recipe")
        given = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong}") from None
    except (yaml.YAMLError, RecursionError) as wrong:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(wrong).split())[:300]}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: expected sections such as model and data")
    for word in overrides:
        _set(given, word)
    try:
        return _rooted(Recipe.of(given))
    except ConfigError as wrong:
        raise ConfigError(f"{path}: {wrong}") from None


def _set(given: dict[str, Any], word: str) -> None:
    """Put one `a.b=value` into plain values."""
    name, equals, text = word.partition("=")
    path = name.split(".")
    if not equals or not all(path):
        raise ConfigError(f"{word!r} is no setting: write section.name=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    place = given
    for part in path[:-1]:
        inner = place.get(part)
        if isinstance(inner, str) and part in ("objective", "optimizer", "schedule"):
            inner = {"name": inner}
        place[part] = inner if isinstance(inner, dict) else {}
        place = place[part]
    place[path[-1]] = value


def _rooted(recipe: Recipe) -> Recipe:
    """Paths that lead somewhere from here, from the root: so the recipe runs anywhere."""

    def root(place: str) -> str:
        path = Path(place).expanduser()
        return str(path.absolute()) if path.exists() else place

    data = recipe.data
    sources = {name: tuple(map(root, places)) for name, places in data.sources.items()}
    data = dataclasses.replace(data, sources=sources, shards=tuple(map(root, data.shards)))
    model, tokenizer = recipe.model, recipe.tokenizer
    if model.path:
        model = dataclasses.replace(model, path=root(model.path))
    if tokenizer.path:
        tokenizer = dataclasses.replace(tokenizer, path=root(tokenizer.path))
    return dataclasses.replace(recipe, data=data, model=model, tokenizer=tokenizer)


def _model(given: Any) -> ModelOptions:
    """A model's section: the family's fields stand beside ours."""
    if isinstance(given, str):
        given = {"path": given}
    own = [f.name for f in dataclasses.fields(ModelOptions) if f.name != "fields"]
    values = _mapping("model", given)
    mine = {k: v for k, v in values.items() if k in own}
    rest = {k: v for k, v in values.items() if k not in own}
    options = made(ModelOptions, mine, "model.")
    if (options.family is None) == (options.path is None):
        raise ConfigError("model needs either family (a new one) or path (to go on with)")
    if options.family is None:
        if rest:
            name = next(iter(rest))
            raise ConfigError(strange(f"model.{name}", name, own))
        return options
    fields = told(checked(families[options.family], rest, "model."))
    return dataclasses.replace(options, fields=fields)


def _named(registry: Registry[Any], section: str, given: Any) -> Named:
    """A name, or a name with options; the options are checked."""
    values = {"name": given} if isinstance(given, str) else dict(_mapping(section, given))
    if "name" not in values:
        raise ConfigError(f"{section}.name is missing")
    name = str(values.pop("name"))
    return Named(name=name, options=told(checked(registry[name], values, f"{section}.")))


def _optimizer(given: Any) -> Optimization:
    named = _named(optimizers, "optimizer", given)
    return made(optimizers[named.name], named.options, "optimizer.")


def _groups(given: Any) -> tuple[Group, ...]:
    if not isinstance(given, list):
        raise ConfigError("groups: expected a list, each with a pattern")
    return tuple(
        made(Group, _mapping("groups", one), f"groups[{i}].") for i, one in enumerate(given)
    )


def _section(cls: type, name: str, given: Any) -> Any:
    return made(cls, _mapping(name, given), f"{name}.")


def _mapping(name: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name}: expected `name: value` lines, got {given!r:.60}")
    return given


def _line(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()


_SECTIONS: dict[str, Any] = {
    "model": _model,
    "tokenizer": partial(_section, TokenizerOptions, "tokenizer"),
    "data": partial(_section, DataOptions, "data"),
    "objective": partial(_named, objectives, "objective"),
    "optimizer": _optimizer,
    "schedule": partial(_named, schedules, "schedule"),
    "groups": _groups,
    "train": partial(_section, TrainOptions, "train"),
    "guard": partial(_section, Guard, "guard"),
    "average": partial(_section, Average, "average"),
    "evaluate": partial(_section, EvaluateOptions, "evaluate"),
    "checkpoints": partial(_section, CheckpointOptions, "checkpoints"),
}
