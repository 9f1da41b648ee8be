"""The text under each field of a dataclass: one description for help, docs and recipes."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Mapping


@functools.cache
def field_docs(cls: type) -> Mapping[str, str]:
    """Each field's description: the string literal that follows it, inherited ones included.

    Reads the class's source, so it takes a few milliseconds: ask when help is shown, not at start.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        if base.__module__ == "builtins":
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                docs[field.target.id] = inspect.cleandoc(text.value.value)
    return docs
