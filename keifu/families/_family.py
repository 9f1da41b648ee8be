"""The family interface: a frozen configuration that describes a stack and its published names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from keifu.checkpoints.names import Names
from keifu.core.errors import ConfigError
from keifu.families._fields import Fields
from keifu.families._learns import Learns, by_parts
from keifu.nn.part import Part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models: its configuration's fields, how they make a stack, how it is named.

    A subclass gives `spec`, `names`, `tiny` and `fields`; everything else follows from them.
    """

    fields: ClassVar[Fields]
    """config.json <-> this dataclass."""
    tasks: ClassVar[tuple[str, ...]] = ("generate", "score", "embed")
    """What its models can be asked for."""
    unlimited: ClassVar[bool] = False
    """Positions are relative: `context` is what it was trained on, and longer texts work."""

    taught: ClassVar[tuple[tuple[str, Learns], ...]] = ()
    """The objective that such parts are usually trained on -> this family's own in its place."""

    context: int = 2048
    """Most positions the model was made for."""

    def spec(self) -> Part:
        """The parts, chosen as values: a `Stack`, a `Pair` of them, a table of vectors."""
        raise NotImplementedError

    def names(self) -> Names:
        """Published weight names <-> ours."""
        raise NotImplementedError

    @classmethod
    def tiny(cls) -> Self:
        """A configuration for tests: the family's options in a few thousand weights."""
        raise NotImplementedError

    def learns(self) -> Learns:
        """The objective that its models are trained on, by name."""
        usual = by_parts(self.spec())
        own = dict(self.taught).get(usual.objective, usual)
        return dataclasses.replace(own, options={**usual.options, **own.options})

    def check(self) -> None:
        """Refuse contradictory fields; subclasses add their own rules."""
        for name in ("vocab", "width", "depth", "heads", "kv_heads", "head_width", "hidden"):
            value = getattr(self, name, None)
            if value is not None and not (isinstance(value, int) and value > 0):
                raise ConfigError(f"{name}={value!r} is not allowed: a whole number above 0")
        heads, kv_heads = getattr(self, "heads", 1), getattr(self, "kv_heads", None)
        if kv_heads and heads % kv_heads:
            raise ConfigError(f"{heads} heads cannot share {kv_heads} key heads evenly")

    def __post_init__(self) -> None:
        self.check()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """From a published config.json.

        Raises:
            ConfigError: names unknown, missing and contradictory fields.
        """
        values = cls.fields.read(config)
        required = {
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        missing = sorted(cls.fields.keys.get(n, n) for n in required - set(values))
        if missing:
            raise ConfigError(f"config.json of {cls.fields.model_type} lacks {', '.join(missing)}")
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """The published config.json of this configuration."""
        return self.fields.write({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
