"""A command from a function's signature: the annotations are the flags, the docstring the help.

    def command(
        words: Annotated[tuple[str, ...], Argument("PROMPT")] = (),
        threads: Annotated[int | None, Option("--threads", help="...", min=1)] = None,
        sampling: Annotated[dict[str, Any], Fields(Sampling, "seed", "top_k")] = {},
    ) -> None:

Types: str, int, float, bool (a switch), Path, Literal (a choice), any of them `| None`, and
`tuple[X, ...]` (an option given several times, all remaining arguments, or, where a field's
metadata says "commas", one word such as 1,2,4). `Fields` makes one option of each named field of a
dataclass and hands over those that were given, already checked by the dataclass itself. Built on
click; typer does the same at 0.2 s a start.
"""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union

import click

from keifu.core.errors import KeifuError

SHARED = frozenset(
    {"model", "ctx", "threads", "device", "precision", "offline", "quiet", "seed", "max_tokens"}
    | {"temperature", "top_k", "top_p", "min_p"}
)
"""Options that mean the same in every verb: `KEIFU_<OPTION>` and top-level keys of the config."""


class Option:
    """A flag: its spellings (the parameter's name if there are none), its help, its bounds.

    A field of a dataclass has one in its metadata ("option") where its name alone will not do.
    """

    def __init__(
        self,
        *names: str,
        help: str = "",
        metavar: str | None = None,
        min: float | None = None,
        max: float | None = None,
        optional_value: str | None = None,
        hidden: bool = False,
        commas: bool = False,
    ) -> None:
        self.names, self.help, self.metavar, self.hidden = names, help, metavar, hidden
        self.min, self.max, self.commas = min, max, commas
        self.optional_value = optional_value
        """What the option is when it is given without a value; None: it needs one."""


class Argument:
    """A word that follows the flags; `tuple[str, ...]` takes all that remain."""

    def __init__(self, metavar: str, help: str = "") -> None:
        self.metavar, self.help = metavar, help


class Fields:
    """One option for each of these fields of a dataclass (none named: for all of them).

    The parameter gets the dataclass, or, if it is declared as a dict, only what was given, so that
    something else (the checkpoint) can say what the rest is.
    """

    def __init__(self, cls: type, *names: str) -> None:
        self.cls, self.names = cls, names or tuple(field.name for field in fields(cls))


@dataclass(frozen=True)
class _Kind:
    """A parameter's type, taken apart."""

    base: Any
    multiple: bool


class _Told(click.Option):
    """An option that says more: where a refused value came from, what a field's source says."""

    owner: type | None = None
    """The dataclass whose field this is; its help is read from the source when it is shown."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        hint = super().get_error_hint(ctx)
        source = ctx and self.name and ctx.get_parameter_source(self.name)
        if source == click.core.ParameterSource.ENVIRONMENT:
            (name, *_) = [v for v in self.envvar or () if os.environ.get(v)]
            return f"{hint} ({name})"
        return hint

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        if self.owner and not self.help:
            from keifu.core.fields import field_docs

            self.help = " ".join(field_docs(self.owner)[str(self.name)].rstrip(".").split())
        return super().get_help_record(ctx)


class _List(click.ParamType[Any]):
    """Values in one word, with commas between them."""

    def __init__(self, one: click.ParamType[Any]) -> None:
        self.one, self.name = one, f"{one.name},..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, list | tuple):  # from the config file, or our own default
            words = [str(word) for word in value]
        else:
            words = [word.strip() for word in str(value).split(",")]
        return tuple(self.one.convert(word, param, ctx) for word in words)


def command_from(function: Callable[..., Any], verb: str) -> click.Command:
    """The click command that parses `function`'s parameters and calls it.

    Options read, after the command line, `KEIFU_<VERB>_<OPTION>` and, where `SHARED`,
    `KEIFU_<OPTION>`.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    params: list[click.Parameter] = []
    groups: dict[str, tuple[Fields, bool]] = {}
    for parameter in inspect.signature(function).parameters.values():
        hint, *extras = typing.get_args(hints[parameter.name])
        (mark,) = extras
        if isinstance(mark, Fields):
            partial = typing.get_origin(hint) is dict
            groups[parameter.name] = mark, partial
            params += _of_fields(mark, verb, partial)
        elif isinstance(mark, Argument):
            params.append(_argument(parameter, hint, mark))
        else:
            params.append(_option(parameter.name, hint, parameter.default, mark, verb))

    def call(**values: Any) -> Any:
        for name, (group, partial) in groups.items():
            picked = {field: values.pop(field) for field in group.names}
            given = {k: v for k, v in picked.items() if v is not None and v != ()}
            try:
                whole = group.cls(**given)
            except KeifuError as wrong:
                raise click.UsageError(str(wrong)) from None
            values[name] = given if partial else whole
        return function(**values)

    text = inspect.cleandoc(function.__doc__ or "")
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    return click.Command(verb, settings, call, params, help=text)


def key(option: click.Option) -> str:
    """What the config file and the variables call an option: its first long flag, with `_`."""
    long = next(flag for flag in option.opts if flag.startswith("--"))
    return long[2:].replace("-", "_")


def variables(verb: str, name: str) -> list[str]:
    """The environment variables that set an option, the one that wins first."""
    own = f"KEIFU_{verb}_{name}".upper().replace("-", "_").replace(" ", "_")
    return [own, f"KEIFU_{name.upper()}"] if name in SHARED else [own]


def _argument(parameter: inspect.Parameter, hint: Any, mark: Argument) -> click.Argument:
    kind = _kind(hint)
    return click.Argument(
        [parameter.name],
        type=_type(kind.base, None, None),
        nargs=-1 if kind.multiple else 1,
        metavar=mark.metavar,
        **_default(parameter.default),
    )


def _option(
    name: str,
    hint: Any,
    default: Any,
    mark: Option,
    verb: str,
    owner: type | None = None,
    partial: bool = False,
) -> click.Option:
    """One option; of `owner`'s field if there is one, `partial` if its default is not ours."""
    kind = _kind(hint)
    names = mark.names or ("--" + name.replace("_", "-"),)
    several = kind.multiple and not mark.commas
    more: dict[str, Any] = _default(() if several else default)
    shown: bool | str = default not in (None, (), False, "", inspect.Parameter.empty)
    if partial:
        more["default"] = () if several else None
        shown = shown and f"the model's, else {default}"
    if mark.optional_value is not None:
        more |= {"is_flag": False, "flag_value": mark.optional_value}
    if kind.base is bool:
        more["is_flag"] = True
        if default is True and not any("/" in flag for flag in names):
            names = tuple(f"{n}/--no-{n[2:]}" if n.startswith("--") else n for n in names)
    else:
        one = _type(kind.base, mark.min, mark.max)
        more["type"] = _List(one) if mark.commas else one
    option = _Told(
        [*names, name],
        multiple=several,
        show_default=shown,
        help=mark.help,
        metavar=mark.metavar,
        hidden=mark.hidden,
        **more,
    )
    option.owner = owner
    if not several:
        option.envvar = variables(verb, key(option))
    return option


def _default(default: Any) -> dict[str, Any]:
    """What click is told of a default: to click even None is one, so a required one has no word."""
    if default is inspect.Parameter.empty:
        return {"required": True}
    return {"required": False, "default": default}


def _of_fields(group: Fields, verb: str, partial: bool) -> list[click.Option]:
    hints = typing.get_type_hints(group.cls)
    every = {field.name: field for field in fields(group.cls)}
    return [
        _option(
            name,
            hints[name],
            every[name].default,
            every[name].metadata.get("option", Option(commas="commas" in every[name].metadata)),
            verb,
            group.cls,
            partial,
        )
        for name in group.names
    ]


def _kind(hint: Any) -> _Kind:
    """Strip `| None`, and `tuple[X, ...]` down to X."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        (hint,) = [part for part in typing.get_args(hint) if part is not types.NoneType]
    if typing.get_origin(hint) is tuple:
        return _Kind(typing.get_args(hint)[0], True)
    return _Kind(hint, False)


def _type(base: Any, low: float | None, high: float | None) -> click.ParamType[Any]:
    if typing.get_origin(base) is Literal:
        return click.Choice([str(value) for value in typing.get_args(base)])
    if base is int:
        whole = (None if low is None else int(low), None if high is None else int(high))
        return click.IntRange(*whole) if whole != (None, None) else click.INT
    if base is float:
        return click.FloatRange(low, high) if (low, high) != (None, None) else click.FLOAT
    if base is Path:
        return click.Path(path_type=Path)
    if base is str:
        return click.STRING
    raise TypeError(f"no option type for {base!r}")
