"""One registry for every kind of thing: a kind is a folder, a name is a file in it.

Listing reads the folder without importing anything; looking a name up imports that one module
and returns the object it exports, unchanged. An ImportError inside the module propagates.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

from keifu.core.errors import unknown

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """The modules of one package as a mapping from name to the object each exports.

    A module `gpt_2.py` is the name `gpt-2`, and must define `EXPORT` (a constant attribute name,
    by default `export`). Names that start with an underscore are helpers and folders are tables,
    not entries.
    """

    def __init__(self, kind: str, package: str, attribute: str, protocol: type) -> None:
        self.kind, self.package, self.attribute, self.protocol = kind, package, attribute, protocol

    def __iter__(self) -> Iterator[str]:
        """Names in alphabetical order, without importing the modules."""
        paths = importlib.import_module(self.package).__path__
        for module in sorted(pkgutil.iter_modules(paths), key=lambda m: m.name):
            if not (module.ispkg or module.name.startswith("_")):
                yield module.name.replace("_", "-")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __getitem__(self, name: str) -> T:
        """Import `name`'s module and return what it exports; a miss names the nearest."""
        key = name.replace("_", "-")
        if key not in self:
            file = f"{self.package.replace('.', '/')}/{key.replace('-', '_')}.py"
            raise unknown(self.kind, name, self, f"to add one, write {file}")
        module = importlib.import_module(f"{self.package}.{key.replace('-', '_')}")
        found = getattr(module, self.attribute)
        if not (
            isinstance(found, self.protocol)
            or (isinstance(found, type) and issubclass(found, self.protocol))
        ):
            raise TypeError(f"{module.__name__}.{self.attribute} is not a {self.protocol.__name__}")
        return cast(T, found)
