"""A run's state as two files without pickle: tensors in safetensors, all else in JSON.

`Trainer.state_dict()` is dicts, lists and tuples of numbers, texts and tensors. JSON cannot say
some of that, so there `{"$": "tensor", "of": "3"}` stands for the third tensor, and likewise for
tuples, for dicts whose keys are not texts, and for numbers that are not finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keifu.checkpoints.safetensors import Planned, SafetensorsSource, write_safetensors
from keifu.checkpoints.source import read_json
from keifu.core.atomic import write_text
from keifu.core.errors import FormatError

_MARK = "$"
_JSON_BYTES = 1 << 30


def frozen(value: Any) -> Any:
    """A copy of a state that later steps do not change, its tensors in main memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {key: frozen(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(frozen(v) for v in value)
    return value


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state.json` and `state.safetensors` into a folder, made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: list[Tensor] = []
    text = json.dumps(_told(state, tensors), allow_nan=False)
    if tensors:
        planned = [Planned.of(str(i), tensor) for i, tensor in enumerate(tensors)]
        write_safetensors(folder, planned, stem="state")
    write_text(folder / "state.json", text + "\n")


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, equal to the last bit.

    Raises:
        FormatError: a file is missing, damaged or of something else.
    """
    if not (folder / "state.json").is_file():
        raise FormatError(f"{folder} holds no state of a run: state.json is missing")
    said = read_json(folder / "state.json", _JSON_BYTES)
    there = any(folder.glob("state*.safetensors"))
    source = SafetensorsSource(folder, "state") if there else None
    found = _read(said, source, folder)
    assert isinstance(found, dict)
    return found


def _told(value: Any, tensors: list[Tensor]) -> Any:
    """A value as JSON has it; its tensors go to the list."""
    if isinstance(value, Tensor):
        tensors.append(value.detach().contiguous())
        return {_MARK: "tensor", "of": str(len(tensors) - 1)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key != _MARK for key in value):
            return {key: _told(v, tensors) for key, v in value.items()}
        pairs = [[_told(key, tensors), _told(v, tensors)] for key, v in value.items()]
        return {_MARK: "dict", "of": pairs}
    if isinstance(value, tuple):
        return {_MARK: "tuple", "of": [_told(v, tensors) for v in value]}
    if isinstance(value, list):
        return [_told(v, tensors) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_MARK: "float", "of": repr(value)}
    if isinstance(value, torch.dtype):
        return {_MARK: "dtype", "of": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a run's state cannot hold a {type(value).__name__}: {value!r:.80}")


def _read(value: Any, source: SafetensorsSource | None, folder: Path) -> Any:
    """The value that `_told` told."""
    if isinstance(value, list):
        return [_read(v, source, folder) for v in value]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: _read(v, source, folder) for key, v in value.items()}
    kind, of = value[_MARK], value.get("of")
    if kind == "tensor" and source is not None:
        return source.read(str(of)).clone()
    if kind == "tuple" and isinstance(of, list):
        return tuple(_read(v, source, folder) for v in of)
    if kind == "dict" and isinstance(of, list):
        return {_read(k, source, folder): _read(v, source, folder) for k, v in of}
    if kind == "float":
        return float(str(of))
    if kind == "dtype" and isinstance(found := vars(torch).get(str(of)), torch.dtype):
        return found
    raise FormatError(f"{folder}/state.json: no value is a {kind!r:.40}")
