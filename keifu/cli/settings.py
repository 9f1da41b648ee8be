"""Settings: flags, then KEIFU_* variables, then one config file, then the checkpoint's defaults.

The file is YAML. A top-level key sets a shared option (`options.SHARED`) for every verb that has
it; a section with a verb's name sets that verb's options:

    model: smollm2-135m
    threads: 4
    chat:
      temperature: 0.3

It is `$KEIFU_CONFIG`, else `$XDG_CONFIG_HOME/keifu/config.yaml`, that is
`~/.config/keifu/config.yaml`. What nobody asked for is an error, with the nearest name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from keifu.cli.options import SHARED, key
from keifu.core.errors import ConfigError, nearest

_MOST_BYTES = 1 << 20

VARIABLES = {
    "KEIFU_HOME": "folder of models and conversations (~/.local/share/keifu)",
    "KEIFU_CONFIG": "the config file (~/.config/keifu/config.yaml)",
    "KEIFU_OFFLINE": "1 forbids the network",
    "KEIFU_API_KEY": "what `keifu serve` asks of clients, and a server at a URL is told",
    "KEIFU_DEBUG": "1 shows tracebacks",
    "HF_HOME": "Hugging Face's folder; its hub/ holds fetched repositories",
    "HF_HUB_CACHE": "Hugging Face's hub folder itself",
    "HF_HUB_OFFLINE": "1 forbids fetching from the hub",
    "NO_COLOR": "anything: plain output",
    "XDG_CONFIG_HOME": "where keifu/config.yaml is looked for (~/.config)",
    "XDG_DATA_HOME": "where keifu/ keeps its data (~/.local/share)",
}
"""Environment variables honoured besides those that set options; `keifu doctor` shows them."""


def config_path() -> Path:
    """Where the config file is looked for; it need not exist."""
    if os.environ.get("KEIFU_CONFIG"):
        return Path(os.environ["KEIFU_CONFIG"]).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "keifu" / "config.yaml"


def read_config(verbs: Iterable[str]) -> Mapping[str, Any]:
    """The config file's keys (`-` and `_` alike), checked as far as no verb is needed for it.

    A missing file is empty, unless KEIFU_CONFIG names it. Raises ConfigError.
    """
    path = config_path()
    try:
        size = path.stat().st_size
    except OSError:  # not there, or in a folder that this user may not even look into
        if os.environ.get("KEIFU_CONFIG"):
            raise ConfigError(f"KEIFU_CONFIG: there is no file {path}") from None
        return {}
    try:
        if size > _MOST_BYTES:
            raise ConfigError(f"{path}: larger than {_MOST_BYTES} bytes: not a config file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong}") from None
    raw = _parse(path, text)
    keys = {str(name).replace("-", "_"): value for name, value in raw.items()}
    known = {verb.replace("-", "_") for verb in verbs}
    strange = [name for name in keys if name not in SHARED | known]
    if strange:
        raise ConfigError(f"{path}: {_strange(strange, SHARED | known)}")
    for name in known & keys.keys():
        if not isinstance(keys[name], dict):
            raise ConfigError(f"{path}: {name}: expected a section of options, got {keys[name]!r}")
    return keys


def defaults(command: click.Command, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the config file sets for one verb, checked and converted. Raises ConfigError."""
    verb = str(command.name).replace("-", "_")
    options = {key(p): p for p in command.params if isinstance(p, click.Option)}
    section = {str(k).replace("-", "_"): v for k, v in config.get(verb, {}).items()}
    strange = [name for name in section if name not in options]
    if strange:
        raise ConfigError(f"{config_path()}: {verb}: {_strange(strange, options)}")
    shared = {name: value for name, value in config.items() if name in SHARED & options.keys()}
    context = click.Context(command)
    found = {}
    for name, value in {**shared, **section}.items():
        place = f"{verb}.{name}" if name in section else name
        found[str(options[name].name)] = _convert(options[name], value, place, context)
    return found


def check_environment(command: click.Command, verbs: Iterable[str]) -> None:
    """Say on stderr which KEIFU_* variables nobody reads: a misspelt one would do nothing."""
    own = {name for p in command.params for name in _names(p.envvar)}
    shared = {f"KEIFU_{name.upper()}" for name in SHARED}
    known = own | shared | VARIABLES.keys()
    mine = f"KEIFU_{command.name}_".upper().replace("-", "_")
    others = tuple(f"KEIFU_{verb}_".upper().replace("-", "_") for verb in verbs)
    for name in sorted(os.environ):
        if not name.startswith("KEIFU_") or name in known:
            continue
        if not name.startswith(others) or name.startswith(mine):
            print(f"keifu: {_strange([name], known)}; it is ignored", file=sys.stderr)


def _names(envvar: object) -> list[str]:
    return [envvar] if isinstance(envvar, str) else list(envvar or ())  # type: ignore[call-overload]


def _parse(path: Path, text: str) -> dict[Any, Any]:
    import yaml  # 25 ms, and most people have no config file

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _no_duplicates(path, node, yaml.MappingNode)
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as wrong:
        line = " ".join(str(wrong).split())
        raise ConfigError(f"{path}: is not YAML: {line[:300]}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected `option: value` lines, got {type(raw).__name__}")
    return raw


def _no_duplicates(path: Path, node: Any, mapping: type) -> None:
    """YAML keeps the last of two equal keys without a word; here that is an error."""
    if not isinstance(node, mapping):
        return
    seen: set[str] = set()
    for word, value in node.value:  # type: ignore[attr-defined]
        name = str(word.value).replace("-", "_")
        if name in seen:
            raise ConfigError(f"{path}: line {word.start_mark.line + 1}: {name} is set twice")
        seen.add(name)
        _no_duplicates(path, value, mapping)


def _convert(option: click.Option, value: Any, place: str, context: click.Context) -> Any:
    """A YAML value through the option's own type, so that file and flag refuse alike."""
    if isinstance(value, dict) or (isinstance(value, list) and not option.multiple):
        raise ConfigError(f"{config_path()}: {place}: expected one value, got {value!r}")
    if isinstance(value, list):
        text: Any = [str(item) for item in value]
    else:
        text = [str(value)] if option.multiple else str(value)
    try:
        return option.type_cast_value(context, text)
    except click.BadParameter as wrong:
        raise ConfigError(f"{config_path()}: {place}: {wrong.message}") from None


def _strange(names: list[str], known: Iterable[str]) -> str:
    parts = []
    for name in names:
        close = nearest(name, known, 1)
        parts.append(f"{name} is no setting" + (f" (nearest: {close[0]})" if close else ""))
    return "; ".join(parts)
